"""Which mutants a source has, and that they take its place."""

import ast
import os
import tomllib

import pytest

from regions.failover import rules
from tests.mutants.__main__ import LIST
from tests.mutants.campaign import SOURCES, in_fork, install
from tests.mutants.operators import mutants_of, mutated


def changes(source: str) -> set[str]:
    """What the mutants of a function's body come to, without the name of the function."""
    body = "def f():\n" + "\n".join(f"    {line}" for line in source.splitlines())
    return {one.key.removeprefix("x.py f: ") for one in mutants_of("x.py", body)}


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("return a < b", {"a < b -> a <= b", "a < b -> a >= b"}),
        ("return a is None", {"a is None -> a is not None"}),
        ("return a in b", {"a in b -> a not in b"}),
        ("return a and b", {"a and b -> a or b", "a and b -> a", "a and b -> b"}),
        ("return not a", {"not a -> a"}),
        ("return (a, b)", {"(a, b) -> (b,)", "(a, b) -> (a,)", "(a, b) -> (b, a)"}),
        ("return 7", {"7 -> 8", "7 -> 6"}),
        ("return 0.5", {"0.5 -> 1.0", "0.5 -> 0.25"}),
        ("return True", {"True -> False"}),
        ("return a + b", {"a + b -> a - b"}),
        ("return -a", {"-a -> a"}),
        ("return min(a, b)", {"min(a, b) -> max(a, b)", "min(a, b) -> a", "min(a, b) -> b"}),
        ("return isinstance(a, B | C)", {"B | C -> B", "B | C -> C"}),
        ("return replace(a, b=c)", {"replace(a, b=c) -> without b"}),
        ("return a[b:]", {"b: -> :"}),
        ("a.b = c", {"a.b = c -> without a.b"}),
        ("a.b = a.c = d", {"a.b = a.c = d -> without a.b", "a.b = a.c = d -> without a.c"}),
        ("a.b, a.c = d, e", {"a.b, a.c = (d, e) -> without a.b", "a.b, a.c = (d, e) -> without a.c"}),
        ("a()", {"a() -> (nothing)"}),
        ("if a:\n    return b", {"if a -> never", "if a -> always"}),
        ("assert a, 'words'", {"assert a -> assert not a"}),
        ("name: int = a", set[str]()),
        ("return f'{a + b}'", set[str]()),
    ],
)
def test_each_kind_of_change_is_made(source: str, expected: set[str]) -> None:
    found = {one for one in changes(source) if not one.startswith(("(d, e) ->", "a.b, a.c = (d, e) -> (nothing)"))}
    assert found == expected


def test_every_mutant_of_the_core_is_a_program_and_has_a_name_of_its_own() -> None:
    mutants = [one for path in SOURCES.glob("*.py") for one in mutants_of(path.name, path.read_text())]
    assert len({one.key for one in mutants}) == len(mutants) > 2000
    for one in mutants[::40]:
        source = (SOURCES / one.file).read_text()
        tree = mutated(source, one)
        compile(tree, one.file, "exec")
        assert ast.dump(tree) != ast.dump(ast.parse(source))


def test_a_mutant_takes_the_place_of_its_function_and_of_nothing_else() -> None:
    source = (SOURCES / "rules.py").read_text()
    turned = next(
        one for one in mutants_of("rules.py", source) if one.key.endswith("cut_short == epoch -> cut_short != epoch")
    )

    def spent() -> tuple[bool, bool]:
        install(turned)
        return rules.is_spent(5, 5), rules.is_settled(5, 5)

    assert in_fork(spent) == (False, True)
    assert rules.is_spent(5, 5)


def test_a_mutant_that_ends_its_process_or_raises_is_told_from_one_that_goes_on() -> None:
    assert in_fork(lambda: None) is None
    assert in_fork(lambda: 1 / 0) == "raised ZeroDivisionError: division by zero"
    assert in_fork(lambda: os._exit(3)) == "ended, or took too long"


def test_what_is_listed_as_equivalent_is_there() -> None:
    listed = tomllib.loads(LIST.read_text())
    keys = {one.key for path in SOURCES.glob("*.py") for one in mutants_of(path.name, path.read_text())}
    named = [key for group in listed["equivalent"] for key in group["mutants"]]
    assert set(named) <= keys
    assert len(set(named)) == len(named)
    assert {key.split(" ")[0] for key in named} <= set(listed["judged"])

"""Tests the generation of mutants, their installation, and the verdicts of a campaign."""

import ast
import os
import re
import signal
import sys
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest

from regions.failover import rules
from tests.mutants import campaign
from tests.mutants.__main__ import LIST
from tests.mutants.campaign import (
    PACKAGE,
    SOURCES,
    TOO_LONG,
    CampaignBroken,
    Ended,
    by_what,
    in_fork,
    in_process_of_its_own,
    install,
)
from tests.mutants.operators import mutants_of, mutated


def changes(source: str) -> set[str]:
    """The keys of all mutants of a function with this body, without the prefix that names the function."""
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
        ("return (a, a)", {"(a, a) -> (a,)", "(a, a) -> (a,) #2"}),
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
        ("assert_never(a)", set[str]()),
        ("class C:\n    __slots__ = ('a', 'b')", set[str]()),
    ],
)
def test_each_kind_of_change_is_made(source: str, expected: set[str]) -> None:
    found = {one for one in changes(source) if not one.startswith(("(d, e) ->", "a.b, a.c = (d, e) -> (nothing)"))}
    assert found == expected


def test_every_mutant_of_the_core_compiles_and_has_a_unique_key() -> None:
    mutants = [one for path in SOURCES.glob("*.py") for one in mutants_of(path.name, path.read_text())]
    assert len({one.key for one in mutants}) == len(mutants) > 2000
    for one in mutants[::40]:
        source = (SOURCES / one.file).read_text()
        tree = mutated(source, one)
        compile(tree, one.file, "exec")
        assert ast.dump(tree) != ast.dump(ast.parse(source))


def test_a_mutant_replaces_only_its_function() -> None:
    source = (SOURCES / "rules.py").read_text()
    turned = next(
        one
        for one in mutants_of("rules.py", source)
        if one.key.endswith("cancelled_epoch == epoch -> cancelled_epoch != epoch")
    )

    def spent() -> tuple[bool, bool]:
        install(turned)
        return rules.is_epoch_over(5, 5), rules.is_settled(5, 5)

    assert in_fork(spent) == Ended(how="returned", answer=(False, True))
    assert rules.is_epoch_over(5, 5)


def broken() -> None:
    raise ValueError("broken")


def test_a_fork_reports_how_it_ended() -> None:
    assert in_fork(lambda: None) == Ended(how="returned")
    assert in_fork(broken) == Ended(how="raised", answer="ValueError: broken")
    assert in_fork(lambda: None, prepare=broken) == Ended(how="unprepared", answer="ValueError: broken")
    assert in_fork(lambda: os._exit(3)) == Ended(how="ended", answer="exit code 3")
    assert in_fork(lambda: os.kill(os.getpid(), signal.SIGTERM)) == Ended(how="ended", answer="killed by signal 15")
    assert in_fork(signal.pause, 0.2).how == "late"


MUTANT = next(iter(mutants_of("rules.py", (SOURCES / "rules.py").read_text())))


def test_only_an_effect_of_the_mutant_counts_as_noticed() -> None:
    assert by_what(MUTANT, Ended(how="returned")) is None
    assert by_what(MUTANT, Ended(how="returned", answer="a test")) == "a test"
    assert by_what(MUTANT, Ended(how="late")) == TOO_LONG
    assert by_what(MUTANT, Ended(how="ended", answer="exit code 3")) == "its process ended: exit code 3"
    others: list[Ended] = [
        Ended(how="unprepared", answer="x"),
        Ended(how="raised", answer="x"),
        # The kernel killed it for lack of memory, or a user killed it.
        Ended(how="ended", answer="killed by signal 9"),
    ]
    for one in others:
        with pytest.raises(CampaignBroken, match=re.escape(MUTANT.key)):
            by_what(MUTANT, one)


def test_a_mutant_that_cannot_be_installed_stops_the_campaign() -> None:
    # This process has imported the source already, so its fork would run the tests against the source.
    assert f"{PACKAGE}.rules" in sys.modules
    with pytest.raises(CampaignBroken, match="its source was imported before it"):
        in_process_of_its_own(MUTANT, 20)
    gone = replace(MUTANT, function="nobody")
    ended = in_fork(lambda: None, prepare=lambda: install(gone))
    assert ended.how == "unprepared"
    with pytest.raises(CampaignBroken, match="no function nobody"):
        by_what(gone, ended)


FILES = {
    "passes": ("def test() -> None:\n    pass\n", None),
    "fails": ("def test() -> None:\n    assert False\n", "some test"),
    "cannot be imported": ("raise ValueError\n", "a file of tests that cannot be imported"),
}


@pytest.mark.parametrize(("text", "by"), FILES.values(), ids=FILES)
def test_a_collection_error_is_distinguished_from_a_failed_test(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, by: str | None
) -> None:
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    path = tmp_path / "test_of_mutants.py"
    path.write_text(text)
    monkeypatch.setattr(campaign, "TESTS", (str(path), f"--rootdir={tmp_path}", f"-c{tmp_path}/pytest.ini"))
    assert in_fork(campaign.all_tests) == Ended(how="returned", answer=by)
    if by is None:
        assert campaign.baseline() > 0
    else:
        with pytest.raises(CampaignBroken, match="the tests fail without a mutant"):
            campaign.baseline()


def test_a_run_without_tests_raises_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for wanted in ((str(tmp_path),), ("--no-such-option",), (str(tmp_path / "gone.py"),)):
        monkeypatch.setattr(campaign, "TESTS", wanted)
        ended = in_fork(campaign.all_tests)
        assert ended.how == "raised"
        assert "pytest ended with" in str(ended.answer)


def test_every_mutant_in_the_list_of_equivalents_exists() -> None:
    listed = tomllib.loads(LIST.read_text())
    keys = {one.key for path in SOURCES.glob("*.py") for one in mutants_of(path.name, path.read_text())}
    named = [key for group in listed["equivalent"] for key in group["mutants"]]
    assert set(named) <= keys
    assert len(set(named)) == len(named)
    assert {key.split(" ")[0] for key in named} <= set(listed["judged"])

"""Finds tests that sleep for a duration instead of waiting for a condition (CONTRIBUTING, Tests); tests the waiting."""

import ast
import asyncio
from pathlib import Path

import pytest

from tests.waiting import eventually, until

TESTS = Path(__file__).parent


def sleeps(source: str) -> list[int]:
    """Return the lines on which a test sleeps outside of a loop, so that it does not check a condition again."""
    found: list[int] = []

    def visit(node: ast.AST, in_test: bool) -> None:
        for child in ast.iter_child_nodes(node):
            match child:
                case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
                    visit(child, name.startswith("test_"))
                case ast.While() | ast.For() | ast.AsyncFor() | ast.Lambda():
                    visit(child, False)
                case ast.Call(func=ast.Attribute(attr="sleep") | ast.Name(id="sleep")):
                    found.extend([child.lineno] if in_test and not _only_yields(child) else [])
                case _:
                    visit(child, in_test)

    visit(ast.parse(source), False)
    return found


def _only_yields(sleep: ast.Call) -> bool:
    """Return whether the call is `sleep(0)`, which lets other tasks run and does not wait."""
    return bool(sleep.args) and isinstance(sleep.args[0], ast.Constant) and sleep.args[0].value == 0


@pytest.mark.parametrize("module", sorted(TESTS.rglob("test_*.py")), ids=lambda path: str(path.relative_to(TESTS)))
def test_no_test_sleeps_outside_of_a_loop(module: Path) -> None:
    assert sleeps(module.read_text()) == []


def test_a_sleep_is_found_outside_of_a_loop_and_not_in_a_polling_loop() -> None:
    assert sleeps("async def test_x():\n    await asyncio.sleep(0.5)\n    assert done\n") == [2]
    assert sleeps("def test_x():\n    with server():\n        time.sleep(1)\n") == [3]
    assert sleeps("async def test_x():\n    await asyncio.sleep(2 * PAUSE_S)\n") == [2]
    assert sleeps("async def test_x():\n    await asyncio.sleep(delay=1)\n") == [2]
    assert sleeps("def test_x():\n    sleep(1)\n") == [2]
    assert sleeps("async def test_x():\n    while not done():\n        await asyncio.sleep(0.01)\n") == []
    assert sleeps("async def test_x():\n    async def slow():\n        await asyncio.sleep(1)\n") == []
    assert sleeps("async def test_x():\n    await asyncio.sleep(0)\n") == []


async def test_until_returns_the_first_true_answer_of_a_condition() -> None:
    answers = iter([0, None, 7])

    async def ask() -> int | None:
        return next(answers)

    assert await until(ask) == 7
    assert await until(lambda: "plain") == "plain"


async def test_until_reports_the_condition_its_variables_and_the_last_answer() -> None:
    found: list[int] = []
    with pytest.raises(TimeoutError, match=r"within 0\.03 s: .*lambda: len\(found\).*; found = \[\]; last seen: 0"):
        await until(lambda: len(found), timeout_s=0.03)


async def test_until_reports_an_asynchronous_condition_that_does_not_answer() -> None:
    with pytest.raises(TimeoutError, match="last seen: 'no answer'"):
        await until(asyncio.Event().wait, timeout_s=0.03)


async def test_until_passes_on_a_timeout_of_the_condition_itself() -> None:
    def ask() -> bool:
        raise TimeoutError("of the condition")

    with pytest.raises(TimeoutError, match="of the condition"):
        await until(ask)


def test_eventually_returns_the_answer_that_holds() -> None:
    answers = iter([1, 2, 3])
    assert eventually(lambda: next(answers), lambda answer: answer > 2, pause_s=0) == 3


def test_eventually_reports_what_was_awaited_and_the_last_answer() -> None:
    with pytest.raises(AssertionError, match="a reply; last seen: 'none yet'"):
        eventually(lambda: "none yet", lambda answer: answer == "reply", what="a reply", within_s=0, pause_s=0)

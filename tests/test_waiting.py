"""No test waits for a time to pass and then believes that something has, or has not, happened (CONTRIBUTING, Tests)."""

import ast
from pathlib import Path

import pytest

TESTS = Path(__file__).parent


def fixed_sleeps(source: str) -> list[int]:
    """Lines on which a test sleeps for a fixed time outside of every loop, so that no condition is asked for again."""
    found: list[int] = []

    def visit(node: ast.AST, in_test: bool) -> None:
        for child in ast.iter_child_nodes(node):
            match child:
                case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
                    visit(child, name.startswith("test_"))
                case ast.While() | ast.For() | ast.AsyncFor() | ast.Lambda():
                    visit(child, False)
                case ast.Call(func=ast.Attribute(attr="sleep"), args=[ast.Constant(value=seconds)]) if seconds:
                    found.extend([child.lineno] if in_test else [])
                case _:
                    visit(child, in_test)

    visit(ast.parse(source), False)
    return found


@pytest.mark.parametrize("module", sorted(TESTS.rglob("test_*.py")), ids=lambda path: str(path.relative_to(TESTS)))
def test_no_test_sleeps_for_a_fixed_time(module: Path) -> None:
    assert fixed_sleeps(module.read_text()) == []


def test_a_sleep_is_found_where_it_decides_and_not_where_it_paces() -> None:
    assert fixed_sleeps("async def test_x():\n    await asyncio.sleep(0.5)\n    assert done\n") == [2]
    assert fixed_sleeps("def test_x():\n    with server():\n        time.sleep(1)\n") == [3]
    assert fixed_sleeps("async def test_x():\n    while not done():\n        await asyncio.sleep(0.01)\n") == []
    assert fixed_sleeps("async def test_x():\n    async def slow():\n        await asyncio.sleep(1)\n") == []
    assert fixed_sleeps("async def test_x():\n    await asyncio.sleep(0)\n") == []

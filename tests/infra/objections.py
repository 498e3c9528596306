"""What a judge can object with, read off its source, so that a clause without a broken record is noticed."""

import ast
import inspect
import re
from collections.abc import Callable, Iterable
from types import ModuleType
from typing import Any


def public_functions(module: ModuleType, returns: str) -> dict[str, Callable[..., Any]]:
    """The functions of a module without an underscore that are declared to return something."""
    return {
        name: one
        for name, one in inspect.getmembers(module, inspect.isfunction)
        if one.__module__ == module.__name__ and not name.startswith("_") and one.__annotations__["return"] == returns
    }


def texts_of(source: Iterable[ast.AST]) -> set[str]:
    """Every text with a value in it, as a pattern."""
    nodes = [node for root in source for node in ast.walk(root)]
    formats = {id(node.format_spec) for node in nodes if isinstance(node, ast.FormattedValue)}
    return {
        "".join(re.escape(str(part.value)) if isinstance(part, ast.Constant) else ".*" for part in node.values)
        for node in nodes
        if isinstance(node, ast.JoinedStr) and id(node) not in formats
    }


def arguments_of(module: ModuleType, *callees: str) -> list[ast.AST]:
    """What calls of these functions or classes are given in a module."""
    calls = (node for node in ast.walk(ast.parse(inspect.getsource(module))) if isinstance(node, ast.Call))
    return [argument for call in calls if _name(call.func) in callees for argument in call.args]


def _name(function: ast.expr) -> str:
    if isinstance(function, ast.Attribute):
        return function.attr
    return function.id if isinstance(function, ast.Name) else ""


def unheard(patterns: Iterable[str], said: Iterable[str]) -> list[str]:
    """The texts that nobody said."""
    told = list(said)
    return sorted(one for one in patterns if not any(re.search(one, text, re.DOTALL) for text in told))

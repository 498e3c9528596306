"""Reads the possible failure texts of a judge from its source, so that a check without a failing record is found."""

import ast
import inspect
import re
from collections.abc import Callable, Iterable
from types import ModuleType
from typing import Any


def public_functions(module: ModuleType, returns: str) -> dict[str, Callable[..., Any]]:
    """Return the public functions of a module whose return annotation is the text `returns`, by name."""
    return {
        name: one
        for name, one in inspect.getmembers(module, inspect.isfunction)
        if one.__module__ == module.__name__ and not name.startswith("_") and one.__annotations__["return"] == returns
    }


def texts_of(source: Iterable[ast.AST]) -> set[str]:
    """Return every f-string as a regular expression that matches its texts."""
    nodes = [node for root in source for node in ast.walk(root)]
    formats = {id(node.format_spec) for node in nodes if isinstance(node, ast.FormattedValue)}
    return {
        "".join(re.escape(str(part.value)) if isinstance(part, ast.Constant) else ".*" for part in node.values)
        for node in nodes
        if isinstance(node, ast.JoinedStr) and id(node) not in formats
    }


def arguments_of(module: ModuleType, *callees: str) -> list[ast.AST]:
    """Return the positional arguments of all calls of these functions or classes in a module."""
    calls = (node for node in ast.walk(ast.parse(inspect.getsource(module))) if isinstance(node, ast.Call))
    return [argument for call in calls if _name(call.func) in callees for argument in call.args]


def _name(function: ast.expr) -> str:
    if isinstance(function, ast.Attribute):
        return function.attr
    return function.id if isinstance(function, ast.Name) else ""


def unheard(patterns: Iterable[str], said: Iterable[str]) -> list[str]:
    """Return the patterns that match none of the texts, sorted."""
    told = list(said)
    return sorted(one for one in patterns if not any(re.search(one, text, re.DOTALL) for text in told))

"""Values as text in which nothing is left that makes no difference: the canonical form of what a core knows.

Tickets, points in time, reasons and identities are left out, orders that mean nothing are sorted away, and regions
are written as they are renamed, so that a state and its mirror image can be told to be one.
"""

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from functools import cache
from typing import Any, cast

from regions.identity import RegionName

REGIONS = (RegionName("a"), RegionName("b"), RegionName("c"))
"""``a`` is the first leader; the others are followers, alike in everything."""

PLAIN = {"a": "a", "b": "b", "c": "c"}
MIRRORED = {"a": "a", "b": "c", "c": "b"}

_SILENT = frozenset({"ticket", "last_ticket", "until", "reason", "since", "fence_id", "region", "cell", "settings"})
"""Tickets are drawn anew, times are normalised before, and the rest is for people or never changes."""

_UNORDERED = frozenset({"voters", "standbys", "quorum", "drained"})
"""PostgreSQL's quorum names have no order, nor have drained voters; that of the voters decides only ties, which
``node.py`` leaves open."""


def describe(value: object, names: Mapping[str, str]) -> str:
    """Return the canonical text of ``value`` with regions renamed by ``names``."""
    if value is None:
        return "-"
    if isinstance(value, str):
        return names.get(value, value)
    if isinstance(value, int | float):
        return str(int(value)) if isinstance(value, bool) else str(value)
    if isinstance(value, tuple):
        return "(" + " ".join(describe(one, names) for one in cast("tuple[Any, ...]", value)) + ")"
    if isinstance(value, frozenset):
        return "{" + " ".join(sorted(describe(one, names) for one in cast("frozenset[Any]", value))) + "}"
    if isinstance(value, Mapping):
        items = cast("Mapping[Any, Any]", value).items()
        return "{" + " ".join(sorted(f"{describe(key, names)}:{describe(one, names)}" for key, one in items)) + "}"
    assert is_dataclass(value), f"no canonical form of {value!r}"
    kind = type(value)
    return kind.__name__ + "[" + " ".join(_field(value, name, names) for name in _fields(kind)) + "]"


def _field(value: object, name: str, names: Mapping[str, str]) -> str:
    part = getattr(value, name)
    if name in _UNORDERED and isinstance(part, tuple):
        part = frozenset(cast("tuple[Any, ...]", part))
    return describe(part, names)


@cache
def _fields(kind: type[Any]) -> tuple[str, ...]:
    return tuple(one.name for one in fields(kind) if one.name not in _SILENT)

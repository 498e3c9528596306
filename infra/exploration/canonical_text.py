"""Describes a core's facts as canonical text, which is equal for facts that lead to equal behaviour.

The text omits tickets, times, reasons and identities, and sorts collections whose order has no meaning. Regions are
renamed by a mapping, so that a state and its mirror image can be recognised as equal.
"""

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from functools import cache
from typing import Any, cast

from regions.identity import RegionName

REGIONS = (RegionName("a"), RegionName("b"), RegionName("c"))
"""``a`` is the first leader; the other two are interchangeable followers."""

PLAIN = {"a": "a", "b": "b", "c": "c"}
MIRRORED = {"a": "a", "b": "c", "c": "b"}

_SILENT = frozenset({"ticket", "last_ticket", "until", "reason", "since", "fence_id", "region", "cell", "settings"})
"""Fields that the text omits. Tickets are assigned anew, times are normalised before, and the others never change or
have no effect on behaviour."""

_UNORDERED = frozenset({"voters", "standbys", "quorum", "drained"})
"""Fields whose order has no meaning: standby names in PostgreSQL's quorum, and drained voters. The order of the voters
only decides ties, and ``node.py`` explores both results of a tie."""


def canonical_text(value: object, names: Mapping[str, str]) -> str:
    """Return the canonical text of ``value`` with regions renamed by ``names``."""
    if value is None:
        return "-"
    if isinstance(value, str):
        return names.get(value, value)
    if isinstance(value, int | float):
        return str(int(value)) if isinstance(value, bool) else str(value)
    if isinstance(value, tuple):
        return "(" + " ".join(canonical_text(one, names) for one in cast("tuple[Any, ...]", value)) + ")"
    if isinstance(value, frozenset):
        return "{" + " ".join(sorted(canonical_text(one, names) for one in cast("frozenset[Any]", value))) + "}"
    if isinstance(value, Mapping):
        items = cast("Mapping[Any, Any]", value).items()
        return (
            "{"
            + " ".join(sorted(f"{canonical_text(key, names)}:{canonical_text(one, names)}" for key, one in items))
            + "}"
        )
    assert is_dataclass(value), f"no canonical form of {value!r}"
    kind = type(value)
    return kind.__name__ + "[" + " ".join(_field(value, name, names) for name in _fields(kind)) + "]"


def _field(value: object, name: str, names: Mapping[str, str]) -> str:
    part = getattr(value, name)
    if name in _UNORDERED and isinstance(part, tuple):
        part = frozenset(cast("tuple[Any, ...]", part))
    return canonical_text(part, names)


@cache
def _fields(kind: type[Any]) -> tuple[str, ...]:
    return tuple(one.name for one in fields(kind) if one.name not in _SILENT)

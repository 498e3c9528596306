"""Defines the names of regions and cells, and the names of the replication slots derived from them.

Decides which names are valid, where text enters the product; behind that boundary the code uses the types. Does not
know which regions exist: the topology does.

The pattern is the common subset of what a DNS label, a PostgreSQL slot name (after mapping ``-`` to
``_``) and an etcd key segment allow, so one name serves everywhere without quoting.
"""

import re
from typing import NewType

RegionName = NewType("RegionName", str)
CellId = NewType("CellId", str)
Epoch = int
"""Term of a cell's leader: starts at 1, only increases, changes by compare-and-swap in etcd."""

NAME_CHARS_MAX = 31
"""Half of PostgreSQL's 63-byte identifier limit, so that prefixed slot names always fit."""

_NAME = re.compile(r"[a-z][a-z0-9-]{0,30}")


class InvalidName(ValueError):
    """A text is not a valid name of a region or cell."""


def parse_region_name(text: str) -> RegionName:
    """Return ``text`` as a region name.

    Raises:
        InvalidName: ``text`` does not match ``[a-z][a-z0-9-]{0,30}``.
    """
    return RegionName(_parse_name(text, "region"))


def parse_cell_id(text: str) -> CellId:
    """Return ``text`` as a cell id.

    Raises:
        InvalidName: ``text`` does not match ``[a-z][a-z0-9-]{0,30}``.
    """
    return CellId(_parse_name(text, "cell"))


def slot_name(region: RegionName) -> str:
    """Return the name of the logical slot that feeds the change stream of ``region``."""
    return "palaver_" + region.replace("-", "_")


def physical_slot_name(region: RegionName) -> str:
    """Return the name of the physical slot that keeps WAL for the ledger member of ``region``."""
    return "member_" + region.replace("-", "_")


def _parse_name(text: str, what: str) -> str:
    if _NAME.fullmatch(text) is None:
        raise InvalidName(
            f"{text!r} is no {what} name: a lower-case letter, then letters, digits and hyphens, "
            f"{NAME_CHARS_MAX} at most"
        )
    return text

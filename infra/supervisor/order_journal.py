"""Keeps the operators' orders for `palaver history`: the order, its time, operator, reason and result.

The history in etcd has only epochs, and a pause or a drain begins no epoch. The journal is a file of JSON lines in the
data folder. An order is carried out even if the journal cannot be written.
"""

from __future__ import annotations

import logging
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import orjson

log = logging.getLogger("infra.supervisor")

ORDERS_MAX = 1000
"""The newest entries, which the journal always keeps; an operator gives a few orders a week."""

BYTES_MAX = 2 * ORDERS_MAX * 400  # an entry has up to 400 bytes: the reason is bounded (`infra/cli/failover.py`)


def note_order(path: Path, *, kind: str, region: str | None, by: str, refused: str | None) -> None:
    """Append an order; `refused` is the reason of its refusal, None if it was carried out."""
    entry = {"at": f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%S.%fZ}", "order": kind, "region": region, "by": by}
    line = orjson.dumps(entry | {"refused": refused}) + b"\n"
    try:
        if _is_full(path):
            shorter = path.with_name(f"{path.name}.new")
            shorter.write_bytes(b"\n".join(_lines(path)) + b"\n")
            shorter.replace(path)
        incomplete = path.exists() and not path.read_bytes().endswith(b"\n")
        with path.open("ab") as file:
            file.write(b"\n" + line if incomplete else line)
    except OSError as error:
        log.warning("the journal of orders cannot be written: %s", error)


def read_orders(path: Path) -> list[dict[str, Any]]:
    """Return the newest orders, the oldest first, without incomplete lines."""
    try:
        lines = _lines(path)
    except OSError:
        return []
    found: list[dict[str, Any]] = []
    for line in lines:
        try:
            entry: object = orjson.loads(line)
        except orjson.JSONDecodeError:
            continue
        if isinstance(entry, dict) and "at" in entry:
            found.append(cast("dict[str, Any]", entry))
    return found


def _lines(path: Path) -> list[bytes]:
    """Return the newest lines that are not empty."""
    return [line for line in path.read_bytes().splitlines() if line][-ORDERS_MAX:]


def _is_full(path: Path) -> bool:
    return path.exists() and path.stat().st_size > BYTES_MAX

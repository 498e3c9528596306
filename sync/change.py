"""The data types of the change stream (change, transaction, progress) and their encoding as JSON lines.

Decides the form in which changes are sent between regions: one JSON document per line, values in PostgreSQL's text
format. Does not know what the tables mean. **A line decodes to exactly the item that was encoded, or decoding raises an
error; no field has a guessed value.**

A transaction that is larger than `capture` keeps in memory is sent in parts. A part has `partial=True` and a position
that no other transaction has. A consumer applies each part, but moves its checkpoint only with the last one, which is
not partial.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

import orjson

from regions.position import InvalidPosition, Position, format_lsn, parse_lsn

Operation = Literal["insert", "update", "delete", "truncate"]

_OPERATIONS = frozenset(get_args(Operation))


class SyncError(Exception):
    """Base class of the errors of this package."""


class InvalidLine(SyncError):
    """A line of the change stream that is neither a transaction nor progress."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One row image from the WAL.

    Attributes:
        table: Name of the ledger's table, without its schema.
        op: The operation on the row. ``truncate`` concerns the whole table and has no key.
        key: Primary key columns before the change, in text format.
        row: Columns after the change in text format, None for NULL. A column is absent if its TOASTed value did not
            change. In a delete all columns are absent.
    """

    table: str
    op: Operation
    key: Mapping[str, str]
    row: Mapping[str, str | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Transaction:
    """A committed transaction of the ledger, or a part of a large one.

    Attributes:
        position: Epoch and commit end LSN. For a part: a position that no other transaction has.
        commit_ts_us: Commit time by the ledger's clock, microseconds since 1970.
        trace: W3C traceparent of the request that wrote it, if the request was sampled.
        changes: In the order of the WAL.
        partial: More of this transaction follows. The position must not become a checkpoint.
    """

    position: Position
    commit_ts_us: int
    trace: str | None
    changes: tuple[Change, ...]
    partial: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """States that everything up to a position has been sent.

    Attributes:
        position: The position of the stream.
        sent_at_us: When the ledger reported this, by its clock, microseconds since 1970; 0 if the stream may not be
            up to date.
    """

    position: Position
    sent_at_us: int


Item = Transaction | Progress


def encode_line(item: Item) -> bytes:
    """Return ``item`` as one line that ends with a newline."""
    if isinstance(item, Progress):
        fields: dict[str, object] = {
            "progress": _position_fields(item.position),
            "sent_at_us": item.sent_at_us,
        }
        return orjson.dumps(fields, option=orjson.OPT_APPEND_NEWLINE)
    fields = {
        **_position_fields(item.position),
        "commit_ts_us": item.commit_ts_us,
        "trace": item.trace,
        "changes": [{"table": one.table, "op": one.op, "key": one.key, "row": one.row} for one in item.changes],
    }
    if item.partial:
        fields["partial"] = True
    return orjson.dumps(fields, option=orjson.OPT_APPEND_NEWLINE)


def decode_line(line: bytes) -> Item:
    """Return the item that ``line`` encodes; the newline at its end is optional.

    Raises:
        InvalidLine: The line is not JSON, or a field is missing or has the wrong type.
    """
    try:
        fields = cast("dict[str, Any]", orjson.loads(line))
        if "progress" in fields:
            return Progress(position=_parse_position(fields["progress"]), sent_at_us=_integer(fields["sent_at_us"]))
        return Transaction(
            position=_parse_position(fields),
            commit_ts_us=_integer(fields["commit_ts_us"]),
            trace=_text_or_none(fields["trace"]),
            changes=tuple(_parse_change(change) for change in fields["changes"]),
            partial=fields.get("partial", False) is True,
        )
    except (ValueError, KeyError, TypeError, AttributeError, AssertionError, InvalidPosition) as error:
        raise InvalidLine(f"not a line of a change stream: {error!r}: {line[:80]!r}") from error


def change_fields(change: Change) -> dict[str, object]:
    """Return ``change`` as a JSON-serialisable document, for people who read dead letters."""
    return {"table": change.table, "op": change.op, "key": dict(change.key), "row": dict(change.row)}


def _position_fields(position: Position) -> dict[str, object]:
    return {"epoch": position.epoch, "lsn": format_lsn(position.lsn)}


def _parse_position(fields: dict[str, Any]) -> Position:
    return Position(_integer(fields["epoch"]), parse_lsn(fields["lsn"]))


def _parse_change(fields: dict[str, Any]) -> Change:
    op = fields["op"]
    if op not in _OPERATIONS:
        raise ValueError(f"unknown operation {op!r}")
    return Change(table=_text(fields["table"]), op=op, key=_columns(fields["key"]), row=_columns(fields["row"]))


def _columns(value: object) -> dict[str, Any]:
    # The types of the values are not checked here: the view casts each value in SQL.
    if not isinstance(value, dict):
        raise TypeError("columns are an object")
    return cast("dict[str, Any]", value)


def _integer(value: object) -> int:
    if type(value) is not int:
        raise TypeError(f"{value!r} is no integer")
    return value


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is no text")
    return value


def _text_or_none(value: object) -> str | None:
    return None if value is None else _text(value)

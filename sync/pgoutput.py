"""Parses PostgreSQL's logical replication messages, pgoutput protocol version 1.

It keeps no state between messages, so a row has the OID of its relation and no column names. **Every message is parsed
to its last byte or rejected with `MalformedMessage`; the parser never skips bytes that it does not understand.**

Source: PostgreSQL 18, "Logical Replication Message Formats". Values are requested in text format (option `binary` is
off), so a binary value is malformed here.
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Final

from sync.change import SyncError

POSTGRES_EPOCH_US: Final = 946_684_800_000_000
"""PostgreSQL counts microseconds from 2000-01-01. All other code of this package counts from 1970."""

_KEY_FLAG: Final = 1


class MalformedMessage(SyncError):
    """Bytes that are not a message of pgoutput's protocol version 1."""


class Unchanged(Enum):
    """A TOASTed value that an update did not change; pgoutput does not send it."""

    UNCHANGED = "u"


UNCHANGED: Final = Unchanged.UNCHANGED

Value = str | None | Unchanged
Row = tuple[Value, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Begin:
    """Start of a transaction. All of its messages precede those of the next transaction."""

    final_lsn: int
    commit_ts_us: int
    xid: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Commit:
    """End of a transaction. A consumer can resume from ``end_lsn``."""

    commit_lsn: int
    end_lsn: int
    commit_ts_us: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """A column of a relation. ``key`` is true if the column belongs to the replica identity."""

    name: str
    key: bool
    type_oid: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Relation:
    """The columns of a table; sent before its first row, and again after each change of them."""

    oid: int
    namespace: str
    name: str
    columns: tuple[Column, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Insert:
    """A new row."""

    oid: int
    new: Row


@dataclass(frozen=True, slots=True, kw_only=True)
class Update:
    """A changed row. ``old`` is present if the key changed or the table's replica identity is full."""

    oid: int
    old: Row | None
    new: Row


@dataclass(frozen=True, slots=True, kw_only=True)
class Delete:
    """A deleted row. In ``old``, columns outside of the replica identity are None."""

    oid: int
    old: Row


@dataclass(frozen=True, slots=True, kw_only=True)
class Truncate:
    """Truncated tables."""

    oids: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class LogicalMessage:
    """A message that ``pg_logical_emit_message`` wrote."""

    transactional: bool
    lsn: int
    prefix: str
    content: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Ignored:
    """A type or an origin, which consumers of text values do not need."""

    kind: str


Message = Begin | Commit | Relation | Insert | Update | Delete | Truncate | LogicalMessage | Ignored


def parse_message(data: bytes) -> Message:
    """Return the message in ``data``, the payload of one XLogData.

    Raises:
        MalformedMessage: Unknown kind, too short, too long, or not UTF-8.
    """
    reader = _Reader(data)
    try:
        message = _parse(reader)
    except (struct.error, IndexError, ValueError) as error:
        raise MalformedMessage(f"message {data[:1]!r} of {len(data)} bytes: {error}") from error
    if reader.offset != len(data):
        raise MalformedMessage(f"message {data[:1]!r} has {len(data) - reader.offset} bytes too many")
    return message


def _parse(reader: "_Reader") -> Message:
    kind = reader.byte()
    match kind:
        case "B":
            final_lsn, time_us, xid = reader.fields(_BEGIN)
            return Begin(final_lsn=final_lsn, commit_ts_us=time_us + POSTGRES_EPOCH_US, xid=xid)
        case "C":
            _, commit_lsn, end_lsn, time_us = reader.fields(_COMMIT)
            return Commit(commit_lsn=commit_lsn, end_lsn=end_lsn, commit_ts_us=time_us + POSTGRES_EPOCH_US)
        case "R":
            return _parse_relation(reader)
        case "I":
            (oid,) = reader.fields(_OID)
            reader.expect("N")
            return Insert(oid=oid, new=reader.row())
        case "U":
            return _parse_update(reader)
        case "D":
            (oid,) = reader.fields(_OID)
            reader.expect("KO")
            return Delete(oid=oid, old=reader.row())
        case "T":
            count, _ = reader.fields(_TRUNCATE)
            return Truncate(oids=tuple(reader.fields(_OID)[0] for _ in range(count)))
        case _:
            return _parse_other(kind, reader)


def _parse_other(kind: str, reader: "_Reader") -> Message:
    """Parse a logical message, a type or an origin."""
    match kind:
        case "M":
            flags, lsn = reader.fields(_MESSAGE)
            prefix = reader.text()
            (size,) = reader.fields(_OID)
            return LogicalMessage(transactional=bool(flags & 1), lsn=lsn, prefix=prefix, content=reader.take(size))
        case "Y":
            reader.fields(_OID)
            reader.text()
            reader.text()
            return Ignored(kind=kind)
        case "O":
            reader.fields(_LSN)
            reader.text()
            return Ignored(kind=kind)
        case _:
            raise ValueError("unknown kind")


def _parse_relation(reader: "_Reader") -> Relation:
    (oid,) = reader.fields(_OID)
    namespace = reader.text()
    name = reader.text()
    _identity, count = reader.fields(_RELATION)
    columns: list[Column] = []
    for _ in range(count):
        (flags,) = reader.fields(_FLAGS)
        column = reader.text()
        type_oid, _modifier = reader.fields(_TYPE)
        columns.append(Column(name=column, key=bool(flags & _KEY_FLAG), type_oid=type_oid))
    return Relation(oid=oid, namespace=namespace, name=name, columns=tuple(columns))


def _parse_update(reader: "_Reader") -> Update:
    (oid,) = reader.fields(_OID)
    old: Row | None = None
    if reader.expect("KON") != "N":
        old = reader.row()
        reader.expect("N")
    return Update(oid=oid, old=old, new=reader.row())


_BEGIN = struct.Struct("!QqI")
_COMMIT = struct.Struct("!BQQq")
_OID = struct.Struct("!I")
_LSN = struct.Struct("!Q")
_FLAGS = struct.Struct("!B")
_RELATION = struct.Struct("!BH")
_TYPE = struct.Struct("!Ii")
_TRUNCATE = struct.Struct("!IB")
_MESSAGE = struct.Struct("!BQ")
_COUNT = struct.Struct("!H")


class _Reader:
    """A cursor over one message. A read beyond the end of the message raises an error."""

    __slots__ = ("data", "offset")

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.offset = 0

    def byte(self) -> str:
        value = self.data[self.offset]
        self.offset += 1
        return chr(value)

    def expect(self, allowed: str) -> str:
        kind = self.byte()
        if kind not in allowed:
            raise ValueError(f"expected one of {allowed!r}, found {kind!r}")
        return kind

    def fields(self, layout: struct.Struct) -> Sequence[int]:
        values = layout.unpack_from(self.data, self.offset)
        self.offset += layout.size
        return values

    def text(self) -> str:
        end = self.data.index(b"\0", self.offset)
        value = self.data[self.offset : end].decode()
        self.offset = end + 1
        return value

    def take(self, size: int) -> bytes:
        end = self.offset + size
        if end > len(self.data):
            raise ValueError(f"{size} bytes announced, {len(self.data) - self.offset} present")
        value = self.data[self.offset : end]
        self.offset = end
        return value

    def row(self) -> Row:
        (count,) = self.fields(_COUNT)
        return tuple([self.value() for _ in range(count)])

    def value(self) -> Value:
        kind = self.byte()
        if kind == "t":
            (size,) = self.fields(_OID)
            return self.take(size).decode()
        if kind == "n":
            return None
        if kind == "u":
            return UNCHANGED
        raise ValueError(f"value of kind {kind!r}")

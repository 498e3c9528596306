"""Builds pgoutput messages from PostgreSQL's documentation, independently of the parser."""

import struct
from collections.abc import Sequence

UNSENT = object()
"""A TOASTed value that did not change."""


def text(value: str) -> bytes:
    return value.encode() + b"\0"


def row(values: Sequence[object]) -> bytes:
    out = struct.pack("!H", len(values))
    for value in values:
        if value is None:
            out += b"n"
        elif value is UNSENT:
            out += b"u"
        else:
            data = str(value).encode()
            out += b"t" + struct.pack("!I", len(data)) + data
    return out


def begin(final_lsn: int = 100, time_us: int = 0, xid: int = 7) -> bytes:
    return b"B" + struct.pack("!QqI", final_lsn, time_us, xid)


def commit(commit_lsn: int = 100, end_lsn: int = 150, time_us: int = 0) -> bytes:
    return b"C\0" + struct.pack("!QQq", commit_lsn, end_lsn, time_us)


def relation(oid: int, name: str, columns: Sequence[tuple[str, bool]]) -> bytes:
    out = b"R" + struct.pack("!I", oid) + text("palaver") + text(name) + b"d" + struct.pack("!H", len(columns))
    for column, key in columns:
        out += struct.pack("!B", key) + text(column) + struct.pack("!Ii", 25, -1)
    return out


def insert(oid: int, values: Sequence[object]) -> bytes:
    return b"I" + struct.pack("!I", oid) + b"N" + row(values)


def update(oid: int, values: Sequence[object], old: Sequence[object] | None = None) -> bytes:
    before = b"" if old is None else b"K" + row(old)
    return b"U" + struct.pack("!I", oid) + before + b"N" + row(values)


def delete(oid: int, old: Sequence[object]) -> bytes:
    return b"D" + struct.pack("!I", oid) + b"K" + row(old)


def truncate(*oids: int) -> bytes:
    return b"T" + struct.pack("!IB", len(oids), 0) + b"".join(struct.pack("!I", oid) for oid in oids)


def message(prefix: str, content: bytes, *, transactional: bool = True) -> bytes:
    return b"M" + struct.pack("!BQ", transactional, 90) + text(prefix) + struct.pack("!I", len(content)) + content


def type_(oid: int = 600, name: str = "mood") -> bytes:
    return b"Y" + struct.pack("!I", oid) + text("palaver") + text(name)


def origin(lsn: int = 5, name: str = "elsewhere") -> bytes:
    return b"O" + struct.pack("!Q", lsn) + text(name)

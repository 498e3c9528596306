"""Reads and writes messages of PostgreSQL's protocol 3 on a replication connection.

Decides the form of a message. Does not know which side sends it and when (``replication_proxy``,
``replication_connection``). Source: PostgreSQL 18, "Message Formats".
"""

import asyncio
import socket
import struct
from math import inf
from typing import Final

from regions.position import format_lsn

STARTUP_BYTES_MAX: Final = 10_000
MESSAGE_BYTES_MAX: Final = 1 << 18
"""Twice what a walsender sends in one message (MAX_SEND_SIZE)."""

IDENTIFY: Final = b"IDENTIFY_SYSTEM"
COPY_BOTH, ERROR, IDLE = b"W", b"E", b"Z"

_PROTOCOL_3: Final = 3
_TEXT, _INT8 = 25, 20


class ConnectionBroken(Exception):
    """A replication connection cannot be used: it broke, or the peer violated the protocol."""


async def send(sink: socket.socket, data: bytes) -> None:
    """Send all of the data."""
    await asyncio.get_running_loop().sock_sendall(sink, data)


async def read_startup(source: socket.socket) -> bytes:
    """Return the startup message of a client, including its length field.

    Raises:
        ConnectionBroken: It is not a startup message of protocol 3.
    """
    (length,) = struct.unpack("!I", await _read(source, 4))
    if not 8 <= length <= STARTUP_BYTES_MAX:  # noqa: PLR2004 - length and version
        raise ConnectionBroken(f"a startup message of {length} bytes")
    body = await _read(source, length - 4)
    if struct.unpack_from("!H", body)[0] != _PROTOCOL_3:
        raise ConnectionBroken("another protocol version, or an SSL or GSSAPI request on a Unix socket")
    return struct.pack("!I", length) + body


def is_physical(startup: bytes) -> bool:
    """Return whether a startup message asks for physical replication, and not for a database."""
    words = startup[8:].split(b"\0")
    options = dict(zip(words[::2], words[1::2], strict=False))
    return options.get(b"replication", b"").lower() in (b"true", b"on", b"yes", b"1")


async def read_message(source: socket.socket) -> tuple[bytes, bytes]:
    """Return the type byte and the body of the next message.

    Raises:
        ConnectionBroken: The peer closed the connection, or the length is out of range.
    """
    kind, length = struct.unpack("!cI", await _read(source, 5))
    if not 4 <= length <= MESSAGE_BYTES_MAX:  # noqa: PLR2004 - the length field counts itself
        raise ConnectionBroken(f"a message of {length} bytes")
    return kind, await _read(source, length - 4)


async def _read(source: socket.socket, count: int) -> bytes:
    """Return exactly ``count`` bytes; later bytes stay in the socket for the next reader."""
    found = b""
    while len(found) < count:
        more = await asyncio.get_running_loop().sock_recv(source, count - len(found))
        if not more:
            raise ConnectionBroken("the peer closed the connection")
        found += more
    return found


def message(kind: bytes, body: bytes) -> bytes:
    """Return the bytes of a message."""
    return kind + struct.pack("!I", len(body) + 4) + body


def query(text: bytes) -> bytes:
    """Return the Query message of a statement or a replication command."""
    return message(b"Q", text + b"\0")


READY: Final = message(IDLE, b"I")
COPY_DONE: Final = message(b"c", b"")


def start_replication(slot: str, start: int, timeline: int) -> bytes:
    """Return the START_REPLICATION that a WAL receiver sends, byte for byte (libpqwalreceiver.c).

    A receiver starts at the beginning of the segment that it writes to (RequestXLogStreaming in walreceiverfuncs.c).
    """
    return query(f'START_REPLICATION SLOT "{slot}" {format_lsn(start)} TIMELINE {timeline}'.encode())


def timeline_of(asked: bytes) -> float:
    """Return the timeline of a START_REPLICATION; infinity if it names none, or if it is another command."""
    words = asked.rstrip(b"\0").split()
    return int(words[-1]) if words[-2:-1] == [b"TIMELINE"] and words[-1].isdigit() else inf


def refusal(why: str) -> bytes:
    """Return an ErrorResponse "object not in prerequisite state" (55000) followed by ReadyForQuery."""
    parts = (b"SERROR", b"VERROR", b"C55000", b"M" + why.encode())
    return message(ERROR, b"\0".join(parts) + b"\0\0") + READY


def fields(row: bytes) -> list[bytes]:
    """Return the values of a DataRow; NULL is returned as empty."""
    (count,) = struct.unpack_from("!H", row)
    values, at = list[bytes](), 2
    for _ in range(count):
        (length,) = struct.unpack_from("!i", row, at)
        at += 4
        values.append(row[at : at + max(length, 0)])
        at += max(length, 0)
    return values


def identity(system: bytes, timeline: int) -> bytes:
    """Return the answer to IDENTIFY_SYSTEM; the position is 0/0, because a WAL receiver ignores it."""
    columns = ((b"systemid", _TEXT, -1), (b"timeline", _INT8, 8), (b"xlogpos", _TEXT, -1), (b"dbname", _TEXT, -1))
    described = struct.pack("!H", len(columns))
    for name, kind, size in columns:
        described += name + b"\0" + struct.pack("!IHIhih", 0, 0, kind, size, -1, 0)
    row = struct.pack("!H", len(columns))
    for value in (system, str(timeline).encode(), b"0/0"):
        row += struct.pack("!I", len(value)) + value
    row += struct.pack("!i", -1)
    return message(b"T", described) + message(b"D", row) + message(b"C", IDENTIFY + b"\0") + READY


def error_of(body: bytes) -> str:
    """Return the primary message of an ErrorResponse."""
    return next((part[1:].decode(errors="replace") for part in body.split(b"\0") if part[:1] == b"M"), "an error")

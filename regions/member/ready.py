"""A connection to another member on which a receiver of WAL only has START_REPLICATION left to say.

Decides how it is made and how it is known to be there. Refuses to know who will be led over it. libpq makes it and
answers SCRAM, and is not used for anything else. Source: PostgreSQL 18, "Streaming Replication Protocol".
"""

import asyncio
import os
import socket
import struct
from dataclasses import dataclass
from typing import Final, Self

import psycopg

from regions.member.messages import IDENTIFY, READY, LineBroken, error_of, fields, message, query, read_message, send

CONNECT_S_MAX: Final = 4.0
ANSWER_S_MAX: Final = 2.0
"""How long another member may take to say that it is there; a connection that is silent for longer is dropped."""

_PARAMETERS: Final = (
    "server_version", "server_encoding", "client_encoding", "integer_datetimes", "standard_conforming_strings",
    "DateStyle", "IntervalStyle", "TimeZone", "is_superuser", "session_authorization", "in_hot_standby",
)  # fmt: skip


@dataclass(slots=True)
class Ready:
    """A connection to another member that only waits for START_REPLICATION.

    Attributes:
        connection: libpq's, which made it; it is not used for anything but its end.
        socket: The same connection, byte by byte.
        system: The other's system identifier.
        timeline: The timeline that it was on when it was last asked.
    """

    connection: psycopg.AsyncConnection
    socket: socket.socket
    system: bytes = b""
    timeline: int = 0

    @classmethod
    async def connect(cls, conninfo: str) -> Self:
        """Make one.

        Raises:
            LineBroken: Nobody is there, or it does not let this region in.
        """
        try:
            async with asyncio.timeout(CONNECT_S_MAX):
                connection = await psycopg.AsyncConnection.connect(conninfo, autocommit=True)
        except (psycopg.Error, OSError, TimeoutError) as error:
            raise LineBroken(f"no connection: {error}") from error
        try:
            own = socket.socket(fileno=os.dup(connection.pgconn.socket))
        except (psycopg.Error, OSError) as error:
            connection.pgconn.finish()
            raise LineBroken(f"no connection: {error}") from error
        own.setblocking(False)
        ready = cls(connection, own)
        try:
            await ready.identify()
        except BaseException:
            ready.end()
            raise
        return ready

    def greeting(self) -> bytes:
        """Return what the other member said when this connection was made, for somebody who connects now."""
        pgconn = self.connection.pgconn
        said = message(b"R", struct.pack("!I", 0))
        for name in _PARAMETERS:
            value = pgconn.parameter_status(name.encode())
            if value is not None:
                said += message(b"S", name.encode() + b"\0" + value + b"\0")
        # Nobody cancels a replication command, so that there is no key.
        return said + message(b"K", struct.pack("!II", pgconn.backend_pid, 0)) + READY

    async def identify(self) -> None:
        """Ask who it is, and by that whether it is there.

        Raises:
            LineBroken: It does not say.
        """
        try:
            async with asyncio.timeout(ANSWER_S_MAX):
                await send(self.socket, query(IDENTIFY))
                while (answer := await read_message(self.socket))[0] != b"Z":
                    if answer[0] == b"E":
                        raise LineBroken(error_of(answer[1]))
                    if answer[0] == b"D":
                        self.system, timeline, *_ = fields(answer[1])
                        self.timeline = int(timeline)
        except (OSError, TimeoutError, ValueError, struct.error) as error:
            raise LineBroken(f"it does not say who it is: {error!r}") from error

    def end(self) -> None:
        """Drop it."""
        self.socket.close()
        self.connection.pgconn.finish()

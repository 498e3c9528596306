"""A connection to another member on which a receiver of WAL only has START_REPLICATION left to say, or not even that.

Decides how it is made, how it is known to be there, and what becomes of a START_REPLICATION that was said before a
receiver asked for it. Refuses to know who will be led over it. libpq makes it and answers SCRAM, and is not used for
anything else.

**Said ahead.** A member that will be promoted is told at once to wait for that itself and to begin to send then. So
nobody has to hear of the promotion first and ask after it, which is a round trip between regions.

Source: PostgreSQL 18, "Streaming Replication Protocol"; a connection that takes both SQL and physical replication is
one with ``replication=database``, and a server that is sent two messages performs them one after the other.
"""

import asyncio
import logging
import os
import socket
import struct
from dataclasses import dataclass
from typing import Final, Self

import psycopg

from regions.member.messages import (
    COPY_BOTH,
    COPY_DONE,
    ERROR,
    IDENTIFY,
    IDLE,
    READY,
    ConnectionBroken,
    error_of,
    fields,
    message,
    query,
    read_message,
    send,
)
from regions.promotion import await_promotion

CONNECT_S_MAX: Final = 4.0
ANSWER_S_MAX: Final = 2.0
"""How long another member may take to say that it is there, or to do what it was told; a connection that is silent for
longer is dropped."""

_PARAMETERS: Final = (
    "server_version", "server_encoding", "client_encoding", "integer_datetimes", "standard_conforming_strings",
    "DateStyle", "IntervalStyle", "TimeZone", "is_superuser", "session_authorization", "in_hot_standby",
)  # fmt: skip
_STANDBY: Final = b"in_hot_standby"
"""The parameter of which a server that is promoted sends word."""

_AWAIT_PROMOTION: Final = query(await_promotion("4 s").encode())
"""A follower waits for 4 s until the member that it follows is primary."""

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class Ready:
    """A connection to another member that only waits for START_REPLICATION.

    Attributes:
        connection: libpq's, which made it; it is not used for anything but its end.
        socket: The same connection, byte by byte.
        system: The other's system identifier.
        timeline: The timeline that it was on when it was last asked.
        standby: Whether it was a standby then.
        ahead: What it was told to do once it is primary; empty for nothing.
    """

    connection: psycopg.AsyncConnection
    socket: socket.socket
    system: bytes = b""
    timeline: int = 0
    standby: bool = False
    ahead: bytes = b""

    @classmethod
    async def connect(cls, conninfo: str) -> Self:
        """Make one.

        Raises:
            ConnectionBroken: Nobody is there, or it does not let this region in.
        """
        try:
            async with asyncio.timeout(CONNECT_S_MAX):
                connection = await psycopg.AsyncConnection.connect(conninfo, autocommit=True)
        except (psycopg.Error, OSError, TimeoutError) as error:
            raise ConnectionBroken(f"no connection: {error}") from error
        try:
            own = socket.socket(fileno=os.dup(connection.pgconn.socket))
        except (psycopg.Error, OSError) as error:
            connection.pgconn.finish()
            raise ConnectionBroken(f"no connection: {error}") from error
        own.setblocking(False)
        ready = cls(connection, own, standby=connection.pgconn.parameter_status(_STANDBY) == b"on")
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
            ConnectionBroken: It does not say.
        """
        try:
            async with asyncio.timeout(ANSWER_S_MAX):
                await send(self.socket, query(IDENTIFY))
                while (answer := await read_message(self.socket))[0] != IDLE:
                    self._take_notice(*answer)
        except (OSError, TimeoutError, ValueError, struct.error) as error:
            raise ConnectionBroken(f"it does not say who it is: {error!r}") from error

    def _take_notice(self, kind: bytes, body: bytes) -> None:
        if kind == ERROR:
            raise ConnectionBroken(error_of(body))
        if kind == b"D":
            self.system, timeline, *_ = fields(body)
            self.timeline = int(timeline)
        if kind == b"S":
            name, value, _ = body.split(b"\0")
            self.standby = value == b"on" if name == _STANDBY else self.standby

    def say_ahead(self, asked: bytes) -> None:
        """Have it do what a receiver will ask for as soon as it is primary.

        It waits for 4 s at most; a standby says then that there is no such timeline, and holds no slot.

        Raises:
            ConnectionBroken: It cannot be told.
        """
        said = _AWAIT_PROMOTION + asked
        try:
            # Without waiting: nothing was sent for seconds, so that there is room.
            sent = self.socket.send(said)
        except OSError as error:
            raise ConnectionBroken(f"it cannot be told ahead: {error}") from error
        if sent < len(said):
            raise ConnectionBroken("it cannot be told ahead")
        self.ahead = asked

    async def answer(self, asked: bytes) -> bytes:
        """Have it do what a receiver asks for; return as much of its answer as was read already.

        Where it was told just that ahead, it does it by now. Where it was told another thing it ends that first, on the
        same connection, so that the slot is free when it comes to what is asked: a wrong guess costs no round trip.

        Raises:
            ConnectionBroken: It has ended.
            TimeoutError: It does not answer.
        """
        ahead, self.ahead = self.ahead, b""
        async with asyncio.timeout(ANSWER_S_MAX):
            if not ahead:
                await send(self.socket, asked)
            elif ahead == asked:
                return await self._begun(asked)
            else:
                await send(self.socket, COPY_DONE + asked)
                await self._until(IDLE)  # it has waited
                await self._until(IDLE)  # and has begun in vain, or refused
        return b""

    async def _begun(self, asked: bytes) -> bytes:
        await self._until(IDLE)
        kind, body = await self._until(COPY_BOTH, IDLE)
        if kind == COPY_BOTH:
            return message(kind, body)
        # It refused, for a slot that was in use perhaps, which may be over; a receiver would ask once more anyway.
        await send(self.socket, asked)
        return b""

    async def _until(self, *kinds: bytes) -> tuple[bytes, bytes]:
        """Return the first message of one of these kinds; what comes before is for nobody."""
        while (said := await read_message(self.socket))[0] not in kinds:
            if said[0] == ERROR:
                _log.info("replication proxy: what was said ahead came to nothing: %s", error_of(said[1]))
        return said

    def end(self) -> None:
        """Drop it."""
        self.socket.close()
        self.connection.pgconn.finish()

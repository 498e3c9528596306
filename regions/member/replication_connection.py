"""A replication connection to another member that is authenticated and ready for START_REPLICATION.

Decides how the connection is made, how the agent checks that the peer is alive, and how an advance request is matched
with the request of the WAL receiver. Does not know which member will be followed. libpq connects and performs SCRAM,
and is used for nothing else.

**Advance request.** The agent sends a member that will be promoted two messages at once: a statement that waits until
the member is primary, and the START_REPLICATION that a receiver will send. The new leader then starts to send WAL
without a request from the follower after the promotion, which would cost a round trip between regions.

Source: PostgreSQL 18, "Streaming Replication Protocol"; a connection with
``replication=database`` accepts both SQL and physical replication, and a server executes pipelined messages in order.
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
"""How long another member may take to answer IDENTIFY_SYSTEM or START_REPLICATION; a connection that is silent for
longer is dropped."""

_PARAMETERS: Final = (
    "server_version", "server_encoding", "client_encoding", "integer_datetimes", "standard_conforming_strings",
    "DateStyle", "IntervalStyle", "TimeZone", "is_superuser", "session_authorization", "in_hot_standby",
)  # fmt: skip
_STANDBY: Final = b"in_hot_standby"
"""A server reports this parameter to its clients when it is promoted."""

_AWAIT_PROMOTION: Final = query(await_promotion("4 s").encode())
"""A follower waits for 4 s until the member that it follows is primary."""

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class ReplicationConnection:
    """An authenticated connection to another member that is ready for START_REPLICATION.

    Attributes:
        connection: The libpq connection; after authentication it is only used to close the connection.
        socket: A duplicate of its socket, for reading and writing messages.
        system: System identifier of the other member.
        timeline: Timeline of the other member at the last IDENTIFY_SYSTEM.
        standby: Whether the other member was a standby at that time.
        advance_request: The START_REPLICATION that was sent in advance; empty if none was.
    """

    connection: psycopg.AsyncConnection
    socket: socket.socket
    system: bytes = b""
    timeline: int = 0
    standby: bool = False
    advance_request: bytes = b""

    @classmethod
    async def connect(cls, conninfo: str) -> Self:
        """Connect, authenticate and identify the system.

        Raises:
            ConnectionBroken: The member cannot be reached, or refuses this region.
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
        """Return what a server sends after authentication, with the parameters that the other member reported."""
        pgconn = self.connection.pgconn
        answer = message(b"R", struct.pack("!I", 0))
        for name in _PARAMETERS:
            value = pgconn.parameter_status(name.encode())
            if value is not None:
                answer += message(b"S", name.encode() + b"\0" + value + b"\0")
        # No client cancels a replication command, so the cancel key is 0.
        return answer + message(b"K", struct.pack("!II", pgconn.backend_pid, 0)) + READY

    async def identify(self) -> None:
        """Send IDENTIFY_SYSTEM, which also checks that the member is alive.

        Raises:
            ConnectionBroken: The member does not answer in time.
        """
        try:
            async with asyncio.timeout(ANSWER_S_MAX):
                await send(self.socket, query(IDENTIFY))
                while (answer := await read_message(self.socket))[0] != IDLE:
                    self._take_notice(*answer)
        except (OSError, TimeoutError, ValueError, struct.error) as error:
            raise ConnectionBroken(f"no answer to IDENTIFY_SYSTEM: {error!r}") from error

    def _take_notice(self, kind: bytes, body: bytes) -> None:
        if kind == ERROR:
            raise ConnectionBroken(error_of(body))
        if kind == b"D":
            self.system, timeline, *_ = fields(body)
            self.timeline = int(timeline)
        if kind == b"S":
            name, value, _ = body.split(b"\0")
            self.standby = value == b"on" if name == _STANDBY else self.standby

    def request_in_advance(self, asked: bytes) -> None:
        """Send a START_REPLICATION that the other member executes when it becomes primary.

        The member waits for its promotion for at most 4 s. If it is still a standby then, it answers that the timeline
        does not exist, and holds no slot.

        Raises:
            ConnectionBroken: The request cannot be sent.
        """
        data = _AWAIT_PROMOTION + asked
        try:
            # The send buffer has room, because nothing was sent for seconds; so this does not wait.
            sent = self.socket.send(data)
        except OSError as error:
            raise ConnectionBroken(f"the advance request cannot be sent: {error}") from error
        if sent < len(data):
            raise ConnectionBroken("the advance request cannot be sent")
        self.advance_request = asked

    async def answer(self, asked: bytes) -> bytes:
        """Send a receiver's request unless it was sent in advance; return the part of the answer that was read.

        If the advance request was another one, the member ends it first, on the same connection. So the slot is free
        when the member executes the new request, and a wrong advance request costs no round trip.

        Raises:
            ConnectionBroken: The member closed the connection.
            TimeoutError: The member does not answer.
        """
        advance_request, self.advance_request = self.advance_request, b""
        async with asyncio.timeout(ANSWER_S_MAX):
            if not advance_request:
                await send(self.socket, asked)
            elif advance_request == asked:
                return await self._started_in_advance(asked)
            else:
                await send(self.socket, COPY_DONE + asked)
                await self._until(IDLE)  # end of the wait for promotion
                await self._until(IDLE)  # end or refusal of the advance request
        return b""

    async def _started_in_advance(self, asked: bytes) -> bytes:
        await self._until(IDLE)
        kind, body = await self._until(COPY_BOTH, IDLE)
        if kind == COPY_BOTH:
            return message(kind, body)
        # The member refused, perhaps because the slot was in use. A receiver would ask again, so the request is
        # repeated.
        await send(self.socket, asked)
        return b""

    async def _until(self, *kinds: bytes) -> tuple[bytes, bytes]:
        """Return the first message of one of these types; earlier messages are dropped."""
        while (received := await read_message(self.socket))[0] not in kinds:
            if received[0] == ERROR:
                _log.info("replication proxy: the advance request failed: %s", error_of(received[1]))
        return received

    def end(self) -> None:
        """Close the connection."""
        self.socket.close()
        self.connection.pgconn.finish()

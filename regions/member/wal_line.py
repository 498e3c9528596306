"""Leads this member's receiver of WAL over a connection to another member that is there already.

Between regions PostgreSQL takes six round trips from the order to follow somebody to the first WAL: a connection (1),
SCRAM (3), IDENTIFY_SYSTEM (1) and START_REPLICATION (1). After a promotion all writes wait for that. So the agent keeps
a connection to each other member on which all but the last is done, and lets PostgreSQL connect to a socket of its own,
where it is greeted at once; from START_REPLICATION on bytes go to and fro as they are.

Decides which connection is taken. Refuses to know whom to follow, and what is in WAL. Whoever connects is known by the
kernel: only the account that PostgreSQL runs as is let in. **Without this agent PostgreSQL connects by itself**: the
other member is the second host in ``primary_conninfo``. And where no connection is ready it is passed through, and logs
in itself.

Source: PostgreSQL 18, "Message Flow" and "Streaming Replication Protocol"; unix(7), abstract sockets and SO_PEERCRED.
"""

import asyncio
import contextlib
import logging
import os
import socket
import struct
from collections import defaultdict
from collections.abc import Collection, Coroutine
from dataclasses import dataclass, field
from typing import Any, Final

import psycopg

from regions.member.settings import MemberSettings, line_conninfo, line_name, line_user
from regions.topology import Address

CONNECT_S_MAX: Final = 4.0
ANSWER_S_MAX: Final = 2.0
"""How long another member may take to say that it is there; a connection that is silent for longer is dropped."""

ASKED_S_MAX: Final = 0.3
"""A receiver waits this long for a connection that is just being asked whether it is there; logging in takes longer."""

STARTUP_S_MAX: Final = 5.0
STARTUP_BYTES_MAX: Final = 10_000
MESSAGE_BYTES_MAX: Final = 100_000
CHUNK_BYTES: Final = 1 << 17

_PROTOCOL_3: Final = 3
_PARAMETERS: Final = (
    "server_version", "server_encoding", "client_encoding", "integer_datetimes", "standard_conforming_strings",
    "DateStyle", "IntervalStyle", "TimeZone", "is_superuser", "session_authorization", "in_hot_standby",
)  # fmt: skip
_TEXT, _INT8 = 25, 20

_log = logging.getLogger(__name__)


class LineBroken(Exception):
    """A connection of the line cannot be used: it broke, or what arrived is not what PostgreSQL says."""


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

    def greeting(self) -> bytes:
        """Return what the other member said when this connection was made, for somebody who connects now."""
        pgconn = self.connection.pgconn
        said = _message(b"R", struct.pack("!I", 0))
        for name in _PARAMETERS:
            value = pgconn.parameter_status(name.encode())
            if value is not None:
                said += _message(b"S", name.encode() + b"\0" + value + b"\0")
        # Nobody cancels a replication command, so that there is no key.
        return said + _message(b"K", struct.pack("!II", pgconn.backend_pid, 0)) + _READY

    async def identify(self) -> None:
        """Ask who it is, and by that whether it is there.

        Raises:
            LineBroken: It does not say.
        """
        try:
            async with asyncio.timeout(ANSWER_S_MAX):
                await _send(self.socket, _message(b"Q", _IDENTIFY + b"\0"))
                while (message := await _read_message(self.socket))[0] != b"Z":
                    if message[0] == b"E":
                        raise LineBroken(_error_of(message[1]))
                    if message[0] == b"D":
                        self.system, timeline, *_ = _fields(message[1])
                        self.timeline = int(timeline)
        except (OSError, TimeoutError, ValueError, struct.error) as error:
            raise LineBroken(f"it does not say who it is: {error!r}") from error

    def end(self) -> None:
        """Drop it."""
        self.socket.close()
        self.connection.pgconn.finish()


_IDENTIFY: Final = b"IDENTIFY_SYSTEM"


@dataclass(slots=True)
class _Open:
    """Where the receiver may connect now."""

    leader: Address
    timeline: int
    listening: socket.socket
    serving: "set[asyncio.Task[None]]" = field(default_factory=set[asyncio.Task[None]])


class WalLine:
    """The way on which one member's receiver reaches the others.

    Attributes:
        taken: How often a receiver was led over a connection that was ready (True), or had to log in itself (False).
        passed: How often somebody else was passed through: PostgreSQL's worker that copies slots.
    """

    def __init__(self, settings: MemberSettings) -> None:
        """Prepare; nothing is opened before `open`."""
        self.taken = {True: 0, False: 0}
        self.passed = 0
        self._settings = settings
        self._ready: dict[Address, Ready] = {}
        self._asking = defaultdict[Address, asyncio.Lock](asyncio.Lock)
        self._lives = 0
        self._open: _Open | None = None

    async def keep(self, others: Collection[Address]) -> None:
        """Have a connection to each other member ready that can be reached, and drop those that do not answer."""
        await asyncio.gather(*(self._keep(address) for address in others))

    def open(self, leader: Address, timeline: int) -> bool:
        """Let the receiver connect to ``leader`` over the line; return whether it can.

        Args:
            leader: Whom it follows.
            timeline: That which the leader is on, as far as is known: it is not asked again.
        """
        if self._open is not None and self._open.leader == leader:
            self._open.timeline = timeline
            return True
        self.close()
        if line_user() is None:
            return False
        listening = socket.socket(socket.AF_UNIX)
        listening.setblocking(False)
        try:
            listening.bind(f"\0{line_name(self._settings)}/.s.PGSQL.{leader.port}")
            listening.listen()
        except OSError as error:
            listening.close()
            _log.warning("wal line: not open, so that PostgreSQL connects by itself: %s", error)
            return False
        self._open = opened = _Open(leader=leader, timeline=timeline, listening=listening)
        asyncio.get_running_loop().add_reader(listening, self._let_in, opened)
        return True

    def close(self) -> None:
        """Let nobody connect any more, and cut what goes over the line."""
        if self._open is not None:
            asyncio.get_running_loop().remove_reader(self._open.listening)
            self._open.listening.close()
            for task in self._open.serving:
                task.cancel()
            self._open = None

    def end(self) -> None:
        """Close it, and drop the connections that were kept ready."""
        self.close()
        self._lives += 1
        while self._ready:
            self._ready.popitem()[1].end()

    async def _keep(self, address: Address) -> None:
        if address in self._ready:
            async with self._asking[address]:
                await self._keep_or_drop(address, self._ready.pop(address, None))
        else:
            await self._keep_or_drop(address, None)

    async def _keep_or_drop(self, address: Address, ready: Ready | None) -> None:
        lives = self._lives
        try:
            if ready is None:
                ready = await self._connect(address)
            else:
                await ready.identify()
            if self._lives == lives and address not in self._ready:
                self._ready[address], ready = ready, None
        except LineBroken as error:
            _log.debug("wal line: %s: %s", address, error)
        finally:
            if ready is not None:
                ready.end()

    async def _connect(self, address: Address) -> Ready:
        try:
            async with asyncio.timeout(CONNECT_S_MAX):
                connection = await psycopg.AsyncConnection.connect(
                    line_conninfo(self._settings, address), autocommit=True
                )
        except (psycopg.Error, OSError, TimeoutError) as error:
            raise LineBroken(f"no connection: {error}") from error
        try:
            own = socket.socket(fileno=os.dup(connection.pgconn.socket))
        except (psycopg.Error, OSError) as error:
            connection.pgconn.finish()
            raise LineBroken(f"no connection: {error}") from error
        own.setblocking(False)
        ready = Ready(connection, own)
        try:
            await ready.identify()
        except BaseException:
            ready.end()
            raise
        return ready

    def _begin(self, opened: _Open, work: Coroutine[Any, Any, None], owned: socket.socket) -> None:
        """Begin work on a socket, which is closed when the work ends, or when it is cancelled before it began."""
        task = asyncio.create_task(work)
        opened.serving.add(task)
        task.add_done_callback(opened.serving.discard)
        task.add_done_callback(lambda _: owned.close())

    def _let_in(self, opened: _Open) -> None:
        try:
            near, _ = opened.listening.accept()
        except (BlockingIOError, ConnectionError):
            return
        except OSError as error:
            _log.warning("wal line: closed, so that PostgreSQL connects by itself: %s", error)
            self.close()
            return
        near.setblocking(False)
        self._begin(opened, self._serve(near, opened), near)

    async def _serve(self, near: socket.socket, opened: _Open) -> None:
        """Serve one connection of this member's PostgreSQL."""
        try:
            if self._is_ours(near):
                await self._lead(near, opened)
        except (LineBroken, OSError) as error:
            _log.debug("wal line: %s", error)

    def _is_ours(self, near: socket.socket) -> bool:
        account = self._settings.account
        allowed = os.geteuid() if account is None else account.uid
        raw = near.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        _, uid, _ = struct.unpack("3i", raw)
        if uid != allowed:
            _log.warning("wal line: a process of user %d was turned away", uid)
        return uid == allowed

    async def _lead(self, near: socket.socket, opened: _Open) -> None:
        async with asyncio.timeout(STARTUP_S_MAX):
            startup = await _read_startup(near)
        if not _is_physical(startup):
            # The worker that copies slots asks in SQL, and has time.
            self.passed += 1
            await self._pass_through(near, startup, opened.leader)
            return
        ready = await self._take(opened.leader)
        self.taken[ready is not None] += 1
        if ready is None:
            await self._pass_through(near, startup, opened.leader)
            return
        try:
            await _send(near, ready.greeting())
            kind, body = await _read_message(near)
            if kind == b"Q" and body.rstrip(b"\0").upper() == _IDENTIFY:
                await _send(near, _identity(ready.system, max(ready.timeline, opened.timeline)))
            else:
                await _send(ready.socket, _message(kind, body))
            await _join(near, ready.socket)
        finally:
            ready.end()

    async def _take(self, leader: Address) -> Ready | None:
        """Take the connection that is ready, if one is."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(ASKED_S_MAX), self._asking[leader]:
                return self._ready.pop(leader, None)
        return None

    async def _pass_through(self, near: socket.socket, startup: bytes, leader: Address) -> None:
        with socket.socket() as far:
            far.setblocking(False)
            async with asyncio.timeout(CONNECT_S_MAX):
                await asyncio.get_running_loop().sock_connect(far, (leader.host, leader.port))
            await _send(far, startup)
            await _join(near, far)


async def _join(one: socket.socket, other: socket.socket) -> None:
    """Carry bytes both ways until either end has no more."""
    ways = [asyncio.ensure_future(_carry(one, other)), asyncio.ensure_future(_carry(other, one))]
    try:
        await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for way in ways:
            way.cancel()
        await asyncio.wait(ways)


async def _carry(source: socket.socket, sink: socket.socket) -> None:
    loop, chunk = asyncio.get_running_loop(), memoryview(bytearray(CHUNK_BYTES))
    # A connection that breaks is as good as one that ends.
    with contextlib.suppress(OSError):
        while count := await loop.sock_recv_into(source, chunk):
            await loop.sock_sendall(sink, chunk[:count])


async def _send(sink: socket.socket, message: bytes) -> None:
    await asyncio.get_running_loop().sock_sendall(sink, message)


async def _read(source: socket.socket, count: int) -> bytes:
    """Return exactly so many bytes: what comes after them is for whoever reads next.

    Raises:
        LineBroken: The other end has ended.
    """
    found = b""
    while len(found) < count:
        more = await asyncio.get_running_loop().sock_recv(source, count - len(found))
        if not more:
            raise LineBroken("it ended")
        found += more
    return found


async def _read_startup(source: socket.socket) -> bytes:
    """Return the first message of a client, its length included.

    Raises:
        LineBroken: It is none of protocol 3.
    """
    (length,) = struct.unpack("!I", await _read(source, 4))
    if not 8 <= length <= STARTUP_BYTES_MAX:  # noqa: PLR2004 - length and version
        raise LineBroken(f"a first message of {length} bytes")
    body = await _read(source, length - 4)
    if struct.unpack_from("!H", body)[0] != _PROTOCOL_3:
        raise LineBroken("another protocol, or a wish for encryption on a socket")
    return struct.pack("!I", length) + body


def _is_physical(startup: bytes) -> bool:
    """Whether a client wants to receive WAL, and no database's changes."""
    words = startup[8:].split(b"\0")
    options = dict(zip(words[::2], words[1::2], strict=False))
    return options.get(b"replication", b"").lower() in (b"true", b"on", b"yes", b"1")


async def _read_message(source: socket.socket) -> tuple[bytes, bytes]:
    kind, length = struct.unpack("!cI", await _read(source, 5))
    if not 4 <= length <= MESSAGE_BYTES_MAX:  # noqa: PLR2004 - it counts itself
        raise LineBroken(f"a message of {length} bytes")
    return kind, await _read(source, length - 4)


def _message(kind: bytes, body: bytes) -> bytes:
    return kind + struct.pack("!I", len(body) + 4) + body


_READY: Final = _message(b"Z", b"I")


def _fields(row: bytes) -> list[bytes]:
    """Return the values of a DataRow; NULL is empty."""
    (count,) = struct.unpack_from("!H", row)
    values, at = list[bytes](), 2
    for _ in range(count):
        (length,) = struct.unpack_from("!i", row, at)
        at += 4
        values.append(row[at : at + max(length, 0)])
        at += max(length, 0)
    return values


def _identity(system: bytes, timeline: int) -> bytes:
    """Return the answer to IDENTIFY_SYSTEM. A receiver makes nothing of the position, so it is none."""
    columns = ((b"systemid", _TEXT, -1), (b"timeline", _INT8, 8), (b"xlogpos", _TEXT, -1), (b"dbname", _TEXT, -1))
    described = struct.pack("!H", len(columns))
    for name, kind, size in columns:
        described += name + b"\0" + struct.pack("!IHIhih", 0, 0, kind, size, -1, 0)
    row = struct.pack("!H", len(columns))
    for value in (system, str(timeline).encode(), b"0/0"):
        row += struct.pack("!I", len(value)) + value
    row += struct.pack("!i", -1)
    return _message(b"T", described) + _message(b"D", row) + _message(b"C", _IDENTIFY + b"\0") + _READY


def _error_of(body: bytes) -> str:
    """Return the text of an ErrorResponse."""
    return next((part[1:].decode(errors="replace") for part in body.split(b"\0") if part[:1] == b"M"), "an error")

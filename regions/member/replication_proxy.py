"""Leads this member's receiver of WAL over a connection to another member that is there already.

Between regions PostgreSQL takes six round trips from the order to follow somebody to the first WAL: a connection (1),
SCRAM (3), IDENTIFY_SYSTEM (1) and START_REPLICATION (1). After a promotion all writes wait for that. So the agent keeps
a connection to each other member on which all but the last is done, and lets PostgreSQL connect to a socket of its own,
where it is greeted at once; from START_REPLICATION on bytes go to and fro as they are. And that one it says ahead to a
member that is about to be promoted (see `ready`), so that WAL is under way before anybody here knows that there is any.

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

from regions.identity import physical_slot_name
from regions.member.messages import (
    IDENTIFY,
    ConnectionBroken,
    identity,
    is_physical,
    message,
    query,
    read_message,
    read_startup,
    refusal,
    send,
    start_replication,
    timeline_of,
)
from regions.member.ready import CONNECT_S_MAX, Ready
from regions.member.settings import MemberSettings, proxy_conninfo, proxy_name, proxy_user
from regions.topology import Address

ASKED_S_MAX: Final = 0.3
"""A receiver waits this long for a connection that is just being asked whether it is there; logging in takes longer."""

STARTUP_S_MAX: Final = 5.0
CHUNK_BYTES: Final = 1 << 17

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Open:
    """Where the receiver may connect now."""

    leader: Address
    timeline: int
    listening: socket.socket
    left: bool = False
    serving: "set[asyncio.Task[None]]" = field(default_factory=set[asyncio.Task[None]])


class ReplicationProxy:
    """The way on which one member's receiver reaches the others.

    Attributes:
        taken: How often a receiver was led over a connection that was ready (True), or had to log in itself (False).
        guessed: How often a receiver asked for what was said ahead (True), or for something else (False).
        passed: How often somebody else was passed through: PostgreSQL's worker that copies slots.
        refused: How often a receiver that asked for a timeline which its leader has left was told to look for the next.
    """

    def __init__(self, settings: MemberSettings) -> None:
        """Prepare; nothing is opened before `open`."""
        self.taken = {True: 0, False: 0}
        self.guessed = {True: 0, False: 0}
        self.passed = self.refused = 0
        self._settings = settings
        self._ready: dict[Address, Ready] = {}
        self._asking = defaultdict[Address, asyncio.Lock](asyncio.Lock)
        self._ahead: tuple[Address, Ready] | None = None
        self._lives = 0
        self._open: _Open | None = None

    async def keep(self, others: Collection[Address]) -> None:
        """Have a connection to each other member ready that can be reached, and drop those that do not answer."""
        await asyncio.gather(*(self._keep(address) for address in others))

    async def say_ahead(self, leader: Address, start: int) -> None:
        """Have ``leader`` send WAL as soon as it is primary, where a connection is ready to one that is none yet.

        What nobody asks for within 5 s it takes for a receiver that is gone (wal_sender_timeout); until then it holds
        this region's slot, so that who gives up calls `take_back`.

        Args:
            leader: Who will be promoted.
            start: Where the segment begins in which the own WAL ends.
        """
        self.take_back()
        ready = await self._take(leader, standby=True)
        if ready is None:
            return
        try:
            # A promotion takes the next number, but where somebody else was promoted meanwhile.
            slot = physical_slot_name(self._settings.region)
            ready.say_ahead(start_replication(slot, start, ready.timeline + 1))
        except ConnectionBroken as error:
            _log.debug("replication proxy: %s: %s", leader, error)
            ready.end()
        else:
            self._ahead = leader, ready

    def take_back(self) -> None:
        """Drop what was said ahead and not asked for yet; its slot is free when the other member notices."""
        if self._ahead is not None:
            self._ahead[1].end()
            self._ahead = None

    def open(self, leader: Address, timeline: int, *, left: bool = False) -> bool:
        """Let the receiver connect to ``leader`` over the line; return whether it can.

        Args:
            leader: Whom it follows.
            timeline: That which the leader is on, as far as is known: it is not asked again.
            left: Whether this member has all of an earlier one, and the history of this one. A receiver that asks for
                the earlier one all the same was begun before PostgreSQL had looked; the leader would send nothing, and
                end it half a second later. It is refused here, once.
        """
        if self._open is not None and self._open.leader == leader:
            self._open.timeline, self._open.left = timeline, left
            return True
        self._shut()
        listening = None if proxy_user() is None else self._listen(leader)
        if listening is None:
            # PostgreSQL will ask for the slot by itself.
            self.take_back()
            return False
        self._open = opened = _Open(leader=leader, timeline=timeline, listening=listening, left=left)
        asyncio.get_running_loop().add_reader(listening, self._let_in, opened)
        return True

    def _listen(self, leader: Address) -> socket.socket | None:
        listening = socket.socket(socket.AF_UNIX)
        listening.setblocking(False)
        try:
            listening.bind(f"\0{proxy_name(self._settings)}/.s.PGSQL.{leader.port}")
            listening.listen()
        except OSError as error:
            listening.close()
            _log.warning("replication proxy: not open, so that PostgreSQL connects by itself: %s", error)
            return None
        return listening

    def close(self) -> None:
        """Let nobody connect any more, cut what goes over the line, and take back what was said ahead."""
        self.take_back()
        self._shut()

    def _shut(self) -> None:
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
                ready = await Ready.connect(proxy_conninfo(self._settings, address))
            else:
                await ready.identify()
            if self._lives == lives and address not in self._ready:
                self._ready[address], ready = ready, None
        except ConnectionBroken as error:
            _log.debug("replication proxy: %s: %s", address, error)
        finally:
            if ready is not None:
                ready.end()

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
            _log.warning("replication proxy: closed, so that PostgreSQL connects by itself: %s", error)
            self.close()
            return
        near.setblocking(False)
        self._begin(opened, self._serve(near, opened), near)

    async def _serve(self, near: socket.socket, opened: _Open) -> None:
        """Serve one connection of this member's PostgreSQL."""
        try:
            if self._is_ours(near):
                await self._lead(near, opened)
        except (ConnectionBroken, OSError) as error:
            _log.debug("replication proxy: %s", error)

    def _is_ours(self, near: socket.socket) -> bool:
        account = self._settings.account
        allowed = os.geteuid() if account is None else account.uid
        raw = near.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        _, uid, _ = struct.unpack("3i", raw)
        if uid != allowed:
            _log.warning("replication proxy: a process of user %d was turned away", uid)
        return uid == allowed

    async def _lead(self, near: socket.socket, opened: _Open) -> None:
        async with asyncio.timeout(STARTUP_S_MAX):
            startup = await read_startup(near)
        if not is_physical(startup):
            # The worker that copies slots asks in SQL, and has time.
            self.passed += 1
            await self._pass_through(near, startup, opened.leader)
            return
        ready = self._take_ahead(opened.leader) or await self._take(opened.leader)
        self.taken[ready is not None] += 1
        if ready is None:
            await self._pass_through(near, startup, opened.leader)
            return
        try:
            await send(near, ready.greeting())
            while (asked := message(*await read_message(near))) == query(IDENTIFY):
                await send(near, identity(ready.system, max(ready.timeline, opened.timeline)))
            if opened.left and timeline_of(asked) < opened.timeline:
                opened.left, self.refused = False, self.refused + 1
                _log.info("replication proxy: a receiver asked for a timeline that was left: it is told to look again")
                await send(near, refusal("timeline was left, and the history of the next is here"))
                ready = self._given_back(opened.leader, ready)
                return
            if ready.ahead:
                self.guessed[ready.ahead == asked] += 1
            await send(near, await ready.answer(asked))
            await _join(near, ready.socket)
        finally:
            if ready is not None:
                ready.end()

    def _given_back(self, leader: Address, ready: Ready) -> Ready | None:
        """Keep a connection on which nothing was said for the receiver that comes next; return it if it is spare."""
        if ready.ahead and self._ahead is None:
            self._ahead = leader, ready
        elif not ready.ahead and leader not in self._ready:
            self._ready[leader] = ready
        else:
            return ready
        return None

    def _take_ahead(self, leader: Address) -> Ready | None:
        """Take the connection on which this leader was told ahead, if one was."""
        if self._ahead is None or self._ahead[0] != leader:
            return None
        ready, self._ahead = self._ahead[1], None
        return ready

    async def _take(self, leader: Address, *, standby: bool = False) -> Ready | None:
        """Take the connection that is ready, if one is; with ``standby`` only one to a standby."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(ASKED_S_MAX), self._asking[leader]:
                ready = self._ready.get(leader)
                if ready is not None and (ready.standby or not standby):
                    return self._ready.pop(leader)
        return None

    async def _pass_through(self, near: socket.socket, startup: bytes, leader: Address) -> None:
        with socket.socket() as far:
            far.setblocking(False)
            # As libpq does it: the leader's commits wait for the follower's small replies.
            far.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            async with asyncio.timeout(CONNECT_S_MAX):
                await asyncio.get_running_loop().sock_connect(far, (leader.host, leader.port))
            await send(far, startup)
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
    """Carry bytes one way until there are no more. A connection that breaks is as good as one that ends."""
    loop, chunk = asyncio.get_running_loop(), memoryview(bytearray(CHUNK_BYTES))
    with contextlib.suppress(OSError):
        while left := await _until_slow(source, sink, chunk):
            await loop.sock_sendall(sink, left)


async def _until_slow(source: socket.socket, sink: socket.socket, chunk: memoryview) -> memoryview:
    """Pass on what arrives when it arrives; return what the sink does not take at once, or nothing at the end.

    In the turn of the loop in which it arrives: a leader's writes wait for each piece.
    """
    loop = asyncio.get_running_loop()
    left = loop.create_future()

    def pass_on() -> None:
        if left.done():
            return
        try:
            count = source.recv_into(chunk)
        except BlockingIOError:
            return
        except OSError as error:
            left.set_exception(error)
            return
        try:
            sent = sink.send(chunk[:count]) if count else 0
        except BlockingIOError:
            sent = 0
        except OSError as error:
            left.set_exception(error)
            return
        if sent < count or not count:
            left.set_result(chunk[sent:count])

    loop.add_reader(source, pass_on)
    try:
        return await left
    finally:
        loop.remove_reader(source)

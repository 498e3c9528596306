"""Proxies this member's WAL receiver to another member over a replication connection that is already authenticated.

Between regions PostgreSQL needs six round trips from the order to follow a member until the first WAL arrives: TCP (1),
SCRAM (3), IDENTIFY_SYSTEM (1) and START_REPLICATION (1). After a promotion all writes wait for that. Therefore the
agent keeps a connection to each other member on which everything except START_REPLICATION is done. PostgreSQL connects
to a socket of the agent, which answers the startup message and IDENTIFY_SYSTEM at once; from START_REPLICATION on, the
proxy forwards bytes unchanged. To a member that is about to be promoted the agent sends START_REPLICATION in advance
(see `replication_connection`), so that the new leader sends WAL before anybody in this region knows of the promotion.

Decides which connection a receiver gets. Does not know which leader to follow, nor the content of WAL. The kernel
identifies the client (SO_PEERCRED): only the account that PostgreSQL runs as may connect. **Without this agent,
PostgreSQL connects directly**: the leader is the second host in ``primary_conninfo``. If no connection is ready, the
proxy connects the receiver to the leader, and the receiver authenticates itself.

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
from regions.member.replication_connection import CONNECT_S_MAX, ReplicationConnection
from regions.member.settings import MemberSettings, proxy_conninfo, proxy_name, proxy_user
from regions.topology import Address

ASKED_S_MAX: Final = 0.3
"""How long a receiver waits for a connection whose peer is being checked at that moment; authentication takes
longer."""

STARTUP_S_MAX: Final = 5.0
CHUNK_BYTES: Final = 1 << 17

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Open:
    """The socket to which the receiver may connect, and the leader behind it."""

    leader: Address
    timeline: int
    listening: socket.socket
    timeline_ended: bool = False
    serving: "set[asyncio.Task[None]]" = field(default_factory=set[asyncio.Task[None]])


class ReplicationProxy:
    """Connects the WAL receiver of one member to the other members.

    Attributes:
        connections: Number of receivers that got a prepared connection (True) or had to authenticate (False).
        advance_requests: Number of receivers that asked for what the agent had requested in advance (True), or for
            something else (False).
        passed: Number of connections that are only forwarded: PostgreSQL's slot synchronization worker.
        timeline_refusals: Number of receivers that asked for a timeline which their leader has ended. The proxy refuses
            them, so that PostgreSQL looks for the next timeline.
    """

    def __init__(self, settings: MemberSettings) -> None:
        """Initialise; `open` opens the socket."""
        self.connections = {True: 0, False: 0}
        self.advance_requests = {True: 0, False: 0}
        self.passed = self.timeline_refusals = 0
        self._settings = settings
        self._unused: dict[Address, ReplicationConnection] = {}
        self._checking = defaultdict[Address, asyncio.Lock](asyncio.Lock)
        self._advance_connection: tuple[Address, ReplicationConnection] | None = None
        self._generation = 0
        self._open: _Open | None = None

    async def keep_connections(self, others: Collection[Address]) -> None:
        """Connect to each reachable member that has no connection yet, and drop connections that do not answer."""
        await asyncio.gather(*(self._keep(address) for address in others))

    async def request_in_advance(self, leader: Address, start: int) -> None:
        """Request WAL from ``leader`` before it is primary, if there is a connection to it and it is still a standby.

        If no receiver takes the WAL within 5 s, the leader ends its walsender (wal_sender_timeout). Until then the
        walsender holds this region's slot, so a caller that gives up calls `cancel_advance_request`.

        Args:
            leader: The member that will be promoted.
            start: LSN at which the segment begins that contains the end of this member's WAL.
        """
        self.cancel_advance_request()
        ready = await self._take(leader, standby=True)
        if ready is None:
            return
        try:
            # A promotion takes the next timeline number, unless another member was promoted meanwhile.
            slot = physical_slot_name(self._settings.region)
            ready.request_in_advance(start_replication(slot, start, ready.timeline + 1))
        except ConnectionBroken as error:
            _log.debug("replication proxy: %s: %s", leader, error)
            ready.end()
        else:
            self._advance_connection = leader, ready

    def cancel_advance_request(self) -> None:
        """Drop the connection with an advance request; the slot is free when the other member notices the end."""
        if self._advance_connection is not None:
            self._advance_connection[1].end()
            self._advance_connection = None

    def open(self, leader: Address, timeline: int, *, timeline_ended: bool = False) -> bool:
        """Let the receiver connect to ``leader`` through the proxy; return whether it can.

        Args:
            leader: The member to follow.
            timeline: The leader's timeline as far as it is known; the proxy does not query it again.
            timeline_ended: Whether this member has all of its earlier timeline, and the history of this one. A receiver
                that still asks for the earlier timeline was started before PostgreSQL looked for new timelines; the
                leader would send nothing, and end the stream half a second later. The proxy refuses it, once.
        """
        if self._open is not None and self._open.leader == leader:
            self._open.timeline, self._open.timeline_ended = timeline, timeline_ended
            return True
        self._shut()
        listening = None if proxy_user() is None else self._listen(leader)
        if listening is None:
            # PostgreSQL will connect directly and needs the slot.
            self.cancel_advance_request()
            return False
        self._open = opened = _Open(
            leader=leader, timeline=timeline, listening=listening, timeline_ended=timeline_ended
        )
        asyncio.get_running_loop().add_reader(listening, self._accept, opened)
        return True

    def _listen(self, leader: Address) -> socket.socket | None:
        listening = socket.socket(socket.AF_UNIX)
        listening.setblocking(False)
        try:
            listening.bind(f"\0{proxy_name(self._settings)}/.s.PGSQL.{leader.port}")
            listening.listen()
        except OSError as error:
            listening.close()
            _log.warning("replication proxy: cannot listen, so PostgreSQL connects directly: %s", error)
            return None
        return listening

    def close(self) -> None:
        """Stop listening, cut the proxied connections, and cancel the advance request."""
        self.cancel_advance_request()
        self._shut()

    def _shut(self) -> None:
        if self._open is not None:
            asyncio.get_running_loop().remove_reader(self._open.listening)
            self._open.listening.close()
            for task in self._open.serving:
                task.cancel()
            self._open = None

    def end(self) -> None:
        """Close the proxy, and drop the prepared connections."""
        self.close()
        self._generation += 1
        while self._unused:
            self._unused.popitem()[1].end()

    async def _keep(self, address: Address) -> None:
        if address in self._unused:
            async with self._checking[address]:
                await self._keep_or_drop(address, self._unused.pop(address, None))
        else:
            await self._keep_or_drop(address, None)

    async def _keep_or_drop(self, address: Address, ready: ReplicationConnection | None) -> None:
        generation = self._generation
        try:
            if ready is None:
                ready = await ReplicationConnection.connect(proxy_conninfo(self._settings, address))
            else:
                await ready.identify()
            if self._generation == generation and address not in self._unused:
                self._unused[address], ready = ready, None
        except ConnectionBroken as error:
            _log.debug("replication proxy: %s: %s", address, error)
        finally:
            if ready is not None:
                ready.end()

    def _begin(self, opened: _Open, work: Coroutine[Any, Any, None], owned: socket.socket) -> None:
        """Start work on a socket; the socket is closed when the work ends, also if it is cancelled before it starts."""
        task = asyncio.create_task(work)
        opened.serving.add(task)
        task.add_done_callback(opened.serving.discard)
        task.add_done_callback(lambda _: owned.close())

    def _accept(self, opened: _Open) -> None:
        try:
            near, _ = opened.listening.accept()
        except (BlockingIOError, ConnectionError):
            return
        except OSError as error:
            _log.warning("replication proxy: closed, so PostgreSQL connects directly: %s", error)
            self.close()
            return
        near.setblocking(False)
        self._begin(opened, self._serve(near, opened), near)

    async def _serve(self, near: socket.socket, opened: _Open) -> None:
        """Serve one connection of this member's PostgreSQL."""
        try:
            if self._is_ours(near):
                await self._route(near, opened)
        except (ConnectionBroken, OSError) as error:
            _log.debug("replication proxy: %s", error)

    def _is_ours(self, near: socket.socket) -> bool:
        account = self._settings.account
        allowed = os.geteuid() if account is None else account.uid
        raw = near.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        _, uid, _ = struct.unpack("3i", raw)
        if uid != allowed:
            _log.warning("replication proxy: refused a process of user %d", uid)
        return uid == allowed

    async def _route(self, near: socket.socket, opened: _Open) -> None:
        async with asyncio.timeout(STARTUP_S_MAX):
            startup = await read_startup(near)
        if not is_physical(startup):
            # The slot synchronization worker sends SQL, and no write waits for it.
            self.passed += 1
            await self._pass_through(near, startup, opened.leader)
            return
        ready = self._take_advance_connection(opened.leader) or await self._take(opened.leader)
        self.connections[ready is not None] += 1
        if ready is None:
            await self._pass_through(near, startup, opened.leader)
            return
        try:
            await send(near, ready.greeting())
            while (asked := message(*await read_message(near))) == query(IDENTIFY):
                await send(near, identity(ready.system, max(ready.timeline, opened.timeline)))
            if opened.timeline_ended and timeline_of(asked) < opened.timeline:
                opened.timeline_ended, self.timeline_refusals = False, self.timeline_refusals + 1
                _log.info("replication proxy: refused a receiver that asked for an ended timeline")
                await send(near, refusal("the timeline has ended, and the history of the next one is available"))
                ready = self._return_unused(opened.leader, ready)
                return
            if ready.advance_request:
                self.advance_requests[ready.advance_request == asked] += 1
            await send(near, await ready.answer(asked))
            await _forward(near, ready.socket)
        finally:
            if ready is not None:
                ready.end()

    def _return_unused(self, leader: Address, ready: ReplicationConnection) -> ReplicationConnection | None:
        """Keep a connection that its receiver did not use for the next receiver; return it if there is another one."""
        if ready.advance_request and self._advance_connection is None:
            self._advance_connection = leader, ready
        elif not ready.advance_request and leader not in self._unused:
            self._unused[leader] = ready
        else:
            return ready
        return None

    def _take_advance_connection(self, leader: Address) -> ReplicationConnection | None:
        """Take the connection on which WAL was requested from this leader in advance, if there is one."""
        if self._advance_connection is None or self._advance_connection[0] != leader:
            return None
        ready, self._advance_connection = self._advance_connection[1], None
        return ready

    async def _take(self, leader: Address, *, standby: bool = False) -> ReplicationConnection | None:
        """Take the prepared connection, if there is one; with ``standby`` only if the other member is a standby."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(ASKED_S_MAX), self._checking[leader]:
                ready = self._unused.get(leader)
                if ready is not None and (ready.standby or not standby):
                    return self._unused.pop(leader)
        return None

    async def _pass_through(self, near: socket.socket, startup: bytes, leader: Address) -> None:
        with socket.socket() as far:
            far.setblocking(False)
            # libpq does the same: the leader's commits wait for the follower's small replies.
            far.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            async with asyncio.timeout(CONNECT_S_MAX):
                await asyncio.get_running_loop().sock_connect(far, (leader.host, leader.port))
            await send(far, startup)
            await _forward(near, far)


async def _forward(one: socket.socket, other: socket.socket) -> None:
    """Forward bytes in both directions until either side ends."""
    ways = [asyncio.ensure_future(_forward_one_way(one, other)), asyncio.ensure_future(_forward_one_way(other, one))]
    try:
        await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for way in ways:
            way.cancel()
        await asyncio.wait(ways)


async def _forward_one_way(source: socket.socket, sink: socket.socket) -> None:
    """Forward bytes in one direction until the source ends; a broken connection counts as ended."""
    loop, chunk = asyncio.get_running_loop(), memoryview(bytearray(CHUNK_BYTES))
    with contextlib.suppress(OSError):
        while unsent := await _forward_until_blocked(source, sink, chunk):
            await loop.sock_sendall(sink, unsent)


async def _forward_until_blocked(source: socket.socket, sink: socket.socket, chunk: memoryview) -> memoryview:
    """Forward bytes as they arrive; return what the sink does not accept at once, or nothing at the end.

    Bytes are forwarded in the event loop iteration in which they arrive, because the leader's commits wait for them.
    """
    loop = asyncio.get_running_loop()
    unsent = loop.create_future()

    def pass_on() -> None:
        if unsent.done():
            return
        try:
            count = source.recv_into(chunk)
        except BlockingIOError:
            return
        except OSError as error:
            unsent.set_exception(error)
            return
        try:
            sent = sink.send(chunk[:count]) if count else 0
        except BlockingIOError:
            sent = 0
        except OSError as error:
            unsent.set_exception(error)
            return
        if sent < count or not count:
            unsent.set_result(chunk[sent:count])

    loop.add_reader(source, pass_on)
    try:
        return await unsent
    finally:
        loop.remove_reader(source)

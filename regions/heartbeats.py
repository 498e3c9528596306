"""Heartbeats between agents: over a connection of their own, authenticated, and never waited for.

Decides the form of a message, what is dropped and counted, and when a connection is given up. Refuses to know
what a heartbeat means (``regions.failover.core``). A message is one line: the HMAC-SHA256 of the rest in hex, a
space, and JSON. The sender's and the receiver's region are under the HMAC, so a line that was recorded says nothing
to another region; the core drops what is not newer than the last it heard from that sender.

A connection, and not datagrams, because the network between regions is TCP in every deployment that we know. What is
lost with datagrams is late here; so what cannot be sent at once is not sent: the next heartbeat says all of it.
"""

import asyncio
import contextlib
import hmac
import logging
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any, Final, Literal, cast

import orjson

from regions.failover.events import Gossip, Release, Vote
from regions.failover.heartbeats import Heartbeat
from regions.identity import InvalidName, RegionName, parse_cell_id, parse_region_name
from regions.leadership import ANCESTRY_MAX
from regions.position import Position
from regions.topology import Address

LINE_BYTES_MAX: Final = 16_384
"""32 epochs of 20 digits for each of some ten cells."""

CONNECT_S: Final = 1.0
PAUSE_S: Final = 0.1
STUCK_S: Final = 1.0
"""A connection that took nothing for this long is replaced: the peer, or the way to it, is gone."""

CELLS_MAX: Final = 64
NUMBER_MAX: Final = 2**63 - 1

Dropped = Literal["unauthentic", "malformed", "oversized", "misdirected"]

_log = logging.getLogger(__name__)


class InvalidHeartbeat(ValueError):
    """A line is no heartbeat for this region.

    Attributes:
        why: What it is counted as.
    """

    def __init__(self, why: Dropped, text: str) -> None:
        super().__init__(text)
        self.why: Dropped = why


def encode(heartbeat: Heartbeat, *, to: RegionName, secret: bytes) -> bytes:
    """Return the line that carries a heartbeat to a region."""
    body = orjson.dumps(
        {
            "from": heartbeat.sender,
            "to": to,
            "incarnation": heartbeat.incarnation,
            "sequence": heartbeat.sequence,
            "cells": {cell: _gossip_fields(gossip) for cell, gossip in heartbeat.cells},
        }
    )
    return _mac(body, secret) + b" " + body + b"\n"


def decode(line: bytes, *, to: RegionName, secret: bytes) -> Heartbeat:
    """Return the heartbeat in a line.

    Raises:
        InvalidHeartbeat: It is none, it was made without the secret, or it was made for another region.
    """
    mac, space, body = line.rstrip(b"\n").partition(b" ")
    if not space or not hmac.compare_digest(mac, _mac(body, secret)):
        raise InvalidHeartbeat("unauthentic", "a line was not made with the secret of this deployment")
    try:
        fields = cast("dict[str, Any]", orjson.loads(body))
        heartbeat = Heartbeat(
            sender=parse_region_name(fields["from"]),
            incarnation=_number(fields["incarnation"]),
            sequence=_number(fields["sequence"]),
            cells=tuple((parse_cell_id(cell), _gossip(one)) for cell, one in _bounded(fields["cells"]).items()),
        )
        receiver = fields["to"]
    except (ValueError, KeyError, TypeError, AttributeError, InvalidName) as error:
        raise InvalidHeartbeat("malformed", f"a heartbeat cannot be read: {error!r}") from error
    if receiver != to:
        raise InvalidHeartbeat("misdirected", f"a heartbeat for {receiver} arrived at {to}")
    return heartbeat


def _mac(body: bytes, secret: bytes) -> bytes:
    return hmac.digest(secret, body, "sha256").hex().encode()


def _gossip_fields(gossip: Gossip) -> dict[str, object]:
    vote = gossip.vote
    return {
        "epoch": gossip.epoch,
        "commit": gossip.commit,
        "suspects": gossip.suspects,
        "vote": None
        if vote is None
        else {
            "epoch": vote.epoch,
            "position": [vote.position.epoch, vote.position.lsn],
            "ancestry": vote.ancestry,
        },
        "drained": gossip.drained,
        "release": None if gossip.release is None else asdict(gossip.release),
    }


def _gossip(fields: Mapping[str, Any]) -> Gossip:
    vote = fields["vote"]
    return Gossip(
        epoch=_number(fields["epoch"]),
        commit=_number(fields["commit"]),
        suspects=_number(fields["suspects"]),
        vote=None if vote is None else _vote(vote),
        release=None if fields.get("release") is None else _release(fields["release"]),
        drained=_number(fields.get("drained", 0)),
    )


def _release(fields: Mapping[str, Any]) -> Release:
    return Release(
        epoch=_number(fields["epoch"]),
        revision=_number(fields["revision"]),
        successor=parse_region_name(fields["successor"]),
        lsn=_number(fields["lsn"]),
    )


def _vote(fields: Mapping[str, Any]) -> Vote:
    epoch, lsn = fields["position"]
    ancestry = tuple(_number(one) for one in fields["ancestry"])
    if len(ancestry) > ANCESTRY_MAX:
        raise ValueError("an ancestry beyond its bound")
    return Vote(epoch=_number(fields["epoch"]), position=Position(_number(epoch), _number(lsn)), ancestry=ancestry)


def _bounded(cells: Mapping[str, Any]) -> Mapping[str, Any]:
    if len(cells) > CELLS_MAX:
        raise ValueError("too many cells")
    return cells


def _number(value: object) -> int:
    if type(value) is not int or not 0 <= value <= NUMBER_MAX:
        raise ValueError(f"{value!r} is no number")
    return value


class HeartbeatLinks:
    """Sends heartbeats to every other agent, and takes theirs.

    Attributes:
        sent: Lines handed to the network, by region.
        skipped: Heartbeats that found no connection, or one that was stuck, by region.
        dropped: Lines that arrived and counted for nothing, by reason.
    """

    def __init__(
        self,
        *,
        region: RegionName,
        listen: Address,
        peers: Mapping[RegionName, Address],
        secret: bytes,
        heard: Callable[[Heartbeat], None],
    ) -> None:
        """Prepare the links.

        Args:
            region: The own one.
            listen: Where the others reach this agent.
            peers: Where this agent reaches the others.
            secret: Shared by the agents of a deployment.
            heard: Called with each heartbeat that is authentic; returns at once.
        """
        assert secret, "heartbeats without a secret are nobody's"
        self._region = region
        self._listen = listen
        self._peers = dict(peers)
        self._secret = secret
        self._heard = heard
        self._writers: dict[RegionName, asyncio.StreamWriter] = {}
        self._taken: set[asyncio.StreamWriter] = set()
        self._lost: dict[RegionName, asyncio.Event] = {}
        self._stuck_since: dict[RegionName, float] = {}
        self.sent: Counter[RegionName] = Counter()
        self.skipped: Counter[RegionName] = Counter()
        self.dropped: Counter[Dropped] = Counter()

    async def run(self) -> None:
        """Listen and keep connections to all others, until cancelled.

        Raises:
            OSError: The address cannot be listened on.
        """
        async with asyncio.TaskGroup() as tasks:
            for peer in self._peers:
                tasks.create_task(self._keep(peer), name=f"heartbeats to {peer}")
            tasks.create_task(self._serve(), name="heartbeats")

    def send(self, to: RegionName, heartbeat: Heartbeat) -> None:
        """Send a heartbeat now or never."""
        writer = self._writers.get(to)
        # uvloop raises where asyncio is silent when a connection that has ended is written to, or asked.
        if writer is None or writer.is_closing() or self._is_stuck(to, writer):
            self.skipped[to] += 1
            return
        writer.write(encode(heartbeat, to=to, secret=self._secret))
        self.sent[to] += 1

    def _is_stuck(self, to: RegionName, writer: asyncio.StreamWriter) -> bool:
        """Whether what was written earlier has not left; a connection that stays so is replaced."""
        if writer.transport.get_write_buffer_size() == 0:
            self._stuck_since.pop(to, None)
            return False
        now = asyncio.get_running_loop().time()
        if now - self._stuck_since.setdefault(to, now) > STUCK_S:
            writer.transport.abort()
            self._lost[to].set()
        return True

    async def _keep(self, peer: RegionName) -> None:
        address = self._peers[peer]
        while True:
            try:
                async with asyncio.timeout(CONNECT_S):
                    reader, writer = await asyncio.open_connection(address.host, address.port)
            except (OSError, TimeoutError) as error:
                _log.debug("no heartbeats to %s: %s", peer, error)
            else:
                await self._use(peer, reader, writer)
            await asyncio.sleep(PAUSE_S)

    async def _use(self, peer: RegionName, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Let heartbeats go over a connection until the other side ends it or it is stuck."""
        lost = self._lost[peer] = asyncio.Event()
        self._stuck_since.pop(peer, None)
        self._writers[peer] = writer
        ended = asyncio.ensure_future(_until_end(reader))
        stuck = asyncio.ensure_future(lost.wait())
        try:
            await asyncio.wait((ended, stuck), return_when=asyncio.FIRST_COMPLETED)
        finally:
            del self._writers[peer]
            for one in (ended, stuck):
                one.cancel()
            writer.transport.abort()

    async def _serve(self) -> None:
        starting = asyncio.ensure_future(
            asyncio.start_server(
                self._take, self._listen.host, self._listen.port, limit=LINE_BYTES_MAX, reuse_address=True
            )
        )
        try:
            server = await asyncio.shield(starting)
        except asyncio.CancelledError:
            # Half-way it would leave a socket that nobody closes.
            (await starting).close()
            raise
        try:
            await server.serve_forever()
        finally:
            server.close()
            # Else the others would go on talking to nobody instead of connecting to whoever listens next.
            for writer in self._taken:
                writer.transport.abort()

    async def _take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._taken.add(writer)
        try:
            # What is no heartbeat ends the connection: whoever has the secret writes none.
            while line := await _line(reader):
                self._heard(decode(line, to=self._region, secret=self._secret))
        except InvalidHeartbeat as error:
            self.dropped[error.why] += 1
            _log.warning("a heartbeat was dropped: %s", error)
        except OSError as error:
            _log.debug("a connection for heartbeats broke: %s", error)
        finally:
            self._taken.discard(writer)
            writer.transport.abort()


async def _line(reader: asyncio.StreamReader) -> bytes:
    """Return the next line; nothing at the end."""
    try:
        return await reader.readuntil(b"\n")
    except asyncio.IncompleteReadError:
        return b""
    except asyncio.LimitOverrunError as error:
        raise InvalidHeartbeat("oversized", f"a line of more than {LINE_BYTES_MAX} bytes") from error


async def _until_end(reader: asyncio.StreamReader) -> None:
    with contextlib.suppress(OSError):
        while await reader.read(1024):
            pass

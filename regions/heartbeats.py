"""Sends authenticated heartbeats between agents over TCP connections, without waiting.

Decides the format of a message, which messages are dropped and counted, and when a connection is replaced. Does not
know the meaning of a heartbeat (``regions.failover.core``). A message is one line: the HMAC-SHA256 of the rest in hex,
a space, and JSON. The HMAC covers the regions of the sender and the receiver, so a recorded message cannot be replayed
to another region. `heartbeat_merger` and the core drop a heartbeat that is not newer than the last one of its sender.

It uses TCP and not UDP, because the network between regions is TCP in every known deployment. A lost datagram
corresponds to a late message. Therefore a heartbeat that cannot be sent at once is dropped: the next one has the
complete state.
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
"""Room for 32 epochs of 20 digits in each of about ten cells."""

CONNECT_S: Final = 1.0
PAUSE_S: Final = 0.1
STUCK_S: Final = 1.0
"""A connection whose send buffer did not drain for this long is replaced: the peer or the network path is down."""

CELLS_MAX: Final = 64
NUMBER_MAX: Final = 2**63 - 1

Dropped = Literal["unauthentic", "malformed", "oversized", "misdirected"]

_log = logging.getLogger(__name__)


class InvalidHeartbeat(ValueError):
    """A message is not a valid heartbeat for this region.

    Attributes:
        why: The reason under which it is counted.
    """

    def __init__(self, why: Dropped, text: str) -> None:
        super().__init__(text)
        self.why: Dropped = why


def encode(heartbeat: Heartbeat, *, to: RegionName, secret: bytes) -> bytes:
    """Return the message that carries a heartbeat to a region."""
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
    """Return the heartbeat of a message.

    Raises:
        InvalidHeartbeat: The message is malformed, has a wrong HMAC, or is for another region.
    """
    mac, space, body = line.rstrip(b"\n").partition(b" ")
    if not space or not hmac.compare_digest(mac, _mac(body, secret)):
        raise InvalidHeartbeat("unauthentic", "its HMAC does not match the secret of this deployment")
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
        raise ValueError("the ancestry is too long")
    return Vote(epoch=_number(fields["epoch"]), position=Position(_number(epoch), _number(lsn)), ancestry=ancestry)


def _bounded(cells: Mapping[str, Any]) -> Mapping[str, Any]:
    if len(cells) > CELLS_MAX:
        raise ValueError("too many cells")
    return cells


def _number(value: object) -> int:
    if type(value) is not int or not 0 <= value <= NUMBER_MAX:
        raise ValueError(f"{value!r} is not an integer from 0 to {NUMBER_MAX}")
    return value


class HeartbeatLinks:
    """Sends heartbeats to every other agent and receives theirs.

    Attributes:
        sent: Number of messages written to the network, by region.
        skipped: Number of heartbeats not sent because there was no connection or it was stuck, by region.
        dropped: Number of invalid messages received, by reason.
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
        """Initialise the links.

        Args:
            region: The own region.
            listen: Address at which this agent listens.
            peers: Addresses of the other agents.
            secret: HMAC key, shared by the agents of a deployment.
            heard: Called with each valid heartbeat in the event loop; must not block.
        """
        assert secret, "heartbeats need a secret"
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
        """Listen, and keep connections to all other agents, until cancelled.

        Raises:
            OSError: The address cannot be bound.
        """
        async with asyncio.TaskGroup() as tasks:
            for peer in self._peers:
                tasks.create_task(self._keep(peer), name=f"heartbeats to {peer}")
            tasks.create_task(self._serve(), name="heartbeats")

    def send(self, to: RegionName, heartbeat: Heartbeat) -> None:
        """Send a heartbeat if the connection can take it at once; drop it otherwise."""
        writer = self._writers.get(to)
        # On a closed connection, uvloop raises where asyncio does nothing, for writes and for queries of the buffer.
        if writer is None or writer.is_closing() or self._is_stuck(to, writer):
            self.skipped[to] += 1
            return
        writer.write(encode(heartbeat, to=to, secret=self._secret))
        self.sent[to] += 1

    def _is_stuck(self, to: RegionName, writer: asyncio.StreamWriter) -> bool:
        """Return whether earlier messages are still in the send buffer; a connection that stays so is replaced."""
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
                _log.debug("heartbeats: no connection to %s: %s", peer, error)
            else:
                await self._use(peer, reader, writer)
            await asyncio.sleep(PAUSE_S)

    async def _use(self, peer: RegionName, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Use a connection for heartbeats until the peer closes it or it is stuck."""
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
            # Otherwise a listening socket would stay open.
            (await starting).close()
            raise
        try:
            await server.serve_forever()
        finally:
            server.close()
            # Otherwise the peers would keep sending to this process instead of connecting to its successor.
            for writer in self._taken:
                writer.transport.abort()

    async def _take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._taken.add(writer)
        try:
            # An invalid message ends the connection: an agent with the secret sends none.
            while line := await _line(reader):
                self._heard(decode(line, to=self._region, secret=self._secret))
        except InvalidHeartbeat as error:
            self.dropped[error.why] += 1
            _log.warning("heartbeats: dropped a message: %s", error)
        except OSError as error:
            _log.debug("heartbeats: a connection broke: %s", error)
        finally:
            self._taken.discard(writer)
            writer.transport.abort()


async def _line(reader: asyncio.StreamReader) -> bytes:
    """Return the next message; empty at the end of the stream."""
    try:
        return await reader.readuntil(b"\n")
    except asyncio.IncompleteReadError:
        return b""
    except asyncio.LimitOverrunError as error:
        raise InvalidHeartbeat("oversized", f"a message of more than {LINE_BYTES_MAX} bytes") from error


async def _until_end(reader: asyncio.StreamReader) -> None:
    with contextlib.suppress(OSError):
        while await reader.read(1024):
            pass

"""Heartbeats between agents: their encoding, refusals, and connections that break, hang and are opened again."""

import asyncio
import contextlib
import hmac
from collections.abc import AsyncGenerator
from dataclasses import replace

import orjson
import pytest
import uvloop
from hypothesis import given
from hypothesis import strategies as st

from regions.failover.events import Gossip, Release, Vote
from regions.failover.heartbeats import Heartbeat
from regions.heartbeats import LINE_BYTES_MAX, HeartbeatLinks, InvalidHeartbeat, decode, encode
from regions.identity import CellId, RegionName
from regions.leadership import ANCESTRY_MAX
from regions.position import Position
from regions.topology import Address
from tests.child_processes import free_port

EAST, WEST = RegionName("us-east"), RegionName("eu-west")
SECRET = b"a secret"
numbers = st.integers(min_value=0, max_value=2**63 - 1)
votes = st.builds(
    Vote,
    epoch=numbers,
    position=st.builds(Position, numbers, numbers),
    ancestry=st.lists(numbers, max_size=ANCESTRY_MAX).map(tuple),
)
releases = st.builds(Release, epoch=numbers, revision=numbers, successor=st.sampled_from([EAST, WEST]), lsn=numbers)
gossips = st.builds(
    Gossip,
    epoch=numbers,
    commit=numbers,
    suspects=numbers,
    vote=st.none() | votes,
    release=st.none() | releases,
    drained=numbers,
)
heartbeats = st.builds(
    Heartbeat,
    sender=st.sampled_from([EAST, WEST]),
    incarnation=numbers,
    sequence=numbers,
    cells=gossips.map(lambda gossip: ((CellId("main"), gossip),)),
)
BEAT = Heartbeat(sender=EAST, incarnation=1, sequence=1, cells=((CellId("main"), Gossip(epoch=3, commit=700)),))


@given(heartbeats)
def test_a_heartbeat_survives_encoding_and_decoding(heartbeat: Heartbeat) -> None:
    assert decode(encode(heartbeat, to=WEST, secret=SECRET), to=WEST, secret=SECRET) == heartbeat


def signed(body: bytes) -> bytes:
    return hmac.digest(SECRET, body, "sha256").hex().encode() + b" " + body + b"\n"


def changed(**fields: object) -> bytes:
    body = orjson.loads(encode(BEAT, to=WEST, secret=SECRET).split(b" ", 1)[1])
    return signed(orjson.dumps(body | fields))


@pytest.mark.parametrize(
    ("line", "why"),
    [
        (encode(BEAT, to=WEST, secret=b"another secret"), "unauthentic"),
        (encode(BEAT, to=WEST, secret=SECRET).replace(b"700", b"701"), "unauthentic"),
        (b"\n", "unauthentic"),
        (b"no heartbeat at all\n", "unauthentic"),
        (encode(BEAT, to=EAST, secret=SECRET), "misdirected"),
        (signed(b"[]"), "malformed"),
        (signed(b"{"), "malformed"),
        (changed(**{"from": "US"}), "malformed"),
        (changed(incarnation=-1), "malformed"),
        (changed(incarnation="1"), "malformed"),
        (changed(sequence=2**63), "malformed"),
        (changed(cells=[1]), "malformed"),
        (changed(cells={f"cell-{n}": 0 for n in range(65)}), "malformed"),
        (changed(cells={"main": {"epoch": 1, "commit": 1, "suspects": 0}}), "malformed"),
        (
            changed(
                cells={
                    "main": {
                        "epoch": 1,
                        "commit": 1,
                        "suspects": 0,
                        "vote": {"epoch": 1, "position": [1, 1], "ancestry": [1] * (ANCESTRY_MAX + 1)},
                    }
                }
            ),
            "malformed",
        ),
    ],
)
def test_an_invalid_heartbeat_is_refused_with_its_reason(line: bytes, why: str) -> None:
    with pytest.raises(InvalidHeartbeat) as refused:
        decode(line, to=WEST, secret=SECRET)
    assert refused.value.why == why


class LinkHarness:
    """The heartbeat links of two agents, and the heartbeats that each received."""

    def __init__(self) -> None:
        self.addresses = {region: Address("127.0.0.1", free_port()) for region in (EAST, WEST)}
        self.heard: dict[RegionName, list[Heartbeat]] = {EAST: [], WEST: []}
        self.links: dict[RegionName, HeartbeatLinks] = {}
        self.tasks: dict[RegionName, asyncio.Task[None]] = {}

    def start(self, region: RegionName, *, secret: bytes = SECRET) -> HeartbeatLinks:
        links = HeartbeatLinks(
            region=region,
            listen=self.addresses[region],
            peers={other: address for other, address in self.addresses.items() if other != region},
            secret=secret,
            heard=self.heard[region].append,
        )
        self.links[region] = links
        self.tasks[region] = asyncio.create_task(links.run())
        return links

    async def stop(self, region: RegionName) -> None:
        task = self.tasks.pop(region)
        task.cancel()
        await asyncio.wait([task])

    async def send_until_received(self, count: int, *, until: int = 1) -> None:
        """Send heartbeats of EAST, numbered from ``count``, until WEST has received ``until`` more."""
        before = len(self.heard[WEST])
        async with asyncio.timeout(10):
            for sequence in range(count, count + 1_000):
                self.links[EAST].send(WEST, replace(BEAT, sequence=sequence))
                await asyncio.sleep(0.01)
                if len(self.heard[WEST]) >= before + until:
                    return


@contextlib.asynccontextmanager
async def link_harness() -> AsyncGenerator[LinkHarness]:
    made = LinkHarness()
    try:
        yield made
    finally:
        for region in list(made.tasks):
            await made.stop(region)


async def test_a_region_receives_the_heartbeats_of_another_in_order() -> None:
    async with link_harness() as two:
        two.start(EAST)
        two.start(WEST)
        await two.send_until_received(1, until=5)
        sequences = [beat.sequence for beat in two.heard[WEST]]
        assert sequences == sorted(set(sequences))
        assert two.links[EAST].sent[WEST] >= 5


async def test_heartbeats_reach_an_agent_that_restarted() -> None:
    async with link_harness() as two:
        two.start(EAST)
        two.start(WEST)
        await two.send_until_received(1)
        await two.stop(WEST)
        two.links[EAST].send(WEST, BEAT)
        two.start(WEST)
        await two.send_until_received(2_000)
        assert two.links[EAST].skipped[WEST] > 0


async def test_heartbeats_with_another_secret_are_dropped_and_counted() -> None:
    async with link_harness() as two:
        two.start(EAST, secret=b"an old secret")
        west = two.start(WEST)
        async with asyncio.timeout(10):
            while not west.dropped["unauthentic"]:
                two.links[EAST].send(WEST, BEAT)
                await asyncio.sleep(0.01)
        assert two.heard[WEST] == []


async def test_an_oversized_line_is_dropped_and_its_connection_closed() -> None:
    async with link_harness() as two:
        west = two.start(WEST)
        two.start(EAST)
        await two.send_until_received(1)
        reader, writer = await asyncio.open_connection(*_of(two.addresses[WEST]))
        writer.write(b"x" * (LINE_BYTES_MAX + 1))
        async with asyncio.timeout(10):
            with contextlib.suppress(ConnectionError):
                assert await reader.read() == b""
        assert west.dropped["oversized"] == 1
        writer.transport.abort()


async def test_a_peer_that_reads_nothing_gets_a_new_connection() -> None:
    connections: list[asyncio.StreamWriter] = []

    async def take(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.append(writer)
        await asyncio.Event().wait()

    async with link_harness() as two:
        server = await asyncio.start_server(take, *_of(two.addresses[WEST]), limit=1)
        links = two.start(EAST)
        big = replace(BEAT, cells=tuple((CellId(f"cell-{n}"), Gossip(epoch=1)) for n in range(60)))
        async with asyncio.timeout(20):
            sequence = 0
            while len(connections) < 2:
                for _ in range(200):
                    sequence += 1
                    links.send(WEST, replace(big, sequence=sequence))
                await asyncio.sleep(0.02)
        assert links.skipped[WEST] > 0
        server.close()
        for writer in connections:
            writer.transport.abort()


def test_a_connection_that_breaks_during_a_write_loses_only_heartbeats() -> None:
    """The agent runs on uvloop, whose writes raise errors that asyncio suppresses."""
    broken = 0

    async def take(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal broken
        broken += 1
        writer.transport.abort()

    async def run() -> None:
        async with link_harness() as two:
            server = await asyncio.start_server(take, *_of(two.addresses[WEST]))
            links = two.start(EAST)
            async with asyncio.timeout(20):
                while broken < 5:
                    links.send(WEST, BEAT)
                    await asyncio.sleep(0)
            assert not two.tasks[EAST].done()
            assert links.skipped[WEST] > 0
            server.close()

    uvloop.run(run())


def _of(address: Address) -> tuple[str, int]:
    return address.host, address.port

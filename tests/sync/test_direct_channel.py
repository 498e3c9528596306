import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace

import httpx
import pytest

from regions.identity import RegionName
from regions.leadership import Leadership, Succession
from regions.plain_http import TRUST_NOBODY
from regions.position import ZERO, Position, encode_token
from sync.change import Item, Progress, Transaction, decode_line
from sync.channel.buffer import BUFFER_BYTES_MAX, BufferedSubscription
from sync.channel.direct import client as direct_client
from sync.channel.direct.client import DirectChannel
from sync.channel.direct.pacing import BUSY_ITEMS_PER_S, smoothed_rate
from sync.lag import LagMeter
from tests.child_processes import free_port
from tests.sync.rig import CELL, TOKEN, WAIT_S, Rig, SettableLeadership, leadership, topology, until, writing

pytestmark = pytest.mark.integration

BEARER = {"authorization": f"Bearer {TOKEN}"}
START = encode_token(CELL, ZERO)


async def take(subscription: BufferedSubscription, count: int) -> list[Transaction]:
    found: list[Transaction] = []
    async with asyncio.timeout(WAIT_S):
        while len(found) < count:
            found += [item for item in await subscription.take() if isinstance(item, Transaction)]
    return found


@asynccontextmanager
async def http(rig: Rig) -> AsyncGenerator[httpx.AsyncClient]:
    async with httpx.AsyncClient(
        base_url=f"http://127.0.0.1:{rig.port}", headers=BEARER, timeout=WAIT_S, verify=TRUST_NOBODY
    ) as client:
        yield client


async def test_subscribing_and_acknowledging_need_the_bearer_token(rig: Rig) -> None:
    async with rig.serving(), http(rig) as client:
        for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": TOKEN}):
            client.headers = httpx.Headers(headers)
            assert (await client.get("/v1/changes")).status_code == 401
            assert (await client.post("/v1/changes/ack", content=b"{}")).status_code == 401


@pytest.mark.parametrize(
    "query",
    [
        {},
        {"region": "nowhere", "from": START},
        {"region": "REGION", "from": "main.1"},
        {"region": "REGION", "from": "other.1.0000000000000000"},
    ],
)
async def test_an_invalid_subscription_is_rejected(rig: Rig, query: dict[str, str]) -> None:
    query = {name: value.replace("REGION", rig.region) for name, value in query.items()}
    async with rig.serving(), http(rig) as client:
        response = await client.get("/v1/changes", params=query)
    assert response.status_code == 400
    assert response.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b'{"region":"x","position":"y"}', b" " * 2000])
async def test_an_invalid_acknowledgement_is_rejected(rig: Rig, content: bytes) -> None:
    async with rig.serving(), http(rig) as client:
        response = await client.post("/v1/changes/ack", content=content)
    assert response.status_code in (400, 413)


async def test_a_region_that_does_not_lead_answers_409(rig: Rig) -> None:
    query = {"region": rig.region, "from": START}
    ahead = {"region": rig.region, "from": encode_token(CELL, Position(9, 1))}
    async with rig.serving(), http(rig) as client:
        assert (await client.get("/v1/changes", params=ahead)).status_code == 409
        for other in (leadership("elsewhere"), leadership(rig.region, phase="establishing")):
            rig.leaders.set(other)
            assert (await client.get("/v1/changes", params=query)).status_code == 409
        body = {"region": rig.region, "position": START}
        assert (await client.post("/v1/changes/ack", json=body)).status_code == 409


async def test_the_lines_are_transactions_and_progress_each_second(rig: Rig) -> None:
    rig.create_slot()
    rig.fence()
    query = {"region": rig.region, "from": START}
    found: list[Item] = []
    async with rig.serving(), http(rig) as client, client.stream("GET", "/v1/changes", params=query) as stream:
        assert stream.headers["content-type"] == "application/x-ndjson"
        async with asyncio.timeout(WAIT_S):
            async for line in stream.aiter_lines():
                found.append(decode_line(line.encode()))
                if sum(isinstance(item, Progress) for item in found) == 3:
                    break
    assert sum(isinstance(item, Transaction) for item in found) == 1


async def test_acknowledgements_move_the_slot(rig: Rig) -> None:
    slot = rig.create_slot()
    rig.fence()
    async with rig.serving(), rig.channel().subscribe(ZERO) as subscription:
        (fence,) = await take(subscription, 1)
        subscription.acknowledge(fence.position)
        await until(
            lambda: (
                rig.sql("SELECT confirmed_flush_lsn - '0/0' FROM pg_replication_slots WHERE slot_name = %s", slot)
                == [(fence.position.lsn,)]
            )
        )


async def test_the_newest_subscription_of_a_region_replaces_the_older_one(rig: Rig) -> None:
    rig.create_slot()
    rig.fence()
    query = {"region": rig.region, "from": START}
    async with rig.serving() as server, http(rig) as client:
        async with client.stream("GET", "/v1/changes", params=query) as older:
            lines = older.aiter_lines()
            await anext(lines)
            async with client.stream("GET", "/v1/changes", params=query) as newer:
                assert newer.status_code == 200
                async with asyncio.timeout(WAIT_S):
                    async for _ in lines:
                        pass
                    await anext(newer.aiter_lines())
                assert server.subscribed == [rig.region]
        await until(lambda: not server.subscribed)


async def test_two_regions_stream_at_the_same_time(rig: Rig) -> None:
    rig.create_slot()
    rig.create_slot(f"other-{rig.number}")
    rig.topology = topology(rig.region, {rig.region: rig.port, f"other-{rig.number}": rig.port})
    rig.fence()
    meter = LagMeter(now=0)
    other = DirectChannel(
        topology=topology(f"other-{rig.number}", {rig.region: rig.port, f"other-{rig.number}": 9}),
        leaders=rig.leaders,
        token=TOKEN,
        meter=meter,
    )
    async with rig.serving(), rig.channel().subscribe(ZERO) as one, other.subscribe(ZERO) as two:
        assert await take(one, 1) == await take(two, 1)
        assert meter.source == rig.region


async def test_the_client_follows_the_leadership(rig: Rig) -> None:
    rig.create_slot()
    rig.fence()
    rig.leaders = SettableLeadership(None)
    async with rig.serving(), rig.channel().subscribe(ZERO) as subscription:
        await until(lambda: rig.meter.trouble == "no leader is known")
        rig.leaders.set(leadership(rig.region))
        (fence,) = await take(subscription, 1)
        rig.leaders.set(leadership(rig.region, epoch=2, phase="establishing"))
        await until(lambda: not rig.meter.connected)
        rig.fence(2)
        rig.leaders.set(leadership(rig.region, epoch=2))
        (second,) = await take(subscription, 1)
    assert (fence.position.epoch, second.position.epoch) == (1, 2)


@asynccontextmanager
async def answering(
    port: int, answer: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
) -> AsyncGenerator[None]:
    """Listen on a port; close all connections at the end."""
    handlers: set[asyncio.Task[None]] = set()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            await answer(reader, writer)
        writer.close()

    def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        handlers.add(asyncio.create_task(handle(reader, writer)))

    server = await asyncio.start_server(take, "127.0.0.1", port)
    try:
        yield
    finally:
        server.close()
        await asyncio.wait_for(asyncio.gather(*handlers), WAIT_S)


@dataclass
class CannedServer:
    """Sends the same answer on each connection, and counts the connections."""

    answer: bytes
    keeps_open: bool = False
    connections: int = 0

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        await reader.readuntil(b"\r\n\r\n")
        writer.write(self.answer)
        await writer.drain()
        if self.keeps_open:
            await reader.read()


SILENT = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
ENDS = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"


async def test_the_client_reconnects_when_the_leader_is_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(direct_client, "SILENCE_MAX_S", 0.2)
    silent = CannedServer(SILENT, keeps_open=True)
    port = free_port()
    channel = DirectChannel(
        topology=topology("here", {"here": port}),
        leaders=SettableLeadership(leadership("here")),
        token=TOKEN,
        meter=LagMeter(now=0),
    )
    async with answering(port, silent), channel.subscribe(ZERO):
        await until(lambda: silent.connections >= 3)
    assert channel.reconnects >= 2


PROMISED = replace(leadership("here"), succession=Succession(region=RegionName("there"), reason="test"))


async def test_a_stream_stays_open_when_a_record_keeps_epoch_leader_and_phase() -> None:
    silent = CannedServer(SILENT, keeps_open=True)
    port, meter = free_port(), LagMeter(now=0)
    leaders = SettableLeadership(replace(PROMISED, succession=None))
    channel = DirectChannel(topology=topology("here", {"here": port}), leaders=leaders, token=TOKEN, meter=meter)
    async with answering(port, silent), channel.subscribe(ZERO):
        await until(lambda: meter.connected)
        leaders.set(PROMISED)
        await until(leaders.is_known)
        assert (silent.connections, channel.reconnects) == (1, 0)
        leaders.set(leadership("here", epoch=2))
        await until(lambda: silent.connections == 2)


async def test_the_client_waits_for_a_promised_epoch_when_its_stream_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    # Without a promise the client would reconnect at once.
    monkeypatch.setattr(direct_client, "BACKOFF_MIN_S", 0.0)
    monkeypatch.setattr(direct_client, "BACKOFF_MAX_S", 0.0)
    monkeypatch.setattr(direct_client, "SUCCESSION_S_MAX", 3600.0)
    ends = CannedServer(ENDS)
    port, leaders = free_port(), SettableLeadership(PROMISED)
    channel = DirectChannel(
        topology=topology("here", {"here": port}), leaders=leaders, token=TOKEN, meter=LagMeter(now=0)
    )
    async with answering(port, ends), channel.subscribe(ZERO):
        await until(lambda: channel.reconnects > 0)
        for _ in range(50):
            await asyncio.sleep(0)
        # The server answers in order, so a reconnect of the client would be counted by now.
        async with httpx.AsyncClient(timeout=WAIT_S, verify=TRUST_NOBODY) as other:
            assert (await other.get(f"http://127.0.0.1:{port}/")).status_code == 200
        assert (ends.connections, channel.reconnects) == (2, 1)
        leaders.set(leadership("here", epoch=2))
        await until(lambda: ends.connections > 2)


async def test_the_client_closes_a_stream_of_garbage_and_delivers_nothing() -> None:
    garbage = CannedServer(b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n{}\nwhat is this\n")
    port = free_port()
    meter = LagMeter(now=0)
    channel = DirectChannel(
        topology=topology("here", {"here": port}),
        leaders=SettableLeadership(leadership("here")),
        token=TOKEN,
        meter=meter,
    )
    async with (
        answering(port, garbage),
        channel.subscribe(ZERO) as subscription,
    ):
        await until(lambda: channel.reconnects >= 2)
        assert subscription.received == ZERO
        assert "not a line" in (meter.trouble or "")


async def test_capture_stops_reading_when_the_consumer_does_not_take_and_nothing_is_lost(rig: Rig) -> None:
    rig.create_slot()
    rig.fence()
    count, body = 3000, "x" * 20_000
    async with rig.serving() as server, writing(rig) as writer:
        thread = await writer.create_thread()
        await writer.connection.executemany(
            "INSERT INTO palaver.comments (site_id, thread_id, depth, body, epoch) VALUES ($1, $2, 0, $3, 1)",
            [(writer.site, thread, body)] * count,
        )
        async with rig.channel().subscribe(ZERO) as subscription:
            await until(lambda: subscription._bytes > BUFFER_BYTES_MAX)
            read, before = -1, 0.0
            async with asyncio.timeout(WAIT_S):
                while read != before:
                    read = before
                    await asyncio.sleep(0.5)
                    before = server.source.totals[rig.region].bytes_read
            assert subscription._bytes <= BUFFER_BYTES_MAX + 2 * 1024 * 1024
            # The buffers of both sides, their libraries and the kernel are bounded. The rest stays in the WAL.
            assert server.source.totals[rig.region].bytes_read < count * len(body) * 0.7
            found: list[Transaction] = []
            while sum(len(one.changes) for one in found) < count + 3:
                # The limit is for each batch, because a busy machine may need long for 60 MB.
                async with asyncio.timeout(WAIT_S):
                    found += [item for item in await subscription.take() if isinstance(item, Transaction)]
    assert sum(change.table == "comments" for one in found for change in one.changes) == count


async def test_closing_the_server_ends_its_streams(rig: Rig) -> None:
    rig.create_slot()
    rig.fence()
    async with rig.channel().subscribe(ZERO) as subscription:
        async with rig.serving():
            await take(subscription, 1)
        await until(lambda: not rig.meter.connected)


async def test_a_subscription_ends_cleanly_in_every_state(rig: Rig) -> None:
    rig.create_slot()
    rig.fence()
    rig.leaders = SettableLeadership(None)
    async with rig.channel().subscribe(ZERO):
        pass
    rig.leaders = SettableLeadership(leadership(RegionName(rig.region)))
    channel = rig.channel()
    async with channel.subscribe(ZERO):
        await until(lambda: channel.reconnects > 0)
    async with rig.serving(), rig.channel().subscribe(ZERO) as subscription:
        await take(subscription, 1)
    assert not rig.meter.connected


class SlowLeadershipSource(SettableLeadership):
    """A leadership whose cancelled watchers end only when the test releases them."""

    def __init__(self, current: Leadership) -> None:
        super().__init__(current)
        self.leaving = asyncio.Event()
        self.release = asyncio.Event()

    async def next_after(self, known: Leadership | None) -> Leadership:
        try:
            return await super().next_after(known)
        finally:
            self.leaving.set()
            await self.release.wait()


async def test_a_broken_stream_does_not_hide_the_cancellation_of_its_subscription() -> None:
    leaders = SlowLeadershipSource(leadership("region-x"))
    channel = DirectChannel(
        topology=topology("region-x", {"region-x": free_port()}),  # nobody listens there
        leaders=leaders,
        token=TOKEN,
        meter=LagMeter(now=0),
    )
    async with asyncio.timeout(WAIT_S):
        async with channel.subscribe(ZERO):
            await leaders.leaving.wait()
            asyncio.get_running_loop().call_soon(leaders.release.set)


def test_a_short_burst_does_not_make_the_smoothed_rate_busy() -> None:
    steady = 0.0
    for _ in range(500):
        steady = smoothed_rate(steady, 2, 0.01)
    assert steady == pytest.approx(200, rel=0.01)
    assert smoothed_rate(steady, 5, 0.01) < BUSY_ITEMS_PER_S, "five at once, among two hundred a second"
    busy = steady
    for _ in range(100):
        busy = smoothed_rate(busy, 5, 0.01)
    assert busy > BUSY_ITEMS_PER_S, "five hundred a second, for a second"
    assert smoothed_rate(0.0, 3, 0.0) == pytest.approx(3 / 0.5), "no time at all has passed"

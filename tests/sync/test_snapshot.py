"""Tests that a view gets everything from a snapshot if changes are no longer available, also under writes."""

import asyncio
import fcntl
import random
import socket
import struct
from collections.abc import AsyncGenerator
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from uuid import uuid4

import psutil
import psycopg
import pytest

from regions.identity import Epoch
from regions.position import ZERO, Position, encode_token
from services.tables import SITES, TABLES, THREADS
from sync import snapshot as module
from sync.change import Progress, Transaction
from sync.channel.direct import keepalive
from sync.high_water import HighWaterMark
from sync.registry import Column, Registry
from sync.snapshot import Snapshot, open_snapshot
from sync.walsender import SlotLost, SourceUnavailable
from tests.sync.rig import CELL, TOKEN, WAIT_S, Rig, Writer, differences, until, writing

pytestmark = pytest.mark.integration


def advance_slot(rig: Rig, slot: str) -> None:
    """Advance an inactive slot to the end of the WAL, so that it lacks the changes before."""
    rig.sql(
        "SELECT pg_replication_slot_advance(slot_name, pg_current_wal_flush_lsn()) FROM pg_replication_slots"
        " WHERE slot_name = %s AND NOT active",
        slot,
    )


@asynccontextmanager
async def open_test_snapshot(rig: Rig, slot: str, epoch: Epoch = 1) -> AsyncGenerator[Snapshot]:
    mark = HighWaterMark(rig.stream_url)
    async with (
        mark.in_use(),
        open_snapshot(rig.stream_url, registry=rig.tables, slot=slot, epoch=epoch, mark=mark) as snapshot,
    ):
        yield snapshot


SIOCOUTQNSD = 0x894B
"""ioctl: the bytes of a connection that were not sent yet (tcp(7), linux/sockios.h)."""


def unsent(port: int, client: asyncio.StreamWriter) -> int:
    """Return the number of bytes that a server of this process cannot send to one of its clients."""
    ours = client.get_extra_info("sockname")
    for one in psutil.Process().net_connections("tcp4"):
        if one.fd != -1 and one.raddr == ours and one.laddr.port == port:
            return struct.unpack("i", fcntl.ioctl(one.fd, SIOCOUTQNSD, bytes(4)))[0]
    return 0


def is_listening(port: int) -> bool:
    with socket.socket() as connection:
        return connection.connect_ex(("127.0.0.1", port)) == 0


async def write_some(writer: Writer) -> None:
    thread = await writer.create_thread(f"/{uuid4()}")
    root = await writer.post(thread)
    await writer.post(thread, parent=root)


async def test_a_view_whose_changes_are_unavailable_gets_a_snapshot_and_continues(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    slot = rig.create_slot()
    rig.fence()
    async with writing(rig) as writer:
        async with rig.replicating():
            await write_some(writer)
            await rig.caught_up()
        await write_some(writer)
        await writer.connection.execute("UPDATE palaver.comments SET body = 'edited', version = version + 1")
        advance_slot(rig, slot)
        async with rig.replicating() as applier:
            await rig.caught_up()
            assert differences(rig) == []
            await write_some(writer)
            await rig.caught_up()
            assert differences(rig) == []
            assert applier.counts.dead_letters == 0
    assert "are gone" in caplog.text, "the loss is logged"
    assert "it gets a snapshot" in caplog.text


async def test_a_lost_view_is_rebuilt(rig: Rig) -> None:
    slot = rig.create_slot()
    rig.fence()
    async with writing(rig) as writer:
        await write_some(writer)
        advance_slot(rig, slot)
        async with rig.replicating():
            await rig.caught_up()
    assert differences(rig) == []


async def test_a_missing_slot_is_created_with_failover_enabled(rig: Rig) -> None:
    rig.fence()
    async with writing(rig) as writer:
        await write_some(writer)
        async with rig.replicating():
            await rig.caught_up()
            await write_some(writer)
            await rig.caught_up()
    assert differences(rig) == []
    assert rig.sql("SELECT failover FROM pg_replication_slots WHERE database = current_database()") == [(True,)]


async def test_rows_written_during_a_snapshot_are_in_it_or_follow_it(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Writers run while slots are advanced and snapshots end early at random moments. No row is missing at the
    end."""
    monkeypatch.setattr(module, "PART_ROWS", 3)
    slot = rig.create_slot()
    rig.fence()
    draw = random.Random(1)  # noqa: S311 - it chooses moments
    stop = asyncio.Event()

    async def write(writer: Writer) -> None:
        while not stop.is_set():
            async with writer.connection.transaction():
                await write_some(writer)
                await asyncio.sleep(draw.uniform(0, 0.03))

    async with writing(rig) as one, writing(rig) as other, asyncio.TaskGroup() as group:
        group.create_task(write(one))
        group.create_task(write(other))
        for _ in range(8):
            await asyncio.sleep(0.05)
            advance_slot(rig, slot)
            async with rig.replicating():
                await asyncio.sleep(draw.choice((0.02, 0.1, 0.4)))
        stop.set()
    async with rig.replicating():
        await rig.caught_up()
    assert differences(rig) == []


async def test_a_snapshot_waits_for_a_commit_that_waits_for_its_quorum(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The commit record lies before the slot's LSN and the rows are not visible, so neither slot nor snapshot has
    them."""
    slot = rig.create_slot()

    async def keep_slot(connection: psycopg.AsyncConnection, slot: str) -> int:
        """Skip the creation of the slot, which waits for all transactions that began earlier."""
        del connection, slot
        return 1

    monkeypatch.setattr(module, "_recreate_slot", keep_slot)
    rig.fence()
    async with writing(rig) as writer, writing(rig) as late:
        await write_some(writer)
        waiting = late.connection.transaction()
        await waiting.start()
        await late.create_thread("/late")
        found: list[Transaction] = []

        async def take() -> None:
            async with open_test_snapshot(rig, slot) as snapshot, aclosing(snapshot.parts()) as parts:
                found.extend([await anext(parts), await anext(parts), await anext(parts)])

        taking = asyncio.create_task(take())
        polls = "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND query LIKE %s"
        await until(lambda: bool(rig.sql(polls, "%pg_snapshot_xmin(pg_current_snapshot()) >%")))
        assert not taking.done()
        await waiting.commit()
        await taking
    keys = [change.row["key"] for part in found for change in part.changes if change.table == "threads"]
    assert "/late" in keys


async def test_no_snapshot_is_taken_while_an_older_transaction_does_not_end(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PREPARE_S_MAX", 0.1)
    slot = rig.create_slot()
    rig.fence()
    async with writing(rig) as writer:
        hanging = writer.connection.transaction()
        await hanging.start()
        await writer.create_thread("/")
        with pytest.raises(SourceUnavailable, match="under way"):
            async with open_test_snapshot(rig, slot):
                pass
        await hanging.rollback()


async def test_a_snapshot_has_bounded_parts_with_parents_first_and_only_its_end_moves_the_checkpoint(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PART_ROWS", 2)
    slot = rig.create_slot()
    rig.fence()
    async with writing(rig) as writer:
        for _ in range(2):
            await write_some(writer)
        advance_slot(rig, slot)
        await write_some(writer)
    async with open_test_snapshot(rig, slot, epoch=4) as snapshot:
        parts = [part async for part in snapshot.parts()]
    assert [part.partial for part in parts] == [True] * (len(parts) - 1) + [False]
    assert [change.table for change in parts[0].changes] == ["table_schemas"] * len(TABLES)
    assert all(len(part.changes) <= 2 for part in parts[1:])
    ((confirmed,),) = rig.sql("SELECT confirmed_flush_lsn - '0/0' FROM pg_replication_slots WHERE slot_name = %s", slot)
    assert {part.position for part in parts} == {Position(4, int(str(confirmed)))}
    tables = [change.table for part in parts for change in part.changes]
    assert tables == ["table_schemas"] * len(TABLES) + ["sites"] + ["threads"] * 3 + ["comments"] * 6
    depths = [change.row["depth"] for part in parts for change in part.changes if change.table == "comments"]
    assert depths == ["0"] * 3 + ["1"] * 3
    assert snapshot.rows == 10


async def test_a_snapshot_that_ends_early_moves_no_checkpoint_and_is_retaken(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    broken = replace(THREADS, columns=(*THREADS.columns, Column(name="no_such", type="integer")), level="no_such")
    slot = rig.create_slot()
    rig.fence()
    async with writing(rig) as writer:
        await write_some(writer)
        advance_slot(rig, slot)
        rig.tables = Registry(*(broken if table is THREADS else table for table in TABLES))
        async with rig.serving() as server, rig.applying():
            await until(lambda: caplog.text.count("ended early") >= 2)
            assert rig.view_sql("SELECT name FROM sites") == [("site",)], "the first part was applied"
            assert {applied.position for applied in rig.applied} == {ZERO}
            assert rig.meter.applied == ZERO
            assert rig.meter.takes_snapshot
            server.source.registry = TABLES
            await rig.caught_up()
            assert not rig.meter.takes_snapshot
    assert differences(rig) == []


async def test_no_snapshot_is_taken_without_a_table_that_the_ledger_publishes(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    rig.tables = Registry(SITES, THREADS)
    slot = rig.create_slot()
    rig.fence()
    async with writing(rig) as writer:
        await write_some(writer)
        advance_slot(rig, slot)
        async with rig.replicating():
            await until(lambda: "this version lacks tables of the ledger: comments" in caplog.text)
    assert rig.view_sql("SELECT name FROM sites") == []


async def test_a_snapshot_has_no_end_when_its_slot_is_lost(rig: Rig) -> None:
    slot = rig.create_slot()
    rig.fence()
    async with open_test_snapshot(rig, slot) as snapshot, aclosing(snapshot.parts()) as parts:
        rig.sql("SELECT pg_drop_replication_slot(%s)", slot)
        with pytest.raises(SlotLost, match="more WAL"):
            assert [part.partial async for part in parts] == [], "the snapshot has no rows"


async def test_a_part_of_a_snapshot_is_bounded_by_its_size(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PART_CHARACTERS", 5_000)
    slot = rig.create_slot()
    rig.fence()
    async with writing(rig) as writer:
        thread = await writer.create_thread()
        for _ in range(20):
            await writer.post(thread, body="x" * 1_000)
    async with open_test_snapshot(rig, slot) as snapshot:
        parts = [part async for part in snapshot.parts()]
    sizes = [len(part.changes) for part in parts if part.changes and part.changes[0].table == "comments"]
    assert sum(sizes) == 20
    assert max(sizes) <= 5


async def test_a_subscriber_gets_keepalives_while_another_snapshot_is_taken(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keepalive, "KEEPALIVE_INTERVAL_S", 0.05)
    rig.fence()
    async with writing(rig) as writer:
        await write_some(writer)
        async with rig.serving() as serving:
            await serving.source.snapshot_lock.acquire()
            async with rig.channel().subscribe(ZERO) as subscription:
                items = await subscription.take()
                assert items == [Progress(position=ZERO, sent_at_us=0)]
                serving.source.snapshot_lock.release()
                while subscription.received == ZERO:
                    await subscription.take()


async def test_a_subscriber_gets_keepalives_until_the_first_part_is_ready(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keepalive, "KEEPALIVE_INTERVAL_S", 0.05)
    slot = rig.create_slot()
    rig.fence()
    parts, received = Snapshot.parts, asyncio.Event()

    async def late(self: Snapshot) -> AsyncGenerator[Transaction]:
        await received.wait()
        async for part in parts(self):
            yield part

    monkeypatch.setattr(Snapshot, "parts", late)
    async with writing(rig) as writer:
        await write_some(writer)
        advance_slot(rig, slot)
        async with rig.serving():
            channel = rig.channel()
            async with asyncio.timeout(WAIT_S), channel.subscribe(ZERO) as subscription:
                items = list(await subscription.take())
                while len(items) < 3:
                    items += await subscription.take()
                assert set(items) == {Progress(position=ZERO, sent_at_us=0)}
                received.set()
                while subscription.received == ZERO:
                    await subscription.take()
    assert channel.snapshots == 1


async def test_a_region_can_subscribe_again_when_its_older_subscriber_does_not_read_its_snapshot(rig: Rig) -> None:
    rig.fence()
    async with writing(rig) as writer:
        thread = await writer.create_thread()
        await writer.connection.execute(
            "INSERT INTO palaver.comments (site_id, thread_id, depth, epoch, body)"
            " SELECT $1, $2, 0, 1, repeat('x', 10000) FROM generate_series(1, 2000)",
            writer.site,
            thread,
        )
    query = f"region={rig.region}&from={encode_token(CELL, ZERO)}"
    request = f"GET /v1/changes?{query} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {TOKEN}\r\n\r\n"
    async with rig.serving() as serving:
        await until(lambda: is_listening(rig.port))
        # This client reads no more than its limit and the kernel's buffers hold.
        reader, stalled = await asyncio.open_connection("127.0.0.1", rig.port, limit=1024)
        stalled.write(request.encode())
        await reader.readexactly(100)
        await until(serving.source.snapshot_lock.locked)
        await until(lambda: unsent(rig.port, stalled) > 0)  # all buffers are full
        assert serving.source.snapshot_lock.locked(), "the snapshot has not ended"
        async with asyncio.timeout(WAIT_S), rig.channel().subscribe(ZERO) as subscription:
            while subscription.received == ZERO:
                await subscription.take()
        stalled.close()

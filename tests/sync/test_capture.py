import asyncio
import uuid

import pytest

from regions.position import ZERO, Position, parse_lsn
from sync.capture import Capture, StreamEnded, open_capture
from sync.change import Change, Item, Progress, Transaction
from sync.walsender import SlotLost, SourceUnavailable
from tests.sync.rig import WAIT_S, Rig, until, writing

pytestmark = pytest.mark.integration

THREADS = "INSERT INTO palaver.threads (site_id, key, epoch) SELECT gen_random_uuid(), {key}, 1 "


async def transactions(capture: Capture, count: int) -> list[Transaction]:
    """Receive transactions and parts until ``count`` transactions are complete."""
    found: list[Transaction] = []
    async with asyncio.timeout(WAIT_S):
        while sum(not one.partial for one in found) < count:
            found += [item for item in await capture.receive() if isinstance(item, Transaction)]
    return found


async def progress_after(capture: Capture, position: Position) -> Progress:
    async with asyncio.timeout(WAIT_S):
        while True:
            for item in await capture.receive():
                if isinstance(item, Progress) and item.position > position:
                    return item


def keys(items: list[Transaction]) -> list[str | None]:
    return [change.row["key"] for one in items for change in one.changes if change.table == "threads"]


def add_thread(rig: Rig, key: str) -> None:
    rig.sql(THREADS.format(key="%s"), key)


def confirmed_lsn(rig: Rig, slot: str) -> int:
    rows = rig.sql("SELECT confirmed_flush_lsn::text FROM pg_replication_slots WHERE slot_name = %s", slot)
    return parse_lsn(str(rows[0][0]))


async def test_everything_after_the_first_fence_row_is_returned_in_commit_order(rig: Rig) -> None:
    slot = rig.create_slot()
    rig.fence()
    for number in range(20):
        add_thread(rig, str(number))
    async with open_capture(rig.stream_url, slot=slot, start=ZERO, epoch=1) as capture:
        found = await transactions(capture, 21)
    assert found[0].changes[0].table == "fence"
    assert keys(found) == [str(number) for number in range(20)]
    assert [one.position for one in found] == sorted(one.position for one in found)
    assert {one.position.epoch for one in found} == {1}


async def test_a_stream_continues_exactly_after_a_position(rig: Rig) -> None:
    slot = rig.create_slot()
    rig.fence()
    for number in range(6):
        add_thread(rig, str(number))
    async with open_capture(rig.stream_url, slot=slot, start=ZERO, epoch=1) as capture:
        everything = await transactions(capture, 7)
    for number in range(1, 6):
        start = everything[number].position
        async with open_capture(rig.stream_url, slot=slot, start=start, epoch=1) as capture:
            assert await transactions(capture, 6 - number) == everything[number + 1 :]


async def test_the_slot_releases_confirmed_changes_and_no_others(rig: Rig) -> None:
    slot = rig.create_slot()
    rig.fence()
    add_thread(rig, "a")
    add_thread(rig, "b")
    before = confirmed_lsn(rig, slot)
    async with open_capture(rig.stream_url, slot=slot, start=ZERO, epoch=1) as capture:
        found = await transactions(capture, 3)
        await progress_after(capture, ZERO)
        assert confirmed_lsn(rig, slot) == before
        capture.confirm(Position(2, found[2].position.lsn))
        capture.confirm(Position(0, found[2].position.lsn))
        capture.confirm(Position(1, 2**60))
        capture.confirm(found[1].position)
        await until(lambda: confirmed_lsn(rig, slot) != before)
        assert confirmed_lsn(rig, slot) == found[1].position.lsn
    with pytest.raises(SlotLost):
        async with open_capture(rig.stream_url, slot=slot, start=found[0].position, epoch=1):
            pass


async def test_an_idle_ledger_reports_progress_at_once_and_repeatedly(rig: Rig) -> None:
    slot = rig.create_slot()
    rig.fence()
    async with open_capture(rig.stream_url, slot=slot, start=ZERO, epoch=1) as capture:
        found = await transactions(capture, 1)
        capture.confirm(found[0].position)
        rig.sql("SELECT pg_logical_emit_message(false, 'nothing', 'x', true)")
        (end,) = rig.sql("SELECT pg_current_wal_flush_lsn()::text")[0]
        seen = await progress_after(capture, Position(1, parse_lsn(str(end)) - 1))
        async with asyncio.timeout(WAIT_S):
            again = await capture.receive()
    assert seen.position == Position(1, parse_lsn(str(end)))
    assert isinstance(again[-1], Progress)
    assert again[-1].sent_at_us > seen.sent_at_us


async def test_a_missing_slot_is_reported_as_lost(rig: Rig) -> None:
    rig.fence()
    with pytest.raises(SlotLost, match="does not exist"):
        async with open_capture(rig.stream_url, slot="palaver_nowhere", start=ZERO, epoch=1):
            pass


async def test_a_slot_made_after_the_first_fence_row_cannot_feed_an_empty_view(rig: Rig) -> None:
    rig.fence()
    slot = rig.create_slot()
    async with asyncio.timeout(WAIT_S):
        with pytest.raises(SlotLost, match="first fence row"):
            async with open_capture(rig.stream_url, slot=slot, start=ZERO, epoch=1) as capture:
                await capture.receive_first()
    rig.fence(2)
    async with asyncio.timeout(WAIT_S):
        with pytest.raises(SlotLost, match="epoch 2"):
            async with open_capture(rig.stream_url, slot=slot, start=ZERO, epoch=2) as capture:
                await capture.receive_first()


async def test_a_ledger_that_does_not_answer_or_has_no_fence_row_is_unavailable(rig: Rig) -> None:
    with pytest.raises(SourceUnavailable):
        async with open_capture("host=127.0.0.1 port=9 user=x", slot="x", start=ZERO, epoch=1):
            pass
    slot = rig.create_slot()
    with pytest.raises(SourceUnavailable, match="no fence row"):
        async with open_capture(rig.stream_url, slot=slot, start=ZERO, epoch=1):
            pass


async def test_the_walsender_of_a_dead_connection_is_terminated(rig: Rig) -> None:
    slot = rig.create_slot()
    rig.fence()
    async with open_capture(rig.stream_url, slot=slot, start=ZERO, epoch=1) as dead:
        await transactions(dead, 1)
        async with open_capture(rig.stream_url, slot=slot, start=ZERO, epoch=1) as capture:
            assert len(await transactions(capture, 1)) == 1
            with pytest.raises(StreamEnded):
                await transactions(dead, 1)


async def test_a_new_epoch_in_the_stream_begins_with_its_fence_row(rig: Rig) -> None:
    slot = rig.create_slot()
    rig.fence()
    add_thread(rig, "a")
    async with open_capture(rig.stream_url, slot=slot, start=ZERO, epoch=1) as capture:
        first = await transactions(capture, 2)
    rig.fence(2)
    add_thread(rig, "b")
    async with open_capture(rig.stream_url, slot=slot, start=first[-1].position, epoch=2) as capture:
        again = await transactions(capture, 4)
        fresh = await progress_after(capture, Position(1, 2**60))
    # Capture does not start at an LSN of another epoch. Unconfirmed changes are delivered again, with their own epoch.
    assert again[:2] == first
    assert [one.position.epoch for one in again] == [1, 1, 2, 2]
    assert keys(again) == ["a", "b"]
    assert fresh.position.epoch == 2


async def test_progress_of_another_epoch_is_never_fresh(rig: Rig) -> None:
    slot = rig.create_slot()
    rig.fence()
    async with open_capture(rig.stream_url, slot=slot, start=Position(1, 2**50), epoch=2) as capture:
        items = await transactions(capture, 1)
        async with asyncio.timeout(WAIT_S):
            found: list[Item] = []
            while not any(isinstance(item, Progress) for item in found):
                found = await capture.receive()
    assert items[0].position.epoch == 1
    assert found[-1] == Progress(position=Position(1, 2**50), sent_at_us=0)


async def test_the_trace_of_a_write_arrives_with_it(rig: Rig) -> None:
    slot = rig.create_slot()
    rig.fence()
    rig.sql("BEGIN; SELECT pg_logical_emit_message(true, 'trace', '00-abc'); " + THREADS.format(key="'a'") + "; COMMIT")
    async with open_capture(rig.stream_url, slot=slot, start=ZERO, epoch=1) as capture:
        assert [one.trace for one in await transactions(capture, 2)] == [None, "00-abc"]


async def test_a_transaction_that_was_rolled_back_never_arrives(rig: Rig) -> None:
    slot = rig.create_slot()
    rig.fence()
    rig.sql("BEGIN; " + THREADS.format(key="'ghost'") + "; ROLLBACK")
    add_thread(rig, "real")
    async with open_capture(rig.stream_url, slot=slot, start=ZERO, epoch=1) as capture:
        assert keys(await transactions(capture, 2)) == ["real"]


async def test_a_body_stored_out_of_line_is_absent_when_it_did_not_change(rig: Rig) -> None:
    slot = rig.create_slot()
    rig.fence()
    # Random text, because PostgreSQL would compress other text and store it in the row.
    body = "".join(uuid.uuid4().hex for _ in range(2048))
    async with writing(rig) as writer:
        comment = await writer.post(uuid.uuid4(), body)
        await writer.connection.execute("UPDATE palaver.comments SET state = 'pending', version = 2")
    async with open_capture(rig.stream_url, slot=slot, start=ZERO, epoch=1) as capture:
        found = await transactions(capture, 4)
    added, changed = found[2].changes[0], found[3].changes[0]
    assert added.row["body"] == body
    assert changed.op == "update"
    assert changed.key == {"id": str(comment)}
    assert "body" not in changed.row
    assert changed.row["state"] == "pending"
    assert changed.row["author_url"] is None


async def test_a_large_transaction_arrives_in_parts_within_bounded_memory(rig: Rig) -> None:
    slot = rig.create_slot()
    rig.fence()
    rig.sql(
        "INSERT INTO palaver.threads (site_id, key, title, epoch)"
        " SELECT gen_random_uuid(), n::text, repeat(n::text, 50), 1 FROM generate_series(1, 20000) AS n"
    )
    async with open_capture(rig.stream_url, slot=slot, start=ZERO, epoch=1) as capture:
        await transactions(capture, 1)
        found = await transactions(capture, 1)
    assert keys(found) == [str(number) for number in range(1, 20001)]
    assert len(found) > 3
    assert max(sum(size(change) for change in one.changes) for one in found) < 2 * 1024 * 1024


def size(change: Change) -> int:
    return sum(len(value or "") for value in change.row.values())


async def test_an_invalidated_slot_is_reported_as_lost(rig: Rig) -> None:
    slot = rig.create_slot()
    rig.fence()
    server = rig.servers.ledger
    server.sql("ALTER SYSTEM SET max_slot_wal_keep_size = '1MB'")
    server.sql("SELECT pg_reload_conf()")
    try:
        for _ in range(4):
            rig.sql("SELECT pg_logical_emit_message(false, 'fill', repeat('x', 1000000))")
            rig.sql("SELECT pg_switch_wal()")
        rig.sql("CHECKPOINT")
        with pytest.raises(SlotLost, match="invalidated"):
            async with open_capture(rig.stream_url, slot=slot, start=ZERO, epoch=1):
                pass
    finally:
        server.sql("ALTER SYSTEM RESET max_slot_wal_keep_size")
        server.sql("SELECT pg_reload_conf()")


async def test_a_capture_that_is_cancelled_frees_its_slot(rig: Rig) -> None:
    slot = rig.create_slot()
    rig.fence()

    async def read_for_ever() -> None:
        async with open_capture(rig.stream_url, slot=slot, start=ZERO, epoch=1) as capture:
            while True:
                await capture.receive()

    for attempt in range(6):
        reading = asyncio.create_task(read_for_ever())
        await asyncio.sleep(0.003 * attempt**2)
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
        await until(lambda: not (rig.sql("SELECT FROM pg_replication_slots WHERE slot_name = %s AND active", slot)))

import asyncio
import contextlib
import time
import uuid
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import Any

import asyncpg
import pytest

from regions.position import Position
from sync.apply import LocatedChange, PoisonChange
from sync.change import Change, Item, Progress, SyncError, Transaction
from sync.checkpoint import (
    ApplyLocked,
    CheckpointMove,
    CheckpointMoved,
    advance_checkpoint,
    lock_apply,
    read_checkpoint,
    read_freshness,
)
from tests.sync.rig import CELL, WAIT_S, Rig, differences, running, until, writing

pytestmark = pytest.mark.integration

SITE, THREAD = str(uuid.uuid4()), str(uuid.uuid4())


def insert(table: str, **row: str | None) -> Change:
    key = row.get("id")
    return Change(table=table, op="insert", key={} if key is None else {"id": key}, row=row)


def comment(number: int, **more: str | None) -> Change:
    row: dict[str, str | None] = {
        "id": str(uuid.UUID(int=number)),
        "site_id": SITE,
        "thread_id": THREAD,
        "parent_id": None,
        "depth": "0",
        "state": "approved",
        "version": "1",
        "body": f"body {number}",
        "created_at": "2026-01-01 00:00:00+00",
    }
    return insert("comments", **{**row, **more})


def thread() -> Change:
    return insert("threads", id=THREAD, site_id=SITE, key="/", title=None, state="open", version="1")


def transaction(lsn: int, *changes: Change, epoch: int = 1, partial: bool = False) -> Transaction:
    return Transaction(position=Position(epoch, lsn), commit_ts_us=lsn, trace=None, changes=changes, partial=partial)


def move_to(lsn: int) -> CheckpointMove:
    return CheckpointMove(cell=CELL, position=Position(1, lsn), commit_ts_us=None, fresh_at_us=0)


@contextlib.asynccontextmanager
async def connected(rig: Rig) -> AsyncGenerator[Any]:
    connection = await asyncpg.connect(rig.view_url)
    try:
        yield connection
    finally:
        await connection.close()


async def test_the_checkpoint_moves_with_the_changes_and_only_forwards(rig: Rig) -> None:
    async with connected(rig) as connection:
        applier = rig.applier()
        applied = await applier.apply(connection, [transaction(10, thread()), transaction(20, comment(1))])
        assert applied.position == await read_checkpoint(connection, CELL) == Position(1, 20)
        with pytest.raises(CheckpointMoved):
            await advance_checkpoint(connection, move_to(19))
    assert rig.view_sql("SELECT count, page_version FROM threads") == [(1, 20)]
    assert rig.meter.applied == Position(1, 20)


async def test_a_batch_and_a_progress_are_one_statement_each(rig: Rig) -> None:
    statements: list[str] = []

    def note(query: Any) -> None:
        statements.append(query.query)

    async with connected(rig) as connection:
        applier = rig.applier()
        # The first batch of a connection also queries the types of the statement's arguments.
        await applier.apply(connection, [transaction(10, thread())])
        connection.add_query_logger(note)
        await applier.apply(connection, [transaction(20, comment(1), comment(2))])
        await applier.apply(connection, [Progress(position=Position(1, 30), sent_at_us=1)])
        assert not connection.is_in_transaction()
    assert len(statements) == 2, statements


@pytest.mark.parametrize(
    "batch",
    [
        [transaction(10, thread(), comment(1))],
        [transaction(10, thread(), comment(1)), transaction(15, comment(2, depth="deep"))],
        [Progress(position=Position(1, 15), sent_at_us=1)],
    ],
    ids=["rows", "poison", "progress"],
)
async def test_a_batch_leaves_no_rows_when_another_process_moved_the_checkpoint(rig: Rig, batch: list[Item]) -> None:
    async with connected(rig) as connection:
        await advance_checkpoint(connection, move_to(20))
        applier = rig.applier()
        with pytest.raises(CheckpointMoved, match="already past"):
            await applier.apply(connection, batch)
        assert await read_checkpoint(connection, CELL) == Position(1, 20)
    assert rig.view_sql("SELECT id FROM threads UNION ALL SELECT id FROM comments") == []
    assert rig.view_sql("SELECT id FROM dead_letters") == []
    assert applier.counts.batches == 0


async def test_a_cancelled_apply_terminates_its_connection_and_the_checkpoint_shows_what_was_committed(
    rig: Rig,
) -> None:
    batch = [transaction(10, thread()), transaction(20, comment(1))]
    async with connected(rig) as blocking, connected(rig) as connection:
        backend = connection.get_server_pid()
        async with blocking.transaction():
            await blocking.execute("LOCK TABLE comments")
            applying = asyncio.create_task(rig.applier().apply(connection, batch))
            await until(
                lambda: bool(
                    rig.view_sql(
                        "SELECT pid FROM pg_stat_activity WHERE pid = %s AND wait_event_type = 'Lock'", backend
                    )
                )
            )
            applying.cancel()
            with pytest.raises(asyncio.CancelledError):
                await applying
            assert connection.is_closed()
        await until(lambda: not rig.view_sql("SELECT pid FROM pg_stat_activity WHERE pid = %s", backend))
        committed = rig.view_sql("SELECT count FROM threads")
        assert await read_checkpoint(blocking, CELL) == (Position(1, 20) if committed else Position(0, 0))
        await rig.applier().apply(blocking, [*batch, transaction(30, comment(2))])
        assert await read_checkpoint(blocking, CELL) == Position(1, 30)
    assert rig.view_sql("SELECT count FROM threads") == [(2,)]


async def test_apply_drops_changes_that_are_delivered_again(rig: Rig) -> None:
    batch: list[Item] = [transaction(10, thread()), transaction(20, comment(1))]
    async with connected(rig) as connection:
        applier = rig.applier()
        await applier.apply(connection, batch)
        applied = await applier.apply(connection, [*batch, *batch, transaction(30, comment(2)), *batch])
    assert [one.position.lsn for one in applied.transactions] == [30]
    assert applier.counts.dropped == 6
    assert rig.view_sql("SELECT count FROM threads") == [(2,)]


async def test_the_same_changes_under_an_older_checkpoint_move_no_counter(rig: Rig) -> None:
    parent = str(uuid.UUID(int=1))
    batch = [
        transaction(10, thread(), comment(1)),
        transaction(20, comment(2, parent_id=parent), comment(3, parent_id=parent, state="pending")),
    ]
    async with connected(rig) as connection:
        await rig.applier().apply(connection, batch)
        before = rig.view_sql("SELECT count, page_version FROM threads")
        await connection.execute("DELETE FROM checkpoint")
        await rig.applier().apply(connection, batch)
    assert rig.view_sql("SELECT count, page_version FROM threads") == before == [(2, 20)]
    assert rig.view_sql("SELECT reply_count FROM comments WHERE id = %s", parent) == [(1,)]


async def test_progress_moves_the_checkpoint_and_its_freshness(rig: Rig) -> None:
    async with connected(rig) as connection:
        applier = rig.applier()
        await applier.apply(connection, [Progress(position=Position(1, 10), sent_at_us=5_000_000)])
        await applier.apply(connection, [Progress(position=Position(1, 10), sent_at_us=0)])
        await applier.apply(connection, [Progress(position=Position(1, 9), sent_at_us=9_000_000)])
    rows = rig.view_sql("SELECT epoch, lsn::text, extract(epoch FROM fresh_at)::float, commit_ts FROM checkpoint")
    assert rows == [(1, "0/A", 5.0, None)]


async def test_a_part_of_a_transaction_is_applied_without_moving_the_checkpoint(rig: Rig) -> None:
    async with connected(rig) as connection:
        applier = rig.applier()
        await applier.apply(connection, [transaction(10, thread())])
        part = transaction(15, comment(1), partial=True)
        await applier.apply(connection, [part])
        assert await read_checkpoint(connection, CELL) == Position(1, 10)
        await applier.apply(connection, [part, transaction(20, comment(2))])
        assert await read_checkpoint(connection, CELL) == Position(1, 20)
    assert rig.view_sql("SELECT count FROM threads") == [(2,)]


@pytest.mark.parametrize(
    ("poison", "reason"),
    [
        (comment(99, depth="deep"), "invalid input syntax"),
        (comment(99, depth=None), "null value"),
        (comment(99, created_at="yesterday-ish"), "invalid input syntax"),
        (insert("comments", body="no id"), "without its key"),
        (Change(table="comments", op="truncate", key={}, row={}), "truncate"),
        (
            insert("threads", id=SITE, site_id=SITE, key="/", title=None, state="open", version="1"),
            "duplicate key",
        ),
    ],
)
async def test_a_rejected_change_becomes_a_dead_letter_and_all_others_are_applied(
    rig: Rig, poison: Change, reason: str
) -> None:
    others = [transaction(100 + number, comment(number)) for number in range(1, 8)]
    async with connected(rig) as connection:
        applier = rig.applier()
        applied = await applier.apply(
            connection,
            [transaction(10, thread()), *others[:4], transaction(105, poison, comment(50)), *others[5:]],
        )
    assert rig.view_sql("SELECT count(*) FROM comments") == [(7,)]
    assert rig.view_sql("SELECT count FROM threads") == [(7,)]
    assert applied.position == Position(1, 107)
    assert (applier.counts.dead_letters, applier.dead_letters) == (1, 1)
    ((lsn, table, text),) = rig.view_sql("SELECT lsn::text, change ->> 'table', reason FROM dead_letters")
    assert (lsn, table) == ("0/69", poison.table)
    assert reason in str(text)


async def test_an_error_of_the_view_makes_no_dead_letter(rig: Rig) -> None:
    async with connected(rig) as connection:
        await connection.execute("ALTER TABLE comments RENAME TO elsewhere")
        with pytest.raises(asyncpg.UndefinedTableError):
            await rig.applier().apply(connection, [transaction(10, thread(), comment(1))])
        assert await connection.fetchval("SELECT count(*) FROM dead_letters") == 0
        assert await connection.fetchval("SELECT count(*) FROM checkpoint") == 0


async def test_two_applies_of_one_cell_never_run_at_once(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sync.checkpoint.LOCK_PAUSE_S", 0.001)
    async with connected(rig) as one, connected(rig) as two:
        await lock_apply(one, CELL)
        with pytest.raises(ApplyLocked):
            await lock_apply(two, CELL)
        await one.close()
        monkeypatch.undo()
        await lock_apply(two, CELL)


async def test_apply_continues_when_the_view_comes_back(rig: Rig) -> None:
    rig.create_slot()
    rig.fence()
    async with rig.replicating() as applier, writing(rig) as writer:
        thread_id = await writer.create_thread()
        for _ in range(5):
            await writer.post(thread_id)
            rig.view_sql(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE application_name = 'palaver-apply' AND datname = current_database()"
            )
        await rig.caught_up()
        assert applier.trouble is None
        assert applier.counts.restarts > 0
    assert differences(rig) == []


async def test_apply_retries_when_a_projection_fails(rig: Rig) -> None:
    rig.create_slot()
    rig.fence()
    applier = rig.applier()
    failures = 3

    class FailingProjection:
        async def project_and_advance(
            self, connection: Any, changes: Sequence[LocatedChange], move: CheckpointMove
        ) -> list[Any]:
            effects = await self.project(connection, changes)
            await advance_checkpoint(connection, move)
            return effects

        async def project(self, connection: Any, changes: Sequence[LocatedChange]) -> list[Any]:
            nonlocal failures
            del connection
            failures -= 1
            if failures > 0:
                raise OSError("the disk failed")
            if any(change.change.table == "fence" for change in changes):
                raise PoisonChange("no fences here")
            return []

    applier._projection = FailingProjection()
    async with rig.serving(), running(applier.run(rig.channel())):
        await until(lambda: applier.dead_letters > 0)
    assert applier.counts.restarts >= 2


class SlowChannel:
    """A channel that breaks at once, and whose subscription ends only when the test releases it."""

    def __init__(self) -> None:
        self.leaving = asyncio.Event()
        self.release = asyncio.Event()

    @contextlib.asynccontextmanager
    async def subscribe(self, start: Position) -> AsyncGenerator["SlowChannel"]:
        del start
        async with asyncio.TaskGroup() as group:
            task = group.create_task(self._linger())
            await asyncio.sleep(0)  # so that it runs before it is cancelled
            try:
                yield self
            finally:
                task.cancel()

    async def _linger(self) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            self.leaving.set()
            await self.release.wait()

    async def take(self) -> list[Item]:
        raise SyncError("broken")

    def acknowledge(self, position: Position) -> None:
        raise AssertionError(position)


async def test_an_error_does_not_hide_the_cancellation_of_apply(rig: Rig) -> None:
    channel = SlowChannel()
    async with asyncio.timeout(WAIT_S), asyncio.TaskGroup() as group:
        applying = group.create_task(rig.applier().run(channel))
        await channel.leaving.wait()
        applying.cancel()
        asyncio.get_running_loop().call_soon(channel.release.set)
    assert applying.cancelled()


DAY_US = 86_400_000_000
ItemAt = Callable[[int, int], Item]


def transaction_at(lsn: int, at_us: int) -> Item:
    return Transaction(position=Position(1, lsn), commit_ts_us=at_us, trace=None, changes=(), partial=False)


def progress_at(lsn: int, at_us: int) -> Item:
    return Progress(position=Position(1, lsn), sent_at_us=at_us)


def stored_freshness_us(rig: Rig) -> int:
    ((fresh_at_us,),) = rig.view_sql("SELECT (extract(epoch FROM fresh_at) * 1000000)::bigint FROM checkpoint")
    return int(str(fresh_at_us or 0))


@pytest.mark.parametrize("item", [transaction_at, progress_at])
async def test_the_view_is_fresh_as_of_now_and_no_later_when_the_clock_of_the_leader_is_ahead(
    rig: Rig, item: ItemAt
) -> None:
    async with connected(rig) as connection:
        applier = rig.applier()
        applied = await applier.apply(connection, [item(10, time.time_ns() // 1000 + DAY_US)])
        after_us = time.time_ns() // 1000
        assert after_us - DAY_US < applied.fresh_at_us <= after_us
        assert stored_freshness_us(rig) <= after_us
        # The next leader's clock is right. A commit of two hours ago does not make the view fresher.
        applied = await applier.apply(connection, [item(20, after_us - DAY_US // 12)])
        assert applied.fresh_at_us <= after_us
        now_us = time.time_ns() // 1000
        applied = await applier.apply(connection, [item(30, now_us)])
        assert applied.fresh_at_us == stored_freshness_us(rig) == now_us


async def test_a_freshness_in_the_future_is_unknown_after_a_start_and_is_replaced_by_the_next_item(rig: Rig) -> None:
    async with connected(rig) as connection:
        await advance_checkpoint(connection, move_to(10))
        await connection.execute("UPDATE checkpoint SET fresh_at = clock_timestamp() + interval '1 day'")
        assert await read_freshness(connection, CELL) == 0
        an_hour_ago_us = time.time_ns() // 1000 - DAY_US // 24
        applied = await rig.applier().apply(connection, [transaction_at(20, an_hour_ago_us)])
        assert (
            applied.fresh_at_us == an_hour_ago_us == stored_freshness_us(rig) == await read_freshness(connection, CELL)
        )


async def test_the_view_stores_no_freshness_in_the_future(rig: Rig) -> None:
    async with connected(rig) as connection:
        for lsn in (10, 20):  # the first and a later move
            ahead_us = time.time_ns() // 1000 + DAY_US
            move = CheckpointMove(cell=CELL, position=Position(1, lsn), commit_ts_us=None, fresh_at_us=ahead_us)
            await advance_checkpoint(connection, move)
            assert ahead_us - 2 * DAY_US < stored_freshness_us(rig) <= time.time_ns() // 1000


async def test_a_checkpoint_move_without_freshness_keeps_the_known_freshness(rig: Rig) -> None:
    async with connected(rig) as connection:
        await advance_checkpoint(connection, move_to(10))
        assert stored_freshness_us(rig) == 0
        move = CheckpointMove(cell=CELL, position=Position(1, 10), commit_ts_us=None, fresh_at_us=5_000_000)
        await advance_checkpoint(connection, move)
        await advance_checkpoint(connection, move_to(10))
        assert stored_freshness_us(rig) == 5_000_000

"""Tests the Merkle tree of the ledger: exact at the position of a snapshot, while writers run, and by marks alone."""

import asyncio
import contextlib
import random
import uuid
from collections.abc import AsyncGenerator, Sequence
from typing import Any
from unittest.mock import Mock

import asyncpg
import pytest

from regions.position import Position
from services.tables import TABLES
from sync.change import Change
from sync.exported_snapshot import open_exported_snapshot
from sync.ledger_tree import LedgerTree
from sync.merkle.errors import NotComparable
from sync.merkle.set_hash import EMPTY
from sync.walsender import SourceUnavailable, connect
from tests.sync.rig import INSERT_COMMENT, WAIT_S, Rig, until

pytestmark = pytest.mark.integration

SECRET = bytes(range(32))


def ledger_tree() -> LedgerTree:
    return LedgerTree(tables=TABLES, secret=SECRET)


def updated(*numbers: int, op: Any = "update") -> list[Change]:
    keys = [{"id": str(uuid.UUID(int=number))} for number in numbers]
    return [Change(table="comments", op=op, key=key, row=key if op != "delete" else {}) for key in keys]


def write(rig: Rig, *numbers: int) -> None:
    for number in numbers:
        rig.sql(
            "INSERT INTO palaver.comments (id, site_id, thread_id, depth, body, epoch)"
            f" VALUES ('{uuid.UUID(int=number)}', '{uuid.UUID(int=1)}', '{uuid.UUID(int=1)}', 0, 'body', 1)"
        )


async def tree_of(rig: Rig, tree: LedgerTree, *, scrub: bool = False, identity: object = 1) -> Any:
    async with open_exported_snapshot(rig.stream_url) as snapshot:
        return await tree.at(snapshot.connection, Position(1, snapshot.lsn), identity=identity, scrub=scrub)


async def test_a_tree_that_was_kept_by_marks_equals_one_that_is_read_anew(rig: Rig) -> None:
    write(rig, *range(1, 60))
    kept = ledger_tree()
    assert (await tree_of(rig, kept)).tree.root.count == 59
    rig.sql("UPDATE palaver.comments SET body = 'edited'")
    rig.sql(f"DELETE FROM palaver.comments WHERE id = '{uuid.UUID(int=3)}'")
    write(rig, 60, 61)
    kept.mark([*updated(*range(1, 60)), *updated(3, op="delete"), *updated(60, 61, op="insert")], Position(1, 1))
    now = await tree_of(rig, kept)
    assert kept.counts.builds == 1
    assert now.tree == (await tree_of(rig, ledger_tree())).tree
    assert kept.marks == 0
    leaf = 7
    assert sum(kept.rows_of([leaf], 1)[leaf].values(), EMPTY) == now.tree.leaf(leaf)


async def test_a_row_that_was_not_marked_is_not_read(rig: Rig) -> None:
    write(rig, 1, 2)
    kept = ledger_tree()
    await tree_of(rig, kept)
    rig.sql("UPDATE palaver.comments SET body = 'edited'")
    kept.mark(updated(1), Position(1, 1))
    assert (await tree_of(rig, kept)).tree != (await tree_of(rig, ledger_tree())).tree


async def test_a_mark_after_the_position_stays(rig: Rig) -> None:
    write(rig, 1)
    kept = ledger_tree()
    async with open_exported_snapshot(rig.stream_url) as snapshot:
        rig.sql("UPDATE palaver.comments SET body = 'later'")
        kept.mark(updated(1), Position(1, snapshot.lsn + 1))
        await kept.at(snapshot.connection, Position(1, snapshot.lsn), identity=1)
        await kept.at(snapshot.connection, Position(1, snapshot.lsn), identity=1)
    assert kept.marks == 1
    assert (await tree_of(rig, kept)).tree == (await tree_of(rig, ledger_tree())).tree


async def test_rows_are_read_again_when_wal_may_have_been_discarded(rig: Rig) -> None:
    write(rig, 1)
    kept = ledger_tree()
    await tree_of(rig, kept)
    await tree_of(rig, kept, identity=2)
    assert kept.counts.builds == 2


async def test_a_scrub_reports_rows_in_memory_that_are_wrong(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    write(rig, *range(1, 30))
    kept = ledger_tree()
    await tree_of(rig, kept)
    assert (await tree_of(rig, kept, scrub=True)).tree.root.count == 29
    assert kept.counts.wrong_rows == 0
    rig.sql(f"UPDATE palaver.comments SET body = 'unmarked' WHERE id = '{uuid.UUID(int=5)}'")
    scrubbed = await tree_of(rig, kept, scrub=True)
    assert kept.counts.wrong_rows == 1
    assert "rows in memory that were wrong" in caplog.text
    assert scrubbed.tree == (await tree_of(rig, ledger_tree())).tree


async def test_a_truncated_table_and_too_many_marks_forget_the_rows(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    write(rig, 1)
    kept = ledger_tree()
    await tree_of(rig, kept)
    kept.mark([Change(table="comments", op="truncate", key={}, row={})], Position(9, 1))
    assert kept.rows == 0
    with pytest.raises(NotComparable):
        await tree_of(rig, kept)
    kept = ledger_tree()
    await tree_of(rig, kept)
    monkeypatch.setattr("sync.ledger_tree.MARKS_MAX", 2)
    kept.mark(updated(1, 2), Position(1, 1))
    assert (kept.rows, kept.marks) == (1, 2)
    kept.mark(updated(3), Position(1, 1))
    assert (kept.rows, kept.marks) == (0, 0)


async def test_images_are_those_of_the_snapshot(rig: Rig) -> None:
    write(rig, 1, 2)
    kept = ledger_tree()
    async with open_exported_snapshot(rig.stream_url) as snapshot:
        rig.sql("UPDATE palaver.comments SET body = 'later'")
        now = await kept.at(snapshot.connection, Position(1, snapshot.lsn), identity=1)
        hashes = [one for rows in kept.rows_of(range(16), now.tree.depth).values() for one in rows]
        images = await kept.images(snapshot.connection, hashes)
    assert sorted((table, image["id"], image["body"]) for table, image in images) == [
        ("comments", str(uuid.UUID(int=1)), "body"),
        ("comments", str(uuid.UUID(int=2)), "body"),
    ]


@contextlib.asynccontextmanager
async def writers(rig: Rig, commits: list[int]) -> AsyncGenerator[None]:
    """Four clients that insert, update and delete."""

    async def run(first: int) -> None:
        connection = await asyncpg.connect(rig.ledger_url)
        numbers: list[int] = []
        try:
            while True:
                number = first + 4 * len(numbers)
                async with connection.transaction():
                    await connection.execute(
                        INSERT_COMMENT, uuid.UUID(int=number), uuid.UUID(int=1), uuid.UUID(int=1), None, 0, "b", None
                    )
                    await connection.execute(
                        "UPDATE palaver.comments SET version = version + 1 WHERE id = $1",
                        uuid.UUID(int=random.choice(numbers or [number])),  # noqa: S311 - a choice of rows
                    )
                numbers.append(number)
                commits.append(number)
        finally:
            connection.terminate()

    tasks = [asyncio.create_task(run(1000 + one)) for one in range(4)]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def test_a_snapshot_has_exactly_the_transactions_up_to_its_position(rig: Rig) -> None:
    rig.sql("CREATE TABLE ends (id uuid, lsn pg_lsn)")
    slot = f"exact_{uuid.uuid4().hex[:8]}"
    rig.sql(f"SELECT pg_create_logical_replication_slot('{slot}', 'pgoutput')")
    commits: list[int] = []
    seen: list[tuple[int, int]] = []
    try:
        async with asyncio.timeout(WAIT_S), writers(rig, commits):
            for _ in range(5):
                known = len(commits)
                await until(lambda: len(commits) >= known + 8)  # noqa: B023 - awaited in this round
                async with open_exported_snapshot(rig.stream_url) as snapshot:
                    cursor = await snapshot.connection.execute("SELECT count(*) FROM palaver.comments")
                    (count,) = await cursor.fetchone() or (0,)
                    seen.append((snapshot.lsn, count))
        changes = rig.sql(
            f"SELECT data FROM pg_logical_slot_get_binary_changes('{slot}', NULL, NULL,"
            " 'proto_version', '1', 'publication_names', 'palaver')"
        )
    finally:
        rig.sql(f"SELECT pg_drop_replication_slot('{slot}')")
    for lsn, count in seen:
        assert count == committed_before(changes, lsn)
    assert seen[-1][1] > seen[0][1]


def committed_before(changes: Sequence[Any], lsn: int) -> int:
    """Number of inserted rows in the transactions whose commit ends at ``lsn`` or before (pgoutput, version 1)."""
    inserted = total = 0
    for (message,) in changes:
        match message[:1]:
            case b"B":
                inserted = 0
            case b"I":
                inserted += 1
            case b"C" if int.from_bytes(message[10:18], "big") <= lsn:
                total += inserted
            case _:
                pass
    return total


async def test_a_snapshot_leaves_no_slot_and_a_standby_or_a_stopped_ledger_is_refused(rig: Rig) -> None:
    before = rig.sql("SELECT count(*) FROM pg_replication_slots")
    async with open_exported_snapshot(rig.stream_url):
        assert rig.sql("SELECT count(*) FROM pg_replication_slots") == before
    with pytest.raises(SourceUnavailable):
        async with open_exported_snapshot("host=127.0.0.1 port=9 dbname=palaver"):
            raise AssertionError("there is no server")


async def test_a_primary_is_not_read_in_advance(rig: Rig) -> None:
    write(rig, 1)
    kept = ledger_tree()
    async with await connect(rig.stream_url, replication=False) as connection:
        assert not await kept.warm(connection, 1)
    assert kept.rows == 0


async def test_rows_that_were_read_on_a_standby_serve_after_its_promotion(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The ledger plays its own standby: the position of the reading is older than what the snapshot has."""
    write(rig, *range(1, 30))
    kept = ledger_tree()
    async with await connect(rig.stream_url, replication=False) as connection:
        ((started,),) = rig.sql("SELECT pg_postmaster_start_time()::text")
        ((before,),) = rig.sql("SELECT pg_current_wal_flush_lsn() - '0/0'")
        write(rig, 30)
        kept.mark(updated(30, op="insert"), Position(1, int(str(before)) + 1))
        read = Mock(return_value=f"SELECT ('0/0'::pg_lsn + {before})::text, '{started}'")
        monkeypatch.setattr("sync.ledger_tree.load_sql", read)
        assert await kept.warm(connection, 1)
    assert (kept.rows, kept.marks) == (30, 1)
    rig.sql("UPDATE palaver.comments SET body = 'edited' WHERE id = %s", uuid.UUID(int=7))
    kept.mark(updated(7), Position(1, int(str(before)) + 2))
    now = await tree_of(rig, kept, identity=(started,))
    assert kept.counts.builds == 1
    assert now.tree == (await tree_of(rig, ledger_tree())).tree


async def test_a_mark_that_a_standby_has_not_replayed_stays_after_a_change_of_epoch(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(rig, 1)
    kept = ledger_tree()
    kept.mark(updated(1), Position(5, 1000))
    monkeypatch.setattr("sync.ledger_tree.load_sql", Mock(return_value="SELECT '0/384', 'started'"))  # LSN 900
    async with await connect(rig.stream_url, replication=False) as connection:
        assert await kept.warm(connection, 6)
    assert kept.marks == 1


async def test_marks_that_are_forgotten_during_a_read_make_it_fail(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    write(rig, 1)
    kept = ledger_tree()
    read_all = kept._read_all

    async def forgetting(*arguments: Any) -> None:
        kept.resume(Position(9, 1))
        await read_all(*arguments)

    monkeypatch.setattr(kept, "_read_all", forgetting)
    with pytest.raises(NotComparable, match="forgotten"):
        await tree_of(rig, kept)
    assert kept.rows == 0
    with pytest.raises(NotComparable):
        kept.rows_of([1], 1)

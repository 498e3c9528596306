"""Tests the Merkle tree of a view: what its triggers write, how the tree in memory follows, and what a scrub corrects.

Each test compares the tree with one that Python computes from the rows, with `sync.merkle` and its own texts.
"""

import contextlib
import uuid
from collections.abc import AsyncGenerator
from typing import Any

import asyncpg
import pytest

from regions.position import Position
from services.replicator.projection import ViewProjection
from services.tables import TABLES
from sync.apply import LocatedChange
from sync.change import Change
from sync.checkpoint import CheckpointMove
from sync.merkle.errors import PositionInsideBatch
from sync.merkle.rewind import rewind_tree
from sync.merkle.row_hash import hash_key, hash_row
from sync.merkle.set_hash import SetHash
from sync.merkle.tree import Tree
from sync.view_tree import TreeNotReady, ViewTree
from tests.sync.rig import CELL, Rig
from tests.sync.test_apply import comment, thread

pytestmark = pytest.mark.integration

SECRET = bytes(range(32))

Connection = Any


@contextlib.asynccontextmanager
async def connected(rig: Rig) -> AsyncGenerator[Connection]:
    connection = await asyncpg.connect(rig.view_url)
    try:
        yield connection
    finally:
        await connection.close()


@contextlib.asynccontextmanager
async def prepared(rig: Rig) -> AsyncGenerator[tuple[Connection, ViewTree]]:
    tree = ViewTree(cell=CELL, tables=TABLES, secret=SECRET)
    async with connected(rig) as connection:
        await tree.prepare(connection)
        yield connection, tree


async def apply(connection: Connection, lsn: int, *changes: Change, until: int | None = None) -> None:
    """Apply a batch from ``lsn`` to ``until``."""
    end = Position(1, until or lsn)
    located = [LocatedChange(position=Position(1, lsn), change=change) for change in changes]
    located[-1] = LocatedChange(position=end, change=located[-1].change)
    move = CheckpointMove(cell=CELL, position=end, commit_ts_us=None, fresh_at_us=0)
    await ViewProjection(TABLES).project_and_advance(connection, located, move)


def key_of(number: int) -> str:
    return f"comments\x1f{uuid.UUID(int=number)}"


async def expected(connection: Connection, depth: int) -> Tree:
    """The tree of the rows, computed in Python from texts that the test makes itself."""
    tree = Tree.build(depth, [])
    for table in TABLES:
        kept = [column for column in table.columns if column.kept]
        found = await connection.fetch(
            f"SELECT {', '.join(text_of(one.name, one.type) for one in kept)} FROM {table.name}"
        )
        for row in found:
            values = dict(zip([one.name for one in kept], row, strict=True))
            key = "\x1f".join([table.name, *(values[name] for name in table.key)])
            canonical = await connection.fetchval("SELECT $1::text[]::text", list(values.values()))
            tree.change(hash_key(SECRET, key), hash_row(SECRET, key, canonical))
    return tree


def text_of(name: str, type_name: str) -> str:
    return f"encode(timestamptz_send({name}), 'hex')" if type_name.startswith("timestamp") else f"{name}::text"


async def assert_exact(connection: Connection, tree: ViewTree) -> Tree:
    now = (await tree.read(connection)).tree
    assert now == await expected(connection, now.depth)
    return now


async def test_the_tree_follows_apply_and_changes_by_hand(rig: Rig) -> None:
    async with prepared(rig) as (connection, tree):
        assert (await assert_exact(connection, tree)).root.count == 0
        await apply(connection, 100, thread(), comment(1), comment(2, parent_id=str(uuid.UUID(int=1)), depth="1"))
        assert (await assert_exact(connection, tree)).root.count == 3
        await apply(connection, 101, comment(1, version="2", body="edited"), comment(3))
        await assert_exact(connection, tree)
        await connection.execute("UPDATE comments SET body = body || ' by hand' WHERE id = $1", uuid.UUID(int=2))
        await assert_exact(connection, tree)
        await connection.execute("UPDATE comments SET id = $2 WHERE id = $1", uuid.UUID(int=3), uuid.UUID(int=4))
        await assert_exact(connection, tree)
        await connection.execute("DELETE FROM comments")
        await connection.execute("INSERT INTO votes VALUES ($1, 'u', $1, $1, 1, 1)", uuid.UUID(int=9))
        assert (await assert_exact(connection, tree)).root.count == 2


async def test_a_process_that_starts_reads_the_same_tree(rig: Rig) -> None:
    async with prepared(rig) as (connection, tree):
        await apply(connection, 100, thread(), *[comment(number) for number in range(1, 40)])
        await tree.read(connection)
        again = ViewTree(cell=CELL, tables=TABLES, secret=SECRET)
        await again.prepare(connection)
        await assert_exact(connection, again)


async def test_a_counter_or_an_equal_value_is_no_change_of_the_tree(rig: Rig) -> None:
    async with prepared(rig) as (connection, tree):
        await apply(connection, 100, thread(), comment(1))
        await tree.read(connection)
        before = await connection.fetchval("SELECT count(*) FROM merkle_changes")
        await connection.execute("UPDATE comments SET reply_count = 7, up = 3, body = body")
        await connection.execute("UPDATE threads SET count = 7, page_version = 1000")
        assert await connection.fetchval("SELECT count(*) FROM merkle_changes") == before


async def test_changes_of_the_stream_are_taken_back_and_changes_by_hand_stay(rig: Rig) -> None:
    async with prepared(rig) as (connection, tree):
        await apply(connection, 100, thread(), comment(1))
        first = (await tree.read(connection)).tree.copy()
        await apply(connection, 101, comment(1, version="2", body="edited"))
        await apply(connection, 102, comment(2), comment(3))
        await connection.execute("DELETE FROM threads")
        now = await tree.read(connection)
        rewound = rewind_tree(now, tree.recent, Position(1, 100)).tree
        assert rewound != first
        async with connection.transaction():
            await connection.execute("DELETE FROM comments WHERE id <> $1", uuid.UUID(int=1))
            await connection.execute("UPDATE comments SET body = 'body 1', version = 1")
            assert await expected(connection, rewound.depth) == rewound


async def test_a_batch_with_transactions_on_both_sides_of_a_position_is_not_taken_apart(rig: Rig) -> None:
    async with prepared(rig) as (connection, tree):
        await tree.read(connection)
        await apply(connection, 100, thread(), comment(1), until=105)
        now = await tree.read(connection)
        with pytest.raises(PositionInsideBatch):
            rewind_tree(now, tree.recent, Position(1, 102))


async def test_a_change_that_commits_after_a_later_one_is_read(rig: Rig) -> None:
    async with prepared(rig) as (connection, tree), connected(rig) as slow:
        await apply(connection, 100, thread(), comment(1))
        await tree.read(connection)
        async with slow.transaction():
            await slow.execute("UPDATE comments SET body = 'slow'")
            await apply(connection, 101, comment(2))
            await tree.read(connection)
            await apply(connection, 102, comment(3))
            await assert_exact(connection, tree)
        await assert_exact(connection, tree)
        await assert_exact(connection, tree)


async def test_a_change_that_is_rolled_back_leaves_nothing(rig: Rig) -> None:
    async with prepared(rig) as (connection, tree):
        await apply(connection, 100, thread(), comment(1))
        transaction = connection.transaction()
        await transaction.start()
        await connection.execute("DELETE FROM comments")
        await transaction.rollback()
        assert (await assert_exact(connection, tree)).root.count == 2


async def test_a_truncated_table_ends_the_tree_until_the_leaves_are_computed_again(rig: Rig) -> None:
    async with prepared(rig) as (connection, tree):
        await apply(connection, 100, thread(), comment(1))
        await connection.execute("TRUNCATE comments")
        with pytest.raises(TreeNotReady):
            await tree.read(connection)
        await tree.prepare(connection)
        assert (await assert_exact(connection, tree)).root.count == 1


async def test_another_secret_replaces_functions_indexes_and_leaves(rig: Rig) -> None:
    async with prepared(rig) as (connection, tree):
        await apply(connection, 100, thread(), comment(1))
        other = ViewTree(cell=CELL, tables=TABLES, secret=bytes(32))
        await other.prepare(connection)
        one = (await other.read(connection)).tree
        with pytest.raises(TreeNotReady):
            await tree.read(connection)
        key = f"threads\x1f{await connection.fetchval('SELECT id::text FROM threads')}"
        rows = await other.rows_of(connection, range(16), 1)
        assert hash_key(bytes(32), key) in {row.key_hash for row in rows}
        assert sum((SetHash(1, row.h1, row.h2) for row in rows), SetHash(0, 0, 0)) == one.root


async def test_changes_that_are_folded_into_the_leaves_change_no_sum(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sync.view_tree.CHANGES_MAX", 1)
    async with prepared(rig) as (connection, tree), connected(rig) as slow:
        await apply(connection, 100, thread(), *[comment(number) for number in range(1, 200)])
        await tree.read(connection)
        async with slow.transaction():
            await slow.execute("UPDATE comments SET body = 'slow' WHERE id = $1", uuid.UUID(int=7))
            await apply(connection, 101, comment(200))
            await tree.read(connection)
            assert await tree.fold(connection) > 0
        await assert_exact(connection, tree)
        again = ViewTree(cell=CELL, tables=TABLES, secret=SECRET)
        await assert_exact(connection, again)
        assert (await connection.fetchval("SELECT count(*) FROM merkle_changes")) < 200


async def test_a_scrub_finds_what_no_trigger_saw(rig: Rig) -> None:
    async with prepared(rig) as (connection, tree):
        await apply(connection, 100, thread(), *[comment(number) for number in range(1, 50)])
        assert await tree.scrub(connection) == []
        await connection.execute("ALTER TABLE comments DISABLE TRIGGER USER")
        await connection.execute("UPDATE comments SET body = 'unseen' WHERE id = $1", uuid.UUID(int=7))
        await connection.execute("ALTER TABLE comments ENABLE TRIGGER USER")
        await connection.execute("DELETE FROM merkle_leaves WHERE leaf = 3")
        now = (await tree.read(connection)).tree
        assert now != await expected(connection, now.depth)
        wrong = await tree.scrub(connection)
        assert len(wrong) in {1, 2}
        await assert_exact(connection, tree)
        assert await tree.scrub(connection) == []


async def test_a_tree_grows_with_its_tables_at_a_scrub(rig: Rig) -> None:
    async with prepared(rig) as (connection, tree):
        await apply(connection, 100, thread(), *[comment(number) for number in range(1, 300)])
        assert (await assert_exact(connection, tree)).depth == 1
        assert await tree.scrub(connection) == []
        assert (await assert_exact(connection, tree)).depth == 2


async def test_the_rows_of_leaves_are_found_by_an_index(rig: Rig) -> None:
    async with prepared(rig) as (connection, tree):
        await apply(connection, 100, thread(), *[comment(number) for number in range(1, 300)])
        now = (await tree.read(connection)).tree
        rows = await tree.rows_of(connection, [3, 5], now.depth)
        found = SetHash(0, 0, 0)
        for row in rows:
            found += SetHash(1, row.h1, row.h2)
        assert found == now.leaf(3) + now.leaf(5)
        assert {row.table for row in rows} <= {"comments", "threads"}

"""Tests how votes and their counts arrive in the view, with real PostgreSQL on both sides."""

import itertools
import uuid
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import Any

import asyncpg
import pytest

from regions.position import Position
from services import ledger
from services.replicator.projection import ViewProjection
from services.tables import COMMENTS, SITES, TABLES, THREADS
from sync import apply
from sync.apply import LocatedChange
from sync.change import Change
from sync.registry import Registry
from tests.sync.rig import Rig, differences, until, writing

pytestmark = pytest.mark.integration

SITE, THREAD, COMMENT = (str(uuid.UUID(int=number)) for number in (1, 2, 3))


def vote(user: str, value: int, version: int) -> Change:
    key = {"comment_id": COMMENT, "user_id": user}
    row = {**key, "site_id": SITE, "thread_id": THREAD, "value": str(value), "version": str(version)}
    return Change(table="votes", op="update" if version > 1 else "insert", key=key, row=row)


def gone(user: str) -> Change:
    return Change(table="votes", op="delete", key={"comment_id": COMMENT, "user_id": user}, row={})


def comment(state: str = "approved", version: int = 1) -> Change:
    row: dict[str, Any] = {
        "id": COMMENT, "site_id": SITE, "thread_id": THREAD, "parent_id": None, "depth": "0", "author_id": None,
        "author_name": None, "author_url": None, "body": "b", "state": state, "version": str(version),
        "created_at": "2026-01-01 00:00:00+00", "edited_at": None, "deleted_at": None,
    }  # fmt: skip
    return Change(table="comments", op="insert" if version == 1 else "update", key={"id": COMMENT}, row=row)


@dataclass(kw_only=True)
class Projected:
    """A view with one thread that a test writes to directly, in any order."""

    rig: Rig
    connection: "asyncpg.Connection[asyncpg.Record]"
    lsn: int = 100

    async def write(self, *changes: Change) -> Sequence[int]:
        """Project one batch; return the versions of the pages that are new by it."""
        located: list[LocatedChange] = []
        for change in changes:
            self.lsn += 1
            located.append(LocatedChange(position=Position(1, self.lsn), change=change))
        return [page.version for page in await ViewProjection(TABLES).project(self.connection, located)]

    def counts(self) -> list[tuple[object, ...]]:
        return self.rig.view_sql("SELECT up, down, score FROM comments")

    def rows(self) -> list[tuple[object, ...]]:
        return self.rig.view_sql("SELECT user_id, value, version FROM votes ORDER BY user_id")


@pytest.fixture
async def projected(rig: Rig) -> AsyncGenerator[Projected]:
    rig.view_sql("INSERT INTO threads (id, site_id, key, state, version) VALUES (%s, %s, '/', 'open', 1)", THREAD, SITE)
    connection = await asyncpg.connect(rig.view_url)
    yield Projected(rig=rig, connection=connection)
    await connection.close()


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))), ids=str)
async def test_the_images_of_a_vote_in_any_order_give_the_newest_one(
    projected: Projected, order: tuple[int, ...]
) -> None:
    images = [vote("ann", 1, 1), vote("ann", -1, 2), vote("ann", 0, 3)]
    await projected.write(comment(), vote("bob", 1, 1))
    for number in order:
        await projected.write(images[number])
    assert projected.rows() == [("ann", 0, 3), ("bob", 1, 1)]
    assert projected.counts() == [(1, 0, 1)]


async def test_a_repeated_vote_changes_neither_counts_nor_pages(projected: Projected) -> None:
    await projected.write(comment())
    assert len(await projected.write(vote("ann", 1, 1), vote("bob", -1, 1))) == 1
    for _ in range(2):
        assert await projected.write(vote("ann", 1, 1)) == []
        assert await projected.write(vote("bob", -1, 1), vote("ann", 1, 1)) == []
    assert projected.counts() == [(1, 1, 0)]


async def test_a_vote_that_is_there_before_its_comment_is_counted_once(projected: Projected) -> None:
    await projected.write(vote("ann", 1, 1), vote("bob", -1, 1), vote("eve", 0, 1))
    assert projected.rows() == [("ann", 1, 1), ("bob", -1, 1), ("eve", 0, 1)]
    # One batch with the comment, a change of one vote, and a vote that is new.
    await projected.write(vote("bob", 1, 2), comment(), vote("fay", 1, 1))
    assert projected.counts() == [(3, 0, 3)]
    await projected.write(comment(), vote("ann", 1, 1))
    assert projected.counts() == [(3, 0, 3)]


async def test_a_vote_moves_the_page_to_the_position_of_its_change(projected: Projected) -> None:
    await projected.write(comment())
    assert await projected.write(vote("ann", 1, 1)) == [projected.lsn]
    assert await projected.write(vote("bob", 1, 1), vote("ann", -1, 2)) == [projected.lsn]
    assert await projected.write(gone("ann")) == [projected.lsn]
    assert await projected.write(gone("ann")) == []
    assert projected.counts() == [(1, 0, 1)]
    assert await projected.write(gone("bob")) == [projected.lsn]
    assert projected.counts() == [(0, 0, 0)]


async def test_a_deleted_comment_takes_its_votes_with_it(projected: Projected) -> None:
    """A snapshot contains the deleted comment, and no deletions of its votes."""
    await projected.write(comment(), vote("ann", 1, 1), vote("bob", -1, 1))
    await projected.write(comment("pending", 2))
    assert projected.counts() == [(1, 1, 0)]
    await projected.write(comment("deleted", 3))
    assert (projected.rows(), projected.counts()) == ([], [(0, 0, 0)])
    # The stream continues from the position of the slot, before the snapshot: it has the votes, then their deletion.
    await projected.write(vote("ann", 1, 1))
    await projected.write(comment("deleted", 3), gone("ann"), gone("bob"))
    assert (projected.rows(), projected.counts()) == ([], [(0, 0, 0)])


async def test_an_older_image_of_a_deleted_comment_deletes_no_votes(projected: Projected) -> None:
    await projected.write(comment("approved", 3), vote("ann", 1, 1))
    await projected.write(comment("deleted", 2))
    assert projected.counts() == [(1, 0, 1)]


async def test_votes_of_the_ledger_arrive_with_their_counts(rig: Rig) -> None:
    rig.create_slot()
    rig.fence()
    async with writing(rig) as writer:
        thread = await writer.create_thread()
        first, second = await writer.post(thread), await writer.post(thread)
        async with rig.replicating() as applier:
            for number in range(20):
                await writer.vote(first, f"user-{number}", 1 if number % 3 else -1)
            await writer.vote(second, "user-0", 1)
            await rig.caught_up()
            assert differences(rig) == []
            for number in range(10):
                await writer.vote(first, f"user-{number}", number % 3 - 1)
            await rig.caught_up()
            assert differences(rig) == []
            await writer.connection.execute("INSERT INTO palaver.site_keys VALUES ($1, $2, 1)", b"k" * 32, writer.site)
            call = ledger.statement("delete_comment")
            row = await writer.connection.fetchrow(call, 1, writer.site, b"k" * 32, first, None, None)
            assert row is not None
            assert row["outcome"] == "deleted"
            await rig.caught_up()
            assert (applier.dead_letters, applier.counts.restarts) == (0, 0)
    assert differences(rig) == []
    assert rig.view_sql("SELECT comment_id, user_id FROM votes") == [(second, "user-0")]


async def test_a_snapshot_contains_votes_and_erases_those_of_a_deleted_comment(rig: Rig) -> None:
    slot = rig.create_slot()
    rig.fence()
    async with writing(rig) as writer:
        thread = await writer.create_thread()
        kept, deleted = await writer.post(thread), await writer.post(thread)
        await writer.vote(deleted, "ann", 1)
        async with rig.replicating():
            await rig.caught_up()
        assert rig.view_sql("SELECT comment_id FROM votes") == [(deleted,)]
        await writer.vote(kept, "ann", 1)
        await writer.vote(kept, "bob", -1)
        rig.sql("DELETE FROM palaver.votes WHERE comment_id = %s", deleted)
        rig.sql("UPDATE palaver.comments SET state = 'deleted', body = NULL, version = 2 WHERE id = %s", deleted)
        rig.sql("SELECT pg_replication_slot_advance(%s, pg_current_wal_flush_lsn())", slot)
        async with rig.replicating():
            await rig.caught_up()
    assert differences(rig) == []
    assert rig.view_sql("SELECT up, down FROM comments WHERE id = %s", kept) == [(1, 1)]


async def test_a_replicator_that_is_updated_before_the_ledger_takes_a_snapshot_without_votes(rig: Rig) -> None:
    rig.sql("DROP TABLE palaver.votes; DELETE FROM palaver.table_schemas WHERE name = 'votes'")
    async with writing(rig) as writer:
        comment = await writer.post(await writer.create_thread())
        rig.fence()
        async with rig.replicating() as applier:
            await rig.caught_up()
            assert applier.trouble is None
    assert rig.view_sql("SELECT id, up, down FROM comments") == [(comment, 0, 0)]


async def test_a_replicator_without_votes_stops_before_their_announcement_and_its_update_loses_none(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(apply, "SCHEMA_UNKNOWN_PAUSE_S", 0.05)
    # The ledger of the previous release: it neither publishes nor announces votes.
    rig.sql(
        "ALTER PUBLICATION palaver DROP TABLE palaver.votes; DELETE FROM palaver.table_schemas WHERE name = 'votes'"
    )
    rig.tables = Registry(SITES, THREADS, COMMENTS)
    rig.create_slot()
    rig.fence()
    async with writing(rig) as writer:
        thread = await writer.create_thread()
        async with rig.replicating() as applier:
            first = await writer.post(thread)
            await rig.caught_up()
            # What the migration of the ledger does, in one transaction.
            async with writer.connection.transaction():
                await writer.connection.execute("ALTER PUBLICATION palaver ADD TABLE palaver.votes")
                await writer.connection.execute("INSERT INTO palaver.table_schemas VALUES ('votes', 1)")
            await writer.vote(first, "ann", 1)
            second = await writer.post(thread)
            await until(lambda: applier.counts.restarts >= 2)
            assert "announces a table that this version lacks: votes" in str(applier.trouble)
            assert rig.view_sql("SELECT id FROM comments") == [(first,)]
        rig.tables = TABLES
        async with rig.replicating() as applier:
            await rig.caught_up()
            assert (applier.trouble, applier.dead_letters) == (None, 0)
            await writer.vote(second, "ann", -1)
            await rig.caught_up()
    assert differences(rig) == []
    assert rig.view_sql("SELECT count(*) FROM votes") == [(2,)]
    assert rig.view_sql("SELECT count(*) FROM dead_letters") == [(0,)]

"""Tests the procedure of votes on a real PostgreSQL, as the role of the write API."""

import asyncio
import uuid
from dataclasses import dataclass

import asyncpg
import pytest

from services import ledger
from tests import servers
from tests.services.ledger.test_procedures import KEY_HASH, Connection, Post, site
from tests.waiting import until

__all__ = ["site"]

pytestmark = pytest.mark.integration


@dataclass(frozen=True)
class Voting:
    """Votes on one comment."""

    server: servers.PostgresServer
    connection: asyncpg.Connection
    site: uuid.UUID
    comment: uuid.UUID

    async def vote(self, user: str, value: int, connection: Connection | None = None) -> asyncpg.Record:
        row = await (connection or self.connection).fetchrow(
            ledger.statement("set_vote"), 1, self.site, KEY_HASH, self.comment, user, value, None
        )
        assert row is not None
        return row

    async def delete(self, connection: Connection | None = None) -> str:
        row = await (connection or self.connection).fetchrow(
            ledger.statement("delete_comment"), 1, self.site, KEY_HASH, self.comment, None, None
        )
        assert row is not None
        return str(row["outcome"])

    def rows(self) -> list[tuple[object, ...]]:
        found = "SELECT user_id, value, version FROM palaver.votes WHERE comment_id = %s ORDER BY user_id"
        return self.server.sql(found, self.comment)

    def waiting(self) -> int:
        return int(self.server.sql("SELECT count(*) FROM pg_locks WHERE NOT granted")[0][0])


@pytest.fixture
async def voting(
    writer: asyncpg.Connection,
    site: uuid.UUID,
    ledger_server: servers.PostgresServer,
) -> Voting:
    comment = (await Post(site, thread=str(uuid.uuid4())).send(writer))["comment_id"]
    return Voting(ledger_server, writer, site, comment)


async def test_a_vote_is_set_changed_and_withdrawn_and_a_repetition_changes_no_row(voting: Voting) -> None:
    answers: list[tuple[object, ...]] = []
    for user, value in (("ann", 1), ("ann", 1), ("bob", 1), ("ann", -1), ("ann", -1), ("ann", 0), ("eve", 0)):
        before = voting.server.sql("SELECT pg_current_wal_insert_lsn() - '0/0'::pg_lsn")[0][0]
        row = await voting.vote(user, value)
        answers.append((row["outcome"], row["up"], row["down"]))
        flushed = voting.server.sql("SELECT pg_current_wal_flush_lsn() - '0/0'::pg_lsn")[0][0]
        # A repetition writes a message, so that it waits for the quorum of the first vote.
        assert before < row["lsn"] <= flushed
    assert answers == [
        ("voted", 1, 0), ("replayed", 1, 0), ("voted", 2, 0), ("voted", 1, 1), ("replayed", 1, 1), ("voted", 1, 0),
        ("voted", 1, 0),
    ]  # fmt: skip
    assert voting.rows() == [("ann", 0, 3), ("bob", 1, 1), ("eve", 0, 1)]


async def test_a_refused_vote_writes_nothing(voting: Voting) -> None:
    call = ledger.statement("set_vote")

    async def outcome(*arguments: object) -> str:
        row = await voting.connection.fetchrow(call, *arguments, "ann", 1, None)
        assert row is not None
        assert (row["up"], row["down"], row["lsn"]) == (None, None, None)
        return str(row["outcome"])

    other = uuid.uuid4()
    assert await outcome(2, voting.site, KEY_HASH, voting.comment) == "stale_epoch"
    assert await outcome(1, other, KEY_HASH, voting.comment) == "no_site"
    assert await outcome(1, voting.site, b"w" * 32, voting.comment) == "unauthorized"
    assert await outcome(1, voting.site, KEY_HASH, other) == "not_shown"
    for state in ("pending", "rejected", "spam"):
        voting.server.sql("UPDATE palaver.comments SET state = %s WHERE id = %s", state, voting.comment)
        assert await outcome(1, voting.site, KEY_HASH, voting.comment) == "not_shown"
    voting.server.sql("UPDATE palaver.comments SET state = 'approved' WHERE id = %s", voting.comment)
    thread = "UPDATE palaver.threads SET state = %s WHERE id = (SELECT thread_id FROM palaver.comments WHERE id = %s)"
    voting.server.sql(thread, "read_only", voting.comment)
    assert await outcome(1, voting.site, KEY_HASH, voting.comment) == "read_only"
    assert voting.rows() == []
    voting.server.sql(thread, "closed", voting.comment)
    assert (await voting.vote("ann", 1))["outcome"] == "voted"


async def test_the_votes_of_one_site_cannot_be_set_with_the_key_of_another(voting: Voting) -> None:
    voting.server.sql("UPDATE palaver.comments SET site_id = gen_random_uuid() WHERE id = %s", voting.comment)
    assert (await voting.vote("ann", 1))["outcome"] == "not_shown"


async def test_a_deleted_comment_has_no_votes_and_takes_none(voting: Voting) -> None:
    for user, value in (("ann", 1), ("bob", -1), ("eve", 0)):
        await voting.vote(user, value)
    assert await voting.delete() == "deleted"
    assert voting.rows() == []
    assert (await voting.vote("ann", 1))["outcome"] == "not_shown"
    assert voting.rows() == []


async def test_fifty_voters_of_one_comment_at_once_are_all_counted(voting: Voting) -> None:
    pool = await asyncpg.create_pool(voting.server.url(user="palaver_writer"), min_size=20, max_size=20)

    async def vote(number: int) -> asyncpg.Record:
        async with pool.acquire() as connection:
            # Each of 25 users votes twice at once.
            return await voting.vote(f"user-{number % 25:02}", 1, connection)

    rows = await asyncio.gather(*(vote(number) for number in range(50)))
    await pool.close()
    assert sorted(row["outcome"] for row in rows) == ["replayed"] * 25 + ["voted"] * 25
    assert voting.rows() == [(f"user-{number:02}", 1, 1) for number in range(25)]
    assert (await voting.vote("user-00", 1))["up"] == 25


async def test_voters_of_one_comment_do_not_wait_for_each_other_and_a_deletion_waits_for_them(voting: Voting) -> None:
    """A commit that waits for its quorum is an open transaction, as the one here."""
    one, other, deleting = [await asyncpg.connect(voting.server.url(user="palaver_writer")) for _ in range(3)]
    await one.execute("BEGIN")
    await one.fetch("SELECT pg_advisory_xact_lock_shared(palaver.votes_lock($1))", voting.comment)
    await one.execute(
        "INSERT INTO palaver.votes (comment_id, user_id, site_id, thread_id, value, epoch)"
        " VALUES ($1, 'ann', $2, $2, 1, 1)",
        voting.comment,
        voting.site,
    )
    async with asyncio.timeout(20):
        assert (await voting.vote("bob", 1, other))["outcome"] == "voted"
    deletion = asyncio.create_task(voting.delete(deleting))
    await until(lambda: voting.waiting() == 1)
    # This voter came after the deletion, so it waits for it: a stream of voters does not delay a deletion indefinitely.
    late = asyncio.create_task(voting.vote("eve", 1, other))
    await until(lambda: voting.waiting() == 2)
    await one.execute("COMMIT")
    assert await deletion == "deleted"
    assert (await late)["outcome"] == "not_shown"
    assert voting.rows() == []
    for connection in (one, other, deleting):
        await connection.close()

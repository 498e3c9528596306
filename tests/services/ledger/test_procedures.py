"""Tests the migrations and the write procedures on a real PostgreSQL, as the role of the write API."""

import asyncio
import hashlib
import subprocess
import sys
import uuid
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import asyncpg
import orjson
import pytest
from asyncpg.pool import PoolConnectionProxy

from services import ledger
from services.schema.failure import MigrationFailed
from services.schema.migration import migrate_database
from tests import servers
from tests.child_processes import free_port

pytestmark = pytest.mark.integration

KEY_HASH = b"k" * 32
Connection = asyncpg.Connection | PoolConnectionProxy


@dataclass(frozen=True)
class Post:
    site: uuid.UUID
    thread: str = "https://example.com/a"
    body: str = "hello"
    parent: uuid.UUID | None = None
    key: str | None = None
    epoch: int = 1
    email: str | None = None
    trace: str | None = None
    depth_max: int = 20

    async def send(self, connection: Connection) -> asyncpg.Record:
        fingerprint = hashlib.sha256(self.body.encode()).digest()
        row = await connection.fetchrow(
            ledger.statement("post_comment"),
            self.epoch, self.site, self.thread, "Title", self.parent, self.body, "Ann", self.email, None,
            self.key, fingerprint, self.depth_max, self.trace,
        )  # fmt: skip
        assert row is not None
        return row


async def create_site(connection: asyncpg.Connection, key: str | None = None, name: str = "Site") -> asyncpg.Record:
    row = await connection.fetchrow(
        ledger.statement("create_site"),
        1, uuid.uuid4(), name, ["https://example.com"], uuid.uuid4().bytes * 2, key,
        hashlib.sha256(name.encode()).digest(), None,
    )  # fmt: skip
    assert row is not None
    return row


@pytest.fixture
async def site(writer: asyncpg.Connection, ledger_server: servers.PostgresServer) -> uuid.UUID:
    row = await create_site(writer)
    site_id: uuid.UUID = row["site_id"]
    ledger_server.sql("DELETE FROM palaver.site_keys WHERE key_hash = %s", KEY_HASH)
    ledger_server.sql("UPDATE palaver.site_keys SET key_hash = %s WHERE site_id = %s", KEY_HASH, site_id)
    return site_id


def count(server: servers.PostgresServer, site: uuid.UUID) -> int:
    return int(server.sql("SELECT count(*) FROM palaver.comments WHERE site_id = %s", site)[0][0])


def test_migrating_twice_changes_nothing(ledger_server: servers.PostgresServer) -> None:
    before = ledger_server.sql("SELECT relname FROM pg_class WHERE relnamespace = 'palaver'::regnamespace ORDER BY 1")
    ledger.migrate(ledger_server.url())
    after = ledger_server.sql("SELECT relname FROM pg_class WHERE relnamespace = 'palaver'::regnamespace ORDER BY 1")
    assert before == after


def test_migrating_again_leaves_no_dead_row_in_a_catalog(ledger_server: servers.PostgresServer) -> None:
    rows = """
        SELECT 'pg_proc', oid, xmin::text FROM pg_proc WHERE pronamespace = 'palaver'::regnamespace
        UNION ALL SELECT 'pg_class', oid, xmin::text FROM pg_class WHERE relnamespace = 'palaver'::regnamespace
        UNION ALL SELECT 'pg_namespace', oid, xmin::text FROM pg_namespace
        UNION ALL SELECT 'pg_roles', oid, xmin::text FROM pg_authid
        ORDER BY 1, 2
    """
    ledger.migrate(ledger_server.url())
    before = ledger_server.sql(rows)
    ledger.migrate(ledger_server.url())
    assert ledger_server.sql(rows) == before


def test_an_up_to_date_schema_is_recognised_without_alembic(ledger_server: servers.PostgresServer) -> None:
    ledger.migrate(ledger_server.url())
    asked = (
        "import sys; from services import ledger; ledger.migrate(sys.argv[1]); print('alembic' in sys.modules)",
        ledger_server.url(),
    )

    def needs_alembic() -> str:
        return subprocess.run([sys.executable, "-c", *asked], check=True, capture_output=True, text=True).stdout.strip()

    assert needs_alembic() == "False"
    ledger_server.sql("CREATE ROLE palaver_of_a_test")
    try:
        assert needs_alembic() == "True", "the grants depend on the existing roles"
    finally:
        ledger_server.sql("DROP ROLE palaver_of_a_test")
        ledger.migrate(ledger_server.url())


def test_a_ledger_that_cannot_be_reached_is_a_failed_migration() -> None:
    with pytest.raises(MigrationFailed, match="refused"):
        ledger.migrate(f"postgresql://nobody:nothing@127.0.0.1:{free_port()}/nowhere")


def test_a_procedure_is_replaced_when_its_text_has_changed(
    ledger_server: servers.PostgresServer, tmp_path: Path
) -> None:
    scripts, file = Path(ledger.__file__).parent / "migrations", tmp_path / "answer.sql"

    def answer_after(text: str) -> int:
        file.write_text(text)
        migrate_database(ledger_server.url(), scripts=scripts, repeatable=[file])
        return int(ledger_server.sql("SELECT palaver.answer()")[0][0])

    create = "CREATE OR REPLACE FUNCTION palaver.answer() RETURNS integer LANGUAGE sql AS 'SELECT {}'"
    try:
        assert answer_after(create.format(1)) == 1
        assert answer_after(create.format(2)) == 2
        ledger_server.sql("DROP FUNCTION palaver.answer()")
        ledger_server.sql("CREATE ROLE palaver_of_a_test")
        assert answer_after(create.format(2)) == 2, (
            "the mark has to change with the roles, because grants depend on them"
        )
    finally:
        ledger_server.sql("DROP FUNCTION IF EXISTS palaver.answer()")
        ledger_server.sql("DROP ROLE IF EXISTS palaver_of_a_test")
        ledger.migrate(ledger_server.url())


async def test_a_new_parameter_makes_an_overload_that_is_called_by_name(
    writer: asyncpg.Connection, site: uuid.UUID, ledger_server: servers.PostgresServer
) -> None:
    """The worked example of CONTRIBUTING: older write APIs continue to call the old procedure."""
    text = (Path(ledger.__file__).parent / "procedures" / "020_post_comment.sql").read_text()
    assert text.count("p_trace text,") == 1
    ledger_server.sql(text.replace("p_trace text,", "p_trace text, p_language text,"))
    arguments = (1, site, "t", "Title", None, "hello", "Ann", None, None, None, None, 20, None, "en")
    places = ", ".join(f"${number}" for number in range(1, len(arguments)))
    try:
        assert (await Post(site).send(writer))["outcome"] == "created"
        with pytest.raises(asyncpg.AmbiguousFunctionError):
            await writer.fetchrow(f"CALL palaver.post_comment({places}, $14)", *arguments)
        row = await writer.fetchrow(f"CALL palaver.post_comment({places}, p_language => $14)", *arguments)
        assert row is not None
        assert row["outcome"] == "created"
    finally:
        newest = "SELECT oid::regprocedure::text FROM pg_proc WHERE proname = 'post_comment' ORDER BY pronargs"
        *_, (procedure,) = ledger_server.sql(newest)
        ledger_server.sql(f"DROP PROCEDURE {procedure}")
    assert len(ledger_server.sql(newest)) == 1


def test_only_tables_that_views_need_are_published(ledger_server: servers.PostgresServer) -> None:
    rows = ledger_server.sql("SELECT tablename FROM pg_publication_tables WHERE pubname = 'palaver' ORDER BY 1")
    assert [row[0] for row in rows] == ["comments", "fence", "sites", "table_schemas", "threads", "votes"]


async def test_a_comment_is_created_with_its_thread_and_a_flushed_position(
    writer: asyncpg.Connection, site: uuid.UUID, ledger_server: servers.PostgresServer
) -> None:
    row = await Post(site).send(writer)
    assert row["outcome"] == "created"
    flushed = ledger_server.sql("SELECT pg_current_wal_flush_lsn() - '0/0'::pg_lsn")[0][0]
    assert 0 < row["lsn"] <= flushed
    assert row["comment_id"].version == 7
    kept = ledger_server.sql(
        "SELECT thread_id, body, epoch, state FROM palaver.comments WHERE id = %s", row["comment_id"]
    )
    assert kept == [(row["comment_thread_id"], "hello", 1, "approved")]


async def test_twenty_posts_with_one_key_at_once_make_one_comment(
    ledger_server: servers.PostgresServer, site: uuid.UUID
) -> None:
    pool = await asyncpg.create_pool(ledger_server.url(user="palaver_writer"), min_size=20, max_size=20)

    async def post() -> asyncpg.Record:
        async with pool.acquire() as connection:
            return await Post(site, key="k1").send(connection)

    rows = await asyncio.gather(*(post() for _ in range(20)))
    await pool.close()
    assert sorted(row["outcome"] for row in rows) == ["created"] + ["replayed"] * 19
    assert len({(row["comment_id"], row["comment_created_at"], row["comment_thread_id"]) for row in rows}) == 1
    assert all(row["lsn"] for row in rows)
    assert count(ledger_server, site) == 1


async def test_a_key_with_another_body_is_refused(writer: asyncpg.Connection, site: uuid.UUID) -> None:
    await Post(site, key="k2").send(writer)
    row = await Post(site, key="k2", body="other").send(writer)
    assert (row["outcome"], row["comment_id"], row["lsn"]) == ("key_reused", None, None)


async def test_a_refused_post_leaves_its_key_free(writer: asyncpg.Connection, site: uuid.UUID) -> None:
    first = Post(site, key="k3", parent=uuid.uuid4())
    assert (await first.send(writer))["outcome"] == "no_parent"
    assert (await replace(first, parent=None).send(writer))["outcome"] == "created"


@pytest.mark.parametrize("epoch", [0, 2])
async def test_a_write_in_another_epoch_than_the_newest_fence_row_is_refused(
    writer: asyncpg.Connection, site: uuid.UUID, ledger_server: servers.PostgresServer, epoch: int
) -> None:
    assert (await Post(site, epoch=epoch).send(writer))["outcome"] == "stale_epoch"
    assert count(ledger_server, site) == 0


async def test_a_closed_gate_refuses_writes_until_it_opens(
    writer: asyncpg.Connection, site: uuid.UUID, ledger_server: servers.PostgresServer
) -> None:
    gate = await asyncpg.connect(ledger_server.url())
    await gate.fetch("SELECT pg_advisory_lock(hashtextextended('palaver.write_gate', 0))")
    assert (await Post(site, key="k9").send(writer))["outcome"] == "stale_epoch"
    assert count(ledger_server, site) == 0
    await gate.close()
    assert (await Post(site, key="k9").send(writer))["outcome"] == "created"


async def test_a_post_to_an_unknown_site_is_refused(writer: asyncpg.Connection) -> None:
    assert (await Post(uuid.uuid4()).send(writer))["outcome"] == "no_site"


async def test_replies_stay_in_their_thread_and_below_the_depth(writer: asyncpg.Connection, site: uuid.UUID) -> None:
    root = await Post(site).send(writer)
    assert (await Post(site, thread="elsewhere", parent=root["comment_id"]).send(writer))["outcome"] == "no_parent"
    reply = await Post(site, parent=root["comment_id"], depth_max=1).send(writer)
    assert reply["outcome"] == "created"
    deeper = await Post(site, parent=reply["comment_id"], depth_max=1).send(writer)
    assert deeper["outcome"] == "too_deep"


async def test_a_closed_thread_refuses_posts(
    writer: asyncpg.Connection, site: uuid.UUID, ledger_server: servers.PostgresServer
) -> None:
    await Post(site).send(writer)
    ledger_server.sql("UPDATE palaver.threads SET state = 'closed' WHERE site_id = %s", site)
    assert (await Post(site).send(writer))["outcome"] == "thread_closed"


async def test_first_posts_of_one_thread_at_once_share_it(
    ledger_server: servers.PostgresServer, site: uuid.UUID
) -> None:
    pool = await asyncpg.create_pool(ledger_server.url(user="palaver_writer"), min_size=8, max_size=8)

    async def post(i: int) -> asyncpg.Record:
        async with pool.acquire() as connection:
            return await Post(site, thread="new", body=str(i)).send(connection)

    rows = await asyncio.gather(*(post(i) for i in range(8)))
    await pool.close()
    assert len({row["comment_thread_id"] for row in rows}) == 1
    assert count(ledger_server, site) == 8


async def test_a_key_of_two_thousand_wide_characters_is_found_again(
    writer: asyncpg.Connection, site: uuid.UUID
) -> None:
    wide = "".join(chr(0x1F300 + i % 1500) for i in range(2000))
    first = await Post(site, thread=wide).send(writer)
    second = await Post(site, thread=wide).send(writer)
    assert first["comment_thread_id"] == second["comment_thread_id"]


async def test_an_edit_requires_the_version_and_keeps_the_old_body(
    writer: asyncpg.Connection, site: uuid.UUID, ledger_server: servers.PostgresServer
) -> None:
    comment = (await Post(site).send(writer))["comment_id"]

    async def edit(version: int, body: str, key_hash: bytes = KEY_HASH) -> asyncpg.Record:
        row = await writer.fetchrow(ledger.statement("edit_comment"), 1, site, key_hash, comment, version, body, None)
        assert row is not None
        return row

    assert (await edit(1, "x", b"w" * 32))["outcome"] == "unauthorized"
    assert (await edit(1, "second"))["outcome"] == "edited"
    assert (await edit(1, "third"))["outcome"] == "version_mismatch"
    # A client repeats an edit whose answer was lost. The edit took place, so the repetition adds no revision.
    repeated = await edit(1, "second")
    assert (repeated["outcome"], orjson.loads(repeated["comment"])["version"]) == ("edited", 2)
    assert repeated["lsn"] > 0
    assert ledger_server.sql("SELECT body, version FROM palaver.comments WHERE id = %s", comment) == [("second", 2)]
    revisions = ledger_server.sql("SELECT version, body FROM palaver.comment_revisions WHERE comment_id = %s", comment)
    assert revisions == [(1, "hello")]


async def test_a_deleted_comment_keeps_its_place_and_no_personal_data(
    writer: asyncpg.Connection, site: uuid.UUID, ledger_server: servers.PostgresServer
) -> None:
    comment = (await Post(site, email="ann@example.com").send(writer))["comment_id"]
    await writer.fetchrow(ledger.statement("edit_comment"), 1, site, KEY_HASH, comment, 1, "second", None)
    for _ in range(2):
        row = await writer.fetchrow(ledger.statement("delete_comment"), 1, site, KEY_HASH, comment, None, None)
        assert row is not None
        assert row["outcome"] == "deleted"
        assert row["lsn"]
    kept = ledger_server.sql("SELECT state, body, author_name, version FROM palaver.comments WHERE id = %s", comment)
    assert kept == [("deleted", None, None, 3)]
    assert ledger_server.sql("SELECT 1 FROM palaver.comment_private WHERE comment_id = %s", comment) == []
    assert ledger_server.sql("SELECT 1 FROM palaver.comment_revisions WHERE comment_id = %s", comment) == []
    row = await writer.fetchrow(ledger.statement("edit_comment"), 1, site, KEY_HASH, comment, 3, "x", None)
    assert row is not None
    assert row["outcome"] == "no_comment"


async def test_a_site_created_twice_with_one_key_is_one_site(writer: asyncpg.Connection) -> None:
    key = str(uuid.uuid4())
    first, second = await create_site(writer, key), await create_site(writer, key)
    assert (first["outcome"], second["outcome"]) == ("created", "replayed")
    assert first["site_id"] == second["site_id"]
    assert (await create_site(writer, key, "Other"))["outcome"] == "key_reused"


async def edit_site(
    connection: Connection, site: uuid.UUID, name: str | None = None, origins: list[str] | None = None, epoch: int = 1
) -> asyncpg.Record:
    row = await connection.fetchrow(ledger.statement("edit_site"), epoch, site, name, origins, None)
    assert row is not None
    return row


async def test_an_edit_of_a_site_changes_the_given_fields_and_the_version(
    writer: asyncpg.Connection, ledger_server: servers.PostgresServer
) -> None:
    site: uuid.UUID = (await create_site(writer))["site_id"]
    renamed = await edit_site(writer, site, name="New")
    assert (renamed["outcome"], renamed["site_name"], renamed["site_origins"]) == (
        "edited", "New", ["https://example.com"],
    )  # fmt: skip
    moved = await edit_site(writer, site, origins=[])
    assert (moved["outcome"], moved["site_name"], moved["site_origins"]) == ("edited", "New", [])
    assert moved["lsn"] > renamed["lsn"]
    kept = "SELECT name, origins, version, epoch FROM palaver.sites WHERE id = %s"
    assert ledger_server.sql(kept, site) == [("New", [], 3, 1)]
    repeated = await edit_site(writer, site, name="New", origins=[])
    assert repeated["outcome"] == "edited"
    assert repeated["lsn"] > moved["lsn"], "the answer to a repeated edit has to wait for a quorum as well"
    assert ledger_server.sql(kept, site) == [("New", [], 3, 1)]


async def test_an_edit_of_a_site_is_refused_for_an_unknown_site_and_in_another_epoch(
    writer: asyncpg.Connection, ledger_server: servers.PostgresServer
) -> None:
    site: uuid.UUID = (await create_site(writer))["site_id"]
    assert (await edit_site(writer, uuid.uuid4(), name="New"))["outcome"] == "no_site"
    for epoch in (0, 2):
        assert (await edit_site(writer, site, name="New", epoch=epoch))["outcome"] == "stale_epoch"
    assert ledger_server.sql("SELECT name, version FROM palaver.sites WHERE id = %s", site) == [("Site", 1)]


async def test_concurrent_edits_of_a_site_lose_no_field(
    writer: asyncpg.Connection, ledger_server: servers.PostgresServer
) -> None:
    site: uuid.UUID = (await create_site(writer))["site_id"]
    async with asyncpg.create_pool(ledger_server.url(user="palaver_writer"), min_size=4, max_size=4) as pool:

        async def edit(**fields: Any) -> None:
            async with pool.acquire() as connection:
                assert (await edit_site(connection, site, **fields))["outcome"] == "edited"

        await asyncio.gather(*(edit(**one) for one in ({"name": "New"}, {"origins": ["*"]}) for _ in range(4)))
    kept = ledger_server.sql("SELECT name, origins, version FROM palaver.sites WHERE id = %s", site)
    assert kept == [("New", ["*"], 3)]


async def test_old_keys_are_purged_in_batches(
    writer: asyncpg.Connection, site: uuid.UUID, ledger_server: servers.PostgresServer
) -> None:
    for i in range(3):
        await Post(site, key=f"old{i}").send(writer)
    await Post(site, key="purged").send(writer)
    await Post(site, key="new").send(writer)
    set_age = "UPDATE palaver.idempotency_keys SET made_at_s = %s WHERE site_id = %s AND key LIKE %s"
    ledger_server.sql(set_age, -10, site, "old%")
    ledger_server.sql(set_age, -20, site, "purged")
    purge = ledger.statement("purge_idempotency_keys")
    assert await writer.execute(purge, -20, -10, 2) == "DELETE 2"
    assert await writer.execute(purge, -20, -10, 2) == "DELETE 1"
    left = ledger_server.sql("SELECT key FROM palaver.idempotency_keys WHERE site_id = %s ORDER BY key", site)
    assert left == [("new",), ("purged",)]


def test_the_pgbench_script_posts_comments(ledger_server: servers.PostgresServer) -> None:
    site = uuid.uuid4()
    ledger_server.sql("INSERT INTO palaver.sites (id, name, origins, epoch) VALUES (%s, 'Bench', '{}', 1)", site)
    servers.run_as(
        ledger_server.account,
        [
            "env", f"PGPASSWORD={ledger_server.password}", str(ledger_server.bin_dir / "pgbench"),
            "-n", "-t", "3",
            "-h", "127.0.0.1", "-p", str(ledger_server.port), "-U", "palaver", "-M", "prepared",
            "-D", f"site={site}", "-D", "epoch=1", "-f", "-", "palaver",
        ],
        standard_input=ledger.PGBENCH_SCRIPT.read_text(),
    )  # fmt: skip
    assert count(ledger_server, site) == 3

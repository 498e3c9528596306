"""Tests that PostgreSQL reads a page in index order, so that its cost does not grow with the thread."""

import asyncio
import uuid
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import Any, Final

import asyncpg
import psycopg
import pytest

from services import view
from services.read_api.view_reader import PLANNER_SETTINGS
from services.view.indexes import IndexBuildFailed, build_indexes
from tests import servers

pytestmark = pytest.mark.integration

LIMIT: Final = 50
SIZES: Final = (100, 6_000)

ROOTS = """
INSERT INTO comments (id, site_id, thread_id, depth, body, state, version, created_at)
SELECT gen_random_uuid(), %(site)s, %(thread)s, 0, 'b', %(state)s, 1, to_timestamp(%(begin)s + n)
FROM generate_series(1, %(count)s) AS n
"""
REPLIES = """
INSERT INTO comments (id, site_id, thread_id, parent_id, depth, body, state, version, created_at)
SELECT gen_random_uuid(), %(site)s, %(thread)s, %(parent)s, 1, 'b', %(state)s, 1, to_timestamp(%(begin)s + n)
FROM generate_series(1, %(count)s) AS n
"""
MIDDLE: Final = ("to_timestamp(50)", str(uuid.UUID(int=0)))
CURSORS: Final = {
    "newest": ("'9999-12-31 00:00+00'", str(uuid.UUID(int=2**128 - 1))),
    "oldest": ("'0001-01-01 00:00+00'", str(uuid.UUID(int=0))),
    "replies": ("'0001-01-01 00:00+00'", str(uuid.UUID(int=0))),
}


@dataclass
class Threads:
    """Threads of different sizes. The first comment has as many replies as the thread has roots."""

    server: servers.PostgresServer
    site: uuid.UUID
    parents: dict[str, uuid.UUID]

    def explained(self, mode: str, key: str, *, cursor: tuple[str, str] | None = None, analyze: bool) -> dict[str, Any]:
        """Return the plan of a page of one of the threads."""
        after = cursor or CURSORS[mode]
        return plan_of_page(
            self.server.url(), mode, self.site, key, parent=self.parents[key], after=after, analyze=analyze
        )


def plan_of_page(
    url: str, mode: str, site: uuid.UUID, key: str, *, parent: uuid.UUID, after: tuple[str, str], analyze: bool
) -> dict[str, Any]:
    """Return the plan of a page with the planner settings of the read API."""
    arguments = f"'{site}', '{key}', '{mode}', '{parent}', {after[0]}, '{after[1]}', {LIMIT}, 20, 21, 500, 1000000"
    with psycopg.connect(url, autocommit=True) as connection:
        for name, value in PLANNER_SETTINGS.items():
            connection.execute(f"SET {name} = {value}".encode())
        connection.execute(
            b"PREPARE page (uuid, text, text, uuid, timestamptz, uuid, int, int, int, int, bigint) AS "
            + view.statement("page").encode()
        )
        options = "FORMAT JSON, ANALYZE, BUFFERS, TIMING OFF" if analyze else "FORMAT JSON"
        explain = f"EXPLAIN ({options}) EXECUTE page ({arguments})".encode()
        connection.execute(explain)  # the first execution on a connection also reads catalogs
        found = connection.execute(explain).fetchone()
    assert found is not None
    plan: dict[str, Any] = found[0][0]["Plan"]
    return plan


def nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for child in plan.get("Plans", []):
        yield from nodes(child)


@pytest.fixture(scope="module")
def server() -> Generator[servers.PostgresServer]:
    with servers.postgres() as server:
        view.migrate(server.url())
        yield server


@pytest.fixture(scope="module")
def threads(server: servers.PostgresServer) -> Threads:
    """Create the threads. Without ANALYZE the planner has no statistics of them."""
    site = uuid.uuid4()
    server.sql("INSERT INTO sites (id, name, origins, version) VALUES (%s, 'S', '{}', 1)", site)
    parents: dict[str, uuid.UUID] = {}
    with psycopg.connect(server.url(), autocommit=True) as connection:
        for count in SIZES:
            for hidden in (0, count):
                key, thread = f"{count}-{hidden}", uuid.uuid4()
                connection.execute(
                    "INSERT INTO threads (id, site_id, key, state, version) VALUES (%s, %s, %s, 'open', 1)",
                    (thread, site, key),
                )
                shown = {"site": site, "thread": thread, "count": count, "begin": 0, "state": "approved"}
                connection.execute(ROOTS, shown)
                found = connection.execute("SELECT id FROM comments WHERE thread_id = %s LIMIT 1", (thread,)).fetchone()
                assert found is not None
                parents[key] = found[0]
                connection.execute(REPLIES, shown | {"parent": parents[key]})
                # Hidden comments are newer and older than the shown ones, so either order would meet them first.
                for begin in (-10 * hidden, 10 * hidden):
                    unseen = shown | {"count": hidden, "begin": begin, "state": "spam"}
                    connection.execute(ROOTS, unseen)
                    connection.execute(REPLIES, unseen | {"parent": parents[key]})
    asyncio.run(build_indexes(server.url()))
    return Threads(server, site, parents)


@pytest.mark.parametrize("mode", ["newest", "oldest", "replies"])
@pytest.mark.parametrize("begin", [True, False], ids=["first", "after a cursor"])
def test_a_page_is_read_in_the_order_of_the_index_and_never_sorted(threads: Threads, mode: str, begin: bool) -> None:
    for key in threads.parents:
        plan = list(nodes(threads.explained(mode, key, cursor=None if begin else MIDDLE, analyze=False)))
        kinds = {node["Node Type"] for node in plan}
        assert not {kind for kind in kinds if "Sort" in kind or "Bitmap" in kind or kind == "Seq Scan"}, kinds
        scans = [node for node in plan if node.get("Relation Name") == "comments"]
        assert len(scans) == 4
        assert {(scan["Node Type"], scan["Index Name"]) for scan in scans} == {("Index Scan", "comments_shown")}
        assert all("parent_id" in scan["Index Cond"] and "thread_id" in scan["Index Cond"] for scan in scans)


@pytest.mark.parametrize("mode", ["newest", "oldest", "replies"])
@pytest.mark.parametrize("begin", [True, False], ids=["first", "after a cursor"])
def test_a_page_of_a_large_thread_reads_as_many_blocks_as_one_of_a_small_thread(
    threads: Threads, mode: str, begin: bool
) -> None:
    blocks: list[int] = []
    for key in threads.parents:
        plan = threads.explained(mode, key, cursor=None if begin else MIDDLE, analyze=True)
        blocks.append(plan["Shared Hit Blocks"] + plan["Shared Read Blocks"])
        for scan in nodes(plan):
            if scan.get("Relation Name") == "comments":
                assert scan.get("Rows Removed by Filter", 0) == 0
                assert scan["Actual Rows"] * scan["Actual Loops"] <= LIMIT + 1
    # The margin covers one more level of an index, and a page that spans one more block of the table.
    assert max(blocks) <= min(blocks) + 8, blocks


def test_counts_are_looked_up_by_their_index(threads: Threads) -> None:
    with psycopg.connect(threads.server.url(), autocommit=True) as connection:
        for name, value in PLANNER_SETTINGS.items():
            connection.execute(f"SET {name} = {value}".encode())
        connection.execute(b"PREPARE counts (uuid, text[]) AS " + view.statement("counts").encode())
        found = connection.execute(
            f"EXPLAIN (FORMAT JSON) EXECUTE counts ('{threads.site}', '{{a,b}}')".encode()
        ).fetchone()
    assert found is not None
    scans = [node for node in nodes(found[0][0]["Plan"]) if node.get("Relation Name") == "threads"]
    assert [scan.get("Index Name") for scan in scans] == ["threads_by_key"]


@pytest.fixture
def fresh(server: servers.PostgresServer) -> Generator[str]:
    """Return the URL of a view that was migrated and is empty."""
    name = f"view_{uuid.uuid4().hex}"
    server.sql(f"CREATE DATABASE {name}", database="postgres")
    view.migrate(server.url(name))
    yield server.url(name)
    server.sql(f"DROP DATABASE {name} WITH (FORCE)", database="postgres")


async def indexes_of(connection: "asyncpg.Connection[asyncpg.Record]") -> dict[str, bool]:
    """Return the indexes except the primary key, and whether each is valid."""
    rows = await connection.fetch(
        "SELECT indexrelid::regclass::text AS name, indisvalid FROM pg_index"
        " WHERE indrelid = 'comments'::regclass AND NOT indisprimary"
    )
    return {row["name"]: row["indisvalid"] for row in rows}


async def until_begun(connection: "asyncpg.Connection[asyncpg.Record]") -> None:
    """Wait until the build of the index has begun."""
    async with asyncio.timeout(30):
        while "comments_shown" not in await indexes_of(connection):  # noqa: ASYNC110 - a server has no event
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("mode", ["newest", "oldest", "replies"])
def test_a_page_is_not_sorted_before_the_index_is_built(fresh: str, mode: str) -> None:
    nobody = uuid.UUID(int=0)
    plan = list(nodes(plan_of_page(fresh, mode, nobody, "key", parent=nobody, after=CURSORS[mode], analyze=False)))
    assert not {node["Node Type"] for node in plan if "Sort" in node["Node Type"]}
    scans = [node for node in plan if node.get("Relation Name") == "comments"]
    assert {(scan["Node Type"], scan["Index Name"]) for scan in scans} == {("Index Scan", "comments_by_parent")}


async def test_changes_are_applied_and_pages_are_read_during_an_index_build(fresh: str) -> None:
    holder, apply, watcher = [await asyncpg.connect(fresh) for _ in range(3)]
    insert = (
        "INSERT INTO comments (id, site_id, thread_id, depth, body, state, version, created_at)"
        " VALUES (gen_random_uuid(), gen_random_uuid(), gen_random_uuid(), 0, 'b', 'approved', 1, now())"
    )
    # The build waits for the end of a transaction that wrote before the build began, without a limit.
    transaction = holder.transaction()
    await transaction.start()
    await holder.execute(insert)
    building = asyncio.ensure_future(build_indexes(fresh))
    try:
        await until_begun(watcher)
        assert await indexes_of(watcher) == {"comments_by_parent": True, "comments_shown": False}
        await apply.execute("SET lock_timeout = '10s'")
        await apply.execute(insert)
        assert await apply.fetchval("SELECT count(*) FROM comments") == 1
        assert not building.done()
        with pytest.raises(IndexBuildFailed, match="another process"):
            await build_indexes(fresh)
        await transaction.rollback()
        await building
        assert await indexes_of(watcher) == {"comments_shown": True}
    finally:
        building.cancel()
        for connection in (holder, apply, watcher):
            connection.terminate()


async def test_an_interrupted_index_build_is_repeated_and_keeps_the_old_index_until_then(fresh: str) -> None:
    holder, watcher = [await asyncpg.connect(fresh) for _ in range(2)]
    transaction = holder.transaction()
    await transaction.start()
    await holder.execute("LOCK TABLE comments IN ROW EXCLUSIVE MODE")
    building = asyncio.ensure_future(build_indexes(fresh))
    try:
        await until_begun(watcher)
        await watcher.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'palaver-indexes'"
        )
        with pytest.raises(IndexBuildFailed):
            await building
        await transaction.rollback()
        assert await indexes_of(watcher) == {"comments_by_parent": True, "comments_shown": False}
        await build_indexes(fresh)
        assert await indexes_of(watcher) == {"comments_shown": True}
        await build_indexes(fresh)
        assert await indexes_of(watcher) == {"comments_shown": True}
    finally:
        building.cancel()
        for connection in (holder, watcher):
            connection.terminate()


async def test_an_index_build_on_an_unreachable_view_fails() -> None:
    with pytest.raises(IndexBuildFailed):
        await build_indexes("postgresql://nobody:nothing@127.0.0.1:9/nowhere")

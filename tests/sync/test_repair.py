"""Tests Merkle repair from end to end: a ledger, a view, apply, and comparisons over HTTP. Rows are the judge."""

import asyncio
import contextlib
import uuid
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Any
from unittest.mock import Mock

import asyncpg
import httpx
import pytest

from regions.identity import RegionName
from regions.position import Position
from services.replicator.mending import ViewMender
from services.tables import TABLES
from services.view.cache import Invalidation
from sync.apply import Applied, Applier
from sync.channel.direct.comparison_client import ComparisonClient, ComparisonFailed
from sync.channel.direct.comparisons import Comparisons
from sync.channel.direct.server import ChangeServer
from sync.ledger_tree import LedgerTree
from sync.repair import Repair, RepairBusy
from sync.view_tree import ViewTree
from tests.sync.ledger_load import load
from tests.sync.rig import CELL, TOKEN, WAIT_S, Rig, Writer, differences, leadership, until, writing

pytestmark = pytest.mark.integration

SECRET = bytes(range(32))


@dataclass(kw_only=True)
class Site:
    """Everything that a comparison needs."""

    rig: Rig
    applier: Applier[Invalidation]
    server: ChangeServer
    ledger: LedgerTree
    view: ViewTree
    repair: Repair[Invalidation]
    writer: Writer
    effects: list[Invalidation]

    async def fill(self, comments: int = 40) -> uuid.UUID:
        """Two threads with comments, replies and votes; returns the thread of the comments."""
        thread = await self.writer.create_thread()
        await self.writer.create_thread("/other")
        root = await self.writer.post(thread, "root")
        for number in range(comments):
            one = await self.writer.post(thread, f"comment {number}", root if number % 3 == 0 else None)
            await self.writer.vote(one, "user", 1 if number % 2 else -1)
        await self.rig.caught_up()
        return thread

    async def run(self, **more: Any) -> Any:
        return await self.repair.run(reason="test", **more)


@contextlib.asynccontextmanager
async def repairing(rig: Rig) -> AsyncGenerator[Site]:
    rig.create_slot()
    rig.fence()
    ledger = LedgerTree(tables=TABLES, secret=SECRET)
    view = ViewTree(cell=CELL, tables=TABLES, secret=SECRET)
    effects: list[Invalidation] = []

    @contextlib.asynccontextmanager
    async def connect() -> AsyncGenerator[Any]:
        connection = await asyncpg.connect(rig.view_url)
        try:
            yield connection
        finally:
            await connection.close()

    async with connect() as connection:
        await view.prepare(connection)
    async with asyncio.timeout(3 * WAIT_S), rig.serving() as server, rig.applying() as applier, writing(rig) as writer:
        note = applier._on_applied

        async def on_applied(applied: Applied[Invalidation]) -> None:
            await note(applied)

        def mark(applied: Applied[Invalidation]) -> None:
            for transaction in applied.transactions:
                ledger.mark(transaction.changes, transaction.position)

        async def marking(applied: Applied[Invalidation]) -> None:
            mark(applied)
            await on_applied(applied)

        applier._on_applied = marking
        server.comparisons = Comparisons(
            source=server.source, tree=ledger, wait_until_applied=applier.wait_until_applied
        )
        client = ComparisonClient(topology=rig.topology, leaders=rig.leaders, token=TOKEN)
        repair = Repair(
            applier=applier,
            tree=view,
            mender=ViewMender(TABLES),
            open_comparison=client.open,
            connect=connect,
            on_mended=effects.extend,
        )
        yield Site(
            rig=rig,
            applier=applier,
            server=server,
            ledger=ledger,
            view=view,
            repair=repair,
            writer=writer,
            effects=effects,
        )


async def test_a_view_that_is_equal_is_clean_and_costs_one_request(rig: Rig) -> None:
    async with repairing(rig) as site:
        await site.fill()
        result = await site.run()
        assert (result.verdict, result.detail) == ("clean", "")
        assert result.rows == 1 + 2 + 41 + 40
        assert result.requests == 2
        assert result.bytes < 200
        assert site.repair.last_clean is result


DAMAGES: dict[str, tuple[str, dict[str, int]]] = {
    "deleted rows": ("DELETE FROM comments WHERE body LIKE 'comment 1%'", {"missing": 11}),
    "changed rows": ("UPDATE comments SET body = body || '!' WHERE body LIKE 'comment 2%'", {"stale": 11}),
    "a newer version": ("UPDATE comments SET version = 99, body = 'newer' WHERE body = 'root'", {"stale": 1}),
    "another parent": ("UPDATE comments SET parent_id = NULL, depth = 0", {"stale": 14}),
    "an invented row": (
        (
            "INSERT INTO comments (id, site_id, thread_id, depth, body, state, version, created_at)"
            " SELECT gen_random_uuid(), site_id, thread_id, 0, 'invented', 'approved', 1, now() FROM comments LIMIT 3"
        ),
        {"phantom": 3},
    ),
    "an invented thread": (
        (
            "INSERT INTO threads (id, site_id, key, state, version)"
            " SELECT gen_random_uuid(), site_id, '/invented', 'open', 1 FROM threads LIMIT 1"
        ),
        {"phantom": 1},
    ),
    "a lost thread": ("DELETE FROM threads", {"missing": 2}),
    "a changed site": ("UPDATE sites SET settings = '{\"a\": 1}', origins = '{}'", {"stale": 1}),
    "lost votes": ("DELETE FROM votes", {"missing": 40}),
    "a turned vote": ("UPDATE votes SET value = -value", {"stale": 40}),
    "a key that moved": (
        "UPDATE comments SET id = gen_random_uuid() WHERE body = 'root'",
        {"missing": 1, "phantom": 1},
    ),
}


async def test_damage_by_hand_is_found_and_mended(rig: Rig) -> None:
    async with repairing(rig) as site:
        await site.fill()
        for what, (damage, found) in DAMAGES.items():
            rig.view_sql(damage)
            assert differences(rig) != [], what
            dry = await site.run(dry_run=True)
            assert (what, dry.verdict, dict(+dry.found)) == (what, "differs", found)
            assert differences(rig) != [], what
            result = await site.run()
            assert (what, result.verdict, result.detail, dict(+result.mended)) == (what, "mended", "", found)
            assert differences(rig) == [], what
            assert (await site.run()).verdict == "clean", what
        assert site.repair.mended.total() == sum(sum(found.values()) for _, found in DAMAGES.values())
        assert len(site.repair.events) == min(200, site.repair.mended.total())


async def test_a_leader_whose_memory_lacks_a_row_makes_no_view_delete_it(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with repairing(rig) as site:
        await site.fill(5)
        assert (await site.run()).verdict == "clean"
        ((thread,),) = rig.sql("SELECT id FROM palaver.threads WHERE key = '/other'")
        with monkeypatch.context() as patched:
            patched.setattr(site.ledger, "mark", Mock())
            await site.writer.post(uuid.UUID(str(thread)), "not marked")
            await rig.caught_up()
        result = await site.run()
        assert (result.verdict, dict(+result.mended)) == ("clean", {})
        assert site.ledger.counts.wrong_rows == 1
        assert differences(rig) == []


async def test_rows_in_memory_are_forgotten_when_apply_begins_again_without_its_marks(rig: Rig) -> None:
    async with repairing(rig) as site:
        await site.fill(5)
        assert (await site.run()).verdict == "clean"
        position = site.rig.meter.applied
        assert position is not None
        site.ledger.marked_up_to(position)
        site.ledger.resume(position)
        assert site.ledger.rows > 0
        site.ledger.resume(Position(position.epoch, position.lsn + 1))
        assert site.ledger.rows == 0


async def test_an_event_names_the_columns_and_not_their_content(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    async with repairing(rig) as site:
        await site.fill()
        rig.view_sql("UPDATE comments SET body = 'a secret', author_name = 'Bob' WHERE body = 'root'")
        await site.run()
        (event,) = site.repair.events
        assert (event.kind, event.table, set(event.columns)) == ("stale", "comments", {"body", "author_name"})
        assert "secret" not in caplog.text
        assert "Bob" not in caplog.text


async def test_caches_of_mended_pages_are_invalidated(rig: Rig) -> None:
    async with repairing(rig) as site:
        await site.fill()
        ((before,),) = rig.view_sql("SELECT page_version FROM threads WHERE key = '/'")
        rig.view_sql("UPDATE comments SET body = 'wrong' WHERE body = 'root'")
        await site.run()
        (page,) = [one for one in site.effects if one.key == "/"]
        assert page.version > int(str(before))


async def test_damage_that_no_trigger_saw_is_found_by_a_scrub(rig: Rig) -> None:
    async with repairing(rig) as site:
        await site.fill()
        rig.view_sql("ALTER TABLE comments DISABLE TRIGGER USER")
        rig.view_sql("UPDATE comments SET body = 'unseen' WHERE body LIKE 'comment 1%'")
        rig.view_sql("DELETE FROM comments WHERE body LIKE 'comment 2%'")
        rig.view_sql("ALTER TABLE comments ENABLE TRIGGER USER")
        assert (await site.run()).verdict == "clean"
        result = await site.run(scrub=True)
        assert (result.verdict, dict(+result.mended)) == ("mended", {"missing": 11, "stale": 11})
        assert differences(rig) == []
        assert site.repair.last_scrub_at is not None


async def test_wrong_counters_are_found_by_a_scrub(rig: Rig) -> None:
    async with repairing(rig) as site:
        await site.fill()
        rig.view_sql("UPDATE comments SET reply_count = 7 WHERE body LIKE 'comment 1%'")
        rig.view_sql("UPDATE comments SET up = 7 WHERE body = 'root'")
        rig.view_sql("UPDATE threads SET count = 7")
        assert (await site.run(scrub=True, dry_run=True)).counters == 14
        assert differences(rig) != []
        assert (await site.run(scrub=True)).counters == 14
        assert differences(rig) == []
        assert (await site.run(scrub=True)).counters == 0


async def test_lost_and_wrong_leaves_are_corrected_without_touching_rows(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sync.view_tree.CHANGES_MAX", 1)
    async with repairing(rig) as site:
        await site.fill()
        assert (await site.run()).verdict == "clean"
        ((leaves,),) = rig.view_sql("SELECT count(*) FROM merkle_leaves WHERE leaf < 8")
        assert int(str(leaves)) > 0
        rig.view_sql("DELETE FROM merkle_leaves WHERE leaf < 8")
        rig.view_sql("UPDATE merkle_leaves SET h1 = h1 + 1")
        # The process reads its leaves at its start.
        site.view._tree = None
        result = await site.run()
        assert result.wrong_leaves > 0
        assert dict(+result.mended) == {}
        assert (await site.run()).verdict == "clean"
        assert (await site.run(scrub=True)).wrong_leaves == 0


async def test_a_deleted_text_is_not_brought_back(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """A row that was damaged, and that the stream changes between the comparison and the repair, is not mended."""
    async with repairing(rig) as site:
        await site.fill()
        rig.view_sql("UPDATE comments SET body = 'damaged' WHERE body = 'root'")
        ((comment,),) = rig.view_sql("SELECT id FROM comments WHERE body = 'damaged'")
        mend = site.repair._mend

        async def erased_meanwhile(*arguments: Any) -> None:
            await site.writer.connection.execute(
                "UPDATE palaver.comments SET body = NULL, author_name = NULL, state = 'deleted', version = version + 1"
                " WHERE id = $1",
                comment,
            )
            await rig.caught_up()
            assert rig.view_sql("SELECT body FROM comments WHERE id = %s", comment) == [(None,)]
            await mend(*arguments)

        monkeypatch.setattr(site.repair, "_mend", erased_meanwhile)
        result = await site.run()
        assert (result.verdict, result.skipped) == ("differs", 1)
        assert rig.view_sql("SELECT body, author_name FROM comments WHERE id = %s", comment) == [(None, None)]
        monkeypatch.undo()
        assert (await site.run()).verdict == "clean"


async def test_comparisons_while_four_clients_write_find_no_difference(rig: Rig) -> None:
    async with repairing(rig) as site:
        thread = await site.fill()
        async with load(rig, site.writer.site, thread, clients=4) as written:
            for _ in range(25):
                before = len(written)
                result = await site.run()
                assert (result.verdict, result.detail) == ("clean", "")
                await until(lambda: len(written) > before)  # noqa: B023 - awaited in this round
        await rig.caught_up()
        assert differences(rig) == []
        assert site.ledger.counts.builds == 1


async def test_damage_is_mended_while_clients_write(rig: Rig) -> None:
    async with repairing(rig) as site:
        thread = await site.fill()
        async with load(rig, site.writer.site, thread, clients=4):
            rig.view_sql("DELETE FROM comments WHERE body LIKE 'comment 1%'")
            rig.view_sql("UPDATE comments SET body = body || '!' WHERE body LIKE 'comment 2%'")
            result = await site.run()
            assert (result.verdict, dict(+result.mended)) == ("mended", {"missing": 11, "stale": 11})
        await rig.caught_up()
        assert differences(rig) == []


async def test_more_damage_than_the_bound_is_reported_and_not_mended(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sync.repair.ROWS_MAX", 20)
    async with repairing(rig) as site:
        await site.fill()
        rig.view_sql("DELETE FROM comments")
        result = await site.run()
        assert result.verdict == "too different"
        assert "rebuild the view" in result.detail
        assert rig.view_sql("SELECT count(*) FROM comments") == [(0,)]


async def test_a_repair_that_fails_in_the_middle_leaves_whole_transactions_and_the_next_completes_it(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sync.repair.IMAGES_PER_REQUEST", 7)
    async with repairing(rig) as site:
        await site.fill()
        rig.view_sql("DELETE FROM comments WHERE body LIKE 'comment %'")
        some = site.repair._mend_some
        done = 0

        async def broken(*arguments: Any) -> None:
            nonlocal done
            done += 1
            if done > 2:
                raise ConnectionResetError("the connection broke")
            await some(*arguments)

        with monkeypatch.context() as patched:
            patched.setattr(site.repair, "_mend_some", broken)
            result = await site.run()
        assert (result.verdict, result.detail) == ("failed", "the connection broke")
        assert rig.view_sql("SELECT count(*) FROM comments") == [(1 + 14,)]
        assert (await site.run()).verdict == "mended"
        assert differences(rig) == []


async def test_a_comparison_needs_a_leader_that_serves_and_runs_alone(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with repairing(rig) as site:
        await site.fill(3)
        open_comparison = site.repair._open_comparison
        entered, leave = asyncio.Event(), asyncio.Event()

        @contextlib.asynccontextmanager
        async def slow(*, scrub: bool) -> AsyncGenerator[Any]:
            async with open_comparison(scrub=scrub) as session:
                entered.set()
                await leave.wait()
                yield session

        monkeypatch.setattr(site.repair, "_open_comparison", slow)
        async with asyncio.TaskGroup() as group:
            first = group.create_task(site.run())
            await entered.wait()
            with pytest.raises(RepairBusy, match="runs already"):
                await site.run()
            leave.set()
        assert first.result().verdict == "clean"
        current = rig.leaders.current
        assert current is not None
        rig.leaders.current = None
        result = await site.run()
        assert (result.verdict, result.detail) == ("failed", "no region leads now")


async def test_a_tree_of_another_secret_is_not_compared(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sync.repair.RETRY_PAUSE_S", 0.0)
    async with repairing(rig) as site:
        await site.fill(3)
        other = LedgerTree(tables=TABLES, secret=bytes(32))
        site.server.comparisons = Comparisons(
            source=site.server.source, tree=other, wait_until_applied=site.applier.wait_until_applied
        )
        result = await site.run()
        assert result.verdict == "failed"
        assert "hashes rows in another way" in result.detail


REFUSED: dict[str, tuple[str, str, dict[str, Any], int]] = {
    "no token": ("POST", "/v1/comparisons?region=x", {"headers": {"authorization": "Bearer no"}}, 401),
    "an unknown region": ("POST", "/v1/comparisons?region=atlantis", {}, 400),
    "an unknown session": ("POST", "/v1/comparisons/1234/nodes", {"content": b"x"}, 404),
    "garbage for nodes": ("POST", "/v1/comparisons/{id}/nodes", {"content": b"garbage"}, 400),
    "garbage for rows": ("POST", "/v1/comparisons/{id}/rows", {"content": b""}, 400),
    "garbage for images": ("POST", "/v1/comparisons/{id}/images", {"content": b'{"a": 1}'}, 400),
    "text for images": ("POST", "/v1/comparisons/{id}/images", {"content": b'["x"]'}, 400),
    "garbage for rows by key": ("POST", "/v1/comparisons/{id}/existing", {"content": b"[1]"}, 400),
    "a short key": ("POST", "/v1/comparisons/{id}/existing", {"content": b'[["votes", "x"]]'}, 400),
    "a key that is no UUID": ("POST", "/v1/comparisons/{id}/existing", {"content": b'[["comments", "x"]]'}, 400),
    "an unknown table": ("POST", "/v1/comparisons/{id}/existing", {"content": b'[["fence", "1"]]'}, 400),
    "too many images": ("POST", "/v1/comparisons/{id}/images", {"content": b"[" + b"1," * 4096 + b"1]"}, 400),
    "too large": ("POST", "/v1/comparisons/{id}/nodes", {"content": b"x" * 200_000}, 413),
    "an unknown part": ("POST", "/v1/comparisons/{id}/secrets", {"content": b"x"}, 404),
    "another method": ("GET", "/v1/comparisons", {}, 405),
}


async def test_hostile_requests_are_refused_and_end_nothing(rig: Rig) -> None:
    async with repairing(rig) as site:
        await site.fill(3)
        base = f"http://127.0.0.1:{rig.port}"
        headers = {"authorization": f"Bearer {TOKEN}"}
        async with httpx.AsyncClient(base_url=base, headers=headers) as client:
            opened = await client.post(f"/v1/comparisons?region={rig.region}")
            assert opened.status_code == 200
            session = opened.json()["id"]
            for what, (method, path, more, status) in REFUSED.items():
                answer = await client.request(method, path.format(id=session), **more)
                assert (what, answer.status_code) == (what, status)
            assert site.server.comparisons is not None
            assert site.server.comparisons.open_for == rig.region
            assert (await client.delete(f"/v1/comparisons/{session}")).status_code == 204
            await until(lambda: site.server.comparisons is not None and site.server.comparisons.open_for is None)
        assert (await site.run()).verdict == "clean"


async def test_a_session_expires_and_another_region_waits_for_it(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sync.channel.direct.comparisons.IDLE_S_MAX", 2.0)
    async with repairing(rig) as site:
        await site.fill(3)
        comparisons = site.server.comparisons
        assert comparisons is not None
        current = rig.leaders.current
        assert current is not None
        assert (await comparisons.open(RegionName("other"), current, scrub=False)).status_code == 200
        with monkeypatch.context() as impatient:
            impatient.setattr("sync.channel.direct.comparisons.WAIT_S_MAX", 0.1)
            assert (await site.run()).detail == "Another region compares now. Try again in a second."
        # With the usual limit it waits until the other session has expired.
        assert (await site.run()).verdict == "clean"
        assert comparisons.counts.expired == 1
        assert rig.sql("SELECT count(*) FROM pg_replication_slots WHERE temporary") == [(0,)]


async def test_a_session_ends_with_the_leadership(rig: Rig) -> None:
    async with repairing(rig) as site:
        await site.fill(3)
        comparisons = site.server.comparisons
        current = rig.leaders.current
        assert comparisons is not None
        assert current is not None
        assert (await comparisons.open(rig.region, current, scrub=False)).status_code == 200
        rig.leaders.set(leadership(rig.region, 2, "promoting"))
        await until(lambda: comparisons.open_for is None)
        with pytest.raises(ComparisonFailed):
            async with ComparisonClient(topology=rig.topology, leaders=rig.leaders, token="wrong").open():
                raise AssertionError("it is refused")

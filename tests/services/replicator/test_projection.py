"""Tests how changes of the ledger appear in the view, with real PostgreSQL on both sides."""

import asyncio
import uuid
from typing import Any

import asyncpg
import pytest

from regions.position import Position
from services import ledger, view
from services.replicator.projection import ViewProjection
from services.tables import TABLES
from sync.apply import LocatedChange
from sync.change import Change
from tests.sync.rig import Rig, differences, writing

pytestmark = pytest.mark.integration

# Random text does not compress enough to fit into the row, so PostgreSQL stores it out of line.
LONG_BODY = "".join(uuid.uuid4().hex for _ in range(2000)) + "ünïcödé 😀 \\ \" ' \t\n end"


async def test_values_of_every_kind_arrive_unchanged(rig: Rig) -> None:
    rig.create_slot()
    rig.fence()
    async with rig.replicating(), writing(rig) as writer:
        thread = await writer.create_thread("/ä?b=c&d=" + "k" * 1990)
        for body in ("", " ", "\\N", "null", "{}", '"', "\x01\x7f", "𝄞 e\u0301 \u202e", "a\r\nb", LONG_BODY):
            await writer.post(thread, body)
        await writer.connection.execute(
            "INSERT INTO palaver.comments (site_id, thread_id, depth, epoch) VALUES ($1, $2, 0, 1)",
            writer.site,
            thread,
        )
        await writer.connection.execute(
            "UPDATE palaver.sites SET origins = $1, settings = $2, version = 2",
            ["https://a.b", 'quo"te,{}', "NULL", ""],
            '{"nested": {"text": "a\\"b", "none": null, "list": [1, 2.5, true]}}',
        )
        await rig.caught_up()
    assert differences(rig) == []


async def test_an_edit_of_a_site_arrives_in_the_view(rig: Rig) -> None:
    rig.create_slot()
    rig.fence()
    async with rig.replicating(), writing(rig) as writer:
        edit = ledger.statement("edit_site")
        origins = ["https://new.example", "https://other.example"]
        for name, replaced in (("new", None), (None, origins), ("new", origins)):
            row = await writer.connection.fetchrow(edit, 1, writer.site, name, replaced, None)
            assert row is not None
            assert row["outcome"] == "edited"
        await rig.caught_up()
    assert differences(rig) == []
    assert rig.view_sql("SELECT name, origins, version FROM sites") == [("new", origins, 3)]


async def test_a_value_out_of_line_survives_an_update_of_another_column(rig: Rig) -> None:
    rig.create_slot()
    rig.fence()
    async with writing(rig) as writer:
        thread = await writer.create_thread()
        comment = await writer.post(thread, LONG_BODY)
        async with rig.replicating():
            await rig.caught_up()
            await writer.connection.execute("UPDATE palaver.comments SET state = 'pending', version = version + 1")
            await writer.connection.execute(
                "UPDATE palaver.sites SET settings = $1, version = version + 1", '"' + LONG_BODY.encode().hex() + '"'
            )
            await writer.connection.execute("UPDATE palaver.sites SET name = 'renamed', version = version + 1")
            await rig.caught_up()
        assert differences(rig) == []
        # The same with both images in one batch: apply is down while the ledger changes.
        await writer.connection.execute("UPDATE palaver.comments SET body = $1, version = version + 1", LONG_BODY[::-1])
        await writer.connection.execute("UPDATE palaver.comments SET depth = 1, version = version + 1")
        async with rig.replicating():
            await rig.caught_up()
    assert rig.view_sql("SELECT body FROM comments WHERE id = %s", comment) == [(LONG_BODY[::-1],)]
    assert rig.view_sql("SELECT name FROM sites") == [("renamed",)]


async def test_counts_follow_every_transition_of_a_state(rig: Rig) -> None:
    rig.create_slot()
    rig.fence()
    async with rig.replicating(), writing(rig) as writer:
        thread = await writer.create_thread()
        parent = await writer.post(thread)
        reply = await writer.post(thread, parent=parent)
        seen: list[tuple[object, ...]] = []
        for state in ("pending", "approved", "spam", "deleted", "rejected", "approved"):
            await writer.connection.execute(
                "UPDATE palaver.comments SET state = $1, version = version + 1 WHERE id = $2", state, reply
            )
            await rig.caught_up()
            assert differences(rig) == []
            seen += rig.view_sql(
                "SELECT t.count, c.reply_count FROM threads AS t, comments AS c WHERE c.id = %s", parent
            )
    assert seen == [(1, 0), (2, 1), (1, 0), (1, 1), (1, 0), (2, 1)]


async def test_deleted_rows_leave_the_view_and_its_counts(rig: Rig) -> None:
    rig.create_slot()
    rig.fence()
    async with rig.replicating(), writing(rig) as writer:
        thread, other = await writer.create_thread("/a"), await writer.create_thread("/b")
        parent = await writer.post(thread)
        reply = await writer.post(thread, parent=parent)
        await writer.post(other)
        await rig.caught_up()
        ((before,),) = rig.view_sql("SELECT page_version FROM threads WHERE id = %s", thread)
        await writer.connection.execute("DELETE FROM palaver.comments WHERE id = $1", reply)
        await writer.connection.execute("DELETE FROM palaver.threads WHERE id = $1", other)
        await writer.connection.execute("DELETE FROM palaver.comments WHERE thread_id = $1", other)
        # Inserted and deleted within one batch: it must leave no trace.
        async with writer.connection.transaction():
            ghost = await writer.post(thread, parent=parent)
            await writer.connection.execute("DELETE FROM palaver.comments WHERE id = $1", ghost)
        await rig.caught_up()
    assert differences(rig) == []
    assert rig.view_sql("SELECT count, page_version > %s FROM threads", before) == [(1, True)]


async def test_a_page_that_gains_and_loses_rows_in_one_batch_gets_one_new_version(rig: Rig) -> None:
    rig.create_slot()
    rig.fence()
    async with writing(rig) as writer:
        thread = await writer.create_thread()
        parent = await writer.post(thread)
        gone = await writer.post(thread, parent=parent)
        async with rig.replicating():
            await rig.caught_up()
        rig.applied.clear()
        # Apply is down while the ledger changes, so all changes are one batch.
        await writer.connection.execute("DELETE FROM palaver.comments WHERE id = $1", gone)
        for _ in range(3):
            await writer.post(thread, parent=parent)
        async with rig.replicating():
            await rig.caught_up()
    assert differences(rig) == []
    ((newest,),) = rig.view_sql("SELECT page_version FROM threads")
    moved = [(applied.transactions, applied.effects) for applied in rig.applied if applied.effects]
    (((*_, last), (page,)),) = moved
    assert page.version == newest == last.position.lsn


async def test_an_older_image_that_comes_later_in_a_batch_changes_nothing(rig: Rig) -> None:
    """This occurs after a snapshot, when the stream resumes at the position of the slot."""
    site, thread, comment = (str(uuid.uuid4()) for _ in range(3))
    rows = {
        "sites": {"id": site, "name": "s", "origins": "{}", "settings": "{}", "version": "1"},
        "threads": {"id": thread, "site_id": site, "key": "/", "title": "t", "state": "open", "version": "1"},
    }
    common = {
        "id": comment, "site_id": site, "thread_id": thread, "parent_id": None, "depth": "0", "author_id": None,
        "author_name": "Ann", "author_url": None, "created_at": "2026-01-01 00:00:00+00", "edited_at": None,
    }  # fmt: skip
    newer = common | {"body": "", "state": "deleted", "version": "12", "deleted_at": "2026-01-02 00:00:00+00"}
    older = common | {"body": "hello", "state": "approved", "version": "9", "deleted_at": None}
    images: list[tuple[str, dict[str, Any]]] = [*rows.items(), ("comments", newer), ("comments", older)]
    changes = [
        LocatedChange(
            position=Position(1, 10 + number), change=Change(table=table, op="insert", key={"id": row["id"]}, row=row)
        )
        for number, (table, row) in enumerate(images)
    ]
    connection = await asyncpg.connect(rig.view_url)
    try:
        await ViewProjection(TABLES).project(connection, changes)
    finally:
        await connection.close()
    assert rig.view_sql("SELECT body, state, version FROM comments") == [("", "deleted", 12)]
    assert rig.view_sql("SELECT count FROM threads") == [(0,)]


async def test_the_functions_can_be_replaced_while_apply_uses_them(rig: Rig) -> None:
    rig.create_slot()
    rig.fence()
    async with rig.replicating() as applier, writing(rig) as writer:
        thread = await writer.create_thread()
        for _ in range(3):
            parent = await writer.post(thread)
            await rig.caught_up()
            await asyncio.to_thread(view.migrate, rig.view_url)
            await writer.post(thread, parent=parent)
        await rig.caught_up()
        assert (applier.counts.restarts, applier.dead_letters) == (0, 0)
    assert differences(rig) == []


async def test_only_changed_pages_get_a_new_version_and_are_published(rig: Rig) -> None:
    rig.create_slot()
    rig.fence()
    async with rig.replicating(), writing(rig) as writer:
        still, moving = await writer.create_thread("/still"), await writer.create_thread("/moving")
        await writer.post(still)
        await rig.caught_up()
        before = rig.view_sql("SELECT page_version FROM threads WHERE id = %s", still)
        rig.applied.clear()
        for _ in range(3):
            await writer.post(moving)
        await writer.connection.execute(
            "UPDATE palaver.threads SET state = 'closed', version = version + 1 WHERE id = $1", moving
        )
        await rig.caught_up()
    published = [page for applied in rig.applied for page in applied.effects]
    assert {page.key for page in published} == {"/moving"}
    assert [page.version for page in published] == sorted({page.version for page in published})
    assert rig.view_sql("SELECT page_version FROM threads WHERE id = %s", still) == before
    assert rig.view_sql("SELECT page_version FROM threads WHERE id = %s", moving) == [(published[-1].version,)]


async def test_a_batch_of_thousands_is_applied_except_one_poison_change(rig: Rig) -> None:
    rig.create_slot()
    rig.fence()
    async with writing(rig) as writer:
        thread = await writer.create_thread()
        await writer.connection.execute("ALTER TABLE palaver.comments ALTER COLUMN version TYPE text")
        await writer.connection.execute(
            "INSERT INTO palaver.comments (site_id, thread_id, depth, body, epoch, version)"
            " SELECT $1, $2, 0, 'b', 1, CASE n WHEN 777 THEN 'odd' ELSE '1' END FROM generate_series(1, 3000) AS n",
            writer.site,
            thread,
        )
        async with rig.replicating() as applier:
            await rig.caught_up()
    assert applier.dead_letters == 1
    assert rig.view_sql("SELECT count FROM threads") == [(2999,)]
    ((reason,),) = rig.view_sql("SELECT reason FROM dead_letters")
    assert "odd" in str(reason)

"""Tests what dead letters contain, when their content is erased, and how they are retried and discarded."""

import asyncio
import contextlib
import uuid
from collections.abc import AsyncGenerator
from typing import Any

import orjson
import pytest

from regions.position import Position
from services import view
from services.replicator.projection import ViewProjection
from services.view.cache import Invalidation
from sync import dead_letters
from sync.apply import Applier, PoisonChange
from sync.change import Change, change_fields
from sync.dead_letter_orders import DeadLetterOrders, UnknownLetters
from tests.sync.rig import CELL, Rig, differences, running, until
from tests.sync.test_apply import SITE, THREAD, comment, connected, insert, thread, transaction
from tests.sync.test_between_batches import HandChannel
from tests.sync.test_repair import repairing

pytestmark = pytest.mark.integration

SECRET = "a secret text"
POISON: dict[str, Any] = {"depth": "deep"}
AUTHOR: dict[str, Any] = {"author_id": "u1", "author_name": "Ann Secret", "author_url": None}
GONE: dict[str, Any] = {"body": None, "author_id": None, "author_name": None, "author_url": None, "state": "deleted"}


def written(version: int, number: int = 1, **more: str | None) -> Change:
    return comment(number, **{**AUTHOR, "body": SECRET, "version": str(version), **more})


def deletion(version: int, **more: str | None) -> Change:
    return comment(1, **{**GONE, "version": str(version), **more})


def vote(user: str, value: str, number: int = 1) -> Change:
    row = {"comment_id": str(uuid.UUID(int=number)), "user_id": user, "site_id": SITE, "thread_id": THREAD}
    key = {name: row[name] for name in ("comment_id", "user_id")}
    return Change(table="votes", op="insert", key=key, row={**row, "value": value, "version": "1"})


def stored(rig: Rig) -> str:
    return str(rig.view_sql("SELECT id, change, reason, erased_at FROM dead_letters ORDER BY id"))


@contextlib.asynccontextmanager
async def operating(rig: Rig) -> AsyncGenerator[tuple[Any, DeadLetterOrders[Invalidation], list[Invalidation]]]:
    """Run apply with a channel that delivers what the test puts into it, and take orders."""
    channel, applier, voided = HandChannel(), rig.applier(), list[Invalidation]()
    orders = DeadLetterOrders(
        cell=CELL,
        applier=applier,
        registry=rig.tables,
        projection=ViewProjection(rig.tables),
        on_retried=voided.extend,
    )

    async def deliver(lsn: int, *changes: Change) -> Applier[Invalidation]:
        channel.items.put_nowait([transaction(lsn, *changes)])
        await applier.wait_until_applied(Position(1, lsn))
        return applier

    async with running(applier.run(channel)):
        await until(lambda: applier.trouble is None)
        yield deliver, orders, voided


@pytest.mark.parametrize(
    "changes",
    [
        [[written(1, **POISON)], [deletion(2)]],
        [[written(1, **POISON)], [deletion(2, **POISON)]],
        [[comment(8), written(1, **POISON), deletion(2), comment(7, **POISON)]],
        [[written(1, **POISON), deletion(2, **POISON)]],
        [[written(3)], [deletion(4)], [written(2, **POISON)]],
        [[deletion(2, **POISON)], [written(1, **POISON)]],
        [[written(1, **POISON)], [Change(table="comments", op="delete", key=written(1).key, row={})]],
        [[insert("comments", **{**written(1).row, "id": None})]],
    ],
    ids=["later", "as-letter", "same-batch", "letter-in-same-batch", "before", "before-as-letter", "row", "no-key"],
)
async def test_the_content_of_a_letter_is_erased_with_its_comment(rig: Rig, changes: list[list[Change]]) -> None:
    async with connected(rig) as connection:
        applier = rig.applier()
        await applier.apply(connection, [transaction(10, thread())])
        for number, batch in enumerate(changes):
            await applier.apply(connection, [transaction(20 + number, *batch)])
    assert rig.view_sql("SELECT count(*) > 0 FROM dead_letters") == [(True,)]
    assert SECRET not in stored(rig)
    assert "Ann Secret" not in stored(rig)


async def test_only_letters_of_the_erased_comment_lose_content(rig: Rig) -> None:
    async with connected(rig) as connection:
        applier = rig.applier()
        await applier.apply(connection, [transaction(10, thread(), written(1, **POISON), written(1, 2, **POISON))])
        await applier.apply(connection, [transaction(20, written(2, 3), comment(4))])
        assert stored(rig).count(SECRET) == 2
        await applier.apply(connection, [transaction(30, deletion(2))])
        assert applier.letters.counts.erased == 1
    assert stored(rig).count(SECRET) == 1
    assert rig.view_sql("SELECT id FROM dead_letters WHERE erased_at IS NOT NULL") == [(1,)]


async def test_letters_of_votes_go_with_their_comment_and_do_not_come_back(rig: Rig) -> None:
    async with connected(rig) as connection:
        applier = rig.applier()
        await applier.apply(connection, [transaction(10, thread(), written(1), vote("u7", "many"))])
        assert "u7" in stored(rig)
        await applier.apply(connection, [transaction(20, deletion(2))])
        assert applier.dead_letters == 0
        await applier.apply(connection, [transaction(30, vote("u8", "many"))])
    assert "u8" not in stored(rig)


async def test_a_reason_does_not_quote_the_row(rig: Rig) -> None:
    async with connected(rig) as connection:
        applier = rig.applier()
        await applier.apply(connection, [transaction(10, thread(), written(1, depth=None))])
    ((reason,),) = rig.view_sql("SELECT reason FROM dead_letters")
    assert str(reason).startswith("NotNullViolationError: null value in column")
    assert SECRET not in str(reason)
    assert applier.letters.kinds == {"NotNullViolationError": 1}


async def test_a_full_table_takes_no_letter_and_apply_continues(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dead_letters, "BYTES_MAX", 2500)
    async with connected(rig) as connection:
        applier = rig.applier()
        applier.letters = dead_letters.DeadLetters(CELL, rig.tables, letters_max=2)
        poison = [written(1, number, **POISON) for number in range(1, 4)]
        await applier.apply(connection, [transaction(10, thread(), *poison, comment(9))])
        assert (applier.dead_letters, applier.counts.dead_letters, applier.letters.counts.refused) == (2, 3, 1)
        await connection.execute("DELETE FROM dead_letters WHERE id = 1")
        await applier.apply(connection, [transaction(20, written(1, 5, body="long" * 1000, **POISON))])
        assert (applier.dead_letters, applier.letters.counts.refused) == (1, 2)
    assert rig.view_sql("SELECT count FROM threads") == [(1,)]


async def test_a_change_that_is_delivered_again_is_one_letter(rig: Rig) -> None:
    async with connected(rig) as connection:
        applier = rig.applier()
        part = transaction(15, written(1, **POISON), partial=True)
        await applier.apply(connection, [part])
        await applier.apply(connection, [part, transaction(20, thread())])
    assert applier.dead_letters == 1


async def test_rows_that_clash_only_within_a_batch_make_no_letter(rig: Rig) -> None:
    key = {"id": THREAD}
    other = {"id": str(uuid.uuid4()), "site_id": SITE, "key": "/", "title": None, "state": "open", "version": "1"}
    async with connected(rig) as connection:
        applier = rig.applier()
        await applier.apply(connection, [transaction(10, thread(), comment(1))])
        gone = Change(table="threads", op="delete", key=key, row={})
        await applier.apply(connection, [transaction(20, comment(2), gone, insert("threads", **other), comment(3))])
        assert applier.dead_letters == 0
    assert rig.view_sql("SELECT id::text FROM threads") == [(other["id"],)]
    assert rig.view_sql("SELECT count(*) FROM comments") == [(3,)]


async def test_a_retry_writes_the_row_removes_the_letter_and_voids_the_page(rig: Rig) -> None:
    other = str(uuid.uuid4())
    clash = insert("threads", id=other, site_id=SITE, key="/", title=None, state="open", version="1")
    async with operating(rig) as (deliver, orders, voided):
        applier = await deliver(10, thread())
        await deliver(20, clash)
        assert [(one["id"], one["table"], one["attempts"]) for one in await orders.page(0)] == [(1, "threads", 0)]
        assert await orders.page(1) == []
        ((kept,),) = [[one["reason"]] for one in await orders.retry([1])]
        assert "duplicate key" in str(kept)
        (one,) = await orders.page(0)
        assert (one["attempts"], one["position"]) == (1, "main.1.0000000000000014")
        assert voided == []
        rig.view_sql("UPDATE threads SET key = '/elsewhere'")
        assert await orders.retry([1]) == [{"id": 1, "reason": None}]
        assert await orders.page(0) == []
        assert [page.key for page in voided] == ["/"]
        assert (applier.dead_letters, applier.letters.counts.retried, applier.letters.counts.failed) == (0, 1, 1)
    assert rig.view_sql("SELECT count(*) FROM threads") == [(2,)]


async def test_a_retry_of_an_old_image_does_not_overwrite_a_newer_version(rig: Rig) -> None:
    async with operating(rig) as (deliver, orders, _):
        await deliver(10, thread(), written(1), written(2, created_at="never"))
        await deliver(20, written(3, body="the newest"))
        rig.view_sql("""UPDATE dead_letters SET change = jsonb_set(change, '{row,created_at}', '"2026-01-01"')""")
        assert await orders.retry([1]) == [{"id": 1, "reason": None}]
    assert rig.view_sql("SELECT version, body FROM comments") == [(3, "the newest")]
    assert rig.view_sql("SELECT count FROM threads") == [(1,)]


async def test_a_retry_does_not_bring_back_what_was_erased(rig: Rig) -> None:
    """The older image and the deletion are letters, and only the deletion can be applied later."""
    async with operating(rig) as (deliver, orders, _):
        await deliver(10, thread(), written(1), written(2, **POISON), deletion(3, **POISON), vote("u", "many"))
        rig.view_sql("""UPDATE dead_letters SET change = jsonb_set(change, '{row,depth}', '"0"')
                        WHERE change ->> 'table' = 'comments'""")
        (one,) = await orders.retry([1])
        assert "its content was erased" in str(one["reason"])
        assert rig.view_sql("SELECT version FROM comments") == [(1,)]
        assert await orders.retry([1, 2]) == [{"id": 2, "reason": None}, {"id": 1, "reason": None}]
    assert rig.view_sql("SELECT version, state, body, author_name FROM comments") == [(3, "deleted", None, None)]
    assert rig.view_sql("SELECT count(*) FROM dead_letters") == [(0,)]


async def test_a_deletion_is_not_retried(rig: Rig) -> None:
    gone = Change(table="comments", op="delete", key={"id": "no uuid"}, row={})
    async with operating(rig) as (deliver, orders, _):
        await deliver(10, thread(), written(2), gone)
        rig.view_sql("UPDATE dead_letters SET change = jsonb_set(change, '{key,id}', %s)", f'"{written(1).key["id"]}"')
        (one,) = await orders.retry([1])
        assert "a deletion has no version" in str(one["reason"])
    assert rig.view_sql("SELECT count(*) FROM comments") == [(1,)]


async def test_letters_are_shown_and_discarded_and_an_unknown_one_stops_an_order(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    async with operating(rig) as (deliver, orders, _):
        applier = await deliver(10, thread(), written(1, **POISON), written(1, 2, **POISON))
        shown = await orders.show(2)
        assert (shown["table"], shown["op"], shown["erased"]) == ("comments", "insert", False)
        assert SECRET in str(shown["row"])
        for order in (orders.show(9), orders.retry([1, 9]), orders.discard([1, 9], "me")):
            with pytest.raises(UnknownLetters, match="no dead letter 9"):
                await order
        assert applier.dead_letters == 2
        assert await orders.discard([1], "me") == 1
        assert (applier.dead_letters, applier.letters.counts.discarded) == (1, 1)
    assert "dead letter 1 discarded by me" in caplog.text
    assert SECRET not in caplog.text


async def test_a_repair_erases_letters_of_the_rows_that_it_erases(rig: Rig) -> None:
    async with repairing(rig) as site:
        await site.fill(2)
        ((found,),) = rig.sql("SELECT id::text FROM palaver.comments WHERE body = 'comment 0'")
        erasing = "state = 'deleted', version = 2, body = NULL, author_id = NULL, author_name = NULL, author_url = NULL"
        await site.writer.connection.execute("DELETE FROM palaver.votes")
        await site.writer.connection.execute(f"UPDATE palaver.comments SET {erasing} WHERE id = $1", found)
        await rig.caught_up()
        rig.view_sql("UPDATE comments SET body = 'back', version = 1 WHERE id = %s", found)
        quoting = Change(table="comments", op="insert", key={"id": str(found)}, row={"id": str(found), "body": SECRET})
        async with site.applier.between_batches() as connection:
            await site.applier.letters.record(connection, Position(1, 1), quoting, PoisonChange("odd"))
        assert SECRET in stored(rig)
        assert (await site.run()).verdict == "mended"
        assert SECRET not in stored(rig)


async def test_a_retried_row_is_compared_like_a_change_without_a_position(rig: Rig) -> None:
    async with repairing(rig) as site:
        thread_id = await site.fill(2)
        rig.view_sql("ALTER TABLE comments ADD CONSTRAINT odd CHECK (body <> 'odd')")
        await site.writer.post(thread_id, "odd")
        await site.writer.post(thread_id, "even")
        await rig.caught_up()
        rig.view_sql("ALTER TABLE comments DROP CONSTRAINT odd")
        orders = DeadLetterOrders(
            cell=CELL,
            applier=site.applier,
            registry=rig.tables,
            projection=ViewProjection(rig.tables),
            on_retried=site.effects.extend,
        )
        assert await orders.retry([1]) == [{"id": 1, "reason": None}]
        assert rig.view_sql("SELECT batch FROM merkle_changes ORDER BY id DESC LIMIT 1") == [(None,)]
        assert differences(rig) == []
        assert (await site.run()).verdict == "clean"


async def test_letters_of_the_previous_release_are_erased_too(rig: Rig) -> None:
    """Their reasons have details, and they do not name the row that they quote."""
    rig.view_sql(
        "ALTER TABLE dead_letters DROP COLUMN content_of, DROP COLUMN erases, DROP COLUMN erased_at,"
        " DROP COLUMN attempts, DROP COLUMN bytes"
    )
    rig.view_sql("UPDATE alembic_version SET version_num = '0004'")
    old = written(1, **POISON)
    reason = f"NotNullViolationError: null value\nDETAIL:  Failing row contains ({SECRET})."
    for one in (old, vote("u7", "many")):
        rig.view_sql(
            "INSERT INTO dead_letters (cell, epoch, lsn, change, reason) VALUES (%s, 1, '0/1', %s::jsonb, %s)",
            CELL,
            orjson.dumps(change_fields(one)).decode(),
            reason,
        )
    await asyncio.to_thread(view.migrate, rig.view_url)
    assert rig.view_sql("SELECT reason, erases, bytes > 100 FROM dead_letters WHERE id = 1") == [
        ("NotNullViolationError: null value", False, True)
    ]
    async with connected(rig) as connection:
        applier = rig.applier()
        await applier.letters.load(connection)
        await applier.apply(connection, [transaction(10, thread(), deletion(2))])
        assert applier.dead_letters == 1
    assert SECRET not in stored(rig)

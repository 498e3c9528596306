"""Tests that apply stops before a change of a newer schema, loses none, and continues in a version that knows it."""

from dataclasses import replace

import pytest

from services.tables import COMMENTS, SITES, THREADS
from sync import apply
from sync.registry import Column, Registry
from tests.sync.rig import Rig, differences, until, writing

pytestmark = pytest.mark.integration


@pytest.fixture(autouse=True)
def short_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(apply, "SCHEMA_UNKNOWN_PAUSE_S", 0.05)


@pytest.mark.parametrize(
    ("older", "newer", "migration", "reason"),
    [
        (
            Registry(SITES, THREADS, COMMENTS),
            Registry(
                SITES, THREADS, replace(COMMENTS, columns=(*COMMENTS.columns, Column(name="language", type="text")))
            ),
            "ALTER TABLE palaver.comments ADD COLUMN language text DEFAULT 'en'",
            "columns that this version lacks: language",
        ),
        (
            Registry(SITES, THREADS, COMMENTS),
            Registry(SITES, THREADS, replace(COMMENTS, schemas=frozenset({1, 2}))),
            "UPDATE palaver.table_schemas SET schema = 2 WHERE name = 'comments'",
            "announces schema 2 of comments; this version knows 1",
        ),
        (
            Registry(SITES, THREADS),
            Registry(SITES, THREADS, COMMENTS),
            "SELECT 1",
            "a table that this version lacks: comments",
        ),
    ],
    ids=["column", "announcement", "table"],
)
async def test_an_older_version_stops_and_a_newer_one_continues(
    rig: Rig, older: Registry, newer: Registry, migration: str, reason: str
) -> None:
    rig.tables = older
    if len(older) < len(newer):
        rig.sql("DELETE FROM palaver.table_schemas WHERE name = 'comments'")
    rig.create_slot()
    rig.fence()
    async with writing(rig) as writer:
        async with rig.replicating() as applier:
            thread = await writer.create_thread("/before")
            await rig.caught_up()
            rig.sql(migration)
            await writer.post(thread)
            await writer.create_thread("/after")
            await until(lambda: applier.counts.restarts >= 3)
            assert reason in str(applier.trouble)
            assert applier.schema_unknown is not None
            assert rig.view_sql("SELECT key FROM threads") == [("/before",)]
            assert rig.view_sql("SELECT count(*) FROM dead_letters") == [(0,)]
        rig.tables = newer
        async with rig.replicating() as applier:
            await rig.caught_up()
            assert (applier.trouble, applier.schema_unknown) == (None, None)
    assert differences(rig) == []
    assert rig.view_sql("SELECT count(*) FROM dead_letters") == [(0,)]


async def test_the_changes_before_an_unknown_one_are_applied_also_if_one_batch_has_both(rig: Rig) -> None:
    rig.create_slot()
    rig.fence()
    async with writing(rig) as writer:
        await writer.create_thread("/before")
        rig.sql("ALTER TABLE palaver.threads ADD COLUMN mood text DEFAULT 'calm'")
        await writer.create_thread("/after")
        async with rig.replicating() as applier:
            await until(lambda: applier.schema_unknown is not None and applier.counts.restarts >= 2)
            assert rig.view_sql("SELECT key FROM threads") == [("/before",)]
            assert rig.meter.applied is not None
            assert [applied.position for applied in rig.applied if applied.transactions]


async def test_a_newer_version_applies_the_stream_of_an_older_ledger(rig: Rig) -> None:
    """A ledger of version 0.1.0 announces nothing; the newer version knows one table and one column more."""
    rig.sql("ALTER PUBLICATION palaver DROP TABLE palaver.table_schemas")
    language = Column(name="language", type="text")
    newer = replace(COMMENTS, schemas=frozenset({1, 2}), columns=(*COMMENTS.columns, language))
    rig.tables = Registry(SITES, THREADS, newer, replace(SITES, name="badges"))
    rig.create_slot()
    rig.fence()
    async with writing(rig) as writer, rig.replicating() as applier:
        await writer.post(await writer.create_thread())
        await rig.caught_up()
        assert (applier.counts.restarts, applier.dead_letters) == (0, 0)
    assert differences(rig) == []

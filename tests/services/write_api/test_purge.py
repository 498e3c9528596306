"""Tests that Idempotency-Keys expire by service time, independently of wall clocks."""

import logging
import re
import shutil
import uuid
from collections.abc import Generator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from services import ledger
from services.schema.migration import migrate_database
from services.write_api.pool import LedgerUnavailable
from services.write_api.purge import BATCH_ROWS, INTERVAL_S, KEPT_S, STEP_S_MAX, Purge, ServiceClock
from tests import servers
from tests.services.write_api.conftest import Api, write_api

DAY_S = 24 * 3600


class Clock:
    """A clock that the test sets."""

    now_s = 500_000.0

    def __call__(self) -> float:
        return self.now_s


def test_service_time_is_counted_once_in_whole_seconds() -> None:
    clock = Clock()
    service = ServiceClock(clock)
    assert service.step(1) == 0
    counted = 0
    for _ in range(10):
        clock.now_s += 60.25
        counted += service.step(1)
    assert counted == 602
    assert service.step(1) == 0


def test_time_without_a_serving_leader_is_not_counted() -> None:
    clock = Clock()
    service = ServiceClock(clock)
    service.step(1)
    clock.now_s += 60
    assert service.step(None) == 0
    clock.now_s += 60
    assert service.step(1) == 0
    clock.now_s += 60
    assert service.step(2) == 0  # another epoch: the previous leader has counted its time
    clock.now_s += 7 * DAY_S  # the machine was suspended
    assert service.step(2) == STEP_S_MAX
    assert service.step(2) == 0


def test_a_key_lives_for_a_day_wherever_in_a_counting_step_it_was_created() -> None:
    assert KEPT_S - STEP_S_MAX >= DAY_S
    assert INTERVAL_S < STEP_S_MAX


@pytest.mark.integration
def test_the_age_of_a_key_does_not_depend_on_the_wall_clock(ledger_server: servers.PostgresServer) -> None:
    ((default,),) = ledger_server.sql(
        "SELECT column_default FROM information_schema.columns"
        " WHERE table_name = 'idempotency_keys' AND column_name = 'made_at_s'"
    )
    assert default.removeprefix("palaver.") == "service_seconds()"
    ((function,),) = ledger_server.sql("SELECT pg_get_functiondef('palaver.service_seconds'::regproc)")
    for text in (function, ledger.statement("add_service_time"), ledger.statement("purge_idempotency_keys")):
        assert not re.search(r"now\(|clock_|timestamp|current_(time|date)|created_at|interval", text), text


async def keys(ledger_server: servers.PostgresServer, site: str) -> list[Any]:
    return [
        row[0]
        for row in ledger_server.sql(
            "SELECT key FROM palaver.idempotency_keys WHERE site_id = %s ORDER BY key", uuid.UUID(site)
        )
    ]


@pytest.mark.integration
async def test_keys_expire_after_a_day_of_service_and_no_sooner(
    api: Api, ledger_server: servers.PostgresServer
) -> None:
    site = (await api.site())["id"]
    clock = Clock()
    purge = Purge(api.pool, ServiceClock(clock))
    await purge.round(1)
    clock.now_s += 100
    await purge.round(1)
    assert (await api.post(site, {"idempotency-key": "old"})).status_code == 201
    # `created_at` is a year in the past, later a year in the future, as after a jump of the wall clock.
    ledger_server.sql("UPDATE palaver.idempotency_keys SET created_at = now() - interval '1 year' WHERE key = 'old'")
    await serve(purge, clock, DAY_S)
    assert await keys(ledger_server, site) == ["old"]
    ledger_server.sql("UPDATE palaver.idempotency_keys SET created_at = now() + interval '1 year' WHERE key = 'old'")
    assert (await api.post(site, {"idempotency-key": "new"})).status_code == 201
    # Another leader continues with the counter in the ledger.
    purge = Purge(api.pool, ServiceClock(clock))
    await purge.round(1)
    await serve(purge, clock, STEP_S_MAX)
    assert await keys(ledger_server, site) == ["new"]


async def serve(purge: Purge, clock: Clock, seconds: int) -> None:
    for _ in range(0, seconds, 60):
        clock.now_s += 60
        await purge.round(1)


@pytest.mark.integration
async def test_an_ended_epoch_adds_no_service_time(api: Api, ledger_server: servers.PostgresServer) -> None:
    clock = Clock()
    purge = Purge(api.pool, ServiceClock(clock))
    before = ledger_server.sql("SELECT seconds FROM palaver.service_time")
    await purge.round(77)
    clock.now_s += 60
    await purge.round(77)
    assert ledger_server.sql("SELECT seconds FROM palaver.service_time") == before


@pytest.fixture
def first_schema(tmp_path: Path) -> Generator[servers.PostgresServer]:
    """A ledger with the schema of the previous release. Only an agent of this release migrates it."""
    folder = Path(ledger.__file__).parent
    scripts = tmp_path / "migrations"
    shutil.copytree(folder / "migrations", scripts, ignore=shutil.ignore_patterns("v000[!1]_*"))
    later = ("palaver.service_time", "palaver.votes")
    repeatable: list[Path] = []
    for path in (*sorted((folder / "procedures").glob("*.sql")), folder / "grants.sql"):
        if "vote" not in path.name:
            lines = path.read_text().splitlines(keepends=True)
            repeatable.append(tmp_path / path.name)
            repeatable[-1].write_text("".join(line for line in lines if not any(table in line for table in later)))
    with servers.postgres() as server:
        server.sql("CREATE ROLE palaver_writer LOGIN PASSWORD 'throwaway'")
        migrate_database(server.url(), scripts=scripts, repeatable=repeatable)
        server.sql("INSERT INTO palaver.fence (epoch, fence_id, leader) VALUES (1, gen_random_uuid(), 'us-east')")
        yield server


@pytest.mark.integration
async def test_a_write_api_serves_on_a_ledger_of_the_previous_release_and_purges_after_its_migration(
    first_schema: servers.PostgresServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with write_api(first_schema.url(user="palaver_writer")) as api:
        clock = Clock()
        purge = Purge(api.pool, ServiceClock(clock))
        await purge.round(1)
        clock.now_s += 60
        assert await purge.round(1) == 0
        for text in ("add_service_time", "purge_idempotency_keys"):
            with pytest.raises(LedgerUnavailable, match="schema"):
                await api.pool.fetch(ledger.statement(text), *(1, 1, 1))
        waits = [record for record in caplog.records if record.message == "the purge waits for the ledger"]
        assert ["older than this process" in vars(record)["reason"] for record in waits] == [True, True]
        await serves_all(api)
        ledger.migrate(first_schema.url())
        clock.now_s += 60
        await purge.round(1)
        assert first_schema.sql("SELECT seconds FROM palaver.service_time") == [(60,)]
        # A fault that no migration repairs does not end the process either.
        first_schema.sql("UPDATE palaver.service_time SET seconds = 9223372036854775807")
        clock.now_s += 60
        assert await purge.round(1) == 0
        assert "the ledger refuses the purge" in caplog.messages
        await serves_all(api)


async def serves_all(api: Api) -> None:
    site = await api.site()
    posted = await api.post(site["id"], {"idempotency-key": "k"})
    assert (posted.status_code, (await api.post(site["id"], {"idempotency-key": "k"})).content) == (201, posted.content)
    address, own = posted.headers["location"], {"authorization": f"Bearer {site['api_key']}", "if-match": "*"}
    answers = [
        await api.http.get(f"/v1/sites/{site['id']}", headers={**own, "origin": "https://example.com"}),
        await api.http.patch(address, json={"body": "x"}, headers=own),
        await api.http.delete(address, headers=own),
    ]
    assert [answer.status_code for answer in answers] == [200, 200, 204]
    assert answers[0].headers["access-control-allow-origin"] == "https://example.com"


@pytest.fixture
def churned() -> Generator[servers.PostgresServer]:
    """A ledger after 40 hours of keyed writes, with a purge each minute and a vacuum every 15 minutes."""
    with servers.postgres({"autovacuum": "off"}) as server:
        ledger.migrate(server.url())
        purge = purge_for_psycopg()
        with psycopg.connect(server.url(), autocommit=True) as connection:
            for second in range(STEP_S, 40 * 3600 + 1, STEP_S):
                connection.execute("UPDATE palaver.service_time SET seconds = %s", (second,))
                connection.execute(
                    "INSERT INTO palaver.idempotency_keys (site_id, key, fingerprint, resource_id)"
                    " SELECT gen_random_uuid(), gen_random_uuid()::text, sha256('x'), gen_random_uuid()"
                    " FROM generate_series(1, %s)",
                    (KEYS_A_STEP,),
                )
                due = second - KEPT_S
                connection.execute(purge, (due - STEP_S, due, BATCH_ROWS))
                if second % 900 == 0:
                    connection.execute("VACUUM palaver.idempotency_keys")
            connection.execute("ANALYZE palaver.idempotency_keys")
        yield server


STEP_S = 300
KEYS_A_STEP = 200


def purge_for_psycopg() -> bytes:
    _, _, text = ledger.statement("purge_idempotency_keys").partition("DELETE")
    return re.sub(r"\$\d", "%s", "DELETE" + text).encode()


@pytest.mark.integration
def test_the_purge_reads_in_proportion_to_the_rows_that_it_deletes_after_forty_hours(
    churned: servers.PostgresServer,
) -> None:
    ((seconds,),) = churned.sql("SELECT seconds FROM palaver.service_time")
    due = seconds - KEPT_S

    def blocks_of(steps: int) -> tuple[int, int]:
        with psycopg.connect(churned.url(), autocommit=True) as connection:
            explain = b"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) " + purge_for_psycopg()
            row = connection.execute(explain, (due, due + steps * STEP_S, 10 * BATCH_ROWS)).fetchone()
        assert row is not None
        top = row[0][0]["Plan"]
        return top["Shared Hit Blocks"] + top["Shared Read Blocks"], top["Actual Rows"]

    nothing, _ = blocks_of(0)
    one, purged = blocks_of(1)
    ten, purged_in_ten = blocks_of(11)
    assert (purged, purged_in_ten) == (KEYS_A_STEP, 10 * KEYS_A_STEP)
    # Each key costs two visits of its row, to find and to delete it. The index cost does not grow with the table.
    assert nothing <= 5
    assert one <= 4 * purged + 20
    assert ten <= 4 * purged_in_ten + 20

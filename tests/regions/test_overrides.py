"""Overrides that weaken commits, on real PostgreSQL: how they are found, and logged once when they appear or end."""

import asyncio
import logging
from collections.abc import AsyncGenerator

import asyncpg
import pytest

from regions.member import Member, SettingOverride, quorum_names
from regions.member.overrides import NAMED_MAX, OverrideWatch, describe
from tests.regions.deployment import REGIONS, Deployment, copy_prepared, deployment
from tests.waiting import until

pytestmark = pytest.mark.integration

EAST, WEST, SOUTH = REGIONS


@pytest.fixture
async def made() -> AsyncGenerator[Deployment]:
    async with deployment() as one:
        yield one


@pytest.fixture
async def leader(made: Deployment) -> AsyncGenerator[Member]:
    member = (await copy_prepared(made))[EAST]
    await member.start_primary(epoch=1, synchronous_standby_names="")
    yield member
    await member.stop()


@pytest.fixture
async def operator(made: Deployment, leader: Member) -> AsyncGenerator[asyncpg.Connection]:
    assert leader.running
    connection = await made.connect(EAST)
    await connection.execute(
        "CREATE FUNCTION palaver.keep(n bigint, note text) RETURNS void LANGUAGE sql"
        " AS 'INSERT INTO palaver.kept VALUES (n)'"
    )
    yield connection
    connection.terminate()


async def found(leader: Member) -> set[tuple[str, str, str]]:
    return {(one.scope, one.name, one.value) for one in await leader.ledger.read_overrides()}


async def test_each_kind_of_override_is_found_and_named_as_sql_writes_it(
    leader: Member, operator: asyncpg.Connection
) -> None:
    assert await found(leader) == set()
    for statement in (
        'CREATE ROLE "odd Name"',
        "ALTER ROLE palaver_writer SET synchronous_commit = off",
        "ALTER ROLE \"odd Name\" IN DATABASE palaver SET synchronous_commit = 'remote_write'",
        "ALTER DATABASE postgres SET synchronous_commit = local",
        "ALTER ROLE ALL SET synchronous_commit = local",
        "ALTER FUNCTION palaver.keep SET work_mem = '5MB'",
        "ALTER FUNCTION palaver.keep SET synchronous_commit = off",
        "CREATE PROCEDURE public.tidy() LANGUAGE sql SET synchronous_commit = local AS ''",
    ):
        await operator.execute(statement)
    assert await found(leader) == {
        ("role", "palaver_writer", "off"),
        ("role in database", '"odd Name" in palaver', "remote_write"),
        ("database", "postgres", "local"),
        ("cluster", "all roles", "local"),
        ("function", "palaver.keep(bigint, text)", "off"),
        ("function", "public.tidy()", "local"),
    }
    for statement in (
        "DROP OWNED BY palaver_writer",
        "ALTER ROLE palaver_writer RESET synchronous_commit",
        'DROP ROLE "odd Name"',
        "ALTER DATABASE postgres RESET ALL",
        "ALTER ROLE ALL RESET ALL",
        "ALTER FUNCTION palaver.keep RESET synchronous_commit",
        "DROP PROCEDURE public.tidy()",
    ):
        await operator.execute(statement)
    assert await found(leader) == set()


async def test_only_values_weaker_than_the_quorum_are_reported_in_any_spelling(
    leader: Member, operator: asyncpg.Connection
) -> None:
    for value, is_weak in {
        "on": False,
        "ON": False,
        "true": False,
        "yes": False,
        "1": False,
        "remote_apply": False,
        "Remote_Write": True,
        "local": True,
        "OFF": True,
        "false": True,
        "no": True,
        "0": True,
    }.items():
        await operator.execute(f"ALTER ROLE palaver_writer SET synchronous_commit = '{value}'")
        assert await found(leader) == ({("role", "palaver_writer", value)} if is_weak else set()), value


async def test_an_override_in_a_configuration_file_is_found_by_a_session_that_is_overridden_itself(
    made: Deployment, leader: Member, operator: asyncpg.Connection
) -> None:
    with (made.settings(EAST).data / "palaver.conf").open("a") as file:
        file.write("Synchronous_Commit = off\n")
    await operator.fetch("SELECT pg_reload_conf()")
    await until(lambda: shows_off(operator))
    assert await found(leader) == {("cluster", "configuration", "off")}
    for statement in (
        "ALTER DATABASE palaver SET synchronous_commit = on",
        "ALTER ROLE ALL SET synchronous_commit = on",
    ):
        await operator.execute(statement)
        assert await found(leader) == {("cluster", "configuration", "off")}


async def shows_off(connection: asyncpg.Connection) -> bool:
    return await connection.fetchval("SHOW synchronous_commit") == "off"


async def test_an_override_of_a_database_skips_the_quorum_and_one_of_a_function_does_not(
    made: Deployment, leader: Member, operator: asyncpg.Connection
) -> None:
    await operator.execute("ALTER FUNCTION palaver.keep SET synchronous_commit = off")
    await leader.set_quorum(quorum_names((WEST, SOUTH), 1))
    overridden = await made.connect(EAST)
    waiting = asyncio.create_task(overridden.execute("SELECT palaver.keep(1, '')"))
    # The setting of a function ends when the function returns, before the commit.
    await until(lambda: waits_for_quorum(operator))
    overridden.terminate()
    await asyncio.wait([waiting])
    assert waiting.exception() is not None
    await operator.execute("SET synchronous_commit = local")
    await operator.execute("ALTER DATABASE palaver SET synchronous_commit = local")
    overridden = await made.connect(EAST)
    await overridden.execute("SELECT palaver.keep(2, '')")
    overridden.terminate()


async def waits_for_quorum(connection: asyncpg.Connection) -> bool:
    return await connection.fetchval("SELECT EXISTS (SELECT FROM pg_stat_activity WHERE wait_event = 'SyncRep')")


async def test_new_and_removed_overrides_are_logged_once(
    leader: Member, operator: asyncpg.Connection, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="regions.member.overrides")
    watch = OverrideWatch(leader.ledger)

    async def logged() -> list[tuple[str, str]]:
        caplog.clear()
        for _ in range(2):
            await watch.look()
        return [(record.levelname, record.getMessage().removeprefix("ledger: ")) for record in caplog.records]

    assert watch.found is None
    assert await logged() == []
    assert watch.found == ()
    await operator.execute("ALTER ROLE palaver_writer SET synchronous_commit = off")
    await operator.execute("ALTER FUNCTION palaver.keep SET synchronous_commit = local")
    assert await logged() == [
        (
            "WARNING",
            "synchronous_commit is overridden: function palaver.keep(bigint, text) = local; role palaver_writer = off",
        )
    ]
    assert watch.found is not None
    assert len(watch.found) == 2
    await operator.execute("ALTER ROLE palaver_writer SET synchronous_commit = local")
    assert await logged() == [
        ("WARNING", "synchronous_commit is overridden: role palaver_writer = local"),
        ("INFO", "synchronous_commit is no longer overridden: role palaver_writer = off"),
    ]
    # While the ledger is down, the watch knows no override and logs nothing.
    await leader.stop()
    assert await logged() == []
    assert watch.found is None
    await leader.start_primary(epoch=2, synchronous_standby_names="")
    assert await logged() == []
    assert len(watch.found or ()) == 2


async def test_overrides_are_queried_only_while_the_member_leads(leader: Member) -> None:
    watch = OverrideWatch(leader.ledger)
    leads = False
    asked = asyncio.Event()

    def asks() -> bool:
        asked.set()
        return leads

    running = asyncio.create_task(watch.run(asks))
    await asked.wait()
    assert watch.found is None
    leads = True
    await until(lambda: watch.found == ())
    running.cancel()
    await asyncio.wait([running])
    assert running.cancelled()


def test_a_log_line_names_a_few_overrides_and_counts_the_rest() -> None:
    many = [SettingOverride(scope="role", name=f"r{number:03}", value="off") for number in range(NAMED_MAX + 2)]
    line = describe(many)
    assert line.startswith("role r000 = off; role r001 = off; ")
    assert line.endswith(f"role r{NAMED_MAX - 1:03} = off; and 2 more")
    assert describe(many[:1]) == "role r000 = off"

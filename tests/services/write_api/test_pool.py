"""Tests how many ledger connections the pool opens, and its answers when the ledger is slow or unavailable."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Generator

import psycopg
import pytest

from services.write_api import pool as pools
from services.write_api.pool import LedgerOverloaded, LedgerPool, LedgerStuck, LedgerUnavailable
from tests import servers
from tests.services.write_api.conftest import LONG_S, OURS
from tests.waiting import until

# `lock_timeout` does not end this statement, and a session that only tries a lock does not queue for it.
UNTIL_LET_GO = """
DO $$ BEGIN
    WHILE NOT pg_try_advisory_xact_lock_shared(2711) LOOP PERFORM pg_sleep(0.01); END LOOP;
END $$
"""


@contextlib.contextmanager
def held(server: servers.PostgresServer) -> Generator[None]:
    """Block the sessions that run UNTIL_LET_GO."""
    with psycopg.connect(server.url(), autocommit=True) as connection:
        connection.execute("SELECT pg_advisory_lock(2711)")
        yield


def held_up(server: servers.PostgresServer) -> int:
    """Count the sessions that run UNTIL_LET_GO. Connections of the previous test may still be closing."""
    return len(server.sql(f"SELECT pid {OURS} AND state = 'active' AND query LIKE '%2711%'"))


@contextlib.asynccontextmanager
async def warm_pool(server: servers.PostgresServer, *, size: int) -> AsyncGenerator[LedgerPool]:
    """A pool, and the task of the process that keeps connections open."""
    async with LedgerPool(server.url(user="palaver_writer"), size=size, write_timeout_s=LONG_S) as pool:
        task = asyncio.create_task(pool.keep_idle_connections())
        try:
            yield pool
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task


async def test_connections_are_opened_in_advance_and_again_after_the_ledger_closed_them(
    ledger_server: servers.PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pools, "WARM_CHECK_INTERVAL_S", 0.05)
    async with warm_pool(ledger_server, size=16) as pool:
        await until(lambda: len(pids(ledger_server)) == pools.WARM)
        before = {row[0] for row in ledger_server.sql(f"SELECT pid, pg_terminate_backend(pid) {OURS}")}
        await until(lambda: len(pids(ledger_server) - before) == pools.WARM)
        await pool.fetch("SELECT 1")
        assert len(pids(ledger_server)) == pools.WARM


async def test_the_pool_keeps_no_more_connections_than_its_size(
    ledger_server: servers.PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pools, "WARM_CHECK_INTERVAL_S", 0.01)
    looks, drop_closed = 0, LedgerPool._drop_closed

    def look(pool: LedgerPool) -> None:
        nonlocal looks
        looks += 1
        drop_closed(pool)

    monkeypatch.setattr(LedgerPool, "_drop_closed", look)
    async with warm_pool(ledger_server, size=1):
        await until(lambda: len(pids(ledger_server)) == 1)
        enough = looks + 5
        await until(lambda: looks >= enough)
        assert len(pids(ledger_server)) == 1


async def test_a_burst_opens_the_connections_that_it_needs_one_after_the_other(
    ledger_server: servers.PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pools, "ACQUIRE_TIMEOUT_S", LONG_S)
    async with LedgerPool(ledger_server.url(user="palaver_writer"), size=6, write_timeout_s=LONG_S) as pool:
        with held(ledger_server):
            burst = [asyncio.create_task(pool.fetch(UNTIL_LET_GO)) for _ in range(6)]
            await until(lambda: held_up(ledger_server) == 6)
        await asyncio.gather(*burst)
        # The first connection executes short calls before the next connection is open.
        await asyncio.gather(*(pool.fetch("SELECT 1") for _ in range(50)))
        await until(lambda: len(pids(ledger_server)) == 6)


async def test_a_burst_of_short_calls_opens_few_connections(
    ledger_server: servers.PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The first connection executes calls while the second one is being opened, however long that takes.
    monkeypatch.setattr(pools, "ACQUIRE_TIMEOUT_S", LONG_S)
    connects, others_may, connect = 0, asyncio.Event(), LedgerPool._connect

    async def one_by_one(pool: LedgerPool) -> object:
        nonlocal connects
        connects += 1
        if connects > 1:
            await others_may.wait()
        return await connect(pool)

    monkeypatch.setattr(LedgerPool, "_connect", one_by_one)
    async with LedgerPool(ledger_server.url(user="palaver_writer"), size=16, write_timeout_s=LONG_S) as pool:
        burst = [asyncio.create_task(pool.fetch("SELECT 1")) for _ in range(16)]
        await until(lambda: sum(one.done() for one in burst) == len(burst) - 1)
        assert connects == 2
        others_may.set()
        await asyncio.gather(*burst)
        assert connects == 2


async def test_a_burst_on_an_unavailable_ledger_fails_at_once(
    ledger_server: servers.PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A call that waited for a connection would wait for longer than the test runs.
    monkeypatch.setattr(pools, "ACQUIRE_TIMEOUT_S", 10 * LONG_S)
    url = ledger_server.url(user="palaver_writer").replace(str(ledger_server.port), str(servers.free_port()))
    async with LedgerPool(url, size=4, write_timeout_s=5) as pool, asyncio.timeout(LONG_S):
        answers = await asyncio.gather(*(pool.fetch("SELECT 1") for _ in range(40)), return_exceptions=True)
    assert {type(one) for one in answers} == {LedgerUnavailable}
    assert not pool.reachable


@pytest.mark.parametrize("ends", ["SELECT 1", "SELECT 1 / 0"])
async def test_a_ledger_is_stuck_if_writes_do_not_end_even_if_other_statements_do(
    ledger_server: servers.PostgresServer, monkeypatch: pytest.MonkeyPatch, ends: str
) -> None:
    async with LedgerPool(ledger_server.url(user="palaver_writer"), size=2, write_timeout_s=LONG_S) as pool:
        with held(ledger_server):
            write = asyncio.create_task(pool.fetch(UNTIL_LET_GO, under=1))
            await until(lambda: held_up(ledger_server) == 1)
            clock = asyncio.get_running_loop().time
            begun_s = clock()
            await asyncio.gather(pool.fetch(ends), return_exceptions=True)
            monkeypatch.setattr(pools, "WAITERS_PER_CONNECTION", 0)
            read = asyncio.create_task(pool.fetch(UNTIL_LET_GO))
            await until(lambda: held_up(ledger_server) == 2)
            # Long enough for the write to be too old, and for a statement that ended since not to be.
            monkeypatch.setattr(pools, "ACQUIRE_TIMEOUT_S", clock() - begun_s)
            with pytest.raises(LedgerStuck):
                await pool.fetch("SELECT 1")
        await asyncio.gather(write, read)


async def test_a_ledger_with_recent_unfinished_writes_is_overloaded(
    ledger_server: servers.PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pools, "WAITERS_PER_CONNECTION", 0)
    async with LedgerPool(ledger_server.url(user="palaver_writer"), size=1, write_timeout_s=LONG_S) as pool:
        monkeypatch.setattr(pools, "ACQUIRE_TIMEOUT_S", LONG_S)
        with held(ledger_server):
            write = asyncio.create_task(pool.fetch(UNTIL_LET_GO, under=1))
            await until(lambda: held_up(ledger_server) == 1)
            with pytest.raises(LedgerOverloaded):
                await pool.fetch("SELECT 1")
        await write


def pids(server: servers.PostgresServer) -> set[int]:
    return {row[0] for row in server.sql(f"SELECT pid {OURS}")}

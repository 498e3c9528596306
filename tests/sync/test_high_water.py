"""Tests that nothing leaves the leader before a quorum has it."""

import asyncio
import subprocess
import time
from collections.abc import Generator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import pytest

from regions.position import ZERO, Position
from sync.assembly import PART_BYTES_MAX
from sync.change import Item, Progress, Transaction
from sync.channel.buffer import BufferedSubscription
from sync.high_water import POLL_PAUSE_S_MAX, POLL_PAUSE_S_MIN, HighWaterMark, poll_pause_s
from tests import servers
from tests.servers import PostgresServer
from tests.sync.rig import WAIT_S, Rig, Servers, until
from tests.virtual_loop import VirtualLoop

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def quorum_servers(database_servers: Servers) -> Generator[Servers]:
    """A ledger for this module only, because the standbys that commits wait for are a setting of the server."""
    with servers.postgres({"max_replication_slots": "20", "max_wal_senders": "20"}) as ledger:
        own = Servers(ledger=ledger, view=database_servers.view)
        own.prepare_templates_of_ledger()
        ledger.sql("GRANT pg_read_all_stats TO palaver_replication")
        yield own


@pytest.fixture
def quorum_rig(quorum_servers: Servers) -> Generator[Rig]:
    rig = Rig(servers=quorum_servers)
    rig.create_slot()
    rig.fence()
    set_standby_names(quorum_servers.ledger, "ANY 1 (west, south)")
    yield rig
    set_standby_names(quorum_servers.ledger, "")
    rig.discard()


def set_standby_names(server: PostgresServer, names: str) -> None:
    """Set the standbys that commits wait for."""
    server.sql(f"ALTER SYSTEM SET synchronous_standby_names = '{names}'")
    server.sql("SELECT pg_reload_conf()")
    while server.sql("SHOW synchronous_standby_names") != [(names,)]:
        time.sleep(0.01)


@pytest.mark.parametrize(
    ("waited_s", "pause_s"), [(0.0, 0.001), (0.016, 0.001), (0.032, 0.002), (0.08, 0.005), (9.0, 0.005)]
)
def test_the_pause_between_polls_depends_on_the_duration_of_quorum_waits(waited_s: float, pause_s: float) -> None:
    assert poll_pause_s(waited_s) == pytest.approx(pause_s)


STEP_S = 0.0005


class ScriptedMark(HighWaterMark):
    """A mark whose quorum the test sets, and which records when it was polled."""

    quorum = False

    def __init__(self) -> None:
        super().__init__("")
        self.polled_s: list[float] = []

    async def _poll(self) -> int | None:
        self.polled_s.append(asyncio.get_running_loop().time())
        self.lsn += self.quorum
        return None

    def pauses_s(self) -> list[float]:
        return [after - before for before, after in pairwise(self.polled_s)]


def test_a_missing_quorum_is_polled_less_often() -> None:
    loop, mark = VirtualLoop(), ScriptedMark()

    def wait(seconds: float) -> None:
        for _ in range(round(seconds / STEP_S)):
            loop.advance(STEP_S)

    waiting = loop.start(mark.wait_for_quorum(1))
    wait(0.2)
    assert mark.pauses_s()[0] == pytest.approx(POLL_PAUSE_S_MIN, abs=STEP_S)
    assert mark.pauses_s()[-1] == pytest.approx(POLL_PAUSE_S_MAX, abs=STEP_S)
    mark.quorum = True
    wait(2 * POLL_PAUSE_S_MAX)
    assert waiting.done()
    # The next wait may be as long, so it begins with the longest pause.
    mark.quorum, before = False, len(mark.polled_s)
    again = loop.start(mark.wait_for_quorum(2))
    wait(2 * POLL_PAUSE_S_MAX)
    assert mark.pauses_s()[before] == pytest.approx(POLL_PAUSE_S_MAX, abs=STEP_S)
    mark.quorum = True
    wait(2 * POLL_PAUSE_S_MAX)
    assert again.done()
    loop.close()


@contextmanager
def standby(server: PostgresServer, name: str, folder: Path) -> Generator[None]:
    """Run a pg_receivewal that flushes WAL and reports it, as a standby of this name does."""
    target = folder / name
    target.mkdir()
    process = subprocess.Popen(
        [
            server.bin_dir / "pg_receivewal", "--synchronous", "--no-loop", "-D", target,
            "-d", f"{server.url()}?application_name={name}",
        ],
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        yield
    finally:
        process.terminate()
        process.wait()


WITHOUT_QUORUM = "WITH alone AS MATERIALIZED (SELECT set_config('synchronous_commit', 'local', true)) "
"""Commits on the leader without waiting for a quorum, as WAL that only an isolated leader has."""

WRITE_FENCE = "INSERT INTO palaver.fence (epoch, fence_id, leader) SELECT %s, gen_random_uuid(), 'x' FROM alone"
SITES = 4 * PART_BYTES_MAX // 400
WRITE_SITES = (
    "INSERT INTO palaver.sites (id, name, origins, epoch)"
    " SELECT gen_random_uuid(), repeat('x', 200), '{}', 1 FROM alone, generate_series(1, %s)"
)


async def take_three_batches(subscription: BufferedSubscription) -> list[Item]:
    """Take three batches. A stream sends a keepalive each second, so items that may be sent are among them by then."""
    found: list[Item] = []
    for _ in range(3):
        async with asyncio.timeout(WAIT_S):
            found += await subscription.take()
    return found


class Transactions:
    """The transactions of a subscription, one by one."""

    def __init__(self, subscription: BufferedSubscription) -> None:
        self._subscription = subscription
        self._taken: list[Item] = []

    async def next(self) -> Transaction:
        async with asyncio.timeout(WAIT_S):
            while True:
                self._taken = self._taken or await self._subscription.take()
                item = self._taken.pop(0)
                if isinstance(item, Transaction):
                    return item


async def test_a_change_is_sent_when_a_quorum_has_it_and_not_before(quorum_rig: Rig, tmp_path: Path) -> None:
    server = quorum_rig.servers.ledger
    async with quorum_rig.serving(), quorum_rig.channel().subscribe(ZERO) as subscription:
        transactions = Transactions(subscription)
        with standby(server, "a-base-backup", tmp_path):
            held = await take_three_batches(subscription)
            # The stream sends keepalives, which do not advance the position and are not fresh.
            assert held
            assert all(isinstance(item, Progress) for item in held)
            assert {item.position for item in held} == {ZERO}
            assert {item.sent_at_us for item in held if isinstance(item, Progress)} == {0}
        with standby(server, "south", tmp_path):
            fence = await transactions.next()
            assert fence.position.epoch == 1
        await until(lambda: is_gone(server, "south"))
        quorum_rig.sql(WITHOUT_QUORUM + WRITE_FENCE, 2)
        assert not any(isinstance(item, Transaction) for item in await take_three_batches(subscription))
        # Each of the standbys that count makes a quorum.
        with standby(server, "west", tmp_path):
            second = await transactions.next()
        assert second.position > fence.position
        assert second.position.epoch == 2


async def test_a_part_of_a_large_transaction_waits_for_all_of_it(quorum_rig: Rig, tmp_path: Path) -> None:
    server = quorum_rig.servers.ledger
    async with quorum_rig.serving(), quorum_rig.channel().subscribe(ZERO) as subscription:
        transactions = Transactions(subscription)
        with standby(server, "west", tmp_path):
            await transactions.next()
        await until(lambda: is_gone(server, "west"))
        quorum_rig.sql(WITHOUT_QUORUM + WRITE_SITES, SITES)
        assert not any(isinstance(item, Transaction) for item in await take_three_batches(subscription))
        with standby(server, "south", tmp_path):
            found = [await transactions.next()]
            assert found[0].partial
            while found[-1].partial:
                found.append(await transactions.next())
        assert sum(len(one.changes) for one in found) == SITES


def is_gone(server: PostgresServer, name: str) -> bool:
    return server.sql("SELECT count(*) FROM pg_stat_replication WHERE application_name = %s", name) == [(0,)]


async def test_progress_never_exceeds_the_mark(quorum_rig: Rig, tmp_path: Path) -> None:
    server = quorum_rig.servers.ledger
    async with quorum_rig.serving(), quorum_rig.channel().subscribe(ZERO) as subscription:
        transactions = Transactions(subscription)
        with standby(server, "west", tmp_path):
            fence = await transactions.next()
        ((confirmed,),) = server.sql("SELECT pg_current_wal_flush_lsn() - '0/0'")
        for _ in range(20):
            server.sql("SELECT pg_logical_emit_message(false, 'heartbeat', '', true)")
        progress = await take_three_batches(subscription)
        assert max(item.position for item in progress) <= Position(1, int(confirmed))
        assert fence.position <= max(item.position for item in progress)


async def test_the_mark_is_the_flushed_position_when_commits_wait_for_no_standby(rig: Rig) -> None:
    mark = HighWaterMark(rig.stream_url)
    async with mark.in_use():
        await asyncio.wait_for(mark.wait_for_all(), WAIT_S)
    assert mark.lsn > 0


async def test_the_ledger_is_polled_again_when_it_comes_back(quorum_rig: Rig, tmp_path: Path) -> None:
    server = quorum_rig.servers.ledger
    mark = HighWaterMark(quorum_rig.stream_url)
    async with mark.in_use():
        waiting = asyncio.create_task(mark.wait_for_quorum(1))
        end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'palaver-capture'"
        await until(lambda: bool(server.sql(end)))
        assert not waiting.done()
        with standby(server, "south", tmp_path):
            await asyncio.wait_for(waiting, WAIT_S)

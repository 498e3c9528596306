"""The failover core on real PostgreSQL and etcd: a region that is killed or hangs is replaced, and returns."""

import contextlib
import os
import signal

import psutil
import pytest

from regions import switcher
from regions.identity import RegionName
from regions.position import ZERO
from regions.switcher import OrderRefused
from sync.walsender import connect, start_replication
from tests.regions.deployment import REGIONS
from tests.regions.live_cell import Cell, cell
from tests.waiting import until

pytestmark = [pytest.mark.integration, pytest.mark.alone]

EAST, WEST, SOUTH = REGIONS


async def insert_rows(running: Cell, region: RegionName, numbers: range) -> None:
    connection = await running.made.connect(region)
    try:
        for number in numbers:
            await connection.execute("INSERT INTO palaver.kept VALUES ($1)", number)
    finally:
        await connection.close()


async def selected_rows(running: Cell, region: RegionName) -> set[int]:
    connection = await running.made.connect(region)
    try:
        return {row["n"] for row in await connection.fetch("SELECT n FROM palaver.kept")}
    finally:
        await connection.close()


async def test_a_lost_leader_is_replaced_and_returns_as_a_follower() -> None:
    async with cell() as running:
        record = await running.until_serving(1)
        assert record.leader == EAST
        await running.until_following(WEST, SOUTH)
        await insert_rows(running, EAST, range(50))
        await running.kill_region(EAST)
        record = await running.until_serving(2)
        assert record.leader in (WEST, SOUTH)
        await insert_rows(running, record.leader, range(50, 60))
        assert await selected_rows(running, record.leader) == set(range(60))
        running.etcd.start(REGIONS.index(EAST))
        running.start(EAST)
        await running.until_following(EAST)
        await until(lambda: has_all(running, EAST, range(60)))


async def test_the_next_epoch_has_every_acknowledged_write_after_a_kill_of_the_leaders_postgresql() -> None:
    async with cell() as running:
        await running.until_serving(1)
        await running.until_following(WEST, SOUTH)
        await insert_rows(running, EAST, range(20))
        await running.kill_ledger(EAST)
        record = await running.until_serving(2)
        leader = record.leader
        await insert_rows(running, leader, range(20, 30))
        assert await selected_rows(running, leader) == set(range(30))
        await running.until_following(*(region for region in REGIONS if region != leader))


async def test_a_restarted_agent_of_the_leader_continues_in_the_same_epoch() -> None:
    async with cell() as running:
        await running.until_serving(1)
        await running.until_following(WEST, SOUTH)
        await running.end_agent(EAST)
        running.start(EAST)
        await until(lambda: is_leading(running, EAST))
        await insert_rows(running, EAST, range(5))
        record = running.record()
        assert record is not None
        assert (record.epoch, record.leader) == (1, EAST)


async def test_a_leader_without_its_agent_is_not_suspected_while_its_ledger_commits() -> None:
    async with cell() as running:
        await running.until_serving(1)
        await running.until_following(WEST, SOUTH)
        await running.end_agent(EAST)
        # A follower queries the ledger after 0.25 s of silence; 16 rounds take longer than a suspicion.
        for number in range(16):
            before = {one: inserted_heartbeats(running, EAST, by=one) for one in (WEST, SOUTH)}
            await insert_rows(running, EAST, range(number, number + 1))
            for one, times in before.items():
                await until(lambda one=one, times=times: inserted_heartbeats(running, EAST, by=one) > times)
        for one in (WEST, SOUTH):
            facts = running.agents[one].switcher.facts
            assert facts is not None
            assert EAST not in facts.peers.suspected
        # Without its PostgreSQL the leader is suspected.
        await running.agents[EAST].member.adopt()
        await running.kill_ledger(EAST)
        record = await running.until_serving(2)
        assert record.leader != EAST
        assert await selected_rows(running, record.leader) == set(range(16))


def inserted_heartbeats(running: Cell, region: RegionName, *, by: RegionName) -> int:
    """Return how many heartbeats the HeartbeatMerger of ``by`` has inserted for a region whose agent is down."""
    return running.agents[by].switcher._merger._inserted.get(region, 0)


async def is_leading(running: Cell, region: RegionName) -> bool:
    return running.agents[region].switcher.state == "leading"


async def test_a_paused_leader_is_replaced_and_follows_when_it_resumes() -> None:
    async with cell() as running:
        await running.until_serving(1)
        await running.until_following(WEST, SOUTH)
        process = running.agents[EAST].member.process
        assert process is not None
        session = [child.pid for child in psutil.Process(process.pid).children(recursive=True)] + [process.pid]
        for pid in session:
            os.kill(pid, signal.SIGSTOP)
        record = await running.until_serving(2)
        assert record.leader != EAST
        await insert_rows(running, record.leader, range(10))
        for pid in session:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
        await running.until_following(EAST)
        await until(lambda: has_all(running, EAST, range(10)))


async def has_all(running: Cell, region: RegionName, numbers: range) -> bool:
    return await selected_rows(running, region) == set(numbers)


async def test_an_operator_orders_a_switchover() -> None:
    async with cell() as running:
        await running.until_serving(1)
        await running.until_following(WEST, SOUTH)
        await insert_rows(running, EAST, range(10))
        await until(lambda: is_known_standby(running, SOUTH))
        with pytest.raises(OrderRefused, match="there is no region mars"):
            await running.agents[EAST].switcher.order("switch", RegionName("mars"), "a test")
        await running.agents[EAST].switcher.order("switch", SOUTH, "a test")
        record = await running.until_serving(2)
        assert record.leader == SOUTH
        await insert_rows(running, SOUTH, range(10, 20))
        await running.until_following(EAST, WEST)
        await until(lambda: has_all(running, EAST, range(20)))


async def is_known_standby(running: Cell, region: RegionName) -> bool:
    facts = running.agents[EAST].switcher.facts
    return facts is not None and region in facts.member.standbys


async def test_without_a_majority_no_other_region_leads_until_one_returns() -> None:
    async with cell() as running:
        await running.until_serving(1)
        await running.until_following(WEST, SOUTH)
        await insert_rows(running, EAST, range(10))
        await running.kill_region(EAST)
        await running.kill_region(SOUTH)
        await until(lambda: is_alone(running, WEST))
        record = running.record()
        assert record is not None
        assert record.phase != "serving" or record.leader == EAST
        running.etcd.start(REGIONS.index(SOUTH))
        running.start(SOUTH)
        record = await running.until_serving(2)
        assert record.leader in (WEST, SOUTH)
        assert await selected_rows(running, record.leader) == set(range(10))


async def is_alone(running: Cell, region: RegionName) -> bool:
    facts = running.agents[region].switcher.facts
    return facts is not None and facts.peers.in_minority


async def test_a_switchover_is_refused_while_the_target_lacks_a_copy_of_a_stream_slot(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Without a copy of its slot, a view would never receive the changes that were not sent before the switchover."""
    monkeypatch.setattr(switcher, "STREAMS_S_MAX", 0.1)
    async with cell() as running:
        record = await running.until_serving(1)
        await running.until_following(WEST, SOUTH)
        leader = running.agents[record.leader]
        connection = await running.made.connect(record.leader)
        await connection.execute(
            "SELECT pg_create_logical_replication_slot('palaver_test', 'pgoutput', failover => true)"
        )
        await connection.execute("CREATE PUBLICATION palaver")
        reader = await connect(leader.member.ledger.url)
        try:
            await start_replication(reader, slot="palaver_test", start=ZERO, epoch=1)
            with pytest.raises(OrderRefused, match=r"has no copy of palaver_test yet"):
                await leader.switcher.order("switch", WEST, "a test")
            assert running.record() == record
        finally:
            await reader.close()
            await connection.close()

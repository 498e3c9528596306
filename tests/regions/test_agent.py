"""Agents of three regions on real PostgreSQL and etcd: bootstrap, crashes, adoption, demotion."""

import asyncio
import contextlib
import logging
import os
import signal
from collections.abc import AsyncGenerator, Iterator
from dataclasses import dataclass, field, replace
from uuid import UUID

import asyncpg
import pytest
from prometheus_client import CollectorRegistry

from regions.agent import RegionAgent
from regions.coordination import Coordination, etcd_endpoints
from regions.edge import EdgeConfigurator, EdgeSettings
from regions.identity import CellId
from regions.leadership import Leadership
from regions.member import Member, MemberUnusable, supervision
from regions.switcher import LocalSettings
from regions.topology import Address, parse_address
from services.region_agent.status import AgentCollector
from tests import servers
from tests.regions.deployment import REGIONS, CopiedMember, Deployment, deployment, prepare_ledger
from tests.servers import EtcdCluster
from tests.waiting import until

pytestmark = [pytest.mark.integration, pytest.mark.alone]

EAST, WEST, SOUTH = REGIONS
MAIN = CellId("main")


@pytest.fixture(scope="module")
def etcd() -> Iterator[EtcdCluster]:
    with servers.etcd_cluster(3) as cluster:
        yield cluster


@dataclass
class RunningAgent:
    """An agent, and the task in which it runs."""

    agent: RegionAgent
    stack: contextlib.AsyncExitStack
    task: asyncio.Task[None]

    async def crash(self) -> None:
        """End the agent and leave its member running, like a SIGKILL."""
        await self._cancel()
        if self.agent.member is not None:
            self.agent.member.detach()
        await self.stack.aclose()

    async def stop(self) -> None:
        """Stop the agent and its member."""
        await self._cancel()
        await self.agent.stop()
        await self.stack.aclose()

    async def _cancel(self) -> None:
        self.task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self.task


@dataclass
class Agents:
    """The running agents of a deployment."""

    deployment: Deployment
    coordination: Coordination
    cell: CellId
    running: dict[str, RunningAgent] = field(default_factory=dict[str, RunningAgent])

    async def start(self, *regions: str) -> None:
        """Start the agents of these regions; without an argument, of all regions."""
        for region in regions or tuple(self.deployment.ports):
            self.running[region] = await self._start(region)

    async def stop(self, *regions: str) -> None:
        """Stop the agents of these regions concurrently; without an argument, of all regions."""
        leaving = [self.running.pop(region) for region in regions or tuple(self.running)]
        await asyncio.gather(*(one.stop() for one in leaving))

    async def _start(self, region: str) -> RunningAgent:
        topology = replace(self.deployment.topology(region), cell=self.cell)
        stack = contextlib.AsyncExitStack()
        coordination = await stack.enter_async_context(Coordination(etcd_endpoints(topology), "root", "secret"))
        home = self.deployment.root / region
        home.mkdir(exist_ok=True)
        edge = EdgeSettings(
            folder=home / "xds",
            listen=Address("127.0.0.1", self.deployment.ports[region]["edge"]),
            admin=home / "admin.sock",
        )
        agent = RegionAgent(
            topology,
            coordination,
            member=CopiedMember(self.deployment.settings(region)) if topology.own.voter else None,
            prepare_ledger=prepare_ledger,
            edge=EdgeConfigurator(topology, edge),
            local=self._local(region),
        )
        return RunningAgent(agent, stack, asyncio.create_task(agent.run()))

    def _local(self, region: str) -> LocalSettings:
        state = self.deployment.root / region / "state"
        state.mkdir(exist_ok=True, parents=True)
        return LocalSettings(
            state=state, listen=Address("127.0.0.1", self.deployment.ports[region]["agent"]), secret=b"secret"
        )

    async def serving(self, epoch: int) -> Leadership:
        """Wait until the record says that this epoch serves; return the record."""

        async def serves() -> Leadership | None:
            for one in self.running.values():
                if one.task.done():
                    one.task.result()
            found = await self.coordination.read_leadership(self.cell)
            return found[0] if found and (found[0].phase, found[0].epoch) == ("serving", epoch) else None

        found = await until(serves, 60)
        assert isinstance(found, Leadership)
        return found

    def member(self, region: str) -> Member:
        """Return the member of a running agent."""
        member = self.running[region].agent.member
        assert member is not None
        return member

    def pid(self, region: str) -> int:
        """Return the process id of a region's postmaster."""
        process = self.member(region).process
        assert process is not None
        assert process.alive
        return process.pid


@pytest.fixture
async def agents(etcd: EtcdCluster, request: pytest.FixtureRequest) -> AsyncGenerator[Agents]:
    cell = CellId(f"c{abs(hash(request.node.name))}"[:31])
    endpoints = [parse_address(one) for one in etcd.endpoints]
    async with (
        deployment(etcd=etcd.endpoints, view_regions=("view-only",)) as made,
        Coordination(endpoints, "root", "secret") as coordination,
    ):
        await coordination.enable_authentication()
        one = Agents(made, coordination, cell)
        try:
            yield one
        finally:
            await one.stop()


async def insert(made: Deployment, region: str, number: int) -> None:
    connection = await made.connect(region)
    try:
        await connection.execute("INSERT INTO palaver.kept VALUES ($1)", number)
    finally:
        # A connection to a killed server cannot be closed by the protocol.
        connection.terminate()


async def selected_rows(made: Deployment, region: str) -> list[int]:
    connection = await made.connect(region)
    rows = await connection.fetch("SELECT n FROM palaver.kept ORDER BY n")
    await connection.close()
    return [row["n"] for row in rows]


async def fence_rows(made: Deployment, region: str) -> list[tuple[int, UUID]]:
    connection = await made.connect(region)
    rows = await connection.fetch("SELECT epoch, fence_id FROM palaver.fence ORDER BY epoch")
    await connection.close()
    return [(row["epoch"], row["fence_id"]) for row in rows]


async def test_a_first_start_serves_under_a_quorum_and_logs_few_lines(
    agents: Agents, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="regions")
    await agents.start()
    leadership = await agents.serving(1)
    assert leadership.leader == EAST
    assert await fence_rows(agents.deployment, EAST) == [(1, leadership.fence_id)]
    connection = await agents.deployment.connect(EAST)
    assert await connection.fetchval("SHOW synchronous_standby_names") == 'ANY 1 ("ap-south", "eu-west")'
    slots = await connection.fetch("SELECT slot_name FROM pg_replication_slots ORDER BY 1")
    assert [slot["slot_name"] for slot in slots] == [
        "member_ap_south",
        "member_eu_west",
        "palaver_ap_south",
        "palaver_eu_west",
        "palaver_us_east",
        "palaver_view_only",
    ]
    await connection.close()
    roles = {region: one.agent.role for region, one in agents.running.items()}
    assert roles == {EAST: "leader", WEST: "follower", SOUTH: "follower", "view-only": "view"}
    routes = agents.deployment.root / "view-only" / "xds" / "rds" / "routes.json"
    await until(lambda: "write_api_us-east" in routes.read_text())
    messages = [record.getMessage() for record in caplog.records if record.levelno >= logging.INFO]
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert len(messages) < 45

    await agents.stop(WEST, SOUTH)
    waiting = asyncio.create_task(insert(agents.deployment, EAST, 1))
    await until(lambda: agents.deployment.waiting_commits(EAST))
    assert not waiting.done()
    await agents.start(SOUTH)
    await waiting


async def test_agents_with_full_disks_report_it_and_one_leads_when_there_is_space_again(
    agents: Agents, monkeypatch: pytest.MonkeyPatch
) -> None:
    await agents.start()
    await agents.serving(1)
    voters = [agents.running[region].agent for region in REGIONS]
    monkeypatch.setattr(supervision, "DISK_FREE_BYTES_MIN", 1 << 62)

    async def all_report() -> bool:
        return all(one.refusal == supervision.DISK_FULL and one.switcher.serving_epoch == 0 for one in voters)

    await until(all_report, 30)
    monkeypatch.undo()

    async def one_leads() -> bool:
        return any(one.switcher.serving_epoch > 1 for one in voters) and all(one.refusal is None for one in voters)

    await until(one_leads, 60)


async def test_a_killed_postmaster_costs_one_epoch_and_no_acknowledged_write(agents: Agents) -> None:
    await agents.start()
    leader = (await agents.serving(1)).leader
    acknowledged: list[int] = []
    done = asyncio.Event()

    async def write() -> None:
        number = 0
        while not done.is_set():
            number += 1
            try:
                await insert(agents.deployment, leader, number)
                acknowledged.append(number)
            except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError):
                await asyncio.sleep(0.02)

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(write())
        for epoch in (2, 3):
            before = len(acknowledged)
            await until(lambda before=before: len(acknowledged) > before + 20)
            os.kill(agents.pid(leader), signal.SIGKILL)
            leadership = await agents.serving(epoch)
            assert leadership.reason == f"PostgreSQL of {leader} ended"
            # The first member to vote that has all WAL leads next; the killed member must start before it can vote.
            leader = leadership.leader
            fences = await fence_rows(agents.deployment, leader)
            assert fences[-1] == (epoch, leadership.fence_id)
            assert [row[0] for row in fences] == list(range(1, epoch + 1))
        done.set()
    present = set(await selected_rows(agents.deployment, leader))
    assert set(acknowledged) <= present
    # Both other members follow, also the one that was killed.
    await until(lambda: streaming(agents, leader, 2))


async def streaming(agents: Agents, leader: str, count: int) -> bool:
    standbys = await agents.member(leader).ledger.read_standbys(REGIONS)
    return sum(standby.streaming for standby in standbys) == count


async def test_a_restarted_agent_adopts_its_member_in_the_same_epoch(agents: Agents) -> None:
    await agents.start()
    await agents.serving(1)
    for region in (EAST, WEST):
        pid = agents.pid(region)
        await agents.running.pop(region).crash()
        await insert(agents.deployment, EAST, pid)
        await agents.start(region)
        agent = agents.running[region].agent
        await until(lambda agent=agent: agent.observation.ledger is not None)
        assert agents.pid(region) == pid
    assert (await agents.serving(1)).epoch == 1


async def test_a_member_that_died_while_its_agent_was_down_gets_a_new_epoch(agents: Agents) -> None:
    await agents.start()
    await agents.serving(1)
    await insert(agents.deployment, EAST, 1)
    pid = agents.pid(EAST)
    await agents.running.pop(EAST).crash()
    os.kill(pid, signal.SIGKILL)
    # In a deployment the agent has ended, and init reaps the postmaster.
    await asyncio.to_thread(os.waitpid, pid, 0)
    await agents.start(EAST)
    # Either another region suspected the leader, or the leader's own agent returned first and began the epoch.
    leadership = await agents.serving(2)
    assert await selected_rows(agents.deployment, leadership.leader) == [1]


async def test_a_returning_leader_with_diverged_wal_reports_it_until_it_is_rewound(
    agents: Agents, monkeypatch: pytest.MonkeyPatch
) -> None:
    await agents.start()
    await agents.serving(1)
    await until(lambda: streaming(agents, EAST, 2))
    agent = agents.running[EAST].agent
    assert agent.member is not None
    metrics, steps, may_rewind, rewind = CollectorRegistry(), list[str](), asyncio.Event(), agent.member.rewind
    metrics.register(AgentCollector(agent))
    agent.switcher.on_step = lambda step, _: steps.append(step)

    async def rewind_when_seen(leader: Address) -> None:
        await may_rewind.wait()
        await rewind(leader)

    monkeypatch.setattr(agent.member, "rewind", rewind_when_seen)
    assert metrics.get_sample_value("palaver_member_diverged") == 0
    connection = await agents.deployment.connect(EAST)
    for row in await connection.fetch("SELECT pid FROM pg_stat_replication WHERE state = 'streaming'"):
        os.kill(row["pid"], signal.SIGSTOP)
    await connection.execute("SET synchronous_commit = local")
    await connection.execute("INSERT INTO palaver.kept VALUES (666)")
    connection.terminate()
    os.kill(agents.pid(EAST), signal.SIGKILL)
    assert (await agents.serving(2)).leader != EAST
    await until(lambda: metrics.get_sample_value("palaver_member_diverged") == 1)
    may_rewind.set()
    await until(lambda: metrics.get_sample_value("palaver_member_diverged") == 0)
    assert steps.count("RewindLedger") == 1


async def test_a_killed_follower_returns_and_streams(agents: Agents) -> None:
    await agents.start()
    await agents.serving(1)
    await until(lambda: streaming(agents, EAST, 2))
    os.kill(agents.pid(WEST), signal.SIGKILL)
    await insert(agents.deployment, EAST, 1)
    await until(lambda: streaming(agents, EAST, 1))
    await until(lambda: streaming(agents, EAST, 2))
    assert (await agents.serving(1)).epoch == 1


async def test_a_restart_of_all_regions_begins_the_next_epoch_with_all_data(agents: Agents) -> None:
    await agents.start()
    first = await agents.serving(1)
    await insert(agents.deployment, EAST, 1)
    await agents.stop()
    await agents.start()
    second = await agents.serving(2)
    assert await selected_rows(agents.deployment, second.leader) == [1]
    assert await fence_rows(agents.deployment, second.leader) == [(1, first.fence_id), (2, second.fence_id)]
    await insert(agents.deployment, second.leader, 2)


async def test_a_deposed_leader_stops_its_postgresql_before_it_votes(agents: Agents) -> None:
    await agents.start()
    await agents.serving(1)
    process = agents.member(EAST).process
    assert process is not None
    found = await agents.coordination.read_leadership(agents.cell)
    assert found is not None
    deposed = replace(found[0], epoch=2, leader=WEST, phase="recruiting", fence_id=None)
    assert await agents.coordination.swap_leadership(agents.cell, deposed, found[1])
    async with asyncio.timeout(20):
        await process.wait()
    leadership = await agents.serving(2)
    assert (await fence_rows(agents.deployment, leadership.leader))[-1] == (2, leadership.fence_id)
    await insert(agents.deployment, leadership.leader, 1)


async def test_a_bootstrap_completes_after_crashes_of_every_agent(agents: Agents) -> None:
    for pause_s in (0.3, 0.6, 1.0, 1.5, 2.0):
        await agents.start()
        await asyncio.sleep(pause_s)
        for region in tuple(agents.running):
            await agents.running.pop(region).crash()
    await agents.start()
    # On a busy machine none of the crashed agents may have begun an epoch.
    first, _ = await until(lambda: agents.coordination.read_leadership(agents.cell))
    await agents.serving(first.epoch)
    await insert(agents.deployment, EAST, 1)


async def test_data_of_another_postgresql_version_ends_the_agent_with_one_clear_error(agents: Agents) -> None:
    settings = agents.deployment.settings(EAST)
    settings.data.mkdir()
    (settings.data / "PG_VERSION").write_text("17\n")
    await agents.start(EAST)
    running = agents.running.pop(EAST)
    with pytest.raises(MemberUnusable, match="PostgreSQL 17"):
        await running.task
    await running.stack.aclose()

"""Runs the switchers and members of three regions in one process, on real PostgreSQL and etcd."""

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field

from regions.coordination import Coordination
from regions.failover.settings import Settings
from regions.identity import RegionName
from regions.leadership import Leadership
from regions.member.executor import ExecutorContext, MemberExecutor
from regions.member.failover_member import FailoverMember
from regions.switcher import LocalSettings, Switcher
from regions.topology import Address, parse_address
from tests import servers
from tests.regions.deployment import (
    REGIONS,
    REPLICATION_PASSWORD,
    WRITER_PASSWORD,
    CopiedMember,
    Deployment,
    deployment,
    prepare_ledger,
)
from tests.servers import EtcdCluster
from tests.waiting import until

USER, PASSWORD = "root", "a password"
SECRET = b"a secret of the deployment"


async def prepare(member: FailoverMember) -> None:
    """Create the roles and tables that the agent's own preparation would create."""
    await member.ledger.prepare_roles(replication_password=REPLICATION_PASSWORD, writer_password=WRITER_PASSWORD)
    await prepare_ledger(member.ledger.url)


@dataclass
class Agent:
    """The switcher of one region, and the member that it drives."""

    switcher: Switcher
    member: FailoverMember
    running: asyncio.Task[None] | None = None


@dataclass
class Cell:
    """The agents of all regions of one deployment."""

    made: Deployment
    etcd: EtcdCluster
    settings: Settings = field(default_factory=Settings)
    agents: dict[RegionName, Agent] = field(default_factory=dict[RegionName, Agent])

    def start(self, region: RegionName) -> Agent:
        """Start a region's agent with the files that it has on disk."""
        topology = self.made.topology(region)
        member = CopiedMember(self.made.settings(region))
        own = self.made.etcd[REGIONS.index(region)]
        endpoints = [parse_address(one) for one in (own, *(one for one in self.made.etcd if one != own))]
        coordination = Coordination(endpoints, USER, PASSWORD)
        local = LocalSettings(
            state=member.settings.state, listen=Address("127.0.0.1", topology.own.agent.port), secret=SECRET
        )
        switcher = Switcher(topology, coordination, local=local, settings=self.settings)
        around = ExecutorContext(
            region=region,
            ledger_of=self.made.ledger,
            others=tuple(other for other in REGIONS if other != region),
            followers=lambda: switcher.followers,
            prepare=prepare,
            durable=lambda: switcher.durable,
            on_event=switcher.submit,
        )
        switcher.attach_member(MemberExecutor(member, around))

        async def run() -> None:
            async with coordination:
                await switcher.run()

        agent = self.agents[region] = Agent(switcher, member)
        agent.running = asyncio.create_task(run(), name=f"agent of {region}")
        return agent

    async def end_agent(self, region: RegionName) -> None:
        """End the agent and leave its member running, like a SIGKILL."""
        agent = self.agents[region]
        assert agent.running is not None
        agent.running.cancel()
        await asyncio.wait([agent.running])
        agent.member.detach()

    async def kill_ledger(self, region: RegionName) -> None:
        """Kill the postmaster and reap it: it is a child of the test process, also after its agent has ended."""
        process = self.agents[region].member.process
        assert process is not None
        os.kill(process.pid, signal.SIGKILL)
        await process.wait()

    async def kill_region(self, region: RegionName) -> None:
        """Kill the agent, the postmaster and the etcd member of a region."""
        self.etcd.kill(REGIONS.index(region))
        agent = self.agents[region]
        assert agent.running is not None
        agent.running.cancel()
        await self.kill_ledger(region)
        await self.end_agent(region)

    def record(self) -> Leadership | None:
        """Return the record with the highest epoch that a running agent knows; None if no agent knows a record."""
        known = [
            agent.switcher.facts.record
            for agent in self.agents.values()
            if agent.running is not None and not agent.running.done() and agent.switcher.facts is not None
        ]
        return max((one for one in known if one is not None), key=lambda one: one.epoch, default=None)

    def leader(self) -> RegionName | None:
        """Return the region that accepts writes now; None if no region does."""
        return next((region for region, agent in self.agents.items() if agent.switcher.serving_epoch), None)

    async def until_serving(self, epoch: int, seconds: float = 40.0) -> Leadership:
        """Wait until an epoch, or a later one, serves; return its record."""

        async def serving() -> Leadership | None:
            for agent in self.agents.values():
                if agent.running is not None and agent.running.done() and not agent.running.cancelled():
                    await agent.running
            record = self.record()
            served = record is not None and record.epoch >= epoch and record.phase == "serving"
            return record if served else None

        return await until(serving, seconds)

    async def until_following(self, *regions: RegionName, seconds: float = 40.0) -> None:
        """Wait until all of these regions follow."""

        async def following() -> bool:
            return all(self.agents[region].switcher.state == "following" for region in regions)

        await until(following, seconds)


@contextlib.asynccontextmanager
async def cell(settings: Settings | None = None) -> AsyncGenerator[Cell]:
    """Start a cell with the agents of all regions; it may not serve yet."""
    with servers.etcd_cluster(len(REGIONS)) as etcd:
        async with Coordination([parse_address(one) for one in etcd.endpoints], USER, PASSWORD) as coordination:
            await coordination.enable_authentication()
        async with deployment(list(etcd.endpoints)) as made:
            running = Cell(made=made, etcd=etcd, settings=settings or Settings())
            try:
                for region in REGIONS:
                    running.start(region)
                yield running
            finally:
                for region, agent in running.agents.items():
                    await running.end_agent(region)
                    await agent.member.adopt()
                    await agent.member.stop()

"""Ledger members and topologies of a temporary deployment on free loopback ports."""

import asyncio
import atexit
import contextlib
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import asyncpg

from infra.servers.resolver import resolve
from infra.servers.unprivileged import account, reachable_install
from regions.identity import RegionName
from regions.member import Account, Member, MemberSettings
from regions.member.failover_member import FailoverMember
from regions.topology import Address, Topology, parse_topology
from tests.child_processes import folder, free_port
from tests.servers import run_as

SUPERUSER_PASSWORD = "super'user"
REPLICATION_PASSWORD = "repli:cat\\ion"
WRITER_PASSWORD = "writer"

REGIONS = (RegionName("us-east"), RegionName("eu-west"), RegionName("ap-south"))

# The tables that an agent needs, as the migrations of the ledger create them.
LEDGER_SCHEMA = """
CREATE SCHEMA IF NOT EXISTS palaver;
CREATE TABLE IF NOT EXISTS palaver.fence (
    epoch bigint PRIMARY KEY, fence_id uuid NOT NULL, leader text NOT NULL, established_at timestamptz NOT NULL
);
CREATE TABLE IF NOT EXISTS palaver.kept (n bigint PRIMARY KEY);
"""


async def prepare_ledger(url: str) -> None:
    """Create the tables that the agent and the tests need, instead of running the migrations."""
    connection = await asyncpg.connect(url)
    try:
        await connection.execute(LEDGER_SCHEMA)
    finally:
        await connection.close()


class CopiedMember(FailoverMember):
    """A member whose data is initialised by copying: initdb takes half a CPU second, and runs once in a test run.

    All tests initialise with the same settings. `test_member.py` tests the initialisation itself.
    """

    async def _run(self, program: str, *arguments: str, **options: Any) -> None:
        if program != "initdb":
            await super()._run(program, *arguments, **options)
            return
        template, data = _templates() / "data", self.settings.data
        if not template.exists():
            await super()._run(program, *arguments, **options)
            await _copy_whole(data, template)
        else:
            await asyncio.to_thread(run_as, account(), ["cp", "-a", f"{template}/.", str(data)])


async def copy_prepared(made: "Deployment") -> dict[RegionName, FailoverMember]:
    """Give the members of `made` the data of a prepared leader, the first region, and of two copies of its ledger.

    The first call of a test run prepares them with the operations that an agent uses: roles, tables, follower slots and
    base backups. Their files contain no port and no path but in the configuration, which a start writes. A copy takes
    a third of the CPU time of the preparation, which `test_member.py` and `test_executor.py` test.

    Returns:
        The members, which do not run. The leader was primary of epoch 1, and the others have not followed yet.
    """
    templates = [_templates() / region for region in REGIONS]
    if not all(template.exists() for template in templates):
        async with deployment() as first:
            await _prepare_cell(first)
            for region, template in zip(REGIONS, templates, strict=True):
                await _copy_whole(first.settings(region).data, template)
    members: dict[RegionName, FailoverMember] = {region: CopiedMember(made.settings(region)) for region in REGIONS}
    for region, template in zip(REGIONS, templates, strict=True):
        members[region]._make_private(made.settings(region).data)
        await asyncio.to_thread(run_as, account(), ["cp", "-a", f"{template}/.", str(made.settings(region).data)])
    return members


async def _prepare_cell(made: "Deployment") -> None:
    """Prepare a ledger in the first region, copy it to the others, and stop it."""
    first, *others = REGIONS
    leader = CopiedMember(made.settings(first))
    await leader.initialise()
    await leader.start_primary(epoch=1, synchronous_standby_names="")
    try:
        await leader.ledger.prepare_roles(replication_password=REPLICATION_PASSWORD, writer_password=WRITER_PASSWORD)
        await prepare_ledger(leader.ledger.url)
        await leader.ledger.prepare_slots(followers=others, streams=())
        for region in others:
            await CopiedMember(made.settings(region)).copy(made.ledger(first))
    finally:
        await leader.stop()


async def _copy_whole(source: Path, target: Path) -> None:
    """Copy a folder to a place that has either the whole copy or nothing, also after an error."""
    part = target.with_name(f"{target.name}.part")
    await asyncio.to_thread(run_as, account(), ["rm", "-rf", str(part)])
    await asyncio.to_thread(run_as, account(), ["cp", "-a", str(source), str(part)])
    part.rename(target)


@cache
def _templates() -> Path:
    """Return the folder of this test run for data that tests copy."""
    stack = contextlib.ExitStack()
    atexit.register(stack.close)
    return stack.enter_context(folder(account()))


@dataclass
class Deployment:
    """Ports, folders and members of three regions."""

    root: Path
    etcd: list[str] = field(default_factory=list[str])
    view_regions: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        names = (*REGIONS, *self.view_regions)
        keys = ("etcd", "ledger", "write_api", "read_api", "changes", "agent", "edge")
        self.ports = {name: {key: free_port() for key in keys} for name in names}

    def topology(self, region: str) -> Topology:
        """Return the topology for one region; all addresses are direct, without a relay."""
        regions: list[dict[str, Any]] = []
        for index, (name, ports) in enumerate(self.ports.items()):
            voter = name in REGIONS
            entry: dict[str, Any] = {"name": name, "voter": voter}
            keys = ("ledger", "write_api", "read_api", "changes", "agent")
            entry |= {key: f"127.0.0.1:{ports[key]}" for key in (keys if voter else keys[2:])}
            if voter:
                entry["etcd"] = self.etcd[index] if self.etcd else f"127.0.0.1:{ports['etcd']}"
            regions.append(entry)
        return parse_topology({"cell": "main", "region": region, "regions": regions})

    def ledger(self, region: str) -> Address:
        """Return the address of a region's member."""
        return Address("127.0.0.1", self.ports[region]["ledger"])

    def settings(self, region: str) -> MemberSettings:
        """Return the settings of a region's member."""
        home = self.root / region
        state = home / "state"
        state.mkdir(parents=True, exist_ok=True)
        owner = account()
        return MemberSettings(
            region=RegionName(region),
            data=home / "ledger",
            state=state,
            log=state / "ledger.log",
            programs=reachable_install(resolve("postgres").bin_dir, owner),
            listen=self.ledger(region),
            account=None if owner is None else Account(uid=owner.uid, gid=owner.gid),
            superuser_password=SUPERUSER_PASSWORD,
            replication_password=REPLICATION_PASSWORD,
            writer_password=WRITER_PASSWORD,
            wal_keep_mb=256,
        )

    async def connect(self, region: str, database: str = "palaver") -> asyncpg.Connection:
        """Connect to a member as superuser."""
        return await asyncpg.connect(
            host="127.0.0.1",
            port=self.ports[region]["ledger"],
            user="palaver",
            password=SUPERUSER_PASSWORD,
            database=database,
            ssl=False,
        )

    async def waiting_commits(self, region: str) -> int:
        """Return the number of commits on a member that wait for its quorum; its own disk has them already."""
        connection = await self.connect(region, "postgres")
        try:
            return await connection.fetchval("SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'")
        finally:
            await connection.close()


@contextlib.asynccontextmanager
async def deployment(etcd: list[str] | None = None, view_regions: tuple[str, ...] = ()) -> AsyncGenerator[Deployment]:
    """Create a deployment, and at the end stop every member that still runs in its folders."""
    with folder(account()) as root:
        made = Deployment(root=root, etcd=etcd or [], view_regions=view_regions)
        try:
            yield made
        finally:
            for region in REGIONS:
                leftover = Member(made.settings(region))
                if (root / region / "ledger" / "postmaster.pid").exists():
                    await leftover.adopt()
                    await leftover.stop()
                # Children of a killed postmaster may remain: a backend that waits for a lock does not notice its death.
                await leftover.end_leftovers()

"""A test rig: a ledger, a view and the sync pipeline between them, on two temporary PostgreSQL servers.

There are two servers because on one server the view's commits would be progress of the ledger. Each test has its own
databases, copied from migrated templates, and its own region name, because all databases of a server share the names of
replication slots.
"""

import asyncio
import contextlib
import functools
import itertools
import time
import uuid
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from uuid import UUID

import asyncpg

from regions.coordination import Leadership
from regions.identity import CellId, RegionName, slot_name
from regions.position import Position
from regions.topology import Topology, parse_topology
from services import ledger, view
from services.replicator.projection import ViewProjection
from services.tables import TABLES
from services.telemetry.http_server import bind, serve_http
from services.view.cache import Invalidation
from sync.apply import Applied, Applier
from sync.channel.direct.client import DirectChannel
from sync.channel.direct.server import ChangeServer
from sync.lag import LagMeter
from sync.registry import Registry
from tests import waiting
from tests.child_processes import free_port
from tests.servers import PostgresServer

CELL = CellId("main")
TOKEN = "a-token-between-regions"
WAIT_S = 20.0

_numbers = itertools.count(1)

INSERT_COMMENT = (
    "INSERT INTO palaver.comments (id, site_id, thread_id, parent_id, depth, body, author_name, epoch)"
    " VALUES ($1, $2, $3, $4, $5, $6, $7, 1)"
)


@dataclass(frozen=True, kw_only=True)
class Servers:
    """The servers that the tests share."""

    ledger: PostgresServer
    view: PostgresServer

    def prepare_templates(self) -> None:
        """Create the databases that each test copies, and the role that reads streams in production."""
        self.prepare_templates_of_ledger()
        self.view.sql("CREATE DATABASE view_template", database="postgres")
        view.migrate(self.view.url("view_template"))

    def prepare_templates_of_ledger(self) -> None:
        """Create the role and the database of the ledger's server only."""
        self.ledger.sql("CREATE ROLE palaver_replication LOGIN REPLICATION PASSWORD 'throwaway'")
        self.ledger.sql("CREATE DATABASE ledger_template", database="postgres")
        ledger.migrate(self.ledger.url("ledger_template"))


class SettableLeadership:
    """A leadership that a test sets; implements `sync.channel.direct.LeadershipSource`."""

    def __init__(self, current: Leadership | None) -> None:
        self.current = current
        self._changed = asyncio.Event()
        self._waiting: list[Leadership | None] = []

    def set(self, leadership: Leadership) -> None:
        self.current = leadership
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    async def next_after(self, known: Leadership | None) -> Leadership:
        while self.current is None or self.current == known:
            self._waiting.append(known)
            try:
                await self._changed.wait()
            finally:
                self._waiting.remove(known)
        return self.current

    def is_known(self) -> bool:
        """Whether a task that knows the current leadership waits for the next one."""
        return self.current in self._waiting


def leadership(leader: str, epoch: int = 1, phase: str = "serving") -> Leadership:
    return Leadership(
        epoch=epoch,
        leader=RegionName(leader),
        phase=phase,  # pyright: ignore[reportArgumentType] - a literal of the test
        fence_id=uuid.uuid4(),
        reason="test",
        since="2026-01-01T00:00:00Z",
    )


def topology(region: str, ports: dict[str, int]) -> Topology:
    """The topology of ``region``, with the port of each region's change server."""
    free = "127.0.0.1:9"
    return parse_topology(
        {
            "cell": CELL,
            "region": region,
            "regions": [
                {
                    "name": name,
                    "voter": True,
                    **dict.fromkeys(("etcd", "ledger", "write_api", "read_api", "agent"), free),
                    "changes": f"127.0.0.1:{port}",
                }
                for name, port in ports.items()
            ],
        }
    )


@dataclass(kw_only=True)
class Rig:
    """The databases, the region and the pipeline of one test.

    Attributes:
        region: The leader, which subscribes to itself.
        tables: The registry of the replicator.
        checkpoints_read: The checkpoint and the freshness, each time apply has read them.
        applied: The applied batches, in order.
    """

    servers: Servers
    number: int = field(default_factory=lambda: next(_numbers))
    applied: list[Applied[Invalidation]] = field(default_factory=list[Applied[Invalidation]])
    checkpoints_read: list[tuple[Position, int]] = field(default_factory=list[tuple[Position, int]])
    port: int = field(default_factory=free_port)
    tables: Registry = TABLES

    def __post_init__(self) -> None:
        self.region = RegionName(f"region-{self.number}")
        for kind, server in (("ledger", self.servers.ledger), ("view", self.servers.view)):
            server.sql(f"CREATE DATABASE {kind}_{self.number} TEMPLATE {kind}_template", database="postgres")
        self.ledger_url = self.servers.ledger.url(f"ledger_{self.number}")
        self.stream_url = self.servers.ledger.url(f"ledger_{self.number}", user="palaver_replication")
        self.view_url = self.servers.view.url(f"view_{self.number}")
        self.topology = topology(self.region, {self.region: self.port})
        self.leaders = SettableLeadership(leadership(self.region))
        self.meter = LagMeter(now=time.monotonic())

    def sql(self, text: str, *parameters: object) -> list[tuple[object, ...]]:
        return self.servers.ledger.sql(text, *parameters, database=f"ledger_{self.number}")

    def view_sql(self, text: str, *parameters: object) -> list[tuple[object, ...]]:
        return self.servers.view.sql(text, *parameters, database=f"view_{self.number}")

    def create_slot(self, region: str | None = None) -> str:
        slot = slot_name(RegionName(region or self.region))
        self.sql("SELECT pg_create_logical_replication_slot(%s, 'pgoutput')", slot)
        return slot

    def fence(self, epoch: int = 1) -> None:
        self.sql("INSERT INTO palaver.fence (epoch, fence_id, leader) VALUES (%s, gen_random_uuid(), 'x')", epoch)

    def discard(self) -> None:
        """Drop the slots, which would retain WAL during all later tests."""
        mine = "FROM pg_replication_slots WHERE database = current_database()"
        self.sql(f"SELECT pg_terminate_backend(active_pid) {mine} AND active_pid IS NOT NULL")
        for _ in range(100):
            if not self.sql(f"SELECT slot_name {mine} AND active"):
                break
            time.sleep(0.05)
        self.sql(f"SELECT pg_drop_replication_slot(slot_name) {mine}")

    def change_server(self) -> ChangeServer:
        return ChangeServer(
            topology=self.topology,
            registry=self.tables,
            leaders=self.leaders,
            ledger_conninfo=self.stream_url,
            token=TOKEN,
        )

    def channel(self) -> DirectChannel:
        return DirectChannel(topology=self.topology, leaders=self.leaders, token=TOKEN, meter=self.meter)

    def applier(self) -> Applier[Invalidation]:
        async def note(applied: Applied[Invalidation]) -> None:
            self.applied.append(applied)

        return Applier(
            cell=CELL,
            view_url=self.view_url,
            registry=self.tables,
            projection=ViewProjection(self.tables),
            meter=self.meter,
            on_checkpoint_read=lambda position, fresh_at_us: self.checkpoints_read.append((position, fresh_at_us)),
            on_applied=note,
        )

    @contextlib.asynccontextmanager
    async def serving(self) -> AsyncGenerator[ChangeServer]:
        """Run a change server."""
        server = self.change_server()
        async with running(serve_http(server.app(), bind(f"127.0.0.1:{self.port}"), graceful_stop_s=1)):
            try:
                yield server
            finally:
                server.close()

    @contextlib.asynccontextmanager
    async def replicating(self) -> AsyncGenerator[Applier[Invalidation]]:
        """Run a change server, and apply its changes."""
        async with self.serving(), self.applying() as applier:
            yield applier

    @contextlib.asynccontextmanager
    async def applying(self) -> AsyncGenerator[Applier[Invalidation]]:
        """Apply the changes of a change server."""
        applier = self.applier()
        async with running(applier.run(self.channel())):
            yield applier

    async def caught_up(self) -> None:
        """Wait until the view has all changes that the ledger has now."""
        ((lsn,),) = self.sql("SELECT pg_current_wal_flush_lsn() - '0/0'")
        end = int(str(lsn))
        await until(lambda: self.meter.applied is not None and self.meter.applied.lsn >= end)


until = functools.partial(waiting.until, timeout_s=WAIT_S)


@contextlib.asynccontextmanager
async def running(work: "asyncio._CoroutineLike[None]") -> AsyncGenerator[asyncio.Task[None]]:  # pyright: ignore[reportPrivateUsage] - the type of what create_task takes
    """Run a task beside the block; cancel it at the end of the block."""
    async with asyncio.TaskGroup() as group:
        task = group.create_task(work)
        try:
            yield task
        finally:
            task.cancel()


@dataclass(kw_only=True)
class Writer:
    """Writes to the ledger of a rig. It keeps no journal, because views are compared with the ledger itself."""

    connection: "asyncpg.Connection[asyncpg.Record]"
    site: UUID = field(default_factory=uuid.uuid4)

    async def create_site(self) -> UUID:
        await self.connection.execute(
            "INSERT INTO palaver.sites (id, name, origins, epoch) VALUES ($1, 'site', '{https://a.b}', 1)",
            self.site,
        )
        return self.site

    async def create_thread(self, key: str = "/") -> UUID:
        thread = uuid.uuid4()
        await self.connection.execute(
            "INSERT INTO palaver.threads (id, site_id, key, title, epoch) VALUES ($1, $2, $3, 'A title', 1)",
            thread,
            self.site,
            key,
        )
        return thread

    async def post(self, thread: UUID, body: str = "hello", parent: UUID | None = None) -> UUID:
        comment = uuid.uuid4()
        await self.connection.execute(
            INSERT_COMMENT, comment, self.site, thread, parent, 0 if parent is None else 1, body, "Ann"
        )
        return comment

    async def vote(self, comment: UUID, user: str, value: int) -> None:
        """Set a vote as the ledger's procedure does, without its checks."""
        await self.connection.execute(
            "INSERT INTO palaver.votes AS v (comment_id, user_id, site_id, thread_id, value, epoch)"
            " SELECT c.id, $2, c.site_id, c.thread_id, $3, 1 FROM palaver.comments AS c WHERE c.id = $1"
            " ON CONFLICT (comment_id, user_id) DO UPDATE SET value = excluded.value, version = v.version + 1",
            comment,
            user,
            value,
        )


@contextlib.asynccontextmanager
async def writing(rig: Rig) -> AsyncGenerator[Writer]:
    connection = await asyncpg.connect(rig.ledger_url)
    try:
        writer = Writer(connection=connection)
        await writer.create_site()
        yield writer
    finally:
        await connection.close()


_COMMENTS = """
    SELECT id, site_id, thread_id, parent_id, depth, author_id, author_name, author_url, body, state, version,
           created_at, edited_at, deleted_at
    FROM {schema}comments ORDER BY id
"""

_VOTES = """
    SELECT comment_id, user_id, site_id, thread_id, value, version
    FROM {schema}votes ORDER BY comment_id, user_id COLLATE "C"
"""


def differences(rig: Rig) -> list[str]:
    """Return the differences between the view and the ledger, one sentence for each table; empty if there are none."""
    found: list[str] = []
    pairs = (
        (_COMMENTS.format(schema="palaver."), _COMMENTS.format(schema="")),
        (
            "SELECT id, name, origins, settings, version FROM palaver.sites ORDER BY id",
            "SELECT id, name, origins, settings, version FROM sites ORDER BY id",
        ),
        (
            (
                "SELECT id, site_id, key, title, state, version, (SELECT count(*) FROM palaver.comments AS c"
                " WHERE c.thread_id = t.id AND c.state = 'approved') FROM palaver.threads AS t ORDER BY id"
            ),
            "SELECT id, site_id, key, title, state, version, count FROM threads ORDER BY id",
        ),
        (
            (
                "SELECT id, (SELECT count(*) FROM palaver.comments AS r WHERE r.parent_id = c.id"
                " AND r.state IN ('approved', 'deleted')) FROM palaver.comments AS c ORDER BY id"
            ),
            "SELECT id, reply_count FROM comments ORDER BY id",
        ),
        (_VOTES.format(schema="palaver."), _VOTES.format(schema="")),
        (
            (
                "SELECT id, (SELECT count(*) FROM palaver.votes AS v WHERE v.comment_id = c.id AND v.value = 1),"
                " (SELECT count(*) FROM palaver.votes AS v WHERE v.comment_id = c.id AND v.value = -1),"
                " (SELECT coalesce(sum(v.value), 0) FROM palaver.votes AS v WHERE v.comment_id = c.id)"
                " FROM palaver.comments AS c ORDER BY id"
            ),
            "SELECT id, up, down, score FROM comments ORDER BY id",
        ),
    )
    for ledger_text, view_text in pairs:
        expected, seen = rig.sql(ledger_text), rig.view_sql(view_text)
        if expected != seen:
            lacking = [row for row in expected if row not in seen]
            extra = [row for row in seen if row not in expected]
            found.append(f"{len(lacking)} lacking {lacking[:2]}, {len(extra)} extra {extra[:2]}")
    return found

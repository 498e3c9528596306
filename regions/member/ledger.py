"""What the agent says to its ledger member in SQL: roles, slots, quorum, fence row, positions.

Decides that a commit whose wait for the quorum was cut short is unknown, never done (rules 7 and 9).
Refuses to know processes, files and who should lead. The statements are in ``sql/``.
"""

import asyncio
from collections.abc import Callable, Coroutine, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any, TypeVar, cast
from uuid import UUID

import asyncpg

from regions.identity import Epoch, RegionName, physical_slot_name, slot_name
from regions.member.errors import MemberFailed, MemberRefused, QuorumUnknown, SchemaMissing
from regions.member.settings import DATABASE, SCRAM_ITERATIONS, SUPERUSER
from regions.topology import Address

CONNECT_S = 3.0
"""Loopback connects in milliseconds; a member that is recovering answers at once that it is."""

QUERY_S = 5.0
"""For statements that wait for nobody: as long as a client waits for a write."""

SPARES = 2
"""Connections to the ledger database that are kept for who needs one next: a freeze, then a fence row; or a gate."""

SETTING_POLL_S = 0.01
SETTING_POLLS_MAX = 300
"""The postmaster tells its children of a reload by signal: milliseconds, seconds on a starved machine."""

OVERRIDE_SCOPES = ("cluster", "role", "database", "role in database", "function")
"""What ``read_overrides.sql`` finds: ``cluster`` is the configuration, or a setting of all roles in all databases."""

_BROKEN = (
    OSError,
    TimeoutError,
    asyncpg.PostgresError,
    asyncpg.InterfaceError,
    # asyncpg's own bookkeeping gives up like this when a connection breaks between two of its messages.
    asyncpg.InternalClientError,
)

_REFUSED = (ConnectionError, asyncpg.ConnectionDoesNotExistError)
"""What a connection meets where no PostgreSQL is: one that cannot take it says why instead."""

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerState:
    """A member as it sees itself.

    Attributes:
        in_recovery: Whether it is a standby.
        lsn: What it has on disk: flushed as primary, received or replayed as standby.
        receiving: Whether a standby is connected to its leader.
        synchronous_standby_names: The setting in force.
    """

    in_recovery: bool
    lsn: int
    receiving: bool
    synchronous_standby_names: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Standby:
    """A standby as its primary sees it.

    Attributes:
        region: Its region.
        streaming: Whether it has caught up and streams.
        sync_state: ``quorum`` when commits wait for it, else ``async``.
        flush_lag_bytes: WAL that it has not flushed.
        replay_lag_bytes: WAL that it has not replayed.
        flush_lag_s: Time between the primary's flush and the news of its own.
    """

    region: RegionName
    streaming: bool
    sync_state: str
    flush_lag_bytes: int
    replay_lag_bytes: int
    flush_lag_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Slot:
    """A replication slot.

    Attributes:
        name: Its name.
        active: Whether somebody reads from it.
        lost: Whether WAL that it needs is gone.
        retained_bytes: WAL that it holds back.
    """

    name: str
    active: bool
    lost: bool
    retained_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Override:
    """A setting that makes ``synchronous_commit`` weaker than ``on`` for somebody.

    Attributes:
        scope: Whose it is: one of ``OVERRIDE_SCOPES``.
        name: Which of them, as SQL writes it.
        value: What it is set to, as it was written.
    """

    scope: str
    name: str
    value: str


class Ledger:
    """SQL access of the agent to its own member. Connections are made at need, and one is kept.

    So are some to the ledger database, when `warm` was called: whoever waits for a move waits for no login.
    """

    def __init__(self, address: Address, password: str) -> None:
        self._address = address
        self._password = password
        self._kept: asyncpg.Connection | None = None
        self._using_kept = asyncio.Lock()
        self._spares: list[asyncpg.Connection] = []

    @property
    def url(self) -> str:
        """The libpq URL of the ledger database as superuser."""
        return f"postgresql://{SUPERUSER}:{self._password}@{self._address}/{DATABASE}"

    async def ping(self) -> None:
        """Connect once.

        Raises:
            MemberFailed: It refuses or does not answer.
        """
        await _closed(await self._connect("postgres"))

    async def prepare_roles(self, *, replication_password: str, writer_password: str) -> None:
        """Create the roles and the ledger database where they are missing."""

        async def prepare(connection: asyncpg.Connection) -> None:
            async with connection.transaction():
                iterations = str(SCRAM_ITERATIONS)
                await connection.fetch(_sql("set_passwords"), replication_password, writer_password, iterations)
                await connection.execute(_sql("create_roles"))
            if not await connection.fetchval(_sql("has_database"), DATABASE):
                await connection.execute(_sql("create_database"))

        await self._in_one_connection("postgres", prepare)

    async def prepare_slots(self, *, followers: Iterable[RegionName], streams: Iterable[RegionName]) -> None:
        """Create the slots of the followers' WAL and of the regions' change streams where missing."""
        physical = [physical_slot_name(region) for region in followers]
        logical = [slot_name(region) for region in streams]

        async def prepare(connection: asyncpg.Connection) -> None:
            await connection.fetch(_sql("create_physical_slots"), physical)
            await connection.fetch(_sql("create_logical_slots"), logical)

        await self._in_one_connection(DATABASE, prepare)

    async def prepare_follower_slots(self, followers: Iterable[RegionName]) -> None:
        """Create the slots of the followers' WAL where missing, over the connection that is kept: a failover waits."""
        await self._fetch("create_physical_slots", [physical_slot_name(region) for region in followers])

    async def prepare_idle_slots(self, followers: Iterable[RegionName]) -> None:
        """Create the slots that followers would read from if this member led, where missing; they keep no WAL yet."""
        await self._fetch("create_idle_slots", [physical_slot_name(region) for region in followers])

    async def drop_follower_slots(self, followers: Iterable[RegionName]) -> int:
        """Drop the slots of WAL of regions that follow no more; return how many are left because they are read.

        Raises:
            MemberFailed: It does not answer.
        """
        row = await self.one("drop_follower_slots", [physical_slot_name(region) for region in followers])
        return int(row["active"])

    async def verify_quorum(self, synchronous_standby_names: str) -> None:
        """Verify that a quorum is in force which `reload` has put in force in this process of PostgreSQL.

        Raises:
            MemberFailed: Another value is.
        """
        found = (await self.read_state()).synchronous_standby_names
        if found != synchronous_standby_names:
            raise MemberFailed(f"synchronous_standby_names is {found!r}")

    async def reload(self, *, synchronous_standby_names: str) -> None:
        """Make PostgreSQL read its files again; return when every commit waits for the quorum asked for.

        Raises:
            MemberFailed: Another value stays in force.
        """

        async def verify(connection: asyncpg.Connection) -> None:
            await connection.fetch(_sql("reload"))
            found = None
            for _ in range(SETTING_POLLS_MAX):
                # Rule 5: the setting counts when SHOW says so, not when the file does.
                found = await connection.fetchval(_sql("show_synchronous_standby_names"))
                if found == synchronous_standby_names:
                    return
                await asyncio.sleep(SETTING_POLL_S)
            raise MemberFailed(f"synchronous_standby_names stays {found!r}")

        async def settle(connection: asyncpg.Connection) -> None:
            for _ in range(2):
                await connection.execute(_sql("checkpoint"))

        await self._in_one_connection("postgres", verify)
        # SHOW speaks for one backend. Whether a commit waits is a flag in shared memory, and it is the
        # checkpointer that sets it when it reads the files itself (syncrep.c, SyncRepUpdateSyncStandbysDefined);
        # until then commits return alone. It does so before it begins a checkpoint. A new connection, because
        # the postmaster takes none before it has told everybody; two checkpoints, because it may have been
        # about to begin the first.
        await self._in_one_connection("postgres", settle)

    async def write_fence_row(self, *, epoch: Epoch, fence_id: UUID, leader: RegionName) -> UUID:
        """Commit the fence row of an epoch under the quorum; return the id it has.

        It can be seen here at once, so that writes begin, whose commits come after it; it returns when a quorum has
        the row on disk, however long that takes. When an earlier attempt wrote the row, that row's id is returned,
        after a commit of its own has reached the quorum.

        Raises:
            QuorumUnknown: The wait was cut short; the row is visible here and perhaps nowhere else.
            MemberFailed: The connection broke; nothing is known.
        """

        async def write(connection: asyncpg.Connection) -> UUID:
            warnings: list[str] = []
            connection.add_log_listener(lambda _, message: warnings.append(_describe(message)))
            async with connection.transaction():
                await connection.execute(_sql("show_at_once"))
                await connection.execute(_sql("write_fence_row"), epoch, fence_id, leader)
            found = await connection.fetchval(_sql("read_fence_row"), epoch)
            await connection.fetch(_sql("mark_fence_commit"), str(epoch))
            # Rule 7: a cancelled wait looks like success but for this warning.
            if warnings:
                raise QuorumUnknown(f"fence row of epoch {epoch}: {warnings[0]}")
            return cast("UUID", found)

        return await self._in_one_connection(DATABASE, write)

    async def commit_under_quorum(self) -> None:
        """Commit something under the quorum in force; return when it is there, however long that takes.

        Raises:
            QuorumUnknown: The wait was cut short.
            MemberFailed: The connection broke.
        """

        async def commit(connection: asyncpg.Connection) -> None:
            warnings: list[str] = []
            connection.add_log_listener(lambda _, message: warnings.append(_describe(message)))
            await connection.fetch(_sql("pass_commit"))
            if warnings:
                raise QuorumUnknown(f"a commit under a new quorum: {warnings[0]}")

        await self._in_one_connection("postgres", commit)

    async def hold_write_gate(self, closed: asyncio.Event) -> None:
        """Let no write begin, and set ``closed`` when none is under way any more; until cancelled.

        Raises:
            MemberFailed: The connection broke, and with it the lock.
        """
        connection = await self._connected(DATABASE)
        try:
            await connection.fetch(_sql("hold_gate"))
            closed.set()
            while True:
                await asyncio.sleep(QUERY_S)
                await connection.fetch("SELECT 1")
        except _BROKEN as error:
            raise MemberFailed(f"the write gate: {_describe(error)}") from error
        finally:
            connection.terminate()

    async def read_state(self) -> LedgerState:
        """Return what the member says of itself."""
        (row,) = await self._fetch("read_state")
        return LedgerState(
            in_recovery=row["in_recovery"],
            lsn=int(row["lsn"] or 0),
            receiving=row["receiving"],
            synchronous_standby_names=row["synchronous_standby_names"],
        )

    async def read_standbys(self, regions: Iterable[RegionName]) -> tuple[Standby, ...]:
        """Return the connected standbys among ``regions``, as the primary sees them."""
        rows = await self._fetch("read_standbys", list(regions))
        return tuple(
            Standby(
                region=row["application_name"],
                streaming=row["streaming"],
                sync_state=row["sync_state"],
                flush_lag_bytes=row["flush_lag_bytes"],
                replay_lag_bytes=row["replay_lag_bytes"],
                flush_lag_s=row["flush_lag_s"],
            )
            for row in rows
        )

    async def read_slots(self) -> tuple[Slot, ...]:
        """Return the replication slots."""
        return tuple(
            Slot(
                name=row["slot_name"],
                active=row["active"],
                lost=row["lost"],
                retained_bytes=row["retained_bytes"],
            )
            for row in await self._fetch("read_slots")
        )

    async def read_overrides(self) -> tuple[Override, ...]:
        """Return what makes commits of the ledger weaker than its quorum (rule 18).

        Over a connection of its own, because functions are in the ledger database.

        Raises:
            MemberFailed: It does not answer, or has no ledger database yet.
        """

        async def read(connection: asyncpg.Connection) -> "list[Mapping[str, Any]]":
            return cast("list[Mapping[str, Any]]", await connection.fetch(_sql("read_overrides"), timeout=QUERY_S))

        rows = await self._in_one_connection(DATABASE, read)
        return tuple(Override(scope=row["scope"], name=row["name"], value=row["value"]) for row in rows)

    async def read_fence_epochs(self, most: int) -> tuple[Epoch, ...]:
        """Return the epochs of the newest fence rows, ascending; none when there is no ledger database yet."""

        async def read(connection: asyncpg.Connection) -> list[Epoch]:
            return [row["epoch"] for row in await connection.fetch(_sql("read_fence_epochs"), most)]

        try:
            return tuple(sorted(await self._in_one_connection(DATABASE, read)))
        except SchemaMissing as error:
            if isinstance(error.__cause__, asyncpg.InvalidCatalogNameError):
                return ()
            raise

    async def one(self, name: str, *parameters: object) -> "Mapping[str, Any]":
        """Return the one row of a named statement that waits for nobody.

        Raises:
            MemberFailed: It does not answer.
        """
        (row,) = await self._fetch(name, *parameters)
        return row

    async def run(self, name: str) -> None:
        """Run a named statement that waits for nobody.

        Raises:
            MemberFailed: It does not answer.
        """
        await self._fetch(name)

    async def open_spares(self) -> None:
        """Have spare connections to the ledger database.

        Raises:
            MemberFailed: It does not answer, or has no such database yet.
        """
        self._spares = [one for one in self._spares if not one.is_closed()]
        while len(self._spares) < SPARES:
            self._spares.append(await self._connect(DATABASE))

    async def close(self) -> None:
        """Drop the connections that are kept."""
        if self._kept is not None:
            self._kept.terminate()
            self._kept = None
        while self._spares:
            self._spares.pop().terminate()

    async def _fetch(self, name: str, *parameters: object) -> "list[Mapping[str, Any]]":
        """Run a read that waits for nobody over the kept connection."""
        async with self._using_kept:
            try:
                async with asyncio.timeout(QUERY_S):
                    if self._kept is None or self._kept.is_closed():
                        self._kept = await self._connect("postgres")
                    return cast("list[Mapping[str, Any]]", await self._kept.fetch(_sql(name), *parameters))
            except _BROKEN as error:
                await self.close()
                raise _failure(error, name) from error

    async def _in_one_connection(
        self, database: str, work: "Callable[[asyncpg.Connection], Coroutine[Any, Any, _T]]"
    ) -> _T:
        """Run ``work`` to its end even when the caller is cancelled, or cut its connection.

        Cancelling asyncpg would cancel the statement on the server, and a cancelled COMMIT is visible
        without a quorum (rule 7). Cutting the connection leaves the commit waiting, as it should.
        """
        connection = await self._connected(database)
        task = asyncio.ensure_future(work(connection))
        try:
            return await asyncio.shield(task)
        except _BROKEN as error:
            raise _failure(error) from error
        finally:
            if task.done():
                await _closed(connection)
            else:
                connection.terminate()
                await asyncio.wait([task])
                if not task.cancelled():
                    task.exception()

    async def _connected(self, database: str) -> asyncpg.Connection:
        """Return a connection of the caller's own, a spare one where there is one."""
        while database == DATABASE and self._spares:
            spare = self._spares.pop()
            if not spare.is_closed():
                return spare
        return await self._connect(database)

    async def _connect(self, database: str) -> asyncpg.Connection:
        try:
            return await asyncpg.connect(
                host=self._address.host,
                port=self._address.port,
                user=SUPERUSER,
                password=self._password,
                database=database,
                ssl=False,
                timeout=CONNECT_S,
                # Each is a file here, and is asked for the first time once: between regions that takes a round trip.
                max_cached_statement_lifetime=0,
                server_settings={"application_name": "region-agent"},
            )
        except _REFUSED as error:
            raise MemberRefused(f"{self._address}: {_describe(error)}") from error
        except _BROKEN as error:
            raise _failure(error, str(self._address)) from error


@cache
def _sql(name: str) -> str:
    return resources.files("regions.member").joinpath("sql", f"{name}.sql").read_text()


async def _closed(connection: asyncpg.Connection) -> None:
    """Close a connection that may be broken already."""
    try:
        await connection.close(timeout=1)
    except _BROKEN:
        connection.terminate()


def _failure(error: Exception, where: str = "") -> MemberFailed:
    missing = isinstance(error, asyncpg.InvalidCatalogNameError | asyncpg.UndefinedTableError)
    text = f"{where}: {_describe(error)}" if where else _describe(error)
    return SchemaMissing(text) if missing else MemberFailed(text)


def _describe(error: object) -> str:
    lines = str(error).splitlines()
    return lines[0] if lines else type(error).__name__

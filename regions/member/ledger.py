"""Runs the agent's SQL on a ledger member: roles, slots, quorum, fence row, positions.

Decides that the outcome of a commit whose quorum wait is cancelled is unknown, never success (rules 7 and 9). Does not
know processes, files, or which region should lead. The statements are in ``sql/``.
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
"""A connection over loopback takes milliseconds, and a member that is starting up refuses it at once."""

QUERY_S = 5.0
"""Time limit of statements that do not wait for a quorum: as long as a client waits for a write."""

SPARE_CONNECTIONS = 2
"""Idle connections to the ledger database, for a freeze and then a fence row, or for the write gate."""

SETTING_POLL_S = 0.01
SETTING_POLLS_MAX = 300
"""The postmaster signals a reload to its children: this takes milliseconds, or seconds on an overloaded machine."""

OVERRIDE_SCOPES = ("cluster", "role", "database", "role in database", "function")
"""Scopes in ``read_overrides.sql``; ``cluster`` is the configuration, or a setting for all roles in all databases."""

_BROKEN = (
    OSError,
    TimeoutError,
    asyncpg.PostgresError,
    asyncpg.InterfaceError,
    # asyncpg raises this if a connection breaks between two messages.
    asyncpg.InternalClientError,
)

_REFUSED = (ConnectionError, asyncpg.ConnectionDoesNotExistError)
"""Errors of a connection to an address without PostgreSQL; a PostgreSQL that refuses connections reports a reason."""

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerState:
    """State of a member, as it reports it.

    Attributes:
        in_recovery: Whether it is a standby.
        lsn: End of its WAL in bytes: flushed on a primary, the greater of received and replayed on a standby.
        receiving: Whether a WAL receiver streams.
        synchronous_standby_names: The setting in force.
    """

    in_recovery: bool
    lsn: int
    receiving: bool
    synchronous_standby_names: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Standby:
    """State of a standby, as its primary reports it.

    Attributes:
        region: Its region.
        streaming: Whether it has caught up and streams.
        sync_state: ``quorum`` if commits wait for it, otherwise ``async``.
        flush_lag_bytes: WAL in bytes that it has not flushed.
        replay_lag_bytes: WAL in bytes that it has not replayed.
        flush_lag_s: Seconds from the primary's flush until it received the standby's report of the same flush.
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
        active: Whether a connection reads from it.
        lost: Whether PostgreSQL has invalidated it, because WAL that it needs is gone or for another reason.
        retained_bytes: WAL in bytes that it retains.
    """

    name: str
    active: bool
    lost: bool
    retained_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SettingOverride:
    """A setting that makes ``synchronous_commit`` weaker than ``on`` in some scope.

    Attributes:
        scope: One of ``OVERRIDE_SCOPES``.
        name: The role, database or function, as SQL writes it.
        value: The value, as it was written.
    """

    scope: str
    name: str
    value: str


class Ledger:
    """SQL access of the agent to one member.

    Connections are opened on demand. One to the database ``postgres`` stays open, and after `open_spares` also some to
    the ledger database, so that a failover does not wait for a login.
    """

    def __init__(self, address: Address, password: str) -> None:
        self._address = address
        self._password = password
        self._kept: asyncpg.Connection | None = None
        self._using_kept = asyncio.Lock()
        self._spares: list[asyncpg.Connection] = []

    @property
    def url(self) -> str:
        """Return the libpq URL of the ledger database as superuser."""
        return f"postgresql://{SUPERUSER}:{self._password}@{self._address}/{DATABASE}"

    async def ping(self) -> None:
        """Connect once.

        Raises:
            MemberFailed: The member refuses the connection or does not answer.
        """
        await _close_connection(await self._connect("postgres"))

    async def prepare_roles(self, *, replication_password: str, writer_password: str) -> None:
        """Create the roles and the ledger database if they are missing.

        Raises:
            MemberFailed: The member does not answer, or refuses a statement.
        """

        async def prepare(connection: asyncpg.Connection) -> None:
            async with connection.transaction():
                iterations = str(SCRAM_ITERATIONS)
                await connection.fetch(_sql("set_passwords"), replication_password, writer_password, iterations)
                await connection.execute(_sql("create_roles"))
            if not await connection.fetchval(_sql("has_database"), DATABASE):
                await connection.execute(_sql("create_database"))

        await self._in_one_connection("postgres", prepare)

    async def prepare_slots(self, *, followers: Iterable[RegionName], streams: Iterable[RegionName]) -> None:
        """Create the physical slots of the followers and the logical slots of the change streams if they are missing.

        Raises:
            MemberFailed: The member does not answer, or refuses a statement.
        """
        physical = [physical_slot_name(region) for region in followers]
        logical = [slot_name(region) for region in streams]

        async def prepare(connection: asyncpg.Connection) -> None:
            await connection.fetch(_sql("create_physical_slots"), physical)
            await connection.fetch(_sql("create_logical_slots"), logical)

        await self._in_one_connection(DATABASE, prepare)

    async def prepare_follower_slots(self, followers: Iterable[RegionName]) -> None:
        """Create the physical slots of the followers if they are missing, over the open connection: a failover waits.

        Raises:
            MemberFailed: The member does not answer.
        """
        await self._fetch("create_physical_slots", [physical_slot_name(region) for region in followers])

    async def prepare_idle_slots(self, followers: Iterable[RegionName]) -> None:
        """Create the slots that followers would use if this member led, if they are missing; they retain no WAL yet.

        Raises:
            MemberFailed: The member does not answer.
        """
        await self._fetch("create_idle_slots", [physical_slot_name(region) for region in followers])

    async def drop_follower_slots(self, followers: Iterable[RegionName]) -> int:
        """Drop the physical slots of regions that are not followers any more.

        Returns:
            The number of slots that remain because a connection reads from them.

        Raises:
            MemberFailed: The member does not answer.
        """
        row = await self.one("drop_follower_slots", [physical_slot_name(region) for region in followers])
        return int(row["active"])

    async def verify_quorum(self, synchronous_standby_names: str) -> None:
        """Verify that a quorum is still in force that `reload` has put in force in the same run of PostgreSQL.

        Raises:
            MemberFailed: Another value is in force.
        """
        found = (await self.read_state()).synchronous_standby_names
        if found != synchronous_standby_names:
            raise MemberFailed(f"synchronous_standby_names is {found!r}")

    async def reload(self, *, synchronous_standby_names: str) -> None:
        """Reload the configuration, and return when every commit waits for the given quorum.

        Raises:
            MemberFailed: Another value stays in force.
        """

        async def verify(connection: asyncpg.Connection) -> None:
            await connection.fetch(_sql("reload"))
            found = None
            for _ in range(SETTING_POLLS_MAX):
                # Rule 5: the value that SHOW reports counts, not the value in the file.
                found = await connection.fetchval(_sql("show_synchronous_standby_names"))
                if found == synchronous_standby_names:
                    return
                await asyncio.sleep(SETTING_POLL_S)
            raise MemberFailed(f"synchronous_standby_names stays {found!r}")

        async def settle(connection: asyncpg.Connection) -> None:
            for _ in range(2):
                await connection.execute(_sql("checkpoint"))

        await self._in_one_connection("postgres", verify)
        # SHOW reports the value of one backend. Whether commits wait is a flag in shared memory, which the checkpointer
        # sets when it reloads the configuration itself (syncrep.c, SyncRepUpdateSyncStandbysDefined). Until then
        # commits return without a quorum. The checkpointer reloads before it begins a checkpoint. The connection is
        # new, because the postmaster accepts it only after it has signalled all its children. There are two
        # checkpoints, because for the first one the checkpointer may have passed its reload already.
        await self._in_one_connection("postgres", settle)

    async def write_fence_row(self, *, epoch: Epoch, fence_id: UUID, leader: RegionName) -> UUID:
        """Commit the fence row of an epoch, and return when a quorum has it on disk; there is no time limit.

        The row becomes visible on this member before that, so that writes can begin; their commits come after it and
        wait for the quorum. If an earlier attempt wrote the row, this one waits for a later commit to reach the quorum.

        Returns:
            The id of the row, which is that of an earlier attempt if that attempt wrote it.

        Raises:
            QuorumUnknown: The quorum wait was cancelled; the row is visible here and possibly on no other member.
            MemberFailed: The connection broke; the outcome is unknown.
        """

        async def write(connection: asyncpg.Connection) -> UUID:
            warnings: list[str] = []
            connection.add_log_listener(lambda _, message: warnings.append(_describe(message)))
            async with connection.transaction():
                await connection.execute(_sql("show_at_once"))
                await connection.execute(_sql("write_fence_row"), epoch, fence_id, leader)
            found = await connection.fetchval(_sql("read_fence_row"), epoch)
            await connection.fetch(_sql("mark_fence_commit"), str(epoch))
            # Rule 7: only this warning distinguishes a cancelled wait from success.
            if warnings:
                raise QuorumUnknown(f"fence row of epoch {epoch}: {warnings[0]}")
            return cast("UUID", found)

        return await self._in_one_connection(DATABASE, write)

    async def commit_under_quorum(self) -> None:
        """Commit a WAL record, and return when the quorum in force has it; there is no time limit.

        Raises:
            QuorumUnknown: The quorum wait was cancelled.
            MemberFailed: The connection broke; the outcome is unknown.
        """

        async def commit(connection: asyncpg.Connection) -> None:
            warnings: list[str] = []
            connection.add_log_listener(lambda _, message: warnings.append(_describe(message)))
            await connection.fetch(_sql("pass_commit"))
            if warnings:
                raise QuorumUnknown(f"a commit under a new quorum: {warnings[0]}")

        await self._in_one_connection("postgres", commit)

    async def hold_write_gate(self, closed: asyncio.Event) -> None:
        """Close the write gate until cancelled: new writes are refused, and ``closed`` is set when no write is running.

        Raises:
            MemberFailed: The connection broke, and the lock was released with it.
        """
        connection = await self._take_connection(DATABASE)
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
        """Return the member's state.

        Raises:
            MemberFailed: It does not answer.
        """
        (row,) = await self._fetch("read_state")
        return LedgerState(
            in_recovery=row["in_recovery"],
            lsn=int(row["lsn"] or 0),
            receiving=row["receiving"],
            synchronous_standby_names=row["synchronous_standby_names"],
        )

    async def read_standbys(self, regions: Iterable[RegionName]) -> tuple[Standby, ...]:
        """Return the connected standbys among ``regions``, as the primary reports them.

        Raises:
            MemberFailed: It does not answer.
        """
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
        """Return the replication slots.

        Raises:
            MemberFailed: It does not answer.
        """
        return tuple(
            Slot(
                name=row["slot_name"],
                active=row["active"],
                lost=row["lost"],
                retained_bytes=row["retained_bytes"],
            )
            for row in await self._fetch("read_slots")
        )

    async def read_overrides(self) -> tuple[SettingOverride, ...]:
        """Return the settings that let commits return without the quorum (rule 18).

        It opens a connection to the ledger database, because functions and their settings are in that database.

        Raises:
            MemberFailed: It does not answer, or has no ledger database yet.
        """

        async def read(connection: asyncpg.Connection) -> "list[Mapping[str, Any]]":
            return cast("list[Mapping[str, Any]]", await connection.fetch(_sql("read_overrides"), timeout=QUERY_S))

        rows = await self._in_one_connection(DATABASE, read)
        return tuple(SettingOverride(scope=row["scope"], name=row["name"], value=row["value"]) for row in rows)

    async def read_fence_epochs(self, most: int) -> tuple[Epoch, ...]:
        """Return the epochs of the newest ``most`` fence rows, ascending; none if there is no ledger database yet.

        Raises:
            MemberFailed: It does not answer.
        """

        async def read(connection: asyncpg.Connection) -> list[Epoch]:
            return [row["epoch"] for row in await connection.fetch(_sql("read_fence_epochs"), most)]

        try:
            return tuple(sorted(await self._in_one_connection(DATABASE, read)))
        except SchemaMissing as error:
            if isinstance(error.__cause__, asyncpg.InvalidCatalogNameError):
                return ()
            raise

    async def one(self, name: str, *parameters: object) -> "Mapping[str, Any]":
        """Return the only row of a named statement that does not wait for a quorum.

        Raises:
            MemberFailed: It does not answer.
        """
        (row,) = await self._fetch(name, *parameters)
        return row

    async def run(self, name: str) -> None:
        """Run a named statement that does not wait for a quorum.

        Raises:
            MemberFailed: It does not answer.
        """
        await self._fetch(name)

    async def open_spares(self) -> None:
        """Open the missing spare connections to the ledger database.

        Raises:
            MemberFailed: It does not answer, or has no ledger database yet.
        """
        self._spares = [one for one in self._spares if not one.is_closed()]
        while len(self._spares) < SPARE_CONNECTIONS:
            self._spares.append(await self._connect(DATABASE))

    async def close(self) -> None:
        """Close the open connections; the next statement opens one again."""
        if self._kept is not None:
            self._kept.terminate()
            self._kept = None
        while self._spares:
            self._spares.pop().terminate()

    async def _fetch(self, name: str, *parameters: object) -> "list[Mapping[str, Any]]":
        """Run a statement that does not wait for a quorum, over the connection that stays open."""
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
        """Run ``work`` with a connection; if the caller is cancelled, cut the connection and do not cancel ``work``.

        If asyncpg is cancelled, it cancels the statement on the server, and a cancelled COMMIT becomes visible without
        a quorum (rule 7). After the connection is cut, the server keeps waiting for the quorum.
        """
        connection = await self._take_connection(database)
        task = asyncio.ensure_future(work(connection))
        try:
            return await asyncio.shield(task)
        except _BROKEN as error:
            raise _failure(error) from error
        finally:
            if task.done():
                await _close_connection(connection)
            else:
                connection.terminate()
                await asyncio.wait([task])
                if not task.cancelled():
                    task.exception()

    async def _take_connection(self, database: str) -> asyncpg.Connection:
        """Return a connection for the caller alone, a spare one if there is one."""
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
                # The statements are a few files. Each is prepared once per connection, because preparing costs a round
                # trip, which is long between regions.
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


async def _close_connection(connection: asyncpg.Connection) -> None:
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

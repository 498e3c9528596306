"""Asks the view. Every question is one statement, bounded in time; an answer that cannot be had is one error."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Sequence
from types import TracebackType
from typing import Final, Self
from uuid import UUID

import asyncpg
from asyncpg import exceptions as pg
from prometheus_client import Counter, Gauge

from services import view
from services.view.cancellation import heed_cancellation

# A page takes a millisecond; a view that needs seconds is better borrowed from a neighbour.
STATEMENT_TIMEOUT_S: Final = 2.0
ACQUIRE_TIMEOUT_S: Final = 1.0

# Each statement reads short stretches of indexes. A plan made while a table was small must stay good when it is large,
# so only these are wanted, whatever the statistics say; and planning the page takes as long as reading it.
PLANNER_SETTINGS: Final = {
    "plan_cache_mode": "force_generic_plan",
    "enable_seqscan": "off",
    "enable_bitmapscan": "off",
    "enable_hashjoin": "off",
    "enable_mergejoin": "off",
    "jit": "off",
}

_CONNECTIONS: Final = Gauge("palaver_view_pool_connections", "Connections to the view", ["state"])
_FAILURES: Final = Counter("palaver_view_failures_total", "Questions the view did not answer")

_UNAVAILABLE: Final = (
    OSError,
    TimeoutError,
    EOFError,
    pg.PostgresConnectionError,
    pg.OperatorInterventionError,
    pg.InsufficientResourcesError,
    pg.InvalidAuthorizationSpecificationError,
    pg.UndefinedTableError,
    pg.UndefinedFunctionError,
    pg.InsufficientPrivilegeError,
    pg.InvalidCatalogNameError,
    pg.InterfaceError,
    pg.InternalClientError,
)


class ViewUnavailable(Exception):
    """The view cannot answer now: it is down, starting, or its schema is not there yet."""


class ViewBusy(ViewUnavailable):
    """The view answers, but clients ask more than it answers in time."""


class ViewReader:
    """A bounded pool of connections to the view; an asynchronous context manager. Starts while the view is down.

    What clients ask leaves a connection free, when there are two: with the checkpoint the process learns whether the
    view is there, and a burst of questions must not look like a view that is gone.
    """

    def __init__(self, url: str, *, size: int) -> None:
        self._turns = asyncio.Semaphore(max(1, size - 1))
        # Nothing is ever set in a session, so the round trip that would reset it is saved.
        self._pool = asyncpg.create_pool(
            url,
            min_size=0,
            max_size=size,
            reset=_leave_as_it_is,
            timeout=ACQUIRE_TIMEOUT_S,
            command_timeout=STATEMENT_TIMEOUT_S,
            server_settings={"application_name": "palaver-read-api", "TimeZone": "UTC", **PLANNER_SETTINGS},
        )

    async def __aenter__(self) -> Self:
        await self._pool
        _CONNECTIONS.labels("open").set_function(self._pool.get_size)
        _CONNECTIONS.labels("idle").set_function(self._pool.get_idle_size)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.terminate()

    async def page(self, *arguments: object) -> Sequence[asyncpg.Record]:
        """Rows of `page.sql`."""
        return await self._fetch_for_client("page", *arguments)

    async def comment(self, site: UUID, comment: UUID) -> asyncpg.Record | None:
        """Row of `comment.sql`; None for an unknown site."""
        return _one(await self._fetch_for_client("comment", site, comment))

    async def counts(self, site: UUID, keys: Sequence[str]) -> dict[str, int]:
        """Counts of approved comments by thread key."""
        rows = await self._fetch_for_client("counts", site, list(keys))
        return {row["key"]: row["count"] for row in rows}

    async def origins(self, site: UUID) -> Sequence[str] | None:
        """Origins of a site; None for an unknown one."""
        row = _one(await self._fetch_for_client("site_origins", site))
        return None if row is None else row["origins"]

    async def checkpoint(self, cell: str) -> asyncpg.Record | None:
        """Row of `checkpoint.sql`; None before the first change arrived."""
        return _one(await self._fetch("checkpoint", cell))

    async def schema_ready(self) -> bool:
        """Whether the replicator has made the tables."""
        row = _one(await self._fetch("schema_ready"))
        return row is not None and row["ready"]

    async def _fetch_for_client(self, name: str, *arguments: object) -> Sequence[asyncpg.Record]:
        async with turn(self._turns):
            return await self._fetch(name, *arguments)

    async def _fetch(self, name: str, *arguments: object) -> Sequence[asyncpg.Record]:
        try:
            # The bound covers waiting for a connection and making one; the pool's own covers only the wait.
            async with asyncio.timeout(ACQUIRE_TIMEOUT_S + STATEMENT_TIMEOUT_S):
                connection = await self._pool.acquire(timeout=ACQUIRE_TIMEOUT_S)
                try:
                    return await connection.fetch(view.statement(name), *arguments)
                finally:
                    await self._pool.release(connection)
        except _UNAVAILABLE as error:
            # Giving back a connection whose statement was cancelled may fail, which says nothing about the view.
            heed_cancellation(error)
            _FAILURES.inc()
            raise ViewUnavailable(f"{type(error).__name__}: {error}") from error


@contextlib.asynccontextmanager
async def turn(turns: asyncio.Semaphore) -> AsyncGenerator[None]:
    """Wait for one of a number of turns, bounded, and hold it.

    Raises:
        ViewBusy: None was free in time.
    """
    try:
        async with asyncio.timeout(ACQUIRE_TIMEOUT_S):
            await turns.acquire()
    except TimeoutError:
        raise ViewBusy("too many reads wait for the view") from None
    try:
        yield
    finally:
        turns.release()


async def _leave_as_it_is(connection: object) -> None:
    del connection


def _one(rows: Sequence[asyncpg.Record]) -> asyncpg.Record | None:
    return rows[0] if rows else None

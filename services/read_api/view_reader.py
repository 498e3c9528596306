"""Queries the view. Each query is one statement with a time limit; every failure is a `ViewUnavailable`."""

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
from services.view.cancellation import raise_if_cancelled

# A page takes a millisecond. If the view needs seconds, another region answers faster.
STATEMENT_TIMEOUT_S: Final = 2.0
ACQUIRE_TIMEOUT_S: Final = 1.0

# Each statement reads short ranges of indexes. Planning a page takes as long as reading it, so plans are generic, and a
# plan that was made for a small table must suit a large one. These settings allow only index scans and nested loops.
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
    """The view cannot answer now: it is down or starting, or its schema does not exist yet."""


class ViewBusy(ViewUnavailable):
    """The view answers, but too many reads wait for it."""


class ViewReader:
    """A bounded pool of connections to the view; an asynchronous context manager. It starts even if the view is down.

    Clients' queries leave one connection free if the pool has at least two. The process polls the checkpoint over it to
    detect whether the view is available; a burst of queries must not look like an unavailable view.
    """

    def __init__(self, url: str, *, size: int) -> None:
        self._turns = asyncio.Semaphore(max(1, size - 1))
        # No statement changes a session, so resetting it would be a useless round trip.
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
        """Return the rows of `page.sql`."""
        return await self._fetch_for_client("page", *arguments)

    async def comment(self, site: UUID, comment: UUID) -> asyncpg.Record | None:
        """Return the row of `comment.sql`; None for an unknown site."""
        return _one(await self._fetch_for_client("comment", site, comment))

    async def counts(self, site: UUID, keys: Sequence[str]) -> dict[str, int]:
        """Return the counts of approved comments by thread key."""
        rows = await self._fetch_for_client("counts", site, list(keys))
        return {row["key"]: row["count"] for row in rows}

    async def origins(self, site: UUID) -> Sequence[str] | None:
        """Return the origins of a site; None for an unknown site."""
        row = _one(await self._fetch_for_client("site_origins", site))
        return None if row is None else row["origins"]

    async def checkpoint(self, cell: str) -> asyncpg.Record | None:
        """Return the row of `checkpoint.sql`; None before the first change."""
        return _one(await self._fetch("checkpoint", cell))

    async def schema_ready(self) -> bool:
        """Whether the replicator has created the tables."""
        row = _one(await self._fetch("schema_ready"))
        return row is not None and row["ready"]

    async def _fetch_for_client(self, name: str, *arguments: object) -> Sequence[asyncpg.Record]:
        async with turn(self._turns):
            return await self._fetch(name, *arguments)

    async def _fetch(self, name: str, *arguments: object) -> Sequence[asyncpg.Record]:
        try:
            # This limit covers waiting for a connection and connecting; the pool's own timeout covers only the wait.
            async with asyncio.timeout(ACQUIRE_TIMEOUT_S + STATEMENT_TIMEOUT_S):
                connection = await self._pool.acquire(timeout=ACQUIRE_TIMEOUT_S)
                try:
                    return await connection.fetch(view.statement(name), *arguments)
                finally:
                    await self._pool.release(connection)
        except _UNAVAILABLE as error:
            # Releasing a connection whose statement was cancelled may fail although the view is available.
            raise_if_cancelled(error)
            _FAILURES.inc()
            raise ViewUnavailable(f"{type(error).__name__}: {error}") from error


@contextlib.asynccontextmanager
async def turn(turns: asyncio.Semaphore) -> AsyncGenerator[None]:
    """Acquire the semaphore with a time limit, and hold it.

    Raises:
        ViewBusy: The semaphore was not free in time.
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

"""Builds the indexes of a view that may be large, while changes are applied and pages are read.

Decides that a revision never builds an index on a table with rows: changes wait for the revisions, and an index on a
hundred million comments takes minutes. `CREATE INDEX CONCURRENTLY` blocks no statement, but cannot run in a
transaction, and leaves an invalid index behind when it is interrupted; that one is dropped and built anew. An index
that another one replaces is dropped after that one is valid, so every statement has one at any time. Source:
PostgreSQL's documentation of CREATE INDEX, "Building Indexes Concurrently".
"""

import logging
from typing import TYPE_CHECKING, Final

import asyncpg

from services import view

if TYPE_CHECKING:
    from asyncpg import Connection, Record

BUILT: Final = ("comments_shown",)
"""Each has `build_<name>.sql` and `drop_<name>.sql`."""

REPLACED: Final = ("comments_by_parent",)
"""Each has `drop_<name>.sql`."""

CONNECT_TIMEOUT_S: Final = 5.0

# One lock for all builds in a database; the number has no meaning beyond being ours. Not that of the revisions.
_ADVISORY_LOCK: Final = 0x70616C61766578

_FAILED: Final = (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError)

_log = logging.getLogger("palaver.view.indexes")


class IndexBuildFailed(Exception):
    """The view cannot be reached, refused a statement, or another process builds."""


async def build_indexes(url: str) -> None:
    """Build what is missing and drop what was replaced. Idempotent; takes as long as the tables are large.

    When it is cancelled, the server may go on with the statement that is under way.

    Args:
        url: `postgresql://palaver_apply:…@host:port/palaver`, the owner of the tables, which must be there.

    Raises:
        IndexBuildFailed: Try again later.
    """
    try:
        connection = await asyncpg.connect(
            url, timeout=CONNECT_TIMEOUT_S, server_settings={"application_name": "palaver-indexes"}
        )
        try:
            if not await connection.fetchval(view.statement("try_index_lock"), _ADVISORY_LOCK):
                raise IndexBuildFailed("another process builds the indexes of this view")
            for name in BUILT:
                await _build(connection, name)
            for name in REPLACED:
                await connection.execute(view.statement(f"drop_{name}"))
        finally:
            # The lock ends with the session; a session that is cut while it builds keeps the lock until it has built.
            connection.terminate()
    except _FAILED as error:
        raise IndexBuildFailed(" ".join(str(error).split()) or type(error).__name__) from error


async def _build(connection: "Connection[Record]", name: str) -> None:
    valid: bool | None = await connection.fetchval(view.statement("index_is_valid"), name)
    if valid:
        return
    if valid is False:
        _log.warning("a build of the index was interrupted, it is built anew", extra={"index": name})
        await connection.execute(view.statement(f"drop_{name}"))
    _log.info("an index is being built", extra={"index": name})
    await connection.execute(view.statement(f"build_{name}"))
    _log.info("an index was built", extra={"index": name})

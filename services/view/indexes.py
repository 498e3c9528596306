"""Builds indexes of large views while changes are applied and pages are read.

Decides that no revision builds an index on a table with rows: apply waits for the revisions, and an index on a hundred
million comments takes minutes. `CREATE INDEX CONCURRENTLY` blocks no reads or writes, but it cannot run in a
transaction, and it leaves an invalid index behind if it is interrupted; this module drops such an index and builds it
again. A replaced index is dropped after its replacement is valid, so that every statement always has an index. Source:
PostgreSQL's documentation of CREATE INDEX, "Building Indexes Concurrently".

Published migrations stay as they are. The comment of revision 0001 on `comments_by_parent` is incomplete: the index
serves roots in their order only if ORDER BY begins with parent_id (`sql/page.sql`).
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

# One lock for all builds in a database. The number is arbitrary, and differs from that of the revisions.
_ADVISORY_LOCK: Final = 0x70616C61766578

_FAILED: Final = (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError)

_log = logging.getLogger("palaver.view.indexes")


class IndexBuildFailed(Exception):
    """The view cannot be reached, refused a statement, or another process builds."""


async def build_indexes(url: str) -> None:
    """Build missing indexes and drop replaced ones. Idempotent. The time depends on the size of the tables.

    After a cancellation the server may continue the running statement.

    Args:
        url: `postgresql://palaver_apply:…@host:port/palaver`, the owner of the tables, which must exist.

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
            # The lock ends with the session. If the connection breaks during a build, it ends after the build.
            connection.terminate()
    except _FAILED as error:
        raise IndexBuildFailed(" ".join(str(error).split()) or type(error).__name__) from error


async def _build(connection: "Connection[Record]", name: str) -> None:
    valid: bool | None = await connection.fetchval(view.statement("index_is_valid"), name)
    if valid:
        return
    if valid is False:
        _log.warning("the last build of the index was interrupted, building it again", extra={"index": name})
        await connection.execute(view.statement(f"drop_{name}"))
    _log.info("building an index", extra={"index": name})
    await connection.execute(view.statement(f"build_{name}"))
    _log.info("an index was built", extra={"index": name})

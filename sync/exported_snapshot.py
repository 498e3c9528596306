"""Opens a snapshot of the ledger at an exact position.

Decides how a position and a snapshot are tied together: a temporary logical slot is created, and PostgreSQL exports the
snapshot at which the slot is consistent. **The snapshot has every transaction whose commit ends at or before the
position, and no later one.** The slot is dropped as soon as the snapshot was imported, so it retains no WAL. Creation
waits until the transactions that run have ended, therefore the time is bounded.

Source: PostgreSQL 18, "Streaming Replication Protocol", CREATE_REPLICATION_SLOT, and "Snapshot Synchronization
Functions".
"""

import asyncio
import uuid
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Final

import psycopg
from psycopg import pq, sql

from regions.position import parse_lsn
from sync.walsender import SourceUnavailable, connect, execute_command, one_line

OPEN_S_MAX: Final = 10.0
"""Creation waits for running transactions. A write takes one or two round trips between regions."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportedSnapshot:
    """A transaction that sees exactly the ledger at a position.

    Attributes:
        connection: Inside of a REPEATABLE READ, READ ONLY transaction.
        lsn: The position.
    """

    connection: psycopg.AsyncConnection
    lsn: int


@asynccontextmanager
async def open_exported_snapshot(conninfo: str) -> AsyncGenerator[ExportedSnapshot]:
    """Open a snapshot; it ends with the context.

    Args:
        conninfo: libpq conninfo of the ledger's primary, a role with REPLICATION that may read the tables.

    Raises:
        SourceUnavailable: The ledger does not answer or is not the primary, or transactions run for too long.
    """
    try:
        async with await connect(conninfo, replication=False) as connection:
            try:
                async with asyncio.timeout(OPEN_S_MAX):
                    lsn = await _import_snapshot(conninfo, connection)
            except TimeoutError:
                raise SourceUnavailable(
                    f"no snapshot: the ledger's transactions took more than {OPEN_S_MAX:g} s to end"
                ) from None
            yield ExportedSnapshot(connection=connection, lsn=lsn)
    except psycopg.Error as error:
        raise SourceUnavailable(one_line(error)) from error


async def _import_snapshot(conninfo: str, connection: psycopg.AsyncConnection) -> int:
    """Begin a transaction with a snapshot that a temporary slot exports; return its LSN."""
    async with await connect(conninfo) as walsender:
        command = sql.SQL("CREATE_REPLICATION_SLOT {} TEMPORARY LOGICAL pgoutput (SNAPSHOT 'export')").format(
            sql.Identifier(f"palaver_compare_{uuid.uuid4().hex[:16]}")
        )
        result = await execute_command(walsender, command.as_bytes(None))
        if result.status != pq.ExecStatus.TUPLES_OK:
            raise SourceUnavailable(result.get_error_message().strip())
        _, lsn, snapshot, _ = (str(value, "ascii") for value in map(partial(result.get_value, 0), range(4)) if value)
        await connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
        await connection.execute(sql.SQL("SET TRANSACTION SNAPSHOT {}").format(sql.Literal(snapshot)))
        return parse_lsn(lsn)

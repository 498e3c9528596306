"""A snapshot of the ledger in the words of the change stream, for a view whose changes are gone.

Decides when a snapshot has all that the slot no longer brings, and in which order rows come. Refuses to know what a
view does with them. **A view that has applied a snapshot to its end, and then what its slot brings after the
snapshot's position, has everything: what committed before that position is in the snapshot. Nothing leaves before a
quorum has it.** What committed while the snapshot was taken may come twice; a projection merges by version.

It travels as one large transaction in parts, so that the checkpoint moves with its end only, and a snapshot that is
cut short is taken again. Rows that the ledger erased while nobody listened are not told of: the ledger erases none
(a deleted comment stays as a row), and comparing views with the ledger is the work of repair.

Source: PostgreSQL 18, "Logical Decoding Concepts" (what a slot brings) and "Snapshot Synchronization Functions".
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Mapping
from contextlib import asynccontextmanager
from typing import Final

import psycopg
from psycopg import sql

from regions.identity import Epoch
from regions.position import Position, parse_lsn
from sync.change import Change, Transaction
from sync.high_water import HighWaterMark
from sync.statements import load_sql
from sync.walsender import SourceUnavailable, connect, one_line

TABLES: Final[Mapping[str, tuple[str, ...]]] = {"sites": ("id",), "threads": ("id",), "comments": ("depth", "id")}
"""What is copied, in an order in which whatever a row refers to comes before it, and the order within each."""

PART_ROWS: Final = 500
"""A part is one transaction of the view, as a batch of the stream is; rows are 0.2 to 10 kB."""

DECIDED_S_MAX: Final = 3.0
DECIDED_PAUSE_S: Final = 0.02
"""A write waits for its quorum for a round trip or two; without a quorum there is no snapshot either."""

_log = logging.getLogger(__name__)


class Snapshot:
    """A snapshot that was taken; read it once.

    Attributes:
        position: Where the slot goes on.
        rows: How many were read so far.
    """

    def __init__(self, connection: psycopg.AsyncConnection, position: Position, taken_at_us: int) -> None:
        """Wrap a connection inside of the transaction that sees the snapshot."""
        self.position = position
        self.rows = 0
        self._connection = connection
        self._taken_at_us = taken_at_us

    async def parts(self) -> AsyncGenerator[Transaction]:
        """Yield everything, bounded parts first and an empty end that moves the checkpoint.

        Raises:
            SourceUnavailable: The connection broke.
        """
        try:
            for table, order in TABLES.items():
                async for changes in self._changes(table, order):
                    yield self._part(changes, partial=True)
        except psycopg.Error as error:
            raise SourceUnavailable(one_line(error)) from error
        yield self._part((), partial=False)

    def _part(self, changes: tuple[Change, ...], *, partial: bool) -> Transaction:
        return Transaction(
            position=self.position, commit_ts_us=self._taken_at_us, trace=None, changes=changes, partial=partial
        )

    async def _changes(self, table: str, order: tuple[str, ...]) -> AsyncGenerator[tuple[Change, ...]]:
        cursor = await self._connection.execute(load_sql("published_columns"), {"table": table})
        columns = [str(name) for (name,) in await cursor.fetchall()]
        query = sql.SQL("SELECT {columns} FROM {table} ORDER BY {order}").format(
            # In text form, as the WAL's decoder gives them.
            columns=sql.SQL(", ").join(sql.SQL("{}::text").format(sql.Identifier(name)) for name in columns),
            table=sql.Identifier("palaver", table),
            order=sql.SQL(", ").join(sql.Identifier(name) for name in order),
        )
        async with self._connection.cursor(name="snapshot") as rows:
            await rows.execute(query)
            while some := await rows.fetchmany(PART_ROWS):
                self.rows += len(some)
                images = [dict(zip(columns, row, strict=True)) for row in some]
                yield tuple(
                    Change(table=table, op="insert", key={"id": str(image["id"])}, row=image) for image in images
                )


@asynccontextmanager
async def open_snapshot(conninfo: str, *, slot: str, epoch: Epoch, mark: HighWaterMark) -> AsyncGenerator[Snapshot]:
    """Take a snapshot that ``slot`` goes on from; a slot that is missing or invalidated is made anew.

    Args:
        conninfo: libpq conninfo of the ledger's primary, a role with REPLICATION that may read the tables.
        slot: Name of the logical slot of the view's region.
        epoch: Under which the ledger is led now.
        mark: What is on a quorum; in use.

    Raises:
        SourceUnavailable: No connection, no primary, or commits wait for a quorum that is not there.
    """
    try:
        async with await connect(conninfo, replication=False) as connection:
            lsn = await _begin_of(connection, slot)
            await _in_time(_until_decided(connection))
            await connection.set_isolation_level(psycopg.IsolationLevel.REPEATABLE_READ)
            await connection.set_read_only(True)
            async with connection.transaction():
                cursor = await connection.execute(load_sql("snapshot_taken"))
                row = await cursor.fetchone()
                assert row is not None, "one row, always"
                flushed, taken_at_us = row
                # Whatever it sees was flushed by then; a failover must not be able to take it back.
                await _in_time(mark.wait_for(parse_lsn(flushed)))
                yield Snapshot(connection, Position(epoch, lsn), int(taken_at_us))
    except psycopg.Error as error:
        raise SourceUnavailable(one_line(error)) from error


async def _begin_of(connection: psycopg.AsyncConnection, slot: str) -> int:
    """Return the LSN from which the slot brings every commit; make it when it brings none."""
    await connection.execute(load_sql("drop_lost_slot"), {"slot": slot})
    cursor = await connection.execute(load_sql("make_slot"), {"slot": slot})
    if await cursor.fetchone() is not None:
        _log.warning("slot %s was made anew", slot)
    cursor = await connection.execute(load_sql("slot_begins"), {"slot": slot})
    row = await cursor.fetchone()
    if row is None or row[0] is None:
        raise SourceUnavailable(f"slot {slot} is not there yet")
    return parse_lsn(row[0])


async def _until_decided(connection: psycopg.AsyncConnection) -> None:
    """Wait until every transaction that may have committed before now has become visible, or has ended.

    A commit is in the WAL, and behind the slot, while it still waits for its quorum; until that is there nobody sees
    its rows. Neither the snapshot nor the slot would bring them.
    """
    cursor = await connection.execute(load_sql("newest_transaction"))
    row = await cursor.fetchone()
    while True:
        cursor = await connection.execute(load_sql("are_older_decided"), row)
        if await cursor.fetchone() == (True,):
            return
        await asyncio.sleep(DECIDED_PAUSE_S)


async def _in_time(work: Awaitable[None]) -> None:
    try:
        async with asyncio.timeout(DECIDED_S_MAX):
            await work
    except TimeoutError:
        raise SourceUnavailable("no snapshot while commits wait for their quorum") from None

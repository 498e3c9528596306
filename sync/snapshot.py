"""Takes a snapshot of the ledger's tables, for a view whose changes are no longer available.

Decides when a snapshot contains everything that the slot lacks, and the order of its rows. Does not know how a view
applies them. **A snapshot contains every transaction that committed before its position, and the slot delivers every
later one. A view that has applied both has everything. Nothing leaves the leader before a quorum has it.** A change
that committed while the snapshot was taken may be delivered twice; a projection merges it by version.

A snapshot is sent as one large transaction in parts, so that the checkpoint moves only with its end. If a snapshot is
interrupted, the view requests a new one. A snapshot does not report rows that the ledger has erased: a deleted comment
stays as a row, and a view that gets it erases the comment's votes. Repair will compare the rows.

Source: PostgreSQL 18, "Logical Decoding Concepts" (the changes that a slot delivers) and "Snapshot Synchronization
Functions".
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable
from contextlib import aclosing, asynccontextmanager
from typing import Any, Final, LiteralString, TypeVar

import psycopg
from psycopg import sql

from regions.identity import Epoch
from regions.position import Position, parse_lsn
from sync.change import Change, Transaction
from sync.high_water import HighWaterMark
from sync.registry import CONTROL_TABLES, SCHEMAS_TABLE, Registry, Table
from sync.statements import load_sql
from sync.walsender import SlotLost, SourceUnavailable, connect, one_line

PART_ROWS: Final = 500
PART_CHARACTERS: Final = 256 * 1024
"""A part is one transaction of the view, as a batch is. A part is at most 1 MiB in UTF-8, and one row more."""

FETCH_ROWS: Final = 50
"""Rows that are in memory beside a part. One row may have 100,000 characters."""

PREPARE_S_MAX: Final = 15.0
OLDER_PAUSE_S: Final = 0.02
"""A write waits for its quorum for one or two round trips. Without a quorum no snapshot is taken."""

_log = logging.getLogger(__name__)

_T = TypeVar("_T")


class Snapshot:
    """A snapshot whose parts can be read once.

    Attributes:
        position: The position after which the slot delivers all changes.
        rows: Number of rows that were read so far.
    """

    def __init__(
        self, connection: psycopg.AsyncConnection, registry: Registry, slot: str, position: Position, taken_at_us: int
    ) -> None:
        """Wrap a connection inside of a REPEATABLE READ transaction."""
        self.position = position
        self._registry = registry
        self._slot = slot
        self.rows = 0
        self._connection = connection
        self._taken_at_us = taken_at_us

    async def parts(self) -> AsyncGenerator[Transaction]:
        """Yield the schemas and the rows in bounded parts, then an empty transaction that moves the checkpoint.

        Rows that reference rows of the same table come after them, in the order of the table's level. Rows have no
        other order, because sorting a large table needs its size again on disk.

        Raises:
            SlotLost: The slot was lost meanwhile, so it would not deliver the changes after the snapshot.
            SourceUnavailable: The connection broke.
        """
        try:
            yield self._part(await self._announcements(), partial=True)
            for table in self._registry:
                async with aclosing(self._changes(table)) as chunks:
                    async for changes in chunks:
                        yield self._part(changes, partial=True)
            if await _slot_start(self._connection, self._slot) != self.position.lsn:
                raise SlotLost(f"slot {self._slot} was lost while its snapshot was read: more WAL has to be kept")
        except psycopg.Error as error:
            raise SourceUnavailable(one_line(error)) from error
        yield self._part((), partial=False)

    def _part(self, changes: tuple[Change, ...], *, partial: bool) -> Transaction:
        return Transaction(
            position=self.position, commit_ts_us=self._taken_at_us, trace=None, changes=changes, partial=partial
        )

    async def _announcements(self) -> tuple[Change, ...]:
        """Return the schemas of the published tables, as the change stream announces them.

        Raises:
            SourceUnavailable: The ledger publishes a table that this version does not know, so that the snapshot would
                lack its rows.
        """
        published = {str(name) for (name,) in await self._fetch(load_sql("published_tables"))}
        unknown = published - CONTROL_TABLES - {table.name for table in self._registry}
        if unknown:
            raise SourceUnavailable(
                f"no snapshot: this version lacks tables of the ledger: {', '.join(sorted(unknown))}"
            )
        if SCHEMAS_TABLE not in published:
            return ()
        schemas = await self._fetch(load_sql("table_schemas"))
        return tuple(
            Change(table=SCHEMAS_TABLE, op="insert", key={"name": name}, row={"name": name, "schema": schema})
            for name, schema in schemas
        )

    async def _changes(self, table: Table) -> AsyncGenerator[tuple[Change, ...]]:
        columns = [str(name) for (name,) in await self._fetch(load_sql("published_columns"), {"table": table.name})]
        if not columns:
            return  # The ledger is older than this version and does not publish the table yet.
        # In text format, as in the WAL decoder's output.
        query = sql.SQL("SELECT {columns} FROM {table}").format(
            columns=sql.SQL(", ").join(sql.SQL("{}::text").format(sql.Identifier(name)) for name in columns),
            table=sql.Identifier("palaver", table.name),
        )
        for where in await self._levels(table):
            part: list[Change] = []
            characters = 0
            async with self._connection.cursor(name="snapshot") as rows:
                rows.itersize = FETCH_ROWS
                await rows.execute(query + where)
                async for row in rows:
                    image = dict(zip(columns, row, strict=True))
                    key = {name: str(image[name]) for name in table.key}
                    part.append(Change(table=table.name, op="insert", key=key, row=image))
                    characters += sum(len(value) for value in row if value is not None)
                    if len(part) >= PART_ROWS or characters >= PART_CHARACTERS:
                        self.rows += len(part)
                        yield tuple(part)
                        part, characters = [], 0
            if part:
                self.rows += len(part)
                yield tuple(part)

    async def _levels(self, table: Table) -> list[sql.Composed]:
        """Return the WHERE clauses that select the rows of a table one after the other, referenced rows first."""
        if table.level is None:
            return [sql.Composed([])]
        column = sql.Identifier(table.level)
        query = sql.SQL("SELECT DISTINCT {level} FROM {table} ORDER BY 1").format(
            level=column, table=sql.Identifier("palaver", table.name)
        )
        where = sql.SQL(" WHERE {level} = {number}")
        return [where.format(level=column, number=number) for (number,) in await self._fetch(query)]

    async def _fetch(self, query: LiteralString | sql.Composed, parameters: dict[str, str] | None = None) -> list[Any]:
        return await (await self._connection.execute(query, parameters)).fetchall()


@asynccontextmanager
async def open_snapshot(
    conninfo: str, *, registry: Registry, slot: str, epoch: Epoch, mark: HighWaterMark
) -> AsyncGenerator[Snapshot]:
    """Recreate ``slot`` and take a snapshot after which the slot delivers all changes.

    Args:
        conninfo: libpq conninfo of the ledger's primary, a role with REPLICATION that may read the tables.
        registry: The tables, in the order in which they are read.
        slot: Name of the logical slot of the view's region.
        epoch: The serving epoch.
        mark: The high-water mark of that epoch; in use.

    Raises:
        SourceUnavailable: The ledger does not answer or is not the primary, or commits wait for a missing quorum.
    """
    try:
        async with await connect(conninfo, replication=False) as connection:
            lsn = await _within_bound(_recreate_slot(connection, slot))
            await _within_bound(_wait_for_older_transactions(connection))
            await connection.set_isolation_level(psycopg.IsolationLevel.REPEATABLE_READ)
            await connection.set_read_only(True)
            async with connection.transaction():
                cursor = await connection.execute(load_sql("snapshot_taken"))
                row = await cursor.fetchone()
                assert row is not None, "the statement returns one row"
                flushed, taken_at_us = row
                # The leader has flushed all WAL that the snapshot sees. A failover must not be able to discard it.
                await _within_bound(mark.wait_for_quorum(parse_lsn(flushed)))
                yield Snapshot(connection, registry, slot, Position(epoch, lsn), int(taken_at_us))
    except psycopg.Error as error:
        raise SourceUnavailable(one_line(error)) from error


async def _recreate_slot(connection: psycopg.AsyncConnection, slot: str) -> int:
    """Drop and create the slot; return the LSN after which it delivers every commit.

    The snapshot contains the changes that the old slot would still deliver. The old slot would retain their WAL during
    the snapshot, and could be invalidated for it before the snapshot ends.
    """
    await connection.execute(load_sql("drop_slot"), {"slot": slot})
    await connection.execute(load_sql("create_slot"), {"slot": slot})
    lsn = await _slot_start(connection, slot)
    if lsn is None:
        raise SourceUnavailable(f"slot {slot} does not exist yet")
    return lsn


async def _slot_start(connection: psycopg.AsyncConnection, slot: str) -> int | None:
    cursor = await connection.execute(load_sql("slot_start"), {"slot": slot})
    row = await cursor.fetchone()
    return None if row is None or row[0] is None else parse_lsn(row[0])


async def _wait_for_older_transactions(connection: psycopg.AsyncConnection) -> None:
    """Wait until every transaction that has begun before now has ended and, if it committed, is visible.

    While a commit waits for its quorum, its commit record may already lie before the slot's LSN, and its rows are not
    visible yet. Neither the slot nor the snapshot would deliver them.
    """
    cursor = await connection.execute(load_sql("newest_transaction"))
    row = await cursor.fetchone()
    while True:
        cursor = await connection.execute(load_sql("are_older_transactions_ended"), row)
        if await cursor.fetchone() == (True,):
            return
        await asyncio.sleep(OLDER_PAUSE_S)


async def _within_bound(work: Awaitable[_T]) -> _T:
    try:
        async with asyncio.timeout(PREPARE_S_MAX):
            return await work
    except TimeoutError:
        raise SourceUnavailable(
            f"no snapshot: transactions that are under way, or their quorum, took more than {PREPARE_S_MAX:g} s"
        ) from None

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
from contextlib import aclosing, asynccontextmanager
from typing import Any, Final, LiteralString, TypeVar

import psycopg
from psycopg import sql

from regions.identity import Epoch
from regions.position import Position, parse_lsn
from sync.change import Change, Transaction
from sync.high_water import HighWaterMark
from sync.statements import load_sql
from sync.walsender import SlotLost, SourceUnavailable, connect, one_line

TABLES: Final[Mapping[str, str | None]] = {"sites": None, "threads": None, "comments": "depth"}
"""What is copied, in an order in which whatever a row refers to comes before it. A column: rows of the table refer to
rows with a smaller number in it. There is no other order, because sorting a large table takes as much disk again."""

PART_ROWS: Final = 500
PART_CHARACTERS: Final = 256 * 1024
"""A part is one transaction of the view, as a batch of the stream is: at most 1 MiB in UTF-8, and one row more."""

FETCH_ROWS: Final = 50
"""Rows that are in memory at once, beside a part; one may have 100,000 characters."""

PREPARE_S_MAX: Final = 15.0
OLDER_PAUSE_S: Final = 0.02
"""A write waits for its quorum for a round trip or two; without a quorum there is no snapshot either."""

_log = logging.getLogger(__name__)

_T = TypeVar("_T")


class Snapshot:
    """A snapshot that was taken; read it once.

    Attributes:
        position: Where the slot goes on.
        rows: How many were read so far.
    """

    def __init__(self, connection: psycopg.AsyncConnection, slot: str, position: Position, taken_at_us: int) -> None:
        """Wrap a connection inside of the transaction that sees the snapshot."""
        self.position = position
        self._slot = slot
        self.rows = 0
        self._connection = connection
        self._taken_at_us = taken_at_us

    async def parts(self) -> AsyncGenerator[Transaction]:
        """Yield everything, bounded parts first and an empty end that moves the checkpoint.

        Raises:
            SlotLost: The slot was lost meanwhile, so that nothing would go on from here.
            SourceUnavailable: The connection broke.
        """
        try:
            for table, level in TABLES.items():
                async with aclosing(self._changes(table, level)) as chunks:
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

    async def _changes(self, table: str, level: str | None) -> AsyncGenerator[tuple[Change, ...]]:
        columns = [str(name) for (name,) in await self._fetch(load_sql("published_columns"), {"table": table})]
        # In text form, as the WAL's decoder gives them.
        query = sql.SQL("SELECT {columns} FROM {table}").format(
            columns=sql.SQL(", ").join(sql.SQL("{}::text").format(sql.Identifier(name)) for name in columns),
            table=sql.Identifier("palaver", table),
        )
        for where in await self._levels(table, level):
            part: list[Change] = []
            characters = 0
            async with self._connection.cursor(name="snapshot") as rows:
                rows.itersize = FETCH_ROWS
                await rows.execute(query + where)
                async for row in rows:
                    image = dict(zip(columns, row, strict=True))
                    part.append(Change(table=table, op="insert", key={"id": str(image["id"])}, row=image))
                    characters += sum(len(value) for value in row if value is not None)
                    if len(part) >= PART_ROWS or characters >= PART_CHARACTERS:
                        self.rows += len(part)
                        yield tuple(part)
                        part, characters = [], 0
            if part:
                self.rows += len(part)
                yield tuple(part)

    async def _levels(self, table: str, level: str | None) -> list[sql.Composed]:
        """Return what chooses the rows of a table in turn, those that others refer to first."""
        if level is None:
            return [sql.Composed([])]
        column = sql.Identifier(level)
        query = sql.SQL("SELECT DISTINCT {level} FROM {table} ORDER BY 1").format(
            level=column, table=sql.Identifier("palaver", table)
        )
        where = sql.SQL(" WHERE {level} = {number}")
        return [where.format(level=column, number=number) for (number,) in await self._fetch(query)]

    async def _fetch(self, query: LiteralString | sql.Composed, parameters: dict[str, str] | None = None) -> list[Any]:
        return await (await self._connection.execute(query, parameters)).fetchall()


@asynccontextmanager
async def open_snapshot(conninfo: str, *, slot: str, epoch: Epoch, mark: HighWaterMark) -> AsyncGenerator[Snapshot]:
    """Make ``slot`` anew and take a snapshot that it goes on from.

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
            lsn = await _within_bound(_recreate_slot(connection, slot))
            await _within_bound(_wait_for_older_transactions(connection))
            await connection.set_isolation_level(psycopg.IsolationLevel.REPEATABLE_READ)
            await connection.set_read_only(True)
            async with connection.transaction():
                cursor = await connection.execute(load_sql("snapshot_taken"))
                row = await cursor.fetchone()
                assert row is not None, "one row, always"
                flushed, taken_at_us = row
                # Whatever it sees was flushed by then; a failover must not be able to take it back.
                await _within_bound(mark.wait_for(parse_lsn(flushed)))
                yield Snapshot(connection, slot, Position(epoch, lsn), int(taken_at_us))
    except psycopg.Error as error:
        raise SourceUnavailable(one_line(error)) from error


async def _recreate_slot(connection: psycopg.AsyncConnection, slot: str) -> int:
    """Make the slot anew and return the LSN from which it brings every commit.

    What an old one would still bring is in the snapshot; meanwhile it would hold back all of that WAL, and might be
    lost for it before the snapshot is through.
    """
    await connection.execute(load_sql("drop_slot"), {"slot": slot})
    await connection.execute(load_sql("create_slot"), {"slot": slot})
    lsn = await _slot_start(connection, slot)
    if lsn is None:
        raise SourceUnavailable(f"slot {slot} is not there yet")
    return lsn


async def _slot_start(connection: psycopg.AsyncConnection, slot: str) -> int | None:
    cursor = await connection.execute(load_sql("slot_start"), {"slot": slot})
    row = await cursor.fetchone()
    return None if row is None or row[0] is None else parse_lsn(row[0])


async def _wait_for_older_transactions(connection: psycopg.AsyncConnection) -> None:
    """Wait until every transaction that may have committed before now has become visible, or has ended.

    A commit is in the WAL, and behind the slot, while it still waits for its quorum; until that is there nobody sees
    its rows. Neither the snapshot nor the slot would bring them.
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

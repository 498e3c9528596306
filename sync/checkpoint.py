"""Reads, locks and moves the checkpoint, the position up to which a view has applied a cell's changes.

Decides that the checkpoint only moves forwards, and that only one process moves it. Does not know which rows were
applied. **The view contains exactly the complete transactions that the checkpoint covers, because one transaction
writes both, and the parts of a large transaction that is not complete. Only one apply runs at a time.** The view's
function `advance_checkpoint` moves the checkpoint. A projection can call it in the statement that writes its rows, with
the arguments of a `CheckpointMove`.
"""

import asyncio
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import asyncpg

from regions.identity import CellId
from regions.position import ZERO, Position
from sync.change import SyncError
from sync.statements import load_sql

if TYPE_CHECKING:
    from collections.abc import Generator

    # The type parameter exists in the stubs only, not at run time.
    from asyncpg import Connection, Record

    ViewConnection = Connection[Record]

LOCK_ATTEMPTS_MAX: Final = 25
LOCK_PAUSE_S: Final = 0.2
"""Five seconds in all. PostgreSQL releases a dead client's lock as soon as its socket closes."""

MOVED_SQLSTATE: Final = "PA001"
"""The error of the view's `advance_checkpoint` if the checkpoint is further; its SQLSTATE class is our own."""


class CheckpointMoved(SyncError):
    """The checkpoint is further than this process assumed; it must be read again."""


class ApplyLocked(SyncError):
    """Another process applies this cell's changes to this view."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointMove:
    """A new value of a cell's checkpoint.

    Attributes:
        commit_ts_us: Commit time of the newest transaction by the ledger's clock, microseconds since 1970; None if the
            batch has no transaction.
        fresh_at_us: The ledger's time up to which the view then has all changes, microseconds since 1970; 0 if unknown.
    """

    cell: CellId
    position: Position
    commit_ts_us: int | None
    fresh_at_us: int

    def arguments(self) -> tuple[CellId, int, int, int | None, int]:
        """Return the arguments of the view's `advance_checkpoint`, in order."""
        return self.cell, self.position.epoch, self.position.lsn, self.commit_ts_us, self.fresh_at_us


async def lock_apply(connection: "ViewConnection", cell: CellId) -> None:
    """Take the lock of the cell's only apply; the connection holds it until it closes.

    Raises:
        ApplyLocked: Another process holds the lock, and did not release it in time.
    """
    for _ in range(LOCK_ATTEMPTS_MAX):
        if await connection.fetchval(load_sql("lock_apply"), cell):
            return
        await asyncio.sleep(LOCK_PAUSE_S)
    raise ApplyLocked(f"another process applies the changes of cell {cell}")


async def read_checkpoint(connection: "ViewConnection", cell: CellId) -> Position:
    """Return the checkpoint; `ZERO` if there is none yet."""
    row = await connection.fetchrow(load_sql("read_checkpoint"), cell)
    return ZERO if row is None else Position(row["epoch"], row["lsn"])


async def read_freshness(connection: "ViewConnection", cell: CellId) -> int:
    """Return the ledger's time up to which the view has all changes, microseconds since 1970; 0 if unknown."""
    return await connection.fetchval(load_sql("read_freshness"), cell)


async def advance_checkpoint(connection: "ViewConnection", move: CheckpointMove) -> None:
    """Move the checkpoint. Call it in the transaction that applies the changes, if the batch has any.

    Raises:
        CheckpointMoved: The checkpoint is already further.
    """
    with raising_checkpoint_moved(move):
        await connection.execute(load_sql("advance_checkpoint"), *move.arguments())


@contextmanager
def raising_checkpoint_moved(move: CheckpointMove) -> "Generator[None]":
    """Raise `CheckpointMoved` in place of the view's error (`MOVED_SQLSTATE`) for a statement that makes this move."""
    try:
        yield
    except asyncpg.PostgresError as error:
        if error.sqlstate != MOVED_SQLSTATE:
            raise
        raise CheckpointMoved(f"the checkpoint of cell {move.cell} is already past {move.position}") from error

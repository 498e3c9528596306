"""The checkpoint: how far a view has applied a cell's changes, kept in the view itself.

Decides that the checkpoint only moves forwards and that one process moves it. Refuses to know what was
applied. **What the checkpoint covers is in the view, and nothing else is, because both are written by
one transaction; two applies never run at once.** The view's function `advance_checkpoint` moves it; who brings
rows in may call it in the same statement, with the arguments of a `CheckpointMove`.
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

    # At run time the stubs' type parameter does not exist.
    from asyncpg import Connection, Record

    ViewConnection = Connection[Record]

LOCK_ATTEMPTS_MAX: Final = 25
LOCK_PAUSE_S: Final = 0.2
"""Five seconds: PostgreSQL drops a dead client's lock as soon as its socket closes."""

MOVED_SQLSTATE: Final = "PA001"
"""What the view's `advance_checkpoint` raises when the checkpoint is further; a class of our own."""


class CheckpointMoved(SyncError):
    """The checkpoint is further than this process thought: it must be read again."""


class ApplyLocked(SyncError):
    """Another process applies this cell's changes to this view."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointMove:
    """A step of a cell's checkpoint.

    Attributes:
        commit_ts_us: The ledger's time of the newest transaction, microseconds since 1970; None without one.
        fresh_at_us: The ledger's time up to which the view has everything then; 0 when nothing is known.
    """

    cell: CellId
    position: Position
    commit_ts_us: int | None
    fresh_at_us: int

    def arguments(self) -> tuple[CellId, int, int, int | None, int]:
        """Return the arguments of the view's `advance_checkpoint`, in its order."""
        return self.cell, self.position.epoch, self.position.lsn, self.commit_ts_us, self.fresh_at_us


async def lock_apply(connection: "ViewConnection", cell: CellId) -> None:
    """Become the one who applies, for the life of the connection.

    Raises:
        ApplyLocked: Somebody else is, and did not end in time.
    """
    for _ in range(LOCK_ATTEMPTS_MAX):
        if await connection.fetchval(load_sql("lock_apply"), cell):
            return
        await asyncio.sleep(LOCK_PAUSE_S)
    raise ApplyLocked(f"another process applies the changes of cell {cell}")


async def read_checkpoint(connection: "ViewConnection", cell: CellId) -> Position:
    """Return the checkpoint, `ZERO` before the first."""
    row = await connection.fetchrow(load_sql("read_checkpoint"), cell)
    return ZERO if row is None else Position(row["epoch"], row["lsn"])


async def read_freshness(connection: "ViewConnection", cell: CellId) -> int:
    """Return the ledger's time up to which the view has everything, microseconds since 1970; 0: not known."""
    return await connection.fetchval(load_sql("read_freshness"), cell)


async def advance_checkpoint(connection: "ViewConnection", move: CheckpointMove) -> None:
    """Move the checkpoint, inside of the transaction that applies what it covers, if there is such a thing.

    Raises:
        CheckpointMoved: It is already further.
    """
    with raising_checkpoint_moved(move):
        await connection.execute(load_sql("advance_checkpoint"), *move.arguments())


@contextmanager
def raising_checkpoint_moved(move: CheckpointMove) -> "Generator[None]":
    """Turn what the view says to a statement that makes this move into `CheckpointMoved`, if it means that."""
    try:
        yield
    except asyncpg.PostgresError as error:
        if error.sqlstate != MOVED_SQLSTATE:
            raise
        raise CheckpointMoved(f"the checkpoint of cell {move.cell} is already past {move.position}") from error

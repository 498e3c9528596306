"""The checkpoint: how far a view has applied a cell's changes, kept in the view itself.

Decides that the checkpoint only moves forwards and that one process moves it. Refuses to know what was
applied. **What the checkpoint covers is in the view, and nothing else is, because both are written by
one transaction; two applies never run at once.**
"""

import asyncio
from typing import TYPE_CHECKING, Final

from regions.identity import CellId
from regions.position import ZERO, Position
from sync.change import SyncError
from sync.statements import load_sql

if TYPE_CHECKING:
    # At run time the stubs' type parameter does not exist.
    from asyncpg import Connection, Record

    ViewConnection = Connection[Record]

LOCK_ATTEMPTS_MAX: Final = 25
LOCK_PAUSE_S: Final = 0.2
"""Five seconds: PostgreSQL drops a dead client's lock as soon as its socket closes."""


class CheckpointMoved(SyncError):
    """The checkpoint is further than this process thought: it must be read again."""


class ApplyLocked(SyncError):
    """Another process applies this cell's changes to this view."""


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


async def advance_checkpoint(
    connection: "ViewConnection",
    cell: CellId,
    position: Position,
    *,
    commit_ts_us: int | None,
    fresh_at_us: int,
) -> None:
    """Move the checkpoint to ``position``, inside of the transaction that applies what it covers.

    Raises:
        CheckpointMoved: It is already further.
    """
    moved = await connection.fetchval(
        load_sql("advance_checkpoint"), cell, position.epoch, position.lsn, commit_ts_us, fresh_at_us
    )
    if moved is None:
        raise CheckpointMoved(f"the checkpoint of cell {cell} is already past {position}")

"""What the ledger's rows become in the view: sites, threads with counts, comments with replies counted.

Decides which tables are read, which image of a row wins (the highest version) and how counters follow.
Refuses to know transactions, checkpoints and caches. **Projecting the same changes again moves nothing:
counters move only with a row that moved, in the statement that says so.**

Two statements a batch, three when rows were erased: `sql/project.sql` merges the rows and returns what
moved (PostgreSQL 18's RETURNING old and new), `sql/settle.sql` moves the counters by it.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final
from uuid import UUID

import orjson

from services.schema.statements import statement
from services.view.cache import Invalidation
from sync.apply import LocatedChange, PoisonChange

if TYPE_CHECKING:
    from asyncpg import Record

    from sync.checkpoint import ViewConnection

_SQL: Final = Path(__file__).parent / "sql"

# Columns that PostgreSQL may keep out of line, so that an update of another column does not send them.
_OUT_OF_LINE: Final = {
    "sites": ("name", "origins", "settings"),
    "threads": ("key", "title"),
    "comments": ("author_id", "author_name", "author_url", "body"),
}
_IGNORED: Final = frozenset({"fence"})

Row = dict[str, object]


@dataclass(slots=True, kw_only=True)
class _TableChanges:
    """The net change of one table: the newest image of each row, and the rows that are gone."""

    rows: dict[str, Row] = field(default_factory=dict[str, Row])
    gone: dict[str, int] = field(default_factory=dict[str, int])


class ViewProjection:
    """Implements `sync.apply.Projection` for the view's schema."""

    async def project(self, connection: "ViewConnection", changes: Sequence[LocatedChange]) -> Sequence[Invalidation]:
        """Bring changes into the view; return the thread pages that moved.

        Raises:
            PoisonChange: A table is unknown, a key is missing, or a table was truncated.
            asyncpg.PostgresError: The view refused; in the classes of `sync.apply.POISON` for good.
        """
        net = _net_changes(changes)
        moved: list[Record] = []
        if any(table.rows for table in net.values()):
            images = [_images(name, net[name].rows.values()) for name in _OUT_OF_LINE]
            moved += await connection.fetch(statement(_SQL, "project"), *images)
        if any(table.gone for table in net.values()):
            newest = max(lsn for table in net.values() for lsn in table.gone.values())
            gone = [list(net[name].gone) for name in _OUT_OF_LINE]
            moved += await connection.fetch(statement(_SQL, "erase"), *gone, newest)
        return await _settle(connection, moved)


async def _settle(connection: "ViewConnection", moved: Sequence["Record"]) -> list[Invalidation]:
    if not moved:
        return []
    replies: dict[UUID, int] = {}
    threads: dict[UUID, tuple[int, int]] = {}
    for row in moved:
        if row["kind"] == "parent":
            replies[row["id"]] = replies.get(row["id"], 0) + row["delta"]
        else:
            delta, lsn = threads.get(row["id"], (0, 0))
            threads[row["id"]] = (delta + row["delta"], max(lsn, row["lsn"]))
    pages = await connection.fetch(
        statement(_SQL, "settle"),
        list(replies),
        list(replies.values()),
        list(threads),
        [delta for delta, _ in threads.values()],
        [lsn for _, lsn in threads.values()],
    )
    return [Invalidation(site=page["site"], key=page["key"], version=page["version"]) for page in pages]


def _net_changes(changes: Iterable[LocatedChange]) -> dict[str, _TableChanges]:
    """Fold changes of the same row into its newest image."""
    net = {name: _TableChanges() for name in _OUT_OF_LINE}
    for located in changes:
        change, lsn = located.change, located.position.lsn
        if change.table in _IGNORED:
            continue
        table = net.get(change.table)
        if table is None or change.op == "truncate":
            raise PoisonChange(f"{change.op} of table {change.table} has no meaning in the view")
        row_id = change.key.get("id")
        if row_id is None:
            raise PoisonChange(f"{change.op} of table {change.table} without an id")
        if change.op == "delete":
            table.rows.pop(row_id, None)
            table.gone[row_id] = lsn
        else:
            # A later image lacks what did not change; the earlier one in the same batch has it.
            table.rows[row_id] = {**table.rows.get(row_id, {}), **change.row, "lsn": lsn}
    return net


def _images(table: str, rows: Iterable[Row]) -> str:
    """Return row images as the JSON that `project.sql` reads."""
    images: list[Row] = []
    for row in rows:
        absent = [column for column in _OUT_OF_LINE[table] if column not in row]
        images.append({**row, "unchanged": absent} if absent else row)
    return orjson.dumps(images).decode()

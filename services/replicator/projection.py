"""Writes the ledger's row changes to the view: sites, threads with counts, comments with reply counts.

Decides which tables are used, which image of a row wins (the highest version), and how counters change. Does not know
transactions and caches, and passes the checkpoint's move on unread. **Projecting the same changes again changes
nothing: a counter changes only together with a row, by the difference that the merge of that row returns
(PostgreSQL 18's RETURNING old and new).**

One statement a batch: it calls the view's function `project_rows`, or `project_and_advance`, which makes the
checkpoint's move as well (`services/view/functions`).
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

import orjson

from services.schema.statements import statement
from services.view.cache import Invalidation
from sync.apply import LocatedChange, PoisonChange

if TYPE_CHECKING:
    from asyncpg import Record

    from sync.checkpoint import CheckpointMove, ViewConnection

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

    async def project_and_advance(
        self, connection: "ViewConnection", changes: Sequence[LocatedChange], move: "CheckpointMove"
    ) -> Sequence[Invalidation]:
        """Bring changes into the view with the checkpoint that covers them; return the thread pages that moved.

        Raises:
            PoisonChange: As `project`.
            asyncpg.PostgresError: As `project`; `sync.checkpoint.MOVED_SQLSTATE` when the checkpoint is further.
        """
        arguments = _arguments(_net_changes(changes))
        pages = await connection.fetch(statement(_SQL, "project_and_advance"), *arguments, *move.arguments())
        return _invalidations(pages)

    async def project(self, connection: "ViewConnection", changes: Sequence[LocatedChange]) -> Sequence[Invalidation]:
        """Bring changes into the view; return the thread pages that moved.

        Raises:
            PoisonChange: A table is unknown, a key is missing, or a table was truncated.
            asyncpg.PostgresError: The view refused; in the classes of `sync.apply.POISON` for good.
        """
        pages = await connection.fetch(statement(_SQL, "project"), *_arguments(_net_changes(changes)))
        return _invalidations(pages)


def _invalidations(pages: Iterable["Record"]) -> list[Invalidation]:
    return [Invalidation(site=page["site"], key=page["key"], version=page["version"]) for page in pages]


def _arguments(net: dict[str, _TableChanges]) -> list[object]:
    """Return the arguments of `project_rows`: images of each table, ids gone of each, LSN of the newest of those."""
    images = [_images(name, net[name].rows.values()) for name in _OUT_OF_LINE]
    gone = [list(net[name].gone) or None for name in _OUT_OF_LINE]
    gone_lsn = max((lsn for table in net.values() for lsn in table.gone.values()), default=None)
    return [*images, *gone, gone_lsn]


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
            kept = table.rows.get(row_id, {})
            # What comes later is newer, but after a snapshot: the stream goes back to where the slot stands.
            if not (kept and _is_older(change.row, kept)):
                # A later image lacks what did not change; the earlier one in the same batch has it.
                table.rows[row_id] = {**kept, **change.row, "lsn": lsn}
    return net


def _is_older(image: Mapping[str, object], kept: Mapping[str, object]) -> bool:
    versions = [str(row.get("version")) for row in (image, kept)]
    return all(one.isdecimal() for one in versions) and int(versions[0]) < int(versions[1])


def _images(table: str, rows: Collection[Row]) -> str | None:
    """Return row images as the JSON that `merge_rows` reads, None when there are none."""
    if not rows:
        return None
    images: list[Row] = []
    for row in rows:
        absent = [column for column in _OUT_OF_LINE[table] if column not in row]
        images.append({**row, "unchanged": absent} if absent else row)
    return orjson.dumps(images).decode()

"""Writes the ledger's row changes to the view: sites, threads with counts, comments with reply counts.

Decides which tables are used, which image of a row wins (the highest version), and how counters change. Does not know
transactions and caches, and passes the new checkpoint to the view without reading it. **Projecting the same changes
again changes nothing: a counter changes only together with a row, by the difference that the merge of that row returns
(PostgreSQL 18's RETURNING old and new).**

A batch is one statement, which calls the view's function `project_rows`, or `project_and_advance`, which also advances
the checkpoint (`services/view/functions`).
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

# Columns that PostgreSQL may store out of line. An update of another column does not send their unchanged values.
_OUT_OF_LINE: Final = {
    "sites": ("name", "origins", "settings"),
    "threads": ("key", "title"),
    "comments": ("author_id", "author_name", "author_url", "body"),
}
_IGNORED: Final = frozenset({"fence"})

Row = dict[str, object]


@dataclass(slots=True, kw_only=True)
class _TableChanges:
    """The net change of one table: the newest image of each row, and the deleted rows with their LSN."""

    rows: dict[str, Row] = field(default_factory=dict[str, Row])
    gone: dict[str, int] = field(default_factory=dict[str, int])


class ViewProjection:
    """Implements `sync.apply.Projection` for the view's schema."""

    async def project_and_advance(
        self, connection: "ViewConnection", changes: Sequence[LocatedChange], move: "CheckpointMove"
    ) -> Sequence[Invalidation]:
        """Write changes and the checkpoint that covers them to the view; return the threads whose pages changed.

        Raises:
            PoisonChange: As `project`.
            asyncpg.PostgresError: As `project`; `sync.checkpoint.MOVED_SQLSTATE` if the checkpoint is already further.
        """
        arguments = _arguments(_net_changes(changes))
        pages = await connection.fetch(statement(_SQL, "project_and_advance"), *arguments, *move.arguments())
        return _invalidations(pages)

    async def project(self, connection: "ViewConnection", changes: Sequence[LocatedChange]) -> Sequence[Invalidation]:
        """Write changes to the view; return the threads whose pages changed.

        Raises:
            PoisonChange: A table is unknown, a key is missing, or a table was truncated. asyncpg.PostgresError: The
            view rejected a change; permanently if the class is in `sync.apply.POISON_ERRORS`.
        """
        pages = await connection.fetch(statement(_SQL, "project"), *_arguments(_net_changes(changes)))
        return _invalidations(pages)


def _invalidations(pages: Iterable["Record"]) -> list[Invalidation]:
    return [Invalidation(site=page["site"], key=page["key"], version=page["version"]) for page in pages]


def _arguments(net: dict[str, _TableChanges]) -> list[object]:
    """Return the arguments of `project_rows`: images and deleted ids of each table, LSN of the newest deletion."""
    images = [_images(name, net[name].rows.values()) for name in _OUT_OF_LINE]
    gone = [list(net[name].gone) or None for name in _OUT_OF_LINE]
    gone_lsn = max((lsn for table in net.values() for lsn in table.gone.values()), default=None)
    return [*images, *gone, gone_lsn]


def _net_changes(changes: Iterable[LocatedChange]) -> dict[str, _TableChanges]:
    """Merge the changes of each row into its newest image."""
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
            # A later change is newer, except after a snapshot: then the stream continues from the position of the slot,
            # which is older than the snapshot.
            if not (kept and _is_older(change.row, kept)):
                # A later image lacks unchanged out-of-line columns; an earlier image in the same batch has them.
                table.rows[row_id] = {**kept, **change.row, "lsn": lsn}
    return net


def _is_older(image: Mapping[str, object], kept: Mapping[str, object]) -> bool:
    versions = [str(row.get("version")) for row in (image, kept)]
    return all(one.isdecimal() for one in versions) and int(versions[0]) < int(versions[1])


def _images(table: str, rows: Collection[Row]) -> str | None:
    """Return row images as the JSON that `merge_rows` reads; None if there are none."""
    if not rows:
        return None
    images: list[Row] = []
    for row in rows:
        absent = [column for column in _OUT_OF_LINE[table] if column not in row]
        images.append({**row, "unchanged": absent} if absent else row)
    return orjson.dumps(images).decode()

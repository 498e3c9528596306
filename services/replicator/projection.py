"""Writes the ledger's row changes to the view: the rows of each table of the registry, and the counters they move.

Decides which image of a row wins (the highest version). Does not know the tables, which the registry declares, nor
transactions and caches, and passes the new checkpoint to the view without reading it. **Projecting the same changes
again changes nothing: a counter changes only together with a row, by the difference that the merge of that row returns
(PostgreSQL 18's RETURNING old and new).**

A batch is one statement, which calls the view's function `project_rows`, or `project_and_advance`, which also advances
the checkpoint (`services/view/functions`). `project_rows` calls the function `merge_<table>` of each changed table.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

import orjson

from services.schema.statements import statement
from services.view.cache import Invalidation
from sync.apply import LocatedChange, PoisonChange
from sync.registry import CONTROL_TABLES, Registry, Table

if TYPE_CHECKING:
    from asyncpg import Record

    from sync.checkpoint import CheckpointMove, ViewConnection

_SQL: Final = Path(__file__).parent / "sql"

Row = dict[str, object]
Key = tuple[str, ...]


@dataclass(slots=True, kw_only=True)
class _TableChanges:
    """The net change of one table: the newest image of each row, and the deleted rows with their LSN."""

    rows: dict[Key, Row] = field(default_factory=dict[Key, Row])
    gone: dict[Key, int] = field(default_factory=dict[Key, int])


class ViewProjection:
    """Implements `sync.apply.Projection` for the view's schema."""

    def __init__(self, tables: Registry) -> None:
        """Use the tables of a registry, in its order."""
        self._tables = tables

    async def project_and_advance(
        self, connection: "ViewConnection", changes: Sequence[LocatedChange], move: "CheckpointMove"
    ) -> Sequence[Invalidation]:
        """Write changes and the checkpoint that covers them to the view; return the threads whose pages changed.

        Raises:
            PoisonChange: As `project`.
            asyncpg.PostgresError: As `project`; `sync.checkpoint.MOVED_SQLSTATE` if the checkpoint is already further.
        """
        arguments = self._arguments(changes)
        pages = await connection.fetch(statement(_SQL, "project_and_advance"), *arguments, *move.arguments())
        return _invalidations(pages)

    async def project(self, connection: "ViewConnection", changes: Sequence[LocatedChange]) -> Sequence[Invalidation]:
        """Write changes to the view; return the threads whose pages changed.

        Raises:
            PoisonChange: A key is missing, or a table was truncated.
            asyncpg.PostgresError: The view rejected a change; permanently if the class is in
                `sync.apply.POISON_ERRORS`.
        """
        pages = await connection.fetch(statement(_SQL, "project"), *self._arguments(changes))
        return _invalidations(pages)

    async def project_late(self, connection: "ViewConnection", change: LocatedChange) -> Sequence[Invalidation]:
        """Write a change that is older than the checkpoint; otherwise as `project`.

        The view lacks it at its position and at every later one up to now. So the Merkle tree must not take it back
        when it is compared at an earlier position: for the tree it is a change without a position.
        """
        *arguments, _ = self._arguments([change])
        return _invalidations(await connection.fetch(statement(_SQL, "project"), *arguments, ""))

    def _arguments(
        self, changes: Sequence[LocatedChange]
    ) -> tuple[list[str], list[str | None], list[str | None], int, str]:
        """Return the arguments of `project_rows`: for each changed table name, images, deleted keys; LSN, batch."""
        net = self._net_changes(changes)
        changed = [(table, net[table.name]) for table in self._tables if table.name in net]
        return (
            [table.name for table, _ in changed],
            [_images(table, one.rows.values()) for table, one in changed],
            [_keys(table, one.gone) for table, one in changed],
            max((lsn for _, one in changed for lsn in one.gone.values()), default=0),
            _batch(changes),
        )

    def _net_changes(self, changes: Iterable[LocatedChange]) -> dict[str, _TableChanges]:
        """Merge the changes of each row into its newest image."""
        net: dict[str, _TableChanges] = {}
        for located in changes:
            change, lsn = located.change, located.position.lsn
            if change.table in CONTROL_TABLES:
                continue
            if change.op == "truncate":
                raise PoisonChange(f"truncate of table {change.table} has no meaning in the view")
            key = tuple(change.key[name] for name in self._tables[change.table].key if name in change.key)
            if len(key) != len(self._tables[change.table].key):
                raise PoisonChange(f"{change.op} of table {change.table} without its key")
            table = net.setdefault(change.table, _TableChanges())
            if change.op == "delete":
                table.rows.pop(key, None)
                table.gone[key] = lsn
            else:
                kept = table.rows.get(key, {})
                # A later change is newer, except after a snapshot: then the stream continues from the position of the
                # slot, which is older than the snapshot.
                if not (kept and _is_older(change.row, kept)):
                    # A later image lacks unchanged out-of-line columns; an earlier image in the same batch has them.
                    table.rows[key] = {**kept, **change.row, "lsn": lsn}
        return net


def _batch(changes: Sequence[LocatedChange]) -> str:
    """Return epoch and LSN of the first and of the last transaction, as PostgreSQL's array."""
    first, last = changes[0].position, changes[-1].position
    return f"{{{first.epoch},{first.lsn},{last.epoch},{last.lsn}}}"


def _invalidations(pages: Iterable["Record"]) -> list[Invalidation]:
    return [Invalidation(site=page["site"], key=page["key"], version=page["version"]) for page in pages]


def _is_older(image: Mapping[str, object], kept: Mapping[str, object]) -> bool:
    versions = [str(row.get("version")) for row in (image, kept)]
    return all(one.isdecimal() for one in versions) and int(versions[0]) < int(versions[1])


def _images(table: Table, rows: Collection[Row]) -> str | None:
    """Return row images as the JSON that the table's merge function reads; None if there are none."""
    if not rows:
        return None
    images: list[Row] = []
    for row in rows:
        absent = [column for column in table.out_of_line if column not in row]
        images.append({**row, "unchanged": absent} if absent else row)
    return orjson.dumps(images).decode()


def _keys(table: Table, gone: Collection[Key]) -> str | None:
    """Return the keys of deleted rows as the JSON that the table's merge function reads; None if there are none."""
    if not gone:
        return None
    return orjson.dumps([dict(zip(table.key, key, strict=True)) for key in gone]).decode()

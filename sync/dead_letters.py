"""Stores the changes that a view rejected, and erases in them what the ledger erases.

Decides what a letter contains, when its content is erased, and how many letters a view holds. Does not decide which
change is rejected (`apply`), nor what an operator does with a letter (`dead_letter_orders`). **A letter loses the
erased columns of a row (`Table.erased`) in the transaction that writes the erased row, or the letter of its deletion.
A letter that is written later has none either.** The caller holds the apply lock, so no other process writes letters.

A letter without the key of its row is stored without content, because nothing could connect it with a later erasure. A
reason has PostgreSQL's message without its details, which quote the row.
"""

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final, LiteralString, cast
from uuid import UUID

import asyncpg
import orjson
from psycopg import sql

from regions.identity import CellId
from regions.position import Position
from sync.change import Change, change_fields
from sync.registry import Registry, Table
from sync.statements import load_sql

if TYPE_CHECKING:
    from sync.checkpoint import ViewConnection

LETTERS_MAX: Final = 10_000
BYTES_MAX: Final = 64 * 1024 * 1024
"""A view holds this many letters and bytes. A full table takes no new letter: the first ones show the cause."""

REASON_CHARS_MAX: Final = 300

_ROW: Final = "SELECT {erased} AS erased FROM {table} WHERE {key}"

_log = logging.getLogger(__name__)


@dataclass(slots=True, kw_only=True)
class LetterCounts:
    """What happened to letters since the start, for metrics."""

    refused: int = 0
    erased: int = 0
    retried: int = 0
    failed: int = 0
    discarded: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Content:
    """The row whose content a letter quotes: its table and its key, in text format."""

    table: str
    key: tuple[str, ...]

    def encode(self) -> str:
        """Return the JSON of the column `content_of`."""
        return orjson.dumps([self.table, *self.key]).decode()


class DeadLetters:
    """The dead letters of one view and cell.

    Attributes:
        kinds: The number of letters in the table by the kind of their reason, as of the last change.
        counts: For metrics.
    """

    def __init__(self, cell: CellId, registry: Registry, *, letters_max: int = LETTERS_MAX) -> None:
        """Prepare; `load` reads the table."""
        self._cell: CellId = cell
        self._registry = registry
        self._letters_max = letters_max
        self.kinds: Mapping[str, int] = {}
        self.counts = LetterCounts()

    @property
    def total(self) -> int:
        """The number of letters in the table, as of the last change."""
        return sum(self.kinds.values())

    async def load(self, connection: "ViewConnection") -> None:
        """Count the letters."""
        found = await connection.fetch(load_sql("dead_letters_summary"), self._cell)
        self.kinds = {one["kind"]: one["letters"] for one in found}

    def content_of(self, change: Change) -> Content | None:
        """Return the row whose content the change quotes; None if its table has none or the key is incomplete."""
        table = self._table(change)
        if table is None:
            return None
        if table.erased_with is not None:
            owner, column = table.erased_with
            value = change.key.get(column, change.row.get(column))
            return None if value is None else Content(table=owner, key=(value,))
        if not table.erased or any(name not in change.key for name in table.key):
            return None
        return Content(table=table.name, key=tuple(change.key[name] for name in table.key))

    def erases(self, change: Change) -> bool:
        """Whether the change deletes a row with erased columns, or writes an image in which all of them are NULL."""
        table = self._table(change)
        if table is None or not table.erased:
            return False
        return change.op == "delete" or all(change.row.get(name, "absent") is None for name in table.erased)

    def erased_by(self, changes: Iterable[Change]) -> list[Content]:
        """Return the rows that the changes erase."""
        found = {self.content_of(change) for change in changes if self.erases(change)}
        return [one for one in found if one is not None]

    def erased_rows(
        self, images: Iterable[tuple[str, Mapping[str, str | None]]], gone: Iterable[tuple[str, tuple[str, ...]]]
    ) -> list[Content]:
        """Return the rows that images of rows, or keys of deleted rows, erase; each with the name of its table."""
        changes = [
            Change(table=name, op="update", key={key: row[key] or "" for key in self._registry[name].key}, row=row)
            for name, row in images
        ]
        changes += [
            Change(table=name, op="delete", key=dict(zip(self._registry[name].key, key, strict=True)), row={})
            for name, key in gone
        ]
        return self.erased_by(changes)

    async def erase(self, connection: "ViewConnection", contents: Sequence[Content]) -> None:
        """Erase the content of letters that quote these rows, and delete letters of rows that are erased with them.

        Call it in the transaction that erases the rows.
        """
        for name in {one.table for one in contents}:
            quoted = [one.encode() for one in contents if one.table == name]
            columns = sorted(self._registry[name].erased)
            done = [
                await connection.execute(load_sql("erase_dead_letters"), self._cell, name, columns, quoted),
                await connection.execute(load_sql("delete_dependent_dead_letters"), self._cell, name, quoted),
            ]
            self.counts.erased += sum(int(tag.rpartition(" ")[2]) for tag in done)

    async def record(self, connection: "ViewConnection", position: Position, change: Change, error: Exception) -> None:
        """Store a rejected change, unless the table is full. Call it in the transaction that passes the change."""
        reason = describe(error)
        content = self.content_of(change)
        table = self._table(change)
        has_content = table is not None and (bool(table.erased) or table.erased_with is not None)
        erased = has_content and (content is None or await self.is_erased(connection, content))
        if erased and table is not None:
            change = _without_content(table, change)
        outcome = await connection.fetchval(
            load_sql("record_dead_letter"),
            self._cell,
            position.epoch,
            position.lsn,
            orjson.dumps(change_fields(change)).decode(),
            reason,
            None if content is None else content.encode(),
            self.erases(change) and not erased,
            erased,
            self._letters_max,
            BYTES_MAX,
        )
        if outcome == "full":
            self.counts.refused += 1
            _log.error("%s is not stored, because the table of dead letters is full: %s", _name(change), reason)
        else:
            _log.error("%s became a dead letter: %s", _name(change), reason)

    async def is_erased(self, connection: "ViewConnection", content: Content) -> bool:
        """Whether the view's row is erased, or a letter erases it."""
        if await self.is_row_erased(connection, content):
            return True
        return await connection.fetchval(load_sql("is_erased_by_dead_letter"), self._cell, content.encode())

    async def is_row_erased(self, connection: "ViewConnection", content: Content) -> bool | None:
        """Whether all erased columns of the view's row are NULL; None if there is no row."""
        table = self._registry[content.table]
        types = {column.name: column.type for column in table.columns}
        if not all(_is_valid(types[name], value) for name, value in zip(table.key, content.key, strict=True)):
            return None
        return await connection.fetchval(_row_statement(table), *content.key)

    def _table(self, change: Change) -> Table | None:
        return self._registry[change.table] if change.table in {one.name for one in self._registry} else None


def describe(error: Exception) -> str:
    """Return the reason of a letter: the kind of the error, and its message without details that quote the row."""
    kind = type(error).__name__
    if isinstance(error, asyncpg.PostgresError):
        # Without a severity the message is asyncpg's own, which quotes the argument.
        severity = cast("Any", error).severity
        return f"{kind}: {error.args[0] if severity else 'an argument is invalid'}"[:REASON_CHARS_MAX]
    return f"{kind}: {error}"[:REASON_CHARS_MAX]


def _without_content(table: Table, change: Change) -> Change:
    if table.erased_with is not None:
        return replace(change, key={}, row={})
    return replace(change, row={name: None if name in table.erased else one for name, one in change.row.items()})


def _name(change: Change) -> str:
    return f"change of {change.table} {dict(change.key)}"


def _is_valid(kind: str, value: str) -> bool:
    if kind != "uuid":
        return True
    try:
        UUID(value)
    except ValueError:
        return False
    return True


def _row_statement(table: Table) -> str:
    types = {column.name: cast("LiteralString", column.type) for column in table.columns}
    erased = [sql.SQL("{} IS NULL").format(sql.Identifier(name)) for name in sorted(table.erased)]
    key = [
        sql.SQL("{} = {}::text::{}").format(sql.Identifier(name), sql.SQL(f"${number}"), sql.SQL(types[name]))  # pyright: ignore[reportArgumentType] - a number
        for number, name in enumerate(table.key, start=1)
    ]
    return (
        sql.SQL(_ROW)
        .format(erased=sql.SQL(" AND ").join(erased), table=sql.Identifier(table.name), key=sql.SQL(" AND ").join(key))
        .as_string(None)
    )

"""Writes rows of the ledger over those of the view, and recomputes the counters that depend on them.

Decides which counters depend on a row. Unlike a merge it ignores versions: a row that differs from the ledger is wrong
whatever its version is. **The caller guarantees that the stream has not changed the rows since the position that they
were read at.** Implements `sync.repair.Mender`.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final, LiteralString, cast
from uuid import UUID

import orjson
from psycopg import sql

from regions.position import Position
from services.schema.statements import statement
from services.view.cache import Invalidation
from sync.registry import Registry, Table
from sync.repair import Divergence, Image, Mended, WrongCounters
from sync.view_tree import ViewRow

if TYPE_CHECKING:
    from sync.checkpoint import ViewConnection

_SQL: Final = Path(__file__).parent / "sql"

_WRITE: Final = """
INSERT INTO {table} ({columns}) SELECT {values} FROM json_to_recordset($1::json) AS r ({definitions})
ON CONFLICT ({key}) DO UPDATE SET {changes}
"""
_READ: Final = "SELECT {values} FROM {table} AS t JOIN json_to_recordset($1::json) AS k ({definitions}) ON {equal}"
_DELETE: Final = "DELETE FROM {table} AS t USING json_to_recordset($1::json) AS k ({definitions}) WHERE {equal}"

THREADS_OF: Final[Mapping[str, tuple[str, ...]]] = {
    "sites": (),
    "threads": ("id",),
    "comments": ("thread_id",),
    "votes": ("thread_id",),
}
"""The columns of each table with the threads whose page and count depend on a row."""

COMMENTS_OF: Final[Mapping[str, tuple[str, ...]]] = {
    "sites": (),
    "threads": (),
    "comments": ("id", "parent_id"),
    "votes": ("comment_id",),
}
"""The columns of each table with the comments whose counts depend on a row."""

Row = Mapping[str, str | None]


class ViewMender:
    """Mends rows of the view's schema."""

    def __init__(self, tables: Registry) -> None:
        """Use the tables of a registry, referenced tables first."""
        self._tables = tables

    async def mend(
        self, connection: "ViewConnection", images: Sequence[Image], phantoms: Sequence[ViewRow], position: Position
    ) -> Mended[Invalidation]:
        """Delete phantoms and write rows, inside of the caller's transaction.

        Raises:
            asyncpg.PostgresError: The view rejects a row.
        """
        divergences: list[Divergence] = []
        touched: list[tuple[str, Row]] = []
        for table in self._tables:
            gone = [dict(zip(table.key, row.key, strict=True)) for row in phantoms if row.table == table.name]
            rows = [row for name, row in images if name == table.name]
            old = await self._read(connection, table, [*gone, *rows])
            touched += [(table.name, row) for row in (*old.values(), *rows)]
            if gone:
                await connection.execute(_statement(_DELETE, table), _json(gone))
            if rows:
                await connection.execute(_statement(_WRITE, table), _json(rows))
            divergences += [_phantom(table, one) for one in gone if _key(table, one) in old]
            divergences += [_divergence(table, row, old.get(_key(table, row))) for row in rows]
        wrong = WrongCounters(threads=_ids(touched, THREADS_OF), comments=_ids(touched, COMMENTS_OF))
        return Mended(divergences=divergences, effects=await self.recount(connection, wrong, position))

    async def find_wrong_counters(self, connection: "ViewConnection") -> WrongCounters:
        """Compare all derived values with the rows, in one snapshot. Reads all rows."""
        found = await connection.fetch(statement(_SQL, "wrong_counters"))
        return WrongCounters(
            threads=sorted({one["thread"] for one in found}),
            comments=sorted({one["comment"] for one in found if one["comment"] is not None}),
        )

    async def recount(
        self, connection: "ViewConnection", wrong: WrongCounters, position: Position
    ) -> Sequence[Invalidation]:
        """Compute derived values again, inside of the caller's transaction; return the pages that changed."""
        if not wrong:
            return []
        pages = await connection.fetch(
            statement(_SQL, "recount"), list(wrong.threads), list(wrong.comments), position.lsn
        )
        return [Invalidation(site=page["site"], key=page["key"], version=page["version"]) for page in pages]

    @staticmethod
    async def _read(connection: "ViewConnection", table: Table, keys: Sequence[Row]) -> dict[tuple[str, ...], Row]:
        """Return the view's rows of these keys, in text format."""
        if not keys:
            return {}
        found = [dict(row) for row in await connection.fetch(_statement(_READ, table), _json(keys))]
        return {_key(table, row): row for row in found}


def _statement(template: LiteralString, table: Table) -> str:
    """Return a statement for one table, with rows or keys as JSON with values in text format."""
    kept = [column for column in table.columns if column.kept]
    types: dict[str, LiteralString] = {column.name: cast("LiteralString", column.type) for column in kept}
    # Rows and keys have the same form: a key is a row whose other columns are absent.
    definitions = [sql.SQL("{} text").format(sql.Identifier(column.name)) for column in kept]
    reads = template is _READ
    values = [
        sql.SQL("t.{0}::text AS {0}").format(sql.Identifier(name))
        if reads
        else sql.SQL("r.{}::{}").format(sql.Identifier(name), sql.SQL(types[name]))
        for name in types
    ]
    equal = [sql.SQL("t.{0} = k.{0}::{1}").format(sql.Identifier(name), sql.SQL(types[name])) for name in table.key]
    changes = [sql.SQL("{0} = excluded.{0}").format(sql.Identifier(name)) for name in types if name not in table.key]
    return (
        sql.SQL(template)
        .format(
            table=sql.Identifier(table.name),
            columns=sql.SQL(", ").join(map(sql.Identifier, types)),
            values=sql.SQL(", ").join(values),
            definitions=sql.SQL(", ").join(definitions),
            key=sql.SQL(", ").join(map(sql.Identifier, table.key)),
            equal=sql.SQL(" AND ").join(equal),
            changes=sql.SQL(", ").join(changes),
        )
        .as_string(None)
    )


def _json(rows: Sequence[Row]) -> str:
    return orjson.dumps(rows).decode()


def _key(table: Table, row: Row) -> tuple[str, ...]:
    return tuple(str(row[name]) for name in table.key)


def _phantom(table: Table, row: Row) -> Divergence:
    return Divergence(kind="phantom", table=table.name, key=_key(table, row))


def _divergence(table: Table, row: Row, old: Row | None) -> Divergence:
    key = _key(table, row)
    if old is None:
        return Divergence(kind="missing", table=table.name, key=key)
    columns = tuple(name for name, value in row.items() if old[name] != value)
    return Divergence(kind="stale", table=table.name, key=key, columns=columns)


def _ids(touched: Sequence[tuple[str, Row]], columns_of: Mapping[str, tuple[str, ...]]) -> list[UUID]:
    found = {row[column] for table, row in touched for column in columns_of[table]}
    return sorted(UUID(one) for one in found if one is not None)

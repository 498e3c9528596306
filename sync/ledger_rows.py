"""Builds the queries that hash and read rows of the ledger: all rows, rows of given keys, and their images.

Decides nothing about trees. The ledger has no functions and no index for comparisons, so that they cost its writers
nothing: rows are found by their primary key, and the secret is a parameter.
"""

from collections.abc import Sequence
from typing import Any, Final, LiteralString, cast

import psycopg
from psycopg import sql

from sync.canonical import SEPARATOR, canonical_text, key_text
from sync.merkle.row_hash import SECRET_BYTES, hash_key
from sync.registry import Registry, Table

_SELECT: Final = """
SELECT
    r.key, substr(sha256(%(secret)s || convert_to(r.text, 'UTF8')), 1, 8)::bigint,
    substr(r.hash, 1, 8)::bigint, substr(r.hash, 9, 8)::bigint
FROM (
    SELECT
        ARRAY[{columns}] AS key, {text} AS text,
        sha256(%(secret)s || convert_to({text}, 'UTF8') || '\\x00'::bytea || convert_to({canonical}, 'UTF8')) AS hash
    FROM {table} AS t {where}
    OFFSET 0
) AS r
"""

_IMAGES: Final = "SELECT {columns} FROM {table} AS t {where}"

Row = tuple[tuple[str, ...], int, int, int]
"""Columns of the key in text format, key hash, and both halves of the row hash."""


class LedgerRows:
    """Hashes and reads rows on a connection of the caller."""

    def __init__(self, tables: Registry, secret: bytes) -> None:
        """Prepare the queries of all tables."""
        assert len(secret) == SECRET_BYTES, "a secret of the right length"
        self.tables = tables
        self._secret = secret

    def hash_key(self, table: Table, key: Sequence[str]) -> int:
        """Return the key hash of a row that may not exist."""
        return hash_key(self._secret, SEPARATOR.join([table.name, *key]))

    async def all(self, cursor: psycopg.AsyncServerCursor[Any], table: Table) -> None:
        """Execute the query of all rows of a table on a server-side cursor; its rows are a `Row` each."""
        await cursor.execute(self._hashed(table, sql.SQL("")), {"secret": self._secret})

    async def of_keys(
        self, connection: psycopg.AsyncConnection, table: Table, keys: Sequence[tuple[str, ...]]
    ) -> list[Row]:
        """Return the rows that have one of ``keys``; a key without a row is absent."""
        cursor = await connection.execute(
            self._hashed(table, _where(table)), {"secret": self._secret, **_parameters(table, keys)}
        )
        return [(tuple(key), key_hash, h1, h2) for key, key_hash, h1, h2 in await cursor.fetchall()]

    async def images(
        self, connection: psycopg.AsyncConnection, table: Table, keys: Sequence[tuple[str, ...]]
    ) -> list[dict[str, str | None]]:
        """Return the rows of ``keys`` as the stream carries them: the kept columns in text format."""
        names = [column.name for column in table.columns if column.kept]
        columns = sql.SQL(", ").join([sql.SQL("{}::text").format(sql.Identifier("t", name)) for name in names])
        query = sql.SQL(_IMAGES).format(
            columns=columns, table=sql.Identifier("palaver", table.name), where=_where(table)
        )
        cursor = await connection.execute(query, _parameters(table, keys))
        return [dict(zip(names, row, strict=True)) for row in await cursor.fetchall()]

    def _hashed(self, table: Table, where: sql.Composable) -> sql.Composed:
        columns = [sql.SQL("{}::text").format(sql.Identifier("t", name)) for name in table.key]
        return sql.SQL(_SELECT).format(
            columns=sql.SQL(", ").join(columns),
            text=key_text(table, alias="t"),
            canonical=canonical_text(table, alias="t"),
            table=sql.Identifier("palaver", table.name),
            where=where,
        )


def _where(table: Table) -> sql.Composed:
    """Return a join with the given keys, which uses the primary key."""
    types = {column.name: column.type for column in table.columns}
    arrays = [
        sql.SQL("{}::{}[]").format(sql.Placeholder(f"key_{name}"), sql.SQL(_type(types[name]))) for name in table.key
    ]
    equal = [sql.SQL("{} = {}").format(sql.Identifier("t", name), sql.Identifier("k", name)) for name in table.key]
    return sql.SQL("JOIN unnest({}) AS k ({}) ON {}").format(
        sql.SQL(", ").join(arrays), sql.SQL(", ").join(map(sql.Identifier, table.key)), sql.SQL(" AND ").join(equal)
    )


def _type(name: str) -> LiteralString:
    # The types of declarations belong to the product and are not input.
    return cast("LiteralString", name)


def _parameters(table: Table, keys: Sequence[tuple[str, ...]]) -> dict[str, list[str]]:
    return {f"key_{name}": [key[index] for key in keys] for index, name in enumerate(table.key)}

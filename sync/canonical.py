"""Builds the SQL expressions of a row's key text and canonical text, which both sides of a comparison hash.

Decides which columns count (those that the view keeps) and how each type becomes text. The expression is the same on
the ledger and on the view, and its result depends on the row only: not on time zone, date style, collation, encoding of
the client, or the storage of the value. **Equal rows have equal texts, and different rows have different texts.** The
stream carries values in PostgreSQL's text format, which preserves each of these types exactly.

A row's text is that of a text array: PostgreSQL quotes its elements by ASCII rules, and NULL differs from every string.
Counters that a view derives are not part of it, because the ledger does not have them.
"""

from collections.abc import Callable, Mapping
from typing import Final

from psycopg import sql

from sync.registry import Column, Registry, Table

SEPARATOR: Final = "\x1f"
"""Between the table and the columns of a key. Only the last column of a key may contain it."""


class TypeNotCanonical(Exception):
    """A column has a type that has no canonical text."""


def _plain(column: sql.Composable) -> sql.Composable:
    return sql.SQL("{}::text").format(column)


def _sent(function: str) -> Callable[[sql.Composable], sql.Composable]:
    """The text form depends on settings of the session, the binary form does not."""

    def text(column: sql.Composable) -> sql.Composable:
        return sql.SQL("encode({}({}), 'hex')").format(sql.Identifier(function), column)

    return text


_TEXT_OF: Final[Mapping[str, Callable[[sql.Composable], sql.Composable]]] = {
    **dict.fromkeys(
        ("uuid", "text", "text[]", "smallint", "integer", "bigint", "numeric", "boolean", "jsonb"),
        _plain,
    ),
    "real": _sent("float4send"),
    "double precision": _sent("float8send"),
    "timestamp with time zone": _sent("timestamptz_send"),
    "timestamp without time zone": _sent("timestamp_send"),
    "date": _sent("date_send"),
    "bytea": lambda column: sql.SQL("encode({}, 'hex')").format(column),
}
"""The text of a value by the type of its column."""


def key_text(table: Table, *, alias: str | None = None) -> sql.Composed:
    """Return the expression of a row's key text: the table's name and the columns of its key.

    Args:
        table: The declaration.
        alias: Name of the relation in the query; None if the columns need no name of a relation.
    """
    columns = {column.name: column for column in table.columns}
    parts: list[sql.Composable] = [sql.Literal(table.name)]
    for name in table.key:
        parts += [sql.Literal(SEPARATOR), _text(columns[name], alias)]
    # concat() is not immutable, and an index needs an immutable expression.
    return sql.SQL(" || ").join(parts)


def canonical_text(table: Table, *, alias: str | None = None) -> sql.Composed:
    """Return the expression of a row's canonical text."""
    return sql.SQL("(ARRAY[{}])::text").format(
        sql.SQL(", ").join([_text(column, alias) for column in table.columns if column.kept])
    )


def values(table: Table, *, alias: str | None = None) -> sql.Composed:
    """Return the columns that count, for a comparison of two images of a row without hashing them."""
    kept = [_identifier(alias, column.name) for column in table.columns if column.kept]
    return sql.SQL("ROW({})").format(sql.SQL(", ").join(kept))


def description(tables: Registry) -> str:
    """Return what determines the texts of all tables: two sides with another description cannot be compared."""
    lines = [
        " ".join([table.name, *table.key, *(f"{one.name}:{one.type}" for one in table.columns if one.kept)])
        for table in tables
    ]
    return "array text, version 1\n" + "\n".join(lines)


def _text(column: Column, alias: str | None) -> sql.Composable:
    text_of = _TEXT_OF.get(column.type)
    if text_of is None:
        raise TypeNotCanonical(f"column {column.name} has type {column.type}, which has no canonical text yet")
    return text_of(_identifier(alias, column.name))


def _identifier(alias: str | None, name: str) -> sql.Identifier:
    return sql.Identifier(name) if alias is None else sql.Identifier(alias, name)

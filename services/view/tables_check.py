"""Compares a view with the registry: each declared table, its columns, its primary key and its merge function.

Decides nothing about how a difference arises; a replicator that finds one does not apply changes. Source of truth: the
system catalogs of PostgreSQL 18.
"""

from pathlib import Path
from typing import Final

import psycopg

from services.schema.failure import MigrationFailed
from services.schema.mark import CONNECT_TIMEOUT_S
from services.schema.statements import statement
from sync.registry import Registry, Table

_SQL: Final = Path(__file__).parent / "sql"


class SchemaMismatch(MigrationFailed):
    """The view does not have what the registry declares."""


def check_tables(url: str, tables: Registry) -> None:
    """Check that a view has the declared tables. Blocking: run it in a thread.

    Args:
        url: URL of the view.
        tables: The registry.

    Raises:
        SchemaMismatch: A table, column or merge function is missing, or a type or a primary key differs.
        MigrationFailed: The view cannot be reached.
    """
    try:
        with (
            psycopg.connect(
                url, autocommit=True, connect_timeout=CONNECT_TIMEOUT_S, application_name="palaver-migrate"
            ) as connection,
            connection.cursor() as cursor,
        ):
            for table in tables:
                columns = cursor.execute(statement(_SQL, "table_columns").encode(), {"table": table.name}).fetchall()
                _check_columns(table, columns)
                found = cursor.execute(
                    statement(_SQL, "merge_function").encode(), {"name": table.merge_function}
                ).fetchone()
                if found != (True,):
                    raise SchemaMismatch(f"the view has no function {table.merge_function}")
    except psycopg.Error as error:
        raise MigrationFailed(str(error).strip()) from error


def _check_columns(table: Table, found: list[tuple[str, str, bool]]) -> None:
    """Compare the columns of a table: (name, type, whether it is in the primary key)."""
    if not found:
        raise SchemaMismatch(f"the view has no table {table.name} with a primary key")
    types = {name: kind for name, kind, _ in found}
    for column in table.columns:
        if column.kept and types.get(column.name) != column.type:
            has = types.get(column.name, "no such column")
            raise SchemaMismatch(f"column {column.name} of the view's table {table.name}: {column.type}, found: {has}")
    key = {name for name, _, in_key in found if in_key}
    if key != set(table.key):
        raise SchemaMismatch(f"the view's table {table.name} has the primary key {', '.join(sorted(key))}")

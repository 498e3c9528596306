"""Compares the registry's declarations with the ledger's publication, its announcements, and the view."""

from dataclasses import replace

import pytest

from services import view
from services.tables import COMMENTS, TABLES
from services.view.tables_check import SchemaMismatch, check_tables
from sync.registry import CONTROL_TABLES, Column, Registry, Table
from tests.sync.rig import Rig

pytestmark = pytest.mark.integration

_COLUMNS = """
    SELECT a.attname::text, format_type(a.atttypid, NULL), a.attnum = ANY (i.indkey)
    FROM pg_attribute AS a
    JOIN pg_index AS i ON i.indrelid = a.attrelid AND i.indisprimary
    WHERE a.attrelid = %s::regclass AND a.attnum > 0 AND NOT a.attisdropped
    ORDER BY a.attnum
"""


def test_every_published_table_is_declared_and_announced(rig: Rig) -> None:
    published = {name for (name,) in rig.sql("SELECT tablename::text FROM pg_publication_tables")}
    assert published == {table.name for table in TABLES} | CONTROL_TABLES
    announced = {str(name): schema for name, schema in rig.sql("SELECT name, schema FROM palaver.table_schemas")}
    assert set(announced) == {table.name for table in TABLES}
    for table in TABLES:
        assert announced[table.name] == max(table.schemas)


@pytest.mark.parametrize("table", list(TABLES), ids=lambda table: table.name)
def test_a_declaration_has_the_columns_of_the_ledger_in_their_order(rig: Rig, table: Table) -> None:
    found = rig.sql(_COLUMNS, f"palaver.{table.name}")
    assert [(name, kind) for name, kind, _ in found] == [(column.name, column.type) for column in table.columns]
    assert {name for name, _, in_key in found if in_key} == set(table.key)


@pytest.mark.parametrize("table", list(TABLES), ids=lambda table: table.name)
def test_the_view_has_the_kept_columns_with_the_same_types(rig: Rig, table: Table) -> None:
    found = rig.view_sql(_COLUMNS, table.name)
    kept = {(column.name, column.type) for column in table.columns if column.kept}
    assert kept <= {(name, kind) for name, kind, _ in found}
    assert {name for name, _, in_key in found if in_key} == set(table.key)


def test_the_reader_of_a_view_may_read_the_declared_tables_and_no_dead_letters(rig: Rig) -> None:
    rig.servers.view.sql("DO $$ BEGIN CREATE ROLE palaver_reader; EXCEPTION WHEN duplicate_object THEN NULL; END $$")
    view.migrate(rig.view_url)
    readable = rig.view_sql(
        "SELECT relname::text FROM pg_class WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace"
        " AND has_table_privilege('palaver_reader', oid, 'SELECT')"
    )
    assert {name for (name,) in readable} == {"checkpoint", *(table.name for table in TABLES)}


def test_the_replication_role_may_read_every_published_table_and_no_other(rig: Rig) -> None:
    readable = rig.sql(
        "SELECT relname::text FROM pg_class WHERE relkind = 'r' AND relnamespace = 'palaver'::regnamespace"
        " AND has_table_privilege('palaver_replication', oid, 'SELECT')"
    )
    assert {name for (name,) in readable} == {table.name for table in TABLES} | CONTROL_TABLES


def test_the_check_at_the_start_accepts_a_migrated_view(rig: Rig) -> None:
    check_tables(rig.view_url, TABLES)


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        (replace(COMMENTS, columns=(*COMMENTS.columns, Column(name="language", type="text"))), "language"),
        (
            replace(
                COMMENTS,
                columns=tuple(replace(one, type="bigint") if one.name == "depth" else one for one in COMMENTS.columns),
            ),
            "depth",
        ),
        (replace(COMMENTS, key=("id", "site_id")), "primary key"),
        (replace(COMMENTS, name="notes"), "notes"),
    ],
    ids=["column", "type", "key", "table"],
)
def test_the_check_at_the_start_names_what_the_view_lacks(rig: Rig, wrong: Table, reason: str) -> None:
    with pytest.raises(SchemaMismatch, match=reason):
        check_tables(rig.view_url, Registry(wrong))


def test_the_check_at_the_start_requires_the_merge_function(rig: Rig) -> None:
    rig.view_sql("DROP FUNCTION merge_comments")
    with pytest.raises(SchemaMismatch, match="merge_comments"):
        check_tables(rig.view_url, TABLES)

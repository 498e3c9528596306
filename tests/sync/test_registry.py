"""Tests which changes fit a registry, and which declarations it accepts."""

from dataclasses import replace

import pytest

from sync.change import Change, Operation
from sync.registry import Column, Registry, SchemaUnknown, Table

NOTES = Table(
    name="notes",
    schemas=frozenset({1, 2}),
    key=("id",),
    columns=(
        Column(name="id", type="uuid"),
        Column(name="text", type="text"),
        Column(name="version", type="integer"),
        Column(name="epoch", type="bigint", kept=False),
    ),
    erased=frozenset({"text"}),
)
TABLES = Registry(NOTES)


def change(table: str, op: Operation = "insert", **row: str | None) -> Change:
    return Change(table=table, op=op, key={}, row=row)


@pytest.mark.parametrize(
    "known",
    [
        change("notes", id="1", text=None, version="1", epoch="7"),
        change("notes", op="update", version="2"),
        change("notes", op="delete"),
        change("notes", op="truncate"),
        change("fence", epoch="1", anything="new"),
        change("table_schemas", name="notes", schema="1"),
        change("table_schemas", op="update", name="notes", schema="2"),
        change("table_schemas", op="delete"),
    ],
)
def test_a_change_with_known_columns_fits(known: Change) -> None:
    TABLES.check(known)


@pytest.mark.parametrize(
    ("unknown", "reason"),
    [
        (change("votes", id="1"), "a table that this version lacks: votes"),
        (change("votes", op="delete"), "a table that this version lacks: votes"),
        (change("notes", id="1", language="en", tone="high"), "columns that this version lacks: language, tone"),
        (change("table_schemas", name="votes", schema="1"), "announces a table that this version lacks: votes"),
        (change("table_schemas", name="notes", schema="3"), "announces schema 3 of notes; this version knows 1, 2"),
        (change("table_schemas", name="notes", schema="next"), "announces schema next of notes"),
        (change("table_schemas", name="notes"), "announces schema None of notes"),
    ],
)
def test_a_change_of_a_newer_schema_does_not_fit(unknown: Change, reason: str) -> None:
    with pytest.raises(SchemaUnknown, match=reason):
        TABLES.check(unknown)


def test_columns_that_may_be_stored_out_of_line_and_are_kept_may_be_absent_from_an_update() -> None:
    columns = (*NOTES.columns, Column(name="origins", type="text[]"), Column(name="raw", type="jsonb", kept=False))
    assert replace(NOTES, columns=columns).out_of_line == ("text", "origins")


@pytest.mark.parametrize(
    "wrong",
    [
        {"key": ()},
        {"key": ("number",)},
        {"key": ("epoch",)},
        {"schemas": frozenset[int]()},
        {"level": "depth"},
        {"erased": frozenset({"body"})},
        {"columns": (*NOTES.columns, Column(name="text", type="text"))},
        {"columns": NOTES.columns[:2]},
    ],
)
def test_an_inconsistent_declaration_is_rejected(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="table notes"):
        replace(NOTES, **wrong)  # pyright: ignore[reportArgumentType] - wrong on purpose


def test_the_names_of_tables_are_unique_and_not_those_of_control_tables() -> None:
    for tables in ((NOTES, NOTES), (NOTES, replace(NOTES, name="fence")), (replace(NOTES, name="table_schemas"),)):
        with pytest.raises(ValueError, match="unique"):
            Registry(*tables)


def test_a_registry_keeps_its_order() -> None:
    tables = Registry(NOTES, replace(NOTES, name="answers"))
    assert [table.name for table in tables] == ["notes", "answers"]
    assert len(tables) == 2
    assert tables["answers"].merge_function == "merge_answers"

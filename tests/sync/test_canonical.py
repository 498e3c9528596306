"""Tests that a row has the same canonical text in every session and database, and another row another text."""

import uuid
from collections.abc import Generator
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from psycopg import sql

from services.tables import TABLES
from sync.canonical import TypeNotCanonical, canonical_text, description, key_text
from sync.registry import Column, Registry, Table
from tests import servers

pytestmark = pytest.mark.integration

EVERY_TYPE = Table(
    name="every_type",
    schemas=frozenset({1}),
    key=("id",),
    columns=(
        Column(name="id", type="uuid"),
        Column(name="version", type="integer"),
        Column(name="words", type="text"),
        Column(name="list", type="text[]"),
        Column(name="small", type="smallint"),
        Column(name="big", type="bigint"),
        Column(name="exact", type="numeric"),
        Column(name="flag", type="boolean"),
        Column(name="document", type="jsonb"),
        Column(name="single", type="real"),
        Column(name="double", type="double precision"),
        Column(name="at", type="timestamp with time zone"),
        Column(name="local", type="timestamp without time zone"),
        Column(name="day", type="date"),
        Column(name="bytes", type="bytea"),
    ),
)

CREATE = "CREATE TABLE every_type ({})".format(
    ", ".join(f"{column.name} {column.type}" for column in EVERY_TYPE.columns)
)
ONE = (
    "SET DateStyle = 'ISO, MDY'; SET TimeZone = 'UTC'; SET extra_float_digits = 3; SET IntervalStyle = 'postgres';"
    " SET bytea_output = 'hex'; SET client_encoding = 'UTF8'; SET lc_messages = 'C'"
)
OTHER = (
    "SET DateStyle = 'German, DMY'; SET TimeZone = 'Asia/Kathmandu'; SET extra_float_digits = -10;"
    " SET IntervalStyle = 'iso_8601'; SET bytea_output = 'escape'; SET client_encoding = 'UTF8'"
)

TEXTS = (
    st.none()
    | st.text(alphabet=st.characters(codec="utf-8", exclude_characters="\0", exclude_categories=["Cs"]), max_size=8)
    | st.sampled_from(["", "NULL", "null", "{}", '"', "\\", ",", " ", "\x85", "\xa0", "x" * 3000, "é", "e\u0301"])
)
ROWS = st.fixed_dictionaries(
    {
        "words": TEXTS,
        "list": st.none() | st.lists(TEXTS, max_size=2),
        "small": st.none() | st.integers(-(2**15), 2**15 - 1),
        "exact": st.sampled_from([None, "1.0", "1.00", "NaN", "-0.5", "1e20"]),
        "flag": st.none() | st.booleans(),
        "document": st.sampled_from([None, "{}", '{"a": 1.0}', '{"a": 1.00}', '{"b": [1, null], "a": "\\u00e9"}']),
        "double": st.sampled_from([None, "0", "-0", "NaN", "Infinity", "0.1", "0.30000000000000004", "5e-324"]),
        "single": st.sampled_from([None, "0.1", "16777217", "1e-45"]),
        "at": st.sampled_from(
            [
                None,
                "infinity",
                "-infinity",
                "2026-12-01 09:00:00.000001+00",
                "2026-12-01 10:00:00.000001+01",
                "0001-01-01 BC",
            ]
        ),
        "local": st.sampled_from([None, "2026-03-29 02:30:00", "infinity"]),
        "day": st.sampled_from([None, "2026-12-01", "infinity"]),
        "bytes": st.sampled_from([None, b"", b"\x00", b"\\x00", b"\xff"]),
    }
)


@pytest.fixture(scope="module")
def server() -> Generator[servers.PostgresServer]:
    with servers.postgres() as server:
        server.sql("CREATE DATABASE other TEMPLATE template0 LC_COLLATE 'C' LC_CTYPE 'C'", database="postgres")
        for database in (None, "other"):
            server.sql(CREATE, **({} if database is None else {"database": database}))
        yield server


def texts_of(
    server: servers.PostgresServer, database: str | None, session: str, row: dict[str, Any]
) -> tuple[str, str]:
    """Write a row in one session and read its texts in a session with other settings."""
    url = server.url() if database is None else server.url(database)
    values = {"id": uuid.UUID(int=1), "version": 1, **row}
    with psycopg.connect(url) as connection:
        connection.execute(ONE.encode())
        names, rows = (
            sql.SQL(", ").join(map(sql.Identifier, values)),
            sql.SQL(", ").join([sql.Placeholder()] * len(values)),
        )
        connection.execute(
            sql.SQL("INSERT INTO every_type ({}) VALUES ({})").format(names, rows), list(values.values())
        )
        connection.execute(session.encode())
        query = sql.SQL("SELECT {}, {} FROM every_type").format(key_text(EVERY_TYPE), canonical_text(EVERY_TYPE))
        found = connection.execute(query).fetchone()
        connection.rollback()
    assert found is not None
    return found[0], found[1]


@given(row=ROWS)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_row_has_one_text_in_all_sessions_and_databases(server: servers.PostgresServer, row: dict[str, Any]) -> None:
    assert texts_of(server, None, ONE, row) == texts_of(server, "other", OTHER, row)


@given(row=ROWS, other=ROWS)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_rows_with_different_values_have_different_texts(
    server: servers.PostgresServer, row: dict[str, Any], other: dict[str, Any]
) -> None:
    equal = {"2026-12-01 10:00:00.000001+01": "2026-12-01 09:00:00.000001+00"}
    same = {k: equal.get(v, v) if k == "at" else v for k, v in row.items()} == {
        k: equal.get(v, v) if k == "at" else v for k, v in other.items()
    }
    assert (texts_of(server, None, ONE, row) == texts_of(server, None, ONE, other)) == same


def test_a_type_without_a_canonical_text_is_refused() -> None:
    table = Table(
        name="t",
        schemas=frozenset({1}),
        key=("id",),
        columns=(
            Column(name="id", type="uuid"),
            Column(name="version", type="integer"),
            Column(name="x", type="point"),
        ),
    )
    with pytest.raises(TypeNotCanonical, match="column x has type point"):
        canonical_text(table)


def test_the_description_changes_with_a_column() -> None:
    assert description(TABLES) != description(Registry(*list(TABLES)[:-1]))

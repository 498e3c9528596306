import contextlib
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sync.pgoutput import (
    POSTGRES_EPOCH_US,
    UNCHANGED,
    Begin,
    Column,
    Commit,
    Delete,
    Ignored,
    Insert,
    LogicalMessage,
    MalformedMessage,
    Relation,
    Row,
    Truncate,
    Update,
    parse_message,
)
from tests.sync import messages

lsns = st.integers(0, 2**64 - 1)
times = st.integers(-(2**62), 2**62)
oids = st.integers(0, 2**32 - 1)
names = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=20)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=50)
rows = st.lists(st.one_of(st.none(), texts, st.just(messages.UNSENT)), max_size=12)

ONE_OF_EACH = [
    messages.begin(),
    messages.commit(),
    messages.relation(1, "comments", [("id", True), ("body", False)]),
    messages.insert(1, ["a", None]),
    messages.update(1, ["a", messages.UNSENT]),
    messages.update(1, ["b", "x"], old=["a", None]),
    messages.delete(1, ["a", None]),
    messages.truncate(1, 2),
    messages.message("trace", b"00-ab"),
    messages.type_(),
    messages.origin(),
]


def parsed(values: list[object]) -> Row:
    return cast("Row", tuple(UNCHANGED if value is messages.UNSENT else value for value in values))


@given(lsns, lsns, times, st.integers(0, 2**32 - 1))
def test_begin_and_commit_are_parsed(lsn: int, end_lsn: int, time_us: int, xid: int) -> None:
    at_us = time_us + POSTGRES_EPOCH_US
    assert parse_message(messages.begin(lsn, time_us, xid)) == Begin(final_lsn=lsn, commit_ts_us=at_us, xid=xid)
    assert parse_message(messages.commit(lsn, end_lsn, time_us)) == Commit(
        commit_lsn=lsn, end_lsn=end_lsn, commit_ts_us=at_us
    )


@given(oids, rows)
def test_every_value_of_a_row_is_parsed(oid: int, values: list[object]) -> None:
    assert parse_message(messages.insert(oid, values)) == Insert(oid=oid, new=parsed(values))
    assert parse_message(messages.update(oid, values)) == Update(oid=oid, old=None, new=parsed(values))
    assert parse_message(messages.delete(oid, values)) == Delete(oid=oid, old=parsed(values))


@given(rows, rows)
def test_an_update_of_the_key_has_both_rows(old: list[object], new: list[object]) -> None:
    assert parse_message(messages.update(3, new, old)) == Update(oid=3, old=parsed(old), new=parsed(new))


@given(oids, names, st.lists(st.tuples(names, st.booleans()), max_size=8))
def test_the_columns_of_a_relation_are_parsed(oid: int, name: str, columns: list[tuple[str, bool]]) -> None:
    assert parse_message(messages.relation(oid, name, columns)) == Relation(
        oid=oid,
        namespace="palaver",
        name=name,
        columns=tuple(Column(name=column, key=key, type_oid=25) for column, key in columns),
    )


@given(names, st.binary(max_size=50), st.booleans())
def test_a_logical_message_is_parsed(prefix: str, content: bytes, transactional: bool) -> None:
    data = messages.message(prefix, content, transactional=transactional)
    assert parse_message(data) == LogicalMessage(transactional=transactional, lsn=90, prefix=prefix, content=content)


def test_types_and_origins_are_parsed_and_ignored() -> None:
    assert parse_message(messages.type_()) == Ignored(kind="Y")
    assert parse_message(messages.origin()) == Ignored(kind="O")
    assert parse_message(messages.truncate(4, 5)) == Truncate(oids=(4, 5))


@pytest.mark.parametrize("data", ONE_OF_EACH)
def test_a_truncated_or_overlong_message_is_rejected(data: bytes) -> None:
    for end in range(len(data)):
        with pytest.raises(MalformedMessage):
            parse_message(data[:end])
    with pytest.raises(MalformedMessage):
        parse_message(data + b"\0")


@given(st.binary(max_size=200))
def test_parsing_garbage_raises_no_other_error(data: bytes) -> None:
    with contextlib.suppress(MalformedMessage):
        parse_message(data)


@given(st.sampled_from(ONE_OF_EACH), st.integers(0, 60), st.integers(0, 255))
def test_a_damaged_message_never_raises_another_error(data: bytes, at: int, byte: int) -> None:
    damaged = bytearray(data)
    damaged[at % len(damaged)] = byte
    with contextlib.suppress(MalformedMessage):
        parse_message(bytes(damaged))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"Z",
        b"I\0\0\0\1K\0\0",
        b"I\0\0\0\1N\0\1b\0\0\0\1x",
        b"I\0\0\0\1N\0\1t\0\0\0\1\xff",
        b"U\0\0\0\1X\0\0",
    ],
)
def test_unknown_kinds_binary_values_and_invalid_text_are_rejected(data: bytes) -> None:
    with pytest.raises(MalformedMessage):
        parse_message(data)

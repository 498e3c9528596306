import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from regions.position import Position
from sync.change import Change, InvalidLine, Item, Progress, Transaction, decode_line, encode_line

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
positions = st.builds(Position, st.integers(0, 2**63 - 1), st.integers(0, 2**64 - 1))
changes = st.builds(
    Change,
    table=texts,
    op=st.sampled_from(["insert", "update", "delete", "truncate"]),
    key=st.dictionaries(texts, texts, max_size=2),
    row=st.dictionaries(texts, st.none() | texts, max_size=5),
)
transactions = st.builds(
    Transaction,
    position=positions,
    commit_ts_us=st.integers(0, 2**62),
    trace=st.none() | texts,
    changes=st.lists(changes, max_size=3).map(tuple),
    partial=st.booleans(),
)
progress = st.builds(Progress, position=positions, sent_at_us=st.integers(0, 2**62))


@given(transactions | progress)
def test_a_line_decodes_to_what_was_encoded(item: Item) -> None:
    line = encode_line(item)
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    assert decode_line(line) == item


@given(st.binary(max_size=100))
def test_decoding_garbage_raises_no_other_error(line: bytes) -> None:
    with contextlib.suppress(InvalidLine):
        decode_line(line)


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"[]",
        b"null",
        b'{"progress":{"epoch":1,"lsn":"0/1"}}',
        b'{"progress":{"epoch":"1","lsn":"0/1"},"sent_at_us":1}',
        b'{"progress":{"epoch":-1,"lsn":"0/1"},"sent_at_us":1}',
        b'{"epoch":1,"lsn":"x","commit_ts_us":1,"trace":null,"changes":[]}',
        b'{"epoch":1,"lsn":"0/1","commit_ts_us":1,"trace":null,"changes":[{}]}',
        b'{"epoch":1,"lsn":"0/1","commit_ts_us":1,"trace":7,"changes":[]}',
        (
            b'{"epoch":1,"lsn":"0/1","commit_ts_us":1,"trace":null,"changes":'
            b'[{"table":"a","op":"upsert","key":{},"row":{}}]}'
        ),
        (
            b'{"epoch":1,"lsn":"0/1","commit_ts_us":1,"trace":null,"changes":'
            b'[{"table":"a","op":"insert","key":[],"row":{}}]}'
        ),
    ],
)
def test_a_line_with_a_missing_or_wrong_field_is_rejected(line: bytes) -> None:
    with pytest.raises(InvalidLine):
        decode_line(line)

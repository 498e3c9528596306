"""Positions and LSNs: their order, and their text forms."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from regions.identity import CellId
from regions.position import (
    EPOCH_MAX,
    LSN_MAX,
    ZERO,
    InvalidPosition,
    Position,
    decode_token,
    encode_token,
    format_lsn,
    parse_lsn,
)

lsns = st.integers(min_value=0, max_value=LSN_MAX)
positions = st.builds(Position, st.integers(min_value=0, max_value=EPOCH_MAX), lsns)
cells = st.from_regex(r"[a-z][a-z0-9-]{0,30}", fullmatch=True).map(CellId)


@given(lsns)
def test_an_lsn_survives_formatting_and_parsing(lsn: int) -> None:
    assert parse_lsn(format_lsn(lsn)) == lsn


@given(cells, positions)
def test_a_position_survives_encoding_and_decoding(cell: CellId, position: Position) -> None:
    assert decode_token(encode_token(cell, position)) == (cell, position)


@given(positions, positions)
def test_positions_are_ordered_by_epoch_then_lsn(one: Position, other: Position) -> None:
    assert (one < other) == ((one.epoch, one.lsn) < (other.epoch, other.lsn))
    assert one >= ZERO


@given(st.text())
def test_any_text_is_decoded_or_refused(text: str) -> None:
    try:
        cell, position = decode_token(text)
    except InvalidPosition:
        return
    assert encode_token(cell, position) == text


def test_a_token_has_the_documented_form() -> None:
    token = encode_token(CellId("main"), Position(1, parse_lsn("0/16B3748")))
    assert token == "main.1.00000000016B3748"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "main",
        "main.1",
        "main.01.00000000016B3748",
        "main.1.16B3748",
        "main.-1.00000000016B3748",
        "main.1.00000000016b3748",
        "Main.1.00000000016B3748",
        "main.1.00000000016B3748\n",
        "main.9999999999999999999.00000000016B3748",
        "main.9223372036854775808.00000000016B3748",
        "main.1.00000000016B3748.x",
        "main.1.\u06600000000016B3748",
    ],
)
def test_malformed_tokens_are_refused(text: str) -> None:
    with pytest.raises(InvalidPosition):
        decode_token(text)


@pytest.mark.parametrize("text", ["", "0", "0/", "/0", "0/123456789", "x/0", "0/0\n", "-1/0"])
def test_malformed_lsns_are_refused(text: str) -> None:
    with pytest.raises(InvalidPosition):
        parse_lsn(text)

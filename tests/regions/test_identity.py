"""Names of regions and cells, and the names of slots that are made from them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from regions.identity import (
    InvalidName,
    RegionName,
    parse_cell_id,
    parse_region_name,
    physical_slot_name,
    slot_name,
)


@given(st.from_regex(r"[a-z][a-z0-9-]{0,30}", fullmatch=True))
def test_a_valid_name_is_accepted_unchanged(text: str) -> None:
    assert parse_region_name(text) == text
    assert parse_cell_id(text) == text


@pytest.mark.parametrize("text", ["", "1a", "-a", "A", "a_b", "a b", "a\n", "é", "a" * 32, "a.b", "a/b"])
def test_an_invalid_name_is_refused_with_an_error_of_one_line(text: str) -> None:
    with pytest.raises(InvalidName) as refused:
        parse_region_name(text)
    assert "\n" not in str(refused.value)


def test_slot_names_are_valid_for_postgresql() -> None:
    assert slot_name(RegionName("us-east")) == "palaver_us_east"
    assert physical_slot_name(RegionName("us-east")) == "member_us_east"

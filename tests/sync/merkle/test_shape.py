import pytest
from hypothesis import given
from hypothesis import strategies as st

from sync.merkle.shape import (
    DEPTH_MAX,
    DEPTH_MIN,
    FANOUT,
    depth_at_scrub,
    depth_for,
    key_hashes_of,
    leaf_of,
    nodes_at,
)

key_hashes = st.integers(-(2**63), 2**63 - 1)
depths = st.integers(DEPTH_MIN, DEPTH_MAX)


def test_the_leading_bits_of_the_key_hash_are_the_leaf() -> None:
    assert leaf_of(0x0123_4567_89AB_CDEF, 1) == 0x0
    assert leaf_of(0x0123_4567_89AB_CDEF, 4) == 0x0123
    assert leaf_of(-1, 4) == 0xFFFF
    assert leaf_of(-(2**63), 4) == 0x8000


@given(key_hashes, st.integers(DEPTH_MIN, DEPTH_MAX - 1))
def test_a_leaf_of_a_deeper_tree_is_a_child_of_the_leaf_of_the_same_row(key_hash: int, depth: int) -> None:
    assert leaf_of(key_hash, depth + 1) // FANOUT == leaf_of(key_hash, depth)


@given(key_hashes, depths)
def test_the_rows_of_a_leaf_are_a_range_of_key_hashes(key_hash: int, depth: int) -> None:
    leaf = leaf_of(key_hash, depth)
    lowest, highest = key_hashes_of(leaf, depth)
    assert lowest <= key_hash <= highest
    assert leaf_of(lowest, depth) == leaf_of(highest, depth) == leaf
    assert lowest == -(2**63) or leaf_of(lowest - 1, depth) != leaf
    assert highest == 2**63 - 1 or leaf_of(highest + 1, depth) != leaf


@pytest.mark.parametrize(
    ("rows", "depth"),
    [(0, 1), (256, 1), (257, 2), (65_536, 3), (65_537, 4), (1_000_000, 4), (1_048_577, 5), (10**12, 6)],
)
def test_a_leaf_has_at_most_16_rows_on_average(rows: int, depth: int) -> None:
    assert depth_for(rows) == depth


def test_a_million_rows_have_65536_leaves() -> None:
    assert nodes_at(depth_for(1_000_000)) == 65_536


def test_a_tree_grows_at_a_scrub_when_leaves_have_more_than_16_rows() -> None:
    assert depth_at_scrub(2, 4_096) == 2
    assert depth_at_scrub(2, 4_097) == 3


def test_a_tree_shrinks_at_a_scrub_only_when_leaves_have_less_than_half_a_row() -> None:
    assert depth_at_scrub(3, 4_000) == 3
    assert depth_at_scrub(3, 2_048) == 3
    assert depth_at_scrub(3, 2_047) == 2
    assert depth_at_scrub(1, 0) == 1


@given(depths, st.integers(0, 10**9))
def test_a_second_scrub_of_an_unchanged_table_changes_no_depth(depth: int, rows: int) -> None:
    once = depth_at_scrub(depth, rows)
    assert depth_at_scrub(once, rows) == once

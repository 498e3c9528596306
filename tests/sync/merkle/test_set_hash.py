from hypothesis import given
from hypothesis import strategies as st

from sync.merkle.set_hash import DIGEST_BYTES, EMPTY, SetHash

BIGINT = st.integers(-(2**63), 2**63 - 1)
hashes = st.builds(SetHash, st.integers(-(2**31), 2**31), BIGINT, BIGINT)
ROW = SetHash(1, 0x0123, -5)
OTHER = SetHash(1, -(2**63), 77)


def test_an_insert_adds_a_row_and_a_delete_removes_it() -> None:
    assert EMPTY + ROW + OTHER - ROW == OTHER


def test_an_update_adds_the_new_row_and_removes_the_old_one() -> None:
    change = OTHER - ROW
    assert change.count == 0
    assert ROW + change == OTHER


def test_a_row_that_occurs_twice_is_detected_by_the_count() -> None:
    twice = ROW + ROW
    assert (twice.h1, twice.h2) == (EMPTY.h1, EMPTY.h2)
    assert twice != EMPTY
    assert twice.digest != EMPTY.digest


def test_each_part_of_a_hash_changes_its_digest() -> None:
    variants = [ROW, SetHash(2, ROW.h1, ROW.h2), SetHash(1, ROW.h1 + 1, ROW.h2), SetHash(1, ROW.h1, ROW.h2 + 1)]
    equally_changed = SetHash(1, ROW.h1 ^ 1, ROW.h2 ^ 1)
    assert len({one.digest for one in (*variants, equally_changed)}) == 5
    assert all(len(one.digest) == DIGEST_BYTES for one in variants)


@given(hashes, hashes, hashes)
def test_hashes_of_sets_are_a_commutative_group(one: SetHash, two: SetHash, three: SetHash) -> None:
    assert one + two == two + one
    assert (one + two) + three == one + (two + three)
    assert one + EMPTY == one
    assert one - one == EMPTY
    assert (one + two) - two == one


@given(hashes, hashes)
def test_the_xor_of_two_bigints_is_a_bigint(one: SetHash, two: SetHash) -> None:
    both = one + two
    assert min(both.h1, both.h2) >= -(2**63)
    assert max(both.h1, both.h2) < 2**63

from collections.abc import Mapping

import pytest

from regions.position import Position
from sync.merkle import rewind
from sync.merkle.errors import PositionInsideBatch, PositionNotReached, PositionTooOld
from sync.merkle.rewind import BatchPositions, RecentChanges
from sync.merkle.rows import RowsRequest
from tests.sync.merkle.tables import at, change, leaf, positioned, read_rows


def batch(first: Position, last: Position | None = None) -> BatchPositions:
    return BatchPositions(first=first, last=first if last is None else last)


def recent(*, changes_max: int = 100) -> RecentChanges:
    """The changes of a view that was {a: 1} at position 10, {a: 2} at 20 and {a: 2, b: 1} at 30."""
    changes = RecentChanges(at(10), changes_max=changes_max)
    changes.record([change("a", "1", "2")], batch(at(20)))
    changes.record([change("b", None, "1")], batch(at(30)))
    return changes


NOW = {"a": "2", "b": "1"}
BEFORE = {10: {"a": "1"}, 15: {"a": "1"}, 20: {"a": "2"}, 29: {"a": "2"}, 30: NOW}


def rewound_rows(now: Mapping[str, str], changes: RecentChanges, position: Position, to: Position) -> object:
    request = RowsRequest(position=to, depth=2, leaves=tuple(sorted({leaf(key, 2) for key in "ab"})))
    return rewind.rewind_rows(read_rows(now, request), changes, depth=2, position=position, to=to)


def rows_of(table: Mapping[str, str]) -> object:
    request = RowsRequest(position=at(0), depth=2, leaves=tuple(sorted({leaf(key, 2) for key in "ab"})))
    return read_rows(table, request)


def test_a_rewound_tree_is_the_tree_of_that_position() -> None:
    for lsn, table in BEFORE.items():
        assert rewind.rewind_tree(positioned(NOW, at(30)), recent(), at(lsn)) == positioned(table, at(lsn))


def test_rewound_rows_are_the_rows_of_that_position() -> None:
    for lsn, table in BEFORE.items():
        assert rewound_rows(NOW, recent(), at(30), at(lsn)) == rows_of(table)


def test_rewinding_changes_neither_the_tree_nor_the_rows_of_now() -> None:
    now = positioned(NOW, at(30))
    rewind.rewind_tree(now, recent(), at(10))
    assert now == positioned(NOW, at(30))


def test_a_tree_that_was_read_before_the_newest_changes_is_rewound_without_them() -> None:
    assert rewind.rewind_tree(positioned({"a": "2"}, at(20)), recent(), at(10)) == positioned({"a": "1"}, at(10))


def test_a_change_by_hand_is_never_taken_back() -> None:
    changes = recent()
    changes.record([change("b", "1", "damaged")], None)
    damaged = {"a": "2", "b": "damaged"}
    assert rewind.rewind_tree(positioned(damaged, at(30)), changes, at(20)) != positioned({"a": "2"}, at(20))
    assert rewind.rewind_tree(positioned(damaged, at(30)), changes, at(30)) == positioned(damaged, at(30))
    assert changes.head == at(30)


def test_a_change_by_hand_before_a_change_of_the_stream_is_in_the_rewound_tree() -> None:
    changes = RecentChanges(at(10))
    changes.record([change("a", "1", "damaged")], None)
    changes.record([change("a", "damaged", "2")], batch(at(20)))
    assert rewind.rewind_tree(positioned({"a": "2"}, at(20)), changes, at(10)) == positioned({"a": "damaged"}, at(10))


def test_positions_of_two_epochs_are_ordered_by_epoch_first() -> None:
    changes = RecentChanges(at(500))
    changes.record([change("a", "1", "2")], batch(at(20, epoch=2)))
    changes.advance(at(600, epoch=1))
    assert changes.head == at(20, epoch=2)
    now = positioned({"a": "2"}, at(20, epoch=2))
    assert rewind.rewind_tree(now, changes, at(500)) == positioned({"a": "1"}, at(500))


def test_a_position_before_the_kept_changes_is_too_old() -> None:
    changes = recent(changes_max=1)
    assert changes.floor == at(20)
    assert rewind.rewind_tree(positioned(NOW, at(30)), changes, at(20)) == positioned({"a": "2"}, at(20))
    with pytest.raises(PositionTooOld):
        rewind.rewind_tree(positioned(NOW, at(30)), changes, at(19))


def test_a_position_before_the_first_recorded_change_is_too_old() -> None:
    with pytest.raises(PositionTooOld):
        rewind.rewind_tree(positioned(NOW, at(30)), recent(), at(9))


def test_a_position_above_that_of_the_tree_is_not_reached() -> None:
    changes = recent()
    changes.advance(at(50))
    with pytest.raises(PositionNotReached):
        rewind.rewind_tree(positioned(NOW, at(30)), changes, at(31))


def test_a_tree_above_the_recorded_changes_is_not_rewound() -> None:
    with pytest.raises(PositionNotReached):
        rewind.rewind_tree(positioned(NOW, at(31)), recent(), at(30))


def test_a_quiet_view_is_rewound_to_a_position_without_changes() -> None:
    changes = recent()
    changes.advance(at(50))
    assert rewind.rewind_tree(positioned(NOW, at(50)), changes, at(40)) == positioned(NOW, at(40))


def test_a_batch_is_taken_back_as_a_whole() -> None:
    changes = RecentChanges(at(10))
    changes.record([change("a", "1", "3"), change("b", None, "1")], batch(at(20), at(30)))
    now = positioned({"a": "3", "b": "1"}, at(30))
    for lsn in (10, 19):
        assert rewind.rewind_tree(now, changes, at(lsn)) == positioned({"a": "1"}, at(lsn))
    assert rewind.rewind_tree(now, changes, at(30)) == now


@pytest.mark.parametrize("lsn", [20, 25, 29])
def test_a_position_inside_of_a_batch_is_an_error(lsn: int) -> None:
    changes = RecentChanges(at(10))
    changes.record([change("a", "1", "3")], batch(at(20), at(30)))
    with pytest.raises(PositionInsideBatch):
        rewind.rewind_tree(positioned({"a": "3"}, at(30)), changes, at(lsn))
    with pytest.raises(PositionInsideBatch):
        rewind.rewind_tree(positioned({"a": "1"}, at(lsn)), changes, at(10))


def test_the_parts_of_a_large_transaction_are_taken_back_together() -> None:
    changes = RecentChanges(at(10))
    changes.record([change("a", "1", "2")], batch(at(20)))
    changes.record([change("b", None, "1")], batch(at(20)))
    assert rewind.rewind_tree(positioned(NOW, at(20)), changes, at(10)) == positioned({"a": "1"}, at(10))


def test_a_batch_that_is_larger_than_the_ring_can_only_be_kept() -> None:
    changes = RecentChanges(at(10), changes_max=1)
    changes.record([change("a", "1", "2"), change("b", None, "1")], batch(at(20)))
    assert changes.floor == at(20)
    assert rewind.rewind_tree(positioned(NOW, at(20)), changes, at(20)) == positioned(NOW, at(20))


def test_rows_of_other_leaves_are_left_out_of_rewound_rows() -> None:
    request = RowsRequest(position=at(10), depth=2, leaves=(leaf("a", 2),))
    rewound = rewind.rewind_rows(read_rows(NOW, request), recent(), depth=2, position=at(30), to=at(10))
    assert rewound == read_rows({"a": "1"}, request)


def test_changes_are_recorded_in_order() -> None:
    with pytest.raises(AssertionError):
        recent().record([], batch(at(29)))
    with pytest.raises(AssertionError):
        batch(at(20), at(10))

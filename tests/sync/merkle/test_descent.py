from collections.abc import Generator, Iterable
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sync.merkle import descent, shape
from sync.merkle.descent import (
    NODES_PER_REQUEST_MAX,
    SKIP_NODES_MAX,
    Different,
    NodesRequest,
    Outcome,
    Same,
    TooDifferent,
)
from sync.merkle.errors import DigestCollision, InvalidMessage, NotComparable
from sync.merkle.set_hash import SetHash
from sync.merkle.shape import nodes_at
from sync.merkle.tree import PositionedTree, Tree
from tests.sync.merkle.tables import SCHEME, Table, at, compare, leaf, positioned

TABLE = {f"key {number}": "content" for number in range(300)}
tables = st.dictionaries(st.integers(0, 60).map(str), st.sampled_from("ab"), max_size=40)


def with_leaves(numbers: Iterable[int], depth: int) -> PositionedTree:
    tree = Tree.build(depth, [(number, 1, number + 1, 7) for number in numbers])
    return PositionedTree(position=at(1), scheme=SCHEME, tree=tree)


def requested(view: PositionedTree, ledger: PositionedTree) -> list[NodesRequest]:
    """The requests of a descent."""
    requests: list[NodesRequest] = []

    def recorded(inner: Generator[NodesRequest, bytes, Outcome]) -> None:
        try:
            request = next(inner)
            while True:
                requests.append(request)
                request = inner.send(descent.answer_nodes(ledger, request))
        except StopIteration:
            pass

    recorded(descent.compare(view, ledger.summary, leaves_max=10**9))
    return requests


def different_leaves(view: PositionedTree, ledger: PositionedTree) -> tuple[int, ...]:
    outcome = compare(view, ledger)
    assert isinstance(outcome, Different)
    return outcome.leaves


def test_equal_tables_need_no_request() -> None:
    assert compare(positioned(TABLE, at(1)), positioned(TABLE, at(1))) == Same(rows=300)
    assert requested(positioned(TABLE, at(1)), positioned(TABLE, at(1))) == []


def test_the_descent_ends_with_exactly_the_leaves_that_differ() -> None:
    view = positioned({**TABLE, "key 3": "damaged", "key 250": "damaged", "phantom": "x"}, at(1), depth=3)
    expected = {leaf(key, 3) for key in ("key 3", "key 250", "phantom")}
    assert len(expected) == 3
    assert set(different_leaves(view, positioned(TABLE, at(1), depth=3))) == expected


def test_a_row_that_occurs_twice_is_found() -> None:
    view, ledger = positioned(TABLE, at(1)), positioned(TABLE, at(1))
    number = leaf("key 3", 2)
    row = SetHash(1, 5, 6)
    view.tree.change_leaf(number, row + row)
    assert different_leaves(view, ledger) == (number,)


@settings(max_examples=30)
@given(tables, tables, st.integers(1, 3), st.integers(1, 3))
def test_trees_of_two_depths_are_compared_at_the_smaller_one(view: Table, ledger: Table, own: int, other: int) -> None:
    depth = min(own, other)
    differing = {leaf(key, depth) for key in view.keys() | ledger.keys() if view.get(key) != ledger.get(key)}
    outcome = compare(positioned(view, at(1), own), positioned(ledger, at(1), other))
    match outcome:
        case Same():
            assert view == ledger
        case Different():
            assert outcome.leaves == tuple(sorted(differing))
            assert outcome.tree == positioned(view, at(1), depth).tree
        case TooDifferent():
            pytest.fail("there was no bound")


def test_trees_at_two_positions_are_not_compared() -> None:
    with pytest.raises(NotComparable):
        compare(positioned(TABLE, at(1)), positioned(TABLE, at(2)))
    with pytest.raises(NotComparable):
        compare(positioned(TABLE, at(1, epoch=1)), positioned(TABLE, at(1, epoch=2)))


def test_trees_with_two_schemes_are_not_compared() -> None:
    with pytest.raises(NotComparable):
        compare(positioned(TABLE, at(1)), replace(positioned({}, at(1)), scheme=SCHEME + 1))


def test_a_request_is_not_answered_from_a_tree_at_another_position() -> None:
    request = NodesRequest(position=at(1), parent_level=0, level=1, parents=(0,))
    with pytest.raises(NotComparable):
        descent.answer_nodes(positioned(TABLE, at(2)), request)


def test_a_request_for_nodes_below_the_leaves_is_refused() -> None:
    request = NodesRequest(position=at(1), parent_level=1, level=3, parents=(0,))
    with pytest.raises(InvalidMessage):
        descent.answer_nodes(positioned(TABLE, at(1), depth=2), request)


def test_the_descent_ends_early_when_more_leaves_differ_than_wanted() -> None:
    view, ledger = positioned({}, at(1)), positioned(TABLE, at(1))
    outcome = compare(view, ledger, leaves_max=10)
    assert isinstance(outcome, TooDifferent)
    assert 10 < outcome.leaves_at_least <= len(different_leaves(view, ledger))
    assert outcome.leaves == 256


def test_as_many_leaves_as_wanted_are_all_found() -> None:
    view, ledger = with_leaves(range(10), 3), with_leaves([], 3)
    outcome = compare(view, ledger, leaves_max=10)
    assert isinstance(outcome, Different)
    assert outcome.leaves == tuple(range(10))
    assert isinstance(compare(view, ledger, leaves_max=9), TooDifferent)


def test_few_differing_nodes_are_descended_by_several_levels_at_once() -> None:
    levels = [(one.parent_level, one.level) for one in requested(with_leaves([5], 4), with_leaves([], 4))]
    assert levels == [(0, 2), (2, 4)]


def test_many_differing_nodes_are_descended_level_by_level() -> None:
    scattered = range(0, 65_536, 256)
    levels = [(one.parent_level, one.level) for one in requested(with_leaves(scattered, 4), with_leaves([], 4))]
    assert levels == [(0, 2), (2, 3), (3, 4)]


def test_a_request_has_a_bounded_answer() -> None:
    requests = requested(with_leaves(range(0, 65_536, 3), 4), with_leaves([], 4))
    sizes = [one.nodes_per_parent * len(one.parents) for one in requests]
    assert max(sizes) == NODES_PER_REQUEST_MAX
    assert sum(sizes) == 256 + 4_096 + 65_536
    assert SKIP_NODES_MAX <= NODES_PER_REQUEST_MAX
    assert nodes_at(shape.DEPTH_MAX) > NODES_PER_REQUEST_MAX


def test_a_difference_that_no_child_has_is_an_error_and_not_equality() -> None:
    view, ledger = positioned(TABLE, at(1)), positioned({}, at(1))
    descending = descent.compare(view, ledger.summary, leaves_max=10)
    request = next(descending)
    with pytest.raises(DigestCollision):
        descending.send(descent.answer_nodes(view, request))

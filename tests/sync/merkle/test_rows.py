from sync.merkle import rows
from sync.merkle.rows import LEAVES_PER_REQUEST_MAX, ROWS_PER_REQUEST, RowsRequest
from sync.merkle.set_hash import SetHash
from sync.merkle.tree import Tree
from tests.sync.merkle.tables import Table, at, exchange_rows, key_hashes, leaf, read_rows, tree_of

LEDGER = {f"key {number}": "content" for number in range(300)}
ALL_LEAVES = RowsRequest(position=at(1), depth=1, leaves=tuple(range(16)))


def differences(view: Table, ledger: Table = LEDGER) -> dict[str, tuple[int, ...]]:
    """Key hashes by kind."""
    found = exchange_rows(read_rows(view, ALL_LEAVES), read_rows(ledger, ALL_LEAVES), ALL_LEAVES)
    kinds = {"missing": [one.missing for one in found], "phantom": [one.phantom for one in found]}
    kinds["stale"] = [one.stale for one in found]
    return {kind: tuple(sorted(key for some in lists for key in some)) for kind, lists in kinds.items()}


def without(table: Table, *keys: str) -> Table:
    return {key: content for key, content in table.items() if key not in keys}


def test_equal_rows_have_no_difference() -> None:
    assert exchange_rows(read_rows(LEDGER, ALL_LEAVES), read_rows(LEDGER, ALL_LEAVES), ALL_LEAVES) == []


def test_rows_are_missing_phantom_or_stale() -> None:
    view = {**without(LEDGER, "key 1", "key 2"), "key 3": "old", "invented": "x"}
    assert differences(view) == {
        "missing": key_hashes(["key 1", "key 2"]),
        "phantom": key_hashes(["invented"]),
        "stale": key_hashes(["key 3"]),
    }


def test_a_difference_names_its_leaf() -> None:
    request = RowsRequest(position=at(1), depth=1, leaves=(leaf("key 3", 1),))
    (found,) = exchange_rows(read_rows({**LEDGER, "key 3": "old"}, request), read_rows(LEDGER, request), request)
    assert found.leaf == leaf("key 3", 1)


def test_each_leaf_of_a_request_is_there_and_no_other() -> None:
    request = RowsRequest(position=at(1), depth=1, leaves=(2, 5))
    assert read_rows({}, request) == {2: {}, 5: {}}
    assert read_rows(LEDGER, request).keys() == {2, 5}


def test_rows_with_the_same_key_hash_are_compared_together() -> None:
    request = RowsRequest(position=at(1), depth=1, leaves=(0,))
    both = rows.group_rows([(5, 1, 2), (5, 3, 4)], request)
    assert both == {0: {5: SetHash(2, 1 ^ 3, 2 ^ 4)}}
    one = rows.group_rows([(5, 1, 2)], request)
    (found,) = exchange_rows(one, both, request)
    assert found.stale == (5,)
    assert exchange_rows(both, rows.group_rows([(5, 3, 4), (5, 1, 2)], request), request) == []


def test_a_row_that_occurs_twice_is_stale() -> None:
    request = RowsRequest(position=at(1), depth=1, leaves=(0,))
    (found,) = exchange_rows(rows.group_rows([(5, 1, 2)] * 2, request), rows.group_rows([(5, 1, 2)], request), request)
    assert found.stale == (5,)


def test_a_row_that_the_view_owes_is_stale_and_not_phantom() -> None:
    # The stream inserted it after the position of the comparison, and a delete by hand followed.
    owed = {0: {5: SetHash(-1, 1, 2)}}
    request = RowsRequest(position=at(1), depth=1, leaves=(0,))
    (found,) = exchange_rows(owed, rows.group_rows([], request), request)
    assert (found.missing, found.phantom, found.stale) == ((), (), (5,))


def test_a_leaf_that_is_not_the_sum_of_its_rows_is_wrong() -> None:
    unseen = {**LEDGER, "key 3": "changed while triggers were off"}
    assert rows.wrong_leaves(tree_of(LEDGER, 1), read_rows(LEDGER, ALL_LEAVES)) == []
    assert rows.wrong_leaves(tree_of(LEDGER, 1), read_rows(unseen, ALL_LEAVES)) == [leaf("key 3", 1)]


def test_leaves_are_requested_in_batches_of_about_as_many_rows_each() -> None:
    tree = Tree.build(4, [(number, 20, 1, 1) for number in range(5_000)])
    requests = list(rows.plan_requests(tree, range(5_000), rows_of_other=1_000_000, position=at(1)))
    assert [number for one in requests for number in one.leaves] == list(range(5_000))
    assert all(20 * len(one.leaves) <= ROWS_PER_REQUEST for one in requests)
    assert len(requests) == 7


def test_leaves_that_are_empty_here_are_expected_to_have_the_average_of_the_other_side() -> None:
    requests = list(rows.plan_requests(Tree.build(4, []), range(5_000), rows_of_other=6_553_600, position=at(1)))
    assert {len(one.leaves) for one in requests[:-1]} == {ROWS_PER_REQUEST // 101}


def test_a_leaf_with_too_many_rows_is_requested_alone() -> None:
    tree = Tree.build(1, [(number, ROWS_PER_REQUEST * 2, 1, 1) for number in range(16)])
    requests = list(rows.plan_requests(tree, range(16), rows_of_other=0, position=at(1)))
    assert [one.leaves for one in requests] == [(number,) for number in range(16)]


def test_a_request_has_a_bounded_number_of_leaves() -> None:
    requests = list(rows.plan_requests(Tree.build(4, []), range(10_000), rows_of_other=0, position=at(1)))
    assert max(len(one.leaves) for one in requests) == LEAVES_PER_REQUEST_MAX

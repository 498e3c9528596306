import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sync.merkle.errors import InvalidLeaf
from sync.merkle.set_hash import EMPTY, SetHash
from sync.merkle.shape import FANOUT, nodes_at
from sync.merkle.tree import Tree
from tests.sync.merkle.tables import Table, at, change, key_hash, leaf, positioned, row, tree_of

TABLE = {f"key {number}": f"content {number}" for number in range(40)}
tables = st.dictionaries(st.integers(0, 60).map(str), st.sampled_from("abc"), max_size=40)


def test_a_tree_without_rows_is_empty() -> None:
    assert Tree.build(2, []).root == EMPTY


def test_the_root_is_the_hash_of_all_rows() -> None:
    assert tree_of(TABLE, 3).root == sum((row(*one) for one in TABLE.items()), EMPTY)
    assert tree_of(TABLE, 3).root.count == len(TABLE)


def test_a_node_is_the_sum_of_its_children() -> None:
    tree = tree_of(TABLE, 3)
    for level in range(3):
        for number in range(nodes_at(level)):
            children = [tree.node(level + 1, number * FANOUT + child) for child in range(FANOUT)]
            assert tree.node(level, number) == sum(children, EMPTY)


def test_a_change_of_a_row_changes_its_leaf_and_each_node_above() -> None:
    tree = tree_of(TABLE, 3)
    tree.change(*change("key 7", TABLE["key 7"], "new"))
    assert tree == tree_of({**TABLE, "key 7": "new"}, 3)
    assert tree.leaf(leaf("key 7", 3)) != tree_of(TABLE, 3).leaf(leaf("key 7", 3))


def test_a_deleted_row_leaves_no_trace() -> None:
    tree = tree_of({}, 2)
    tree.change(*change("a", None, "x"))
    tree.change(*change("a", "x", "y"))
    tree.change(*change("a", "y", None))
    assert tree == tree_of({}, 2)


def test_a_row_that_is_counted_twice_changes_the_root() -> None:
    tree = tree_of(TABLE, 2)
    before = tree.root
    for _ in range(2):
        tree.change(key_hash("a"), row("a", "x"))
    assert tree.root != before


def test_content_that_moves_to_another_key_changes_the_root() -> None:
    assert tree_of({"a": "x"}, 2).root != tree_of({"b": "x"}, 2).root


def test_a_stored_leaf_is_replaced_by_adding_the_new_and_subtracting_the_old_value() -> None:
    tree, wanted = tree_of(TABLE, 2), tree_of({}, 2)
    for number in range(nodes_at(2)):
        tree.change_leaf(number, wanted.leaf(number) - tree.leaf(number))
    assert tree == wanted


@settings(max_examples=30)
@given(tables, st.integers(1, 3), st.integers(0, 40))
def test_trees_of_disjoint_ranges_merge_into_the_tree_of_all_rows(table: Table, depth: int, middle: int) -> None:
    low = {key: content for key, content in table.items() if int(key) < middle}
    high = {key: content for key, content in table.items() if int(key) >= middle}
    merged = tree_of(low, depth)
    merged.merge(tree_of(high, depth))
    assert merged == tree_of(table, depth)


def test_leaves_of_disjoint_ranges_can_be_given_one_after_the_other() -> None:
    low, high = SetHash(1, 2, 3), SetHash(4, 5, 6)
    leaves = [(9, low.count, low.h1, low.h2), (9, high.count, high.h1, high.h2)]
    assert Tree.build(1, leaves).leaf(9) == low + high


@settings(max_examples=30)
@given(tables, st.integers(1, 3), st.integers(1, 3))
def test_a_shrunk_tree_is_the_tree_of_the_smaller_depth(table: Table, depth: int, smaller: int) -> None:
    if smaller <= depth:
        assert tree_of(table, depth).shrunk(smaller) == tree_of(table, smaller)


def test_a_copy_does_not_change_with_its_original() -> None:
    tree = tree_of(TABLE, 2)
    copied = tree.copy()
    tree.change(*change("a", None, "x"))
    assert copied == tree_of(TABLE, 2)


@pytest.mark.parametrize("stored", [(-1, 0, 0, 0), (256, 0, 0, 0), (0, 2**31, 0, 0), (0, -(2**31), 0, 0)])
def test_a_stored_leaf_that_cannot_be_is_an_error(stored: tuple[int, int, int, int]) -> None:
    with pytest.raises(InvalidLeaf):
        Tree.build(2, [stored])


def test_damaged_leaves_with_the_greatest_counts_do_not_overflow() -> None:
    greatest = 2**31 - 1
    tree = Tree.build(2, [(number, greatest, -(2**63), 2**63 - 1) for number in range(256)])
    assert tree.root == SetHash(256 * greatest, 0, 0)


def test_a_summary_has_position_scheme_depth_and_root() -> None:
    tree = positioned(TABLE, at(7), depth=3)
    summary = tree.summary
    assert (summary.position, summary.scheme, summary.depth, summary.root) == (at(7), tree.scheme, 3, tree.tree.root)

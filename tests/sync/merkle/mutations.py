"""Breaks each rule of `sync.merkle` on purpose: a test of the specification, and of the state machine.

A mutation replaces functions by broken ones while one test runs, which has to fail. ``caught_by`` names that test: a
function of a test module, or the state machine.
"""

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any
from unittest.mock import patch

from hypothesis import Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from regions.position import Position
from sync.merkle import descent, rewind, row_hash, rows, tree, wire
from sync.merkle.rewind import BatchPositions, RecentChanges, RowChange
from sync.merkle.rows import LeafDifference, LeafRows
from sync.merkle.set_hash import SetHash
from sync.merkle.shape import FANOUT_BITS, nodes_at
from sync.merkle.tree import Tree
from tests.sync.merkle import test_descent, test_rewind, test_row_hash, test_rows, test_set_hash, test_tree, test_wire
from tests.sync.merkle.machine import ViewAndLedger


@dataclass(frozen=True, slots=True, kw_only=True)
class Mutation:
    """A broken rule, which a test must detect.

    Attributes:
        name: What is broken, in words.
        broken: (owner, attribute, replacement) of each replaced function.
        caught_by: The tests that each must fail.
    """

    name: str
    broken: Sequence[tuple[Any, str, Any]]
    caught_by: Sequence[Callable[[], object]]


@contextmanager
def applied(mutation: Mutation) -> Generator[None]:
    with ExitStack() as stack:
        for owner, name, substitute in mutation.broken:
            stack.enter_context(patch.object(owner, name, substitute))
        yield


def state_machine() -> None:
    """Run the state machine until its first failure, with the same examples at each run."""
    run_state_machine_as_test(
        ViewAndLedger,
        settings=settings(
            max_examples=40,
            stateful_step_count=30,
            derandomize=True,
            database=None,
            phases=[Phase.generate],
            report_multiple_bugs=False,
            print_blob=False,
        ),
    )


# Originals, which the broken functions call.
_add, _record, _between = SetHash.__add__, RecentChanges.record, RecentChanges.between
_compare_rows, _compare, _differing = rows.compare_rows, descent.compare, descent._differing
_merge, _build = Tree.merge, Tree.build


def without_count(one: SetHash, other: SetHash) -> SetHash:
    return replace(_add(one, other), count=0)


def keeps_the_old_hash(new: SetHash, _old: SetHash) -> SetHash:
    return new


def hash_without_key(secret: bytes, _key: str, canonical: str) -> SetHash:
    return SetHash(1, *row_hash._hash(secret, b"\0" + canonical.encode()))


def hash_without_separator(secret: bytes, key: str, canonical: str) -> SetHash:
    return SetHash(1, *row_hash._hash(secret, (key + canonical).encode()))


def digest_of_the_xor_of_both_halves(one: SetHash) -> bytes:
    return ((one.h1 ^ one.h2 ^ one.count) & (2**64 - 1)).to_bytes(8, "big")


def digest_without_count(one: SetHash) -> bytes:
    return digest_of_the_xor_of_both_halves(replace(one, count=0))


def change_leaf_only(one: Tree, leaf: int, difference: SetHash) -> None:
    bottom = one.levels[-1]
    bottom.counts[leaf] += difference.count
    bottom.h1[leaf] ^= difference.h1
    bottom.h2[leaf] ^= difference.h2


def change_without_count(one: Tree, leaf: int, difference: SetHash) -> None:
    for level in reversed(one.levels):
        level.h1[leaf] ^= difference.h1
        level.h2[leaf] ^= difference.h2
        leaf >>= FANOUT_BITS


def leaf_of_trailing_bits(key_hash: int, depth: int) -> int:
    return key_hash & (nodes_at(depth) - 1)


def shares_the_levels(one: Tree) -> Tree:
    return Tree(one.levels)


def merge_without_counts(one: Tree, other: Tree) -> None:
    counts = [level.counts[:] for level in one.levels]
    _merge(one, other)
    for level, kept in zip(one.levels, counts, strict=True):
        level.counts = kept


def takes_nothing_back(_recent: RecentChanges, _after: Position, _up_to: Position) -> Iterator[RowChange]:
    return iter(())


def takes_one_too_many_back(recent: RecentChanges, after: Position, up_to: Position) -> Iterator[RowChange]:
    yield from _between(recent, after, up_to)
    older = ((key, change) for _, last, key, change in recent._newest_first() if last <= (after.epoch, after.lsn))
    yield from islice(older, 1)


def takes_one_too_few_back(recent: RecentChanges, after: Position, up_to: Position) -> Iterator[RowChange]:
    yield from list(_between(recent, after, up_to))[:-1]


def takes_a_part_of_a_batch_back(recent: RecentChanges, after: Position, up_to: Position) -> Iterator[RowChange]:
    low, high = (after.epoch, after.lsn), (up_to.epoch, up_to.lsn)
    return iter([(key, change) for _, last, key, change in recent._newest_first() if low < last <= high])


def orders_by_lsn_only(recent: RecentChanges, after: Position, up_to: Position) -> Iterator[RowChange]:
    for _, last, key, change in recent._newest_first():
        if after.lsn < last[1] <= up_to.lsn:
            yield key, change


def forgets_silently(recent: RecentChanges, batch: BatchPositions, key_hash: int, difference: SetHash) -> None:
    floor = recent.floor
    _append(recent, batch, key_hash, difference)
    recent.floor = floor


_append = RecentChanges._append


def records_changes_by_hand(recent: RecentChanges, changes: Iterable[RowChange], batch: BatchPositions | None) -> None:
    _record(recent, changes, batch or BatchPositions(first=recent.head, last=recent.head))


def rows_of_now(now: LeafRows, _recent: RecentChanges, **_positions: object) -> LeafRows:
    return now


def finds_the_first_difference(*arguments: Any) -> Iterator[int]:
    return islice(_differing(*arguments), 1)


def compares_without_a_bound(*arguments: Any, **_leaves_max: int) -> Any:
    return _compare(*arguments, leaves_max=10**9)


def never_finds_a_row(*_arguments: object) -> Iterator[LeafDifference]:
    return iter(())


def ignores_stale_rows(*arguments: Any) -> Iterator[LeafDifference]:
    return (replace(one, stale=()) for one in _compare_rows(*arguments) if one.missing or one.phantom)


def confuses_the_sides(*arguments: Any) -> Iterator[LeafDifference]:
    return (replace(one, missing=one.phantom, phantom=one.missing) for one in _compare_rows(*arguments))


def keeps_one_row_of_a_key_hash(found: Iterable[tuple[int, int, int]], request: Any) -> LeafRows:
    grouped: dict[int, dict[int, SetHash]] = {leaf: {} for leaf in request.leaves}
    for key_hash, h1, h2 in found:
        if (leaf := rows.leaf_of(key_hash, request.depth)) in grouped:
            grouped[leaf][key_hash] = SetHash(1, h1, h2)
    return grouped


def accepts(*_arguments: object) -> None:
    return None


MUTATIONS = [
    Mutation(
        name="a sum ignores the count",
        broken=[(SetHash, "__add__", without_count)],
        caught_by=[test_set_hash.test_a_row_that_occurs_twice_is_detected_by_the_count, state_machine],
    ),
    Mutation(
        name="an update does not remove the old hash",
        broken=[(SetHash, "__sub__", keeps_the_old_hash)],
        caught_by=[test_set_hash.test_an_update_adds_the_new_row_and_removes_the_old_one, state_machine],
    ),
    Mutation(
        name="the hash of a row does not contain its key",
        broken=[(row_hash, "hash_row", hash_without_key)],
        caught_by=[
            test_row_hash.test_the_same_content_under_two_keys_has_two_hashes,
            test_tree.test_content_that_moves_to_another_key_changes_the_root,
        ],
    ),
    Mutation(
        name="nothing separates key and content in the hash of a row",
        broken=[(row_hash, "hash_row", hash_without_separator)],
        caught_by=[test_row_hash.test_the_end_of_a_key_is_not_the_start_of_the_content],
    ),
    Mutation(
        name="the digest of a node is the XOR of its parts",
        broken=[(SetHash, "digest", property(digest_of_the_xor_of_both_halves))],
        caught_by=[test_set_hash.test_each_part_of_a_hash_changes_its_digest],
    ),
    Mutation(
        name="the digest of a node ignores the count",
        broken=[(SetHash, "digest", property(digest_without_count))],
        caught_by=[test_descent.test_a_row_that_occurs_twice_is_found],
    ),
    Mutation(
        name="a change reaches the leaf and no node above it",
        broken=[(Tree, "change_leaf", change_leaf_only)],
        caught_by=[test_tree.test_a_change_of_a_row_changes_its_leaf_and_each_node_above, state_machine],
    ),
    Mutation(
        name="a change does not change the count",
        broken=[(Tree, "change_leaf", change_without_count)],
        caught_by=[test_tree.test_a_row_that_is_counted_twice_changes_the_root, state_machine],
    ),
    Mutation(
        name="trailing bits of the key hash select the leaf",
        broken=[(one, "leaf_of", leaf_of_trailing_bits) for one in (tree, rows, rewind, wire)],
        caught_by=[test_tree.test_a_change_of_a_row_changes_its_leaf_and_each_node_above, state_machine],
    ),
    Mutation(
        name="merging does not add the counts",
        broken=[(Tree, "merge", merge_without_counts)],
        caught_by=[test_tree.test_trees_of_disjoint_ranges_merge_into_the_tree_of_all_rows],
    ),
    Mutation(
        name="a copy shares its levels with the original",
        broken=[(Tree, "copy", shares_the_levels)],
        caught_by=[test_rewind.test_rewinding_changes_neither_the_tree_nor_the_rows_of_now, state_machine],
    ),
    Mutation(
        name="nothing is rewound",
        broken=[(RecentChanges, "between", takes_nothing_back)],
        caught_by=[test_rewind.test_a_rewound_tree_is_the_tree_of_that_position, state_machine],
    ),
    Mutation(
        name="one change too many is rewound",
        broken=[(RecentChanges, "between", takes_one_too_many_back)],
        caught_by=[test_rewind.test_a_rewound_tree_is_the_tree_of_that_position, state_machine],
    ),
    Mutation(
        name="one change too few is rewound",
        broken=[(RecentChanges, "between", takes_one_too_few_back)],
        caught_by=[test_rewind.test_a_rewound_tree_is_the_tree_of_that_position, state_machine],
    ),
    Mutation(
        name="a batch with changes on both sides of the position is taken back as a whole",
        broken=[(RecentChanges, "between", takes_a_part_of_a_batch_back)],
        caught_by=[state_machine],
    ),
    Mutation(
        name="positions are ordered without the epoch",
        broken=[(RecentChanges, "between", orders_by_lsn_only)],
        caught_by=[test_rewind.test_positions_of_two_epochs_are_ordered_by_epoch_first, state_machine],
    ),
    Mutation(
        name="forgotten changes are not noticed",
        broken=[(RecentChanges, "_append", forgets_silently)],
        caught_by=[test_rewind.test_a_position_before_the_kept_changes_is_too_old, state_machine],
    ),
    Mutation(
        name="a change by hand is rewound",
        broken=[(RecentChanges, "record", records_changes_by_hand)],
        caught_by=[
            test_rewind.test_a_change_by_hand_is_never_taken_back,
            state_machine,
        ],
    ),
    Mutation(
        name="a position that the view has not reached is accepted",
        broken=[(rewind, "_check_reached", accepts)],
        caught_by=[test_rewind.test_a_position_above_that_of_the_tree_is_not_reached, state_machine],
    ),
    Mutation(
        name="rows are compared as they are now",
        broken=[(rewind, "rewind_rows", rows_of_now)],
        caught_by=[test_rewind.test_rewound_rows_are_the_rows_of_that_position, state_machine],
    ),
    Mutation(
        name="trees at different positions are compared",
        broken=[(descent, "_check_comparable", accepts)],
        caught_by=[
            test_descent.test_trees_at_two_positions_are_not_compared,
            test_descent.test_trees_with_two_schemes_are_not_compared,
        ],
    ),
    Mutation(
        name="the descent stops at the first difference",
        broken=[(descent, "_differing", finds_the_first_difference)],
        caught_by=[test_descent.test_the_descent_ends_with_exactly_the_leaves_that_differ, state_machine],
    ),
    Mutation(
        name="the descent does not end when too much differs",
        broken=[(descent, "compare", compares_without_a_bound)],
        caught_by=[test_descent.test_the_descent_ends_early_when_more_leaves_differ_than_wanted],
    ),
    Mutation(
        name="no row of a leaf differs",
        broken=[(rows, "compare_rows", never_finds_a_row)],
        caught_by=[test_rows.test_rows_are_missing_phantom_or_stale, state_machine],
    ),
    Mutation(
        name="stale rows are not reported",
        broken=[(rows, "compare_rows", ignores_stale_rows)],
        caught_by=[test_rows.test_rows_are_missing_phantom_or_stale, state_machine],
    ),
    Mutation(
        name="missing and phantom rows are confused",
        broken=[(rows, "compare_rows", confuses_the_sides)],
        caught_by=[test_rows.test_rows_are_missing_phantom_or_stale, state_machine],
    ),
    Mutation(
        name="of two rows with the same key hash one is compared",
        broken=[(rows, "group_rows", keeps_one_row_of_a_key_hash)],
        caught_by=[test_rows.test_rows_with_the_same_key_hash_are_compared_together],
    ),
    Mutation(
        name="a decoder accepts bytes after the message",
        broken=[(wire, "_check_end", accepts)],
        caught_by=[test_wire.test_a_message_with_a_byte_more_or_less_is_rejected],
    ),
]

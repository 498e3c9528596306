"""Compares the rows of the leaves that differ, by key hash, and names the rows to delete, insert or replace.

Decides which rows differ, and which leaves are not the sum of their rows. Does not read rows. Rows are compared as
pairs (key hash, digest of the row's hash), 16 bytes each, before any row is sent. Cassandra sends the whole leaf
instead.

Two rows of a leaf have the same key hash with probability 2^-64. Such rows are compared together and repaired together,
because a key hash stands for the set of rows that have it.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from regions.position import Position
from sync.merkle.set_hash import EMPTY, SetHash
from sync.merkle.shape import leaf_of, nodes_at
from sync.merkle.tree import Tree

LEAVES_PER_REQUEST_MAX: Final = 4_096
ROWS_PER_REQUEST: Final = 16_384
"""Rows that a request is expected to return: 256 KiB. One leaf that has more is requested alone."""

LeafRows = Mapping[int, Mapping[int, SetHash]]
"""Rows by leaf, then by key hash."""

LeafDigests = Mapping[int, Mapping[int, bytes]]
"""The digests of rows by leaf, then by key hash."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RowsRequest:
    """Asks for the row digests of some leaves.

    Attributes:
        position: Position of the comparison.
        depth: Depth of the tree that has these leaves.
        leaves: Numbers of leaves, ascending.
    """

    position: Position
    depth: int
    leaves: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class LeafDifference:
    """How a leaf of the view differs from the ledger, at the position of the comparison.

    A row may have changed since, on both sides. So a repair skips rows that the stream changed since, and takes the
    others from the ledger as they are at this position. It does not rely on the kind.

    Attributes:
        leaf: Number of the leaf.
        missing: Key hashes of rows that only the ledger has.
        phantom: Key hashes of rows that only the view has.
        stale: Key hashes of rows that differ, and of rows that were deleted by hand after the stream inserted them.
    """

    leaf: int
    missing: tuple[int, ...]
    phantom: tuple[int, ...]
    stale: tuple[int, ...]


def plan_requests(
    tree: Tree, leaves: Sequence[int], *, rows_of_other: int, position: Position
) -> Iterator[RowsRequest]:
    """Return requests for all ``leaves``, each for about `ROWS_PER_REQUEST` rows.

    Args:
        tree: The view's tree, at the depth of the comparison.
        leaves: Leaves that differ, ascending.
        rows_of_other: The number of rows of the ledger. Where the view has lost rows, its own count says little.
        position: Position of the comparison.
    """
    average = rows_of_other // nodes_at(tree.depth) + 1
    batch: list[int] = []
    expected = 0
    for leaf in leaves:
        rows = max(average, tree.leaf(leaf).count)
        if batch and (expected + rows > ROWS_PER_REQUEST or len(batch) == LEAVES_PER_REQUEST_MAX):
            yield RowsRequest(position=position, depth=tree.depth, leaves=tuple(batch))
            batch, expected = [], 0
        batch.append(leaf)
        expected += rows
    if batch:
        yield RowsRequest(position=position, depth=tree.depth, leaves=tuple(batch))


def group_rows(rows: Iterable[tuple[int, int, int]], request: RowsRequest) -> LeafRows:
    """Return rows by leaf and key hash; each leaf of the request is there, also without rows.

    Args:
        rows: Key hash, h1 and h2 of each row. Rows of other leaves are ignored.
        request: The request that these rows answer.
    """
    grouped: dict[int, dict[int, SetHash]] = {leaf: {} for leaf in request.leaves}
    for key_hash, h1, h2 in rows:
        group = grouped.get(leaf_of(key_hash, request.depth))
        if group is not None:
            group[key_hash] = group.get(key_hash, EMPTY) + SetHash(1, h1, h2)
    return grouped


def row_digests(rows: LeafRows) -> LeafDigests:
    """Return what the other side compares with its own rows."""
    return {leaf: {key_hash: one.digest for key_hash, one in group.items()} for leaf, group in rows.items()}


def compare_rows(view: LeafRows, ledger: LeafDigests) -> Iterator[LeafDifference]:
    """Compare the rows of leaves, and return the leaves that differ.

    Args:
        view: The view's rows of these leaves at that position.
        ledger: The ledger's rows of the same leaves at that position.
    """
    assert view.keys() == ledger.keys(), "rows of different leaves"
    for leaf, rows in view.items():
        expected = ledger[leaf]
        phantom = {key for key, one in rows.items() if key not in expected and one.count > 0}
        differing = {key for key, one in rows.items() if expected.get(key) != one.digest}
        found = LeafDifference(
            leaf=leaf,
            missing=tuple(sorted(expected.keys() - rows.keys())),
            phantom=tuple(sorted(phantom)),
            stale=tuple(sorted(differing - phantom)),
        )
        if found.missing or found.phantom or found.stale:
            yield found


def wrong_leaves(tree: Tree, rows: LeafRows) -> list[int]:
    """Return the leaves that are not the sum of their rows: something changed one without the other.

    Each side checks its own leaves that differ. A leaf that differs while its rows do not is wrong on one side.

    Args:
        tree: The tree of this side at the position of the comparison, at its depth.
        rows: All rows of some leaves of this side at that position.
    """
    return [leaf for leaf, group in rows.items() if sum(group.values(), EMPTY) != tree.leaf(leaf)]

"""Keeps the leaves of a table and the nodes above them, while rows change.

A node is the sum (`SetHash`) of its children. A sum can be kept incrementally: a change of a row changes one node of
each level, and no sibling is read. It loses nothing that a hash of the children would detect. A row can only be in the
leaf of its key, so equal content cannot move between two children unnoticed: the hash of a row contains its key.

Memory: 24 bytes a node; 1.7 MB for 65,536 leaves.
"""

from array import array
from collections.abc import Iterable
from dataclasses import dataclass
from operator import add
from typing import Final

from regions.position import Position
from sync.merkle.errors import InvalidLeaf
from sync.merkle.set_hash import SetHash
from sync.merkle.shape import DEPTH_MAX, DEPTH_MIN, FANOUT, FANOUT_BITS, leaf_of, nodes_at

_BIGINT_BYTES: Final = 8
_COUNT_MAX: Final = 2**31 - 1
"""A stored count is PostgreSQL's ``integer``. The sum of 16^6 such counts cannot overflow 64 bits."""


@dataclass(slots=True)
class Level:
    """The nodes of one level, as three columns of signed 64-bit integers."""

    counts: "array[int]"
    h1: "array[int]"
    h2: "array[int]"

    def copy(self) -> "Level":
        """Return a level that changes independently of this one."""
        return Level(self.counts[:], self.h1[:], self.h2[:])


@dataclass(slots=True)
class Tree:
    """A tree of one depth. Trees are equal if all their nodes are. Not safe for concurrent changes.

    Attributes:
        levels: The root, its children, and so on down to the leaves.
    """

    levels: list[Level]

    @classmethod
    def build(cls, depth: int, leaves: Iterable[tuple[int, int, int, int]]) -> "Tree":
        """Return the tree of stored or computed leaves.

        Args:
            depth: Depth of the tree.
            leaves: Number, count, h1 and h2 of each leaf. A leaf that is missing has no rows. A leaf that occurs
                several times has the sum, so the results of scans of disjoint ranges can be given one after the other.

        Raises:
            InvalidLeaf: A number is not below 16^depth, or a count does not fit in 32 bits.
        """
        assert DEPTH_MIN <= depth <= DEPTH_MAX, f"depth {depth}"
        bottom = _empty_level(nodes_at(depth))
        number_max = nodes_at(depth) - 1
        for number, count, h1, h2 in leaves:
            if not 0 <= number <= number_max or abs(count) > _COUNT_MAX:
                raise InvalidLeaf(f"leaf {number} with {count} rows in a tree of {number_max + 1} leaves")
            bottom.counts[number] += count
            bottom.h1[number] ^= h1
            bottom.h2[number] ^= h2
        levels = [bottom]
        for _ in range(depth):
            levels.insert(0, _parents(levels[0]))
        return cls(levels)

    @property
    def depth(self) -> int:
        """The level of the leaves."""
        return len(self.levels) - 1

    @property
    def root(self) -> SetHash:
        """The hash of all rows."""
        return self.node(0, 0)

    def node(self, level: int, number: int) -> SetHash:
        """Return one node; the leaves are at level `depth`."""
        nodes = self.levels[level]
        return SetHash(nodes.counts[number], nodes.h1[number], nodes.h2[number])

    def leaf(self, number: int) -> SetHash:
        """Return one leaf."""
        return self.node(self.depth, number)

    def digests(self, level: int, first: int, count: int) -> bytes:
        """Return the digests of ``count`` nodes of a level, one after the other."""
        return b"".join([self.node(level, number).digest for number in range(first, first + count)])

    def change(self, key_hash: int, difference: SetHash) -> None:
        """Add ``difference`` to the leaf of a row and to the nodes above it."""
        self.change_leaf(leaf_of(key_hash, self.depth), difference)

    def change_leaf(self, leaf: int, difference: SetHash) -> None:
        """Add ``difference`` to a leaf and to the nodes above it. To replace a leaf, add new minus old."""
        number = leaf
        for level in reversed(self.levels):
            level.counts[number] += difference.count
            level.h1[number] ^= difference.h1
            level.h2[number] ^= difference.h2
            number >>= FANOUT_BITS

    def merge(self, other: "Tree") -> None:
        """Add the rows of a tree of the same depth, which has none of the rows of this one."""
        assert other.depth == self.depth, f"a tree of depth {other.depth} into one of depth {self.depth}"
        for mine, its in zip(self.levels, other.levels, strict=True):
            mine.counts = array("q", map(add, mine.counts, its.counts))
            mine.h1 = _xor([mine.h1, its.h1])
            mine.h2 = _xor([mine.h2, its.h2])

    def copy(self) -> "Tree":
        """Return a tree that changes independently of this one."""
        return self.shrunk(self.depth)

    def shrunk(self, depth: int) -> "Tree":
        """Return the tree of the same rows with a smaller or equal depth."""
        assert DEPTH_MIN <= depth <= self.depth, f"from depth {self.depth} to {depth}"
        return Tree([level.copy() for level in self.levels[: depth + 1]])


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """What one side reports about its tree. Equal summaries mean equal rows.

    Attributes:
        position: As in `PositionedTree`.
        scheme: As in `PositionedTree`.
        depth: Level of the leaves.
        root: The hash of all rows.
    """

    position: Position
    scheme: int
    depth: int
    root: SetHash


@dataclass(frozen=True, slots=True, kw_only=True)
class PositionedTree:
    """A tree that has the effect of every change up to a position, and of no later one. It is not changed any more.

    Attributes:
        position: Position of the newest change in the tree. For a part of a large transaction it is that of the part.
        scheme: How rows are hashed (`row_hash.scheme_of`).
        tree: The tree at this position.
    """

    position: Position
    scheme: int
    tree: Tree

    @property
    def summary(self) -> Summary:
        """The summary of this tree."""
        return Summary(position=self.position, scheme=self.scheme, depth=self.tree.depth, root=self.tree.root)


def _empty_level(nodes: int) -> Level:
    zeros = array("q", bytes(_BIGINT_BYTES * nodes))
    return Level(zeros, zeros[:], zeros[:])


def _parents(children: Level) -> Level:
    """Return the level above, computed from whole columns: child 0 of every node, child 1 of every node, and so on."""
    columns = [children.counts[child::FANOUT] for child in range(FANOUT)]
    return Level(
        array("q", map(sum, zip(*columns, strict=True))),
        _xor([children.h1[child::FANOUT] for child in range(FANOUT)]),
        _xor([children.h2[child::FANOUT] for child in range(FANOUT)]),
    )


def _xor(columns: "list[array[int]]") -> "array[int]":
    """Return the XOR of columns of equal length, as one integer each: XOR has no carry between elements."""
    total = 0
    for column in columns:
        total ^= int.from_bytes(column.tobytes(), "little")
    return array("q", total.to_bytes(_BIGINT_BYTES * len(columns[0]), "little"))

"""Defines the shape of a tree: 16 children a node, 16 to 16^6 leaves, and the leaf of each row.

The leading bits of a row's key hash are the number of its leaf. So a leaf of a tree splits into 16 leaves of the next
deeper tree, and the level above the leaves is the tree that has 16 times fewer of them: a tree shrinks without reading
rows, and grows by reading them, at a scrub. Two trees of different depths can be compared at the smaller depth.

Key hashes are signed, as PostgreSQL's ``bigint``. The rows of a leaf are a range of them, so an index finds these rows.
"""

from typing import Final

FANOUT: Final = 16
FANOUT_BITS: Final = 4
DEPTH_MIN: Final = 1
DEPTH_MAX: Final = 6
"""16^6 leaves are enough for 268 million rows; the tree needs 430 MB then."""

ROWS_PER_LEAF_MAX: Final = 16
"""The average above which a tree grows. More rows a leaf mean more rows to compare for each one that differs: Cassandra
sends whole leaves, and its 2^15 leaves send 15 to 61 times what differs."""

KEY_HASH_BITS: Final = 64


def nodes_at(level: int) -> int:
    """Return the number of nodes at a level; the root is level 0."""
    return 1 << (FANOUT_BITS * level)


def leaf_of(key_hash: int, depth: int) -> int:
    """Return the number of the leaf that has the rows with this key hash. It is valid as SQL, too."""
    return (key_hash >> (KEY_HASH_BITS - FANOUT_BITS * depth)) & (nodes_at(depth) - 1)


def key_hashes_of(leaf: int, depth: int) -> tuple[int, int]:
    """Return the lowest and the highest key hash of a leaf."""
    width = 1 << (KEY_HASH_BITS - FANOUT_BITS * depth)
    signed = leaf - nodes_at(depth) if leaf >= nodes_at(depth) // 2 else leaf
    return signed * width, (signed + 1) * width - 1


def depth_for(rows: int) -> int:
    """Return the least depth at which a leaf has at most `ROWS_PER_LEAF_MAX` rows on average, within the bounds."""
    depth = DEPTH_MIN
    while depth < DEPTH_MAX and rows > ROWS_PER_LEAF_MAX * nodes_at(depth):
        depth += 1
    return depth


def depth_at_scrub(depth: int, rows: int) -> int:
    """Return the depth that a scrub gives to a tree of this depth whose table has ``rows`` rows.

    The tree shrinks only when a leaf has less than half a row on average, so that a table whose size varies around a
    bound does not change its depth at each scrub.
    """
    wanted = depth_for(rows)
    return wanted if wanted > depth or 2 * rows < nodes_at(depth) else depth

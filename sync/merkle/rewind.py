"""Returns a tree, or the rows of some leaves, as they were at an earlier position.

Both sides of a comparison change meanwhile. They are compared at one position that the ledger's side chooses, the
position of a snapshot. The view has applied later changes by then; this module takes them back, because XOR is its own
inverse. A grace period instead would report changes that are in flight, or hide recent damage.

A bounded ring keeps the recent changes. **Only changes of the stream are recorded. A change by hand has no position: it
is in the tree and is never taken back, so a comparison at any position detects it.** If the ring is too short, the
result is `PositionTooOld`, never an inexact tree.

Apply writes several transactions in one batch. If a batch has changes on both sides of a position, they cannot be
separated, because a row that changed twice has one difference (`PositionInsideBatch`). Apply therefore has to end a
batch at each position of a comparison.
"""

import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Final

from regions.position import Position
from sync.merkle.errors import PositionInsideBatch, PositionNotReached, PositionTooOld
from sync.merkle.rows import LeafRows
from sync.merkle.set_hash import EMPTY, SetHash
from sync.merkle.shape import leaf_of
from sync.merkle.tree import PositionedTree

RECENT_CHANGES_MAX: Final = 131_072
"""8 MiB; a minute of 2,000 changed rows/s. A comparison goes back by the seconds that the ledger's side needs."""

_ENTRY: Final = struct.Struct(">qQqQqqqq")

RowChange = tuple[int, SetHash]
"""Key hash of a row, and the row's hash after the change minus the one before."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchPositions:
    """The positions of a batch of apply.

    Attributes:
        first: Position of its first transaction that changed a row of the tree.
        last: Position of its last transaction.
    """

    first: Position
    last: Position

    def __post_init__(self) -> None:
        assert self.first <= self.last, f"a batch from {self.first} to {self.last}"


class RecentChanges:
    """The newest changes of a view, in the order in which they were applied.

    Attributes:
        head: Every change up to this position was recorded.
        floor: Every change after this position is still here.
    """

    def __init__(self, start: Position, *, changes_max: int = RECENT_CHANGES_MAX) -> None:
        """Begin at the position of the view. After a snapshot was applied, begin again."""
        assert changes_max > 0, "no room for a change"
        self.head = start
        self.floor = start
        self._changes_max = changes_max
        self._ring = bytearray(_ENTRY.size * changes_max)
        self._recorded = 0

    def record(self, changes: Iterable[RowChange], batch: BatchPositions | None) -> None:
        """Record changes that were committed.

        Args:
            changes: The changed rows. A row that changed several times is one change, or several.
            batch: The positions of the batch, which are not below `head`. None for changes by hand.
        """
        if batch is None:
            return
        assert self.head <= batch.first, f"a batch from {batch.first} after {self.head}"
        self.head = batch.last
        for key_hash, difference in changes:
            self._append(batch, key_hash, difference)

    def advance(self, position: Position) -> None:
        """Record that no other row changed up to ``position``."""
        self.head = max(self.head, position)

    def between(self, after: Position, up_to: Position) -> Iterator[RowChange]:
        """Return the changes after one position, up to and including another, newest first.

        Raises:
            PositionTooOld: Changes after ``after`` were forgotten.
            PositionNotReached: Changes up to ``up_to`` were not recorded.
            PositionInsideBatch: A batch has changes on both sides of one of the positions.
        """
        if after < self.floor:
            raise PositionTooOld(f"the changes after {self.floor} are kept; those after {after} are not")
        if up_to > self.head:
            raise PositionNotReached(f"changes are recorded up to {self.head}, not to {up_to}")
        low, high = (after.epoch, after.lsn), (up_to.epoch, up_to.lsn)
        for first, last, key_hash, difference in self._newest_first():
            if last <= low:
                return
            if first <= low or first <= high < last:
                raise PositionInsideBatch(f"a batch from {Position(*first)} to {Position(*last)}")
            if last <= high:
                yield key_hash, difference

    def _append(self, batch: BatchPositions, key_hash: int, difference: SetHash) -> None:
        first, last = batch.first, batch.last
        offset = _ENTRY.size * (self._recorded % self._changes_max)
        if self._recorded >= self._changes_max:
            _, _, epoch, lsn, *_ = _ENTRY.unpack_from(self._ring, offset)
            self.floor = Position(epoch, lsn)
        _ENTRY.pack_into(
            self._ring, offset, first.epoch, first.lsn, last.epoch, last.lsn,
            key_hash, difference.count, difference.h1, difference.h2,
        )  # fmt: skip
        self._recorded += 1

    def _newest_first(self) -> Iterator[tuple[tuple[int, int], tuple[int, int], int, SetHash]]:
        """Return the first and the last position of the batch of each change as (epoch, LSN), and the change."""
        kept = min(self._recorded, self._changes_max)
        for index in range(self._recorded - 1, self._recorded - kept - 1, -1):
            entry = _ENTRY.unpack_from(self._ring, _ENTRY.size * (index % self._changes_max))
            yield entry[:2], entry[2:4], entry[4], SetHash(*entry[5:])


def rewind_tree(now: PositionedTree, recent: RecentChanges, to: Position) -> PositionedTree:
    """Return the tree at an earlier position, with every change by hand that it has now.

    Raises:
        PositionNotReached: ``to`` is above the position of the tree, or changes were not recorded.
        PositionTooOld: Changes since ``to`` were forgotten.
        PositionInsideBatch: A batch has changes on both sides of a position.
    """
    _check_reached(now.position, to)
    tree = now.tree.copy()
    for key_hash, difference in recent.between(to, now.position):
        tree.change(key_hash, EMPTY - difference)
    return replace(now, position=to, tree=tree)


def rewind_rows(now: LeafRows, recent: RecentChanges, *, depth: int, position: Position, to: Position) -> LeafRows:
    """Return the rows of some leaves at an earlier position, with every change by hand that they have now.

    Args:
        now: The rows of these leaves, as read at ``position``.
        recent: The changes of the view.
        depth: Depth of the tree that has these leaves.
        position: The view's position when the rows were read.
        to: The position of the comparison.

    Raises:
        PositionNotReached: ``to`` is above ``position``, or changes were not recorded.
        PositionTooOld: Changes since ``to`` were forgotten.
        PositionInsideBatch: A batch has changes on both sides of a position.
    """
    _check_reached(position, to)
    rewound = {leaf: dict(rows) for leaf, rows in now.items()}
    for key_hash, difference in recent.between(to, position):
        rows = rewound.get(leaf_of(key_hash, depth))
        if rows is None:
            continue
        before = rows.pop(key_hash, EMPTY) - difference
        if before != EMPTY:
            rows[key_hash] = before
    return rewound


def _check_reached(position: Position, to: Position) -> None:
    if to > position:
        raise PositionNotReached(f"the view is at {position}, not at {to}")

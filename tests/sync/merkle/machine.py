"""A state machine of a ledger, its change stream, and a view that is damaged, compared and repaired.

The model keeps each side's rows as a dictionary, at every position. What the package keeps incrementally is compared
with what the model computes from rows.
"""

from dataclasses import dataclass, field, replace

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from regions.position import Position
from sync.merkle import rewind
from sync.merkle.descent import Different, Same
from sync.merkle.errors import PositionInsideBatch, PositionNotReached, PositionTooOld
from sync.merkle.rewind import BatchPositions, RecentChanges
from sync.merkle.rows import LeafDifference
from sync.merkle.set_hash import SetHash
from sync.merkle.tree import PositionedTree, Tree
from tests.sync.merkle.tables import (
    SCHEME,
    Table,
    at,
    change,
    compare,
    exchange_rows,
    key_hash,
    key_hashes,
    leaf,
    positioned,
    read_rows,
    requests_for,
    row,
    tree_of,
)

_MANY = [f"key {number}" for number in range(1_000)]
KEYS = [*[key for key in _MANY if leaf(key, 2) == leaf("key 0", 2)][:3], "key 1", "key 2"]
"""Three of them share a leaf, whatever the depth."""
CHANGES_MAX = 6

keys = st.sampled_from(KEYS)
contents = st.sampled_from(["x", "y", "z"])
depths = st.integers(1, 2)
Writes = dict[str, str | None]
"""Wanted content by key; None deletes the row."""
ChangeByHand = tuple[str, str | None, str | None, int]
"""Key, content before, content after, and the number of batches that were applied before it."""

writes = st.dictionaries(keys, contents | contents | st.none(), min_size=1, max_size=3)


@dataclass(frozen=True)
class Applied:
    """A batch that the view has applied: its positions, the changed rows, and the view's rows after it."""

    first: Position
    last: Position
    changed: tuple[str, ...]
    after: Table


@dataclass
class Model:
    """What happened, as rows.

    Attributes:
        ledger: The ledger's rows after each of its transactions.
        pending: Transactions that the view has not applied: position, and wanted content by key.
        applied: Batches of the view, oldest first; the first one is its start.
        by_hand: Changes by hand, oldest first.
    """

    ledger: list[tuple[Position, Table]] = field(default_factory=lambda: [(at(10), {})])
    pending: list[tuple[Position, Writes]] = field(default_factory=list[tuple[Position, Writes]])
    applied: list[Applied] = field(default_factory=lambda: [Applied(at(10), at(10), (), {})])
    by_hand: list[ChangeByHand] = field(default_factory=list[ChangeByHand])

    def ledger_at(self, position: Position) -> Table:
        return [table for reached, table in self.ledger if reached <= position][-1]

    def batches_until(self, position: Position) -> int:
        """The number of batches whose changes the view has at this position."""
        return sum(one.last <= position for one in self.applied)

    def view_tree_at(self, position: Position, depth: int) -> Tree:
        """The tree of the view's rows then, and of every change by hand since."""
        batches = self.batches_until(position)
        tree = tree_of(self.applied[batches - 1].after, depth)
        for key, before, after, number in self.by_hand:
            if number >= batches:
                tree.change(key_hash(key), row(key, after) - row(key, before))
        return tree

    def changed_after(self, position: Position) -> set[str]:
        """The keys that the stream has changed since."""
        return {key for one in self.applied[self.batches_until(position) :] for key in one.changed}

    def is_inside_batch(self, position: Position) -> bool:
        return any(one.changed and one.first <= position < one.last for one in self.applied)


class ViewAndLedger(RuleBasedStateMachine):
    """The rules: what happens to both sides, and comparisons at each position. Each run ends with a comparison."""

    def __init__(self) -> None:
        super().__init__()
        self.model = Model()
        self.view: dict[str, str] = {}
        self.recent = RecentChanges(at(10), changes_max=CHANGES_MAX)
        self.tree = tree_of({}, 2)
        self.kept: list[tuple[Position, Position]] = []
        """First and last position of each recorded change of a row."""

    @initialize(depth=depths)
    def choose_the_depth_of_the_view(self, depth: int) -> None:
        self.tree = tree_of({}, depth)

    @property
    def head(self) -> Position:
        return self.model.applied[-1].last

    @property
    def floor(self) -> Position:
        """The least position that the ring can go back to."""
        return self.kept[-CHANGES_MAX - 1][1] if len(self.kept) > CHANGES_MAX else at(10)

    @rule(transactions=st.lists(writes, min_size=1, max_size=4), new_epoch=st.sampled_from([False, False, True]))
    def the_ledger_commits(self, transactions: list[Writes], new_epoch: bool) -> None:
        for wanted in transactions:
            position, table = self.model.ledger[-1]
            committed = Position(position.epoch + 1, 10) if new_epoch else replace(position, lsn=position.lsn + 10)
            rows = {**table, **wanted}
            self.model.ledger.append((committed, {key: one for key, one in rows.items() if one is not None}))
            self.model.pending.append((committed, wanted))
            new_epoch = False

    @precondition(lambda self: self.model.pending)
    @rule(sizes=st.lists(st.sampled_from([1, 1, 2, 3]), min_size=1, max_size=4))
    def the_view_applies_batches(self, sizes: list[int]) -> None:
        for size in sizes:
            if self.model.pending:
                self.apply_batch(size)

    def apply_batch(self, size: int) -> None:
        batch, self.model.pending = self.model.pending[:size], self.model.pending[size:]
        wanted = {key: content for _, one in batch for key, content in one.items()}
        changed = [key for key, content in wanted.items() if self.view.get(key) != content]
        changes = [self.write(key, wanted[key]) for key in changed]
        first, last = batch[0][0], batch[-1][0]
        self.recent.record(changes, BatchPositions(first=first, last=last))
        self.kept += [(first, last) for _ in changes]
        self.model.applied.append(Applied(first, last, tuple(changed), dict(self.view)))

    @rule(key=keys, content=st.none() | contents)
    def a_row_is_changed_by_hand(self, key: str, content: str | None) -> None:
        self.change_by_hand(key, content)

    def change_by_hand(self, key: str, content: str | None) -> None:
        before = self.view.get(key)
        self.recent.record([self.write(key, content)], None)
        self.model.by_hand.append((key, before, content, len(self.model.applied)))

    @rule(depth=depths)
    def a_scrub_changes_the_depth(self, depth: int) -> None:
        self.tree = self.tree.shrunk(depth) if depth <= self.tree.depth else tree_of(self.view, depth)

    @rule(depth=depths)
    def both_sides_are_compared_at_each_position(self, depth: int) -> None:
        self.check_each_position(depth)

    def check_each_position(self, depth: int) -> None:
        known = {one.last for one in self.model.applied} | {reached for reached, _ in self.model.ledger}
        for position in known | {replace(one, lsn=one.lsn + 3) for one in known}:
            if position > self.head:
                with pytest.raises(PositionNotReached):
                    self.rewound(position)
            elif position < self.floor:
                with pytest.raises(PositionTooOld):
                    self.rewound(position)
            elif self.model.is_inside_batch(position):
                with pytest.raises(PositionInsideBatch):
                    self.rewound(position)
            else:
                self.check_comparison(position, depth)

    @rule(depth=depths)
    def a_repair_makes_both_sides_equal(self, depth: int) -> None:
        self.repair(depth)

    def repair(self, depth: int) -> None:
        ledger = self.model.ledger_at(self.head)
        for found in self.differences(self.head, depth):
            for key in KEYS:
                if key_hash(key) in (*found.missing, *found.phantom, *found.stale):
                    self.change_by_hand(key, ledger.get(key))
        assert self.view == ledger
        assert compare(self.now, positioned(ledger, self.head, depth)) == Same(rows=len(ledger))

    def teardown(self) -> None:
        """Let the view catch up by single transactions, compare at each position, and repair."""
        while self.model.pending:
            self.apply_batch(1)
        self.check_each_position(2)
        self.repair(2)

    @invariant()
    def the_tree_is_that_of_the_rows(self) -> None:
        assert self.tree == tree_of(self.view, self.tree.depth)

    @property
    def now(self) -> PositionedTree:
        return PositionedTree(position=self.head, scheme=SCHEME, tree=self.tree)

    def write(self, key: str, content: str | None) -> tuple[int, SetHash]:
        made = change(key, self.view.get(key), content)
        self.view = {one: old for one, old in {**self.view, key: content}.items() if old is not None}
        self.tree.change(*made)
        return made

    def rewound(self, position: Position) -> PositionedTree:
        return rewind.rewind_tree(self.now, self.recent, position)

    def check_comparison(self, position: Position, depth: int) -> None:
        view, ledger = self.rewound(position), self.model.ledger_at(position)
        assert view.tree == self.model.view_tree_at(position, self.tree.depth)
        smaller = min(depth, self.tree.depth)
        mine, its = view.tree.shrunk(smaller), tree_of(ledger, smaller)
        numbers = sorted({leaf(key, smaller) for key in KEYS})
        differing = tuple(number for number in numbers if mine.leaf(number) != its.leaf(number))
        outcome = compare(view, positioned(ledger, position, depth))
        match outcome:
            case Different():
                assert outcome.leaves == differing
            case _:
                assert (outcome, differing) == (Same(rows=len(ledger)), ())
        self.check_differences(position, self.differences(position, depth))

    def differences(self, position: Position, depth: int) -> list[LeafDifference]:
        """Compare trees, then rows, at a position."""
        ledger = self.model.ledger_at(position)
        outcome = compare(self.rewound(position), positioned(ledger, position, depth))
        if not isinstance(outcome, Different):
            return []
        found: list[LeafDifference] = []
        for request in requests_for(outcome, len(ledger), position):
            own = read_rows(self.view, request)
            own = rewind.rewind_rows(own, self.recent, depth=request.depth, position=self.head, to=position)
            found += exchange_rows(own, read_rows(ledger, request), request)
        return found

    def check_differences(self, position: Position, found: list[LeafDifference]) -> None:
        """Check each row whose content at the position is known: not both changed by the stream since and by hand."""
        batches = self.model.batches_until(position)
        by_hand = {key: after for key, _, after, number in self.model.by_hand if number >= batches}
        unclear = by_hand.keys() & self.model.changed_after(position)
        then = {**self.model.applied[batches - 1].after, **by_hand}
        ledger = self.model.ledger_at(position)
        clear = [key for key in KEYS if key not in unclear]
        of_clear = {key_hash(key) for key in clear}
        kinds = {kind: [key for one in found for key in getattr(one, kind)] for kind in ("missing", "phantom", "stale")}
        reported = {kind: tuple(sorted(key for key in some if key in of_clear)) for kind, some in kinds.items()}
        differing = [key for key in clear if then.get(key) != ledger.get(key)]
        assert reported == {
            "missing": key_hashes(key for key in differing if then.get(key) is None),
            "phantom": key_hashes(key for key in differing if ledger.get(key) is None),
            "stale": key_hashes(key for key in differing if then.get(key) is not None and ledger.get(key) is not None),
        }

"""Keeps the Merkle tree of a view: its leaves and changes are tables of the view, and this process has them in memory.

Decides when the leaves are computed from the rows, how the tree in memory follows, and what a scrub corrects. Does not
compare and does not repair. **The tree of a snapshot of the view is the sum of `merkle_leaves` and `merkle_changes` in
this snapshot. Triggers write the changes in the transaction that changes rows (`view_triggers`). A change of apply has
the positions of its batch, so it can be taken back; a change by hand has none.**

Changes are read by transaction id: ids of a sequence can become visible in another order than they were drawn. All
transactions below the oldest one that still ran at the previous reading are known.
"""

import logging
from collections.abc import Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Final

from regions.identity import CellId
from regions.position import ZERO, Position
from sync.canonical import SEPARATOR, description
from sync.change import SyncError
from sync.merkle.rewind import BatchPositions, RecentChanges
from sync.merkle.row_hash import hash_key, scheme_of
from sync.merkle.set_hash import EMPTY, SetHash
from sync.merkle.shape import depth_at_scrub, depth_for, key_hashes_of, leaf_of, nodes_at
from sync.merkle.tree import PositionedTree, Tree
from sync.registry import Registry
from sync.statements import load_sql
from sync.view_triggers import (
    count_rows,
    create_index,
    drop_index,
    functions_and_triggers,
    hashed_rows,
    index_name,
    insert_leaves,
    leaf_sums,
)

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from asyncpg import Record

    from sync.checkpoint import ViewConnection

CHANGES_MAX: Final = 20_000
"""Changes that stay in the table before they are added to the leaves. A start of the process reads them all."""

_BOUNDS: Final = ", unnest($1::bigint[], $2::bigint[]) AS b (low, high)"

_log = logging.getLogger(__name__)


class TreeNotReady(SyncError):
    """The leaves have not been computed from the rows yet."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ViewRow:
    """A row of the view, by its hashes.

    Attributes:
        table: Name of its table.
        key: The columns of its key, in text format.
        key_hash: Hash of its key text.
        h1: First half of the hash of the row.
        h2: Second half.
    """

    table: str
    key: tuple[str, ...]
    key_hash: int
    h1: int
    h2: int


class ViewTree:
    """The Merkle tree of one view.

    Attributes:
        recent: The recent changes of the stream, for comparisons at an earlier position.
        scheme: How rows are hashed.
    """

    def __init__(self, *, cell: CellId, tables: Registry, secret: bytes) -> None:
        """Prepare; `prepare` installs the triggers and computes the leaves if they are missing."""
        self._cell: CellId = cell
        self._tables = tables
        self._secret = secret
        self.scheme = scheme_of(secret, description(tables))
        self.recent = RecentChanges(ZERO)
        self._tree: Tree | None = None
        self._checkpoint = ZERO
        self._known: set[int] = set()
        self._read_now: dict[int, int] = {}
        self._horizon = "0"
        self._unfolded = 0

    @property
    def rows(self) -> int:
        """Number of rows that the tree has; 0 before it is read."""
        return 0 if self._tree is None else self._tree.root.count

    async def prepare(self, connection: "ViewConnection") -> None:
        """Install the triggers and compute the leaves, unless the view has a complete tree of this scheme.

        Args:
            connection: A connection of its own, as the owner of the tables, outside of a transaction.
        """
        state = await self._state(connection)
        if state["scheme"] == self.scheme and state["complete"]:
            return
        if state["scheme"] != self.scheme:
            async with connection.transaction():
                await connection.execute(functions_and_triggers(self._tables, self._secret))
                await connection.execute(load_sql("view_tree_state"), self.scheme, 1, False)
            for table in self._tables:
                await connection.execute(drop_index(table))
        for table in self._tables:
            if not await connection.fetchval(load_sql("index_is_valid"), index_name(table)):
                await connection.execute(drop_index(table))
                await connection.execute(create_index(table))
        await self._compute_leaves(connection, None)

    async def read(self, connection: "ViewConnection") -> PositionedTree:
        """Return the tree at the checkpoint, with all changes that are committed.

        Call it while apply is idle if the tree must be exactly that of the checkpoint.

        Raises:
            TreeNotReady: Call `prepare`.
        """
        async with _snapshot(connection):
            state = await self._state(connection)
            if not state["complete"] or state["scheme"] != self.scheme:
                self._tree = None
                raise TreeNotReady("the leaves of the view's tree are not computed yet")
            position = ZERO if state["epoch"] is None else Position(state["epoch"], state["lsn"])
            tree = self._tree
            if tree is None or tree.depth != state["depth"] or position < self._checkpoint:
                tree = await self._load(connection, state["depth"], position)
            else:
                await self._follow(connection, tree)
        self._checkpoint = position
        self.recent.advance(position)
        self._forget_known(state["xmin"])
        return PositionedTree(position=self.recent.head, scheme=self.scheme, tree=tree)

    async def rows_of(self, connection: "ViewConnection", leaves: Sequence[int], depth: int) -> list[ViewRow]:
        """Return all rows of some leaves of a tree of this depth."""
        bounds = [key_hashes_of(leaf, depth) for leaf in leaves]
        query = hashed_rows(self._tables, source=_BOUNDS, condition="{hash} BETWEEN b.low AND b.high")
        found = await connection.fetch(query, [low for low, _ in bounds], [high for _, high in bounds])
        return [_row(one) for one in found]

    async def fold(self, connection: "ViewConnection") -> int:
        """Add known changes to the leaves, if there are many; return their number. The sum stays the same.

        Only this process folds, on the connection that has the apply lock.
        """
        if self._unfolded <= CHANGES_MAX or self._tree is None:
            return 0
        folded = self._unfolded
        async with connection.transaction():
            await connection.execute(load_sql("view_tree_fold"), self._horizon, self._tree.depth)
        self._unfolded = len(self._known)
        return folded

    def key_hash(self, table: str, image: Mapping[str, str | None]) -> int:
        """Return the key hash of a row, given its columns in text format."""
        return hash_key(self._secret, SEPARATOR.join([table, *(str(image[name]) for name in self._tables[table].key)]))

    async def scrub(self, connection: "ViewConnection") -> list[int]:
        """Compute the leaves from the rows and correct those that are wrong; return their numbers.

        A correction is a change by hand, so the next comparison has it. Afterwards the tree grows with its tables.

        Args:
            connection: A connection of its own, as the owner of the tables, outside of a transaction.
        """
        async with connection.transaction(isolation="repeatable_read"):
            depth = await self._depth(connection)
            computed = _leaves_of(await connection.fetch(leaf_sums(self._tables, depth)))
            wrong = await self._correct(connection, depth, computed, range(nodes_at(depth)))
        rows = sum(leaf.count for leaf in computed.values())
        if depth_at_scrub(depth, rows) != depth:
            await self._compute_leaves(connection, depth_at_scrub(depth, rows))
        return wrong

    async def correct(self, connection: "ViewConnection", leaves: Sequence[int], depth: int) -> list[int]:
        """Compute some leaves of a tree of a smaller or equal depth again, as `scrub` does for all."""
        async with connection.transaction(isolation="repeatable_read"):
            own = await self._depth(connection)
            width = nodes_at(own - depth)
            numbers = [number for leaf in leaves for number in range(leaf * width, (leaf + 1) * width)]
            computed = dict.fromkeys(numbers, EMPTY)
            for row in await self.rows_of(connection, numbers, own):
                computed[leaf_of(row.key_hash, own)] += SetHash(1, row.h1, row.h2)
            return await self._correct(connection, own, computed, numbers)

    async def _depth(self, connection: "ViewConnection") -> int:
        state = await self._state(connection)
        if not state["complete"] or state["scheme"] != self.scheme:
            raise TreeNotReady("the leaves of the view's tree are not computed yet")
        return int(state["depth"])

    async def _correct(
        self, connection: "ViewConnection", depth: int, computed: Mapping[int, SetHash], leaves: Iterable[int]
    ) -> list[int]:
        """Write the difference between computed leaves and those of the tables, in the transaction's snapshot."""
        kept = Tree.build(depth, await self._leaves(connection))
        for change in await connection.fetch(load_sql("view_tree_changes"), "0"):
            kept.change(change["key_hash"], _difference(change))
        wrong = {leaf: computed.get(leaf, EMPTY) - kept.leaf(leaf) for leaf in leaves}
        wrong = {leaf: difference for leaf, difference in wrong.items() if difference != EMPTY}
        if wrong:
            await connection.execute(
                load_sql("view_tree_correct"),
                [key_hashes_of(leaf, depth)[0] for leaf in wrong],
                [difference.count for difference in wrong.values()],
                [difference.h1 for difference in wrong.values()],
                [difference.h2 for difference in wrong.values()],
            )
        return list(wrong)

    async def _load(self, connection: "ViewConnection", depth: int, position: Position) -> Tree:
        tree = self._tree = Tree.build(depth, await self._leaves(connection))
        self.recent = RecentChanges(position)
        self._known, self._horizon, self._unfolded = set(), "0", 0
        for change in await self._new_changes(connection):
            tree.change(change["key_hash"], _difference(change))
        return tree

    async def _follow(self, connection: "ViewConnection", tree: Tree) -> None:
        for batch, group in groupby(await self._new_changes(connection), key=lambda change: change["batch"]):
            changes = [(change["key_hash"], _difference(change)) for change in group]
            for key_hash, difference in changes:
                tree.change(key_hash, difference)
            positions = None
            if batch is not None:
                positions = BatchPositions(first=Position(batch[0], batch[1]), last=Position(batch[2], batch[3]))
                if positions.first < self.recent.head:
                    self.recent = RecentChanges(positions.first)
            self.recent.record(changes, positions)

    async def _new_changes(self, connection: "ViewConnection") -> "list[Record]":
        found = await connection.fetch(load_sql("view_tree_changes"), self._horizon)
        new = [change for change in found if change["id"] not in self._known]
        self._read_now = {change["id"]: change["xid"] for change in found}
        self._known.update(self._read_now)
        self._unfolded += len(new)
        return new

    def _forget_known(self, xmin: str) -> None:
        """Forget the changes of transactions below the new horizon: no reading returns them again."""
        self._horizon = xmin
        self._known = {one for one, xid in self._read_now.items() if xid >= int(xmin)}

    async def _leaves(self, connection: "ViewConnection") -> list[tuple[int, int, int, int]]:
        found = await connection.fetch(load_sql("view_tree_leaves"))
        return [(one["leaf"], one["count"], one["h1"], one["h2"]) for one in found]

    async def _state(self, connection: "ViewConnection") -> "Record":
        state = await connection.fetchrow(load_sql("view_tree_position"), self._cell)
        assert state is not None, "the statement returns one row"
        return state

    async def _compute_leaves(self, connection: "ViewConnection", depth: int | None) -> None:
        """Replace leaves and changes by the sums of the rows, in one snapshot: later changes stay in the table."""
        async with connection.transaction(isolation="repeatable_read"):
            await connection.execute("DELETE FROM merkle_changes")
            await connection.execute("DELETE FROM merkle_leaves")
            if depth is None:
                depth = depth_for(await connection.fetchval(count_rows(self._tables)))
            await connection.execute(insert_leaves(self._tables, depth))
            await connection.execute(load_sql("view_tree_state"), self.scheme, depth, True)
        self._tree = None
        _log.info("the leaves of the view's tree were computed from the rows", extra={"depth": depth})


def _row(found: "Record") -> ViewRow:
    return ViewRow(
        table=found["name"], key=tuple(found["key"]), key_hash=found["key_hash"], h1=found["h1"], h2=found["h2"]
    )


def _leaves_of(found: "list[Record]") -> dict[int, SetHash]:
    return {one["leaf"]: SetHash(one["count"], one["h1"], one["h2"]) for one in found}


def _difference(change: "Record") -> SetHash:
    return SetHash(change["count"], change["h1"], change["h2"])


@asynccontextmanager
async def _snapshot(connection: "ViewConnection") -> "AsyncGenerator[None]":
    """One snapshot for several statements; inside of a transaction of the caller, that transaction."""
    if connection.is_in_transaction():
        yield
        return
    async with connection.transaction(isolation="repeatable_read", readonly=True):
        yield

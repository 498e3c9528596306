"""Keeps the Merkle tree of the ledger in memory: the key and the hash of each row, by leaf.

Decides which rows are read again before a comparison: those that the change stream has marked since. **A hash comes
from a row of the ledger, never from the stream, because the stream is what a comparison checks. A mark stays until the
row was read in a snapshot at or after the position of the mark.** A scrub reads all rows again, without the marks.

Memory: about 45 bytes a row and 24 bytes a node. The tree of a comparison is a copy, so marks do not change it.
"""

import asyncio
import logging
import struct
import uuid
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final, cast

import psycopg

from regions.identity import Epoch
from regions.position import ZERO, Position, parse_lsn
from sync.canonical import SEPARATOR, description
from sync.change import Change
from sync.ledger_rows import LedgerRows, Row
from sync.merkle.errors import NotComparable
from sync.merkle.row_hash import scheme_of
from sync.merkle.rows import LeafRows
from sync.merkle.set_hash import EMPTY, SetHash
from sync.merkle.shape import depth_at_scrub, depth_for, leaf_of, nodes_at
from sync.merkle.tree import PositionedTree, Tree
from sync.registry import Registry, Table
from sync.statements import load_sql

MARKS_MAX: Final = 100_000
"""More marks than this cost more than reading all rows again; the rows are forgotten then."""

KEYS_PER_QUERY: Final = 2_000
FETCH_ROWS: Final = 5_000

_ENTRY: Final = struct.Struct(">qqqBH")

_log = logging.getLogger(__name__)

Key = tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerRow:
    """A row of the ledger, by its hashes.

    Attributes:
        table: Name of its table.
        key: The columns of its key, in text format.
        hash: The hash of the row.
    """

    table: str
    key: Key
    hash: SetHash


@dataclass(slots=True)
class LedgerTreeCounts:
    """The work of the tree since the start of the process, for metrics."""

    builds: int = 0
    rows_read: int = 0
    wrong_rows: int = 0


@dataclass(slots=True)
class _Store:
    """Rows by leaf, packed, and the tree of their hashes."""

    tree: Tree
    leaves: list[bytes] = field(default_factory=list[bytes])


class LedgerTree:
    """The Merkle tree of a ledger.

    Attributes:
        scheme: How rows are hashed.
        counts: For metrics.
    """

    def __init__(self, *, tables: Registry, secret: bytes) -> None:
        """Prepare an empty cache."""
        self.scheme = scheme_of(secret, description(tables))
        self.counts = LedgerTreeCounts()
        self._tables = tables
        self._names = [table.name for table in tables]
        self._uuids = [_is_uuid(table) for table in tables]
        self._rows = LedgerRows(tables, secret)
        self._marks: dict[tuple[str, Key], Position] = {}
        self._store: _Store | None = None
        self._identity: object = None
        self._start = ZERO
        self._marked = ZERO
        self._reading = asyncio.Lock()

    @property
    def marks(self) -> int:
        """Number of rows that are read again before the next comparison."""
        return len(self._marks)

    @property
    def rows(self) -> int:
        """Number of rows in memory; 0 if they were not read yet."""
        return 0 if self._store is None else self._store.tree.root.count

    def mark(self, changes: Iterable[Change], position: Position) -> None:
        """Note that rows changed in a transaction at ``position``."""
        for change in changes:
            if change.table not in self._names:
                continue
            if change.op == "truncate":
                self._forget_marks("a table was truncated", position)
                return
            # An update of a key has the old key in `key` and the new one in `row`.
            keys = {tuple(change.key.values())} if change.key else set[Key]()
            new = [change.row.get(name) for name in self._tables[change.table].key]
            keys.add(tuple(str(value) for value in new if value is not None))
            for key in keys:
                if len(key) == len(self._tables[change.table].key):
                    self._marks[change.table, key] = position
        if len(self._marks) > MARKS_MAX:
            self._forget_marks(f"more than {MARKS_MAX} rows changed since the last comparison", position)

    def marked_up_to(self, position: Position) -> None:
        """Note that all changes up to ``position`` were marked."""
        self._marked = position

    def resume(self, position: Position) -> None:
        """Note that marks continue after ``position``. If some are missing, the rows are forgotten."""
        if position != self._marked:
            self._forget_marks("apply has begun again, and changes may not have been marked", position)
        self._marked = position

    def is_key(self, table: str, key: Key) -> bool:
        """Whether a table of the registry has keys of this form."""
        if table not in self._names or len(key) != len(self._tables[table].key):
            return False
        types = {column.name: column.type for column in self._tables[table].columns}
        uuids = [value for name, value in zip(self._tables[table].key, key, strict=True) if types[name] == "uuid"]
        try:
            return all(str(uuid.UUID(value)) == value for value in uuids)
        except ValueError:
            return False

    async def existing(self, connection: psycopg.AsyncConnection, rows: Sequence[tuple[str, Key]]) -> int:
        """Return how many of these rows the ledger has, whatever is in memory; if it has some, forget all rows."""
        found = 0
        for table in self._tables:
            keys = [key for name, key in rows if name == table.name]
            if keys:
                found += len(await self._rows.of_keys(connection, table, keys))
        if found:
            self.counts.wrong_rows += found
            _log.error("the rows of the ledger in memory were wrong: %d rows were missing", found)
            self._forget_rows("they were wrong")
        return found

    def _forget_marks(self, reason: str, position: Position) -> None:
        """Forget the rows and the marks; the rows are read again at this position or a later one."""
        self._forget_rows(reason)
        self._marks.clear()
        self._start = position

    def _forget_rows(self, reason: str) -> None:
        if self._store is not None:
            _log.info("the rows of the ledger are forgotten: %s", reason)
        self._store = None

    async def at(
        self, connection: psycopg.AsyncConnection, position: Position, *, identity: object, scrub: bool = False
    ) -> PositionedTree:
        """Return the tree of the snapshot that the connection sees.

        Args:
            connection: Inside of a transaction that sees exactly the ledger at ``position``.
            position: All changes up to it have been marked.
            identity: What the rows in memory depend on, such as the start of PostgreSQL. Another one means that WAL may
                have been discarded, so the rows are read again.
            scrub: Read all rows again, and report those in memory that were wrong.

        Raises:
            NotComparable: Marks after the position were forgotten meanwhile; open another snapshot.
        """
        async with self._reading:
            return await self._at(connection, position, identity=identity, scrub=scrub)

    async def warm(self, connection: psycopg.AsyncConnection, epoch: Epoch) -> bool:
        """Read the rows, or the marked ones, from a standby, so that they are in memory if its region leads next.

        The snapshot of a standby has no exact position: it may have more than what was replayed before it. Marks of
        later changes stay. If the standby has WAL that is discarded later, PostgreSQL starts again.

        Args:
            connection: Outside of a transaction.
            epoch: The epoch that serves.

        Returns:
            Whether the rows are in memory: False on a primary, and while the standby lacks changes without a mark.
        """
        async with self._reading:
            # Before the snapshot, which then has everything up to this position.
            cursor = await connection.execute(load_sql("standby_position"))
            replayed, started = await cursor.fetchone() or (None, None)
            if replayed is None or parse_lsn(replayed) < self._start.lsn:
                return False
            # By LSN alone, which grows over promotions: a mark of an older epoch may not be replayed here yet.
            not_replayed = {one: at for one, at in self._marks.items() if at.lsn > parse_lsn(replayed)}
            async with connection.transaction():
                await connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
                await self._at(connection, Position(epoch, parse_lsn(replayed)), identity=(started,), scrub=False)
            self._marks = not_replayed | self._marks
            return True

    async def _at(
        self, connection: psycopg.AsyncConnection, position: Position, *, identity: object, scrub: bool
    ) -> PositionedTree:
        if identity != self._identity:
            self._forget_rows("PostgreSQL was started again, or another member leads")
            self._identity = identity
        if position < self._start:
            raise NotComparable(f"marks up to {self._start} were forgotten; take a snapshot after that")
        if self._store is not None:
            await self._refresh(connection, self._store, position)
        if self._store is None or scrub:
            await self._read_all(connection, position)
        if self._store is None or position < self._start:
            self._store = None
            raise NotComparable("marks were forgotten while the rows were read; open another snapshot")
        return PositionedTree(position=position, scheme=self.scheme, tree=self._store.tree.copy())

    def rows_of(self, leaves: Sequence[int], depth: int) -> LeafRows:
        """Return the hashes of the rows of some leaves of a tree of this depth, by key hash."""
        grouped: dict[int, dict[int, SetHash]] = {leaf: {} for leaf in leaves}
        for key_hash, row in self._entries(leaves, depth):
            group = grouped[leaf_of(key_hash, depth)]
            group[key_hash] = group.get(key_hash, EMPTY) + row.hash
        return grouped

    def keys_of(self, key_hashes: Sequence[int]) -> dict[str, list[Key]]:
        """Return the keys with these hashes by table; a hash without a row is absent."""
        if self._store is None:
            raise NotComparable("the rows of the ledger in memory were forgotten; compare again")
        depth = self._store.tree.depth
        wanted = set(key_hashes)
        found: dict[str, list[Key]] = {}
        for key_hash, row in self._entries(sorted({leaf_of(one, depth) for one in wanted}), depth):
            if key_hash in wanted:
                found.setdefault(row.table, []).append(row.key)
        return found

    async def images(
        self, connection: psycopg.AsyncConnection, key_hashes: Sequence[int]
    ) -> list[tuple[str, dict[str, str | None]]]:
        """Return table and columns of the rows with these key hashes, as the connection sees them."""
        images: list[tuple[str, dict[str, str | None]]] = []
        for name, keys in self.keys_of(key_hashes).items():
            images += [(name, one) for one in await self._rows.images(connection, self._tables[name], keys)]
        return images

    def _entries(self, leaves: Sequence[int], depth: int) -> Iterator[tuple[int, LedgerRow]]:
        if self._store is None:
            raise NotComparable("the rows of the ledger in memory were forgotten; compare again")
        own = self._store.tree.depth
        for leaf in leaves:
            # A leaf of a smaller tree is a range of leaves of this one.
            width = nodes_at(own - depth)
            for number in range(leaf * width, (leaf + 1) * width):
                yield from self._unpack(self._store.leaves[number])

    async def _refresh(self, connection: psycopg.AsyncConnection, store: _Store, position: Position) -> None:
        """Read the marked rows again."""
        by_table: dict[str, list[Key]] = {}
        for table, key in self._marks:
            by_table.setdefault(table, []).append(key)
        for name, keys in by_table.items():
            for start in range(0, len(keys), KEYS_PER_QUERY):
                some = keys[start : start + KEYS_PER_QUERY]
                found = {row[0]: row for row in await self._rows.of_keys(connection, self._tables[name], some)}
                self.counts.rows_read += len(found)
                for key in some:
                    self._replace(store, name, key, found.get(key))
        self._marks = {one: at for one, at in self._marks.items() if at > position}

    async def _read_all(self, connection: psycopg.AsyncConnection, position: Position) -> None:
        before = self._store
        rows = 0
        for table in self._tables:
            query = f"SELECT count(*) FROM palaver.{table.name}"  # noqa: S608 - a name of the registry
            cursor = await connection.execute(query.encode())
            (count,) = await cursor.fetchone() or (0,)
            rows += count
        depth = depth_for(rows) if before is None else depth_at_scrub(before.tree.depth, rows)
        leaves: list[bytes | bytearray] = [bytearray() for _ in range(nodes_at(depth))]
        counts, xor1, xor2 = (array("q", bytes(8 * nodes_at(depth))) for _ in range(3))
        for index, table in enumerate(self._tables):
            async with connection.cursor(name="compare") as cursor:
                cursor.itersize = FETCH_ROWS
                await self._rows.all(cursor, table)
                while found := await cursor.fetchmany(FETCH_ROWS):
                    for key, key_hash, h1, h2 in found:
                        leaf = leaf_of(key_hash, depth)
                        leaves[leaf] += self._pack(index, tuple(key), key_hash, h1, h2)
                        counts[leaf] += 1
                        xor1[leaf] ^= h1
                        xor2[leaf] ^= h2
                    self.counts.rows_read += len(found)
        for leaf, packed in enumerate(leaves):
            leaves[leaf] = bytes(packed)  # without the spare bytes of a bytearray
        tree = Tree.build(depth, zip(range(nodes_at(depth)), counts, xor1, xor2, strict=True))
        self._store = _Store(tree, cast("list[bytes]", leaves))
        self.counts.builds += 1
        self._marks = {one: at for one, at in self._marks.items() if at > position}
        if before is not None and before.tree.root != tree.root:
            wrong = set(self._all(before)) ^ set(self._all(self._store))
            self.counts.wrong_rows += len({key for key, _ in wrong})
            _log.error("a scrub of the ledger found rows in memory that were wrong: %d", len(wrong))

    def _all(self, store: _Store) -> Iterator[tuple[int, SetHash]]:
        for leaf in store.leaves:
            for key_hash, row in self._unpack(leaf):
                yield key_hash, row.hash

    def _replace(self, store: _Store, table: str, key: Key, found: Row | None) -> None:
        """Replace a row in memory by what was read; None if the ledger has no such row."""
        index = self._names.index(table)
        packed_key = self._pack_key(index, key)
        key_hash = self._rows.hash_key(self._tables[table], key) if found is None else found[1]
        number = leaf_of(key_hash, store.tree.depth)
        kept = bytearray()
        old = EMPTY
        for entry, one_hash, h1, h2, one_index, one_key in _split(store.leaves[number]):
            if one_hash == key_hash and one_index == index and one_key == packed_key:
                old = SetHash(1, h1, h2)
            else:
                kept += entry
        new = EMPTY
        if found is not None:
            kept += self._pack(index, key, *found[1:])
            new = SetHash(1, found[2], found[3])
        store.leaves[number] = bytes(kept)
        store.tree.change_leaf(number, new - old)

    def _pack(self, index: int, key: Key, key_hash: int, h1: int, h2: int) -> bytes:
        packed = self._pack_key(index, key)
        return _ENTRY.pack(key_hash, h1, h2, index, len(packed)) + packed

    def _pack_key(self, index: int, key: Key) -> bytes:
        """Return a key in few bytes: a UUID as 16 bytes, anything else as text."""
        return uuid.UUID(key[0]).bytes if self._uuids[index] else SEPARATOR.join(key).encode()

    def _unpack_key(self, index: int, packed: bytes) -> Key:
        if self._uuids[index]:
            return (str(uuid.UUID(bytes=packed)),)
        return tuple(packed.decode().split(SEPARATOR, len(self._tables[self._names[index]].key) - 1))

    def _unpack(self, leaf: bytes) -> Iterator[tuple[int, LedgerRow]]:
        for _, key_hash, h1, h2, index, key in _split(leaf):
            yield (
                key_hash,
                LedgerRow(table=self._names[index], key=self._unpack_key(index, key), hash=SetHash(1, h1, h2)),
            )


def _split(leaf: bytes) -> Iterator[tuple[bytes, int, int, int, int, bytes]]:
    """Return each entry of a leaf, and its parts: key hash, both halves of the row hash, table and packed key."""
    offset = 0
    while offset < len(leaf):
        key_hash, h1, h2, index, length = _ENTRY.unpack_from(leaf, offset)
        end = offset + _ENTRY.size + length
        yield leaf[offset:end], key_hash, h1, h2, index, leaf[offset + _ENTRY.size : end]
        offset = end


def _is_uuid(table: Table) -> bool:
    return [column.type for column in table.columns if column.name in table.key] == ["uuid"]

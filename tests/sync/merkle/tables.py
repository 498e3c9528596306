"""Tables as dictionaries of key and content, and both sides of a comparison without a network.

Functions of the package are called through their modules, so that `mutations` can replace them.
"""

from collections.abc import Iterable, Mapping

from regions.position import Position
from sync.merkle import descent, row_hash, rows, shape, wire
from sync.merkle.descent import Different, Outcome
from sync.merkle.rows import LeafDifference, LeafRows, RowsRequest
from sync.merkle.set_hash import EMPTY, SetHash
from sync.merkle.tree import PositionedTree, Tree

SECRET = bytes(range(row_hash.SECRET_BYTES))
SCHEME = row_hash.scheme_of(SECRET, "comments 1")

Table = Mapping[str, str]


def at(lsn: int, epoch: int = 1) -> Position:
    return Position(epoch, lsn)


def key_hash(key: str) -> int:
    return row_hash.hash_key(SECRET, key)


def leaf(key: str, depth: int) -> int:
    return shape.leaf_of(key_hash(key), depth)


def row(key: str, content: str | None) -> SetHash:
    """The hash of a row; without content there is no row."""
    return EMPTY if content is None else row_hash.hash_row(SECRET, key, content)


def change(key: str, before: str | None, after: str | None) -> tuple[int, SetHash]:
    """A changed row: an insert, an update or a delete."""
    return key_hash(key), row(key, after) - row(key, before)


def tree_of(table: Table, depth: int) -> Tree:
    """The tree recomputed from all rows."""
    leaves: dict[int, SetHash] = {}
    for key, content in table.items():
        number = leaf(key, depth)
        leaves[number] = leaves.get(number, EMPTY) + row(key, content)
    return Tree.build(depth, [(number, one.count, one.h1, one.h2) for number, one in leaves.items()])


def positioned(table: Table, position: Position, depth: int = 2) -> PositionedTree:
    return PositionedTree(position=position, scheme=SCHEME, tree=tree_of(table, depth))


def read_rows(table: Table, request: RowsRequest) -> LeafRows:
    """The rows of the leaves of a request, as a database returns them."""
    found: list[tuple[int, int, int]] = []
    for key, content in table.items():
        hashed = row(key, content)
        found.append((key_hash(key), hashed.h1, hashed.h2))
    return rows.group_rows(found, request)


def compare(view: PositionedTree, ledger: PositionedTree, leaves_max: int = 1_000_000) -> Outcome:
    """Run a descent; each message is encoded and decoded."""
    summary = wire.decode_summary(wire.encode_summary(ledger.summary))
    descending = descent.compare(view, summary, leaves_max=leaves_max)
    try:
        request = next(descending)
        while True:
            received = wire.decode_nodes_request(wire.encode_nodes_request(request))
            answer = descent.answer_nodes(ledger, received)
            request = descending.send(wire.check_nodes_answer(answer, request))
    except StopIteration as stopped:
        return stopped.value


def exchange_rows(view: LeafRows, ledger: LeafRows, request: RowsRequest) -> list[LeafDifference]:
    """Compare the rows of some leaves; each message is encoded and decoded."""
    received = wire.decode_rows_request(wire.encode_rows_request(request))
    answer = wire.encode_rows(rows.row_digests(ledger), received)
    return list(rows.compare_rows(view, wire.decode_rows(answer, request)))


def requests_for(outcome: Different, rows_of_other: int, position: Position) -> list[RowsRequest]:
    return list(rows.plan_requests(outcome.tree, outcome.leaves, rows_of_other=rows_of_other, position=position))


def key_hashes(keys: Iterable[str]) -> tuple[int, ...]:
    return tuple(sorted(key_hash(key) for key in keys))

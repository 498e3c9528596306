"""Measures `sync.merkle` on a million rows: the cost of a change, memory, and the bytes of a comparison.

Needs no servers: the rows are random hashes, and both sides are in this process. Every message is encoded and decoded.
The bytes of damaged rows are computed from `ROW_BYTES`; everything else is measured. Run it with
``python -m infra.bench.merkle``.
"""

from __future__ import annotations

import gc
import random
import time
import tracemalloc
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from infra.printing import print_table
from regions.position import Position
from sync.merkle import wire
from sync.merkle.descent import Different, Outcome, TooDifferent, answer_nodes, compare
from sync.merkle.rewind import BatchPositions, RecentChanges, rewind_rows, rewind_tree
from sync.merkle.row_hash import SECRET_BYTES, hash_key, hash_row, scheme_of
from sync.merkle.rows import LeafRows, RowsRequest, compare_rows, group_rows, plan_requests, row_digests, wrong_leaves
from sync.merkle.set_hash import EMPTY, SetHash
from sync.merkle.shape import DEPTH_MIN, depth_at_scrub, key_hashes_of, leaf_of
from sync.merkle.tree import PositionedTree, Tree

ROWS: Final = 1_000_000
CHANGES: Final = 20_000
ROW_BYTES: Final = 400
"""A row of `comments` with a body of 200 characters, as JSON."""
SECRET: Final = bytes(SECRET_BYTES)
SCHEME: Final = scheme_of(SECRET, "bench")
NOW: Final = Position(1, 1_000)

Row = tuple[int, int, int]
"""Key hash, h1 and h2."""


@dataclass(slots=True)
class Traffic:
    """What a comparison sent in both directions.

    Attributes:
        descent_bytes: Summary, requests and answers for nodes.
        digest_bytes: Requests and answers for the digests of rows.
        row_bytes: Damaged rows, computed from `ROW_BYTES`, and the key hashes that request them.
        round_trips: Requests that wait for an answer, and the one that fetches the rows.
    """

    descent_bytes: int = 0
    digest_bytes: int = 0
    row_bytes: int = 0
    round_trips: int = 1

    @property
    def total_bytes(self) -> int:
        """Everything that was sent."""
        return self.descent_bytes + self.digest_bytes + self.row_bytes


def bigints(chooser: random.Random) -> Iterator[int]:
    """Return random signed 64-bit integers."""
    while True:
        yield chooser.getrandbits(64) - 2**63


def make_rows(seed: int, count: int) -> list[Row]:
    """Return rows with random hashes, in the order of their key hashes, as an index has them."""
    numbers = bigints(random.Random(seed))  # noqa: S311 - a script, not a secret
    return sorted((next(numbers), next(numbers), next(numbers)) for _ in range(count))


def tree_of(rows: Sequence[Row], depth: int) -> PositionedTree:
    """Return the tree of all rows."""
    leaves = ((leaf_of(key_hash, depth), 1, h1, h2) for key_hash, h1, h2 in rows)
    return PositionedTree(position=NOW, scheme=SCHEME, tree=Tree.build(depth, leaves))


def rows_of(rows: Sequence[Row], request: RowsRequest) -> LeafRows:
    """Return the rows of some leaves, each read as a range of the index."""
    found: list[Row] = []
    for leaf in request.leaves:
        lowest, highest = key_hashes_of(leaf, request.depth)
        first = bisect_left(rows, lowest, key=lambda row: row[0])
        found += rows[first : bisect_right(rows, highest, key=lambda row: row[0])]
    return group_rows(found, request)


def descend(view: PositionedTree, ledger: PositionedTree, traffic: Traffic, leaves_max: int = ROWS) -> Outcome:
    """Run a descent and count its bytes."""
    summary = wire.encode_summary(ledger.summary)
    traffic.descent_bytes += len(summary)
    descending = compare(view, wire.decode_summary(summary), leaves_max=leaves_max)
    try:
        request = next(descending)
        while True:
            message = wire.encode_nodes_request(request)
            answer = answer_nodes(ledger, wire.decode_nodes_request(message))
            traffic.descent_bytes += len(message) + len(answer)
            traffic.round_trips += 1
            request = descending.send(wire.check_nodes_answer(answer, request))
    except StopIteration as stopped:
        return stopped.value


def exchange(outcome: Different, view: Sequence[Row], ledger: Sequence[Row], traffic: Traffic) -> int:
    """Compare the rows of the leaves that differ; return how many rows differ, and count the bytes."""
    recent = RecentChanges(NOW)
    damaged = 0
    for request in plan_requests(outcome.tree, outcome.leaves, rows_of_other=len(ledger), position=NOW):
        message = wire.encode_rows_request(request)
        answer = wire.encode_rows(row_digests(rows_of(ledger, request)), wire.decode_rows_request(message))
        traffic.digest_bytes += len(message) + len(answer)
        traffic.round_trips += 1
        own = rewind_rows(rows_of(view, request), recent, depth=request.depth, position=NOW, to=NOW)
        if wrong_leaves(outcome.tree, own):
            raise ValueError("a leaf of the view is not the sum of its rows")
        for one in compare_rows(own, wire.decode_rows(answer, request)):
            damaged += len(one.missing) + len(one.phantom) + len(one.stale)
            traffic.row_bytes += (8 + ROW_BYTES) * (len(one.missing) + len(one.stale))
    traffic.round_trips += 1
    return damaged


def damage(rows: Sequence[Row], victims: Sequence[int]) -> list[Row]:
    """Return the rows with a third of the victims missing, a third stale, and a phantom for each other one."""
    damaged = dict(enumerate(rows))
    for index, (victim, invented) in enumerate(zip(victims, make_rows(99, len(victims)), strict=True)):
        match index % 3:
            case 0:
                del damaged[victim]
            case 1:
                damaged[victim] = (rows[victim][0], *invented[1:])
            case _:
                damaged[len(rows) + index] = invented
    return sorted(damaged.values())


def measure_comparison(name: str, ledger: Sequence[Row], victims: Sequence[int]) -> list[str]:
    """Return a row of the table of comparisons."""
    depth = depth_at_scrub(DEPTH_MIN, len(ledger))
    view = damage(ledger, victims) if victims else ledger
    both = tree_of(view, depth), tree_of(ledger, depth)
    traffic = Traffic()
    began = time.process_time()
    outcome = descend(*both, traffic)
    found = exchange(outcome, view, ledger, traffic) if isinstance(outcome, Different) else 0
    elapsed_ms = (time.process_time() - began) * 1000
    if found != len(victims):
        raise ValueError(f"{found} rows found of {len(victims)}")
    sizes = [traffic.descent_bytes, traffic.digest_bytes, traffic.row_bytes, traffic.total_bytes]
    return [name, *(f"{size:,}" for size in sizes), str(traffic.round_trips), f"{elapsed_ms:.0f}"]


def measure_stop(ledger: Sequence[Row]) -> list[str]:
    """Return the row of a comparison that ends early, with a view that lost its rows."""
    depth = depth_at_scrub(DEPTH_MIN, len(ledger))
    traffic = Traffic()
    outcome = descend(tree_of([], depth), tree_of(ledger, depth), traffic, leaves_max=2_000)
    if not isinstance(outcome, TooDifferent):
        raise TypeError("the descent did not end early")
    name = f"all rows missing, ended at {outcome.leaves_at_least:,} of {outcome.leaves:,} leaves"
    return [name, f"{traffic.descent_bytes:,}", "0", "0", f"{traffic.total_bytes:,}", str(traffic.round_trips), ""]


def microseconds(work: Callable[[], object], count: int) -> str:
    """Return the CPU time of one of ``count`` operations."""
    began = time.process_time()
    work()
    return f"{(time.process_time() - began) / count * 1e6:.2f} us"


def measure_memory(depth: int) -> list[list[str]]:
    """Return the rows of the table of costs that are memory."""
    tracemalloc.start()
    tree = tree_of([], depth)
    tree_bytes, _ = tracemalloc.get_traced_memory()
    recent = RecentChanges(tree.position)
    all_bytes, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    recent.advance(tree.position)
    return [["memory of the tree", f"{tree_bytes / 2**20:.1f} MiB"],
            ["memory of the tree and of the changes for rewinding", f"{all_bytes / 2**20:.1f} MiB"]]  # fmt: skip


def cpu_us(work: Callable[[], object]) -> float:
    """Return the CPU time of a call in microseconds."""
    began = time.process_time()
    work()
    return (time.process_time() - began) * 1e6


def measure_costs(rows: Sequence[Row]) -> list[list[str]]:
    """Return the rows of the table of costs."""
    depth = depth_at_scrub(DEPTH_MIN, len(rows))
    leaves = [(leaf, 16, 1, 1) for leaf in range(16**depth)]
    start, end = Position(1, 0), Position(1, CHANGES)
    tree, recent = Tree.build(depth, leaves), RecentChanges(start)
    now = PositionedTree(position=end, scheme=SCHEME, tree=tree)
    changes = [(key_hash, SetHash(0, h1, h2)) for key_hash, h1, h2 in rows[:CHANGES]]
    text = "x" * ROW_BYTES

    def hash_rows() -> None:
        for number in range(CHANGES):
            key = f"comments|{number}"
            hash_key(SECRET, key)
            hash_row(SECRET, key, text)

    def change() -> None:
        for key_hash, difference in changes:
            tree.change(key_hash, difference)

    def record() -> None:
        for lsn, one in enumerate(changes, 1):
            recent.record([one], BatchPositions(first=Position(1, lsn), last=Position(1, lsn)))

    each = {
        "hash the key and the text of a row, 400 bytes": hash_rows,
        "change a row in the tree": change,
        "record a change for rewinding": record,
    }
    whole: dict[str, Callable[[], object]] = {
        "rewind a tree by 20,000 changes": lambda: rewind_tree(now, recent, start),
        "build a tree from its leaves": lambda: Tree.build(depth, leaves),
        "merge two trees": lambda: tree.copy().merge(tree),
        "replace each leaf": lambda: [tree.change_leaf(leaf, EMPTY - tree.leaf(leaf)) for leaf in range(16**depth)],
    }
    costs = [[name, f"{cpu_us(work) / CHANGES:.2f} us"] for name, work in each.items()]
    costs += [[name, f"{cpu_us(work) / 1000:.1f} ms"] for name, work in whole.items()]
    return [*costs, *measure_memory(depth)]


def main() -> None:
    """Measure and print both tables."""
    ledger = make_rows(1, ROWS)
    gc.freeze()  # otherwise each collection goes through a million rows
    chooser = random.Random(2)  # noqa: S311 - a script, not a secret
    print_table("Costs, 1M rows, CPU time", ["what", "cost"], measure_costs(ledger))
    columns = ["damage", "descent, bytes", "row digests", "rows", "in all", "round trips", "CPU ms, both sides"]
    comparisons = [
        measure_comparison("none", ledger, []),
        measure_comparison("1 row", ledger, [chooser.randrange(ROWS)]),
        measure_comparison("100 random rows", ledger, chooser.sample(range(ROWS), 100)),
        measure_comparison("10,000 rows of one range of keys", ledger, chooser.sample(range(ROWS), 10_000)),
        measure_stop(ledger),
    ]
    print_table("Comparisons, 1M rows on each side", columns, comparisons)


if __name__ == "__main__":
    main()

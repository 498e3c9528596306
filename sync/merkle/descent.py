"""Compares two trees from the root to the leaves, over a network that this module does not know.

Decides which nodes to request, and when to stop. The side that wants to know (the initiator) has a tree and runs
`compare`; the other side (the responder) sends its `Summary` and answers each request by `answer_nodes`. **Trees are
compared only at the same position and with the same scheme. The result is `Same` only if the full hashes of the roots
are equal.** Below the root, digests of 8 bytes find the leaves that differ.

A request skips levels while that costs at most `SKIP_NODES_MAX` nodes: each level is a round trip between regions.
"""

from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import Final

from regions.position import Position
from sync.merkle.errors import DigestCollision, InvalidMessage, NotComparable
from sync.merkle.set_hash import DIGEST_BYTES
from sync.merkle.shape import FANOUT_BITS, nodes_at
from sync.merkle.tree import PositionedTree, Summary, Tree

SKIP_NODES_MAX: Final = 256
"""2 KiB: less than a round trip of a few milliseconds at 10 Mbit/s."""

NODES_PER_REQUEST_MAX: Final = 16_384
"""128 KiB in an answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodesRequest:
    """Asks for the digests of all descendants of some nodes at one level.

    Attributes:
        position: Position of the comparison.
        parent_level: Level of the parents; the root is level 0.
        level: Level of the requested nodes.
        parents: Numbers of the parents, ascending.
    """

    position: Position
    parent_level: int
    level: int
    parents: tuple[int, ...]

    @property
    def nodes_per_parent(self) -> int:
        """The number of requested nodes below each parent."""
        return nodes_at(self.level - self.parent_level)

    @property
    def answer_bytes(self) -> int:
        """The length of the answer."""
        return DIGEST_BYTES * self.nodes_per_parent * len(self.parents)


@dataclass(frozen=True, slots=True, kw_only=True)
class Same:
    """Both sides have the same rows.

    Attributes:
        rows: Number of rows.
    """

    rows: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Different:
    """Some leaves differ.

    Attributes:
        tree: The initiator's tree at the depth of the comparison, the smaller one of both trees.
        leaves: Numbers of all leaves that differ, ascending.
    """

    tree: Tree
    leaves: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class TooDifferent:
    """More leaves differ than the caller wants to repair.

    Attributes:
        leaves_at_least: That many leaves differ, or more; the descent ended early.
        leaves: Number of leaves of the tree.
    """

    leaves_at_least: int
    leaves: int


Outcome = Same | Different | TooDifferent


def compare(own: PositionedTree, other: Summary, *, leaves_max: int) -> Generator[NodesRequest, bytes, Outcome]:
    """Compare two trees: yields requests, receives the answer of each, returns the outcome.

    Args:
        own: The initiator's tree.
        other: The summary of the responder's tree.
        leaves_max: If more leaves differ, the descent ends.

    Raises:
        NotComparable: Positions or schemes differ.
        DigestCollision: Nodes differ and none of their descendants.
    """
    _check_comparable(own, other)
    if other.root == own.tree.root:
        return Same(rows=other.root.count)
    depth = min(own.tree.depth, other.depth)
    level, differing = 0, [0]
    while level < depth:
        below = level + _levels_at_once(len(differing), depth - level)
        found: list[int] = []
        for request in _requests(own.position, level, below, differing):
            answer = yield request
            found += _differing(own.tree, request, answer)
            if len(found) > leaves_max:
                return TooDifferent(leaves_at_least=len(found), leaves=nodes_at(depth))
        if not found:
            raise DigestCollision(f"{len(differing)} nodes of level {level} differ, and none of level {below}")
        level, differing = below, found
    return Different(tree=own.tree.shrunk(depth), leaves=tuple(differing))


def answer_nodes(own: PositionedTree, request: NodesRequest) -> bytes:
    """Return the responder's answer to a request.

    Raises:
        NotComparable: The request is for another position.
        InvalidMessage: The tree has no such level.
    """
    if request.position != own.position:
        raise NotComparable(f"nodes at {request.position} requested, the tree is at {own.position}")
    if request.level > own.tree.depth:
        raise InvalidMessage(f"nodes of level {request.level} requested, the leaves are at {own.tree.depth}")
    width = request.nodes_per_parent
    return b"".join([own.tree.digests(request.level, parent * width, width) for parent in request.parents])


def _check_comparable(own: PositionedTree, other: Summary) -> None:
    if other.position != own.position:
        raise NotComparable(f"a tree at {other.position}, compared with one at {own.position}")
    if other.scheme != own.scheme:
        raise NotComparable("the other side hashes rows in another way: another secret or another schema")


def _levels_at_once(parents: int, levels_left: int) -> int:
    """Return by how many levels to descend."""
    levels = 1
    while levels < levels_left and parents * nodes_at(levels + 1) <= SKIP_NODES_MAX:
        levels += 1
    return levels


def _requests(position: Position, level: int, below: int, parents: list[int]) -> Iterator[NodesRequest]:
    size = NODES_PER_REQUEST_MAX >> (FANOUT_BITS * (below - level))
    for start in range(0, len(parents), size):
        chunk = tuple(parents[start : start + size])
        yield NodesRequest(position=position, parent_level=level, level=below, parents=chunk)


def _differing(tree: Tree, request: NodesRequest, answer: bytes) -> Iterator[int]:
    """Return the numbers of the requested nodes that differ, ascending."""
    assert len(answer) == request.answer_bytes, f"{len(answer)} bytes for {request.answer_bytes}"
    width = request.nodes_per_parent
    for index, parent in enumerate(request.parents):
        own = tree.digests(request.level, parent * width, width)
        its = answer[index * len(own) : (index + 1) * len(own)]
        if own == its:
            continue
        for child in range(width):
            digest = slice(child * DIGEST_BYTES, (child + 1) * DIGEST_BYTES)
            if own[digest] != its[digest]:
                yield parent * width + child

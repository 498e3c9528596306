"""Encodes the messages of a comparison as bytes.

A message begins with its kind; integers are big-endian. **Each decoder checks every byte, has a bound for what it
accepts, and raises only `InvalidMessage`.** The answer to a request is decoded with the request, which determines its
length. A summary has 50 bytes, a node 8, a row 16.
"""

import struct
from collections.abc import Iterator
from itertools import pairwise
from typing import Final

from regions.position import EPOCH_MAX, Position
from sync.merkle.descent import NODES_PER_REQUEST_MAX, NodesRequest
from sync.merkle.errors import InvalidMessage
from sync.merkle.rows import LEAVES_PER_REQUEST_MAX, LeafDigests, RowsRequest
from sync.merkle.set_hash import DIGEST_BYTES, SetHash
from sync.merkle.shape import DEPTH_MAX, DEPTH_MIN, FANOUT_BITS, leaf_of, nodes_at
from sync.merkle.tree import Summary

ROWS_PER_ANSWER_MAX: Final = 262_144
"""4 MiB. A request expects 16 times fewer rows; the reserve is for leaves that are fuller than the average."""

_SUMMARY: Final = struct.Struct(">cQQqBqqq")
_NODES: Final = struct.Struct(">cQQBBI")
_ROWS: Final = struct.Struct(">cQQBI")
_NUMBER: Final = struct.Struct(">I")
_ROW: Final = struct.Struct(f">q{DIGEST_BYTES}s")


def encode_summary(summary: Summary) -> bytes:
    """Return the message of the responder that begins a comparison."""
    position, root = summary.position, summary.root
    return _SUMMARY.pack(
        b"S", position.epoch, position.lsn, summary.scheme, summary.depth, root.count, root.h1, root.h2
    )


def decode_summary(data: bytes) -> Summary:
    """Return the summary in ``data``.

    Raises:
        InvalidMessage: It is no summary.
    """
    epoch, lsn, scheme, depth, *root = _fields(_SUMMARY, b"S", data)
    _check_end(data, _SUMMARY.size)
    return Summary(position=_position(epoch, lsn), scheme=scheme, depth=_depth(depth), root=SetHash(*root))


def encode_nodes_request(request: NodesRequest) -> bytes:
    """Return a request of the initiator for digests of nodes."""
    position = request.position
    head = _NODES.pack(b"N", position.epoch, position.lsn, request.parent_level, request.level, len(request.parents))
    return head + _pack_numbers(request.parents)


def decode_nodes_request(data: bytes) -> NodesRequest:
    """Return the request in ``data``.

    Raises:
        InvalidMessage: It is no request, or asks for more than `NODES_PER_REQUEST_MAX` nodes.
    """
    epoch, lsn, parent_level, level, count = _fields(_NODES, b"N", data)
    if not 0 <= parent_level < _depth(level):
        raise InvalidMessage(f"nodes of level {level} below level {parent_level}")
    if count << (FANOUT_BITS * (level - parent_level)) > NODES_PER_REQUEST_MAX:
        raise InvalidMessage(f"descendants of {count} nodes of level {parent_level} at level {level}: too many")
    parents = _unpack_numbers(data, _NODES.size, count, below=nodes_at(parent_level))
    return NodesRequest(position=_position(epoch, lsn), parent_level=parent_level, level=level, parents=parents)


def check_nodes_answer(data: bytes, request: NodesRequest) -> bytes:
    """Return ``data``, the digests that `answer_nodes` returned.

    Raises:
        InvalidMessage: It has another length.
    """
    if len(data) != request.answer_bytes:
        raise InvalidMessage(f"{len(data)} bytes of digests instead of {request.answer_bytes}")
    return data


def encode_rows_request(request: RowsRequest) -> bytes:
    """Return a request of the initiator for digests of rows."""
    position = request.position
    head = _ROWS.pack(b"R", position.epoch, position.lsn, request.depth, len(request.leaves))
    return head + _pack_numbers(request.leaves)


def decode_rows_request(data: bytes) -> RowsRequest:
    """Return the request in ``data``.

    Raises:
        InvalidMessage: It is no request, or asks for more than `LEAVES_PER_REQUEST_MAX` leaves.
    """
    epoch, lsn, depth, count = _fields(_ROWS, b"R", data)
    if count > LEAVES_PER_REQUEST_MAX:
        raise InvalidMessage(f"rows of {count} leaves requested: too many")
    leaves = _unpack_numbers(data, _ROWS.size, count, below=nodes_at(_depth(depth)))
    return RowsRequest(position=_position(epoch, lsn), depth=depth, leaves=leaves)


def encode_rows(rows: LeafDigests, request: RowsRequest) -> bytes:
    """Return the responder's answer to a request for rows.

    Raises:
        InvalidMessage: There are more than `ROWS_PER_ANSWER_MAX` rows. The tree has to grow first, by a scrub.
    """
    count = sum(len(rows[leaf]) for leaf in request.leaves)
    if count > ROWS_PER_ANSWER_MAX:
        raise InvalidMessage(f"{count} rows in one answer: too many")
    parts: list[bytes] = []
    for leaf in request.leaves:
        group = rows[leaf]
        parts.append(_NUMBER.pack(len(group)))
        parts += [_ROW.pack(key_hash, digest) for key_hash, digest in group.items()]
    return b"".join(parts)


def decode_rows(data: bytes, request: RowsRequest) -> LeafDigests:
    """Return the rows in ``data``, the answer to ``request``.

    Raises:
        InvalidMessage: It does not answer this request: too long, too short, a row of another leaf, or a row twice.
    """
    if len(data) > _NUMBER.size * len(request.leaves) + _ROW.size * ROWS_PER_ANSWER_MAX:
        raise InvalidMessage(f"{len(data)} bytes of rows: too many")
    rows: dict[int, dict[int, bytes]] = {}
    offset = 0
    for leaf in request.leaves:
        (count,) = _NUMBER.unpack(_take(data, offset, _NUMBER.size))
        offset += _NUMBER.size
        rows[leaf] = dict(_rows_of_leaf(_take(data, offset, count * _ROW.size), leaf, request.depth))
        if len(rows[leaf]) != count:
            raise InvalidMessage(f"a row of leaf {leaf} occurs twice")
        offset += count * _ROW.size
    _check_end(data, offset)
    return rows


def _rows_of_leaf(data: bytes, leaf: int, depth: int) -> Iterator[tuple[int, bytes]]:
    for key_hash, digest in _ROW.iter_unpack(data):
        if leaf_of(key_hash, depth) != leaf:
            raise InvalidMessage(f"a row of leaf {leaf_of(key_hash, depth)} in leaf {leaf}")
        yield key_hash, digest


def _fields(layout: struct.Struct, kind: bytes, data: bytes) -> tuple[int, ...]:
    """Return the integers at the start of a message of this kind."""
    found, *fields = layout.unpack(_take(data, 0, layout.size))
    if found != kind:
        raise InvalidMessage(f"a message of kind {found!r} instead of {kind!r}")
    return tuple(fields)


def _check_end(data: bytes, offset: int) -> None:
    if offset != len(data):
        raise InvalidMessage(f"{len(data) - offset} bytes too many")


def _take(data: bytes, offset: int, size: int) -> bytes:
    taken = data[offset : offset + size]
    if len(taken) != size:
        raise InvalidMessage(f"{size} bytes expected at {offset}, {len(taken)} are left")
    return taken


def _pack_numbers(numbers: tuple[int, ...]) -> bytes:
    return struct.pack(f">{len(numbers)}I", *numbers)


def _unpack_numbers(data: bytes, offset: int, count: int, *, below: int) -> tuple[int, ...]:
    """Return the numbers that fill the rest of a message, which have to be ascending."""
    _check_end(data, offset + count * _NUMBER.size)
    numbers = struct.unpack_from(f">{count}I", data, offset)
    if not numbers or numbers[-1] >= below or any(one >= following for one, following in pairwise(numbers)):
        raise InvalidMessage(f"numbers that are not ascending, or not below {below}")
    return numbers


def _position(epoch: int, lsn: int) -> Position:
    if epoch > EPOCH_MAX:
        raise InvalidMessage(f"epoch {epoch}")
    return Position(epoch, lsn)


def _depth(depth: int) -> int:
    if not DEPTH_MIN <= depth <= DEPTH_MAX:
        raise InvalidMessage(f"depth {depth}")
    return depth

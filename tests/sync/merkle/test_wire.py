import contextlib
import struct
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from regions.position import EPOCH_MAX, LSN_MAX, Position
from sync.merkle import wire
from sync.merkle.descent import NodesRequest
from sync.merkle.errors import InvalidMessage
from sync.merkle.rows import LEAVES_PER_REQUEST_MAX, RowsRequest
from sync.merkle.set_hash import DIGEST_BYTES, SetHash
from sync.merkle.shape import DEPTH_MAX, DEPTH_MIN, key_hashes_of, nodes_at
from sync.merkle.tree import Summary
from sync.merkle.wire import ROWS_PER_ANSWER_MAX
from tests.sync.merkle.tables import SCHEME, at

BIGINT = st.integers(-(2**63), 2**63 - 1)
positions = st.builds(Position, st.integers(0, EPOCH_MAX), st.integers(0, LSN_MAX))
depths = st.integers(DEPTH_MIN, DEPTH_MAX)
summaries = st.builds(
    Summary, position=positions, scheme=BIGINT, depth=depths, root=st.builds(SetHash, BIGINT, BIGINT, BIGINT)
)
SUMMARY = Summary(position=at(16), scheme=SCHEME, depth=4, root=SetHash(1_000_000, -1, 1))
NODES = NodesRequest(position=at(16), parent_level=2, level=3, parents=(7, 255))
ROWS = RowsRequest(position=at(16), depth=4, leaves=(0x0000, 0x8000))
ANSWER = {0x0000: {5: b"digest 5", 6: b"digest 6"}, 0x8000: {-(2**63): b"digest 7"}}


def ascending(below: int) -> st.SearchStrategy[tuple[int, ...]]:
    return st.sets(st.integers(0, below - 1), min_size=1, max_size=20).map(lambda numbers: tuple(sorted(numbers)))


@st.composite
def nodes_requests(draw: st.DrawFn) -> NodesRequest:
    level = draw(depths)
    parent_level = draw(st.integers(max(0, level - 2), level - 1))
    parents = draw(ascending(nodes_at(parent_level)))
    return NodesRequest(position=draw(positions), parent_level=parent_level, level=level, parents=parents)


@st.composite
def rows_requests(draw: st.DrawFn) -> RowsRequest:
    depth = draw(depths)
    return RowsRequest(position=draw(positions), depth=depth, leaves=draw(ascending(nodes_at(depth))))


@given(summaries)
def test_a_summary_survives_encoding_and_decoding(summary: Summary) -> None:
    assert wire.decode_summary(wire.encode_summary(summary)) == summary


@given(nodes_requests())
def test_a_request_for_nodes_survives_encoding_and_decoding(request: NodesRequest) -> None:
    assert wire.decode_nodes_request(wire.encode_nodes_request(request)) == request


@given(rows_requests())
def test_a_request_for_rows_survives_encoding_and_decoding(request: RowsRequest) -> None:
    assert wire.decode_rows_request(wire.encode_rows_request(request)) == request


@settings(max_examples=30)
@given(rows_requests(), st.data())
def test_rows_survive_encoding_and_decoding(request: RowsRequest, data: st.DataObject) -> None:
    digests = st.binary(min_size=DIGEST_BYTES, max_size=DIGEST_BYTES)
    answer = {
        leaf: data.draw(st.dictionaries(st.integers(*key_hashes_of(leaf, request.depth)), digests, max_size=3))
        for leaf in request.leaves
    }
    assert wire.decode_rows(wire.encode_rows(answer, request), request) == answer


def test_messages_stay_as_they_are() -> None:
    # Regions of two releases compare their trees with each other.
    position = "00000000000000010000000000000010"
    scheme = struct.pack(">q", SCHEME).hex()
    root = "00000000000f4240ffffffffffffffff0000000000000001"
    assert wire.encode_summary(SUMMARY).hex() == "53" + position + scheme + "04" + root
    assert wire.encode_nodes_request(NODES).hex() == "4e" + position + "02030000000200000007000000ff"
    assert wire.encode_rows_request(ROWS).hex() == "52" + position + "04000000020000000000008000"
    assert wire.encode_rows(ANSWER, ROWS)[:20].hex() == "00000002" + "0000000000000005" + b"digest 5".hex()


def test_a_comparison_of_equal_tables_sends_50_bytes() -> None:
    assert len(wire.encode_summary(SUMMARY)) == 50


DECODERS: list[Callable[[bytes], object]] = [
    wire.decode_summary,
    wire.decode_nodes_request,
    wire.decode_rows_request,
    lambda data: wire.check_nodes_answer(data, NODES),
    lambda data: wire.decode_rows(data, ROWS),
]


@pytest.mark.parametrize("decode", DECODERS)
@given(data=st.one_of(st.binary(max_size=80), st.binary(max_size=80).map(lambda data: b"S" + data)))
def test_decoding_garbage_raises_no_other_error(decode: Callable[[bytes], object], data: bytes) -> None:
    with contextlib.suppress(InvalidMessage):
        decode(data)


@given(st.sampled_from([b"S", b"N", b"R"]), st.binary(max_size=60))
def test_a_request_that_is_accepted_has_one_encoding(kind: bytes, data: bytes) -> None:
    with contextlib.suppress(InvalidMessage):
        assert wire.encode_nodes_request(wire.decode_nodes_request(kind + data)) == kind + data
    with contextlib.suppress(InvalidMessage):
        assert wire.encode_rows_request(wire.decode_rows_request(kind + data)) == kind + data
    with contextlib.suppress(InvalidMessage):
        assert wire.encode_summary(wire.decode_summary(kind + data)) == kind + data


def test_a_message_with_a_byte_more_or_less_is_rejected() -> None:
    messages: list[tuple[bytes, Callable[[bytes], object]]] = [
        (wire.encode_summary(SUMMARY), wire.decode_summary),
        (wire.encode_nodes_request(NODES), wire.decode_nodes_request),
        (wire.encode_rows_request(ROWS), wire.decode_rows_request),
        (bytes(NODES.answer_bytes), lambda data: wire.check_nodes_answer(data, NODES)),
        (wire.encode_rows(ANSWER, ROWS), lambda data: wire.decode_rows(data, ROWS)),
    ]
    for message, decode in messages:
        decode(message)
        for wrong in (message + b"\0", message[:-1], b""):
            with pytest.raises(InvalidMessage):
                decode(wrong)


def nodes(parent_level: int, level: int, *parents: int, epoch: int = 1) -> bytes:
    return struct.pack(f">cQQBBI{len(parents)}I", b"N", epoch, 0, parent_level, level, len(parents), *parents)


@pytest.mark.parametrize(
    "message",
    [
        nodes(2, 3),
        nodes(2, 3, 7, 7),
        nodes(2, 3, 8, 7),
        nodes(2, 3, 256),
        nodes(3, 3, 7),
        nodes(3, 2, 7),
        nodes(2, 7, 7),
        nodes(0, 0, 0),
        nodes(0, 4, 0),
        nodes(2, 3, 7, epoch=2**63),
        nodes(3, 4, *range(1_025)),
        b"R" + nodes(2, 3, 7)[1:],
    ],
)
def test_a_request_for_nodes_that_no_side_sends_is_rejected(message: bytes) -> None:
    with pytest.raises(InvalidMessage):
        wire.decode_nodes_request(message)


def rows(depth: int, *leaves: int) -> bytes:
    return struct.pack(f">cQQBI{len(leaves)}I", b"R", 1, 0, depth, len(leaves), *leaves)


@pytest.mark.parametrize(
    "message",
    [rows(4), rows(4, 65_536), rows(4, 2, 2), rows(0, 0), rows(7, 0), rows(4, *range(LEAVES_PER_REQUEST_MAX + 1))],
)
def test_a_request_for_rows_that_no_side_sends_is_rejected(message: bytes) -> None:
    with pytest.raises(InvalidMessage):
        wire.decode_rows_request(message)


def test_a_row_of_another_leaf_is_rejected() -> None:
    with pytest.raises(InvalidMessage):
        wire.decode_rows(wire.encode_rows({0x0000: {-1: b"digest 1"}, 0x8000: {}}, ROWS), ROWS)


def test_a_row_that_occurs_twice_is_rejected() -> None:
    row = struct.pack(">q8s", 5, b"digest 5")
    with pytest.raises(InvalidMessage):
        wire.decode_rows(struct.pack(">I", 2) + row + row + struct.pack(">I", 0), ROWS)


def test_too_many_rows_are_neither_sent_nor_accepted() -> None:
    request = RowsRequest(position=at(1), depth=1, leaves=(0,))
    answer = {0: dict.fromkeys(range(ROWS_PER_ANSWER_MAX + 1), b"digest 1")}
    with pytest.raises(InvalidMessage):
        wire.encode_rows(answer, request)
    with pytest.raises(InvalidMessage):
        wire.decode_rows(bytes(4 + 16 * (ROWS_PER_ANSWER_MAX + 1)), request)

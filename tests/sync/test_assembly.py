import pytest

from regions.position import Position
from sync.assembly import Assembler, UnexpectedMessage
from sync.change import Change, Transaction
from sync.pgoutput import POSTGRES_EPOCH_US
from tests.sync import messages

COMMENTS = messages.relation(1, "comments", [("id", True), ("body", False), ("state", False)])
FENCE = messages.relation(2, "fence", [("epoch", True), ("leader", False)])


def feed(assembler: Assembler, *data: bytes) -> list[Transaction]:
    return [transaction for one in data if (transaction := assembler.feed(one)) is not None]


def test_the_assembler_returns_a_transaction_at_its_commit() -> None:
    found = feed(
        Assembler(epoch=3),
        messages.begin(100, 5),
        COMMENTS,
        messages.insert(1, ["a", "hello", None]),
        messages.update(1, ["a", messages.UNSENT, "approved"]),
        messages.update(1, ["b", "x", "approved"], old=["a", None, None]),
        messages.delete(1, ["b", None, None]),
        messages.commit(100, 150, 5),
    )
    assert found == [
        Transaction(
            position=Position(3, 150),
            commit_ts_us=POSTGRES_EPOCH_US + 5,
            trace=None,
            changes=(
                Change(
                    table="comments",
                    op="insert",
                    key={"id": "a"},
                    row={"id": "a", "body": "hello", "state": None},
                ),
                Change(table="comments", op="update", key={"id": "a"}, row={"id": "a", "state": "approved"}),
                Change(
                    table="comments",
                    op="update",
                    key={"id": "a"},
                    row={"id": "b", "body": "x", "state": "approved"},
                ),
                Change(table="comments", op="delete", key={"id": "b"}, row={}),
            ),
        )
    ]


def test_a_fence_row_begins_an_epoch_for_its_own_transaction_and_all_later_ones() -> None:
    assembler = Assembler(epoch=1)
    found = feed(
        assembler,
        messages.begin(100),
        messages.commit(100, 150),
        messages.begin(200),
        FENCE,
        messages.insert(2, ["2", "eu-west"]),
        messages.commit(200, 250),
        messages.begin(300),
        messages.commit(300, 350),
    )
    assert [one.position for one in found] == [Position(1, 150), Position(2, 250), Position(2, 350)]
    assert assembler.first_fence_epoch == 2


def test_the_trace_belongs_to_its_transaction_only() -> None:
    found = feed(
        Assembler(epoch=1),
        messages.begin(),
        messages.message("trace", b"00-1"),
        messages.message("replay", b"00-2"),
        messages.message("trace", b"00-3", transactional=False),
        messages.commit(),
        messages.begin(),
        messages.commit(),
    )
    assert [one.trace for one in found] == ["00-1", None]


def test_a_large_transaction_is_returned_in_parts_with_positions_that_nothing_else_has() -> None:
    rows = [messages.insert(1, [str(number), "x" * 400, None]) for number in range(10)]
    found = feed(
        Assembler(epoch=1, part_bytes_max=1000),
        messages.begin(100),
        COMMENTS,
        *rows,
        messages.commit(100, 150),
    )
    assert [change.key["id"] for one in found for change in one.changes] == [str(n) for n in range(10)]
    assert len(found) > 3
    assert [one.partial for one in found] == [True] * (len(found) - 1) + [False]
    assert all(Position(1, 100) < one.position < Position(1, 150) for one in found[:-1])


def test_a_row_larger_than_the_bound_is_a_part_of_its_own() -> None:
    big = messages.insert(1, ["a", "x" * 5000, None])
    assembler = Assembler(epoch=1, part_bytes_max=1000)
    found = feed(assembler, messages.begin(), COMMENTS, big, big, messages.commit())
    assert [len(one.changes) for one in found] == [1, 1]


def test_a_truncate_is_a_change_of_the_whole_table() -> None:
    found = feed(Assembler(epoch=1), messages.begin(), COMMENTS, messages.truncate(1), messages.commit())
    assert found[0].changes == (Change(table="comments", op="truncate", key={}, row={}),)


def test_types_and_origins_change_nothing() -> None:
    assembler = Assembler(epoch=1)
    found = feed(assembler, messages.begin(), messages.origin(), messages.type_(), messages.commit())
    assert found[0].changes == ()
    assert assembler.between_transactions


@pytest.mark.parametrize(
    "data",
    [
        [messages.commit()],
        [messages.begin(), messages.begin()],
        [COMMENTS, messages.insert(1, ["a", None, None])],
        [messages.begin(), messages.insert(1, ["a", None, None])],
        [messages.begin(), COMMENTS, messages.insert(1, ["a"])],
        [messages.begin(), messages.truncate(9)],
        [messages.begin(), FENCE, messages.insert(2, ["two", "x"])],
        [messages.begin(), FENCE, messages.insert(2, [None, "x"])],
    ],
)
def test_the_assembler_rejects_messages_that_the_protocol_does_not_allow(data: list[bytes]) -> None:
    with pytest.raises(UnexpectedMessage):
        feed(Assembler(epoch=1), *data)

import asyncio

import pytest

from regions.position import Position
from sync.change import Change, Progress, Transaction
from sync.channel.buffer import BUFFER_BYTES_MAX, TAKE_ITEMS_MAX, BufferedSubscription


def transaction(lsn: int, *, partial: bool = False) -> Transaction:
    change = Change(table="comments", op="insert", key={"id": str(lsn)}, row={})
    return Transaction(position=Position(1, lsn), commit_ts_us=0, trace=None, changes=(change,), partial=partial)


def progress(lsn: int) -> Progress:
    return Progress(position=Position(1, lsn), sent_at_us=lsn)


async def test_items_leave_in_order_and_in_bounded_batches() -> None:
    subscription = BufferedSubscription(Position(1, 0))
    for lsn in range(1, TAKE_ITEMS_MAX + 11):
        await subscription.put(transaction(lsn), 10)
    first, second = await subscription.take(), await subscription.take()
    assert len(first) == TAKE_ITEMS_MAX
    assert [item.position.lsn for item in first + second] == list(range(1, TAKE_ITEMS_MAX + 11))
    assert subscription._bytes == 0


async def test_put_waits_while_the_buffer_is_full() -> None:
    subscription = BufferedSubscription(Position(1, 0))
    await subscription.put(transaction(1), BUFFER_BYTES_MAX + 1)
    waiting = asyncio.create_task(subscription.put(transaction(2), 10))
    await asyncio.sleep(0)
    assert not waiting.done()
    assert subscription.received == Position(1, 1)
    assert await subscription.take() == [transaction(1)]
    await waiting
    assert await subscription.take() == [transaction(2)]


async def test_repeated_progress_takes_the_space_of_one() -> None:
    subscription = BufferedSubscription(Position(1, 0))
    for lsn in range(1, 100):
        await subscription.put(progress(lsn), 10)
    assert subscription._bytes == 10
    assert await subscription.take() == [progress(99)]


async def test_an_item_that_was_received_before_is_not_new() -> None:
    subscription = BufferedSubscription(Position(1, 10))
    assert not subscription.is_new(transaction(10))
    assert subscription.is_new(progress(10))
    assert not subscription.is_new(progress(9))
    assert subscription.is_new(transaction(11))


async def test_a_part_does_not_move_the_position_to_resume_from() -> None:
    subscription = BufferedSubscription(Position(1, 10))
    await subscription.put(transaction(15, partial=True), 1)
    assert subscription.received == Position(1, 10)
    assert subscription.is_new(transaction(15, partial=True))


async def test_only_the_latest_acknowledgement_is_returned_and_only_once() -> None:
    subscription = BufferedSubscription(Position(1, 0))
    for lsn in (5, 9, 7):
        subscription.acknowledge(Position(1, lsn))
    assert await subscription.next_acknowledgement() == Position(1, 9)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0):
            await subscription.next_acknowledgement()

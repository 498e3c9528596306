"""Tests what a repair needs of apply: its connection between two batches, a batch that ends at each position, and the
position that apply has reached."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from typing import Any

import pytest

from regions.position import Position
from sync.apply import Applied, ViewNotConnected
from sync.change import Item
from tests.sync.rig import WAIT_S, Rig, running, until
from tests.sync.test_apply import comment, thread, transaction

pytestmark = pytest.mark.integration


class HandChannel:
    """A channel that delivers what a test puts into it, all that is there at once."""

    def __init__(self) -> None:
        self.items: asyncio.Queue[list[Item]] = asyncio.Queue()
        self.acknowledged: list[Position] = []

    @contextlib.asynccontextmanager
    async def subscribe(self, start: Position) -> AsyncGenerator["HandChannel"]:
        del start
        yield self

    async def take(self) -> list[Item]:
        return await self.items.get()

    def acknowledge(self, position: Position) -> None:
        self.acknowledged.append(position)


@contextlib.asynccontextmanager
async def applying(rig: Rig) -> AsyncGenerator[tuple[Any, HandChannel]]:
    channel, applier = HandChannel(), rig.applier()
    async with asyncio.timeout(WAIT_S), running(applier.run(channel)):
        await until(lambda: applier.trouble is None)
        yield applier, channel


async def test_no_batch_is_applied_while_another_task_uses_the_connection(rig: Rig) -> None:
    async with applying(rig) as (applier, channel):
        async with applier.between_batches() as connection:
            channel.items.put_nowait([transaction(100, thread(), comment(1))])
            await until(channel.items.empty)
            await connection.execute("SELECT pg_sleep(0.05)")
            assert await connection.fetchval("SELECT count(*) FROM comments") == 0
            assert channel.acknowledged == []
        await applier.wait_until_applied(Position(1, 100))
        async with applier.between_batches() as connection:
            assert await connection.fetchval("SELECT count(*) FROM comments") == 1


async def test_each_transaction_is_a_batch_of_its_own_while_a_comparison_needs_it(rig: Rig) -> None:
    async with applying(rig) as (applier, channel):
        channel.items.put_nowait([transaction(100, thread()), transaction(101, comment(1))])
        await applier.wait_until_applied(Position(1, 101))
        assert channel.acknowledged == [Position(1, 101)]
        with applier.one_transaction_batches(), applier.one_transaction_batches():
            channel.items.put_nowait([transaction(lsn, comment(lsn)) for lsn in (102, 103, 104)])
            await applier.wait_until_applied(Position(1, 104))
        await until(lambda: channel.acknowledged == [Position(1, lsn) for lsn in (101, 102, 103, 104)])
        channel.items.put_nowait([transaction(lsn, comment(lsn)) for lsn in (105, 106)])
        await applier.wait_until_applied(Position(1, 106))
        await until(lambda: channel.acknowledged[4:] == [Position(1, 106)])


async def test_a_batch_ends_at_a_position_that_a_comparison_has_chosen(rig: Rig) -> None:
    async with applying(rig) as (applier, channel):
        applier.end_batch_at(Position(1, 102))
        channel.items.put_nowait(
            [transaction(100, thread()), *[transaction(lsn, comment(lsn)) for lsn in (101, 103, 104)]]
        )
        await applier.wait_until_applied(Position(1, 104))
        channel.items.put_nowait([transaction(lsn, comment(lsn)) for lsn in (105, 106)])
        await applier.wait_until_applied(Position(1, 106))
        await until(lambda: channel.acknowledged == [Position(1, lsn) for lsn in (101, 104, 106)])


async def test_a_wait_for_a_position_that_is_applied_ends_at_once(rig: Rig) -> None:
    async with applying(rig) as (applier, channel):
        waits = asyncio.create_task(applier.wait_until_applied(Position(1, 100)))
        channel.items.put_nowait([transaction(99, thread())])
        await applier.wait_until_applied(Position(1, 99))
        assert not waits.done()
        channel.items.put_nowait([transaction(100, comment(1))])
        await waits


async def test_the_connection_is_refused_while_apply_is_not_connected(rig: Rig) -> None:
    applier = rig.applier()
    with pytest.raises(ViewNotConnected, match="the view was not reached yet"):
        async with applier.between_batches():
            raise AssertionError("it is not connected")


async def test_a_task_that_is_cancelled_in_a_statement_ends_the_connection_and_apply_continues(rig: Rig) -> None:
    async with applying(rig) as (applier, channel):

        async def use() -> None:
            async with applier.between_batches() as connection, connection.transaction():
                await connection.execute("DELETE FROM sites")
                entered.set()
                await connection.execute("SELECT pg_sleep(60)")

        entered = asyncio.Event()
        task = asyncio.create_task(use())
        await entered.wait()
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        channel.items.put_nowait([transaction(100, thread())])
        await until(lambda: applier.counts.restarts > 0)
        channel.items.put_nowait([transaction(100, thread())])
        await applier.wait_until_applied(Position(1, 100))


async def test_effects_of_a_split_batch_are_all_reported(rig: Rig) -> None:
    reported: list[Applied[Any]] = []
    async with applying(rig) as (applier, channel):
        on_applied = applier._on_applied

        async def on(applied: Applied[Any]) -> None:
            reported.append(applied)
            await on_applied(applied)

        applier._on_applied = on
        with applier.one_transaction_batches():
            channel.items.put_nowait([transaction(100, thread()), transaction(101, comment(1))])
            await applier.wait_until_applied(Position(1, 101))
            await until(lambda: [one.position for one in reported] == [Position(1, 100), Position(1, 101)])

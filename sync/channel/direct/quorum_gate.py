"""The quorum gate: holds back the items of a change stream until a quorum has them.

Decides which items of a capture may leave the leader, and sends keepalives while none may. Does not know HTTP. **No
transaction passes before the high-water mark of the leader's epoch covers it, items pass in order, and progress is cut
to the mark** (`sync.high_water`).
"""

from collections import deque
from collections.abc import AsyncGenerator
from typing import Final

from regions.position import Position
from sync.capture import Capture
from sync.change import Item, Progress, Transaction
from sync.channel.direct.keepalive import ends_before_keepalive, keepalive, running
from sync.high_water import HighWaterMark

HELD_ITEMS_MAX: Final = 50
"""With more items than this, or with parts of a large transaction, the gate does not read the capture until all of them
have passed. So a stream holds at most the items of one read and 50 transactions, each smaller than a part."""


class QuorumGate:
    """The gate of one stream."""

    def __init__(self, capture: Capture, mark: HighWaterMark, *, start: Position) -> None:
        """Create a gate in front of an open capture.

        Args:
            capture: The gate is its only reader from now on.
            mark: The mark of the capture's epoch; in use.
            start: The position of the subscriber.
        """
        self._capture = capture
        self._mark = mark
        self._passed = start

    async def passed(self, first: list[Item]) -> AsyncGenerator[list[Item]]:
        """Yield items as soon as a quorum has them, and keepalives while it has none of them.

        Args:
            first: The items that the capture has returned so far, at least one.

        Raises:
            StreamEnded: The ledger ended the stream.
            MalformedMessage: The capture cannot parse a message.
        """
        items = deque(first)
        while True:
            passed: list[Item] = []
            if self._is_held(items[0]):
                async with running(self._until_passable(items[0])) as waiting:
                    while not await ends_before_keepalive(waiting):
                        # Not fresh: a held change may be a second old, or a day.
                        yield [keepalive(self._passed)]
                waiting.result()
                passed.append(await self._pass(items.popleft()))
            while items and not self._is_held(items[0]):
                passed.append(await self._pass(items.popleft()))
            yield passed
            if not items:
                items.extend(await self._capture.receive())
            elif len(items) < HELD_ITEMS_MAX and not any(one.partial for one in items if isinstance(one, Transaction)):
                # The held items have waited for the pause between chunks. Later items can be sent with them.
                items.extend(self._capture.receive_nowait())

    def _is_held(self, item: Item) -> bool:
        """Whether an item has to wait. A part always has to, because the end of its transaction is unknown."""
        return not isinstance(item, Progress) and (item.partial or item.position.lsn > self._mark.lsn)

    async def _until_passable(self, item: Item) -> None:
        if isinstance(item, Transaction) and item.partial:
            # The end of the transaction is unknown, but the leader has flushed it: PostgreSQL decodes at the commit.
            await self._mark.wait_for_all()
        else:
            await self._mark.wait_for_quorum(item.position.lsn)

    async def _pass(self, item: Item) -> Item:
        """Return a transaction as it is, and progress cut to the mark."""
        if isinstance(item, Progress):
            return await self._pass_progress(item)
        if not item.partial:
            self._passed = item.position
        return item

    async def _pass_progress(self, progress: Progress) -> Progress:
        """Cut progress to the mark. It stays as fresh as it was, because all changes before it were sent."""
        await self._mark.refresh()
        position = progress.position
        settled = Position(position.epoch, min(position.lsn, self._mark.lsn))
        self._passed = max(self._passed, min(position, settled))
        return Progress(position=self._passed, sent_at_us=progress.sent_at_us)

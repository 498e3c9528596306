"""The bounded buffer between a network connection and one consumer, with the consumer's latest acknowledgement.

Decides how many items the buffer holds and how many are one batch. Does not know where items come from. **Items leave
in the order of their arrival. If the buffer is full, `put` waits, which stops the reading from the network. Successive
progress items take the space of one.**
"""

import asyncio
from collections import deque
from typing import Final

from regions.position import ZERO, Position
from sync.change import Item, Progress

BUFFER_ITEMS_MAX: Final = 4000
BUFFER_BYTES_MAX: Final = 4 * 1024 * 1024
"""Enough to receive the next batch while the view commits one."""

TAKE_ITEMS_MAX: Final = 1000
TAKE_BYTES_MAX: Final = 1024 * 1024
"""The bounds of one batch. Debezium's JDBC sink commits 500 records at a time."""


class BufferedSubscription:
    """The buffer of one subscription.

    Attributes:
        received: Highest position of a complete item; a new stream begins after it.
        acknowledge_url: URL for acknowledgements while a stream is open, else None.
    """

    def __init__(self, start: Position) -> None:
        """Begin empty; the consumer has everything up to ``start``."""
        self.received = start
        self.acknowledge_url: str | None = None
        self._items: deque[tuple[Item, int]] = deque()
        self._bytes = 0
        self._filled = asyncio.Event()
        self._drained = asyncio.Event()
        self._acknowledged = ZERO
        self._acknowledgement = asyncio.Event()

    def is_new(self, item: Item) -> bool:
        """Whether no earlier stream has delivered ``item``. Progress at the received position is new, too."""
        return item.position > self.received or (isinstance(item, Progress) and item.position == self.received)

    async def put(self, item: Item, size_bytes: int) -> None:
        """Add an item; wait while the buffer is full."""
        while self._bytes > BUFFER_BYTES_MAX or len(self._items) >= BUFFER_ITEMS_MAX:
            self._drained.clear()
            await self._drained.wait()
        if self._items and isinstance(item, Progress) and isinstance(self._items[-1][0], Progress):
            self._bytes -= self._items.pop()[1]
        self._items.append((item, size_bytes))
        self._bytes += size_bytes
        if isinstance(item, Progress) or not item.partial:
            self.received = max(self.received, item.position)
        self._filled.set()

    async def take(self) -> list[Item]:
        """Wait for items; return those that have arrived, in order, at least one, up to the bounds of a batch."""
        while not self._items:
            self._filled.clear()
            await self._filled.wait()
        taken: list[Item] = []
        taken_bytes = 0
        while self._items and len(taken) < TAKE_ITEMS_MAX and taken_bytes < TAKE_BYTES_MAX:
            item, size_bytes = self._items.popleft()
            taken.append(item)
            taken_bytes += size_bytes
        self._bytes -= taken_bytes
        self._drained.set()
        return taken

    def acknowledge(self, position: Position) -> None:
        """Report that the view has committed everything up to ``position``. Does not wait."""
        if position > self._acknowledged:
            self._acknowledged = position
            self._acknowledgement.set()

    async def next_acknowledgement(self) -> Position:
        """Wait until there is an acknowledgement that this method has not returned yet; return the latest."""
        await self._acknowledgement.wait()
        self._acknowledgement.clear()
        return self._acknowledged

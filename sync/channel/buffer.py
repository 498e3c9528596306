"""The buffer between a network and one consumer, with the consumer's acknowledgements on the way back.

Decides how much may wait and how much is one batch. Refuses to know where items come from. **Items leave
in the order in which they came; a full buffer makes the network wait; repeated progress takes the space
of one.**
"""

import asyncio
from collections import deque
from typing import Final

from regions.position import ZERO, Position
from sync.change import Item, Progress

BUFFER_ITEMS_MAX: Final = 4000
BUFFER_BYTES_MAX: Final = 4 * 1024 * 1024
"""Between network and consumer: enough that one view transaction overlaps with reading the next batch."""

TAKE_ITEMS_MAX: Final = 1000
TAKE_BYTES_MAX: Final = 1024 * 1024
"""One batch of the consumer; Debezium's JDBC sink commits 500 records at a time."""


class BufferedSubscription:
    """The buffer between the network and one consumer.

    Attributes:
        received: Highest position of a complete item; where a new stream begins.
        acknowledge_url: URL that acknowledgements go to while a stream is open.
    """

    def __init__(self, start: Position) -> None:
        """Begin after ``start``."""
        self.received = start
        self.acknowledge_url: str | None = None
        self._items: deque[tuple[Item, int]] = deque()
        self._bytes = 0
        self._filled = asyncio.Event()
        self._drained = asyncio.Event()
        self._acknowledged = ZERO
        self._acknowledgement = asyncio.Event()

    def is_new(self, item: Item) -> bool:
        """Whether ``item`` is not a repetition of what a former stream brought."""
        return item.position > self.received or (isinstance(item, Progress) and item.position == self.received)

    async def put(self, item: Item, size_bytes: int) -> None:
        """Add an item; waits while the buffer is full."""
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
        """Wait for something and return what is there, bounded, in order, at least one item."""
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
        """Say that everything up to ``position`` is on disk here; returns at once."""
        if position > self._acknowledged:
            self._acknowledged = position
            self._acknowledgement.set()

    async def next_acknowledgement(self) -> Position:
        """Wait for an acknowledgement that was not returned yet."""
        await self._acknowledgement.wait()
        self._acknowledgement.clear()
        return self._acknowledged

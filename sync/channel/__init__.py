"""The interface of a channel, which carries changes from the leader's region to a region's view.

Decides what `apply` may expect of every channel. Does not know how a channel works, so that `sync.channel.direct` can
get a second implementation beside it. **A subscription yields every item after its start, in order. After an
interruption it may repeat items, and it never skips one.**
"""

from contextlib import AbstractAsyncContextManager
from typing import Protocol

from regions.position import Position
from sync.change import Item


class Subscription(Protocol):
    """An open subscription; it reconnects by itself for as long as its context lasts."""

    async def take(self) -> list[Item]:
        """Wait for items; return those that have arrived, in order, at least one, up to the bounds of the channel."""
        ...

    def acknowledge(self, position: Position) -> None:
        """Report that the view has committed everything up to ``position``. Does not wait."""
        ...


class Channel(Protocol):
    """A connection from the leader's region to this one."""

    def subscribe(self, start: Position) -> AbstractAsyncContextManager[Subscription]:
        """Open a subscription to everything after ``start``."""
        ...

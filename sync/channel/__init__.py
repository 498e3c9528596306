"""The channel: how changes come from the leader region to the view of another.

Decides what `apply` may expect of any channel, and refuses to know how one works, so that a second
implementation can stand beside `sync.channel.direct`. **A subscription yields every item after its
start, in order; after a disturbance it may yield some of them again, and never skips one.**
"""

from contextlib import AbstractAsyncContextManager
from typing import Protocol

from regions.position import Position
from sync.change import Item


class Subscription(Protocol):
    """An open subscription; it reconnects by itself for as long as its context lasts."""

    async def take(self) -> list[Item]:
        """Wait for something and return what is there, bounded, in order, at least one item."""
        ...

    def acknowledge(self, position: Position) -> None:
        """Say that everything up to ``position`` is on disk here; returns at once."""
        ...


class Channel(Protocol):
    """A way from the leader region to this one."""

    def subscribe(self, start: Position) -> AbstractAsyncContextManager[Subscription]:
        """Open a subscription to everything after ``start``."""
        ...

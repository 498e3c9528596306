"""Keeps a change stream alive while it has nothing to send.

Decides how often a keepalive is due. A keepalive is a `Progress` that repeats the stream's position with `sent_at_us`
0: the subscriber learns that the stream works, and not that its view is fresh.
"""

import asyncio
from collections.abc import AsyncGenerator, Awaitable
from contextlib import asynccontextmanager
from typing import Final, TypeVar

from regions.position import Position
from sync.change import Progress

KEEPALIVE_INTERVAL_S: Final = 1.0
"""A subscriber closes a stream after five seconds without a line (`client.SILENCE_MAX_S`)."""

_T = TypeVar("_T")


def keepalive(position: Position) -> Progress:
    """Return the keepalive of a stream that stands at ``position``."""
    return Progress(position=position, sent_at_us=0)


@asynccontextmanager
async def running(work: Awaitable[_T]) -> AsyncGenerator[asyncio.Future[_T]]:
    """Run ``work`` beside the block; cancel it at the end of the block if it still runs."""
    task = asyncio.ensure_future(work)
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.wait((task,))


async def ends_before_keepalive(task: asyncio.Future[_T]) -> bool:
    """Wait for ``task`` until a keepalive is due; return whether it has ended."""
    return bool((await asyncio.wait((task,), timeout=KEEPALIVE_INTERVAL_S))[0])

"""Applies the replicator's invalidations to the page memory, and disables the memory while announcements are missing.

Decides when the channel counts as live: from the first position on a subscription until the subscription is lost, a
message is malformed, or no position arrives for `SILENCE_S_MAX` while this process is running. A position proves that
the replicator runs and that Redis delivers messages. An answer of Redis to a ping proves neither.
"""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Final

from services.read_api.freshness import Freshness
from services.read_api.memory import PageMemory
from services.read_api.shared_cache import PING_INTERVAL_S, SharedCache
from services.view.cache import SILENCE_S_MAX, Applied, Flush, MessageMalformed, decode_message
from services.view.cancellation import raise_if_cancelled

# Pause between two attempts to subscribe. It bounds the delay after a restart of Redis; a dead Redis costs little.
RESUBSCRIBE_PAUSE_S: Final = 0.25

_log = logging.getLogger("palaver.read_api.invalidations")


async def follow_invalidations(
    shared: SharedCache, memory: PageMemory, freshness: Freshness, *, silence_s: float = SILENCE_S_MAX
) -> None:
    """Subscribe and apply messages until cancelled; subscribe again after a loss. A silence clears the memory."""
    while True:
        try:
            async with aclosing(shared.messages()) as messages:
                await _follow(messages, shared, memory, freshness, silence_s)
        except MessageMalformed as error:
            _log.warning("a malformed message voids the cached pages", extra={"reason": str(error)})
        finally:
            channel_lost(memory, freshness)
        raise_if_cancelled()
        await asyncio.sleep(RESUBSCRIBE_PAUSE_S)


def channel_lost(memory: PageMemory, freshness: Freshness) -> None:
    """Disable the memory until announcements arrive again."""
    freshness.channel_lost()
    memory.channel_lost()


async def _follow(
    messages: AsyncIterator[bytes | None],
    shared: SharedCache,
    memory: PageMemory,
    freshness: Freshness,
    silence_s: float,
) -> None:
    # Count receive timeouts, not time: after a stall of this process the announcements wait in the socket.
    pauses = 0
    async for data in messages:
        message = None if data is None else decode_message(data)
        match message:
            case None:
                pauses += 1
            case Flush(generation=generation):
                shared.generation = generation
                memory.clear()
            case Applied():
                pauses = 0
                freshness.receive(message)
            case _:
                for invalidation in message:
                    memory.invalidate((invalidation.site, invalidation.key), invalidation.version)
        if freshness.announced is not None and not memory.enabled:
            memory.enable()
            _log.info("invalidations arrive, pages are cached")
        elif memory.enabled and pauses * PING_INTERVAL_S >= silence_s:
            _log.warning("no position was announced for %.0f s: no page is cached until one is", silence_s)
            channel_lost(memory, freshness)

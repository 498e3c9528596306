"""Keeps the memory honest: applies what the replicator announces, and silences the memory when nothing is heard.

Decides when the channel is heard: from the first position on a subscription, until the subscription is lost, a message
cannot be read, or no position came for `SILENCE_S_MAX` although this process was there to hear it. A position proves
that the replicator lives and that Redis delivers; that Redis answers proves neither.
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
from services.view.cancellation import heed_cancellation

# Between two attempts to subscribe: a restarted Redis is found again within this, and a dead one costs nothing.
RESUBSCRIBE_PAUSE_S: Final = 0.25

_log = logging.getLogger("palaver.read_api.invalidations")


async def follow_invalidations(
    shared: SharedCache, memory: PageMemory, freshness: Freshness, *, silence_s: float = SILENCE_S_MAX
) -> None:
    """Subscribe and apply messages until cancelled, again and again; nothing is kept after a silence."""
    while True:
        try:
            async with aclosing(shared.messages()) as messages:
                await _follow(messages, shared, memory, freshness, silence_s)
        except MessageMalformed as error:
            _log.warning("a malformed message voids what is kept", extra={"reason": str(error)})
        finally:
            go_deaf(memory, freshness)
        heed_cancellation()
        await asyncio.sleep(RESUBSCRIBE_PAUSE_S)


def go_deaf(memory: PageMemory, freshness: Freshness) -> None:
    """Keep nothing until the channel is heard again."""
    freshness.go_deaf()
    memory.go_deaf()


async def _follow(
    messages: AsyncIterator[bytes | None],
    shared: SharedCache,
    memory: PageMemory,
    freshness: Freshness,
    silence_s: float,
) -> None:
    # Pauses in which nothing came are counted, not time: after a stall of this process the words are there to read.
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
                freshness.hear(message)
            case _:
                for invalidation in message:
                    memory.invalidate((invalidation.site, invalidation.key), invalidation.version)
        if freshness.heard is not None and not memory.heard:
            memory.hear()
            _log.info("invalidations are heard")
        elif memory.heard and pauses * PING_INTERVAL_S >= silence_s:
            _log.warning("no position was announced for %.0f s: nothing is kept until one is", silence_s)
            go_deaf(memory, freshness)

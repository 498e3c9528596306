"""Keeps the memory honest: applies what the replicator announces, and silences the memory when nothing is heard."""

import asyncio
import logging
from contextlib import aclosing
from typing import Final

from services.read_api.cancellation import heed_cancellation
from services.read_api.freshness import Freshness
from services.read_api.memory import PageMemory
from services.read_api.shared_cache import SharedCache
from services.view.cache import Applied, Flush, MessageMalformed, decode_message

# Between two attempts to subscribe: a restarted Redis is found again within this, and a dead one costs nothing.
RESUBSCRIBE_PAUSE_S: Final = 0.25

_log = logging.getLogger("palaver.read_api.invalidations")


async def follow_invalidations(shared: SharedCache, memory: PageMemory, freshness: Freshness) -> None:
    """Subscribe and apply messages until cancelled, again and again."""
    while True:
        try:
            async with aclosing(shared.messages()) as messages:
                async for message in messages:
                    if message is None:
                        memory.hear()
                        _log.info("invalidations are heard")
                    else:
                        _apply(message, shared, memory, freshness)
        finally:
            memory.go_deaf()
        heed_cancellation()
        await asyncio.sleep(RESUBSCRIBE_PAUSE_S)


def _apply(data: bytes, shared: SharedCache, memory: PageMemory, freshness: Freshness) -> None:
    try:
        message = decode_message(data)
    except MessageMalformed as error:
        _log.warning("a malformed message voids what is kept", extra={"reason": str(error)})
        memory.clear()
        return
    match message:
        case Flush(generation=generation):
            shared.generation = generation
            memory.clear()
        case Applied():
            freshness.hear(message)
        case _:
            for invalidation in message:
                memory.invalidate((invalidation.site, invalidation.key), invalidation.version)

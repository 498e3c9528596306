"""Spaces the chunks of a change stream, so that a busy ledger is sent in batches.

Decides how long a stream pauses after a chunk. Does not know the items of a chunk. **A stream that was idle sends its
first chunk without a pause.**
"""

import asyncio
import math
from typing import Final

CHUNK_INTERVAL_S: Final = 0.002
BUSY_CHUNK_INTERVAL_S: Final = 0.025
BUSY_ITEMS_PER_S: Final = 300
BUSY_WINDOW_S: Final = 0.5
"""The least time between two chunks of a stream. Changes are sent, applied and published in batches, because each
batch costs every region a round trip to its view and an fsync. PostgreSQL's commit_delay makes the same trade. Above
300 items/s, averaged over half a second, readers wait for the processor, and larger batches need less of it; a short
burst does not count as busy."""


class ChunkPacer:
    """Pauses between the chunks of one stream."""

    def __init__(self) -> None:
        """Start the clock of the first interval."""
        self._loop = asyncio.get_running_loop()
        self._sent_at = self._loop.time()
        self._elapsed_s = 0.0
        self._items_per_s = 0.0

    def begin_chunk(self) -> None:
        """Note that a chunk is sent now. Call it before the chunk is written."""
        now = self._loop.time()
        self._elapsed_s, self._sent_at = now - self._sent_at, now

    async def pause_after(self, items: int) -> None:
        """Sleep until the next chunk may be sent, after a chunk of so many items."""
        self._items_per_s = smoothed_rate(self._items_per_s, items, self._elapsed_s)
        pause_s = BUSY_CHUNK_INTERVAL_S if self._items_per_s > BUSY_ITEMS_PER_S else CHUNK_INTERVAL_S
        await asyncio.sleep(self._sent_at + pause_s - self._loop.time())


def smoothed_rate(per_s: float, items: int, elapsed_s: float) -> float:
    """Return the exponential moving average of a rate over `BUSY_WINDOW_S`, after ``items`` more in ``elapsed_s``."""
    kept = math.exp(-elapsed_s / BUSY_WINDOW_S)
    return per_s * kept + (items / BUSY_WINDOW_S if elapsed_s <= 0 else items / elapsed_s * (1 - kept))

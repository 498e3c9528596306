"""Invalidates cached pages after each commit of the view, and publishes the view's position.

Decides when a new generation, which voids all cached pages, replaces single invalidations. Never delays apply: it
queues its input and works in its own task. **A subscriber that receives a position has received every invalidation up
to it, or a new generation. After an outage of Redis a new generation begins, so no stale page is served.**

Apply may lose the list of threads that a committed batch changed: the reply of the view does not arrive, or the process
ends before `note`. Apply therefore calls `void` each time it reads its checkpoint, and the invalidator publishes
nothing until a new generation has voided all pages. Apply reads the checkpoint under its lock, so no other process
commits in between.
"""

import asyncio
import contextlib
import logging
import random
import secrets
from collections.abc import Sequence
from typing import Any, Final, Protocol, cast
from uuid import UUID

from redis.asyncio import Redis
from redis.exceptions import RedisError

from regions.identity import CellId
from regions.position import Position, encode_token
from services.view import cache
from services.view.cache import Invalidation
from services.view.cancellation import raise_if_cancelled
from sync.apply import Applied

PENDING_THREADS_MAX: Final = 10_000
"""Above this a new generation is cheaper than the invalidation of each thread, which takes about 20 script calls."""

TIMEOUT_S: Final = 1.0
"""Redis on the same machine answers in well below a millisecond; a frozen Redis does not answer."""

BACKOFF_MIN_S: Final = 0.1
BACKOFF_MAX_S: Final = 2.0
"""Readers do not use their caches while Redis is unreachable, so a fast reconnect matters more than few attempts."""

GENERATION_BITS: Final = 48
"""Bits of the random start number if Redis has no generation; two start numbers are practically never close."""

_log = logging.getLogger(__name__)


class _Client(Protocol):
    """The used part of redis-py's client, whose annotations leave most arguments unknown."""

    async def script_load(self, script: str) -> str: ...
    async def evalsha(self, script: str, keys: int, *arguments: str | bytes | int) -> object: ...
    async def aclose(self) -> None: ...


class CacheInvalidator:
    """Queues invalidations from apply, and sends them to Redis.

    Attributes:
        invalidations: Number of threads that were invalidated individually, for metrics.
        flushes: Number of generations that this process began, for metrics.
        trouble: The reason why Redis cannot be reached, one sentence; None while it can.
    """

    def __init__(self, *, cell: CellId, redis_url: str) -> None:
        """Prepare; `run` connects to Redis."""
        self._cell: CellId = cell
        self._redis_url = redis_url
        self._pending: dict[tuple[UUID, str], int] = {}
        self._announcement: bytes | None = None
        self._must_flush = True
        self._noted = asyncio.Event()
        self.invalidations = 0
        self.flushes = 0
        self.trouble: str | None = "the cache was not reached yet"

    def void(self, position: Position, fresh_at_us: int) -> None:
        """Void all cached pages before the next announcement, because apply begins at this checkpoint."""
        self._announcement = self._encode_announcement(position, fresh_at_us)
        self._flush_next()
        self._noted.set()

    def note(self, applied: Applied[Invalidation]) -> None:
        """Queue the invalidations of a committed batch; returns at once."""
        self._announcement = self._encode_announcement(applied.position, applied.fresh_at_us)
        self.invalidate(applied.effects)

    def invalidate(self, pages: Sequence[Invalidation]) -> None:
        """Queue the invalidations of pages that changed without a new position; returns at once."""
        if not self._must_flush:
            for one in pages:
                self._pending[one.site, one.key] = one.version
            if len(self._pending) > PENDING_THREADS_MAX:
                self._flush_next()
        self._noted.set()

    async def run(self) -> None:
        """Send queued invalidations and positions to Redis until cancelled."""
        backoff_s = BACKOFF_MIN_S
        while True:
            client = _connect(self._redis_url)
            try:
                await self._pass_on(client)
            except (RedisError, OSError) as error:
                if self.trouble is None:
                    backoff_s = BACKOFF_MIN_S
                self.trouble = str(error) or type(error).__name__
                _log.warning("the page cache cannot be invalidated: %s", self.trouble)
            finally:
                await client.aclose()
            raise_if_cancelled()
            self._flush_next()
            await asyncio.sleep(backoff_s * random.uniform(0.5, 1.0))  # noqa: S311 - jitter, not a secret
            backoff_s = min(2 * backoff_s, BACKOFF_MAX_S)

    async def _pass_on(self, client: _Client) -> None:
        begin = await client.script_load(cache.BEGIN_SCRIPT)
        invalidate = await client.script_load(cache.INVALIDATE_SCRIPT)
        while True:
            raise_if_cancelled()
            self._noted.clear()
            # Repeat if apply has begun again meanwhile: a batch that it lost may be newer than this generation.
            while self._must_flush:
                self._must_flush = False
                # If Redis lost the key, the new number must not be that of a generation whose pages Redis still has.
                first = secrets.randbits(GENERATION_BITS)
                await client.evalsha(begin, 1, cache.GENERATION_KEY, first, cache.CHANNEL)
                self.flushes += 1
                self.trouble = None
            await self._publish(client, invalidate)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(cache.HEARTBEAT_S):
                    await self._noted.wait()

    async def _publish(self, client: _Client, script: str) -> None:
        """Publish the queued invalidations, then the position; without invalidations the position is the heartbeat.

        Runs one script after the other, so that Redis publishes a position only after every invalidation before it.
        """
        moved = [Invalidation(site=site, key=key, version=version) for (site, key), version in self._pending.items()]
        announcement = self._announcement
        self._pending.clear()
        if announcement is None:
            return
        starts = range(0, max(1, len(moved)), cache.INVALIDATIONS_MAX)
        for start in starts:
            some = moved[start : start + cache.INVALIDATIONS_MAX]
            messages = [cache.encode_invalidations(some)] if some else []
            if start == starts[-1]:
                messages.append(announcement)
            arguments = cache.invalidate_arguments(some, messages)
            await client.evalsha(script, 1, cache.GENERATION_KEY, *arguments)
        self.invalidations += len(moved)

    def _encode_announcement(self, position: Position, fresh_at_us: int) -> bytes:
        return cache.encode_applied(encode_token(self._cell, position), fresh_at_us)

    def _flush_next(self) -> None:
        self._must_flush = True
        self._pending.clear()


def _connect(url: str) -> _Client:
    client = cast("Any", Redis).from_url(url, socket_timeout=TIMEOUT_S, socket_connect_timeout=TIMEOUT_S, retry=None)
    return cast("_Client", client)

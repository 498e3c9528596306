"""After the commit: tells the page cache and the readers which threads moved and how far the view is.

Decides when single invalidations no longer suffice and everything kept must go. Refuses to hold up apply:
it takes notes and works by itself. **Who hears a position on the channel has heard of every thread that
moved up to it, or has been told to drop everything; a Redis that is away costs a new generation, never a
stale page once it is back.**
"""

import asyncio
import logging
import random
import secrets
from collections.abc import Sequence
from typing import Any, Final, Protocol, cast
from uuid import UUID

from redis.asyncio import Redis
from redis.exceptions import RedisError

from regions.identity import CellId
from regions.position import encode_token
from services.view import cache
from services.view.cache import Invalidation
from sync.apply import Applied

PENDING_THREADS_MAX: Final = 10_000
"""Above this a new generation is cheaper than naming the threads: about 20 script calls."""

TIMEOUT_S: Final = 1.0
"""A Redis on the same machine answers in well below a millisecond; one that is frozen never does."""

BACKOFF_MIN_S: Final = 0.1
BACKOFF_MAX_S: Final = 2.0
"""Readers bypass what they keep while Redis is away, so being back soon matters more than few attempts."""

GENERATION_BITS: Final = 48
"""Where a Redis without a generation begins: two such beginnings are never near each other."""

_log = logging.getLogger(__name__)


class _Pipeline(Protocol):
    """What is used of redis-py's pipeline."""

    def evalsha(self, script: str, keys: int, *arguments: str | int) -> object: ...
    def publish(self, channel: str, message: bytes) -> object: ...
    async def execute(self) -> object: ...


class _Client(Protocol):
    """What is used of redis-py's client: its own annotations leave most arguments unknown."""

    async def script_load(self, script: str) -> str: ...
    async def incr(self, name: str) -> int: ...
    async def set(self, name: str, value: int, *, nx: bool) -> object: ...
    async def publish(self, channel: str, message: bytes) -> int: ...
    async def aclose(self) -> None: ...
    def pipeline(self, *, transaction: bool) -> _Pipeline: ...


class CacheInvalidator:
    """Takes notes from apply and passes them on.

    Attributes:
        invalidations: Threads that were invalidated by name, for metrics.
        flushes: Generations that were begun, for metrics.
        trouble: Why the cache cannot be told, one sentence; None while it can.
    """

    def __init__(self, *, cell: CellId, redis_url: str) -> None:
        """Prepare; nothing is connected before `run`."""
        self._cell: CellId = cell
        self._redis_url = redis_url
        self._pending: dict[tuple[UUID, str], int] = {}
        self._applied: Applied[Invalidation] | None = None
        self._must_flush = True
        self._noted = asyncio.Event()
        self.invalidations = 0
        self.flushes = 0
        self.trouble: str | None = "the cache was not reached yet"

    def note(self, applied: Applied[Invalidation]) -> None:
        """Take note of a committed batch; returns at once."""
        self._applied = applied
        if not self._must_flush:
            for one in applied.effects:
                self._pending[one.site, one.key] = one.version
            if len(self._pending) > PENDING_THREADS_MAX:
                self._flush_next()
        self._noted.set()

    async def run(self) -> None:
        """Pass on what was noted, for ever."""
        backoff_s = BACKOFF_MIN_S
        while True:
            client = _connect(self._redis_url)
            try:
                await self._pass_on(client)
            except (RedisError, OSError) as error:
                if self.trouble is None:
                    backoff_s = BACKOFF_MIN_S
                self.trouble = str(error) or type(error).__name__
                _log.warning("the page cache cannot be told: %s", self.trouble)
            finally:
                await client.aclose()
            self._flush_next()
            await asyncio.sleep(backoff_s * random.uniform(0.5, 1.0))  # noqa: S311 - jitter, not a secret
            backoff_s = min(2 * backoff_s, BACKOFF_MAX_S)

    async def _pass_on(self, client: _Client) -> None:
        script = await client.script_load(cache.INVALIDATE_SCRIPT)
        self._noted.set()
        generation = 0
        while True:
            await self._noted.wait()
            self._noted.clear()
            if self._must_flush:
                self._must_flush = False
                # A key that was lost must not lead back to a generation whose pages are still there.
                await client.set(cache.GENERATION_KEY, secrets.randbits(GENERATION_BITS), nx=True)
                generation = await client.incr(cache.GENERATION_KEY)
                await client.publish(cache.CHANNEL, cache.encode_flush(generation))
                self.flushes += 1
                self.trouble = None
            await self._tell(client, script, generation)

    async def _tell(self, client: _Client, script: str, generation: int) -> None:
        """Send one batch in one round trip: the scripts, then the messages, then the position."""
        moved = [Invalidation(site=site, key=key, version=version) for (site, key), version in self._pending.items()]
        applied = self._applied
        self._pending.clear()
        pipeline = client.pipeline(transaction=False)
        for start in range(0, len(moved), cache.INVALIDATIONS_MAX):
            _add(pipeline, script, generation, moved[start : start + cache.INVALIDATIONS_MAX])
        if applied is not None:
            token = encode_token(self._cell, applied.position)
            pipeline.publish(cache.CHANNEL, cache.encode_applied(token, applied.fresh_at_us))
            await pipeline.execute()
            self.invalidations += len(moved)

    def _flush_next(self) -> None:
        self._must_flush = True
        self._pending.clear()


def _add(pipeline: _Pipeline, script: str, generation: int, moved: Sequence[Invalidation]) -> None:
    keys = [cache.thread_key(generation, one.site, one.key) for one in moved]
    versions = [one.version for one in moved]
    pipeline.evalsha(script, len(keys), *keys, cache.THREAD_TTL_S, *versions)
    pipeline.publish(cache.CHANNEL, cache.encode_invalidations(moved))


def _connect(url: str) -> _Client:
    client = cast("Any", Redis).from_url(url, socket_timeout=TIMEOUT_S, socket_connect_timeout=TIMEOUT_S, retry=None)
    return cast("_Client", client)

"""Reads and writes the page cache that the processes of a region share in Redis, and receives invalidations.

Decides that reads never depend on Redis: each command has a short time limit, after a failure Redis is not used for a
moment, and callers see no failures. The cache is used only while the invalidation channel is live. The Redis client has
imprecise types, so no other module uses it.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator
from typing import Any, Final, cast

from prometheus_client import Counter
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from services.read_api.memory import Thread
from services.read_api.page import Page
from services.view import cache
from services.view.cancellation import raise_if_cancelled

# A local Redis answers in well below a millisecond. After this time a query of the view is faster.
COMMAND_TIMEOUT_S: Final = 0.1
CONNECT_TIMEOUT_S: Final = 0.5
# After a failure Redis is not used for this long, so that a dead Redis delays one request and not all of them.
SHUN_S: Final = 0.5
CONNECTIONS_MAX: Final = 16
# A ping after each second without a message detects a dead or frozen Redis within two seconds.
PING_INTERVAL_S: Final = 1.0

_FAILURES: Final = Counter("palaver_page_cache_failures_total", "Redis commands that failed")
_LOOKUPS: Final = Counter("palaver_page_cache_lookups_total", "Pages looked for", ["where", "result"])
HIT_MEMORY: Final = _LOOKUPS.labels("memory", "hit")
_HIT: Final = _LOOKUPS.labels("redis", "hit")
_MISS: Final = _LOOKUPS.labels("redis", "miss")

_FAILED: Final = (RedisError, OSError, TimeoutError)
_log = logging.getLogger("palaver.read_api.cache")


class SharedCache:
    """The region's Redis as the read API uses it."""

    def __init__(self, url: str, *, page_life_s: int) -> None:
        """Prepare. This does not connect.

        Args:
            url: The region's Redis.
            page_life_s: Life of a page in Redis.
        """
        self._page_life_s = page_life_s
        client = cast("Any", Redis).from_url(
            url,
            socket_timeout=COMMAND_TIMEOUT_S,
            socket_connect_timeout=CONNECT_TIMEOUT_S,
            max_connections=CONNECTIONS_MAX,
            retry=Retry(NoBackoff(), 0),
        )
        self._redis = client
        self._store = client.register_script(cache.STORE_SCRIPT)
        self._url = url
        self._shunned_until_s = 0.0
        self.generation: int | None = None

    async def close(self) -> None:
        """Close the connections."""
        await self._redis.aclose()

    async def get(self, thread: Thread, field: str) -> Page | None:
        """Return a cached page, or None if Redis does not have it or does not answer."""
        if self.generation is None or self._shunned():
            return None
        try:
            data = await self._redis.hget(cache.thread_key(self.generation, *thread), field)
        except _FAILED as error:
            self._shun(error)
            return None
        page = None if data is None else _decode(data)
        (_MISS if page is None else _HIT).inc()
        return page

    async def put(self, thread: Thread, field: str, page: Page) -> None:
        """Store a page unless Redis has a newer version of the thread. A failure is ignored."""
        if self.generation is None or self._shunned() or page.version is None:
            return
        try:
            await self._store(
                keys=[cache.thread_key(self.generation, *thread), cache.version_key(self.generation, *thread)],
                args=cache.store_arguments(page.version, field, _encode(page), self._page_life_s),
            )
        except _FAILED as error:
            self._shun(error)

    async def messages(self) -> AsyncGenerator[bytes | None]:
        """Subscribe and yield each message, and None after each second without one. End when Redis does not answer."""
        client = cast("Any", Redis).from_url(
            self._url,
            socket_timeout=PING_INTERVAL_S,
            socket_connect_timeout=CONNECT_TIMEOUT_S,
            retry=Retry(NoBackoff(), 0),
        )
        channel = client.pubsub()
        try:
            await channel.subscribe(cache.CHANNEL)
            unanswered_pings = 0
            while unanswered_pings < 2:  # noqa: PLR2004 - a busy Redis may miss one ping
                raise_if_cancelled()
                message = await channel.get_message(timeout=PING_INTERVAL_S)
                if message is None:
                    unanswered_pings += 1
                    await channel.ping()
                    yield None
                    continue
                unanswered_pings = 0
                if message["type"] == "subscribe":
                    # Read after Redis confirmed the subscription, so that this client receives a later generation as
                    # a message. Without the key there is no generation, and nothing is cached: pages of an older
                    # generation would never be dropped.
                    generation = await client.get(cache.GENERATION_KEY)
                    self.generation = None if generation is None else int(generation)
                elif message["type"] == "message":
                    yield message["data"]
        except _FAILED as error:
            _log.info("the invalidation channel was lost", extra={"reason": str(error)})
        finally:
            self.generation = None
            await asyncio.shield(channel.aclose())
            await asyncio.shield(client.aclose())

    def _shunned(self) -> bool:
        return asyncio.get_running_loop().time() < self._shunned_until_s

    def _shun(self, error: BaseException) -> None:
        _FAILURES.inc()
        _log.warning("Redis does not answer", extra={"reason": f"{type(error).__name__}: {error}"})
        self._shunned_until_s = asyncio.get_running_loop().time() + SHUN_S


def _encode(page: Page) -> bytes:
    return b"%d\n%b\n%b\n%b" % (page.version, page.etag, page.link, page.body)


def _decode(data: bytes) -> Page:
    version, etag, link, body = data.split(b"\n", 3)
    return Page(version=int(version), etag=etag, link=link, body=body)

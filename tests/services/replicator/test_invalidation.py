"""Tests the invalidation of cached pages and the channel of announcements on a real Redis."""

import uuid
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any, cast
from uuid import UUID

import pytest
from redis.asyncio import Redis

from regions.position import Position, encode_token
from services.replicator import invalidation
from services.replicator.invalidation import CacheInvalidator
from services.view import cache
from services.view.cache import Invalidation
from sync.apply import Applied
from tests.servers import RedisServer
from tests.sync.rig import CELL, running, until

pytestmark = pytest.mark.integration

SITE = uuid.uuid4()


def applied(lsn: int, *keys: str, site: UUID = SITE) -> Applied[Invalidation]:
    return Applied(
        position=Position(1, lsn),
        fresh_at_us=lsn,
        transactions=[],
        effects=[Invalidation(site=site, key=key, version=lsn) for key in keys],
    )


def position(lsn: int) -> cache.Applied:
    return cache.Applied(position=encode_token(CELL, Position(1, lsn)), fresh_at_us=lsn)


@asynccontextmanager
async def client(redis: RedisServer) -> AsyncGenerator[Any]:
    connection: Any = cast("Any", Redis).from_url(redis.url)
    try:
        yield connection
    finally:
        await connection.aclose()


@asynccontextmanager
async def listening(redis: RedisServer) -> AsyncGenerator[list[object]]:
    """Collect the messages of the channel."""
    heard: list[object] = []
    async with client(redis) as connection, connection.pubsub() as channel:
        await channel.subscribe(cache.CHANNEL)

        async def listen() -> None:
            async for message in channel.listen():
                if message["type"] == "message":
                    heard.append(cache.decode_message(message["data"]))  # noqa: PERF401 - tests read the list while it grows

        async with running(listen()):
            yield heard


async def test_the_invalidator_begins_with_a_new_generation_and_a_flush(redis: RedisServer) -> None:
    async with client(redis) as connection, listening(redis) as heard:
        before = 7
        await connection.set(cache.GENERATION_KEY, before)
        invalidator = CacheInvalidator(cell=CELL, redis_url=redis.url)
        async with running(invalidator.run()):
            await until(lambda: heard != [])
        assert heard == [cache.Flush(generation=before + 1)]
        assert int(await connection.get(cache.GENERATION_KEY)) == before + 1


async def test_a_lost_generation_is_never_used_again(redis: RedisServer) -> None:
    seen: set[int] = set()
    async with client(redis) as connection:
        for _ in range(3):
            await connection.delete(cache.GENERATION_KEY)
            invalidator = CacheInvalidator(cell=CELL, redis_url=redis.url)
            async with running(invalidator.run()):
                await until(lambda: invalidator.trouble is None)  # noqa: B023 - it is awaited within the iteration
                seen.add(int(await connection.get(cache.GENERATION_KEY)))
    assert len(seen) == 3


async def test_changed_pages_are_dropped_and_published_before_the_position(redis: RedisServer) -> None:
    invalidator = CacheInvalidator(cell=CELL, redis_url=redis.url)
    async with client(redis) as connection, listening(redis) as heard, running(invalidator.run()):
        await until(lambda: heard != [])
        generation = int(await connection.get(cache.GENERATION_KEY))
        page, other = (cache.thread_key(generation, SITE, key) for key in ("/moved", "/still"))
        for key in (page, other):
            await connection.hset(key, "query", b"bytes")
        heard.clear()
        invalidator.note(applied(7, "/moved"))
        await until(lambda: any(isinstance(message, cache.Applied) for message in heard))
        assert await connection.hgetall(page) == {}
        assert await connection.get(cache.version_key(generation, SITE, "/moved")) == b"7"
        assert await connection.hget(other, "query") == b"bytes"
    assert heard == [
        [Invalidation(site=SITE, key="/moved", version=7)],
        cache.Applied(position=encode_token(CELL, Position(1, 7)), fresh_at_us=7),
    ]


async def test_a_position_without_changed_pages_is_published_at_once(redis: RedisServer) -> None:
    invalidator = CacheInvalidator(cell=CELL, redis_url=redis.url)
    async with listening(redis) as heard, running(invalidator.run()):
        await until(lambda: heard != [])
        invalidator.note(applied(9))
        await until(lambda: len(heard) >= 2)
    assert heard[1] == cache.Applied(position=encode_token(CELL, Position(1, 9)), fresh_at_us=9)


async def test_many_changed_pages_are_published_in_messages_of_bounded_size(redis: RedisServer) -> None:
    invalidator = CacheInvalidator(cell=CELL, redis_url=redis.url)
    async with listening(redis) as heard, running(invalidator.run()):
        await until(lambda: heard != [])
        invalidator.note(applied(3, *(str(number) for number in range(cache.INVALIDATIONS_MAX * 2 + 1))))
        await until(lambda: any(isinstance(message, cache.Applied) for message in heard))
    sizes = [len(cast("list[object]", message)) for message in heard if isinstance(message, list)]
    assert sizes == [cache.INVALIDATIONS_MAX, cache.INVALIDATIONS_MAX, 1]


async def test_a_start_of_apply_begins_a_generation_before_its_position_is_published(redis: RedisServer) -> None:
    invalidator = CacheInvalidator(cell=CELL, redis_url=redis.url)
    async with listening(redis) as heard, running(invalidator.run()):
        await until(lambda: heard != [])
        invalidator.note(applied(3))
        await until(lambda: len(heard) > 1)
        heard.clear()
        invalidator.void(Position(1, 5), 5)
        invalidator.note(applied(6, "/a"))
        await until(lambda: position(6) in heard)
    # A repetition of the old position may come first; the new position comes after the generation.
    messages = [message for message in heard if message != position(3)]
    assert [type(message) for message in messages][:2] == [cache.Flush, cache.Applied]


async def test_a_start_of_apply_while_a_generation_begins_causes_another_generation(redis: RedisServer) -> None:
    invalidator = CacheInvalidator(cell=CELL, redis_url=redis.url)
    async with client(redis) as connection, listening(redis) as heard, running(invalidator.run()):
        await until(lambda: invalidator.flushes == 1)
        redis.pause()
        try:
            invalidator.void(Position(1, 5), 5)
            await until(lambda: not invalidator._must_flush)  # the first generation is being started
            invalidator.void(Position(1, 7), 7)
        finally:
            redis.resume()
        await until(lambda: position(7) in heard)
        assert invalidator.flushes >= 3
        last = max(number for number, message in enumerate(heard) if isinstance(message, cache.Flush))
        assert heard.index(position(7)) > last
        assert int(await connection.get(cache.GENERATION_KEY)) == cast("Any", heard[last]).generation


async def test_the_position_is_repeated_while_nothing_changes(redis: RedisServer) -> None:
    invalidator = CacheInvalidator(cell=CELL, redis_url=redis.url)
    async with listening(redis) as heard, running(invalidator.run()):
        await until(lambda: heard != [])
        invalidator.void(Position(1, 5), 5)
        await until(lambda: heard.count(position(5)) >= 3)


async def test_no_position_is_published_before_a_flush_if_redis_refuses_an_invalidation(redis: RedisServer) -> None:
    invalidator = CacheInvalidator(cell=CELL, redis_url=redis.url)
    async with client(redis) as connection, listening(redis) as heard, running(invalidator.run()):
        await until(lambda: heard != [])
        heard.clear()
        await connection.script_flush()
        invalidator.note(applied(5, "/a"))
        await until(lambda: position(5) in heard)
    assert [type(message) for message in heard][:2] == [cache.Flush, cache.Applied]


async def test_a_generation_that_is_lost_while_nothing_changes_is_replaced(redis: RedisServer) -> None:
    invalidator = CacheInvalidator(cell=CELL, redis_url=redis.url)
    async with client(redis) as connection, listening(redis) as heard, running(invalidator.run()):
        await until(lambda: heard != [])
        invalidator.void(Position(1, 5), 5)
        await until(lambda: position(5) in heard)
        heard.clear()
        await connection.flushall()
        await until(lambda: any(isinstance(message, cache.Flush) for message in heard))


async def test_too_many_pages_become_a_new_generation(redis: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(invalidation, "PENDING_THREADS_MAX", 10)
    invalidator = CacheInvalidator(cell=CELL, redis_url=redis.url)
    async with listening(redis) as heard, running(invalidator.run()):
        await until(lambda: heard != [])
        heard.clear()
        invalidator.note(applied(3, *(str(number) for number in range(11))))
        await until(lambda: any(isinstance(message, cache.Applied) for message in heard))
    assert [type(message) for message in heard] == [cache.Flush, cache.Applied]


@pytest.mark.parametrize("fault", ["kill", "pause"])
async def test_a_redis_that_returns_gets_a_new_generation_and_nothing_waits_for_redis(
    redis: RedisServer, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(invalidation, "TIMEOUT_S", 0.2)
    invalidator = CacheInvalidator(cell=CELL, redis_url=redis.url)
    async with running(invalidator.run()):
        await until(lambda: invalidator.trouble is None)
        (redis.kill if fault == "kill" else redis.pause)()
        try:
            invalidator.note(applied(5, "/a"))
            await until(lambda: invalidator.trouble is not None)
            flushes = invalidator.flushes
            invalidator.note(applied(6, "/b"))
        finally:
            (redis.start if fault == "kill" else redis.resume)()
        async with listening(redis) as heard:
            await until(lambda: invalidator.trouble is None)
            invalidator.note(applied(7))
            await until(lambda: any(isinstance(message, cache.Applied) for message in heard))
    assert invalidator.flushes == flushes + 1

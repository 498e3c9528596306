import uuid
from collections.abc import Generator
from typing import Any, cast

import pytest
import redis

from services.view import cache
from services.view.cache import (
    Applied,
    Flush,
    Invalidation,
    MessageMalformed,
    decode_message,
    encode_applied,
    encode_flush,
    encode_invalidations,
    thread_key,
)
from tests import servers
from tests.servers import RedisServer


def test_messages_come_back_as_they_were() -> None:
    moved = [Invalidation(site=uuid.uuid4(), key="ä/?", version=2**40)]
    assert decode_message(encode_invalidations(moved)) == moved
    assert decode_message(encode_flush(7)) == Flush(generation=7)
    assert decode_message(encode_applied("main.1.00", 5)) == Applied(position="main.1.00", fresh_at_us=5)


@pytest.mark.parametrize("data", [b"", b"1", b"{}", b"[1]", b'[{"site":"x","key":"k","version":1}]', b'{"flush":"x"}'])
def test_a_message_of_somebody_else_is_refused(data: bytes) -> None:
    with pytest.raises(MessageMalformed):
        decode_message(data)


def test_keys_differ_by_generation_site_and_thread() -> None:
    one, other = uuid.uuid4(), uuid.uuid4()
    keys = {thread_key(g, s, k) for g in (1, 2) for s in (one, other) for k in ("a", "b")}
    assert len(keys) == 8


@pytest.fixture(scope="module")
def page_cache() -> Generator[RedisServer]:
    with servers.redis_server() as server:
        yield server


@pytest.mark.integration
def test_nothing_prolongs_the_life_of_a_page(page_cache: RedisServer) -> None:
    client = cast("Any", redis.Redis).from_url(page_cache.url)
    client.set(cache.GENERATION_KEY, 7)
    moved = [Invalidation(site=uuid.uuid4(), key="a", version=5)]
    key = thread_key(7, moved[0].site, "a")

    def invalidate() -> None:
        client.eval(cache.INVALIDATE_SCRIPT, 1, cache.GENERATION_KEY, *cache.invalidate_arguments(moved, []))

    def store(field: str, life_s: int) -> None:
        assert client.eval(cache.STORE_SCRIPT, 1, key, 5, field, "bytes", life_s, cache.FIELDS_MAX) == 1

    invalidate()
    assert client.ttl(key) > 60
    store("one", 60)
    assert 0 < client.ttl(key) <= 60
    client.expire(key, 30)
    store("another", 60)
    invalidate()
    assert client.hkeys(key) == [b"version", b"one", b"another"]
    assert 0 < client.ttl(key) <= 30

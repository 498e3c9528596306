"""Tests the messages and the Lua scripts of the page cache."""

import time
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
    encode_invalidations,
    store_arguments,
    thread_key,
    version_key,
)
from tests import servers
from tests.servers import RedisServer


def test_messages_survive_encoding_and_decoding() -> None:
    moved = [Invalidation(site=uuid.uuid4(), key="ä/?", version=2**40)]
    assert decode_message(encode_invalidations(moved)) == moved
    assert decode_message(b'{"flush":7}') == Flush(generation=7)
    assert decode_message(encode_applied("main.1.00", 5)) == Applied(position="main.1.00", fresh_at_us=5)


@pytest.mark.parametrize("data", [b"", b"1", b"{}", b"[1]", b'[{"site":"x","key":"k","version":1}]', b'{"flush":"x"}'])
def test_a_foreign_message_is_refused(data: bytes) -> None:
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


@pytest.fixture
def client(page_cache: RedisServer) -> Generator[Any]:
    client = cast("Any", redis.Redis).from_url(page_cache.url)
    client.set(cache.GENERATION_KEY, 7)
    yield client
    client.flushall()


SITE = uuid.uuid4()
PAGES, VERSION = thread_key(7, SITE, "a"), version_key(7, SITE, "a")


def invalidate(client: Any, version: int) -> None:
    moved = [Invalidation(site=SITE, key="a", version=version)]
    client.eval(cache.INVALIDATE_SCRIPT, 1, cache.GENERATION_KEY, *cache.invalidate_arguments(moved, []))


def store(client: Any, version: int, field: str, life_s: int = 60) -> bool:
    arguments = store_arguments(version, field, b"bytes", life_s)
    return client.eval(cache.STORE_SCRIPT, 2, PAGES, VERSION, *arguments) == 1


@pytest.mark.integration
def test_no_command_extends_the_life_of_a_page(client: Any) -> None:
    invalidate(client, 5)
    assert store(client, 5, "one")
    assert 0 < client.ttl(PAGES) <= 60
    client.expire(PAGES, 30)
    assert store(client, 5, "another")
    invalidate(client, 5)
    assert client.hkeys(PAGES) == [b"one", b"another"]
    assert 0 < client.ttl(PAGES) <= 30


@pytest.mark.integration
def test_an_older_page_is_refused_even_after_the_newer_one_has_expired(client: Any) -> None:
    invalidate(client, 4)
    assert store(client, 5, "by another reader", 1)
    deadline_s = time.monotonic() + 30
    while client.hget(PAGES, "by another reader") is not None:
        assert time.monotonic() < deadline_s
        time.sleep(0.02)
    assert not store(client, 4, "late")
    assert client.hgetall(PAGES) == {}
    assert store(client, 5, "in time")


@pytest.mark.integration
def test_a_version_outlives_the_pages_that_are_stored_under_it(client: Any) -> None:
    for bring in (lambda: invalidate(client, 5), lambda: store(client, 5, "one"), lambda: store(client, 6, "one")):
        bring()
        assert cache.TOMBSTONE_TTL_S - 60 < client.ttl(VERSION) <= cache.TOMBSTONE_TTL_S
        client.expire(VERSION, 30)
    assert store(client, 6, "another")
    assert client.ttl(VERSION) > client.ttl(PAGES)


@pytest.mark.integration
def test_a_newer_version_drops_the_pages_of_the_older_and_fields_are_bounded(client: Any) -> None:
    assert store(client, 5, "old")
    assert [store(client, 6, f"{number}") for number in range(cache.FIELDS_MAX + 1)] == [True] * cache.FIELDS_MAX + [
        False
    ]
    assert client.hget(PAGES, "old") is None
    invalidate(client, 7)
    assert client.exists(PAGES) == 0
    assert not store(client, 6, "late")

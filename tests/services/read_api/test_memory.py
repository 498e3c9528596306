"""Tests which pages the memory cache stores while a thread changes."""

import uuid

import pytest

from services.read_api.claim import NOTHING
from services.read_api.memory import PageMemory, Request, Thread
from services.read_api.page import Page

THREAD = (uuid.UUID(int=1), "thread")
REQUEST = ("/v1/sites/1/comments", b"thread=thread")


def page(version: int) -> Page:
    return Page(body=b"{}", etag=b'"1"', link=b"", version=version)


@pytest.fixture
def memory() -> PageMemory:
    memory = PageMemory(bytes_max=10**6, life_s=60)
    memory.enable()
    return memory


def test_a_page_that_was_read_before_an_invalidation_is_not_cached(memory: PageMemory) -> None:
    build = memory.begin(THREAD)
    memory.invalidate(THREAD, 2)
    memory.keep(REQUEST, build, page(1), NOTHING)
    memory.end(build)
    assert memory.get(REQUEST) is None


def test_a_page_with_the_invalidated_version_is_cached(memory: PageMemory) -> None:
    build = memory.begin(THREAD)
    memory.invalidate(THREAD, 2)
    memory.keep(REQUEST, build, page(2), NOTHING)
    memory.end(build)
    assert memory.get(REQUEST) is not None


def test_the_end_of_one_build_does_not_hide_invalidations_from_another(memory: PageMemory) -> None:
    slow, fast = memory.begin(THREAD), memory.begin(THREAD)
    memory.end(fast)
    memory.invalidate(THREAD, 2)
    memory.keep(REQUEST, slow, page(1), NOTHING)
    memory.end(slow)
    assert memory.get(REQUEST) is None


def test_a_page_whose_build_spans_a_loss_of_the_channel_is_not_cached(memory: PageMemory) -> None:
    build = memory.begin(THREAD)
    memory.channel_lost()
    memory.enable()
    memory.keep(REQUEST, build, page(9), NOTHING)
    memory.end(build)
    assert memory.get(REQUEST) is None


def test_a_cached_page_has_a_bounded_life() -> None:
    now_s = 0.0
    memory = PageMemory(bytes_max=10**6, life_s=60, now=lambda: now_s)
    memory.enable()
    build = memory.begin(THREAD)
    memory.keep(REQUEST, build, page(1), NOTHING)
    memory.end(build)
    for now_s in (30.0, 59.0):  # noqa: B007 - the cache reads it
        assert memory.get(REQUEST) is not None
    now_s = 60.0
    assert memory.get(REQUEST) is None
    assert memory.bytes == 0


LONG = "x" * 30_000


@pytest.mark.parametrize(
    ("request_", "thread", "link"),
    [
        (("/" + LONG, b""), THREAD, b""),
        (("/", LONG.encode()), THREAD, b""),
        (REQUEST, (THREAD[0], LONG), b""),
        (REQUEST, THREAD, LONG.encode()),
    ],
    ids=["path", "query", "thread", "link"],
)
def test_the_memory_bound_counts_every_client_text_of_a_page(request_: Request, thread: Thread, link: bytes) -> None:
    memory = PageMemory(bytes_max=10**6, life_s=60)
    memory.enable()
    requests = [(request_[0], request_[1] + b"%d" % number) for number in range(100)]
    for request in requests:
        build = memory.begin(thread)
        entry = memory.keep(request, build, Page(body=b"{}", etag=b'"1"', link=link, version=1), NOTHING)
        memory.end(build)
        memory.keep_gzipped(request, entry, entry.gzip())
    assert sum(memory.get(request) is not None for request in requests) <= 33
    memory.invalidate(thread, 2)
    assert memory.bytes == 0

"""Tests the positions and ages in answers while Redis, the replicator or the view fails."""

import asyncio
import time
import uuid

import httpx
import pytest

from regions.position import Position, decode_token, encode_token
from services.read_api.freshness import Freshness
from services.view import cache
from tests.services.read_api.conftest import CELL, Api, Thread, Writer, problem, running_api
from tests.waiting import until

pytestmark = pytest.mark.integration

FIRST, SECOND = Position(1, 0x100), Position(1, 0x200)


def claimed(answer: httpx.Response) -> Position:
    return decode_token(answer.headers["palaver-position"])[1]


def assert_true(answer: httpx.Response) -> None:
    """Assert that an answer with the second position has the second comment."""
    assert answer.status_code == 200, answer.text
    assert claimed(answer) < SECOND or len(answer.json()["comments"]) == 2, answer.headers


async def keep_a_page(api: Api, writer: Writer, age_s: float = 0) -> Thread:
    """Put a page with one comment at the first position into memory and Redis. Its data is `age_s` seconds old."""
    thread = writer.thread()
    thread.add()
    writer.say(writer.checkpoint(FIRST.epoch, FIRST.lsn, age_s=age_s), age_s=age_s)
    await until(lambda: api.freshness.announced is not None and api.freshness.announced.position == FIRST)
    async with asyncio.timeout(10):
        while not api.memory.bytes:
            await api.page()
    return thread


async def advance_without_invalidation(api: Api, writer: Writer, thread: Thread) -> None:
    """Move the view to the second position without an invalidation, and wait until the poll has seen it."""
    await asyncio.to_thread(thread.add, announce=False)
    await asyncio.to_thread(writer.checkpoint, SECOND.epoch, SECOND.lsn)
    await until(lambda: api.freshness.applied == SECOND)
    await api.polled()  # the poll has seen the position more than once


@pytest.mark.parametrize("fault", ["killed", "paused", "silent"])
async def test_no_answer_claims_a_position_that_was_not_announced(writer: Writer, fault: str) -> None:
    async with running_api(writer, silence_s=cache.SILENCE_S_MAX) as api:
        await assert_only_announced_positions(api, writer, fault)


async def assert_only_announced_positions(api: Api, writer: Writer, fault: str) -> None:
    thread = await keep_a_page(api, writer)
    if fault == "killed":
        await asyncio.to_thread(writer.page_cache.kill)
    elif fault == "paused":
        writer.page_cache.pause()
    writer.silent = True
    try:
        await advance_without_invalidation(api, writer, thread)
        while api.memory.enabled:
            assert_true(await api.page())
            assert_true(await api.page(limit=7))
            bounded = await api.page(headers={"palaver-consistency": "bounded=0.5"})
            if bounded.status_code == 200:
                assert_true(bounded)
            await asyncio.sleep(0.05)
        deaf = await api.page()
        assert (claimed(deaf), len(deaf.json()["comments"])) == (SECOND, 2)
    finally:
        if fault == "killed":
            await asyncio.to_thread(writer.page_cache.start)
        elif fault == "paused":
            writer.page_cache.resume()
    writer.silent = False
    await asyncio.to_thread(writer.begin_generation)
    writer.say(encode_token(CELL, SECOND))
    await until(lambda: api.memory.enabled)
    assert len((await api.page()).json()["comments"]) == 2


async def test_a_page_from_redis_claims_the_announced_position(api: Api, writer: Writer) -> None:
    thread = await keep_a_page(api, writer)
    writer.silent = True
    api.memory.clear()
    await advance_without_invalidation(api, writer, thread)
    assert_true(await api.page())


async def test_a_bounded_read_skips_a_cached_page_that_is_too_old(api: Api, writer: Writer) -> None:
    thread = await keep_a_page(api, writer, age_s=3600)
    await advance_without_invalidation(api, writer, thread)
    assert len((await api.page()).json()["comments"]) == 1
    refused = await api.page(headers={"palaver-consistency": "bounded=0"})
    assert problem(refused) == "too-stale"
    answer = await api.page(headers={"palaver-consistency": "bounded=1800"})
    assert (claimed(answer), len(answer.json()["comments"])) == (SECOND, 2)


async def test_many_bounded_readers_of_a_page_that_is_too_old_cause_one_query(api: Api, writer: Writer) -> None:
    thread = await keep_a_page(api, writer, age_s=3600)
    await advance_without_invalidation(api, writer, thread)
    before = api.reader.queries
    api.reader.hold = asyncio.Event()
    headers = {"palaver-consistency": "bounded=1800"}
    reading = [asyncio.ensure_future(api.page(headers=headers)) for _ in range(30)]
    await until(lambda: api.reader.held > 0)
    await asyncio.sleep(0)
    api.reader.hold.set()
    assert {answer.status_code for answer in await asyncio.gather(*reading)} == {200}
    assert api.reader.queries == before + 1


async def test_a_session_read_uses_a_cached_page_after_its_position_was_announced(api: Api, writer: Writer) -> None:
    await keep_a_page(api, writer)
    token = encode_token(CELL, SECOND)
    writer.say(token)
    await until(lambda: api.freshness.announced is not None and api.freshness.announced.position == SECOND)
    answer = await api.page(headers={"palaver-position": token})
    assert (claimed(answer), api.reader.queries) == (SECOND, 1)
    assert answer.headers["palaver-consistency"].startswith("session; ")


@pytest.mark.parametrize("what", ["page", "comment", "counts", "no site", "no comment"])
async def test_an_answer_does_not_claim_a_position_that_was_applied_after_its_query(
    api: Api, writer: Writer, what: str
) -> None:
    thread = writer.thread()
    comment = thread.add()
    writer.say(writer.checkpoint(FIRST.epoch, FIRST.lsn))
    await until(lambda: api.freshness.applied == FIRST)
    site = f"/v1/sites/{writer.site}"
    path, query = {
        "page": (f"{site}/comments", {"thread": thread.key}),
        "comment": (f"{site}/comments/{comment}", {}),
        "counts": (f"{site}/counts", {"thread": thread.key}),
        "no site": (f"/v1/sites/{uuid.uuid4()}/comments", {"thread": thread.key}),
        "no comment": (f"{site}/comments/{uuid.uuid4()}", {}),
    }[what]
    api.reader.hold = asyncio.Event()
    reading = asyncio.ensure_future(api.http.get(path, params=query))
    await until(lambda: api.reader.held == 1)
    writer.say(encode_token(CELL, SECOND))
    await until(lambda: api.freshness.applied == SECOND)
    await api.polled()
    api.reader.hold.set()
    assert claimed(await reading) == FIRST


async def test_the_position_of_a_replaced_view_is_used_even_if_it_is_older(api: Api, writer: Writer) -> None:
    await keep_a_page(api, writer)
    writer.view.sql("DELETE FROM checkpoint")
    await until(lambda: api.freshness.applied < FIRST)
    assert not api.memory.enabled
    answer = await api.page(headers={"palaver-position": encode_token(CELL, FIRST)})
    assert answer.headers["palaver-consistency"].startswith("eventual; asked=session; ")
    assert claimed(answer) < FIRST
    # The replicator repeats an earlier announcement, which is no evidence about the new view.
    assert api.freshness.announced is None
    writer.say(writer.checkpoint(FIRST.epoch, FIRST.lsn + 1))
    await until(lambda: api.memory.enabled)


def test_a_repeated_announcement_does_not_reset_its_age(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now_s)
    freshness = Freshness(CELL)
    # The leader's clock is a day ahead, so the age is the time since the announcement arrived.
    word = cache.Applied(position=encode_token(CELL, FIRST), fresh_at_us=int((time.time() + 86_400) * 1_000_000))
    freshness.receive(word)
    assert freshness.staleness_ms == 0
    now_s += 5
    freshness.receive(word)
    assert freshness.staleness_ms == 5000
    freshness.channel_lost()
    freshness.receive(word)
    assert freshness.announced is not None
    assert freshness.announced.fresh_s == 1000.0

"""Which writes the edge retries, after which pause, and how many concurrent writes a leader gets."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncGenerator, Callable

import httpx
import pytest

from regions.edge import resources
from tests.regions.edge_harness import EdgeHarness, Request, edge_harness, problem_slug, read_statistic

pytestmark = pytest.mark.integration

KEY = {"idempotency-key": "k"}


@pytest.fixture
async def edge() -> AsyncGenerator[EdgeHarness]:
    async with edge_harness() as one:
        yield one


async def test_a_refusal_that_is_not_marked_as_retriable_is_not_retried(edge: EdgeHarness) -> None:
    leader = edge.backends["write_api us-east"]

    async def overloaded(_: Request) -> tuple[int, bytes]:
        return 503, b"overloaded"

    leader.answer, leader.refusal_headers = overloaded, {"retry-after": "1"}
    answers = await asyncio.gather(*(edge.client.post("/v1/x", headers=KEY) for _ in range(50)))
    assert {(answer.status_code, answer.text) for answer in answers} == {(503, "overloaded")}
    assert {answer.headers["retry-after"] for answer in answers} == {"1"}
    assert len(leader.requests) == 50


async def test_a_refusal_is_retried_after_the_pause_that_the_write_api_sets(edge: EdgeHarness) -> None:
    leader = edge.backends["write_api us-east"]
    came: list[float] = []

    async def later(_: Request) -> tuple[int, bytes]:
        came.append(time.monotonic())
        return (503, b"stuck") if len(came) == 1 else (201, b"made")

    leader.answer, leader.refusal_headers = later, {"palaver-repeat": "1", "retry-after": "1"}
    answer = await edge.client.post("/v1/x", headers=KEY)
    assert (answer.status_code, answer.text) == (201, "made")
    assert "palaver-repeat" not in answer.headers
    assert len(came) == 2
    assert came[1] - came[0] >= 1.0


async def refuses(_: Request) -> tuple[int, bytes]:
    return 503, b"later"


@pytest.mark.parametrize("method", ["PUT", "PATCH", "DELETE"])
async def test_a_request_whose_key_the_write_api_ignores_is_sent_once(edge: EdgeHarness, method: str) -> None:
    leader = edge.backends["write_api us-east"]
    leader.answer, leader.refusal_headers = refuses, {"palaver-repeat": "now"}
    answer = await edge.client.request(method, "/v1/x", headers={**KEY, "if-match": "*"})
    assert (answer.status_code, answer.text) == (503, "later")
    await leader.stop()
    answer = await edge.client.request(method, "/v1/x", headers=KEY)
    assert (answer.status_code, problem_slug(answer)) == (503, "ledger-unavailable")
    assert len(leader.requests) == 1


async def test_a_read_that_the_leader_answers_is_retried_like_any_read(edge: EdgeHarness) -> None:
    leader = edge.backends["write_api us-east"]
    leader.answer, leader.refusal_headers = refuses, {"palaver-repeat": "now"}
    answer = await edge.client.get("/v1/sites/x", headers=KEY)
    assert (answer.status_code, answer.text) == (503, "later")
    assert len(leader.requests) == 3


@pytest.fixture
async def small() -> AsyncGenerator[EdgeHarness]:
    """An edge that sends at most eight concurrent writes to the leader, and lets twelve more wait."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(resources, "WRITE_CONNECTIONS_MAX", 8)
        patch.setattr(resources, "WRITES_WAITING_MAX", 12)
        async with edge_harness() as one:
            yield one


def begin(edge: EdgeHarness, count: int) -> list[asyncio.Task[httpx.Response]]:
    """Begin ``count`` concurrent keyed writes."""
    return [
        asyncio.create_task(edge.client.post("/v1/x", headers={"idempotency-key": f"k{number}"}))
        for number in range(count)
    ]


async def test_a_leader_has_a_bounded_number_of_concurrent_writes_and_the_others_wait(small: EdgeHarness) -> None:
    leader = small.backends["write_api us-east"]
    leader.hangs_until = asyncio.Event()
    writing = begin(small, 20)
    async with asyncio.timeout(60):
        # Attempts time out and are retried meanwhile; the bound also holds for the retries.
        while leader.asked < 20:  # noqa: ASYNC110 - the server sets no event
            await asyncio.sleep(0.02)
        # Each of Envoy's threads enforces the limit separately, so one or two more are possible.
        assert 8 <= leader.concurrent_max <= 10
        # The time limit of an attempt begins when it leaves the edge, so no waiting attempt timed out.
        given_up = await read_statistic(small, "cluster.write_api_us-east.upstream_rq_per_try_timeout")
        assert 0 < given_up <= leader.asked
        leader.hangs_until.set()
        assert {(await one).status_code for one in writing} == {200}


async def test_writes_over_the_waiting_limit_are_refused_at_once(small: EdgeHarness) -> None:
    leader = small.backends["write_api us-east"]
    leader.hangs_until = asyncio.Event()
    writing = begin(small, 30)
    async with asyncio.timeout(60):
        done, _ = await asyncio.wait(writing, return_when=asyncio.FIRST_COMPLETED)
        refused = done.pop().result()
        assert (refused.status_code, problem_slug(refused), refused.headers["retry-after"]) == (503, "overloaded", "1")
        # The answer states nothing about earlier attempts of this write, because an overflow does not know them.
        assert "nothing was done" not in refused.text
        leader.hangs_until.set()
        answers = Counter([(await one).status_code for one in writing])
    assert set(answers) == {200, 503}
    assert answers[200] in range(20, 23)


async def test_a_hung_leader_has_one_attempt_of_each_write_at_a_time(edge: EdgeHarness) -> None:
    leader = edge.backends["write_api us-east"]
    leader.hangs_until = asyncio.Event()

    async def reached(holds: Callable[[], bool]) -> None:
        async with asyncio.timeout(20):
            while not holds():  # noqa: ASYNC110 - the server sets no event
                await asyncio.sleep(0.02)

    writing = [asyncio.create_task(edge.client.post("/v1/x", headers=KEY))]
    await reached(lambda: leader.asked >= 3)
    assert leader.concurrent_max == 1
    # Two writes are two concurrent requests, also when both are retried.
    writing.append(asyncio.create_task(edge.client.post("/v1/x", headers={"idempotency-key": "other"})))
    await reached(lambda: leader.concurrent_max >= 2)
    seen = leader.asked
    await reached(lambda: leader.asked >= seen + 2)
    assert leader.concurrent_max == 2
    leader.hangs_until.set()
    assert [(await one).status_code for one in writing] == [200, 200]

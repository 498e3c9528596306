"""Which writes the edge repeats, when, and how many of them a leader has at a time."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncGenerator, Callable

import httpx
import pytest

from regions.edge import resources
from tests.regions.edge_stand import EdgeStand, Request, counted, edge_stand, problem_slug

pytestmark = pytest.mark.integration

KEY = {"idempotency-key": "k"}


@pytest.fixture
async def stand() -> AsyncGenerator[EdgeStand]:
    async with edge_stand() as one:
        yield one


async def test_refusal_that_no_repetition_mends_is_not_repeated(stand: EdgeStand) -> None:
    leader = stand.backends["write_api us-east"]

    async def overloaded(_: Request) -> tuple[int, bytes]:
        return 503, b"overloaded"

    leader.answer, leader.refusal_headers = overloaded, {"retry-after": "1"}
    answers = await asyncio.gather(*(stand.client.post("/v1/x", headers=KEY) for _ in range(50)))
    assert {(answer.status_code, answer.text) for answer in answers} == {(503, "overloaded")}
    assert {answer.headers["retry-after"] for answer in answers} == {"1"}
    assert len(leader.requests) == 50


async def test_refusal_is_repeated_when_the_write_api_says(stand: EdgeStand) -> None:
    leader = stand.backends["write_api us-east"]
    came: list[float] = []

    async def later(_: Request) -> tuple[int, bytes]:
        came.append(time.monotonic())
        return (503, b"stuck") if len(came) == 1 else (201, b"made")

    leader.answer, leader.refusal_headers = later, {"palaver-repeat": "1", "retry-after": "1"}
    answer = await stand.client.post("/v1/x", headers=KEY)
    assert (answer.status_code, answer.text) == (201, "made")
    assert "palaver-repeat" not in answer.headers
    assert len(came) == 2
    assert came[1] - came[0] >= 1.0


async def refuses(_: Request) -> tuple[int, bytes]:
    return 503, b"later"


@pytest.mark.parametrize("method", ["PUT", "PATCH", "DELETE"])
async def test_request_whose_key_the_write_api_ignores_is_sent_once(stand: EdgeStand, method: str) -> None:
    leader = stand.backends["write_api us-east"]
    leader.answer, leader.refusal_headers = refuses, {"palaver-repeat": "now"}
    answer = await stand.client.request(method, "/v1/x", headers={**KEY, "if-match": "*"})
    assert (answer.status_code, answer.text) == (503, "later")
    await leader.stop()
    answer = await stand.client.request(method, "/v1/x", headers=KEY)
    assert (answer.status_code, problem_slug(answer)) == (503, "ledger-unavailable")
    assert len(leader.requests) == 1


async def test_read_that_the_leader_answers_is_repeated_as_seldom_as_any_read(stand: EdgeStand) -> None:
    leader = stand.backends["write_api us-east"]
    leader.answer, leader.refusal_headers = refuses, {"palaver-repeat": "now"}
    answer = await stand.client.get("/v1/sites/x", headers=KEY)
    assert (answer.status_code, answer.text) == (503, "later")
    assert len(leader.requests) == 3


@pytest.fixture
async def small() -> AsyncGenerator[EdgeStand]:
    """An edge that sends the leader eight writes at a time and lets twelve wait."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(resources, "WRITE_CONNECTIONS_MAX", 8)
        patch.setattr(resources, "WRITES_WAITING_MAX", 12)
        async with edge_stand() as one:
            yield one


def begin(stand: EdgeStand, count: int) -> list[asyncio.Task[httpx.Response]]:
    """Begin so many keyed writes at once."""
    return [
        asyncio.create_task(stand.client.post("/v1/x", headers={"idempotency-key": f"k{number}"}))
        for number in range(count)
    ]


async def test_leader_has_a_bounded_number_of_writes_at_a_time_and_the_others_wait(small: EdgeStand) -> None:
    leader = small.backends["write_api us-east"]
    leader.frozen = asyncio.Event()
    writing = begin(small, 20)
    async with asyncio.timeout(60):
        # Attempts are given up and made anew meanwhile: the bound holds for those, too.
        while leader.asked < 20:  # noqa: ASYNC110 - counted in another task
            await asyncio.sleep(0.02)
        # Each of Envoy's threads counts for itself at the limit: one or two more are possible.
        assert 8 <= leader.most_at_once <= 10
        # The time of an attempt begins when it leaves the edge: none that waited was given up.
        given_up = await counted(small, "cluster.write_api_us-east.upstream_rq_per_try_timeout")
        assert 0 < given_up <= leader.asked
        leader.frozen.set()
        assert {(await one).status_code for one in writing} == {200}


async def test_more_writes_than_may_wait_are_refused_at_once(small: EdgeStand) -> None:
    leader = small.backends["write_api us-east"]
    leader.frozen = asyncio.Event()
    writing = begin(small, 30)
    async with asyncio.timeout(60):
        done, _ = await asyncio.wait(writing, return_when=asyncio.FIRST_COMPLETED)
        refused = done.pop().result()
        assert (refused.status_code, problem_slug(refused), refused.headers["retry-after"]) == (503, "overloaded", "1")
        # Nothing is claimed of an earlier attempt, of which an overflow knows nothing.
        assert "nothing was done" not in refused.text
        leader.frozen.set()
        answers = Counter([(await one).status_code for one in writing])
    assert set(answers) == {200, 503}
    assert answers[200] in range(20, 23)


async def test_leader_that_hangs_has_each_write_once_at_a_time(stand: EdgeStand) -> None:
    leader = stand.backends["write_api us-east"]
    leader.frozen = asyncio.Event()

    async def reached(holds: Callable[[], bool]) -> None:
        async with asyncio.timeout(20):
            while not holds():  # noqa: ASYNC110 - counted in another task
                await asyncio.sleep(0.02)

    writing = [asyncio.create_task(stand.client.post("/v1/x", headers=KEY))]
    await reached(lambda: leader.asked >= 3)
    assert leader.most_at_once == 1
    # Two writes are two, and stay two when they are repeated.
    writing.append(asyncio.create_task(stand.client.post("/v1/x", headers={"idempotency-key": "other"})))
    await reached(lambda: leader.most_at_once >= 2)
    seen = leader.asked
    await reached(lambda: leader.asked >= seen + 2)
    assert leader.most_at_once == 2
    leader.frozen.set()
    assert [(await one).status_code for one in writing] == [200, 200]

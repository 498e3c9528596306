"""Which writes the edge repeats, when, and how many of them a leader has at a time."""

import asyncio
import time
from collections.abc import AsyncGenerator, Callable

import pytest

from tests.regions.edge_stand import EdgeStand, Request, edge_stand, problem_slug

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

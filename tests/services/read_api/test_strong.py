"""Tests which voters a strong read asks, which proofs count for it, and how long it waits."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable

import httpx
import pytest

from regions.position import Position, encode_token
from regions.topology import Address
from services.read_api import strong
from services.read_api.strong import LeaderProof
from tests.services.read_api.conftest import CELL
from tests.virtual_loop import VirtualLoop
from tests.waiting import until

VOTERS = [Address("east", 1), Address("west", 1), Address("south", 1)]
NO_PROOF = httpx.Response(503, json={"type": "https://palaver.dev/problems/stale-epoch"})


def proves(position: Position) -> httpx.Response:
    return httpx.Response(200, json={"position": encode_token(CELL, position)})


@pytest.fixture
def long_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """Set a timeout for proofs that is longer than any test."""
    monkeypatch.setattr(strong, "PROOF_S_MAX", 3600.0)


@contextlib.asynccontextmanager
async def asking(answer: Callable[[str], object]) -> AsyncGenerator[LeaderProof]:
    """Run a prover whose voters give these answers. An answer may be a coroutine."""

    async def handle(request: httpx.Request) -> httpx.Response:
        answered = answer(request.url.host)
        if asyncio.iscoroutine(answered):
            answered = await answered
        assert isinstance(answered, httpx.Response)
        return answered

    async with httpx.AsyncClient(transport=httpx.MockTransport(handle)) as client:
        proof = LeaderProof(client, VOTERS, CELL)
        running = asyncio.ensure_future(proof.run())
        try:
            yield proof
        finally:
            running.cancel()
            await asyncio.wait([running])


@pytest.mark.usefixtures("long_wait")
async def test_the_proof_of_one_voter_counts_while_another_hangs() -> None:
    async def hang() -> httpx.Response:
        await asyncio.Event().wait()
        raise AssertionError

    answers = {"east": hang, "west": lambda: NO_PROOF, "south": lambda: proves(Position(3, 7))}
    async with asking(lambda host: answers[host]()) as proof:
        assert await proof.position() == Position(3, 7)


@pytest.mark.usefixtures("long_wait")
async def test_a_failing_http_client_gives_no_proof_and_does_not_end_the_prover() -> None:
    def breaks() -> httpx.Response:
        raise AttributeError("'NoneType' object has no attribute 'getpeername'")

    answers = {"east": breaks, "west": lambda: NO_PROOF, "south": lambda: proves(Position(3, 7))}
    async with asking(lambda host: answers[host]()) as proof:
        for _ in range(2):
            assert await proof.position() == Position(3, 7)


@pytest.mark.usefixtures("long_wait")
async def test_a_read_that_arrives_during_a_request_for_a_proof_waits_for_the_next_one() -> None:
    """Rule 10: a proof counts only for reads that arrived before the request for it."""
    asked: list[asyncio.Event] = []

    async def answered() -> httpx.Response:
        number = len(asked) + 1
        asked.append(asyncio.Event())
        await asked[-1].wait()
        return proves(Position(1, number))

    async with asking(lambda host: answered() if host == "east" else NO_PROOF) as proof:
        first = asyncio.ensure_future(proof.position())
        await until(lambda: len(asked) == 1)
        late = [asyncio.ensure_future(proof.position()) for _ in range(5)]
        await until(lambda: len(proof._waiting) == len(late))
        assert len(asked) == 1
        asked[0].set()
        assert await first == Position(1, 1)
        await until(lambda: len(asked) == 2)
        assert not any(one.done() for one in late)
        asked[1].set()
        assert await asyncio.gather(*late) == [Position(1, 2)] * 5
        assert len(asked) == 2


@pytest.mark.usefixtures("long_wait")
async def test_a_read_during_a_failover_gets_the_proof_of_the_next_leader() -> None:
    asked = 0

    def answer(host: str) -> httpx.Response:
        nonlocal asked
        asked += host == "west"
        return proves(Position(2, 1)) if host == "west" and asked > 3 else NO_PROOF

    async with asking(answer) as proof:
        assert await proof.position() == Position(2, 1)
    assert asked == 4


def test_the_wait_for_a_proof_is_bounded() -> None:
    answers = {
        "east": lambda: NO_PROOF,
        "west": lambda: httpx.Response(200, content=b"nonsense"),
        "south": lambda: httpx.Response(200, json={"position": "other.1.0000000000000001"}),
    }
    loop, margin_s = VirtualLoop(), 0.001
    asked = asking(lambda host: answers[host]())
    proof = loop.run_until_complete(asked.__aenter__())
    two = [loop.start(proof.position()) for _ in range(2)]
    loop.advance(strong.PROOF_S_MAX - margin_s)
    assert not any(one.done() for one in two)
    loop.advance(2 * margin_s)
    assert [one.result() for one in two] == [None, None]
    crowd = [loop.create_task(proof.position()) for _ in range(2 * strong.WAITERS_MAX + 1)]
    loop.settle()
    assert sum(one.done() for one in crowd) > strong.WAITERS_MAX
    loop.advance(strong.PROOF_S_MAX + margin_s)
    assert [one.result() for one in crowd] == [None] * len(crowd)
    loop.run_until_complete(asked.__aexit__(None, None, None))
    loop.close()

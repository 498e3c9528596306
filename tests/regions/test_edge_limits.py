"""Limits of the edge for each client: size of bodies, time, connections, rates."""

import asyncio
import contextlib
import itertools
import time
from collections.abc import AsyncGenerator, Callable
from ipaddress import IPv4Address
from typing import Any

import httpx
import pytest

from regions.edge import listener
from tests.regions.edge_harness import EdgeHarness, Request, edge_harness, problem_slug, read_statistic

pytestmark = pytest.mark.integration

KEY = {"idempotency-key": "k"}
SLOW_BODIES = 1_100
UNLIMITED: dict[str, Any] = {"client_requests_per_s": 0, "client_writes_per_s": 0}

Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@contextlib.asynccontextmanager
async def connections(edge: EdgeHarness, count: int, data: bytes) -> AsyncGenerator[list[Connection]]:
    """Open connections that each send ``data`` and then nothing."""
    opened: list[Connection] = []
    try:
        for _ in range(count):
            reader, writer = await asyncio.open_connection("127.0.0.1", edge.settings.listen.port)
            opened.append((reader, writer))
            writer.write(data)
        for _, writer in opened:
            await writer.drain()
        yield opened
    finally:
        for _, writer in opened:
            writer.transport.abort()


async def until_active(edge: EdgeHarness, count: int) -> None:
    async with asyncio.timeout(30):
        while await read_statistic(edge, "http.edge.downstream_rq_active") < count:  # noqa: ASYNC110 - Envoy sets no event
            await asyncio.sleep(0.05)


async def test_slow_request_bodies_do_not_block_other_writes() -> None:
    data = b"POST /v1/x HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{"
    async with edge_harness(**UNLIMITED) as edge, connections(edge, SLOW_BODIES, data):
        await until_active(edge, SLOW_BODIES)
        leader = edge.backends["write_api us-east"]
        assert leader.requests == []
        assert len(leader._writers) == 0
        for headers in ({}, KEY) * 10:
            answer = await edge.client.post("/v1/x", headers=headers, content=b"body")
            assert (answer.status_code, answer.text) == (200, "write_api us-east")
        assert [request.body for request in leader.requests] == [b"body"] * 20


async def test_slow_request_headers_do_not_block_reads() -> None:
    async with edge_harness(**UNLIMITED) as edge, connections(edge, 200, b"GET /v1/x HTTP/1.1\r\nhos"):
        for _ in range(20):
            assert (await edge.client.get("/v1/x")).status_code == 200


async def test_headers_that_do_not_arrive_are_answered_with_408(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listener, "HEADERS_ARRIVE_S", 1)
    data = b"GET /v1/x HTTP/1.1\r\nhost: x\r\nx-sl"
    async with edge_harness() as edge, connections(edge, 1, data) as one:
        # This is sooner than the time limits of a whole request and of an idle connection.
        async with asyncio.timeout(edge.settings.request_s / 2):
            answer = await one[0][0].read()
        assert answer.startswith(b"HTTP/1.1 408 ")


@pytest.mark.parametrize("data", [b"content-length: 100\r\n\r\n{", b"transfer-encoding: chunked\r\n\r\n1\r\n{\r\n"])
async def test_a_body_that_does_not_arrive_is_answered_with_408(data: bytes) -> None:
    async with edge_harness(request_s=1) as edge, connections(edge, 1, b"POST / HTTP/1.1\r\nhost: x\r\n" + data) as one:
        async with asyncio.timeout(20):
            answer = await one[0][0].read()
        assert answer.startswith(b"HTTP/1.1 408 ")
        assert b"problems/request-timeout" in answer
        assert edge.backends["write_api us-east"].requests == []


@pytest.fixture
async def edge() -> AsyncGenerator[EdgeHarness]:
    async with edge_harness(request_bytes_max=1000, **UNLIMITED) as one:
        yield one


async def test_a_body_over_the_limit_is_refused_at_the_edge(edge: EdgeHarness) -> None:
    async def in_chunks(size: int) -> AsyncGenerator[bytes]:
        # Only a few chunks, because the edge closes the connection CLOSE_S after its answer, read or not.
        for _ in range(11):
            yield b"x" * (size // 11 + 1)

    for size in (1_100, 300_000):
        for method, content in (("POST", b"x" * size), ("POST", in_chunks(size)), ("GET", b"x" * size)):
            answer = await edge.client.request(method, "/v1/x", headers=KEY, content=content)
            assert (answer.status_code, problem_slug(answer)) == (413, "request-too-large")
    # A client that still sends after the refusal may see the end of the connection before it reads the answer.
    with contextlib.suppress(httpx.TransportError):
        assert (await edge.client.post("/v1/x", content=b"x" * 20_000_000)).status_code == 413
    assert edge.backends["write_api us-east"].requests == []
    answer = await edge.client.post("/v1/x", content=b"x" * 1000)
    assert answer.status_code == 200
    assert edge.backends["write_api us-east"].requests[0].body == b"x" * 1000


async def test_pipelined_requests_are_answered_in_order(edge: EdgeHarness) -> None:
    data = b"".join(b"GET /v1/%d HTTP/1.1\r\nhost: x\r\n\r\n" % number for number in range(50))
    reader, writer = await asyncio.open_connection("127.0.0.1", edge.settings.listen.port)
    writer.write(data + b"GET /v1/last HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
    async with asyncio.timeout(20):
        answers = await reader.read()
    writer.close()
    assert answers.count(b"HTTP/1.1 200 OK") == 51
    asked = [request.path for request in edge.backends["read_api us-east"].requests if request.path != "/warm"]
    assert asked == [*(f"/v1/{number}" for number in range(50)), "/v1/last"]


async def test_a_slow_reader_does_not_hold_a_request_of_the_read_api(edge: EdgeHarness) -> None:
    page = b"x" * 900_000
    sent = 0

    async def large(_: Request) -> tuple[int, bytes]:
        nonlocal sent
        sent += 1
        return 200, page

    api = edge.backends["read_api us-east"]
    api.answer = large
    async with connections(edge, 50, b"GET /v1/x HTTP/1.1\r\nhost: x\r\n\r\n"):
        async with asyncio.timeout(30):
            while True:
                if sent >= 50 and await read_statistic(edge, "cluster.read_api.upstream_rq_active") == 0:
                    break
                await asyncio.sleep(0.05)


async def test_a_connection_over_the_limit_is_closed_and_the_others_stay_open() -> None:
    async with edge_harness(connections_max=10) as edge:
        assert (await edge.client.get("/v1/x")).status_code == 200
        async with connections(edge, 9, b"GET /v1/x HTTP/1.1\r\nhost: x\r\n\r\n") as opened:
            for reader, _ in opened:
                assert (await reader.readline()).startswith(b"HTTP/1.1 200 ")
            async with connections(edge, 1, b"") as one, asyncio.timeout(20):
                with contextlib.suppress(ConnectionError):
                    assert await one[0][0].read() == b""
            assert (await edge.client.get("/v1/x")).status_code == 200


async def asked(edge: EdgeHarness, count: int, method: str = "GET", client: str | None = None) -> list[httpx.Response]:
    headers = {} if client is None else {"x-forwarded-for": client}
    return [await edge.client.request(method, "/v1/x", headers=headers) for _ in range(count)]


def served(answers: list[httpx.Response]) -> int:
    return sum(answer.status_code == 200 for answer in answers)


def most_since(began: float) -> float:
    """Return an upper bound of the requests served since: a full bucket has two tokens, and gets one each second."""
    return 3 + time.monotonic() - began


async def until_refused(
    edge: EdgeHarness, method: str = "GET", client: str | Callable[[], str] | None = None
) -> list[httpx.Response]:
    """Send requests until ten were refused, and return the refusals; works if a machine sends over one a second."""
    refused: list[httpx.Response] = []
    async with asyncio.timeout(50):
        while len(refused) < 10:
            (answer,) = await asked(edge, 1, method, client() if callable(client) else client)
            refused += [answer] if answer.status_code != 200 else []
    return refused


async def test_an_address_over_its_rate_is_refused_and_another_is_served() -> None:
    # With one token a second a bucket does not fill during the test.
    async with edge_harness(client_requests_per_s=1, client_writes_per_s=0, trusted_hops=1) as edge:
        began = time.monotonic()
        answers = await asked(edge, 30, client="203.0.113.9")
        assert {answer.status_code for answer in answers[:2]} == {200}
        assert served(answers) <= most_since(began)
        for answer in await until_refused(edge, client="203.0.113.9"):
            assert (answer.status_code, problem_slug(answer)) == (429, "too-many-requests")
            assert answer.headers["retry-after"] == "1"
        # The client address comes from the trusted proxy, and the forged address before it is ignored. Each forged
        # address is used once; otherwise its own bucket, if it had one, would be empty in the end.
        number = itertools.count()
        await until_refused(edge, client=lambda: f"{IPv4Address('198.18.0.0') + next(number)}, 203.0.113.9")
        assert [answer.status_code for answer in await asked(edge, 2, client="203.0.113.10")] == [200, 200]
        # Addresses of one IPv6 network count as one client.
        await until_refused(edge, client=lambda: f"2001:db8::{next(number):x}")


async def test_writes_of_an_address_have_a_separate_rate() -> None:
    async with edge_harness(client_requests_per_s=1_000, client_writes_per_s=1) as edge:
        began = time.monotonic()
        assert served(await asked(edge, 30, "POST")) <= most_since(began)
        await until_refused(edge, "POST")
        assert {answer.status_code for answer in await asked(edge, 20)} == {200}


async def test_reads_that_the_leader_answers_count_as_writes() -> None:
    async with edge_harness(client_requests_per_s=1_000, client_writes_per_s=1) as edge:
        began = time.monotonic()
        answers = await asked(edge, 20, "POST")
        for path in ("/v1/sites/x", "/v1/sites/x?y=1", "/v1/sites"):
            answers += [await edge.client.get(path) for _ in range(20)]
        assert served(answers) <= most_since(began)
        others = [await edge.client.get(path) for path in ("/v1/sitesx", "/v1/sites/x/counts") for _ in range(10)]
        assert {answer.status_code for answer in others} == {200}


async def test_without_rate_limits_no_request_is_refused(edge: EdgeHarness) -> None:
    assert {answer.status_code for answer in await asked(edge, 50)} == {200}
    assert {answer.status_code for answer in await asked(edge, 50, "POST")} == {200}

"""The edge discards headers of clients that set retries, timeouts, the epoch, or the address of the client."""

import asyncio
import contextlib
import http
from collections.abc import AsyncGenerator, Mapping
from typing import Any

import pytest
import pytest_asyncio

from regions.edge import EdgeSettings, resources
from regions.edge.listener import NO_ADDRESS, listener
from tests.regions.edge_harness import Backend, EdgeHarness, Request, edge_harness

pytestmark = [pytest.mark.integration, pytest.mark.asyncio(loop_scope="module")]

KEY = {"idempotency-key": "k"}
MARK = "of-a-client"

# Headers that Envoy's router and connection manager read or write (see its documentation of the router filter and of
# header sanitizing), with values that would change how Envoy handles the request.
ENVOY_HEADERS = {
    "x-envoy-attempt-count": "7",
    "x-envoy-decorator-operation": MARK,
    "x-envoy-downstream-service-cluster": MARK,
    "x-envoy-downstream-service-node": MARK,
    "x-envoy-expected-rq-timeout-ms": "1",
    "x-envoy-external-address": "6.6.6.6",
    "x-envoy-force-trace": "true",
    "x-envoy-hedge-on-per-try-timeout": "true",
    "x-envoy-internal": "true",
    "x-envoy-ip-tags": MARK,
    "x-envoy-is-timeout-retry": "true",
    "x-envoy-max-retries": "500",
    "x-envoy-original-dst-host": "127.0.0.1:1",
    "x-envoy-original-host": MARK,
    "x-envoy-original-method": MARK,
    "x-envoy-original-path": "/of-a-client",
    "x-envoy-original-url": MARK,
    "x-envoy-retriable-header-names": "x-backend",
    "x-envoy-retriable-status-codes": "200,201,404,500,503",
    "x-envoy-retry-grpc-on": "cancelled,unavailable",
    "x-envoy-retry-on": "5xx,gateway-error,retriable-4xx,retriable-status-codes,retriable-headers,reset",
    "x-envoy-upstream-alt-stat-name": MARK,
    "x-envoy-upstream-rq-per-try-timeout-ms": "1",
    "x-envoy-upstream-rq-timeout-alt-response": "true",
    "x-envoy-upstream-rq-timeout-ms": "1",
    "x-envoy-upstream-stream-duration-ms": "1",
    # No version of Envoy knows this header; the edge discards the whole prefix.
    "x-envoy-of-tomorrow": MARK,
}
# Envoy sets these headers itself.
SET_BY_THE_EDGE = {"x-envoy-attempt-count": "1", "x-envoy-external-address": "127.0.0.1"}

INTERNAL_HEADERS = {"palaver-epoch": "99", "palaver-repeat": "1", "palaver-degraded": "view"}

ADDRESS_HEADERS = {
    "forwarded": "for=6.6.6.6;proto=https",
    "x-forwarded-for": "6.6.6.6",
    "x-forwarded-host": MARK,
    "x-forwarded-port": "6666",
    "x-forwarded-prefix": MARK,
    "x-forwarded-proto": "https",
    "x-forwarded-of-tomorrow": MARK,
    "x-real-ip": "6.6.6.6",
    "x-client-ip": "6.6.6.6",
    "x-cluster-client-ip": "6.6.6.6",
    "x-original-forwarded-for": "6.6.6.6",
    "x-originating-ip": "6.6.6.6",
    "x-remote-addr": "6.6.6.6",
    "x-remote-ip": "6.6.6.6",
    "true-client-ip": "6.6.6.6",
    "client-ip": "6.6.6.6",
    "cf-connecting-ip": "6.6.6.6",
    "fastly-client-ip": "6.6.6.6",
    "via": "1.1 of-a-client",
}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared() -> AsyncGenerator[EdgeHarness]:
    async with edge_harness() as one:
        yield one


@pytest.fixture
def edge(shared: EdgeHarness) -> EdgeHarness:
    for backend in shared.backends.values():
        backend.answer = None
        backend.requests.clear()
    return shared


def fails(backend: Backend, status: int = 503) -> None:
    async def fail(_: Request) -> tuple[int, bytes]:
        await asyncio.sleep(0.02)
        return status, b"fails"

    backend.answer = fail


async def test_a_client_cannot_set_the_timeout_of_a_write(edge: EdgeHarness) -> None:
    fails(edge.backends["write_api us-east"], http.HTTPStatus.CREATED)
    for key in ({}, KEY):
        answer = await edge.client.post("/v1/x", headers={"x-envoy-upstream-rq-timeout-ms": "1"} | key)
        assert answer.status_code == 201


async def test_a_client_cannot_request_retries_of_a_read(edge: EdgeHarness) -> None:
    for name in ("us-east", "eu-west", "ap-south"):
        fails(edge.backends[f"read_api {name}"])
    asked = {"x-envoy-retry-on": "5xx,retriable-status-codes", "x-envoy-max-retries": "500"}
    assert (await edge.client.get("/v1/x", headers=asked)).status_code == 503
    read = [one for name, backend in edge.backends.items() if name.startswith("read_api") for one in backend.requests]
    assert len(read) <= 3


async def test_a_client_cannot_request_retries_of_an_unkeyed_write(edge: EdgeHarness) -> None:
    leader = edge.backends["write_api us-east"]
    fails(leader)
    asked = {
        "x-envoy-retry-on": "5xx,reset,retriable-status-codes",
        "x-envoy-max-retries": "3",
        "x-envoy-retriable-status-codes": "503",
        "x-envoy-hedge-on-per-try-timeout": "true",
        "x-envoy-upstream-rq-per-try-timeout-ms": "5",
    }
    assert (await edge.client.post("/v1/x", headers=asked)).status_code == 503
    assert len(leader.requests) == 1


@pytest.mark.parametrize("name", [*ENVOY_HEADERS, *INTERNAL_HEADERS])
async def test_each_edge_header_of_a_client_is_discarded(edge: EdgeHarness, name: str) -> None:
    sent = {name: (ENVOY_HEADERS | INTERNAL_HEADERS)[name]}
    fails(edge.backends["write_api us-east"], http.HTTPStatus.CREATED)
    fails(edge.backends["read_api us-east"], http.HTTPStatus.OK)
    for method, headers, wanted in (("GET", {}, 200), ("POST", {}, 201), ("POST", KEY, 201)):
        answer = await edge.client.request(method, "/v1/x", headers=sent | headers)
        assert answer.status_code == wanted
    requests = [*edge.backends["read_api us-east"].requests, *edge.backends["write_api us-east"].requests]
    assert [(one.method, one.path) for one in requests] == [("GET", "/v1/x"), ("POST", "/v1/x"), ("POST", "/v1/x")]
    own = SET_BY_THE_EDGE.get(name)
    epochs = [None, "1", "1"] if name == "palaver-epoch" else [own] * 3
    assert [one.headers.get(name) for one in requests] == epochs


async def test_all_edge_headers_of_a_client_sent_at_once_are_discarded(edge: EdgeHarness) -> None:
    for backend in edge.backends.values():
        fails(backend)
    sent = ENVOY_HEADERS | INTERNAL_HEADERS | ADDRESS_HEADERS
    assert (await edge.client.post("/v1/x", headers=sent)).status_code == 503
    assert len(edge.backends["write_api us-east"].requests) == 1
    assert (await edge.client.get("/v1/x", headers=sent)).status_code == 503
    assert sum(len(backend.requests) for backend in edge.backends.values()) <= 1 + 3


async def test_address_headers_of_a_client_are_discarded(edge: EdgeHarness) -> None:
    for method in ("GET", "POST"):
        await edge.client.request(method, "/v1/x", headers=ADDRESS_HEADERS)
    for request in (*edge.backends["read_api us-east"].requests, *edge.backends["write_api us-east"].requests):
        addresses = {name: value for name, value in request.headers.items() if name in ADDRESS_HEADERS}
        assert addresses == {"x-forwarded-for": "127.0.0.1", "x-forwarded-proto": "http"}


async def test_edge_headers_in_capitals_or_repeated_are_discarded(edge: EdgeHarness) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", edge.settings.listen.port)
    lines = [
        "POST /v1/x HTTP/1.1",
        "Host: x",
        "Content-Length: 0",
        "Connection: close",
        *("X-Forwarded-For: 6.6.6.6" for _ in range(2)),
        *("Palaver-Epoch: 99" for _ in range(2)),
        *("X-ENVOY-ATTEMPT-COUNT: 2" for _ in range(2)),
    ]
    writer.write("\r\n".join([*lines, "", ""]).encode())
    await reader.read()
    writer.close()
    (request,) = edge.backends["write_api us-east"].requests
    taken = {name: request.headers[name] for name in ("x-forwarded-for", "palaver-epoch", "x-envoy-attempt-count")}
    assert taken == {"x-forwarded-for": "127.0.0.1", "palaver-epoch": "1", "x-envoy-attempt-count": "1"}


@pytest.mark.parametrize(
    ("internal_addresses", "is_internal"),
    [(None, False), ({}, True), ({"cidr_ranges": []}, True), ({"cidr_ranges": [NO_ADDRESS]}, False)],
)
async def test_a_client_on_loopback_is_internal_if_the_list_of_internal_addresses_is_empty(
    monkeypatch: pytest.MonkeyPatch, internal_addresses: dict[str, Any] | None, is_internal: bool
) -> None:
    def changed(settings: EdgeSettings) -> dict[str, Any]:
        document = listener(settings)
        manager = document["filter_chains"][0]["filters"][-1]["typed_config"]
        del manager["internal_address_config"]
        if internal_addresses is not None:
            manager["internal_address_config"] = internal_addresses
        return document

    monkeypatch.setattr(resources, "listener", changed)
    async with edge_harness() as edge:
        assert (await edge.client.get("/v1/x")).status_code == 200
        (request,) = [one for one in edge.backends["read_api us-east"].requests if one.path == "/v1/x"]
    assert ("x-envoy-internal" in request.headers) is is_internal


HOPS: Mapping[int, tuple[tuple[str | None, str], ...]] = {
    # By the number of trusted proxies: X-Forwarded-For as the edge receives it, and the address of the client.
    0: ((None, "127.0.0.1"), ("6.6.6.6", "127.0.0.1"), ("6.6.6.6, 7.7.7.7", "127.0.0.1")),
    1: (
        (None, "127.0.0.1"),
        ("203.0.113.9", "203.0.113.9"),
        ("6.6.6.6, 203.0.113.9", "203.0.113.9"),
        ("6.6.6.6, 10.0.0.1, 203.0.113.9", "203.0.113.9"),
        ("6.6.6.6, 2001:db8::9", "2001:db8::9"),
        ("6.6.6.6, nonsense", "127.0.0.1"),
    ),
    2: (
        (None, "127.0.0.1"),
        ("198.51.100.7", "127.0.0.1"),
        ("203.0.113.9, 198.51.100.7", "203.0.113.9"),
        ("6.6.6.6, 203.0.113.9, 198.51.100.7", "203.0.113.9"),
        ("nonsense, 203.0.113.9, 198.51.100.7", "203.0.113.9"),
    ),
}


@pytest.mark.parametrize("hops", HOPS)
async def test_the_client_address_is_the_one_that_the_trusted_proxies_report(hops: int, edge: EdgeHarness) -> None:
    async with contextlib.AsyncExitStack() as stack:
        one = edge if hops == 0 else await stack.enter_async_context(edge_harness(trusted_hops=hops))
        leader = one.backends["write_api us-east"]
        for received, client in HOPS[hops]:
            sent = ENVOY_HEADERS | ADDRESS_HEADERS
            del sent["x-forwarded-for"]
            forwarded = {} if received is None else {"x-forwarded-for": received}
            await one.client.post("/v1/x", headers=sent | forwarded)
            request = leader.requests[-1]
            seen = {name: value for name, value in request.headers.items() if name in ADDRESS_HEADERS}
            scheme = "http" if hops == 0 else "https"
            assert seen == {"x-forwarded-for": client, "x-forwarded-proto": scheme}, received
            assert request.headers["x-envoy-external-address"] == client
            assert request.headers["x-envoy-attempt-count"] == "1"

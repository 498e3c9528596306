"""Tests the middleware, metrics, traces, the internal port and the HTTP server."""

import asyncio
import json
import re
import socket
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from prometheus_client import CollectorRegistry, generate_latest

from regions.plain_http import TRUST_NOBODY
from services.api.problems import CATALOGUE
from services.telemetry.http_server import ListenFailed, bind, parse_listen, serve_http
from services.telemetry.internal import internal_app
from services.telemetry.middleware import EXCHANGE, Receive, Scope, Send, TelemetryMiddleware
from services.telemetry.ready_protocol import Headers
from services.telemetry.red import RequestStatistics
from services.telemetry.tracing import (
    FOLLOWED_PER_S_MAX,
    ROOTS_PER_S_MAX,
    Tracing,
    configure_tracing,
    current_trace_id,
    parse_traceparent,
    sampled_traceparent,
)

TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = f"00-{TRACE}-b7ad6b7169203331"


class KeptSpans(SpanExporter):
    def __init__(self) -> None:
        self.spans: list[ReadableSpan] = []

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self.spans += spans
        return SpanExportResult.SUCCESS


class Rig:
    """The middleware around an application that records the trace of each request."""

    def __init__(self, ratio: float = 0) -> None:
        self.exporter = KeptSpans()
        self.tracing: Tracing = configure_tracing(process="t", region=None, ratio=ratio, exporter=self.exporter)
        self.statistics = RequestStatistics()
        self.seen: list[str | None] = []

    async def app(self, scope: Scope, receive: Receive, send: Send) -> None:
        del receive
        scope[EXCHANGE].route = "/things/{id}"
        self.seen.append(sampled_traceparent())
        if scope["path"].endswith("broken"):
            raise RuntimeError("broken")
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"ok"})

    async def get(self, path: str = "/things/1", headers: dict[str, str] | None = None) -> httpx.Response:
        app: Any = TelemetryMiddleware(self.app, self.tracing, self.statistics)
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return await client.get(path, headers=headers)

    def metrics(self) -> str:
        registry = CollectorRegistry()
        registry.register(self.statistics)
        return generate_latest(registry).decode()

    def spans(self) -> list[ReadableSpan]:
        self.tracing.close()
        return self.exporter.spans


async def test_requests_are_counted_by_route_template() -> None:
    rig = Rig()
    await rig.get("/things/1")
    await rig.get("/things/2")
    with pytest.raises(RuntimeError):
        await rig.get("/things/broken")
    text = rig.metrics()
    assert 'palaver_http_requests_total{method="GET",route="/things/{id}",status="200"} 2.0' in text
    assert 'palaver_http_requests_total{method="GET",route="/things/{id}",status="500"} 1.0' in text
    assert 'palaver_http_request_duration_seconds_count{method="GET",route="/things/{id}"} 3.0' in text
    assert 'palaver_http_request_duration_seconds_bucket{le="+Inf",method="GET",route="/things/{id}"} 3.0' in text
    assert "palaver_http_requests_in_flight 0.0" in text
    assert "/things/1" not in text
    rig.tracing.close()


async def test_a_well_formed_request_id_is_kept_and_any_other_is_replaced() -> None:
    rig = Rig()
    assert (await rig.get(headers={"x-request-id": "abc-1"})).headers["x-request-id"] == "abc-1"
    for bad in ("x" * 129, "a b", "<script>"):
        made = (await rig.get(headers={"x-request-id": bad})).headers["x-request-id"]
        assert re.fullmatch("[0-9a-f]{32}", made)
    rig.tracing.close()


async def test_a_sampled_parent_is_followed_and_recorded() -> None:
    rig = Rig(ratio=0)
    answer = await rig.get(headers={"traceparent": f"{PARENT}-01"})
    (span,) = rig.spans()
    assert span.context is not None
    assert span.parent is not None
    assert f"{span.context.trace_id:032x}" == TRACE
    assert f"{span.parent.span_id:016x}" == "b7ad6b7169203331"
    assert span.name == "GET /things/{id}"
    expected = f"00-{TRACE}-{span.context.span_id:016x}-01"
    assert answer.headers["traceparent"] == expected
    assert rig.seen == [expected]


@pytest.mark.parametrize("header", [f"{PARENT}-00", "", "nonsense", f"ff-{TRACE}-b7ad6b7169203331-01"])
async def test_an_unsampled_request_has_a_trace_id_and_is_not_recorded(header: str) -> None:
    rig = Rig(ratio=0)
    answer = await rig.get(headers={"traceparent": header})
    assert re.fullmatch("00-[0-9a-f]{32}-[0-9a-f]{16}-00", answer.headers["traceparent"])
    assert (TRACE in answer.headers["traceparent"]) == header.startswith("00-")
    assert rig.seen == [None]
    assert rig.spans() == []


async def test_root_spans_are_recorded_at_the_ratio_up_to_a_rate(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now_s = 5.5
    monkeypatch.setattr("services.telemetry.tracing.time", SimpleNamespace(monotonic=lambda: now_s))
    rig = Rig(ratio=1)
    for _ in range(2):
        flags = [(await rig.get()).headers["traceparent"][-2:] for _ in range(3 * ROOTS_PER_S_MAX)]
        assert flags == ["01"] * ROOTS_PER_S_MAX + ["00"] * 2 * ROOTS_PER_S_MAX
        now_s += 1
    assert len(rig.spans()) == 2 * ROOTS_PER_S_MAX


async def test_sampled_parents_are_followed_up_to_a_rate_that_root_spans_do_not_share(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("services.telemetry.tracing.time", SimpleNamespace(monotonic=lambda: 5.5))
    rig = Rig(ratio=1)
    answers = [await rig.get(headers={"traceparent": f"{PARENT}-01"}) for _ in range(2 * FOLLOWED_PER_S_MAX)]
    assert all(TRACE in answer.headers["traceparent"] for answer in answers)
    flags = [answer.headers["traceparent"][-2:] for answer in answers]
    assert flags == ["01"] * FOLLOWED_PER_S_MAX + ["00"] * FOLLOWED_PER_S_MAX
    assert (await rig.get()).headers["traceparent"].endswith("-01")
    assert len(rig.spans()) == FOLLOWED_PER_S_MAX + 1


@pytest.mark.parametrize("zero", ["00-" + "0" * 32 + "-b7ad6b7169203331-01", f"00-{TRACE}-{'0' * 16}-01"])
def test_zero_ids_are_not_a_trace(zero: str) -> None:
    assert parse_traceparent(zero) is None


def test_work_caused_by_a_sampled_request_is_linked_to_it() -> None:
    rig = Rig()
    with rig.tracing.linked_span("apply", f"{PARENT}-01", rows=3):
        assert current_trace_id() not in (None, TRACE)
    with rig.tracing.linked_span("apply", f"{PARENT}-00"):
        pass
    (span,) = rig.spans()
    assert [f"{link.context.trace_id:032x}" for link in span.links] == [TRACE]


async def test_the_internal_port_reports_what_is_missing() -> None:
    missing = ["the ledger"]
    app: Any = internal_app(missing=lambda: missing, status=lambda: {"lag_ms": 3}, registry=CollectorRegistry())
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        assert (await client.get("/healthz")).status_code == 200
        refused = await client.get("/readyz")
        assert (refused.status_code, refused.json()["missing"]) == (503, ["the ledger"])
        assert refused.headers["content-type"] == "application/problem+json"
        missing.clear()
        assert (await client.get("/readyz")).status_code == 200
        assert (await client.get("/status")).json() == {"lag_ms": 3}
        assert (await client.get("/metrics")).status_code == 200
        assert (await client.get("/other")).status_code == 404
        assert (await client.post("/status")).status_code == 405


async def test_a_cancelled_server_completes_its_request_and_closes_its_port() -> None:
    entered, leave = asyncio.Event(), asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        del scope, receive
        entered.set()
        await leave.wait()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body", "body": b""})

    listener = bind("127.0.0.1:0")
    port = listener.getsockname()[1]
    serving = asyncio.ensure_future(serve_http(app, listener))
    async with httpx.AsyncClient(verify=TRUST_NOBODY) as client:
        request = asyncio.ensure_future(client.get(f"http://127.0.0.1:{port}/"))
        await entered.wait()
        serving.cancel()
        async with asyncio.timeout(20):
            while takes_connections(port):  # noqa: ASYNC110 - the server has no event
                await asyncio.sleep(0.01)
        assert not request.done()
        leave.set()
        answer = await request
    assert answer.status_code == 200
    assert "server" not in answer.headers
    with pytest.raises(asyncio.CancelledError):
        await serving
    assert not takes_connections(port)


def takes_connections(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def nothing_ready(target: bytes, headers: Headers) -> None:
    del target, headers


@pytest.mark.parametrize("ready", [None, nothing_ready])
@pytest.mark.parametrize(
    ("request_line", "slug"),
    [
        (b"GET / HTTP/9.9", "malformed-request"),
        (b"GET / HTTP/1.1\r\ncontent-length: x", "malformed-request"),
        (b"BREW / HTTP/1.1", "not-implemented"),
    ],
)
async def test_an_unparsable_request_is_answered_with_a_problem(ready: Any, request_line: bytes, slug: str) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        del scope, receive, send

    listener = bind("127.0.0.1:0")
    serving = asyncio.ensure_future(serve_http(app, listener, ready=ready))
    async with asyncio.timeout(20):
        while not listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):  # noqa: ASYNC110 - the server has no event
            await asyncio.sleep(0.01)
    reader, writer = await asyncio.open_connection(*listener.getsockname())
    writer.write(request_line + b"\r\nhost: x\r\n\r\n")
    head, _, body = (await reader.read(-1)).partition(b"\r\n\r\n")
    writer.close()
    serving.cancel()
    await asyncio.gather(serving, return_exceptions=True)
    status, title = CATALOGUE[slug]
    assert head.startswith(b"HTTP/1.1 %d " % status)
    assert b"\r\ncontent-type: application/problem+json\r\n" in head
    document = json.loads(body)
    assert document.pop("detail")
    assert document == {"type": f"https://palaver.dev/problems/{slug}", "title": title, "status": status}


async def test_a_second_cancellation_frees_the_port_at_once() -> None:
    entered = asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        del scope, receive, send
        entered.set()
        await asyncio.Event().wait()

    listener = bind("127.0.0.1:0")
    port = listener.getsockname()[1]
    serving = asyncio.ensure_future(serve_http(app, listener, graceful_stop_s=60))
    async with httpx.AsyncClient(verify=TRUST_NOBODY) as client:
        request = asyncio.ensure_future(client.get(f"http://127.0.0.1:{port}/"))
        await entered.wait()
        for _ in range(2):
            serving.cancel()
            await asyncio.sleep(0)
        with pytest.raises(asyncio.CancelledError):
            await serving
        assert listener.fileno() == -1
        request.cancel()


def test_a_taken_port_is_reported_in_one_line() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(ListenFailed, match=f"cannot listen on {address}: "):
            bind(address)


@pytest.mark.parametrize("text", ["", "8080", "host:", ":80", "host:x", "host:70000", "host:-1"])
def test_an_invalid_address_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not host:port"):
        parse_listen(text)

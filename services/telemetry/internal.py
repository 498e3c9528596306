"""Serves the internal port of a process: /metrics, /healthz, /readyz and /status.

Decides that probes only read state that the process already has, so that they answer even if the process is
overloaded or its servers are down. It listens on loopback, and the edge does not route to it.
"""

import socket
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Final

import orjson
from prometheus_client import REGISTRY, generate_latest
from prometheus_client.registry import CollectorRegistry

from services.telemetry.http_server import serve_http
from services.telemetry.middleware import AsgiApp, Receive, Scope, Send

Order = Callable[[bytes, bytes], Awaitable[tuple[int, Mapping[str, object]]]]
"""Takes the authorization header and the body of a POST; returns a status and a document."""

BODY_BYTES_MAX: Final = 64 * 1024

_JSON: Final = b"application/json"
_PROBLEM: Final = b"application/problem+json"


def internal_app(
    *,
    missing: Callable[[], Sequence[str]],
    status: Callable[[], Mapping[str, object]],
    orders: Mapping[str, Order] | None = None,
    registry: CollectorRegistry = REGISTRY,
) -> AsgiApp:
    """Build the ASGI application of the internal port.

    Args:
        missing: Returns the reasons why the process is not ready, one sentence each; empty if it is ready.
        status: Returns the JSON-serialisable facts for /status.
        orders: Handlers of POST requests by path.
        registry: Metrics that /metrics shows.
    """

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        order = None if orders is None else orders.get(scope["path"])
        if order is not None and scope["method"] == "POST":
            await _answer_order(order, scope, receive, send)
            return
        if scope["method"] not in ("GET", "HEAD"):
            await _answer(send, 405, _PROBLEM, _problem("method-not-allowed", 405, "Use GET."))
            return
        match scope["path"]:
            case "/metrics":
                await _answer(send, 200, b"text/plain; version=1.0.0; charset=utf-8", generate_latest(registry))
            case "/healthz":
                await _answer(send, 200, _JSON, b'{"alive":true}')
            case "/readyz":
                await _answer_ready(send, list(missing()))
            case "/status":
                await _answer(send, 200, _JSON, orjson.dumps(dict(status()), default=str))
            case _:
                await _answer(send, 404, _PROBLEM, _problem("not-found", 404, "No such page."))

    return app


async def serve_internal(
    listener: socket.socket,
    *,
    missing: Callable[[], Sequence[str]],
    status: Callable[[], Mapping[str, object]],
    orders: Mapping[str, Order] | None = None,
) -> None:
    """Serve the internal port until the task is cancelled. `listener` comes from `http_server.bind`."""
    await serve_http(internal_app(missing=missing, status=status, orders=orders), listener, graceful_stop_s=1)


def readiness_document(missing: Sequence[str]) -> tuple[int, bytes, bytes]:
    """Return status, content type and body of a readiness answer."""
    if missing:
        return 503, _PROBLEM, _problem("not-ready", 503, "; ".join(missing), missing=list(missing))
    return 200, _JSON, b'{"ready":true}'


async def _answer_ready(send: Send, missing: list[str]) -> None:
    status, content_type, body = readiness_document(missing)
    await _answer(send, status, content_type, body)


async def _answer_order(order: Order, scope: Scope, receive: Receive, send: Send) -> None:
    body, more = b"", True
    while more and len(body) <= BODY_BYTES_MAX:
        message = await receive()
        if message["type"] != "http.request":
            return
        body += message.get("body", b"")
        more = message.get("more_body", False)
    given = next((value for name, value in scope["headers"] if name == b"authorization"), b"")
    status, document = await order(given, body)
    await _answer(send, status, _JSON, orjson.dumps(dict(document)))


def _problem(slug: str, status: int, detail: str, **more: object) -> bytes:
    return orjson.dumps(
        {
            "type": f"https://palaver.dev/problems/{slug}",
            "title": slug.replace("-", " ").capitalize(),
            "status": status,
            "detail": detail,
            **more,
        }
    )


async def _answer(send: Send, status: int, content_type: bytes, body: bytes) -> None:
    headers = [(b"content-type", content_type), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})

"""The internal port of a process: /metrics, /healthz, /readyz and /status.

Decides that probes read the state a process already holds and never do work of their own, so they answer in
the worst moment. It listens on loopback and is never routed at the edge.
"""

import socket
from collections.abc import Callable, Mapping, Sequence
from typing import Final

import orjson
from prometheus_client import REGISTRY, generate_latest
from prometheus_client.registry import CollectorRegistry

from services.telemetry.http_server import serve_http
from services.telemetry.middleware import AsgiApp, Receive, Scope, Send

_JSON: Final = b"application/json"
_PROBLEM: Final = b"application/problem+json"


def internal_app(
    *,
    missing: Callable[[], Sequence[str]],
    status: Callable[[], Mapping[str, object]],
    registry: CollectorRegistry = REGISTRY,
) -> AsgiApp:
    """Build the ASGI application of the internal port.

    Args:
        missing: What keeps the process from serving, one sentence each; empty means ready.
        status: Facts for /status, JSON-serialisable.
        registry: What /metrics shows.
    """

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        del receive
        if scope["type"] != "http":
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
) -> None:
    """Serve the internal port until cancelled. `listener` comes from `http_server.bind`."""
    await serve_http(internal_app(missing=missing, status=status), listener, graceful_stop_s=1)


def readiness_document(missing: Sequence[str]) -> tuple[int, bytes, bytes]:
    """Return status, content type and body of a readiness answer; also used on public ports."""
    if missing:
        return 503, _PROBLEM, _problem("not-ready", 503, "; ".join(missing), missing=list(missing))
    return 200, _JSON, b'{"ready":true}'


async def _answer_ready(send: Send, missing: list[str]) -> None:
    status, content_type, body = readiness_document(missing)
    await _answer(send, status, content_type, body)


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

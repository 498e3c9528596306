"""Gives each request an id and a trace, and counts it for the RED metrics, as the outermost ASGI layer.

Decides the identity of a request and measures its duration. Does not know problem documents and bodies. It is a pure
ASGI class that reads the headers once, because the overhead counts for a cached read.
"""

import random
import re
from collections.abc import Awaitable, Callable, MutableMapping
from time import perf_counter
from typing import Any, Final

from opentelemetry.trace import Span, SpanKind, StatusCode

from services.telemetry.red import REQUESTS, UNMATCHED, RequestStatistics
from services.telemetry.tracing import TraceContext, Tracing, enter_trace, parse_traceparent, trace_of

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
AsgiApp = Callable[[Scope, Receive, Send], Awaitable[None]]

EXCHANGE: Final = "palaver.exchange"
"""Key of the ASGI scope that holds the `Exchange` of the request."""

# Long enough for two UUIDs and a prefix. A longer id is a mistake of the client; the middleware replaces it.
REQUEST_ID_CHARS_MAX: Final = 128
# Version 00 has 55 characters; the standard allows later versions to append more.
TRACEPARENT_BYTES_MAX: Final = 256
_REQUEST_ID: Final = re.compile(rb"\A[A-Za-z0-9._:/+=@-]{1,%d}\Z" % REQUEST_ID_CHARS_MAX)


class Exchange:
    """One request and its answer, for telemetry.

    Attributes:
        request_id: The client's `X-Request-Id` if it is well-formed, otherwise a generated one.
        trace: Identity in the distributed trace.
        route: Template of the route; the code that matches the route sets it.
        status: Status of the answer; 0 before the answer starts.
    """

    __slots__ = ("_send", "request_id", "route", "status", "trace")

    def __init__(self, request_id: bytes, trace: TraceContext, send: Send) -> None:
        self.request_id = request_id
        self.trace = trace
        self.route = UNMATCHED
        self.status = 0
        self._send = send

    async def send(self, message: Message) -> None:
        """Send a message; add the request id and the traceparent to the start of the answer."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            message["headers"] = [
                *message.get("headers", ()),
                (b"x-request-id", self.request_id),
                (b"traceparent", self.trace.traceparent.encode()),
            ]
        await self._send(message)


class TelemetryMiddleware:
    """Wraps an ASGI application; see the module docstring."""

    def __init__(self, app: AsgiApp, tracing: Tracing, statistics: RequestStatistics = REQUESTS) -> None:
        self._app = app
        self._tracing = tracing
        self._statistics = statistics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection event."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started_s = perf_counter()
        request_id = traceparent = None
        for name, value in scope["headers"]:
            if name == b"x-request-id":
                request_id = value
            elif name == b"traceparent":
                traceparent = value
        request_id, trace, span = begin_exchange(
            self._tracing, scope["method"], request_id=request_id, traceparent=traceparent
        )
        enter_trace(trace)
        exchange = scope[EXCHANGE] = Exchange(request_id, trace, send)
        statistics = self._statistics
        statistics.in_flight += 1
        try:
            await self._app(scope, receive, exchange.send)
        except BaseException:
            exchange.status = exchange.status or 500
            raise
        finally:
            statistics.in_flight -= 1
            template = _route_of(scope, exchange)
            statistics.route(scope["method"], template).observe(exchange.status, perf_counter() - started_s)
            if span is not None:
                end_span(span, scope["method"], template, exchange.status)


def begin_exchange(
    tracing: Tracing, method: str, *, request_id: bytes | None, traceparent: bytes | None
) -> tuple[bytes, TraceContext, Span | None]:
    """Return the request id, the trace, and the span if the request is sampled, from the headers of the request.

    The caller ends the span.
    """
    parent: TraceContext | None = None
    if traceparent is not None and len(traceparent) <= TRACEPARENT_BYTES_MAX:
        parent = parse_traceparent(traceparent.decode("latin-1"))
    trace = tracing.begin_request(parent)
    span: Span | None = None
    if trace.sampled:
        span = tracing.start_span(method, parent, kind=SpanKind.SERVER)
        trace = trace_of(span)
    if request_id is None or len(request_id) > REQUEST_ID_CHARS_MAX or not _REQUEST_ID.match(request_id):
        request_id = b"%032x" % random.getrandbits(128)
    return request_id, trace, span


def _route_of(scope: Scope, exchange: Exchange) -> str:
    if exchange.route is not UNMATCHED:
        return exchange.route
    template = getattr(scope.get("route"), "path", None)
    return template if isinstance(template, str) else UNMATCHED


def end_span(span: Span, method: str, template: str, status: int) -> None:
    """Set name, attributes and status of a request's span, and end it."""
    span.update_name(f"{method} {template}")
    span.set_attributes({"http.request.method": method, "http.route": template, "http.response.status_code": status})
    if status >= 500:  # noqa: PLR2004 - the class of server errors
        span.set_status(StatusCode.ERROR)
    span.end()

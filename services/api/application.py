"""Builds the application of a public API from layers, outermost first: telemetry, problems, CORS, limits, routes.

Decides the order: the telemetry layer counts refused requests and gives them a request id, and a problem carries the
CORS headers. FastAPI routes all requests but the most frequent ones; for these, a process puts a plain ASGI handler in
front of FastAPI, because FastAPI's routing alone costs more than a cached read.
"""

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, cast

from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException
from starlette.routing import Match, Route

from services.api.answers import answer
from services.api.cors import CorsMiddleware, OriginsOf
from services.api.operations import allowed_methods, template_of
from services.api.problems import Problem, ProblemMiddleware, unavailable
from services.api.requests import RequestLimitMiddleware
from services.telemetry.middleware import EXCHANGE, AsgiApp, Receive, Scope, Send, TelemetryMiddleware
from services.telemetry.tracing import Tracing

Endpoint = Callable[[Request], Awaitable[Response]]


def fastapi_application(title: str, missing: Callable[[], Sequence[str]]) -> FastAPI:
    """Return an application whose errors are problems, with the probes /healthz and /readyz.

    Args:
        title: Name of the process.
        missing: Returns the reasons why the process cannot serve, one sentence each.
    """
    app = FastAPI(title=title, openapi_url=None, docs_url=None, redoc_url=None, redirect_slashes=False)
    app.add_middleware(cast("Any", ProblemMiddleware))
    app.add_exception_handler(HTTPException, _router_problem)

    async def healthz(request: Request) -> Response:
        del request
        return Response(b'{"alive":true}', media_type="application/json")

    async def readyz(request: Request) -> Response:
        del request
        reasons = missing()
        if reasons:
            raise unavailable("not-ready", "; ".join(reasons))
        return Response(b'{"ready":true}', media_type="application/json")

    add_endpoint(app, "GET", "/healthz", healthz)
    add_endpoint(app, "GET", "/readyz", readyz)
    return app


def add_endpoint(app: FastAPI, method: str, template: str, endpoint: Endpoint) -> None:
    """Route a method and a path template to an endpoint that parses the request itself."""
    app.router.routes.append(_Route(template, endpoint, methods=[method], include_in_schema=False))


class _Route(Route):
    """A route without FastAPI's parameters. FastAPI decodes each query in a Python loop: 15 ms for 60 kB."""

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        """Store the matching route in the scope, as FastAPI's routes do; telemetry counts requests by its template."""
        match, found = super().matches(scope)
        return match, {**found, "route": self}


def public_application(routes: AsgiApp, *, tracing: Tracing, origins_of: OriginsOf, body_bytes_max: int) -> AsgiApp:
    """Return the complete ASGI application around the routes."""
    limited = RequestLimitMiddleware(_with_options(routes), body_bytes_max=body_bytes_max)
    marked = CorsMiddleware(ProblemMiddleware(limited), origins_of)
    return TelemetryMiddleware(ProblemMiddleware(marked), tracing)


def _with_options(app: AsgiApp) -> AsgiApp:
    """Return an application that answers OPTIONS for every address of the API and passes other requests to `app`.

    A preflight is an OPTIONS request as well; `CorsMiddleware`, which is outside of this, adds its headers.
    """

    async def front(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "OPTIONS":
            await app(scope, receive, send)
            return
        template = template_of(scope["path"])
        if template is None:
            raise _not_found()
        scope[EXCHANGE].route = template
        await answer(send, 204, b"", [(b"allow", _allow(scope["path"]))])

    return front


def _router_problem(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    allow = _allow(request.scope["path"])
    if error.status_code == 405 or (error.status_code == 404 and allow):  # noqa: PLR2004 - the two of a router
        # The other process may serve the method, so the header lists the methods that the address takes in either.
        raise Problem("method-not-allowed", f"Allowed here: {allow.decode()}.", headers=[(b"allow", allow)]) from None
    if error.status_code == 404:  # noqa: PLR2004
        raise _not_found() from None
    raise Problem("malformed-request", str(error.detail)) from None


def _allow(path: str) -> bytes:
    return ", ".join(allowed_methods(path)).encode("ascii")


def _not_found() -> Problem:
    return Problem("not-found", "No route has this path.")

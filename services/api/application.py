"""Puts the layers of a public API together, outermost first: telemetry, problems, CORS, limits, routes.

Decides the order: a refused request is counted and has a request id, and a problem carries the CORS headers.
The FastAPI application routes what is not hot; a process puts its hot route as a plain ASGI handler in front of
it, because FastAPI's routing alone costs more than a cached read.
"""

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, cast

from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException

from services.api.cors import CorsMiddleware, OriginsOf
from services.api.operations import allowed_methods
from services.api.problems import Problem, ProblemMiddleware
from services.api.requests import RequestLimitMiddleware
from services.telemetry.internal import readiness_document
from services.telemetry.middleware import AsgiApp, TelemetryMiddleware
from services.telemetry.tracing import Tracing

Endpoint = Callable[[Request], Awaitable[Response]]


def fastapi_application(title: str, missing: Callable[[], Sequence[str]]) -> FastAPI:
    """Return an application whose errors are problems, with the probes /healthz and /readyz.

    Args:
        title: Name of the process.
        missing: What keeps the process from serving, one sentence each.
    """
    app = FastAPI(title=title, openapi_url=None, docs_url=None, redoc_url=None, redirect_slashes=False)
    app.add_middleware(cast("Any", ProblemMiddleware))
    app.add_exception_handler(HTTPException, _router_problem)

    async def healthz(request: Request) -> Response:
        del request
        return Response(b'{"alive":true}', media_type="application/json")

    async def readyz(request: Request) -> Response:
        del request
        status, content_type, body = readiness_document(missing())
        return Response(body, status, media_type=content_type.decode())

    add_endpoint(app, "GET", "/healthz", healthz)
    add_endpoint(app, "GET", "/readyz", readyz)
    return app


def add_endpoint(app: FastAPI, method: str, template: str, endpoint: Endpoint) -> None:
    """Route a method and path template to an endpoint that reads the request itself."""
    methods = ["GET", "HEAD"] if method == "GET" else [method]
    app.add_api_route(template, endpoint, methods=methods, include_in_schema=False, response_model=None)


def public_application(routes: AsgiApp, *, tracing: Tracing, origins_of: OriginsOf, body_bytes_max: int) -> AsgiApp:
    """Return the whole ASGI application around the routes."""
    limited = RequestLimitMiddleware(routes, body_bytes_max=body_bytes_max)
    marked = CorsMiddleware(ProblemMiddleware(limited), origins_of)
    return TelemetryMiddleware(ProblemMiddleware(marked), tracing)


def _router_problem(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    methods = allowed_methods(request.scope["path"])
    if error.status_code == 405 or (error.status_code == 404 and methods):  # noqa: PLR2004 - the two of a router
        # The other process of the API may serve the method: the header names what the address takes anywhere.
        allow = ", ".join(methods)
        raise Problem(
            "method-not-allowed", f"Allowed here: {allow}.", headers=[(b"allow", allow.encode("ascii"))]
        ) from None
    if error.status_code == 404:  # noqa: PLR2004
        raise Problem("not-found", "No route has this path.") from None
    raise Problem("malformed-request", str(error.detail)) from None

"""The control API of the relay: JSON over HTTP on loopback, with a bearer token.

    GET   /v1/links          {"links": […], "socks": […]}
    GET   /v1/faults         {"faults": [{"source", "target", "delay_ms", "jitter_ms", "loss", "cut"}]}
    PATCH /v1/faults         {"changes": [{"source", "target", and what changes}]}; all or none
    POST  /v1/faults/heal    {} for all pairs, or {"pairs": [[source, target], …]}
    GET   /metrics, /healthz (without a token)

A refused request gets {"error": sentence} and a status of 400, 401, 404 or 405. This module parses requests; `network`
carries them out.
"""

import hmac
import json
from collections.abc import Mapping
from typing import cast

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware, RequestResponseEndpoint
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from infra.relay.faults import Fault, FaultInvalid, Pair, as_json
from infra.relay.network import Network, NetworkCollector

OPEN_PATHS = frozenset({"/metrics", "/healthz"})

# All changes of ten regions at once take a few kilobytes.
BODY_BYTES_MAX = 256 * 1024


def control_app(network: Network, token: str) -> Starlette:
    """Return the ASGI application of the control API of this network."""
    control = _Control(network, token)
    return Starlette(
        routes=[
            Route("/v1/links", control.read_links),
            Route("/v1/faults", control.read_faults),
            Route("/v1/faults", control.change_faults, methods=["PATCH"]),
            Route("/v1/faults/heal", control.heal_faults, methods=["POST"]),
            Route("/metrics", control.read_metrics),
            Route("/healthz", control.read_health),
        ],
        middleware=[Middleware(BaseHTTPMiddleware, dispatch=control.authorize)],
        exception_handlers={FaultInvalid: _say_invalid, HTTPException: _say_http_error},
    )


class _Control:
    """The handlers of the routes."""

    def __init__(self, network: Network, token: str) -> None:
        self._network = network
        self._credentials = f"Bearer {token}".encode()
        self._registry = CollectorRegistry()
        self._registry.register(NetworkCollector(network))

    async def authorize(self, request: Request, call_next: RequestResponseEndpoint) -> Response:
        given = request.headers.get("authorization", "").encode()
        if request.url.path in OPEN_PATHS or hmac.compare_digest(given, self._credentials):
            return await call_next(request)
        return JSONResponse({"error": "a bearer token is needed"}, status_code=401)

    async def read_links(self, _: Request) -> Response:
        return JSONResponse(_links(self._network))

    async def read_faults(self, _: Request) -> Response:
        return _answer(self._network.faults())

    async def change_faults(self, request: Request) -> Response:
        changes = (await _body(request)).get("changes")
        if not isinstance(changes, list):
            raise FaultInvalid('the body is not {"changes": […]}')
        for change in cast("list[object]", changes):
            if not isinstance(change, dict):
                raise FaultInvalid("a change is no object")
        return _answer(self._network.change(cast("list[dict[str, object]]", changes)))

    async def heal_faults(self, request: Request) -> Response:
        pairs = (await _body(request)).get("pairs")
        return _answer(self._network.heal(None if pairs is None else _pairs(pairs)))

    async def read_metrics(self, _: Request) -> Response:
        return Response(generate_latest(self._registry), media_type=CONTENT_TYPE_LATEST)

    async def read_health(self, _: Request) -> Response:
        return JSONResponse({"status": "ok"})


def _answer(faults: list[tuple[Pair, Fault]]) -> Response:
    return JSONResponse({"faults": [as_json(pair, fault) for pair, fault in faults]})


async def _say_invalid(_: Request, error: Exception) -> Response:
    return JSONResponse({"error": str(error)}, status_code=400)


async def _say_http_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return JSONResponse({"error": error.detail}, status_code=error.status_code, headers=error.headers)


async def _body(request: Request) -> Mapping[str, object]:
    chunks = bytearray()
    async for chunk in request.stream():
        chunks += chunk
        if len(chunks) > BODY_BYTES_MAX:
            raise FaultInvalid(f"the body is longer than {BODY_BYTES_MAX} bytes")
    try:
        body: object = json.loads(bytes(chunks) or b"{}")
    except ValueError as error:
        raise FaultInvalid(f"the body is no JSON: {error}") from error
    if not isinstance(body, dict):
        raise FaultInvalid("the body is no object")
    return cast("Mapping[str, object]", body)


def _pairs(value: object) -> list[Pair]:
    result: list[Pair] = []
    for entry in cast("list[object]", value) if isinstance(value, list) else [value]:
        names = cast("list[object]", entry) if isinstance(entry, list) else []
        if len(names) != 2 or not all(isinstance(name, str) for name in names):  # noqa: PLR2004 - a pair
            raise FaultInvalid("pairs are not [[source, target], …]")
        result.append((str(names[0]), str(names[1])))
    return result


def _links(network: Network) -> dict[str, object]:
    config = network.config
    return {
        "links": [
            {
                "listen": str(link.listen),
                "source": link.route.source,
                "target": link.route.target,
                "upstream": str(link.route.upstream),
            }
            for link in config.links
        ],
        "socks": [
            {
                "listen": str(entry.listen),
                "source": entry.source,
                "routes": {
                    name: {"target": route.target, "upstream": str(route.upstream)}
                    for name, route in entry.routes.items()
                },
            }
            for entry in config.socks
        ],
    }

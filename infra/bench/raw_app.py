"""Serves the same bytes for every request, on the server software of the read API: the limits for reads.

``route`` is one route of Starlette, the toolkit below our framework; it has no model and no validation. ``bare`` is one
ASGI callable without a toolkit; it reads nothing of the request, not even the path.
"""

from __future__ import annotations

import socket
import sys
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

Message = MutableMapping[str, Any]


def application(body: bytes) -> Callable[..., Awaitable[None]]:
    """Return an application that answers every request with the same bytes."""
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]

    async def answer(
        scope: Message, receive: Callable[[], Awaitable[Message]], send: Callable[[Message], Awaitable[None]]
    ) -> None:
        del scope, receive
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    return answer


def route(body: bytes) -> Starlette:
    """Return an application with one route, which answers each thread page with the same bytes."""

    async def page(request: Request) -> Response:
        del request
        return Response(body, media_type="application/json")

    return Starlette(routes=[Route("/v1/sites/{site}/comments", page, methods=["GET"])])


APPLICATIONS: dict[str, Callable[[bytes], Any]] = {"route": route, "bare": application}


def main() -> None:
    """Serve the bytes of a file on a loopback port."""
    kind, port, path = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])
    config = uvicorn.Config(
        APPLICATIONS[kind](path.read_bytes()), host="127.0.0.1", port=port, loop="uvloop", http="httptools",
        access_log=False, lifespan="off", log_level="warning", server_header=False,
    )  # fmt: skip
    uvicorn.Server(config).run()


def free_port() -> int:
    """Return a port that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


if __name__ == "__main__":
    main()

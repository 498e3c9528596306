"""The server of the supervisor's control interface: JSON over HTTP on loopback, with a bearer token.

The client is in `control_client.py`. `/metrics` needs no token.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any

import orjson
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from infra.supervisor.errors import OrderRefused, UnknownTarget
from infra.supervisor.metrics import exposition
from infra.supervisor.supervisor import Supervisor
from regions.embedded_server import EmbeddedServer


def control_app(supervisor: Supervisor) -> Starlette:  # noqa: C901 - one small function a route
    """Return the ASGI application of the control interface."""
    token = supervisor.context.secrets.control_token.encode()

    def guarded(
        act: Callable[[dict[str, Any]], Awaitable[object]],
    ) -> Callable[[Request], Awaitable[Response]]:
        async def endpoint(request: Request) -> Response:
            given = request.headers.get("authorization", "").removeprefix("Bearer ").encode()
            if not hmac.compare_digest(given, token):
                return JSONResponse({"error": "wrong control token"}, status_code=401)
            body = await request.body()
            try:
                return JSONResponse(await act(orjson.loads(body) if body else {}))
            except UnknownTarget as error:
                return JSONResponse({"error": str(error)}, status_code=404)
            except OrderRefused as error:
                return JSONResponse({"error": str(error)}, status_code=409)

        return endpoint

    async def status(_: dict[str, Any]) -> object:
        return await supervisor.status()

    async def progress(_: dict[str, Any]) -> object:
        return progress_document(supervisor)

    async def stop(_: dict[str, Any]) -> object:
        supervisor.stop_asked.set()
        return {}

    async def kill(body: dict[str, Any]) -> object:
        return {"pids": await supervisor.kill(body["region"], body.get("process"))}

    async def pause(body: dict[str, Any]) -> object:
        return {"pids": supervisor.pause(body["region"], body.get("process"))}

    async def resume(body: dict[str, Any]) -> object:
        return {"pids": supervisor.resume(body["region"], body.get("process"))}

    async def clock(body: dict[str, Any]) -> object:
        supervisor.set_clock(body["region"], float(body["offset_s"]))
        return {}

    async def restart(body: dict[str, Any]) -> object:
        await supervisor.restart_region(body["region"])
        return {}

    async def order(body: dict[str, Any]) -> object:
        return await supervisor.order(body["kind"], body.get("region"), body["by"])

    async def history(_: dict[str, Any]) -> object:
        return {"epochs": await supervisor.history(), "orders": supervisor.orders()}

    async def metrics(_: Request) -> Response:
        return Response(exposition(supervisor), media_type="text/plain; version=0.0.4")

    return Starlette(
        routes=[
            Route("/metrics", metrics),
            Route("/status", guarded(status)),
            Route("/progress", guarded(progress)),
            Route("/history", guarded(history)),
            Route("/order", guarded(order), methods=["POST"]),
            Route("/stop", guarded(stop), methods=["POST"]),
            Route("/fault/kill", guarded(kill), methods=["POST"]),
            Route("/fault/pause", guarded(pause), methods=["POST"]),
            Route("/fault/resume", guarded(resume), methods=["POST"]),
            Route("/fault/clock", guarded(clock), methods=["POST"]),
            Route("/region/restart", guarded(restart), methods=["POST"]),
        ]
    )


def progress_document(supervisor: Supervisor) -> dict[str, Any]:
    """Return which processes run and which are ready; `palaver up --detach` waits for `ready`."""
    return {
        "ready": supervisor.all_ready.is_set(),
        "processes": {
            name: "ready" if process.is_ready.is_set() else ("started" if process.pid else "waiting")
            for name, process in supervisor.processes.items()
        },
    }


@contextlib.asynccontextmanager
async def serve_control(supervisor: Supervisor) -> AsyncGenerator[None]:
    """Serve the control interface until the context ends."""
    config = uvicorn.Config(
        control_app(supervisor),
        host="127.0.0.1",
        port=supervisor.plan.deployment_port("control"),
        log_config=None,
        access_log=False,
        lifespan="off",
        timeout_graceful_shutdown=2,
    )
    server = EmbeddedServer(config)
    task = asyncio.create_task(server.serve(), name="control")
    try:
        yield
    finally:
        server.should_exit = True
        await asyncio.wait([task])

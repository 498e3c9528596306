"""The supervisor's control interface: JSON over HTTP on loopback, behind a token of its owner's.

One side serves it, the other (`ControlClient`) is what the commands use.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from http import HTTPStatus
from typing import Any, Self

import httpx
import orjson
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from infra.supervisor.errors import DeploymentError, NotRunning, OrderRefused, UnknownTarget
from infra.supervisor.layout import Layout
from infra.supervisor.metrics import exposition
from infra.supervisor.records import birth_of
from infra.supervisor.supervisor import Supervisor
from regions.plain_http import TRUST_NOBODY

# A region restart stops PostgreSQL in order first; everything else answers at once.
REQUEST_TIMEOUT_S = 60.0


class _Server(uvicorn.Server):
    """uvicorn without its own signal handlers: the supervisor has them."""

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None]:
        """Leave signals alone."""
        yield


def control_app(supervisor: Supervisor) -> Starlette:  # noqa: C901 - one small function a route
    """The routes of the control interface."""
    token = supervisor.site.secrets.control_token.encode()

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
        return {"epochs": await supervisor.history()}

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
    """Which processes run and are ready, for a progress display."""
    return {
        "ready": supervisor.all_ready.is_set(),
        "processes": {
            name: "ready" if process.is_ready.is_set() else ("started" if process.pid else "waiting")
            for name, process in supervisor.processes.items()
        },
    }


@contextlib.asynccontextmanager
async def serve_control(supervisor: Supervisor) -> AsyncGenerator[None]:
    """Serve the control interface for as long as the context lasts."""
    config = uvicorn.Config(
        control_app(supervisor),
        host="127.0.0.1",
        port=supervisor.plan.deployment_port("control"),
        log_config=None,
        access_log=False,
        lifespan="off",
        timeout_graceful_shutdown=2,
    )
    server = _Server(config)
    task = asyncio.create_task(server.serve(), name="control")
    try:
        yield
    finally:
        server.should_exit = True
        await asyncio.wait([task])


class ControlClient:
    """Asks a running supervisor.

    Args:
        layout: The data folder.

    Raises:
        NotRunning: No supervisor owns the folder.
    """

    def __init__(self, layout: Layout) -> None:
        try:
            document = orjson.loads(layout.control.read_bytes())
            self.pid = int(document["pid"])
            alive = document["born"] is not None and birth_of(self.pid) == document["born"]
        except (OSError, ValueError, KeyError):
            alive = False
            document = {}
        if not alive:
            raise NotRunning(f"nothing runs in {layout.data}; start it with `palaver up` or name another --data")
        self._client = httpx.Client(
            base_url=f"http://127.0.0.1:{document['port']}",
            headers={"authorization": f"Bearer {document['token']}"},
            timeout=REQUEST_TIMEOUT_S,
            verify=TRUST_NOBODY,
            trust_env=False,  # loopback is reached by no proxy
        )

    def __enter__(self) -> Self:
        """Use as a context manager: closes the connection."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the connection."""
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    def get(self, path: str) -> dict[str, Any]:
        """Ask for a document."""
        return self._answer(lambda: self._client.get(path))

    def post(self, path: str, **body: object) -> dict[str, Any]:
        """Order something."""
        return self._answer(lambda: self._client.post(path, content=orjson.dumps(body)))

    @staticmethod
    def _answer(ask: Callable[[], httpx.Response]) -> dict[str, Any]:
        try:
            answer = ask()
        except httpx.HTTPError as error:
            raise NotRunning(f"the supervisor does not answer ({type(error).__name__}); see its log") from error
        document: dict[str, Any] = answer.json()
        if answer.status_code == HTTPStatus.NOT_FOUND:
            raise UnknownTarget(str(document["error"]))
        if answer.status_code == HTTPStatus.CONFLICT:
            raise OrderRefused(str(document["error"]))
        if answer.is_error:
            raise DeploymentError(str(document.get("error", answer.status_code)))
        return document

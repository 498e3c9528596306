"""Runs a real Envoy, with the files that an agent writes, in front of small HTTP servers."""

import asyncio
import contextlib
import json
import re
import socket
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx

from infra.servers.resolver import resolve
from infra.supervisor.envoy import bootstrap
from regions.edge import EdgeConfigurator, EdgeSettings
from regions.identity import RegionName
from regions.leadership import Leadership
from regions.plain_http import TRUST_NOBODY, PlainTransport
from regions.topology import Address
from services.api.openapi import openapi_document
from tests.answers import Answers
from tests.child_processes import Child, folder
from tests.regions.deployment import Deployment

ANSWERS = Answers(openapi_document())
"""Compares the local replies of the edge with the OpenAPI document."""

Answer = Callable[["Request"], Awaitable[tuple[int, bytes]]]


@dataclass(frozen=True, kw_only=True)
class Request:
    """One request that a server behind the edge received."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes


@dataclass
class Backend:
    """An HTTP/1.1 server that can be stopped, started again on its port, and made to hang.

    Attributes:
        answer: Makes the answer to a request, if set; otherwise the answer is 200 with the name of the server.
        refusal_headers: Headers that are added to each answer 503.
        requests: The requests that it began to answer, without health checks.
        hangs_until: If set, every request waits for this event before it is answered.
        asked: Number of requests that arrived, without health checks.
        concurrent_max: Highest number of concurrent requests. A request ends with its answer or with its connection.
    """

    name: str
    port: int
    answer: Answer | None = None
    refusal_headers: dict[str, str] = field(default_factory=dict[str, str])
    requests: list[Request] = field(default_factory=list[Request])
    hangs_until: asyncio.Event | None = None
    asked: int = 0
    concurrent_max: int = 0
    _in_progress: set[asyncio.StreamReader] = field(default_factory=set[asyncio.StreamReader])
    _server: asyncio.Server | None = None
    _writers: set[asyncio.StreamWriter] = field(default_factory=set[asyncio.StreamWriter])

    async def start(self) -> None:
        """Listen."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)

    async def stop(self) -> None:
        """Stop listening and reset every connection, like a killed process."""
        if self._server is not None:
            self._server.close()
            for writer in list(self._writers):
                writer.transport.abort()
            await self._server.wait_closed()
            self._server = None

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
                first, *lines = head.split("\r\n")[:-2]
                headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
                body = await reader.readexactly(int(headers.get("content-length", "0")))
                method, path, _ = first.split(" ")
                request = Request(method=method, path=path, headers=headers, body=body)
                self._count(request, reader)
                status, text = await self._answer(request)
                self._in_progress.discard(reader)
                more = self.refusal_headers if status == 503 else {}
                added = "".join(f"{name}: {value}\r\n" for name, value in more.items()).encode()
                writer.write(
                    b"HTTP/1.1 %d X\r\ncontent-length: %d\r\nx-backend: %s\r\n%s\r\n%s"
                    % (status, len(text), self.name.encode(), added, text)
                )
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            self._in_progress.discard(reader)
            self._writers.discard(writer)
            writer.close()

    def _count(self, request: Request, reader: asyncio.StreamReader) -> None:
        if request.path == "/readyz":
            return
        self.asked += 1
        self._in_progress.add(reader)
        # Envoy cancels an attempt by closing its connection; the server sees that before the next attempt arrives.
        self.concurrent_max = max(self.concurrent_max, sum(not one.at_eof() for one in self._in_progress))

    async def _answer(self, request: Request) -> tuple[int, bytes]:
        if self.hangs_until is not None:
            await self.hangs_until.wait()
        if request.path == "/readyz":
            return 200, b"ready"
        self.requests.append(request)
        if self.answer is not None:
            return await self.answer(request)
        return 200, self.name.encode()


@dataclass
class EdgeHarness:
    """The edge of one region, with all backends of a deployment behind it."""

    deployment: Deployment
    configurator: EdgeConfigurator
    settings: EdgeSettings
    admin: httpx.AsyncClient
    client: httpx.AsyncClient
    backends: dict[str, Backend]
    envoy: Child

    async def set_leader(self, region: str, epoch: int) -> None:
        """Configure the edge for a leader and its epoch."""
        await self.configurator.apply(leadership(region, epoch), self.admin)


def leadership(region: str, epoch: int) -> Leadership:
    return Leadership(
        epoch=epoch,
        leader=RegionName(region),
        phase="serving",
        fence_id=UUID(int=epoch),
        reason="a test",
        since="2026-01-01T00:00:00+00:00",
    )


@contextlib.asynccontextmanager
async def edge_harness(
    region: str = "us-east", leader: str | None = "us-east", **more: Any
) -> AsyncGenerator[EdgeHarness]:
    """Run the edge of a region.

    Args:
        region: The region of the edge.
        leader: The leader of epoch 1; None if no region leads yet.
        **more: Fields of `EdgeSettings`.
    """
    async with contextlib.AsyncExitStack() as stack:
        root = stack.enter_context(folder())
        deployment = Deployment(root=root)
        settings = EdgeSettings(
            folder=root / "xds",
            listen=Address("127.0.0.1", deployment.ports[region]["edge"]),
            admin=root / "admin.sock",
            **more,
        )
        backends: dict[str, Backend] = {}
        for name, ports in deployment.ports.items():
            for kind in ("read_api", "write_api"):
                backend = Backend(name=f"{kind} {name}", port=ports[kind])
                await backend.start()
                stack.push_async_callback(backend.stop)
                backends[backend.name] = backend
        transport = PlainTransport(uds=settings.admin)
        admin = await stack.enter_async_context(
            httpx.AsyncClient(transport=transport, base_url="http://edge", timeout=20)
        )
        client = await stack.enter_async_context(
            httpx.AsyncClient(base_url=f"http://{settings.listen}", timeout=20, trust_env=False, verify=TRUST_NOBODY)
        )
        configurator = EdgeConfigurator(deployment.topology(region), settings)
        await configurator.apply(None if leader is None else leadership(leader, 1), admin)
        envoy = _envoy(root, settings)
        stack.callback(envoy.kill)
        await asyncio.to_thread(envoy.start)
        edge = EdgeHarness(deployment, configurator, settings, admin, client, backends, envoy)
        await _listening(client)
        yield edge


def _envoy(root: Path, settings: EdgeSettings) -> Child:
    config = root / "bootstrap.json"
    config.write_text(json.dumps(bootstrap(region="test", xds=settings.folder, admin_socket=settings.admin)))
    arguments = ["--disable-hot-restart", "--concurrency", "1", "--log-level", "warning"]

    def live() -> bool:
        with socket.socket(socket.AF_UNIX) as admin:
            admin.settimeout(2)
            if admin.connect_ex(str(settings.admin)) != 0:
                return False
            admin.sendall(b"GET /ready HTTP/1.1\r\nhost: admin\r\nconnection: close\r\n\r\n")
            return b"LIVE" in admin.recv(4096)

    return Child([resolve("envoy").path, "-c", config, *arguments], log=root / "envoy.log", ready=live)


async def _listening(client: httpx.AsyncClient) -> None:
    async with asyncio.timeout(20):
        while True:
            with contextlib.suppress(httpx.TransportError):
                if (await client.get("/warm")).status_code == 200:
                    return
            await asyncio.sleep(0.02)


async def read_statistic(edge: EdgeHarness, name: str) -> int:
    """Return the value of an Envoy statistic; 0 while it has no value."""
    answer = await edge.admin.get("/stats", params={"filter": f"^{re.escape(name)}$", "format": "json"})
    return sum(int(one["value"]) for one in answer.json()["stats"] if "value" in one)


async def until_retried(edge: EdgeHarness, leader: str, times: int) -> None:
    """Wait until Envoy has retried ``times`` writes to the write API of ``leader``."""
    async with asyncio.timeout(30):
        name = f"cluster.write_api_{leader}.upstream_rq_retry"
        while await read_statistic(edge, name) < times:  # noqa: ASYNC110 - Envoy sets no event
            await asyncio.sleep(0.02)


def problem_slug(answer: httpx.Response) -> str:
    """Return the last part of a problem's type; fails if the answer is not a documented problem."""
    ANSWERS.check(answer)
    found = re.fullmatch(r"https://palaver\.dev/problems/([a-z-]+)", answer.json()["type"])
    assert found is not None
    return found[1]

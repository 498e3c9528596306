import contextlib
import uuid
from collections.abc import AsyncGenerator, Generator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import SecretStr

from regions.coordination import Leadership
from regions.identity import CellId, RegionName
from services.api.leader_port import STRONG_POSITION_PATH
from services.api.openapi import openapi_document
from services.telemetry.middleware import AsgiApp
from services.telemetry.tracing import configure_tracing
from services.write_api.application import write_application
from services.write_api.leadership import LeadershipGuard
from services.write_api.pool import LedgerPool
from services.write_api.settings import WriteSettings
from tests import servers
from tests.answers import Answers

DOCUMENT = openapi_document()

ADMIN = {"authorization": "Bearer admin-key-of-tests"}


def leadership(epoch: int = 1, leader: str = "us-east", phase: Any = "serving") -> Leadership:
    return Leadership(
        epoch=epoch,
        leader=RegionName(leader),
        phase=phase,
        fence_id=uuid.UUID(int=1),
        reason="test",
        since="2026-01-01T00:00:00Z",
    )


def settings(url: str) -> WriteSettings:
    return WriteSettings(
        topology=Path("unused"),
        internal_listen="127.0.0.1:0",
        listen="127.0.0.1:0",
        ledger_url=url,
        agent="127.0.0.1:1",
        agent_secret=SecretStr("a secret of the agents"),
        admin_key=SecretStr("admin-key-of-tests"),
        derivation_secret=SecretStr("derivation-secret"),
        body_chars_max=1000,
        depth_max=2,
        request_bytes_max=8192,
    )


LONG_S = 60.0
"""Longer than any answer takes, even on a busy machine."""


class WatchedGuard(LeadershipGuard):
    """A guard that counts waiting requests.

    Attributes:
        waiting: Number of requests that it has neither admitted nor refused yet.
    """

    waiting = 0

    async def admit(self, claimed: bytes | None, attempt: bytes | None) -> int:
        self.waiting += 1
        try:
            return await super().admit(claimed, attempt)
        finally:
            self.waiting -= 1


@dataclass
class Api:
    """The write API in this process, on a real ledger, with a leadership that the test sets."""

    pool: LedgerPool
    leadership: Leadership | None = field(default_factory=leadership)
    proves: bool = True
    quorum_wait_cancelled: list[int] = field(default_factory=list[int])
    app: AsgiApp | None = None
    guard: WatchedGuard = field(init=False)
    http: httpx.AsyncClient = field(init=False)

    def __post_init__(self) -> None:
        self.guard = WatchedGuard(lambda: self.leadership, RegionName("us-east"))

    async def is_current(self) -> bool:
        """Stand in for the agent: return whether this region proves that it leads."""
        return self.proves

    async def site(self) -> dict[str, str]:
        answer = await self.http.post(
            "/v1/sites", json={"name": "Site", "origins": ["https://example.com"]}, headers=ADMIN
        )
        assert answer.status_code == 201, answer.text
        return answer.json()

    async def post(self, site: str, headers: dict[str, str] | None = None, **fields: Any) -> httpx.Response:
        body = {"thread": "https://example.com/a", "body": "hello", **fields}
        return await self.http.post(f"/v1/sites/{site}/comments", json=body, headers=headers)


@pytest.fixture
async def api(ledger_server: servers.PostgresServer) -> AsyncGenerator[Api]:
    async with write_api(ledger_server.url(user="palaver_writer")) as running:
        yield running


class write_api:  # noqa: N801 - used as a context manager, like a function
    def __init__(self, url: str, *, pool_size: int = 4, write_timeout_s: float = LONG_S) -> None:
        self.url = url
        self.quorum_wait_cancelled: list[int] = []
        self.guards: list[LeadershipGuard] = []
        self.pool = LedgerPool(
            url,
            size=pool_size,
            write_timeout_s=write_timeout_s,
            quorum_wait_cancelled=self.quorum_wait_cancelled.append,
            broken=self.note_broken,
        )
        self.tracing = configure_tracing(process="test", region=None, ratio=0)

    def note_broken(self) -> None:
        for guard in self.guards:
            guard.note_broken()

    async def __aenter__(self) -> Api:
        await self.pool.__aenter__()
        running = Api(pool=self.pool, quorum_wait_cancelled=self.quorum_wait_cancelled)
        self.guards.append(running.guard)
        app = write_application(
            settings=settings(self.url),
            cell=CellId("main"),
            pool=self.pool,
            guard=running.guard,
            agent=running,
            tracing=self.tracing,
            missing=list,
        )
        running.app = app
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)  # pyright: ignore[reportArgumentType] - httpx types ASGI with dict, we with MutableMapping
        answers = Answers(DOCUMENT, undocumented=[STRONG_POSITION_PATH])
        running.http = httpx.AsyncClient(base_url="http://test", transport=transport, event_hooks=answers.hooks())
        return running

    async def __aexit__(self, *_: object) -> None:
        await self.pool.__aexit__(None, None, None)
        self.tracing.close()


@contextlib.contextmanager
def given_up_after(pool: LedgerPool, seconds: float) -> Generator[None]:
    """Set the timeout of writes that begin inside the context. Earlier writes have to succeed and have a long one."""
    before, pool._write_timeout_s = pool._write_timeout_s, seconds
    try:
        yield
    finally:
        pool._write_timeout_s = before


def problem(answer: httpx.Response) -> str:
    assert answer.headers["content-type"] == "application/problem+json", answer.text
    document = answer.json()
    assert document["status"] == answer.status_code
    assert document["request_id"] == answer.headers["x-request-id"]
    prefix, _, slug = document["type"].rpartition("/")
    assert prefix == "https://palaver.dev/problems"
    return slug


OURS = "FROM pg_stat_activity WHERE application_name = 'palaver-write-api'"


UNKNOWN = str(uuid.UUID(int=7))

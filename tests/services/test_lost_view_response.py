"""Tests that readers see a committed batch even if the replicator did not see the commit confirmed."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Generator
from typing import Any

import pytest

from services.replicator.invalidation import CacheInvalidator
from services.replicator.projection import ViewProjection
from services.tables import TABLES
from services.view import cache
from services.view.cache import Invalidation
from sync.apply import Applied, Applier
from tests import servers
from tests.servers import PostgresServer, RedisServer
from tests.services.read_api.conftest import Api, api_alone
from tests.services.read_api.conftest import Writer as ViewWriter
from tests.sync.conftest import database_servers, rig
from tests.sync.rig import CELL, Rig, running, until, writing
from tests.tcp_proxy import TcpProxy

__all__ = ["database_servers", "rig"]

pytestmark = pytest.mark.integration


@pytest.fixture
def page_cache() -> Generator[RedisServer]:
    with servers.redis_server() as server:
        yield server


class ViewOfRig(PostgresServer):
    """The view's server with the interface that the read API's tests expect, on the database of one rig."""

    def __init__(self, rig: Rig) -> None:  # pyright: ignore[reportMissingSuperCall] - it starts nothing
        self._rig = rig

    def url(self, database: str = "", user: str = "", password: str = "") -> str:
        del database, user, password
        return self._rig.view_url


class Proxy(TcpProxy):
    """Drops all responses after a client has sent a certain text."""

    def __init__(self, port: int) -> None:
        super().__init__(port)
        self.last_question: bytes | None = None
        self._swallows = False

    def cut(self) -> None:
        """Close the connections. New connections pass responses again."""
        self.last_question, self._swallows = None, False
        super().cut()

    def pass_request(self, data: bytes) -> bytes:
        if self.last_question is not None and self.last_question in data:
            self._swallows = True
        return data

    def pass_response(self, data: bytes) -> bytes:
        return b"" if self._swallows else data


class Region:
    """The apply loop, the invalidator and the read API of one region, composed as in their processes."""

    def __init__(self, rig: Rig, page_cache: RedisServer, view_url: str) -> None:
        self.invalidator = CacheInvalidator(cell=CELL, redis_url=page_cache.url)
        self.applier = Applier(
            cell=CELL,
            view_url=view_url,
            registry=TABLES,
            projection=ViewProjection(TABLES),
            meter=rig.meter,
            on_checkpoint_read=self.invalidator.void,
            on_applied=self._on_applied,
        )
        self.rig = rig
        self.fails = False

    async def _on_applied(self, applied: Applied[Invalidation]) -> None:
        if self.fails and applied.transactions:
            self.fails = False
            raise ConnectionResetError("telling failed")
        self.invalidator.note(applied)


@contextlib.asynccontextmanager
async def running_region(rig: Rig, page_cache: RedisServer, view_url: str) -> AsyncGenerator[Region]:
    region = Region(rig, page_cache, view_url)
    async with running(region.invalidator.run()), running(region.applier.run(rig.channel())):
        yield region


async def comments_of(api: Api, site: Any) -> int:
    answer = await api.http.get(f"/v1/sites/{site}/comments", params={"thread": "/"})
    return len(answer.json()["comments"]) if answer.status_code == 200 else -1


async def until_read(api: Api, site: Any, comments: int) -> None:
    async with asyncio.timeout(20):
        while await comments_of(api, site) != comments:  # noqa: ASYNC110 - a change of a page sets no event
            await asyncio.sleep(0.02)


@pytest.mark.parametrize("fault", ["reply lost", "telling fails", "ended", "redis paused"])
async def test_a_page_shows_a_commit_that_the_replicator_did_not_see_confirmed(
    rig: Rig, page_cache: RedisServer, fault: str
) -> None:
    rig.create_slot()
    rig.fence()
    proxy = Proxy(rig.servers.view.port)
    async with contextlib.AsyncExitStack() as stack:
        port = await stack.enter_async_context(proxy.listening())
        view_url = rig.view_url.replace(f":{rig.servers.view.port}/", f":{port}/")
        await stack.enter_async_context(rig.serving())
        first = await stack.enter_async_context(contextlib.AsyncExitStack())
        region = await first.enter_async_context(running_region(rig, page_cache, view_url))
        writer = await stack.enter_async_context(writing(rig))
        api = await stack.enter_async_context(
            api_alone(ViewWriter(ViewOfRig(rig), page_cache, site=writer.site), cache.SILENCE_S_MAX)
        )
        thread = await writer.create_thread()
        await writer.post(thread)
        await until_read(api, writer.site, 1)
        async with asyncio.timeout(20):
            while not api.memory.bytes:
                assert await comments_of(api, writer.site) == 1
                await asyncio.sleep(0.02)
        match fault:
            case "reply lost" | "ended":
                proxy.last_question = b"the second"
            case "telling fails":
                region.fails = True
            case _:
                page_cache.pause()
        await writer.post(thread, "the second")
        await until(lambda: rig.view_sql("SELECT count FROM threads") == [(2,)])
        match fault:
            case "reply lost":
                assert await comments_of(api, writer.site) == 1
                proxy.cut()
            case "ended":
                await first.aclose()
                proxy.cut()
                await stack.enter_async_context(running_region(rig, page_cache, view_url))
            case "redis paused":
                await until(lambda: region.invalidator.trouble is not None)
                page_cache.resume()
            case _:
                pass
        await until_read(api, writer.site, 2)
        await until(lambda: api.memory.enabled)
        await until_read(api, writer.site, 2)

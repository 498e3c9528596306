import asyncio
import contextlib
import threading
import time
import uuid
from collections.abc import AsyncGenerator, Generator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast

import httpx
import orjson
import psycopg
import pytest
import redis
from redis.exceptions import RedisError, ResponseError

from regions.identity import CellId
from regions.position import ZERO, Position, encode_token, format_lsn
from services.api.site_origins import SiteOrigins
from services.read_api.application import read_application
from services.read_api.freshness import SESSION_WAIT_S, Freshness
from services.read_api.invalidations import follow_invalidations
from services.read_api.memory import PageMemory
from services.read_api.settings import ReadSettings
from services.read_api.shared_cache import SharedCache
from services.read_api.view_reader import ViewReader
from services.telemetry.middleware import AsgiApp
from services.telemetry.tracing import Tracing, configure_tracing
from services.view import cache
from tests import servers
from tests.answers import Answers
from tests.waiting import until

CELL = CellId("main")
BEGIN = datetime(2026, 1, 1, tzinfo=UTC)


@dataclass
class Thread:
    """A thread in the view. Its methods write to the view as the replicator does."""

    writer: "Writer"
    key: str
    id: uuid.UUID = field(default_factory=uuid.uuid4)
    page_version: int = 0
    written: int = 0

    def add(self, parent: uuid.UUID | None = None, body: str = "hello", *, announce: bool = True) -> uuid.UUID:
        """Commit one comment with its counters, and invalidate the page if `announce`, as a batch of apply does."""
        comment = uuid.uuid4()
        self.written += 1
        self.page_version += 1
        with psycopg.connect(self.writer.view.url()) as connection:
            connection.execute(
                "INSERT INTO comments (id, site_id, thread_id, parent_id, depth, author_name, body, state, version,"
                " created_at) VALUES (%s, %s, %s, %s, 0, 'Ann', %s, 'approved', 1, %s)",
                (comment, self.writer.site, self.id, parent, body, BEGIN + timedelta(seconds=self.written)),
            )
            connection.execute("UPDATE comments SET reply_count = reply_count + 1 WHERE id = %s", (parent,))
            connection.execute(
                "UPDATE threads SET count = count + 1, page_version = %s WHERE id = %s", (self.page_version, self.id)
            )
        if announce:
            self.announce()
        return comment

    def vote(self, comment: uuid.UUID, user: str, value: int) -> None:
        """Commit one vote through the function that apply calls, and invalidate the page."""
        self.written += 1
        key = {"comment_id": str(comment), "user_id": user}
        row = {**key, "site_id": str(self.writer.site), "thread_id": str(self.id), "value": value}
        row |= {"version": self.written, "lsn": self.page_version + 1}
        query = "SELECT version FROM project_rows(ARRAY['votes'], ARRAY[%s]::json[], ARRAY[NULL]::json[], 0, '')"
        ((self.page_version,),) = self.writer.view.sql(query, orjson.dumps([row]).decode())
        self.announce()

    def announce(self) -> None:
        """Invalidate the thread's pages in Redis and publish it."""
        moved = [cache.Invalidation(site=self.writer.site, key=self.key, version=self.page_version)]
        arguments = cache.invalidate_arguments(moved, [cache.encode_invalidations(moved)])
        try:
            self.writer.redis.eval(cache.INVALIDATE_SCRIPT, 1, cache.GENERATION_KEY, *arguments)
        except ResponseError:  # the generation was lost, so cached pages must be dropped
            self.writer.begin_generation()


@dataclass
class Writer:
    """Writes to a view as the replicator does."""

    view: servers.PostgresServer
    page_cache: servers.RedisServer
    site: uuid.UUID = field(default_factory=uuid.uuid4)
    generation: int = 7
    word: bytes = field(default_factory=lambda: cache.encode_applied(encode_token(CELL, ZERO), 0))
    silent: bool = False

    @property
    def redis(self) -> Any:
        return cast("Any", redis.Redis).from_url(self.page_cache.url, socket_timeout=1)

    def begin_generation(self) -> int:
        """Invalidate all cached pages with a new generation."""
        self.generation = int(
            self.redis.eval(cache.BEGIN_SCRIPT, 1, cache.GENERATION_KEY, self.generation, cache.CHANNEL)
        )
        return self.generation

    def say(self, token: str, *, age_s: float = 0) -> None:
        """Announce this position from now on."""
        self.word = cache.encode_applied(token, int((time.time() - age_s) * 1_000_000))

    @contextlib.contextmanager
    def speaking(self) -> Generator[None]:
        """Repeat the announced position as the replicator does, also while Redis fails."""
        stop = threading.Event()

        def speak() -> None:
            while not stop.wait(0.05):
                with contextlib.suppress(RedisError):
                    if not self.silent:
                        self.redis.publish(cache.CHANNEL, self.word)

        thread = threading.Thread(target=speak)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()

    def thread(self, key: str = "https://example.com/a") -> Thread:
        thread = Thread(self, key)
        self.view.sql(
            "INSERT INTO threads (id, site_id, key, title, state, version) VALUES (%s, %s, %s, 'T', 'open', 1)",
            thread.id,
            self.site,
            key,
        )
        return thread

    def checkpoint(self, epoch: int, lsn: int, age_s: float = 0) -> str:
        """Move the checkpoint and return its token."""
        self.view.sql(
            "INSERT INTO checkpoint (cell, epoch, lsn, fresh_at)"
            " VALUES ('main', %s, %s::pg_lsn, now() - make_interval(secs => %s))"
            " ON CONFLICT (cell) DO UPDATE"
            " SET epoch = excluded.epoch, lsn = excluded.lsn, fresh_at = excluded.fresh_at",
            epoch,
            format_lsn(lsn),
            age_s,
        )
        return encode_token(CELL, Position(epoch, lsn))


@pytest.fixture
def writer(view_server: servers.PostgresServer, page_cache: servers.RedisServer) -> Generator[Writer]:
    view_server.sql("DELETE FROM checkpoint")
    writer = Writer(view_server, page_cache)
    view_server.sql(
        "INSERT INTO sites (id, name, origins, version) VALUES (%s, 'S', '{https://example.com}', 1)", writer.site
    )
    writer.redis.set(cache.GENERATION_KEY, writer.generation)
    yield writer
    writer.redis.flushall()


@dataclass
class KnownProof:
    """A leader that proves the position that the test sets."""

    proved: Position | None = None

    async def position(self) -> Position | None:
        return self.proved


class WatchedFreshness(Freshness):
    """The real freshness. It counts waiting reads, and a test can extend their timeout.

    Attributes:
        waiting: Number of reads that wait for a position of the view.
        session_wait_s: Timeout of such a wait.
    """

    waiting = 0
    session_wait_s = SESSION_WAIT_S

    async def wait_for(self, position: Position, timeout_s: float | None = None) -> bool:
        self.waiting += 1
        try:
            return await super().wait_for(position, self.session_wait_s if timeout_s is None else timeout_s)
        finally:
            self.waiting -= 1


class CountingReader(ViewReader):
    """The real reader. It counts queries, and can delay an answer after the query has read its rows.

    Attributes:
        polls: Number of reads of the checkpoint.
    """

    queries = 0
    polls = 0
    hold: asyncio.Event | None = None
    held = 0

    async def page(self, *arguments: object) -> Any:
        self.queries += 1
        return await self._held(await super().page(*arguments))

    async def checkpoint(self, cell: str) -> Any:
        found = await super().checkpoint(cell)
        self.polls += 1
        return found

    async def comment(self, site: uuid.UUID, comment: uuid.UUID) -> Any:
        return await self._held(await super().comment(site, comment))

    async def counts(self, site: uuid.UUID, keys: Any) -> Any:
        return await self._held(await super().counts(site, keys))

    async def _held(self, answer: Any) -> Any:
        if self.hold is not None:
            self.held += 1
            await self.hold.wait()
        return answer


@dataclass
class Api:
    """The read API in this process, on a real view and a real Redis."""

    http: httpx.AsyncClient
    reader: CountingReader
    memory: PageMemory
    freshness: WatchedFreshness
    writer: Writer
    app: AsgiApp
    origins: SiteOrigins
    tracing: Tracing
    prover: KnownProof

    async def page(self, key: str = "https://example.com/a", headers: Any = None, **query: Any) -> httpx.Response:
        path = f"/v1/sites/{self.writer.site}/comments"
        return await self.http.get(path, params={"thread": key, **query}, headers=headers)

    async def polled(self, times: int = 2) -> None:
        """Wait for this many further polls of the view. The process has then evaluated all of them but the last."""
        enough = self.reader.polls + times + 1
        await until(lambda: self.reader.polls >= enough)


@pytest.fixture
async def api(writer: Writer) -> AsyncGenerator[Api]:
    async with running_api(writer) as api:
        yield api


@contextlib.asynccontextmanager
async def running_api(writer: Writer, silence_s: float = 300, *, page_bytes_max: int = 2**20) -> AsyncGenerator[Api]:
    """Run the read API in this loop, and a stand-in that publishes as the replicator does.

    On a busy machine either may be delayed. Only a test of the silence detection should set a short silence.
    """
    with writer.speaking():
        async with api_alone(writer, silence_s, page_bytes_max=page_bytes_max) as api:
            await until(lambda: api.memory.enabled)
            yield api


@contextlib.asynccontextmanager
async def api_alone(writer: Writer, silence_s: float, *, page_bytes_max: int = 2**20) -> AsyncGenerator[Api]:
    """Run the read API in this loop."""
    settings = ReadSettings(
        topology=Path("unused"),
        internal_listen="127.0.0.1:0",
        listen="127.0.0.1:0",
        view_url=writer.view.url(user="palaver_reader"),
        redis_url=writer.page_cache.url,
        page_replies_max=3,
        page_comments_max=250,
        page_bytes_max=page_bytes_max,
    )
    memory = PageMemory(bytes_max=10**7, life_s=settings.page_life_s)
    freshness = WatchedFreshness(CELL)
    shared = SharedCache(settings.redis_url, page_life_s=settings.page_life_s)
    prover = KnownProof()
    tracing = configure_tracing(process="test", region=None, ratio=0)
    async with CountingReader(settings.view_url, size=4) as reader:
        origins = SiteOrigins(reader.origins)
        app = read_application(
            settings=settings,
            cell=CELL,
            view=reader,
            shared=shared,
            memory=memory,
            freshness=freshness,
            origins=origins,
            prover=prover,
            tracing=tracing,
            missing=list,
        )
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)  # pyright: ignore[reportArgumentType] - httpx types ASGI with dict, we with MutableMapping
        tasks = [
            asyncio.ensure_future(freshness.run(reader, memory.channel_lost)),
            asyncio.ensure_future(follow_invalidations(shared, memory, freshness, silence_s=silence_s)),
        ]
        async with httpx.AsyncClient(base_url="http://test", transport=transport) as unchecked:
            answers = Answers((await unchecked.get("/v1/openapi.json")).json())
        async with httpx.AsyncClient(
            base_url="http://test", transport=transport, event_hooks=answers.hooks()
        ) as client:
            yield Api(client, reader, memory, freshness, writer, app, origins, tracing, prover)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    await shared.close()
    tracing.close()


def problem(answer: httpx.Response) -> str:
    assert answer.headers["content-type"] == "application/problem+json", answer.text
    document = answer.json()
    assert document["status"] == answer.status_code
    assert document["request_id"] == answer.headers["x-request-id"]
    return document["type"].rpartition("/")[2]

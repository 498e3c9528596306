"""Tests by random walks that each answer contains the writes up to its position, and each session read its own write.

The pages, the memory cache, the freshness and the shortcut are the real ones. The view, Redis, its channel, the
replicator and the clock are models, and a walk chooses the order of their steps.
"""

import asyncio
import collections
import contextlib
import random
from collections import deque
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final, cast
from uuid import UUID

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from regions.identity import CellId
from regions.position import Position, decode_token, encode_token
from services.api.markdown import HtmlCache
from services.api.problems import Problem
from services.api.site_origins import SiteOrigins
from services.read_api.freshness import ANNOUNCEMENT_WAIT_S, POLL_INTERVAL_S, SESSION_WAIT_S, Freshness
from services.read_api.invalidations import channel_lost
from services.read_api.memory import PageMemory, Thread
from services.read_api.page import Page
from services.read_api.pages import Pages
from services.read_api.ready_pages import ReadyPages
from services.read_api.settings import ReadSettings
from services.read_api.shared_cache import SharedCache
from services.read_api.view_reader import ViewReader, ViewUnavailable
from services.telemetry.middleware import EXCHANGE, Exchange, Scope
from services.telemetry.tracing import TraceContext, configure_tracing
from services.view.cache import Applied
from tests.virtual_loop import VirtualLoop

CELL: Final = CellId("main")
SITE: Final = UUID(int=1)
KEYS: Final = ("a", "b")
STEPS: Final = 600
FAILS: Final = 0.05
"""Share of queries that fail in the view."""

FRESH_AT_US: Final = 1_700_000_000_000_000


class ModelView:
    """A model of the view: a query reads its rows at once and returns in a later step."""

    def __init__(self) -> None:
        self.lsn = 0
        self.pages = 0
        self.versions: dict[str, int] = dict.fromkeys(KEYS, 0)
        self.reading: deque[asyncio.Future[None]] = deque()

    async def page(self, *arguments: object) -> Sequence[dict[str, object]]:
        self.pages += 1
        key = cast("str", arguments[1])
        version = self.versions[key]
        await self._later()
        # The title contains the version of the thread at the time of the read.
        return [
            {
                "thread_id": UUID(int=KEYS.index(key)), "thread_title": str(version), "thread_state": "open",
                "thread_count": 0, "page_version": version, "id": None,
            }
        ]  # fmt: skip

    async def checkpoint(self, cell: str) -> dict[str, object]:
        del cell
        lsn = self.lsn
        await self._later()
        return {"epoch": 1, "lsn": lsn, "fresh_at": lsn, "staleness_ms": 0.0}

    async def schema_ready(self) -> bool:
        return True

    async def origins(self, site: UUID) -> Sequence[str]:
        del site
        return []

    async def _later(self) -> None:
        returned: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.reading.append(returned)
        await returned


class ModelCache:
    """A model of the pages in Redis. It compares versions as the scripts do, and answers commands in a later step."""

    def __init__(self) -> None:
        self.generation: int | None = 1
        self.kept: dict[tuple[int, Thread], tuple[int, dict[str, Page]]] = {}
        self.asked: deque[asyncio.Future[None]] = deque()

    async def get(self, thread: Thread, field: str) -> Page | None:
        if self.generation is None:
            return None
        _, pages = self.kept.get((self.generation, thread), (-1, {}))
        found = pages.get(field)
        await self._later()
        return found

    async def put(self, thread: Thread, field: str, page: Page) -> None:
        if self.generation is None or page.version is None:
            return
        key = (self.generation, thread)
        await self._later()
        version, pages = self.kept.get(key, (-1, {}))
        if version > page.version:
            return
        self.kept[key] = (page.version, {**(pages if version == page.version else {}), field: page})

    def invalidate(self, generation: int, thread: Thread, version: int) -> None:
        if self.kept.get((generation, thread), (-1, {}))[0] < version:
            self.kept[generation, thread] = (version, {})

    async def _later(self) -> None:
        answered: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.asked.append(answered)
        await answered


@dataclass
class KnownLeader:
    """Proves the newest committed position."""

    position: Any


@dataclass(eq=False)
class Read:
    """A read that has begun.

    Attributes:
        at_least: LSN up to which the answer must contain all writes if it has the requested consistency level.
    """

    key: str
    asked: str
    at_least: int
    messages: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    task: "asyncio.Task[None] | None" = None

    async def send(self, message: Any) -> None:
        self.messages.append(message)


class ProcessModel:
    """One read API process, with models of its surroundings."""

    def __init__(self, chance: random.Random) -> None:
        self.chance = chance
        self.judged = collections.Counter[tuple[str, str, str]]()
        self.loop = VirtualLoop()
        self.view, self.cache = ModelView(), ModelCache()
        self.memory = PageMemory(bytes_max=10**6, life_s=10**6, now=self.loop.time)
        self.freshness = Freshness(CELL)
        self.log: list[str] = []
        """The thread of each write. The write at index i has the LSN i + 1."""
        self.unnoted: list[tuple[str, int]] = []
        self.noted: list[tuple[str, int]] = []
        self.noted_lsn = 0
        self.channel: deque[object] = deque()
        self.generation = 1
        self.subscribed = True
        self.reads: list[Read] = []
        self.tracing = configure_tracing(process="test", region=None, ratio=0)
        self.pages = Pages(
            view=cast("ViewReader", self.view),
            shared=cast("SharedCache", self.cache),
            memory=self.memory,
            freshness=self.freshness,
            html=HtmlCache(),
            cell=CELL,
            prover=cast("Any", self),
            settings=ReadSettings(
                topology=Path("unused"), internal_listen="127.0.0.1:0", listen="127.0.0.1:0", view_url="", redis_url=""
            ),
        )
        self.ready = ReadyPages(
            memory=self.memory,
            freshness=self.freshness,
            origins=SiteOrigins(self.view.origins),
            cell=CELL,
            tracing=self.tracing,
        )
        self.polling = self.loop.start(
            self.freshness.run(cast("ViewReader", self.view), lambda: channel_lost(self.memory, self.freshness))
        )

    async def position(self) -> Position | None:
        """Return the leader's proof: the newest committed position."""
        return Position(1, len(self.log))

    # Steps of the ledger and the replicator.

    def commit(self) -> None:
        self.log.append(self.chance.choice(KEYS))

    def apply(self) -> None:
        """Make one batch visible in the view. The replicator has not received the reply yet."""
        for _ in range(min(self.chance.randint(1, 3), len(self.log) - self.view.lsn)):
            key = self.log[self.view.lsn]
            self.view.lsn += 1
            self.view.versions[key] = self.view.lsn
            self.unnoted.append((key, self.view.lsn))

    def note(self) -> None:
        """Deliver the reply of the view to the replicator."""
        self.noted += self.unnoted
        self.noted_lsn = self.view.lsn
        self.unnoted.clear()

    def tell(self) -> None:
        """Publish the invalidations and then the position in Redis."""
        for key, version in self.noted:
            self.cache.invalidate(self.generation, (SITE, key), version)
        self.channel.append(list(self.noted))
        self.channel.append(self.noted_lsn)
        self.noted.clear()

    def restart_the_replicator(self) -> None:
        """Lose the unpublished invalidations, and invalidate all cached pages."""
        self.unnoted.clear()
        self.noted.clear()
        self.noted_lsn = self.view.lsn
        self.generation += 1
        self.channel.append(("flush", self.generation))
        self.channel.append(self.noted_lsn)

    # Messages that the process receives.

    def hear(self) -> None:
        """Handle one message as `invalidations._follow` does."""
        if not self.channel or not self.subscribed:
            return
        match self.channel.popleft():
            case ("flush", int(generation)):
                self.cache.generation = generation
                self.memory.clear()
            case int(lsn):
                self.freshness.receive(Applied(position=token(lsn), fresh_at_us=FRESH_AT_US + lsn))
                if not self.memory.enabled:
                    self.memory.enable()
            case invalidations:
                for key, version in cast("list[tuple[str, int]]", invalidations):
                    self.memory.invalidate((SITE, key), version)
        self.loop.settle()

    def lose_or_find_the_subscription(self) -> None:
        """Lose the subscription, or subscribe again and read the generation. Messages in between are lost."""
        if self.subscribed:
            channel_lost(self.memory, self.freshness)
        else:
            self.channel.clear()
            self.cache.generation = self.generation
        self.subscribed = not self.subscribed
        self.loop.settle()

    # Answers to the process, and time.

    def the_view_answers(self) -> None:
        returned = self._one_of(self.view.reading)
        if returned is not None and not returned.done():
            if self.chance.random() < FAILS:
                returned.set_exception(ViewUnavailable("it went away"))
            else:
                returned.set_result(None)
        self.loop.settle()

    def redis_answers(self) -> None:
        answered = self._one_of(self.cache.asked)
        if answered is not None and not answered.done():
            answered.set_result(None)
        self.loop.settle()

    def _one_of(self, waiting: "deque[asyncio.Future[None]]") -> "asyncio.Future[None] | None":
        """Take the oldest or the newest waiting request."""
        if not waiting:
            return None
        return waiting.popleft() if self.chance.random() < 0.7 else waiting.pop()

    def time_passes(self) -> None:
        self.loop.advance(self.chance.choice([0.005, 0.03, 0.3, SESSION_WAIT_S]))

    # Clients.

    def read(self) -> None:
        key, asked = self.chance.choice(KEYS), self.chance.choice(["session", "session", "eventual", "strong"])
        # The position of an acknowledged write, which may or may not be applied and announced.
        session = self.chance.randint(max(0, self.freshness.applied.lsn - 2), len(self.log))
        self.ask(key, asked, {"session": session, "strong": len(self.log)}.get(asked, 0))

    def ask(self, key: str, asked: str, at_least: int) -> None:
        """Begin a read, and judge an immediate answer."""
        headers: list[tuple[bytes, bytes]] = []
        if asked == "session":
            headers.append((b"palaver-position", token(at_least).encode()))
        elif asked == "strong":
            headers.append((b"palaver-consistency", b"strong"))
        one = Read(key=key, asked=asked, at_least=at_least)
        path, query = f"/v1/sites/{SITE}/comments", f"thread={key}".encode()
        at_once = self.ready(path.encode() + b"?" + query, headers)
        if at_once is not None:
            self.judge(one, "at once", *at_once)
            return
        scope: Scope = {
            "type": "http", "method": "GET", "path": path, "query_string": query, "headers": headers,
            EXCHANGE: Exchange(b"a-request", TraceContext("0" * 32, "0" * 16, sampled=False), one.send),
        }  # fmt: skip
        one.task = self.loop.start(self.answer(scope, one))
        self.reads.append(one)

    async def answer(self, scope: Scope, one: Read) -> None:
        try:
            await self.pages.get(scope, one.send)
        except Problem as problem:
            # These reads may fail only because the view does not answer.
            if problem.status != HTTPStatus.SERVICE_UNAVAILABLE:
                raise
            one.messages.clear()

    def go_away(self) -> None:
        """A client closes its connection."""
        if self.reads:
            one = self.chance.choice(self.reads)
            self.reads.remove(one)
            assert one.task is not None
            one.task.cancel()
            self.loop.settle()

    def judge_all(self) -> None:
        """Judge the reads that have been answered."""
        for one in [one for one in self.reads if one.task is not None and one.task.done()]:
            self.reads.remove(one)
            assert one.task is not None
            one.task.result()
            if one.messages:
                head, body = one.messages
                lines = b"\r\n".join(name + b": " + value for name, value in head["headers"])
                self.judge(one, "by the application", b"HTTP/1.1 200 OK\r\n" + lines + b"\r\n", body["body"])

    def judge(self, one: Read, where: str, head: bytes, body: bytes) -> None:
        """Assert that the answer has the writes up to its position, and the requested position if it has that level."""
        said = dict(line.split(b": ", 1) for line in head.split(b"\r\n") if b": " in line)
        claimed = decode_token(said[b"palaver-position"].decode())[1].lsn
        served = said[b"palaver-consistency"].split(b";")[0].decode()
        had = int(orjson.loads(body)["thread"]["title"])
        self.judged[one.asked, served, where] += 1
        newest = max((lsn for lsn in range(1, claimed + 1) if self.log[lsn - 1] == one.key), default=0)
        assert had >= newest, f"{one.asked} read of {one.key}: claims {claimed}, lacks {newest}, has {had}"
        if served == one.asked and one.asked != "eventual":
            assert claimed >= one.at_least, f"{one.asked} read claims {claimed}, asked for {one.at_least}"

    def close(self) -> None:
        """Cancel all tasks, and close the loop."""
        tasks = [self.polling, *(one.task for one in self.reads if one.task is not None)]
        for task in tasks:
            task.cancel()
        self.loop.settle()
        for task in tasks:
            with contextlib.suppress(asyncio.CancelledError):
                task.result()
        self.loop.close()
        self.tracing.close()


WEIGHTS: Final = {
    ProcessModel.commit: 6,
    ProcessModel.apply: 6,
    ProcessModel.note: 7,
    ProcessModel.tell: 7,
    ProcessModel.hear: 16,
    ProcessModel.the_view_answers: 16,
    ProcessModel.redis_answers: 16,
    ProcessModel.read: 16,
    ProcessModel.time_passes: 3,
    ProcessModel.go_away: 1,
    ProcessModel.restart_the_replicator: 2,
    ProcessModel.lose_or_find_the_subscription: 2,
}
"""Weight of each step. Steps that complete an operation are more frequent than those that begin one."""


PREFERENCES: Final = (0.1, 0.3, 1, 3)


def token(lsn: int) -> str:
    return encode_token(CELL, Position(1, lsn))


def walk(seed: int) -> "collections.Counter[tuple[str, str, str]]":
    """Take random steps; return the counts of judged answers. A failure lists the steps."""
    chance = random.Random(seed)  # noqa: S311 - a test, not a secret
    reading = ProcessModel(chance)
    steps: list[str] = []
    try:
        # Each walk prefers some steps and avoids others, so that all other operations overtake a slow one.
        weights = [weight * chance.choice(PREFERENCES) for weight in WEIGHTS.values()]
        for step in chance.choices(list(WEIGHTS), weights, k=STEPS):
            steps.append(step.__name__)
            step(reading)
            reading.judge_all()
    except AssertionError as error:
        error.add_note(f"seed {seed}, after: {' '.join(steps)}")
        raise
    finally:
        reading.close()
    return reading.judged


def do(reading: ProcessModel, *steps: Callable[[ProcessModel], None]) -> None:
    for step in steps:
        step(reading)
        reading.judge_all()


@pytest.fixture
def reading() -> Generator[ProcessModel]:
    """A process with a subscription and a cached page of a thread with one comment."""
    reading = ProcessModel(random.Random(0))  # noqa: S311 - a test, not a secret
    do(
        reading,
        ProcessModel.the_view_answers,
        ProcessModel.commit,
        ProcessModel.apply,
        ProcessModel.note,
        ProcessModel.tell,
        hear_all,
    )
    reading.ask(reading.log[0], "eventual", 0)
    do(reading, ProcessModel.redis_answers, answer_page, ProcessModel.redis_answers)
    assert (reading.view.pages, reading.judged.total()) == (1, 1)
    yield reading
    reading.close()


def hear_all(reading: ProcessModel) -> None:
    while reading.channel:
        reading.hear()


def answer_page(reading: ProcessModel) -> None:
    """Answer the newest query of the view, which is not a poll here."""
    reading.view.reading.pop().set_result(None)
    reading.loop.settle()


def test_a_session_read_of_a_write_to_another_thread_is_answered_at_once_after_its_announcement(
    reading: ProcessModel,
) -> None:
    kept = reading.log[0]
    reading.ask(kept, "session", 1)
    reading.log.append(next(key for key in KEYS if key != kept))
    do(reading, ProcessModel.apply, ProcessModel.note, ProcessModel.tell, hear_all)
    reading.ask(kept, "session", 2)
    assert reading.judged["session", "session", "at once"] == 2
    assert reading.view.pages == 1


def test_an_early_session_read_waits_for_the_announcement_without_a_query_of_the_view(reading: ProcessModel) -> None:
    kept = reading.log[0]
    reading.log.append(next(key for key in KEYS if key != kept))
    polls = len(reading.view.reading)
    reading.ask(kept, "session", 2)
    do(reading, ProcessModel.apply, ProcessModel.note)
    assert reading.reads
    # While the announcement may still arrive, the process reads neither the page nor the checkpoint.
    assert (reading.view.pages, len(reading.view.reading)) == (1, polls)
    do(reading, ProcessModel.tell, hear_all)
    assert reading.judged["session", "session", "by the application"] == 1
    assert (reading.view.pages, len(reading.view.reading)) == (1, polls)


def test_a_session_read_queries_the_view_if_the_announcement_does_not_arrive_soon(reading: ProcessModel) -> None:
    kept = reading.log[0]
    reading.log.append(kept)
    do(reading, ProcessModel.apply)
    reading.loop.advance(POLL_INTERVAL_S)
    answer_page(reading)  # the poll, which sees the position
    reading.ask(kept, "session", 2)
    assert reading.view.pages == 1
    reading.loop.advance(ANNOUNCEMENT_WAIT_S)
    assert reading.view.pages == 2
    do(reading, answer_page, ProcessModel.redis_answers)
    assert reading.judged["session", "session", "by the application"] == 1


def test_the_loss_of_the_channel_ends_the_wait_for_an_announcement(reading: ProcessModel) -> None:
    kept = reading.log[0]
    reading.log.append(kept)
    reading.ask(kept, "session", 2)
    do(reading, ProcessModel.apply, ProcessModel.lose_or_find_the_subscription)
    answer_page(reading)  # the poll, which begins at once
    assert reading.view.pages == 2
    do(reading, answer_page)
    assert reading.judged["session", "session", "by the application"] == 1


@given(seed=st.integers(0, 2**32))
@settings(max_examples=50)
def test_each_answer_contains_the_writes_up_to_its_position_in_any_order_of_steps(seed: int) -> None:
    walk(seed)


def test_the_random_walks_cover_every_way_to_answer() -> None:
    judged = sum((walk(seed) for seed in range(20)), collections.Counter[tuple[str, str, str]]())
    met = {case for case, count in judged.items() if count > 0}
    for asked in ("session", "eventual", "strong"):
        assert (asked, asked, "by the application") in met, judged
    for asked in ("session", "eventual"):
        assert (asked, asked, "at once") in met, judged
    assert ("session", "eventual", "by the application") in met, judged

"""Whatever happens in whatever order, no answer lacks what it claims, and no session read lacks its write.

The pages, the memory, the freshness and the short cut are real; the view, Redis, its channel, the replicator and the
clock are models whose every step is a step of the machine.
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
"""Questions that the view does not answer."""

FRESH_AT_US: Final = 1_700_000_000_000_000


class ModelView:
    """The view as its reader sees it: a query reads now and returns later."""

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
        # The title says what the thread had when it was read.
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
    """The pages in Redis: versions as the scripts compare them; each command is done now and answered later."""

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
    """Proves what was committed last."""

    position: Any


@dataclass(eq=False)
class Read:
    """One read under way.

    Attributes:
        at_least: Writes up to here must be in it when it is answered as it asked.
    """

    key: str
    asked: str
    at_least: int
    messages: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    task: "asyncio.Task[None] | None" = None

    async def send(self, message: Any) -> None:
        self.messages.append(message)


class PendingRead:
    """One process that reads, and everything around it."""

    def __init__(self, chance: random.Random) -> None:
        self.chance = chance
        self.judged = collections.Counter[tuple[str, str, str]]()
        self.loop = VirtualLoop()
        self.view, self.cache = ModelView(), ModelCache()
        self.memory = PageMemory(bytes_max=10**6, life_s=10**6, now=self.loop.time)
        self.freshness = Freshness(CELL)
        self.log: list[str] = []
        """Which thread each write was to: the write at index i has the LSN i + 1."""
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
        """The leader's proof: everything that is committed."""
        return Position(1, len(self.log))

    # What the ledger and the replicator do.

    def commit(self) -> None:
        self.log.append(self.chance.choice(KEYS))

    def apply(self) -> None:
        """One batch becomes visible; the reply of the view is on its way to the replicator."""
        for _ in range(min(self.chance.randint(1, 3), len(self.log) - self.view.lsn)):
            key = self.log[self.view.lsn]
            self.view.lsn += 1
            self.view.versions[key] = self.view.lsn
            self.unnoted.append((key, self.view.lsn))

    def note(self) -> None:
        """The reply arrives."""
        self.noted += self.unnoted
        self.noted_lsn = self.view.lsn
        self.unnoted.clear()

    def tell(self) -> None:
        """Redis takes the invalidations and passes them on, and then the position."""
        for key, version in self.noted:
            self.cache.invalidate(self.generation, (SITE, key), version)
        self.channel.append(list(self.noted))
        self.channel.append(self.noted_lsn)
        self.noted.clear()

    def restart_the_replicator(self) -> None:
        """What it had not told is forgotten; everything that is kept is void."""
        self.unnoted.clear()
        self.noted.clear()
        self.noted_lsn = self.view.lsn
        self.generation += 1
        self.channel.append(("flush", self.generation))
        self.channel.append(self.noted_lsn)

    # What the process hears.

    def hear(self) -> None:
        """As `invalidations._follow` does."""
        if not self.channel or not self.subscribed:
            return
        match self.channel.popleft():
            case ("flush", int(generation)):
                self.cache.generation = generation
                self.memory.clear()
            case int(lsn):
                self.freshness.hear(Applied(position=token(lsn), fresh_at_us=FRESH_AT_US + lsn))
                if not self.memory.heard:
                    self.memory.hear()
            case invalidations:
                for key, version in cast("list[tuple[str, int]]", invalidations):
                    self.memory.invalidate((SITE, key), version)
        self.loop.settle()

    def lose_or_find_the_subscription(self) -> None:
        """What is published meanwhile is lost; the generation is asked for."""
        if self.subscribed:
            channel_lost(self.memory, self.freshness)
        else:
            self.channel.clear()
            self.cache.generation = self.generation
        self.subscribed = not self.subscribed
        self.loop.settle()

    # What the process does.

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
        """Take the one that has waited longest, or the one that came last."""
        if not waiting:
            return None
        return waiting.popleft() if self.chance.random() < 0.7 else waiting.pop()

    def time_passes(self) -> None:
        self.loop.advance(self.chance.choice([0.005, 0.03, 0.3, SESSION_WAIT_S]))

    # Who reads.

    def read(self) -> None:
        key, asked = self.chance.choice(KEYS), self.chance.choice(["session", "session", "eventual", "strong"])
        # Of a write that was acknowledged: perhaps applied, perhaps heard, perhaps neither.
        session = self.chance.randint(max(0, self.freshness.applied.lsn - 2), len(self.log))
        self.ask(key, asked, {"session": session, "strong": len(self.log)}.get(asked, 0))

    def ask(self, key: str, asked: str, at_least: int) -> None:
        """Begin a read; what is answered at once is judged."""
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
            # Only a view that does not answer may refuse these reads.
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
        """Judge what was answered."""
        for one in [one for one in self.reads if one.task is not None and one.task.done()]:
            self.reads.remove(one)
            assert one.task is not None
            one.task.result()
            if one.messages:
                head, body = one.messages
                lines = b"\r\n".join(name + b": " + value for name, value in head["headers"])
                self.judge(one, "by the application", b"HTTP/1.1 200 OK\r\n" + lines + b"\r\n", body["body"])

    def judge(self, one: Read, where: str, head: bytes, body: bytes) -> None:
        """What is claimed is there, and what was asked for is there when it is said to be."""
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
        """End what is under way."""
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
    PendingRead.commit: 6,
    PendingRead.apply: 6,
    PendingRead.note: 7,
    PendingRead.tell: 7,
    PendingRead.hear: 16,
    PendingRead.the_view_answers: 16,
    PendingRead.redis_answers: 16,
    PendingRead.read: 16,
    PendingRead.time_passes: 3,
    PendingRead.go_away: 1,
    PendingRead.restart_the_replicator: 2,
    PendingRead.lose_or_find_the_subscription: 2,
}
"""How often a step is taken: those that end something more often than those that begin it."""


PREFERENCES: Final = (0.1, 0.3, 1, 3)


def token(lsn: int) -> str:
    return encode_token(CELL, Position(1, lsn))


def walk(seed: int) -> "collections.Counter[tuple[str, str, str]]":
    """Take steps by chance; return what was judged. The steps are logged, for a failure to be read."""
    chance = random.Random(seed)  # noqa: S311 - a test, not a secret
    reading = PendingRead(chance)
    steps: list[str] = []
    try:
        # Each walk has steps that it prefers and others that it avoids: what is slow lets all others overtake it.
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


def do(reading: PendingRead, *steps: Callable[[PendingRead], None]) -> None:
    for step in steps:
        step(reading)
        reading.judge_all()


@pytest.fixture
def reading() -> Generator[PendingRead]:
    """A process that hears the channel and keeps the page of a thread, in which one comment is."""
    reading = PendingRead(random.Random(0))  # noqa: S311 - a test, not a secret
    do(
        reading,
        PendingRead.the_view_answers,
        PendingRead.commit,
        PendingRead.apply,
        PendingRead.note,
        PendingRead.tell,
        hear_all,
    )
    reading.ask(reading.log[0], "eventual", 0)
    do(reading, PendingRead.redis_answers, answer_page, PendingRead.redis_answers)
    assert (reading.view.pages, reading.judged.total()) == (1, 1)
    yield reading
    reading.close()


def hear_all(reading: PendingRead) -> None:
    while reading.channel:
        reading.hear()


def answer_page(reading: PendingRead) -> None:
    """The view answers what was asked last, which is no poll here."""
    reading.view.reading.pop().set_result(None)
    reading.loop.settle()


def test_a_session_read_of_a_write_elsewhere_is_answered_at_once_when_it_was_heard(reading: PendingRead) -> None:
    kept = reading.log[0]
    reading.ask(kept, "session", 1)
    reading.log.append(next(key for key in KEYS if key != kept))
    do(reading, PendingRead.apply, PendingRead.note, PendingRead.tell, hear_all)
    reading.ask(kept, "session", 2)
    assert reading.judged["session", "session", "at once"] == 2
    assert reading.view.pages == 1


def test_a_session_read_that_is_early_waits_for_the_word_and_reads_no_view(reading: PendingRead) -> None:
    kept = reading.log[0]
    reading.log.append(next(key for key in KEYS if key != kept))
    polls = len(reading.view.reading)
    reading.ask(kept, "session", 2)
    do(reading, PendingRead.apply, PendingRead.note)
    assert reading.reads
    # Neither the page nor, for as long as the word may come, the checkpoint.
    assert (reading.view.pages, len(reading.view.reading)) == (1, polls)
    do(reading, PendingRead.tell, hear_all)
    assert reading.judged["session", "session", "by the application"] == 1
    assert (reading.view.pages, len(reading.view.reading)) == (1, polls)


def test_a_word_that_does_not_come_is_waited_for_briefly_and_the_page_is_read(reading: PendingRead) -> None:
    kept = reading.log[0]
    reading.log.append(kept)
    do(reading, PendingRead.apply)
    reading.loop.advance(POLL_INTERVAL_S)
    answer_page(reading)  # the poll, which sees the position
    reading.ask(kept, "session", 2)
    assert reading.view.pages == 1
    reading.loop.advance(ANNOUNCEMENT_WAIT_S)
    assert reading.view.pages == 2
    do(reading, answer_page, PendingRead.redis_answers)
    assert reading.judged["session", "session", "by the application"] == 1


def test_a_channel_that_is_lost_ends_the_wait_for_its_word(reading: PendingRead) -> None:
    kept = reading.log[0]
    reading.log.append(kept)
    reading.ask(kept, "session", 2)
    do(reading, PendingRead.apply, PendingRead.lose_or_find_the_subscription)
    answer_page(reading)  # the poll, which begins at once
    assert reading.view.pages == 2
    do(reading, answer_page)
    assert reading.judged["session", "session", "by the application"] == 1


@given(seed=st.integers(0, 2**32))
@settings(max_examples=50)
def test_no_answer_lacks_what_it_claims_and_no_session_read_lacks_its_write(seed: int) -> None:
    walk(seed)


def test_the_walks_meet_every_way_to_answer() -> None:
    judged = sum((walk(seed) for seed in range(20)), collections.Counter[tuple[str, str, str]]())
    met = {case for case, count in judged.items() if count > 0}
    for asked in ("session", "eventual", "strong"):
        assert (asked, asked, "by the application") in met, judged
    for asked in ("session", "eventual"):
        assert (asked, asked, "at once") in met, judged
    assert ("session", "eventual", "by the application") in met, judged

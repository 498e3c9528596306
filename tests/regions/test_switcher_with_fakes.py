"""The switcher's handling of effects and of messages from outside, with fakes of the core, etcd and the executor."""

import asyncio
import contextlib
import threading
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from uuid import UUID

import pytest

from regions import switcher as module
from regions.coordination import Coordination, EtcdUnavailable, OutcomeUnknown
from regions.failover.core import FailoverCore
from regions.failover.effects import (
    AnswerStrongReads,
    Effect,
    ReadRecord,
    StartServing,
    StopServing,
    StorePromise,
    SwapRecord,
)
from regions.failover.events import (
    MemberState,
    Promise,
    PromiseFailed,
    PromiseStored,
    ReadFailed,
    RecordRead,
    Started,
    StrongReads,
    SwapAnswered,
    Tick,
)
from regions.failover.heartbeats import CellEvent, Gossip, Heartbeat, HeartbeatReceived, LedgerRefused
from regions.failover.settings import Settings
from regions.history import parse_entry
from regions.identity import RegionName
from regions.leadership import Leadership
from regions.member.errors import MemberRefused
from regions.member.executor import MemberExecutor
from regions.member.promise import NAME, STARTS, load_promise, load_starts, store_promise
from regions.switcher import LocalSettings, Switcher
from regions.topology import Address
from tests.child_processes import free_port
from tests.regions.deployment import REGIONS, Deployment
from tests.regions.edge_harness import leadership
from tests.waiting import until

EAST, WEST, SOUTH = REGIONS
HANGS = "hangs"
FIRST, SECOND = Promise(epoch=4), Promise(epoch=5)


@dataclass
class FakeEtcd:
    """Records its calls, and gives the answer that a test has set.

    Attributes:
        answer: The answer to each read and swap: a value, an error to raise, or HANGS.
        asked: The calls, with their arguments.
    """

    answer: Any = None
    asked: list[tuple[object, ...]] = field(default_factory=list[tuple[object, ...]])

    async def read_leadership(self, cell: str, *, linearizable: bool) -> Any:
        return await self._answered("read", cell, linearizable)

    async def swap_leadership(self, cell: str, record: Leadership, revision: int) -> Any:
        return await self._answered("swap", cell, record.epoch, revision)

    async def write_history(self, cell: str, epoch: int, entry: bytes) -> None:
        self.asked.append(("history", cell, epoch, entry))

    async def register_start(self, region: str) -> int:
        self.asked.append(("count", region))
        return 7

    async def _answered(self, *asked: object) -> Any:
        self.asked.append(asked)
        if isinstance(self.answer, Exception):
            raise self.answer
        if self.answer == HANGS:
            await asyncio.Event().wait()
        return self.answer


@dataclass
class FakeCore:
    """Records the events that it receives, and fails if ``broken`` is set."""

    facts: SimpleNamespace
    events: list[object] = field(default_factory=list[object])
    broken: bool = False

    def __post_init__(self) -> None:
        self.machines = {"main": SimpleNamespace(facts=self.facts, state="following")}

    def handle(self, event: object, *, now: float) -> list[object]:
        del now
        self.events.append(event.event if isinstance(event, CellEvent) else event)
        if self.broken:
            raise ZeroDivisionError
        return []

    def next_deadline(self) -> float | None:
        return None


@dataclass
class FakeExecutor:
    """Records its calls, and reports a member and a quorum commit that a test has set.

    Attributes:
        kind: The state of the member.
        commit: The commit on the leader's quorum, an error to raise, or a function that returns either.
        opened: Number of times that it admitted writes.
        asked: The leaders whose commit was queried.
    """

    kind: Any = "following"
    commit: Any = None
    opened: int = 0
    asked: list[object] = field(default_factory=list[object])

    async def find_member(self) -> MemberState:
        return MemberState(kind=self.kind)

    def admit_writes(self) -> None:
        self.opened += 1

    async def commit_of(self, leader: RegionName, voters: object) -> int | None:
        del voters
        self.asked.append(leader)
        found: Any = self.commit() if callable(self.commit) else self.commit
        if isinstance(found, Exception):
            raise found
        return found


@dataclass
class Harness:
    switcher: Switcher
    etcd: FakeEtcd
    executor: FakeExecutor
    core: FakeCore
    state: Path

    def perform(self, effect: Effect) -> None:
        self.switcher._perform(effect)

    async def events(self, count: int = 1) -> list[Any]:
        await until(lambda: len(self.core.events) >= count)
        return self.core.events


@pytest.fixture
async def harness(tmp_path: Path) -> AsyncGenerator[Harness]:
    state = tmp_path / "state"
    state.mkdir()
    etcd, executor = FakeEtcd(), FakeExecutor()
    local = LocalSettings(state=state, listen=Address("127.0.0.1", free_port()), secret=b"a secret of the deployment")
    switcher = Switcher(
        Deployment(root=tmp_path).topology(WEST),
        cast("Coordination", etcd),
        local=local,
        settings=Settings(request_s_max=0.05),
    )
    switcher.attach_member(cast("MemberExecutor", executor))
    core = FakeCore(SimpleNamespace(region=WEST, record=leadership(EAST, 3)))
    switcher._seen = core.facts.record
    async with asyncio.TaskGroup() as tasks:
        switcher._tasks, switcher._core = tasks, cast("FailoverCore", core)
        yield Harness(switcher, etcd, executor, core, state)


async def test_a_promise_is_reported_and_counts_only_after_it_is_on_disk(harness: Harness) -> None:
    seen: list[tuple[Promise | None, Promise | None]] = []
    submit = harness.switcher.submit

    def look(event: Any) -> None:
        seen.append((load_promise(harness.state), harness.switcher.durable))
        submit(event)

    harness.switcher.submit = look
    harness.perform(StorePromise(ticket=1, promise=FIRST))
    assert harness.switcher.durable is None
    assert await harness.events() == [PromiseStored(ticket=1)]
    assert seen == [(FIRST, FIRST)]


async def test_a_promise_that_cannot_be_stored_is_reported_as_failed_and_does_not_count(harness: Harness) -> None:
    harness.switcher._promise = FIRST
    harness.state.rename(harness.state.with_name("gone"))
    harness.perform(StorePromise(ticket=2, promise=SECOND))
    (event,) = await harness.events()
    assert isinstance(event, PromiseFailed)
    assert event.ticket == 2
    assert harness.switcher.durable == FIRST


async def test_promises_are_stored_in_order_on_a_slow_disk(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[Promise] = []
    goes_on = threading.Event()

    def slowly(state: Path, promise: Promise) -> None:
        begun.append(promise)
        if promise == FIRST:
            goes_on.wait(30)
        store_promise(state, promise)

    monkeypatch.setattr(module, "store_promise", slowly)
    harness.perform(StorePromise(ticket=1, promise=FIRST))
    await until(lambda: begun == [FIRST])
    harness.perform(StorePromise(ticket=2, promise=SECOND))
    # A thread for the second promise would have been started before this one, so it would have run by now.
    await asyncio.to_thread(lambda: None)
    assert begun == [FIRST]
    goes_on.set()
    assert await harness.events(2) == [PromiseStored(ticket=1), PromiseStored(ticket=2)]
    assert (load_promise(harness.state), harness.switcher.durable) == (SECOND, SECOND)


@pytest.mark.parametrize(
    ("answer", "outcome"),
    [
        (12, SwapAnswered(ticket=3, outcome="applied", revision=12)),
        (None, SwapAnswered(ticket=3, outcome="lost")),
        (OutcomeUnknown("the answer was lost"), SwapAnswered(ticket=3, outcome="unknown")),
    ],
)
async def test_a_swap_is_tried_once_and_a_lost_answer_is_reported_as_unknown(
    harness: Harness, answer: object, outcome: SwapAnswered
) -> None:
    harness.etcd.answer = answer
    harness.perform(SwapRecord(ticket=3, expected_revision=11, record=leadership(WEST, 4)))
    assert await harness.events() == [outcome]
    assert harness.etcd.asked == [("swap", "main", 4, 11)]


async def test_an_epoch_that_this_agent_swapped_has_a_start_time(harness: Harness) -> None:
    core, offered = harness.core, list[Leadership]()
    harness.switcher.on_record = offered.append
    begun = replace(leadership(WEST, 4), phase="promoting", fence_id=None, since="")
    # The core knows the records of its own swaps without their times, and takes no record of the same revision again.
    for revision, record in enumerate((begun, replace(begun, phase="serving", fence_id=UUID(int=4))), start=12):
        harness.etcd.answer, core.events[:] = revision, []
        harness.perform(SwapRecord(ticket=revision, expected_revision=revision - 1, record=record))
        core.facts.record = record
        await harness.events()
    await until(lambda: harness.etcd.asked[-1][:3] == ("history", "main", 4))
    entry = parse_entry(cast("bytes", harness.etcd.asked[-1][3]))
    assert entry is not None
    assert datetime.fromisoformat(entry["began"]).tzinfo == UTC
    assert (entry["served"], offered[0].since, [one.phase for one in offered]) == (
        True,
        entry["began"],
        ["promoting", "serving"],
    )


async def test_an_epoch_that_a_release_began_has_no_time_until_it_is_in_etcd(harness: Harness) -> None:
    offered: list[Leadership] = []
    harness.switcher.on_record = offered.append
    harness.core.facts.record = replace(leadership(SOUTH, 4), since="")
    harness.switcher.submit(Tick())
    assert [one.since for one in offered] == [""]


async def test_an_epoch_that_a_release_began_has_its_time_when_its_swap_is_answered(harness: Harness) -> None:
    core, offered = harness.core, list[Leadership]()
    harness.switcher.on_record = offered.append
    core.facts.record = record = replace(leadership(WEST, 4), phase="promoting", fence_id=None, since="")
    harness.switcher.submit(Tick())
    harness.etcd.answer, core.events[:] = 12, []
    harness.perform(SwapRecord(ticket=12, expected_revision=11, record=record))
    await harness.events()
    assert [bool(one.since) for one in offered] == [False, True]
    assert replace(offered[1], since="") == record


@pytest.mark.parametrize("linearizable", [True, False])
@pytest.mark.parametrize(
    ("answer", "outcome"),
    [
        ((leadership(EAST, 3), 9), RecordRead(ticket=1, revision=9, record=leadership(EAST, 3))),
        (None, RecordRead(ticket=1, revision=0, record=None)),
        (EtcdUnavailable("no leader"), ReadFailed(ticket=1)),
        (HANGS, ReadFailed(ticket=1)),
    ],
)
async def test_a_read_reports_the_record_or_its_failure(
    harness: Harness, answer: object, outcome: object, linearizable: bool
) -> None:
    harness.etcd.answer = answer
    harness.perform(ReadRecord(ticket=1, linearizable=linearizable))
    assert await harness.events() == [outcome]
    assert harness.etcd.asked == [("read", "main", linearizable)]


async def test_an_epoch_serves_from_start_serving_to_stop_serving_or_the_end_of_the_switcher(harness: Harness) -> None:
    harness.perform(StartServing(epoch=3))
    assert (harness.switcher.serving_epoch, harness.executor.opened) == (3, 1)
    harness.perform(StopServing(epoch=3))
    assert harness.switcher.serving_epoch == 0
    harness.perform(StartServing(epoch=4))
    harness.switcher._end()
    assert harness.switcher.serving_epoch == 0
    assert not harness.switcher.report_cancelled_wait(4)
    harness.switcher.submit(Tick())
    assert harness.core.events == [], "the core must get no event after the end of the switcher"


async def test_a_core_that_failed_gets_no_more_events_and_ends_the_agent(harness: Harness) -> None:
    harness.core.broken = True
    harness.switcher.submit(Tick())
    harness.core.broken = False
    harness.switcher.submit(Tick())
    assert harness.core.events == [Tick()]
    with pytest.raises(ZeroDivisionError):
        await harness.switcher._until_broken()


async def test_a_strong_read_waits_for_the_answer_of_the_core(harness: Harness) -> None:
    asked = [asyncio.create_task(harness.switcher.is_current()) for _ in range(2)]
    numbers = [event.requests[0] for event in await harness.events(2) if isinstance(event, StrongReads)]
    assert len(set(numbers)) == 2
    harness.perform(AnswerStrongReads(requests=(numbers[1],), current=True))
    assert await asked[1]
    assert not asked[0].done()
    harness.perform(AnswerStrongReads(requests=(numbers[0],), current=False))
    assert not await asked[0]


@pytest.mark.parametrize(
    "case",
    [
        ("absent", None, None, Promise(), True),
        ("following", None, None, None, True),
        ("following", FIRST, "5", FIRST, False),
        ("following", "nonsense", "5", None, True),
        ("absent", "nonsense", "5", None, True),
        ("following", FIRST, "nonsense", FIRST, True),
    ],
)
async def test_a_start_uses_an_empty_promise_only_if_no_promise_can_have_been_made(
    harness: Harness, monkeypatch: pytest.MonkeyPatch, case: tuple[Any, ...]
) -> None:
    kind, promise, starts, reported, counted = case
    harness.executor.kind = kind
    if isinstance(promise, Promise):
        store_promise(harness.state, promise)
    elif promise is not None:
        (harness.state / NAME).write_text(promise)
    if starts is not None:
        (harness.state / STARTS).write_text(starts)
    incarnations: list[int] = []

    def core(*, incarnation: int, **_: object) -> FakeCore:
        incarnations.append(incarnation)
        return harness.core

    monkeypatch.setattr(module, "FailoverCore", core)
    await harness.switcher._start()
    assert harness.core.events == [Started(promise=reported, ledger=MemberState(kind=kind))]
    assert (harness.etcd.asked == [("count", WEST)]) == counted
    # A counted start is above all earlier ones; otherwise the stored count increases by one.
    expected = (7 << module.STARTS_BITS) + 1 if counted else 6
    assert incarnations == [expected]
    assert load_starts(harness.state) == expected


BEAT = Heartbeat(sender=EAST, incarnation=1, sequence=1, cells=(("main", Gossip(epoch=3, commit=700)),))  # pyright: ignore[reportArgumentType] - a cell is a text


@contextlib.asynccontextmanager
async def leader_queries(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> AsyncGenerator[None]:
    """Run the queries of a silent leader's ledger; the leader's only heartbeat is long ago."""
    monkeypatch.setattr(module, "ASK_S", 0.001)
    harness.switcher._receive(BEAT)
    harness.switcher._merger.alive_at[EAST] = 0.0
    harness.core.events.clear()
    running = asyncio.create_task(harness.switcher._ask_silent_leader(cast("MemberExecutor", harness.executor)))
    try:
        yield
    finally:
        running.cancel()
        await asyncio.wait([running])


async def test_a_silent_leader_stays_alive_by_the_commits_of_its_ledger(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    harness.executor.commit = 800
    async with leader_queries(harness, monkeypatch):
        (events, *_) = await harness.events()
    assert isinstance(events, HeartbeatReceived)
    assert dict(events.heartbeat.cells)[harness.switcher._cell].commit == 800
    assert set(harness.executor.asked) == {EAST}


@pytest.mark.parametrize(
    "record",
    [None, replace(leadership(EAST, 3), phase="promoting", fence_id=None), leadership(WEST, 3)],
    ids=["nobody", "promoting", "itself"],
)
async def test_no_ledger_is_queried_unless_another_region_serves(
    harness: Harness, monkeypatch: pytest.MonkeyPatch, record: Leadership | None
) -> None:
    at_asking: list[Leadership | None] = []
    harness.executor.commit = lambda: at_asking.append(harness.core.facts.record)
    harness.core.facts.record = record
    looks = 0
    sleep = asyncio.sleep

    async def look(seconds: float) -> None:
        nonlocal looks
        looks += 1
        await sleep(seconds)

    async with leader_queries(harness, monkeypatch):
        monkeypatch.setattr(module.asyncio, "sleep", look)
        before = looks
        async with asyncio.timeout(30):
            while looks < before + 5:
                await sleep(0.001)
        monkeypatch.setattr(module.asyncio, "sleep", sleep)
        harness.core.facts.record = serving = leadership(EAST, 4)
        await until(lambda: bool(at_asking))
    assert set(at_asking) == {serving}


@pytest.mark.parametrize("found", [800, MemberRefused("nobody listens")])
@pytest.mark.parametrize(
    "meanwhile",
    [leadership(SOUTH, 4), replace(leadership(EAST, 3), phase="promoting", fence_id=None), None],
    ids=["another epoch", "another phase", "nobody"],
)
async def test_an_answer_about_an_ended_epoch_is_ignored(
    harness: Harness, monkeypatch: pytest.MonkeyPatch, found: object, meanwhile: Leadership | None
) -> None:
    def late() -> object:
        harness.core.facts.record = meanwhile if len(harness.executor.asked) == 1 else harness.core.facts.record
        return found if len(harness.executor.asked) == 1 else MemberRefused("nobody listens")

    harness.executor.commit = late
    async with leader_queries(harness, monkeypatch):
        await until(lambda: harness.core.facts.record == meanwhile)
        assert harness.core.events == [], "an answer about an ended epoch must be ignored"
        harness.core.facts.record = leadership(EAST, 5)
        events = await harness.events()
    assert events[0] == LedgerRefused(cell=harness.switcher._cell, region=EAST)
    assert not any(isinstance(event, HeartbeatReceived) for event in events)
    assert len(harness.executor.asked) >= 2, "the executor must have been asked again after the ignored answer"


async def test_the_ledger_of_a_leader_with_a_recent_heartbeat_is_not_queried(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    now_s, paused = 1000.0, list[float]()
    monkeypatch.setattr(module, "_now", lambda: now_s)
    harness.switcher._receive(BEAT)
    sleep = asyncio.sleep

    async def pause(seconds: float) -> None:
        nonlocal now_s
        paused.append(seconds)
        now_s += seconds
        await sleep(0)

    harness.executor.commit = lambda: asked_at.append(now_s)
    asked_at: list[float] = []
    monkeypatch.setattr(module.asyncio, "sleep", pause)
    running = asyncio.create_task(harness.switcher._ask_silent_leader(cast("MemberExecutor", harness.executor)))
    async with asyncio.timeout(30):
        while not asked_at:
            await sleep(0)
    monkeypatch.setattr(module.asyncio, "sleep", sleep)
    running.cancel()
    await asyncio.wait([running])
    assert asked_at[0] - 1000.0 >= module.SILENCE_S

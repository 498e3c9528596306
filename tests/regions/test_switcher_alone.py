"""What a switcher makes of effects and of its surroundings, beside a core, an etcd and a member that play along."""

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
from tests.regions.edge_stand import leadership
from tests.waiting import until

EAST, WEST, SOUTH = REGIONS
HANGS = "hangs"
FIRST, SECOND = Promise(epoch=4), Promise(epoch=5)


@dataclass
class PlayedEtcd:
    """Answers as it is told to.

    Attributes:
        answer: Of a read or a swap: a value, or what it raises.
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
class PlayedCore:
    """Notes what it is told, and breaks when it is asked to."""

    facts: SimpleNamespace
    heard: list[object] = field(default_factory=list[object])
    broken: bool = False

    def __post_init__(self) -> None:
        self.machines = {"main": SimpleNamespace(facts=self.facts, state="following")}

    def handle(self, event: object, *, now: float) -> list[object]:
        del now
        self.heard.append(event.event if isinstance(event, CellEvent) else event)
        if self.broken:
            raise ZeroDivisionError
        return []

    def next_deadline(self) -> float | None:
        return None


@dataclass
class PlayedExecutor:
    """The driver of a member.

    Attributes:
        commit: What is found on the leader's quorum, or raised, or done to find it.
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
class Stand:
    switcher: Switcher
    etcd: PlayedEtcd
    executor: PlayedExecutor
    core: PlayedCore
    state: Path

    def perform(self, effect: Effect) -> None:
        self.switcher._perform(effect)

    async def heard(self, count: int = 1) -> list[Any]:
        await until(lambda: len(self.core.heard) >= count)
        return self.core.heard


@pytest.fixture
async def stand(tmp_path: Path) -> AsyncGenerator[Stand]:
    state = tmp_path / "state"
    state.mkdir()
    etcd, executor = PlayedEtcd(), PlayedExecutor()
    local = LocalSettings(state=state, listen=Address("127.0.0.1", free_port()), secret=b"a secret of the deployment")
    switcher = Switcher(
        Deployment(root=tmp_path).topology(WEST),
        cast("Coordination", etcd),
        local=local,
        settings=Settings(request_s_max=0.05),
    )
    switcher.attach_member(cast("MemberExecutor", executor))
    core = PlayedCore(SimpleNamespace(region=WEST, record=leadership(EAST, 3)))
    switcher._seen = core.facts.record
    async with asyncio.TaskGroup() as tasks:
        switcher._tasks, switcher._core = tasks, cast("FailoverCore", core)
        yield Stand(switcher, etcd, executor, core, state)


async def test_a_promise_is_told_when_it_is_on_disk_and_only_then_counts(stand: Stand) -> None:
    seen: list[tuple[Promise | None, Promise | None]] = []
    tell = stand.switcher.submit

    def look(event: Any) -> None:
        seen.append((load_promise(stand.state), stand.switcher.durable))
        tell(event)

    stand.switcher.submit = look
    stand.perform(StorePromise(ticket=1, promise=FIRST))
    assert stand.switcher.durable is None
    assert await stand.heard() == [PromiseStored(ticket=1)]
    assert seen == [(FIRST, FIRST)]


async def test_a_promise_that_is_not_on_disk_is_told_as_failed_and_does_not_count(stand: Stand) -> None:
    stand.switcher._promise = FIRST
    stand.state.rename(stand.state.with_name("gone"))
    stand.perform(StorePromise(ticket=2, promise=SECOND))
    (told,) = await stand.heard()
    assert isinstance(told, PromiseFailed)
    assert told.ticket == 2
    assert stand.switcher.durable == FIRST


async def test_the_newest_promise_is_the_last_on_disk_however_slow_the_disk_was_before(
    stand: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[Promise] = []
    goes_on = threading.Event()

    def slowly(state: Path, promise: Promise) -> None:
        begun.append(promise)
        if promise == FIRST:
            goes_on.wait(30)
        store_promise(state, promise)

    monkeypatch.setattr(module, "store_promise", slowly)
    stand.perform(StorePromise(ticket=1, promise=FIRST))
    await until(lambda: begun == [FIRST])
    stand.perform(StorePromise(ticket=2, promise=SECOND))
    # A thread that was begun for the second would come as soon as this one, which is begun later.
    await asyncio.to_thread(lambda: None)
    assert begun == [FIRST]
    goes_on.set()
    assert await stand.heard(2) == [PromiseStored(ticket=1), PromiseStored(ticket=2)]
    assert (load_promise(stand.state), stand.switcher.durable) == (SECOND, SECOND)


@pytest.mark.parametrize(
    ("answer", "outcome"),
    [
        (12, SwapAnswered(ticket=3, outcome="applied", revision=12)),
        (None, SwapAnswered(ticket=3, outcome="lost")),
        (OutcomeUnknown("the answer was lost"), SwapAnswered(ticket=3, outcome="unknown")),
    ],
)
async def test_a_swap_is_tried_once_and_what_is_not_known_is_told_as_unknown(
    stand: Stand, answer: object, outcome: SwapAnswered
) -> None:
    stand.etcd.answer = answer
    stand.perform(SwapRecord(ticket=3, expected_revision=11, record=leadership(WEST, 4)))
    assert await stand.heard() == [outcome]
    assert stand.etcd.asked == [("swap", "main", 4, 11)]


async def test_an_epoch_that_this_agent_swapped_has_a_start_time(stand: Stand) -> None:
    core, offered = stand.core, list[Leadership]()
    stand.switcher.on_record = offered.append
    begun = replace(leadership(WEST, 4), phase="promoting", fence_id=None, since="")
    # The core knows the records of its own swaps without their times, and takes no record of the same revision again.
    for revision, record in enumerate((begun, replace(begun, phase="serving", fence_id=UUID(int=4))), start=12):
        stand.etcd.answer, core.heard[:] = revision, []
        stand.perform(SwapRecord(ticket=revision, expected_revision=revision - 1, record=record))
        core.facts.record = record
        await stand.heard()
    await until(lambda: stand.etcd.asked[-1][:3] == ("history", "main", 4))
    entry = parse_entry(cast("bytes", stand.etcd.asked[-1][3]))
    assert entry is not None
    assert datetime.fromisoformat(entry["began"]).tzinfo == UTC
    assert (entry["served"], offered[0].since, [one.phase for one in offered]) == (
        True,
        entry["began"],
        ["promoting", "serving"],
    )


async def test_an_epoch_that_a_release_began_has_no_time_until_it_is_in_etcd(stand: Stand) -> None:
    offered: list[Leadership] = []
    stand.switcher.on_record = offered.append
    stand.core.facts.record = replace(leadership(SOUTH, 4), since="")
    stand.switcher.submit(Tick())
    assert [one.since for one in offered] == [""]


@pytest.mark.parametrize("linearizable", [True, False])
@pytest.mark.parametrize(
    ("answer", "told"),
    [
        ((leadership(EAST, 3), 9), RecordRead(ticket=1, revision=9, record=leadership(EAST, 3))),
        (None, RecordRead(ticket=1, revision=0, record=None)),
        (EtcdUnavailable("no leader"), ReadFailed(ticket=1)),
        (HANGS, ReadFailed(ticket=1)),
    ],
)
async def test_a_read_says_what_etcd_says_or_that_it_failed(
    stand: Stand, answer: object, told: object, linearizable: bool
) -> None:
    stand.etcd.answer = answer
    stand.perform(ReadRecord(ticket=1, linearizable=linearizable))
    assert await stand.heard() == [told]
    assert stand.etcd.asked == [("read", "main", linearizable)]


async def test_writes_are_open_from_the_word_of_the_core_to_its_word_or_its_end(stand: Stand) -> None:
    stand.perform(StartServing(epoch=3))
    assert (stand.switcher.serving_epoch, stand.executor.opened) == (3, 1)
    stand.perform(StopServing(epoch=3))
    assert stand.switcher.serving_epoch == 0
    stand.perform(StartServing(epoch=4))
    stand.switcher._end()
    assert stand.switcher.serving_epoch == 0
    assert not stand.switcher.report_cancelled_wait(4)
    stand.switcher.submit(Tick())
    assert stand.core.heard == [], "it hears nothing after its end"


async def test_a_core_that_broke_is_told_nothing_more_and_ends_the_agent(stand: Stand) -> None:
    stand.core.broken = True
    stand.switcher.submit(Tick())
    stand.core.broken = False
    stand.switcher.submit(Tick())
    assert stand.core.heard == [Tick()]
    with pytest.raises(ZeroDivisionError):
        await stand.switcher._until_broken()


async def test_a_strong_read_is_answered_by_the_core_alone(stand: Stand) -> None:
    asked = [asyncio.create_task(stand.switcher.is_current()) for _ in range(2)]
    numbers = [event.requests[0] for event in await stand.heard(2) if isinstance(event, StrongReads)]
    assert len(set(numbers)) == 2
    stand.perform(AnswerStrongReads(requests=(numbers[1],), current=True))
    assert await asked[1]
    assert not asked[0].done()
    stand.perform(AnswerStrongReads(requests=(numbers[0],), current=False))
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
async def test_a_start_promises_anew_only_where_nothing_can_have_been_promised(
    stand: Stand, monkeypatch: pytest.MonkeyPatch, case: tuple[Any, ...]
) -> None:
    kind, promise, starts, told, counted = case
    stand.executor.kind = kind
    if isinstance(promise, Promise):
        store_promise(stand.state, promise)
    elif promise is not None:
        (stand.state / NAME).write_text(promise)
    if starts is not None:
        (stand.state / STARTS).write_text(starts)
    incarnations: list[int] = []

    def core(*, incarnation: int, **_: object) -> PlayedCore:
        incarnations.append(incarnation)
        return stand.core

    monkeypatch.setattr(module, "FailoverCore", core)
    await stand.switcher._start()
    assert stand.core.heard == [Started(promise=told, ledger=MemberState(kind=kind))]
    assert (stand.etcd.asked == [("count", WEST)]) == counted
    # Above every earlier one, and one more at the next start.
    expected = (7 << module.STARTS_BITS) + 1 if counted else 6
    assert incarnations == [expected]
    assert load_starts(stand.state) == expected


BEAT = Heartbeat(sender=EAST, incarnation=1, sequence=1, cells=(("main", Gossip(epoch=3, commit=700)),))  # pyright: ignore[reportArgumentType] - a cell is a text


@contextlib.asynccontextmanager
async def vouching(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> AsyncGenerator[None]:
    """Run the witness beside a leader that was heard once, long ago."""
    monkeypatch.setattr(module, "ASK_S", 0.001)
    stand.switcher._hear(BEAT)
    stand.switcher._merger.alive_at[EAST] = 0.0
    stand.core.heard.clear()
    running = asyncio.create_task(stand.switcher._ask_silent_leader(cast("MemberExecutor", stand.executor)))
    try:
        yield
    finally:
        running.cancel()
        await asyncio.wait([running])


async def test_a_silent_leader_is_vouched_for_with_what_its_ledger_says(
    stand: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand.executor.commit = 800
    async with vouching(stand, monkeypatch):
        (heard, *_) = await stand.heard()
    assert isinstance(heard, HeartbeatReceived)
    assert dict(heard.heartbeat.cells)[stand.switcher._cell].commit == 800
    assert set(stand.executor.asked) == {EAST}


@pytest.mark.parametrize(
    "record",
    [None, replace(leadership(EAST, 3), phase="promoting", fence_id=None), leadership(WEST, 3)],
    ids=["nobody", "promoting", "itself"],
)
async def test_nobody_is_asked_about_who_does_not_serve_elsewhere(
    stand: Stand, monkeypatch: pytest.MonkeyPatch, record: Leadership | None
) -> None:
    at_asking: list[Leadership | None] = []
    stand.executor.commit = lambda: at_asking.append(stand.core.facts.record)
    stand.core.facts.record = record
    looks = 0
    sleep = asyncio.sleep

    async def look(seconds: float) -> None:
        nonlocal looks
        looks += 1
        await sleep(seconds)

    async with vouching(stand, monkeypatch):
        monkeypatch.setattr(module.asyncio, "sleep", look)
        before = looks
        async with asyncio.timeout(30):
            while looks < before + 5:
                await sleep(0.001)
        monkeypatch.setattr(module.asyncio, "sleep", sleep)
        stand.core.facts.record = serving = leadership(EAST, 4)
        await until(lambda: bool(at_asking))
    assert set(at_asking) == {serving}


@pytest.mark.parametrize("found", [800, MemberRefused("nobody listens")])
@pytest.mark.parametrize(
    "meanwhile",
    [leadership(SOUTH, 4), replace(leadership(EAST, 3), phase="promoting", fence_id=None), None],
    ids=["another epoch", "another phase", "nobody"],
)
async def test_an_answer_about_an_epoch_that_is_over_says_nothing(
    stand: Stand, monkeypatch: pytest.MonkeyPatch, found: object, meanwhile: Leadership | None
) -> None:
    def late() -> object:
        stand.core.facts.record = meanwhile if len(stand.executor.asked) == 1 else stand.core.facts.record
        return found if len(stand.executor.asked) == 1 else MemberRefused("nobody listens")

    stand.executor.commit = late
    async with vouching(stand, monkeypatch):
        await until(lambda: stand.core.facts.record == meanwhile)
        assert stand.core.heard == [], "the answer came in the same step"
        stand.core.facts.record = leadership(EAST, 5)
        heard = await stand.heard()
    assert heard[0] == LedgerRefused(cell=stand.switcher._cell, region=EAST)
    assert not any(isinstance(event, HeartbeatReceived) for event in heard)
    assert len(stand.executor.asked) >= 2, "the first answer was told to nobody"


async def test_a_leader_that_was_heard_just_now_is_not_asked_about(
    stand: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    now_s, paused = 1000.0, list[float]()
    monkeypatch.setattr(module, "_now", lambda: now_s)
    stand.switcher._hear(BEAT)
    sleep = asyncio.sleep

    async def pause(seconds: float) -> None:
        nonlocal now_s
        paused.append(seconds)
        now_s += seconds
        await sleep(0)

    stand.executor.commit = lambda: asked_at.append(now_s)
    asked_at: list[float] = []
    monkeypatch.setattr(module.asyncio, "sleep", pause)
    running = asyncio.create_task(stand.switcher._ask_silent_leader(cast("MemberExecutor", stand.executor)))
    async with asyncio.timeout(30):
        while not asked_at:
            await sleep(0)
    monkeypatch.setattr(module.asyncio, "sleep", sleep)
    running.cancel()
    await asyncio.wait([running])
    assert asked_at[0] - 1000.0 >= module.SILENCE_S

"""Drives the failover core of a region: reads the clock, performs its effects, feeds back what came of them.

Decides nothing. What etcd, the disk, the member or the network do is an event; a time-out is on everything, and an
effect that fails is an answer. Its log is what the core tells: about ten lines for a failover.

Times are CLOCK_BOOTTIME, which goes on while the machine sleeps and which nobody can set (rule 16).
"""

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, assert_never

from regions.coordination import Coordination, CoordinationError, OutcomeUnknown
from regions.failover.core import FailoverCore
from regions.failover.effects import (
    AnswerOrder,
    AnswerStrongReads,
    Effect,
    GossipChanged,
    LedgerEffect,
    Log,
    ReadRecord,
    StartServing,
    StopServing,
    StorePromise,
    SwapRecord,
    WatchLeader,
)
from regions.failover.events import (
    Event,
    Order,
    OrderKind,
    Promise,
    PromiseFailed,
    PromiseStored,
    ReadFailed,
    RecordRead,
    RecordSeen,
    Started,
    StrongReads,
    SwapAnswered,
    Tick,
)
from regions.failover.facts import Facts
from regions.failover.heartbeats import (
    AgentEvent,
    CellEffect,
    CellEvent,
    Heartbeat,
    HeartbeatReceived,
    LedgerRefused,
    ReadCommit,
    SendHeartbeat,
)
from regions.failover.settings import DEFAULTS, CellRegions, Settings
from regions.failover.states import State
from regions.heartbeats import HeartbeatLinks
from regions.history import EpochEntry, EpochHistory
from regions.identity import CellId, Epoch, RegionName
from regions.leadership import Leadership
from regions.member.errors import MemberError, MemberRefused
from regions.member.executor import MemberExecutor
from regions.member.promise import PromiseLost, load_promise, load_starts, store_promise, store_starts
from regions.topology import Address, Topology
from regions.witness import ANSWER_S_MAX, ASK_S, SILENCE_S, Witness

ORDER_S_MAX: Final = 10.0
"""An order is answered within the core's own patience, a few seconds; beyond this its agent was lost."""

STREAMS_S_MAX: Final = 4.0
STREAMS_POLL_S: Final = 0.1
"""How long an operator's switch waits for the copies of the slots; PostgreSQL copies them every 0.2 to 30 s."""

STARTS_BITS: Final = 20
"""A million starts between two losses of the folder."""

_LEVELS: Final = {"info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}

_log = logging.getLogger(__name__)


class OrderRefused(Exception):
    """An operator's order cannot be carried out; the text says why, and what would help."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a switcher keeps and says things.

    Attributes:
        state: Folder of what must survive a crash: the promise, and the count of starts.
        listen: Where other agents' heartbeats arrive.
        secret: What authenticates them.
    """

    state: Path
    listen: Address
    secret: bytes


class Switcher:
    """Runs the core of one region for the cell of its topology."""

    def __init__(
        self,
        topology: Topology,
        coordination: Coordination,
        *,
        place: Place,
        settings: Settings = DEFAULTS,
    ) -> None:
        """Prepare; `hold` gives it the member, when the region has one, and `run` begins."""
        self._topology = topology
        self._coordination = coordination
        self._place = place
        self._settings = settings
        self._cell: CellId = topology.cell
        self._voters = tuple(one.name for one in topology.voters)
        self._executor: MemberExecutor | None = None
        self._core: FailoverCore | None = None
        self._promise: Promise | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._tasks: asyncio.TaskGroup | None = None
        self._storing = asyncio.Lock()
        self._broken = asyncio.Event()
        self._error: Exception | None = None
        self._orders: dict[int, asyncio.Future[str | None]] = {}
        self._reads: dict[int, asyncio.Future[bool]] = {}
        self._next_number = 0
        self._refused_in: Epoch = 0
        self._witness = Witness(topology.cell)
        self._history = EpochHistory(topology.region)
        self._seen: Leadership | None = None
        self.stepped: Callable[[str, float], None] = lambda _name, _ms: None
        self.adopted: Callable[[Leadership], None] = lambda _record: None
        peers: Mapping[RegionName, Address] = {one.name: one.agent for one in topology.others}
        self.serving_epoch: Epoch = 0
        self.links = HeartbeatLinks(
            region=topology.region, listen=place.listen, peers=peers, secret=place.secret, heard=self._hear
        )

    def hold(self, executor: MemberExecutor) -> None:
        """Take the driver of the region's member; before `run`."""
        self._executor = executor

    @property
    def durable(self) -> Promise | None:
        """The promise on disk, as far as this process knows."""
        return self._promise

    @property
    def facts(self) -> Facts | None:
        """What the core knows; None before it runs."""
        return None if self._core is None else self._core.machines[self._cell].facts

    @property
    def state(self) -> State:
        """Where the core is in its table of transitions."""
        return "starting" if self._core is None else self._core.machines[self._cell].state

    @property
    def followers(self) -> tuple[RegionName, ...]:
        """The other regions that follow the ledger when it leads here: voters, and those that join.

        Those of the topology as long as no record is known.
        """
        record = None if self.facts is None else self.facts.record
        names = self._voters if record is None else (*record.voters, *record.joining)
        return tuple(name for name in names if name != self._topology.region)

    @property
    def standbys(self) -> tuple[RegionName, ...]:
        """The other voters, when this region is one: whom its ledger would have for its quorum if it led."""
        record = None if self.facts is None else self.facts.record
        if record is None or self._topology.region not in record.voters:
            return ()
        return tuple(name for name in record.voters if name != self._topology.region)

    def phi(self) -> dict[RegionName, float]:
        """The suspicion of each other region."""
        if self._core is None:
            return {}
        now = _now()
        return {one.name: self._core.phi(self._cell, one.name, now=now) for one in self._topology.others}

    def held_down_s(self) -> float:
        """How long the next failover by suspicion still waits because there were several (rule 17), seconds."""
        facts = self.facts
        if facts is None or len(facts.failovers) < self._settings.failovers_max:
            return 0.0
        recent = [at for at in facts.failovers if _now() - at < self._settings.hold_down_s]
        if len(recent) < self._settings.failovers_max:
            return 0.0
        return max(0.0, min(recent) + self._settings.hold_down_s - _now())

    async def run(self) -> None:
        """Run until cancelled; the member is left as it is.

        Raises:
            AccessRefused: etcd asks for another user or password.
            CorruptRecord: The record in etcd is none.
            MemberUnusable: The data folder cannot be used.
            OSError: Heartbeats cannot be listened for, or the folder cannot be written.
        """
        try:
            async with asyncio.TaskGroup() as tasks:
                self._tasks = tasks
                tasks.create_task(self._until_broken(), name="core")
                await self._start()
                tasks.create_task(self._watch(), name="leadership")
                tasks.create_task(self.links.run(), name="heartbeats")
                if self._executor is not None:
                    tasks.create_task(self._executor.run(), name="member")
                    tasks.create_task(self._vouch(self._executor), name="witness")
        finally:
            self._end()

    async def _until_broken(self) -> None:
        """Wait for an error of the core itself: what is durable is right, so the next start goes on from it."""
        await self._broken.wait()
        assert self._error is not None, "it broke"
        raise self._error

    def _end(self) -> None:
        """Hear nothing any more."""
        self._core, self.serving_epoch = None, 0
        if self._timer is not None:
            self._timer.cancel()

    async def _start(self) -> None:
        found = None if self._executor is None else await self._executor.found()
        lost = None
        try:
            self._promise = load_promise(self._place.state)
            starts = load_starts(self._place.state)
        except PromiseLost as error:
            lost, starts = error, None
            _log.error("%s", error)
        if lost is None and self._promise is None and (found is None or found.kind == "absent"):
            # Nothing was ever promised here, or a disk was replaced: the core reads etcd before it acts.
            self._promise = Promise()
        incarnation = await self._incarnation(starts)
        cell = CellRegions(voters=self._voters, regions=tuple(one.name for one in self._topology.regions))
        self._core = FailoverCore(
            region=self._topology.region, incarnation=incarnation, cells={self._cell: cell}, settings=self._settings
        )
        self.tell(Started(promise=self._promise, ledger=found))

    async def _incarnation(self, starts: int | None) -> int:
        """Count this start. A count that was lost begins above every earlier one, at a number that etcd gives once."""
        while starts is None:
            try:
                starts = await self._coordination.count_start(self._topology.region) << STARTS_BITS
            except CoordinationError as error:
                _log.warning("agent: waiting for etcd to number its starts: %s", error)
                await asyncio.sleep(self._settings.retry_s_max)
        store_starts(self._place.state, starts + 1)
        return starts + 1

    # Events.

    def tell(self, event: Event) -> None:
        """Tell the core something about its cell."""
        self._handle(CellEvent(cell=self._cell, event=event))

    def _hear(self, heartbeat: Heartbeat) -> None:
        counted = self._witness.take(heartbeat, now=_now())
        if counted is not None:
            self._handle(HeartbeatReceived(heartbeat=counted))

    async def _vouch(self, executor: MemberExecutor) -> None:
        """While a serving leader's agent is silent, ask its ledger whether commits go on."""
        pause_s = ASK_S
        while True:
            await asyncio.sleep(pause_s)
            pause_s = ASK_S
            record = None if self.facts is None else self.facts.record
            if record is None or record.phase != "serving" or record.leader == self._topology.region:
                continue
            leader = record.leader
            silent_s = _now() - self._witness.alive_at.get(leader, _now())
            if silent_s < SILENCE_S:
                pause_s = max(ASK_S, SILENCE_S - silent_s)
                continue
            try:
                async with asyncio.timeout(ANSWER_S_MAX):
                    commit = await executor.commit_of(leader, record.voters)
            except TimeoutError:
                continue
            except MemberRefused as error:
                self._refused(record, error)
                continue
            now = None if self.facts is None else self.facts.record
            if commit is None or now is None or (now.epoch, now.phase) != (record.epoch, "serving"):
                continue
            heartbeat = self._witness.speak_for(leader, commit, now=_now())
            if heartbeat is not None:
                self._handle(HeartbeatReceived(heartbeat=heartbeat))

    def _refused(self, record: Leadership, error: MemberRefused) -> None:
        """Tell the core that a leader which is silent has no ledger either."""
        now = None if self.facts is None else self.facts.record
        if now is None or (now.epoch, now.phase) != (record.epoch, "serving"):
            return
        if self._refused_in != record.epoch:
            self._refused_in = record.epoch
            _log.warning("epoch %d: nobody listens where the ledger of %s was: %s", record.epoch, record.leader, error)
        self._handle(LedgerRefused(cell=self._cell, region=record.leader))

    def _tick(self) -> None:
        self._timer = None
        self.tell(Tick())

    def _handle(self, event: AgentEvent) -> None:
        core = self._core
        if core is None or self._error is not None:
            return
        try:
            self._take(core, event)
        except Exception as error:  # noqa: BLE001 - whatever it is, a core that broke decides nothing any more
            self._error = error
            self._broken.set()

    def _take(self, core: FailoverCore, event: AgentEvent) -> None:
        for effect in core.handle(event, now=_now()):
            match effect:
                case SendHeartbeat(to=to, heartbeat=heartbeat):
                    self.links.send(to, heartbeat)
                case ReadCommit():
                    if self._executor is not None:
                        self._executor.read_commit()
                case CellEffect(effect=inner):
                    self._perform(inner)
                case _:
                    assert_never(effect)
        self._note_record()
        self._set_timer(core)

    def _set_timer(self, core: FailoverCore) -> None:
        if self._timer is not None:
            self._timer.cancel()
        due = core.next_deadline()
        if due is not None:
            self._timer = asyncio.get_running_loop().call_later(max(0.0, due - _now()), self._tick)

    # Effects.

    def _perform(self, effect: Effect) -> None:  # noqa: C901 - one case an effect
        match effect:
            case ReadRecord():
                self._begin(self._read(effect))
            case SwapRecord():
                self._begin(self._swap(effect))
            case StorePromise():
                self._begin(self._store(effect))
            case StartServing(epoch=epoch):
                self.serving_epoch = epoch
                if self._executor is not None:
                    self._executor.admit_writes()
            case StopServing():
                self.serving_epoch = 0
            case AnswerStrongReads(requests=requests, current=current):
                for number in requests:
                    _settle(self._reads.pop(number, None), current)
            case AnswerOrder(ticket=ticket, refused=refused):
                _settle(self._orders.pop(ticket, None), refused)
            case Log(level=level, text=text):
                _log.log(_LEVELS[level], "%s", text)
            case GossipChanged() | WatchLeader():
                raise AssertionError("the core keeps these to itself")
            case _:
                self._perform_on_member(effect)

    def note_step(self, effect: LedgerEffect, took_ms: float) -> None:
        """Take how long an effect on the member took, for the history and the metrics."""
        name = type(effect).__name__
        self._history.note_step(effect.epoch, name, took_ms)
        self.stepped(name, took_ms)

    def _note_record(self) -> None:
        """Keep the history as the core's record goes on."""
        record = None if self.facts is None else self.facts.record
        if record is None or record is self._seen:
            return
        self._seen = record
        self.adopted(record)
        for entry in self._history.note_record(record, now=_now()):
            self._begin(self._keep(entry))

    async def _keep(self, entry: EpochEntry) -> None:
        """Store an entry, for as long as etcd takes; a region that is lost meanwhile loses it."""
        for phase, ms in entry.phases_ms.items():
            self.stepped(phase, ms)
        while True:
            try:
                await self._coordination.write_history(self._cell, entry.epoch, entry.to_json())
            except CoordinationError as error:
                _log.debug("history: not written: %s", error)
                await asyncio.sleep(self._settings.retry_s_max)
            else:
                return

    def _perform_on_member(self, effect: LedgerEffect) -> None:
        assert self._executor is not None, "an effect on a member where none is"
        self._executor.perform(effect)

    def _begin(self, work: Any) -> None:  # noqa: ANN401 - any coroutine
        assert self._tasks is not None, "it runs"
        self._tasks.create_task(work)

    async def _read(self, effect: ReadRecord) -> None:
        try:
            async with asyncio.timeout(self._settings.request_s_max):
                found = await self._coordination.read_leadership(self._cell, linearizable=effect.linearizable)
        except (CoordinationError, TimeoutError) as error:
            _log.debug("etcd: not read: %s", error)
            self.tell(ReadFailed(ticket=effect.ticket))
            return
        record, revision = found or (None, 0)
        self.tell(RecordRead(ticket=effect.ticket, revision=revision, record=record))

    async def _swap(self, effect: SwapRecord) -> None:
        record = replace(effect.record, since=_wall_clock())
        try:
            revision = await self._coordination.swap_leadership(self._cell, record, effect.expected_revision)
        except OutcomeUnknown as error:
            _log.debug("etcd: %s", error)
            self.tell(SwapAnswered(ticket=effect.ticket, outcome="unknown"))
            return
        if revision is None:
            self.tell(SwapAnswered(ticket=effect.ticket, outcome="lost"))
        else:
            self.tell(SwapAnswered(ticket=effect.ticket, outcome="applied", revision=revision))

    async def _store(self, effect: StorePromise) -> None:
        # One after the other: the newest promise is the last on disk.
        async with self._storing:
            try:
                await asyncio.to_thread(store_promise, self._place.state, effect.promise)
            except OSError as error:
                self.tell(PromiseFailed(ticket=effect.ticket, reason=str(error)))
                return
            self._promise = effect.promise
        self.tell(PromiseStored(ticket=effect.ticket))

    async def _watch(self) -> None:
        async for revision, record in self._coordination.watch_records(self._cell):
            self.tell(RecordSeen(revision=revision, record=record))

    # What others ask.

    async def order(self, kind: OrderKind, region: RegionName | None, by: str) -> None:
        """Carry an operator's order out; giving it twice does no harm.

        Raises:
            OrderRefused: It cannot be.
        """
        _log.info("order: %s %s: %s", kind, region or "", by)
        if kind == "switch" and region is not None:
            await self._until_streams_are_copied(region)
        answered: asyncio.Future[str | None] = asyncio.get_running_loop().create_future()
        number = self._number()
        self._orders[number] = answered
        self.tell(Order(ticket=number, kind=kind, region=region, by=by))
        try:
            async with asyncio.timeout(ORDER_S_MAX):
                refused = await answered
        except TimeoutError:
            raise OrderRefused(f"no outcome within {ORDER_S_MAX:.0f} s: ask what leads now") from None
        finally:
            self._orders.pop(number, None)
        if refused is not None:
            raise OrderRefused(refused)

    async def _until_streams_are_copied(self, region: RegionName) -> None:
        """Wait for the copies of the change streams' slots on a region that shall lead.

        Without them its views, and all others, would lose what was written since. A failover cannot wait for that; an
        operator can.

        Raises:
            OrderRefused: They do not come, or nobody answers there.
        """
        facts, executor = self.facts, self._executor
        if facts is None or executor is None or facts.record is None or not facts.commits_on_quorum:
            return
        if region == facts.region or region not in facts.record.voters:
            return
        lacking: tuple[str, ...] = ()
        try:
            async with asyncio.timeout(STREAMS_S_MAX):
                while lacking := await executor.streams_that_lack(region):  # noqa: ASYNC110 - PostgreSQL sets no event
                    await asyncio.sleep(STREAMS_POLL_S)
        except MemberError as error:
            # To close the writes for a target that is away would only cost them.
            raise OrderRefused(f"the ledger of {region} does not answer: {error}") from error
        except TimeoutError:
            why = f"has no copy of {', '.join(lacking)} yet; without it views would lose changes"
            raise OrderRefused(f"{region} {why if lacking else 'does not answer'}") from None

    def cut_short(self, epoch: Epoch) -> bool:
        """Take that a commit under an epoch came back before its quorum (rule 7); return whether the core heard it."""
        if self._core is None or self._executor is None:
            return False
        self._executor.cut_short(epoch)
        return True

    async def is_current(self) -> bool:
        """Ask etcd whether this region leads, by a read that begins after now (rule 10)."""
        answered: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        number = self._number()
        self._reads[number] = answered
        self.tell(StrongReads(requests=(number,)))
        try:
            return await answered
        finally:
            self._reads.pop(number, None)

    def _number(self) -> int:
        self._next_number += 1
        return self._next_number


def _settle(future: "asyncio.Future[Any] | None", result: object) -> None:
    if future is not None and not future.done():
        future.set_result(result)


def _now() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def _wall_clock() -> str:
    """For people: nothing is ordered by it (rule 16)."""
    return datetime.now(UTC).isoformat(timespec="microseconds")

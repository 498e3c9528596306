"""Drives the failover core of a region: reads the clock, executes the core's effects and passes their results back.

Decides nothing about leadership. Results of etcd, the disk, the member and the network are events; every operation has
a time limit, and a failed effect is an event, too. The log has the messages of the core: about ten lines for a
failover.

Times are of CLOCK_BOOTTIME, which continues while the machine is suspended and cannot be set (rule 16).
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
from regions.heartbeat_merger import ANSWER_S_MAX, ASK_S, SILENCE_S, HeartbeatMerger
from regions.heartbeats import HeartbeatLinks
from regions.history import EpochEntry, EpochHistory
from regions.identity import CellId, Epoch, RegionName
from regions.leadership import Leadership
from regions.member.errors import MemberError, MemberRefused
from regions.member.executor import MemberExecutor
from regions.member.promise import PromiseLost, load_promise, load_starts, store_promise, store_starts
from regions.topology import Address, Topology

ORDER_S_MAX: Final = 10.0
"""The core answers an order within its own time limits, a few seconds; a later answer does not come."""

STREAMS_S_MAX: Final = 4.0
STREAMS_POLL_S: Final = 0.1
"""How long a switchover waits until the target has copied the logical slots; PostgreSQL copies them every 0.2 to 30
s."""

STARTS_BITS: Final = 20
"""Bits for the starts that are counted locally: a million starts between two losses of the state folder."""

_LEVELS: Final = {"info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}

_log = logging.getLogger(__name__)


class OrderRefused(Exception):
    """An operator's order cannot be executed; the message states the reason and a remedy."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalSettings:
    """Settings of the agent's own process and machine.

    Attributes:
        state: Folder of the files that must survive a crash: the promise and the number of starts.
        listen: Address at which the agent receives heartbeats.
        secret: Key that authenticates heartbeats.
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
        local: LocalSettings,
        settings: Settings = DEFAULTS,
    ) -> None:
        """Initialise; in a region with a member call `attach_member` next, then `run`."""
        self._topology = topology
        self._coordination = coordination
        self._local = local
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
        self._merger = HeartbeatMerger(topology.cell)
        self._history = EpochHistory(topology.region)
        self._seen: Leadership | None = None
        self._noted: Leadership | None = None
        self._swapped: Leadership | None = None
        self.on_step: Callable[[str, float], None] = lambda _name, _ms: None
        self.on_record: Callable[[Leadership], None] = lambda _record: None
        peers: Mapping[RegionName, Address] = {one.name: one.agent for one in topology.others}
        self.serving_epoch: Epoch = 0
        self.links = HeartbeatLinks(
            region=topology.region, listen=local.listen, peers=peers, secret=local.secret, heard=self._receive
        )

    def attach_member(self, executor: MemberExecutor) -> None:
        """Set the executor of the region's member. Call it before `run`."""
        self._executor = executor

    @property
    def durable(self) -> Promise | None:
        """The promise that this process last read from disk or wrote to it."""
        return self._promise

    @property
    def facts(self) -> Facts | None:
        """Facts of the core; None while it does not run."""
        return None if self._core is None else self._core.machines[self._cell].facts

    @property
    def state(self) -> State:
        """State of the core."""
        return "starting" if self._core is None else self._core.machines[self._cell].state

    @property
    def followers(self) -> tuple[RegionName, ...]:
        """The other regions that follow this region's ledger if it leads: voters, and regions that join.

        They are the voters of the topology while no record is known.
        """
        record = None if self.facts is None else self.facts.record
        names = self._voters if record is None else (*record.voters, *record.joining)
        return tuple(name for name in names if name != self._topology.region)

    @property
    def standbys(self) -> tuple[RegionName, ...]:
        """The other voters, which form the quorum if this region leads; empty if this region is no voter."""
        record = None if self.facts is None else self.facts.record
        if record is None or self._topology.region not in record.voters:
            return ()
        return tuple(name for name in record.voters if name != self._topology.region)

    def phi(self) -> dict[RegionName, float]:
        """Suspicion level phi of each other region."""
        if self._core is None:
            return {}
        now = _now()
        return {one.name: self._core.phi(self._cell, one.name, now=now) for one in self._topology.others}

    def held_down_s(self) -> float:
        """Seconds until a failover by suspicion is allowed again after several of them (rule 17), 0 if it is."""
        facts = self.facts
        if facts is None or len(facts.failovers) < self._settings.failovers_max:
            return 0.0
        recent = [at for at in facts.failovers if _now() - at < self._settings.hold_down_s]
        if len(recent) < self._settings.failovers_max:
            return 0.0
        return max(0.0, min(recent) + self._settings.hold_down_s - _now())

    async def run(self) -> None:
        """Run until cancelled; PostgreSQL keeps running.

        Raises:
            AccessRefused: etcd refuses the user or the password.
            CorruptRecord: The leadership record in etcd cannot be parsed.
            MemberUnusable: The data folder cannot be used.
            OSError: The heartbeat address cannot be bound, or the state folder cannot be written.
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
                    tasks.create_task(self._ask_silent_leader(self._executor), name="witness")
        finally:
            self._end()

    async def _until_broken(self) -> None:
        """Raise an error of the core. The state on disk and in etcd is correct, so the next start continues from it."""
        await self._broken.wait()
        assert self._error is not None, "the core failed"
        raise self._error

    def _end(self) -> None:
        """Ignore all later events."""
        self._core, self.serving_epoch = None, 0
        if self._timer is not None:
            self._timer.cancel()

    async def _start(self) -> None:
        found = None if self._executor is None else await self._executor.find_member()
        lost = None
        try:
            self._promise = load_promise(self._local.state)
            starts = load_starts(self._local.state)
        except PromiseLost as error:
            lost, starts = error, None
            _log.error("%s", error)
        if lost is None and self._promise is None and (found is None or found.kind == "absent"):
            # This region never made a promise, or its disk was replaced: the core reads etcd before it acts.
            self._promise = Promise()
        incarnation = await self._incarnation(starts)
        cell = CellRegions(voters=self._voters, regions=tuple(one.name for one in self._topology.regions))
        self._core = FailoverCore(
            region=self._topology.region, incarnation=incarnation, cells={self._cell: cell}, settings=self._settings
        )
        self.submit(Started(promise=self._promise, ledger=found))

    async def _incarnation(self, starts: int | None) -> int:
        """Count this start. A lost count restarts above all earlier ones, at an etcd revision, which never repeats."""
        while starts is None:
            try:
                starts = await self._coordination.register_start(self._topology.region) << STARTS_BITS
            except CoordinationError as error:
                _log.warning("agent: etcd does not register this start yet: %s", error)
                await asyncio.sleep(self._settings.retry_s_max)
        store_starts(self._local.state, starts + 1)
        return starts + 1

    # Events.

    def submit(self, event: Event) -> None:
        """Pass an event of the cell to the core."""
        self._handle(CellEvent(cell=self._cell, event=event))

    def _receive(self, heartbeat: Heartbeat) -> None:
        counted = self._merger.take(heartbeat, now=_now())
        if counted is not None:
            self._handle(HeartbeatReceived(heartbeat=counted))

    async def _ask_silent_leader(self, executor: MemberExecutor) -> None:
        """While the agent of a serving leader is silent, query its ledger for newer commits on the quorum."""
        pause_s = ASK_S
        while True:
            await asyncio.sleep(pause_s)
            pause_s = ASK_S
            record = None if self.facts is None else self.facts.record
            if record is None or record.phase != "serving" or record.leader == self._topology.region:
                continue
            leader = record.leader
            silent_s = _now() - self._merger.alive_at.get(leader, _now())
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
            heartbeat = self._merger.heartbeat_with_commit(leader, commit, now=_now())
            if heartbeat is not None:
                self._handle(HeartbeatReceived(heartbeat=heartbeat))

    def _refused(self, record: Leadership, error: MemberRefused) -> None:
        """Report to the core that the ledger of a silent leader refuses connections."""
        now = None if self.facts is None else self.facts.record
        if now is None or (now.epoch, now.phase) != (record.epoch, "serving"):
            return
        if self._refused_in != record.epoch:
            self._refused_in = record.epoch
            _log.warning("epoch %d: the ledger of %s refuses connections: %s", record.epoch, record.leader, error)
        self._handle(LedgerRefused(cell=self._cell, region=record.leader))

    def _tick(self) -> None:
        self._timer = None
        self.submit(Tick())

    def _handle(self, event: AgentEvent) -> None:
        core = self._core
        if core is None or self._error is not None:
            return
        try:
            self._take(core, event)
        except Exception as error:  # noqa: BLE001 - after any error the core must decide nothing more
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
                raise AssertionError("the core handles these effects itself")
            case _:
                self._perform_on_member(effect)

    def note_step(self, effect: LedgerEffect, took_ms: float) -> None:
        """Record the duration of an effect on the member, in milliseconds, in the history and the metrics."""
        name = type(effect).__name__
        self._history.note_step(effect.epoch, name, took_ms)
        self.on_step(name, took_ms)

    def _note_record(self) -> None:
        """Pass a new record of the core to the history and to `on_record`."""
        record = None if self.facts is None else self.facts.record
        if record is None:
            return
        timed = self._with_time(record)
        # A hand-over's record gets its time when its swap is answered: the core acts by it before etcd has it.
        if record is self._seen and timed is self._noted:
            return
        self._seen, self._noted = record, timed
        self.on_record(timed)
        for entry in self._history.note_record(timed, now=_now()):
            self._begin(self._keep(entry))

    def _with_time(self, record: Leadership) -> Leadership:
        """Return the record with its ``since`` if this agent has swapped it.

        The core has no wall clock, so it knows the record of its own swap without a time, and it ignores the record of
        the same revision that the watch reports.
        """
        swapped = self._swapped
        if swapped is None or record.since or replace(swapped, since="") != record:
            return record
        return swapped

    async def _keep(self, entry: EpochEntry) -> None:
        """Write a history entry to etcd, and retry until etcd accepts it; it is lost if this process ends before."""
        for phase, ms in entry.phases_ms.items():
            self.on_step(phase, ms)
        while True:
            try:
                await self._coordination.write_history(self._cell, entry.epoch, entry.to_json())
            except CoordinationError as error:
                _log.debug("history: the entry could not be written: %s", error)
                await asyncio.sleep(self._settings.retry_s_max)
            else:
                return

    def _perform_on_member(self, effect: LedgerEffect) -> None:
        assert self._executor is not None, "an effect on a member in a region without one"
        self._executor.perform(effect)

    def _begin(self, work: Any) -> None:  # noqa: ANN401 - any coroutine
        assert self._tasks is not None, "it runs"
        self._tasks.create_task(work)

    async def _read(self, effect: ReadRecord) -> None:
        try:
            async with asyncio.timeout(self._settings.request_s_max):
                found = await self._coordination.read_leadership(self._cell, linearizable=effect.linearizable)
        except (CoordinationError, TimeoutError) as error:
            _log.debug("etcd: the record could not be read: %s", error)
            self.submit(ReadFailed(ticket=effect.ticket))
            return
        record, revision = found or (None, 0)
        self.submit(RecordRead(ticket=effect.ticket, revision=revision, record=record))

    async def _swap(self, effect: SwapRecord) -> None:
        record = replace(effect.record, since=_wall_clock())
        try:
            revision = await self._coordination.swap_leadership(self._cell, record, effect.expected_revision)
        except OutcomeUnknown as error:
            _log.debug("etcd: %s", error)
            self.submit(SwapAnswered(ticket=effect.ticket, outcome="unknown"))
            return
        if revision is None:
            self.submit(SwapAnswered(ticket=effect.ticket, outcome="lost"))
        else:
            self._swapped = record
            self.submit(SwapAnswered(ticket=effect.ticket, outcome="applied", revision=revision))

    async def _store(self, effect: StorePromise) -> None:
        # Promises are written in order, so that the newest one is the last on disk.
        async with self._storing:
            try:
                await asyncio.to_thread(store_promise, self._local.state, effect.promise)
            except OSError as error:
                self.submit(PromiseFailed(ticket=effect.ticket, reason=str(error)))
                return
            self._promise = effect.promise
        self.submit(PromiseStored(ticket=effect.ticket))

    async def _watch(self) -> None:
        async for revision, record in self._coordination.watch_records(self._cell):
            self.submit(RecordSeen(revision=revision, record=record))

    # Requests of other processes.

    async def order(self, kind: OrderKind, region: RegionName | None, by: str) -> None:
        """Execute an operator's order; orders are idempotent.

        Args:
            kind: The order.
            region: The region that it is about; None if it is about the cell.
            by: Who gave the order and why, for the log and the record.

        Raises:
            OrderRefused: The order cannot be executed, or there is no outcome in time.
        """
        _log.info("order: %s %s: %s", kind, region or "", by)
        if kind == "switch" and region is not None:
            await self._until_streams_are_copied(region)
        answered: asyncio.Future[str | None] = asyncio.get_running_loop().create_future()
        number = self._number()
        self._orders[number] = answered
        self.submit(Order(ticket=number, kind=kind, region=region, by=by))
        try:
            async with asyncio.timeout(ORDER_S_MAX):
                refused = await answered
        except TimeoutError:
            raise OrderRefused(f"no outcome within {ORDER_S_MAX:.0f} s: check which region leads now") from None
        finally:
            self._orders.pop(number, None)
        if refused is not None:
            raise OrderRefused(refused)

    async def _until_streams_are_copied(self, region: RegionName) -> None:
        """Wait until the target of a switchover has copied the slots of the change streams (rule 19).

        Without the copies the views of all regions would miss changes. A failover cannot wait for that; a switchover
        can.

        Raises:
            OrderRefused: The copies are not there in time, or the target does not answer.
        """
        facts, executor = self.facts, self._executor
        if facts is None or executor is None or facts.record is None or not facts.commits_on_quorum:
            return
        if region == facts.region or region not in facts.record.voters:
            return
        lacking: tuple[str, ...] = ()
        try:
            async with asyncio.timeout(STREAMS_S_MAX):
                while lacking := await executor.missing_stream_slots(region):  # noqa: ASYNC110 - no event
                    await asyncio.sleep(STREAMS_POLL_S)
        except MemberError as error:
            # Closing writes for an unreachable target would only cause a write outage.
            raise OrderRefused(f"the ledger of {region} does not answer: {error}") from error
        except TimeoutError:
            why = f"has no copy of {', '.join(lacking)} yet; without it views would lose changes"
            raise OrderRefused(f"{region} {why if lacking else 'does not answer'}") from None

    def report_cancelled_wait(self, epoch: Epoch) -> bool:
        """Report that the quorum wait of a commit was cancelled (rule 7); return whether the core received it."""
        if self._core is None or self._executor is None:
            return False
        self._executor.report_cancelled_wait(epoch)
        return True

    async def is_current(self) -> bool:
        """Return whether this region leads, by a linearizable read of etcd that begins after this call (rule 10)."""
        answered: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        number = self._number()
        self._reads[number] = answered
        self.submit(StrongReads(requests=(number,)))
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
    """Return the wall-clock time for people; nothing is ordered by it (rule 16)."""
    return datetime.now(UTC).isoformat(timespec="microseconds")

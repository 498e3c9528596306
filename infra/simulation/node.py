"""Models the agent of a region: drives the real failover core under virtual time, on the models of its environment.

Executes the core's effects and passes their answers back to it. The agent can crash, can be paused (events that arrive
meanwhile are queued, as in a socket's buffer), and starts again from the promise on its disk.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Protocol

from infra.simulation.etcd import Etcd, EtcdClient, Outcome
from infra.simulation.member import Member
from infra.simulation.network import Network
from infra.simulation.scheduler import Clock, Scheduler
from infra.simulation.steps import LedgerDriver
from infra.simulation.wal import Entry
from regions.failover.core import FailoverCore
from regions.failover.effects import (
    AnswerOrder,
    AnswerStrongReads,
    Effect,
    GossipChanged,
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
    LedgerAnswer,
    LedgerEnded,
    Promise,
    PromiseStored,
    QuorumCommit,
    ReadFailed,
    RecordRead,
    RecordSeen,
    StandbysStreaming,
    Started,
    SwapAnswered,
    Tick,
)
from regions.failover.heartbeats import AgentEvent, CellEffect, CellEvent, HeartbeatReceived, ReadCommit, SendHeartbeat
from regions.failover.invariants import violations
from regions.failover.settings import CellRegions, Settings
from regions.failover.states import State
from regions.identity import CellId, Epoch, RegionName
from regions.leadership import Leadership

CELL = CellId("main")
STORE_S = (0.001, 0.006)
BUFFERED_MAX = 64
"""Events in the queue of a paused agent above which further heartbeats are dropped."""

STANDBYS_REPORTED_S = 1.0
"""Interval at which the driver reports which standbys stream."""

STREAMING_LAG_MAX = 50
"""A standby counts as streaming if it is less than this number of entries behind: less than a second of WAL."""

_TICK = CellEvent(cell=CELL, event=Tick())


class NodeListener(Protocol):
    """Observes agents and changes nothing."""

    def serving_started(self, node: Node, epoch: Epoch) -> None:
        """A region begins to serve an epoch."""
        ...

    def serving_stopped(self, node: Node) -> None:
        """A region stops serving."""
        ...

    def heartbeat_sent(self, node: Node, beat: SendHeartbeat) -> None:
        """An agent sends a heartbeat."""
        ...

    def promise_stored(self, node: Node, before: Promise | None, after: Promise) -> None:
        """An agent has flushed a promise to its disk."""
        ...

    def state_changed(self, before: State, after: State) -> None:
        """A core took a transition of its table."""
        ...

    def effects_returned(self, node: Node, broken: Sequence[str]) -> None:
        """A core has returned effects; ``broken`` names its invariants that do not hold."""
        ...


class Node:
    """One region's agent.

    Attributes:
        region: Its region.
        member: Its member of the ledger; None in a view-only region.
        driver: Executes the effects on the member; None in a view-only region.
        clock: Its clocks.
        disk: The promise on its disk; None if the file is missing or cannot be read.
        up: Whether its process runs or is paused.
        paused: Whether it is paused.
        serving_epoch: The epoch that it serves; 0 if it serves none.
        writes_under_way: Writes that were admitted and have not reached the member.
        core: The failover core; None while the process is down.
        peers: All nodes.
    """

    def __init__(  # noqa: PLR0913 - an agent's dependencies
        self,
        scheduler: Scheduler,
        network: Network,
        etcd: Etcd,
        *,
        region: RegionName,
        cell: CellRegions,
        settings: Settings,
        member: Member | None,
        listener: NodeListener,
    ) -> None:
        self._scheduler = scheduler
        self._network = network
        self._etcd = etcd
        self._listener = listener
        self._cell = cell
        self._settings = settings
        self.region = region
        self.member = member
        self.peers: Mapping[RegionName, Node] = {}
        self.driver = None if member is None else LedgerDriver(scheduler, network, member, self)
        self.clock = Clock(scheduler, start=scheduler.between(0, 1e6))
        self.disk: Promise | None = Promise()
        self.up = False
        self.paused = False
        self.serving_epoch: Epoch = 0
        self.writes_under_way = 0
        self.core: FailoverCore | None = None
        self._client = EtcdClient(scheduler, network, etcd, region, cell.voters)
        self._incarnation = 0
        self._inbox: deque[AgentEvent] = deque()
        self._stores: deque[StorePromise] = deque()
        self._tick_at = float("inf")
        self._state: State = "starting"
        self._answers_reads: dict[int, Callable[[bool], None]] = {}
        self._next_read = 0
        self._orders: list[tuple[int, str | None]] = []

    # Start, crash and pause.

    def start(self) -> None:
        """Start the agent with the promise on its disk and its member as it is."""
        assert not self.up, "the agent runs already"
        self.up = True
        self._incarnation += 1
        self._state = "starting"
        self._tick_at = float("inf")
        self.core = FailoverCore(
            region=self.region, incarnation=self._incarnation, cells={CELL: self._cell}, settings=self._settings
        )
        found = None if self.driver is None else self.driver.inspect_member()
        promise = self.disk
        if promise is None and (found is None or found.kind == "absent"):
            promise = self.disk = Promise()
        self.deliver_to_cell(Started(promise=promise, ledger=found))
        self._etcd.watch(self.region, self._watcher(self._incarnation))
        self._scheduler.after(STANDBYS_REPORTED_S, self._ask_standbys, self._incarnation)

    def crash(self) -> None:
        """Kill -9 of the agent: only its disk and its member remain."""
        self.up = self.paused = False
        self.core = None
        self._inbox.clear()
        while self._stores and self._scheduler.chance(0.5):
            self._write(self._stores.popleft().promise)  # flushed, but not reported to the core
        self._stores.clear()
        self._etcd.unwatch(self.region)
        self._answers_reads.clear()
        if self.driver is not None:
            self.driver.abandon_effects()
        if self.member is not None:
            self.member.draining = False  # PostgreSQL releases the agent's lock, which blocks writes
        self._close()

    def pause(self) -> None:
        """SIGSTOP."""
        self.paused = True

    def resume(self) -> None:
        """SIGCONT: handle the queued events; at random, handle a tick before them."""
        if not self.paused:
            return
        self.paused = False
        if not self.up:
            return
        if self._scheduler.chance(0.5):
            self.handle(_TICK)
        while self._inbox and not self.paused:
            self.handle(self._inbox.popleft())
        self.handle(_TICK)
        if self.driver is not None:
            self.driver.resume()

    # Events.

    def deliver_to_cell(self, event: Event) -> None:
        """Deliver an event of the cell to the core."""
        self.deliver(CellEvent(cell=CELL, event=event))

    def deliver(self, event: AgentEvent) -> None:
        """Deliver an event to the core: at once, or after a pause. Drop it if the agent is down."""
        if not self.up:
            return
        if self.paused:
            if not isinstance(event, HeartbeatReceived) or len(self._inbox) < BUFFERED_MAX:
                self._inbox.append(event)
            return
        self.handle(event)

    def handle(self, event: AgentEvent) -> None:
        """Let the core handle an event, and execute the effects that it returns."""
        core = self.core
        assert core is not None, "the agent is down"
        later: list[AgentEvent] = [event]
        acted = False
        for one in later:
            for effect in core.handle(one, now=self.clock.now()):
                if isinstance(effect, SendHeartbeat):
                    self._send(effect)
                elif isinstance(effect, ReadCommit):
                    commit = self._read_commit()
                    if commit is not None:
                        later.append(CellEvent(cell=CELL, event=QuorumCommit(lsn=commit)))
                else:
                    acted = True
                    self._perform(effect)
        if acted and self.core is core:
            self._listener.effects_returned(self, violations(core.machines[CELL].facts))
        state = core.machines[CELL].state
        if state != self._state:
            self._listener.state_changed(self._state, state)
            self._scheduler.trace_line(f"{self.region}: {self._state} -> {state}")
            self._state = state
        self._schedule(core)

    def _schedule(self, core: FailoverCore) -> None:
        deadline = core.next_deadline()
        if deadline is not None:
            time = max(self.clock.virtual_time(deadline), self._scheduler.now)
            if time < self._tick_at:
                self._tick_at = time
                self._scheduler.at(time, self._tick, self._incarnation, time)

    def _tick(self, incarnation: int, time: float) -> None:
        if incarnation != self._incarnation or not self.up or time != self._tick_at:
            return
        self._tick_at = float("inf")
        core = self.core
        assert core is not None, "the agent is down"
        if self.paused:
            return
        deadline = core.next_deadline()
        if deadline is None:
            return
        if self.clock.now() >= deadline:
            self.handle(_TICK)
        elif self.clock.virtual_time(deadline) <= self._scheduler.now + 1e-9:
            self._scheduler.after(1e-6, self._nudge, incarnation)
        else:
            self._schedule(core)

    def _nudge(self, incarnation: int) -> None:
        if incarnation == self._incarnation and self.up and not self.paused:
            self.handle(_TICK)

    def _watcher(self, incarnation: int) -> Callable[[int, Leadership], None]:
        def saw(revision: int, record: Leadership) -> None:
            if incarnation == self._incarnation:
                self.deliver_to_cell(RecordSeen(revision=revision, record=record))

        return saw

    def answer(self, answer: LedgerAnswer) -> None:
        """Deliver the answer to an effect on the member."""
        self._scheduler.trace_line(f"{self.region}: {answer}")
        self.deliver_to_cell(answer)

    def ledger_ended(self) -> None:
        """The postmaster ended without an order of the agent."""
        self._close()
        self.deliver_to_cell(LedgerEnded())

    # Effects.

    def _send(self, beat: SendHeartbeat) -> None:
        self._listener.heartbeat_sent(self, beat)
        target = self.peers[beat.to]
        self._network.send(self.region, beat.to, target.deliver, HeartbeatReceived(heartbeat=beat.heartbeat))

    def _read_commit(self) -> int | None:
        member = self.member
        if member is None or not member.running or not member.primary or member.hung or member.paused:
            return None
        commit = member.quorum_lsn()
        member.write(Entry("other", member.epoch), None)
        return commit

    def _perform(self, for_cell: CellEffect) -> None:  # noqa: C901 - one line an effect
        effect: Effect = for_cell.effect
        if self._scheduler.trace is not None:
            self._scheduler.trace_line(f"{self.region}: {effect}")
        match effect:
            case ReadRecord():
                self._read(effect)
            case SwapRecord():
                self._swap(effect)
            case StorePromise():
                self._scheduler.after(self._scheduler.between(*STORE_S), self._store, self._incarnation)
                self._stores.append(effect)
            case StartServing(epoch=epoch):
                self.serving_epoch = epoch
                if self.member is not None:
                    self.member.draining = False
                self._listener.serving_started(self, epoch)
            case StopServing():
                self._close()
            case AnswerStrongReads(requests=requests, current=current):
                for request in requests:
                    self._answers_reads.pop(request, _ignore_answer)(current)
            case AnswerOrder() | Log() | WatchLeader() | GossipChanged():
                pass
            case _:
                assert self.driver is not None, "an effect on a member in a view-only region"
                self.driver.perform(effect)

    def _close(self) -> None:
        if self.serving_epoch:
            self.serving_epoch = 0
            self._listener.serving_stopped(self)

    def _read(self, effect: ReadRecord) -> None:
        incarnation, ticket = self._incarnation, effect.ticket

        def answered(revision: int, record: Leadership | None) -> None:
            if incarnation == self._incarnation:
                self.deliver_to_cell(RecordRead(ticket=ticket, revision=revision, record=record))

        def failed() -> None:
            if incarnation == self._incarnation:
                self.deliver_to_cell(ReadFailed(ticket=ticket))

        self._client.read(answered, failed, linearizable=effect.linearizable)

    def _swap(self, effect: SwapRecord) -> None:
        incarnation, ticket = self._incarnation, effect.ticket

        def answered(outcome: Outcome, revision: int) -> None:
            if incarnation == self._incarnation:
                self.deliver_to_cell(SwapAnswered(ticket=ticket, outcome=outcome, revision=revision))

        since = datetime.fromtimestamp(self.clock.wall(), UTC).isoformat()
        self._client.swap(effect.expected_revision, replace(effect.record, since=since), answered)

    def _store(self, incarnation: int) -> None:
        """Flush the oldest pending promise; promises reach the disk in order."""
        if incarnation != self._incarnation or not self.up:
            return
        if self.paused or (self.member is not None and (self.member.hung or self.member.paused)):
            self._scheduler.after(0.05, self._store, incarnation)
            return
        effect = self._stores.popleft()
        self._write(effect.promise)
        self.deliver_to_cell(PromiseStored(ticket=effect.ticket))

    def _write(self, promise: Promise) -> None:
        self._listener.promise_stored(self, self.disk, promise)
        self.disk = promise

    def _ask_standbys(self, incarnation: int) -> None:
        if incarnation != self._incarnation or not self.up:
            return
        self._scheduler.after(STANDBYS_REPORTED_S, self._ask_standbys, incarnation)
        member = self.member
        if member is not None and member.running and member.primary and not self.paused and not member.paused:
            end = member.wal.flushed
            regions = [region for region, lsn in member.confirmed.items() if lsn > end - STREAMING_LAG_MAX]
            self.deliver_to_cell(StandbysStreaming(regions=frozenset(regions)))

    # Requests of clients.

    def start_strong_read(self, answer: Callable[[bool], None]) -> int:
        """Register a strong read, and return its request number. ``answer`` is called with whether it is current."""
        self._next_read += 1
        self._answers_reads[self._next_read] = answer
        return self._next_read


def _ignore_answer(_current: bool) -> None:
    """Ignore the answer to a strong read that is no longer registered."""

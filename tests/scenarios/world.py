"""Models a cell for transcripts: the agents' cores, the record in etcd, and a network without delay.

Only heartbeats, commits on the leader, and etcd's watch happen without a command. A request of a core stays open until
the transcript answers it.
"""

from collections import deque
from dataclasses import dataclass, field

from regions.failover.core import FailoverCore
from regions.failover.effects import (
    AnswerOrder,
    AnswerStrongReads,
    Effect,
    GossipChanged,
    Log,
    StartServing,
    StopServing,
    WatchLeader,
)
from regions.failover.events import Event, MemberState, Promise, QuorumCommit, RecordSeen, Started, Tick
from regions.failover.heartbeats import (
    AgentEvent,
    CellEffect,
    CellEvent,
    Heartbeat,
    HeartbeatReceived,
    ReadCommit,
    SendHeartbeat,
)
from regions.failover.machine import Machine
from regions.failover.settings import CellRegions
from regions.failover.states import State
from regions.identity import CellId, RegionName
from regions.leadership import Leadership
from tests.scenarios.words import Asked, text_of

CELL = CellId("main")
FIRST_LSN = 0x500


class ScenarioError(Exception):
    """A command of a transcript cannot be executed."""


@dataclass
class Agent:
    """The agent of one region, and the state that survives its crash.

    Attributes:
        incarnation: Number of starts.
        core: Its core; None while the agent is dead.
        paused: Whether it is paused.
        watches: Whether etcd's watch delivers the records of other regions.
        commits: Whether its member, as leader, has newer commits on a quorum.
        promise: The promise on its disk; None if it was lost.
        open: Its open requests, oldest first.
        answers: The last answer to each kind of request, for `repeat`.
    """

    incarnation: int = 0
    core: FailoverCore | None = None
    paused: bool = False
    watches: bool = True
    commits: bool = True
    promise: Promise | None = field(default_factory=Promise)
    open: list[Asked] = field(default_factory=list[Asked])
    answers: dict[str, Event] = field(default_factory=dict[str, Event])

    @property
    def runs(self) -> bool:
        return self.core is not None and not self.paused

    @property
    def machine(self) -> Machine:
        if self.core is None:
            raise ScenarioError("this agent does not run")
        return self.core.machines[CELL]


class World:
    """The agents of a cell, the records in etcd, and the trace."""

    def __init__(self, voters: tuple[RegionName, ...], view_only: tuple[RegionName, ...]) -> None:
        self.cell = CellRegions(voters=voters, regions=(*voters, *view_only))
        self.agents = {region: Agent() for region in self.cell.regions}
        self.records: list[Leadership] = []
        self.cut: set[tuple[RegionName, RegionName]] = set()
        self.now = 0.0
        self.trace: list[str] = []
        self.taken: set[tuple[State, State]] = set()
        self._waits_since: float | None = None
        self._lsn = FIRST_LSN
        self._messages: deque[tuple[RegionName, Heartbeat]] = deque()

    def agent(self, region: RegionName) -> Agent:
        if region not in self.agents:
            raise ScenarioError(f"there is no {region}")
        return self.agents[region]

    @property
    def revision(self) -> int:
        return len(self.records)

    def start(self, region: RegionName, ledger: MemberState | None) -> None:
        agent = self.agent(region)
        agent.incarnation += 1
        agent.core = FailoverCore(region=region, incarnation=agent.incarnation, cells={CELL: self.cell})
        agent.paused, agent.open = False, []
        self.tell(region, Started(promise=agent.promise, ledger=ledger))

    def tell(self, region: RegionName, event: Event) -> None:
        """Deliver an event to the core of a region, and then all heartbeats that it causes."""
        self._handle(region, CellEvent(cell=CELL, event=event))
        self._carry()

    def _carry(self) -> None:
        while self._messages:
            to, heartbeat = self._messages.popleft()
            if self.agents[to].runs and (heartbeat.sender, to) not in self.cut:
                self._handle(to, HeartbeatReceived(heartbeat=heartbeat))

    def wait(self, seconds: float) -> None:
        """Let time pass: each core gets a tick at each of its deadlines."""
        until, self._waits_since = self.now + seconds, self.now
        while True:
            due, _, region = min((self._deadline(one), at, one) for at, one in enumerate(self.agents))
            if due > until:
                break
            self.now = max(self.now, due)
            self.tell(region, Tick())
        self.now, self._waits_since = until, None

    def write_record(self, record: Leadership, *, by: RegionName, answer: Event | None) -> None:
        """Write a record: deliver ``answer`` to the writer and the record to other watches, before any heartbeat."""
        self.records.append(record)
        for region, agent in self.agents.items():
            if region == by and answer is not None:
                self._handle(region, CellEvent(cell=CELL, event=answer))
            elif region != by and agent.runs and agent.watches:
                self._handle(region, CellEvent(cell=CELL, event=RecordSeen(revision=self.revision, record=record)))
        self._carry()

    def say(self, region: RegionName, text: str) -> None:
        time = "" if self._waits_since is None else f"+{self.now - self._waits_since:.2f} s  "
        self.trace.append(f"{time}{region}: {text}")

    def _deadline(self, region: RegionName) -> float:
        agent = self.agents[region]
        due = agent.core.next_deadline() if agent.core is not None and agent.runs else None
        return float("inf") if due is None else due

    def _handle(self, region: RegionName, event: AgentEvent) -> None:
        agent = self.agents[region]
        if agent.core is None or agent.paused:
            raise ScenarioError(f"{region} does not run")
        before, said = agent.machine.state, agent.machine.gossip.vote
        effects = agent.core.handle(event, now=self.now)
        after, vote = agent.machine.state, agent.machine.gossip.vote
        if after != before:
            self.taken.add((before, after))
            self.say(region, f"is {after}")
        if vote is not None and vote != said:
            self.say(region, f"votes in {vote.epoch} at {vote.position.epoch}:{vote.position.lsn:X}")
        for effect in effects:
            match effect:
                case SendHeartbeat(to=to, heartbeat=heartbeat):
                    self._messages.append((to, heartbeat))
                case CellEffect(effect=inner):
                    self._note(region, agent, inner)
                case ReadCommit():
                    self._commit(region, agent)

    def _commit(self, region: RegionName, agent: Agent) -> None:
        if agent.commits:
            self._lsn += 8
            self._handle(region, CellEvent(cell=CELL, event=QuorumCommit(lsn=self._lsn)))

    def _note(self, region: RegionName, agent: Agent, effect: Effect) -> None:
        text = text_of(effect, agent.machine.facts.etcd.record)
        if text is not None:
            self.say(region, text)
        match effect:
            case (
                Log()
                | WatchLeader()
                | GossipChanged()
                | StartServing()
                | StopServing()
                | AnswerOrder()
                | AnswerStrongReads()
            ):
                pass
            case _:
                agent.open.append(effect)

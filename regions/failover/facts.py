"""What the core of one cell knows, in a few groups. Only ``machine.py`` and the modules that get a ``Turn`` change it.

Every value in a group is immutable, so ``snapshot`` copies the groups only. Two cores with equal facts behave alike;
the exhaustive exploration relies on that.
"""

from collections.abc import Iterator, Mapping
from copy import copy
from dataclasses import dataclass, field

from regions.failover import handover, rules
from regions.failover.effects import LedgerEffect
from regions.failover.events import FenceWritten, Gossip, MemberState, Order, Promise, Release, Ticket, Vote
from regions.failover.handover import HandOver, OfLeader
from regions.failover.settings import CellRegions, Settings
from regions.identity import Epoch, RegionName
from regions.leadership import Leadership


@dataclass(frozen=True, slots=True, kw_only=True)
class PendingRead:
    """A read of the record that was asked for; ``strong``: the strong reads that wait for its answer."""

    ticket: Ticket
    linearizable: bool
    until: float
    strong: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class PendingSwap:
    """A swap of the record that was asked for.

    Attributes:
        ticket: Of the request.
        record: The new record.
        expected: The revision that the record in etcd must have for the swap to succeed.
        until: When it counts as unanswered.
        order: The operator's order that is answered with its outcome.
    """

    ticket: Ticket
    record: Leadership
    expected: int
    until: float
    order: Order | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PendingPromise:
    """A promise that is being written."""

    ticket: Ticket
    promise: Promise
    until: float


@dataclass(frozen=True, slots=True, kw_only=True)
class PendingEffect:
    """An effect on the member that was asked for; ``effect`` without its ticket, to be compared."""

    ticket: Ticket
    effect: LedgerEffect
    until: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Retry:
    """A pause after a failure: until when (None: it is over), and how long it was."""

    at: float | None = None
    pause_s: float = 0.0

    def at_time(self, now: float) -> "Retry":
        """Return the pause as it is at ``now``."""
        return self if self.at is None or now < self.at else Retry(pause_s=self.pause_s)


NO_RETRY = Retry()


@dataclass(slots=True, kw_only=True)
class EtcdFacts:
    """What the agent knows of the leadership record in etcd.

    Attributes:
        record: The newest record of etcd that it has seen; None before the first.
        revision: The revision of etcd that wrote that record.
        was_read: Whether etcd has ever answered a read.
        must_read: Whether a linearizable read must come before the next swap of the record.
        unsettled_revision: The revision that an unanswered swap of this agent, or of a previous run, still expects. 0:
            there is no such swap. None: it may expect any, because no swap of this run has succeeded and no
            linearizable read was answered.
    """

    record: Leadership | None = None
    revision: int = 0
    was_read: bool = False
    must_read: bool = False
    unsettled_revision: int | None = None


@dataclass(slots=True, kw_only=True)
class MemberFacts:
    """What the agent knows of its own member and of the promise on its own disk.

    Attributes:
        promise: What its disk says; None when that cannot be known, and then it neither votes nor claims.
        ledger: Its member; None when the region has none.
        frozen_vote: The vote that its frozen member allows; None when the member is not frozen.
        quorum: The standbys of which its member's commits need a majority; None when not known.
        promoting_epoch: The epoch for which this incarnation of the agent has a promotion under way; 0 for none.
        fence: The fence row of the record's epoch that its member wrote, and that is on a quorum.
        serving_epoch: The epoch that it serves (`StartServing`); 0 for none. The write API may admit writes of this
            epoch earlier.
        cancelled_wait_epoch: The epoch under which a commit's quorum wait on its member was cancelled; 0 for none.
        diverged: Whether its member has WAL that the leader's history lacks.
        rebuilt_epoch: The epoch for which the member was last copied or rewound; 0 for none.
        quorum_commit: The newest LSN that it, as leader, knows on a quorum.
        standbys: The regions whose members stream from its member and are close behind it.
    """

    promise: Promise | None = None
    ledger: MemberState | None = None
    frozen_vote: Vote | None = None
    quorum: tuple[RegionName, ...] | None = None
    promoting_epoch: Epoch = 0
    fence: FenceWritten | None = None
    serving_epoch: Epoch = 0
    cancelled_wait_epoch: Epoch = 0
    diverged: bool = False
    rebuilt_epoch: Epoch = 0
    quorum_commit: int = 0
    standbys: frozenset[RegionName] = frozenset()


@dataclass(slots=True, kw_only=True)
class PeerFacts:
    """What the agent knows of the agents of the other regions.

    Attributes:
        suspected: The regions that its own detector suspects.
        gossip: The newest gossip of each other agent.
        leader_suspected_since: Since when enough regions suspect the leader; None while they do not.
        in_minority: Whether it has reported that it hears no majority of the voters.
    """

    suspected: frozenset[RegionName] = frozenset()
    gossip: Mapping[RegionName, Gossip] = field(default_factory=dict[RegionName, Gossip])
    leader_suspected_since: float | None = None
    in_minority: bool = False


@dataclass(slots=True, kw_only=True)
class Requests:
    """The effects that were asked for and are not answered, and the pauses after failures.

    Attributes:
        last_ticket: The ticket of the newest request.
        reading: The read of the record.
        swapping: The swap of the record.
        storing: The write of a promise.
        working: The effect on the member.
        requested_promise: The least promise that covers every one that was ever asked to be stored: a write without an
            answer may have reached the disk.
        strong_reads: Strong reads that wait for a read of etcd to begin.
        strong_reading: The read of etcd that strong reads wait for.
        ledger_retry: The pause after an effect on the member, or the write of a promise, failed.
        etcd_retry: The pause after a request to etcd failed.
    """

    last_ticket: Ticket
    reading: PendingRead | None = None
    swapping: PendingSwap | None = None
    storing: PendingPromise | None = None
    working: PendingEffect | None = None
    requested_promise: Promise = field(default_factory=Promise)
    strong_reads: tuple[int, ...] = ()
    strong_reading: PendingRead | None = None
    ledger_retry: Retry = NO_RETRY
    etcd_retry: Retry = NO_RETRY

    def deadlines(self) -> Iterator[float]:
        """When a request is given up, or a pause ends."""
        pending = (self.reading, self.swapping, self.storing, self.working, self.strong_reading)
        yield from (one.until for one in pending if one is not None)
        yield from (retry.at for retry in (self.ledger_retry, self.etcd_retry) if retry.at is not None)


@dataclass(slots=True, kw_only=True)
class Facts:
    """What one agent knows about one cell.

    Attributes:
        region: Its own region.
        cell: The regions of the cell.
        settings: The numbers.
        started: Whether ``Started`` was handled.
        record: The record that it acts by: the one in etcd, or the next epoch that a release has begun (rule 20).
        record_since: When ``record`` came to this epoch, phase and leader, as seen here, or the member was copied or
            rewound for it. How long an epoch may stay in one phase counts from here.
        release: The newest release that it knows of, its own or another leader's.
        etcd: The record in etcd.
        member: Its own member and promise.
        peers: The other agents.
        requests: What it has asked for.
        handover: The hand-over of the leadership in which it takes part.
        resize: The voters that an order asks for, and that order.
        failovers: When it saw the latest ``failovers_max`` failovers after suspicion end.
        unable: Why it cannot take part; None when it can.
        outdated: Whether what it knows may be outdated: it was paused, or its disk is new. It then acts for no epoch
            before a linearizable read of etcd.
    """

    region: RegionName
    cell: CellRegions
    settings: Settings
    requests: Requests
    started: bool = False
    record: Leadership | None = None
    record_since: float = 0.0
    release: Release | None = None
    etcd: EtcdFacts = field(default_factory=EtcdFacts)
    member: MemberFacts = field(default_factory=MemberFacts)
    peers: PeerFacts = field(default_factory=PeerFacts)
    handover: HandOver | None = None
    resize: tuple[tuple[RegionName, ...], Order] | None = None
    failovers: tuple[float, ...] = ()
    unable: str | None = None
    outdated: bool = False

    def snapshot(self) -> "Facts":
        """Return a copy that shares nothing that an event changes."""
        twin = copy(self)
        twin.etcd, twin.member, twin.peers, twin.requests = (
            copy(self.etcd), copy(self.member), copy(self.peers), copy(self.requests),
        )  # fmt: skip
        return twin

    @property
    def leads(self) -> bool:
        """Whether the record names its own region as the leader."""
        return self.record is not None and self.record.leader == self.region

    @property
    def votes_here(self) -> bool:
        """Whether its own region is a voter."""
        return self.record is not None and self.region in self.record.voters

    @property
    def commits_on_quorum(self) -> bool:
        """Whether its member brings commits onto a quorum: it accepts writes, or has stopped only for a hand-over."""
        record = self.record
        if record is None or rules.is_epoch_over(self.member.cancelled_wait_epoch, record.epoch):
            return False
        serves = record.phase == "serving" and self.leads and self.is_primary_of(record.epoch)
        return self.member.serving_epoch > 0 or serves

    @property
    def switchover(self) -> OfLeader | None:
        """The hand-over that it carries out as the leader; None if there is none."""
        return handover.of_leader(self.handover)

    def is_primary_of(self, epoch: Epoch) -> bool:
        """Whether its member runs as primary of ``epoch``."""
        ledger = self.member.ledger
        return ledger is not None and ledger.kind == "primary" and ledger.epoch == epoch

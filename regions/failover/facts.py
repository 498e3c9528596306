"""What the core of one cell knows. Only ``machine.py`` changes it; every value in it is immutable.

So a copy of it is a snapshot, and two equal ones behave alike: that is what the exhaustive exploration needs.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from regions.failover import rules
from regions.failover.effects import LedgerEffect
from regions.failover.events import FenceWritten, Gossip, LedgerFound, Order, Promise, Release, Ticket, Vote
from regions.failover.settings import CellRegions, Settings
from regions.identity import Epoch, RegionName
from regions.leadership import Leadership


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """A read of the record that was asked for; ``strong``: the strong reads that wait for it."""

    ticket: Ticket
    linearizable: bool
    until: float
    strong: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Swapping:
    """A swap of the record that was asked for.

    Attributes:
        expected: The revision that etcd must have for it to succeed.
        order: Whose operator waits for it.
    """

    ticket: Ticket
    record: Leadership
    expected: int
    until: float
    order: Order | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Storing:
    """A promise that is being written."""

    ticket: Ticket
    promise: Promise
    until: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Working:
    """An effect on the member that was asked for; ``effect`` without its ticket, to be compared."""

    ticket: Ticket
    effect: LedgerEffect
    until: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Retry:
    """A pause after a failure: until when, None for over, and how long it was."""

    at: float | None = None
    pause_s: float = 0.0

    def at_time(self, now: float) -> "Retry":
        """Return the pause as it is at ``now``."""
        return self if self.at is None or now < self.at else Retry(pause_s=self.pause_s)


NO_RETRY = Retry()


@dataclass(slots=True, kw_only=True)
class Facts:
    """What one agent knows about one cell.

    Attributes:
        region: Its own region.
        cell: The regions of the cell.
        settings: The numbers.
        started: Whether ``Started`` was handled.
        promise: What its disk says; None when that cannot be known, and then it neither votes nor claims.
        ledger: Its member; None when it holds none.
        stored: The newest record of etcd that it has seen; None before the first.
        revision: What wrote that record.
        unsettled: Revision that an unanswered swap of this agent, or of a previous run, still matches; 0 for none, None
            for any: no swap of this run has succeeded and no linearizable read was answered.
        record: What that record means with the release that is known: the one or the next epoch.
        record_at: When the record came to this epoch, phase and leader, as seen here, or the member was copied or
            rewound for it: how long an epoch may stay in one phase counts from here.
        record_read: Whether etcd was ever asked with success.
        frozen: The vote that its frozen member allows; None when the member is not frozen.
        quorum: The standbys of which its member's commits need a majority; None when not known.
        promoting: The epoch for which this incarnation of the agent has a promotion under way; 0 for none.
        fence: The fence row that its member wrote for the record's epoch, on a quorum.
        serving_epoch: The epoch under which it takes writes; 0 for none.
        cut_short: The epoch under which a commit's wait on its member was cut short; 0 for none.
        diverged: Whether the leader's history lacks some of its member's WAL.
        rebuilt: The epoch for which it was last copied or rewound.
        commit: The newest LSN that it, as leader, knows on a quorum.
        suspected: Whom it suspects.
        gossip: What each other agent last said.
        standbys: Who follows its member closely.
        handover: The order to hand the leadership over that is being carried out.
        announced: The revision by which its own swap, no other since, named the target of the handover; 0 before.
        drained: Up to where the target of the handover has everything; None before.
        release: The last that it knows of, its own or another's.
        relieved_until: Until when it, as the successor, receives nothing from a leader that has drained; None: it does.
        resting_until: Until when it, which has handed over, leaves its PostgreSQL stopped; None: it does not rest.
        resize: The voters that an order wants, and that order.
        failovers: When it saw failovers by suspicion come to an end, the latest ``failovers_max``.
        reading: The read under way.
        reread: Whether etcd must be read, linearizably, before the record is swapped again.
        swapping: The swap under way.
        storing: The write of a promise under way.
        asked: All that was ever asked to be stored: what was not answered may be on disk all the same.
        working: The effect on the member under way.
        strong: Strong reads that wait for a read of etcd to begin.
        strong_reading: The read of etcd that strong reads wait for.
        ledger_retry: The pause after an effect on the member, or the write of a promise, failed.
        etcd_retry: The same for etcd.
        agreed_at: Since when enough regions suspect the one that acts; None while they do not.
        alone: Whether it was told that no majority of the voters can be heard.
        unable: Why it cannot take part; None when it can.
        doubtful: Whether this agent was away and acts for nobody until etcd was read.
    """

    region: RegionName
    cell: CellRegions
    settings: Settings
    next_ticket: Ticket
    started: bool = False
    promise: Promise | None = None
    ledger: LedgerFound | None = None
    stored: Leadership | None = None
    revision: int = 0
    unsettled: int | None = None
    record: Leadership | None = None
    record_at: float = 0.0
    record_read: bool = False
    frozen: Vote | None = None
    quorum: tuple[RegionName, ...] | None = None
    promoting: Epoch = 0
    fence: FenceWritten | None = None
    serving_epoch: Epoch = 0
    cut_short: Epoch = 0
    diverged: bool = False
    rebuilt: Epoch = 0
    commit: int = 0
    suspected: frozenset[RegionName] = frozenset()
    gossip: Mapping[RegionName, Gossip] = field(default_factory=dict[RegionName, Gossip])
    standbys: frozenset[RegionName] = frozenset()
    handover: Order | None = None
    announced: int = 0
    drained: int | None = None
    release: Release | None = None
    relieved_until: float | None = None
    resting_until: float | None = None
    resize: tuple[tuple[RegionName, ...], Order] | None = None
    failovers: tuple[float, ...] = ()
    reading: Reading | None = None
    reread: bool = False
    swapping: Swapping | None = None
    storing: Storing | None = None
    asked: Promise = field(default_factory=Promise)
    working: Working | None = None
    strong: tuple[int, ...] = ()
    strong_reading: Reading | None = None
    ledger_retry: Retry = NO_RETRY
    etcd_retry: Retry = NO_RETRY
    agreed_at: float | None = None
    alone: bool = False
    unable: str | None = None
    doubtful: bool = False

    @property
    def leads(self) -> bool:
        """Whether the record says that its own region acts."""
        return self.record is not None and self.record.leader == self.region

    @property
    def votes_here(self) -> bool:
        """Whether its own region is a voter."""
        return self.record is not None and self.region in self.record.voters

    @property
    def reigns(self) -> bool:
        """Whether its member brings commits onto a quorum: it takes writes, or only stopped for a while to do so."""
        record = self.record
        if record is None or rules.is_spent(self.cut_short, record.epoch):
            return False
        serves = record.phase == "serving" and self.leads and self.is_primary_of(record.epoch)
        return self.serving_epoch > 0 or serves

    def is_primary_of(self, epoch: Epoch) -> bool:
        """Whether its member runs as primary of ``epoch``."""
        return self.ledger is not None and self.ledger.kind == "primary" and self.ledger.epoch == epoch

"""The input of the failover core: observations, answers to its effects, and orders. Data only.

Every request of the core carries a ticket, and its answer carries the same ticket. An answer may come late, twice or
never. The core accepts the answer to the request that it waits for and drops all others. Tickets are never reused, not
even by the next incarnation of an agent.

Times are monotonic seconds that continue while a machine sleeps (CLOCK_BOOTTIME). They are passed beside an event,
never in it. LSNs are bytes, unsigned 64 bit.
"""

from dataclasses import dataclass
from typing import Literal
from uuid import UUID

from regions.identity import Epoch, RegionName
from regions.leadership import Leadership
from regions.position import Position

Ticket = int


@dataclass(frozen=True, slots=True, kw_only=True)
class Promise:
    """What an agent keeps on its own disk; each part only grows.

    Attributes:
        epoch: The agent never acts for a lower one (rule 2).
        lineage: The last epoch under which its member wrote or received WAL (rule 11).
        floor: Its member's position counts only if its WAL has the fence row of this epoch (rule 12).
        copying: Its member's data may be a copy of the ledger that led this epoch (rule 11). It is above ``lineage``
            only until the copy is known to be complete.
    """

    epoch: Epoch = 0
    lineage: Epoch = 0
    floor: Epoch = 0
    copying: Epoch = 0


LedgerKind = Literal["absent", "stopped", "frozen", "following", "primary"]


@dataclass(frozen=True, slots=True, kw_only=True)
class MemberState:
    """What a member of the ledger is at the moment.

    Attributes:
        kind: ``absent``: no data, or an incomplete copy. ``frozen``: runs as a standby without a WAL receiver.
            ``following``, ``primary``: runs as such.
        epoch: The epoch under which it follows or writes; 0 for the other kinds.
    """

    kind: LedgerKind
    epoch: Epoch = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Vote:
    """A published promise, with the position at which the member is frozen.

    Attributes:
        epoch: The promised epoch.
        position: (epoch of the newest fence row in its WAL, end of its WAL).
        ancestry: The epochs of all fence rows in its WAL, ascending, the newest ``ANCESTRY_MAX``.
    """

    epoch: Epoch
    position: Position
    ancestry: tuple[Epoch, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    """A leader has ended its epoch in favour of the successor that the record names; nothing is written under it again.

    The leader has accepted no more writes, the successor has all of them on disk, and then the leader's PostgreSQL has
    stopped. Together with the record the release begins the next epoch, before etcd has a record of it (rule 20).

    Attributes:
        epoch: The epoch that has ended.
        revision: The revision that announced the successor: an older record of this epoch may name another one.
        successor: The leader of the next epoch.
        lsn: Where the WAL ends that the successor has on disk.
    """

    epoch: Epoch
    revision: int
    successor: RegionName
    lsn: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Gossip:
    """What each heartbeat of an agent says about a cell. Only the newest counts, so the loss of one is harmless.

    Attributes:
        epoch: The highest epoch that it knows of.
        commit: The newest LSN that it, as leader of that epoch, knows on a quorum; 0 otherwise.
        suspects: The epoch whose leader it suspects; 0 for none.
        vote: Its vote in this epoch, after its promise is durable.
        release: The newest release that it knows of, while etcd may not have the epoch that it has begun.
        drained: The epoch that it leads and whose writes the successor has all on disk: the successor needs no more WAL
            and may prepare. 0 for none.
    """

    epoch: Epoch = 0
    commit: int = 0
    suspects: Epoch = 0
    vote: Vote | None = None
    release: Release | None = None
    drained: Epoch = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Started:
    """The agent started. The first event of a core, once.

    Attributes:
        promise: The promise on its disk; None if the file is missing although there is a ledger, or cannot be read.
        ledger: Its member; None in a region without one.
    """

    promise: Promise | None
    ledger: MemberState | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Tick:
    """Time has passed: ``next_deadline()`` is reached. A tick that is not due changes nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordSeen:
    """etcd's watch delivered the record. It may be late, but never out of order.

    Attributes:
        revision: The revision of etcd that wrote it.
        record: The record.
    """

    revision: int
    record: Leadership


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordRead:
    """The answer to ``ReadRecord``; record None and revision 0: there is no record yet."""

    ticket: Ticket
    revision: int
    record: Leadership | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadFailed:
    """No endpoint of etcd answered ``ReadRecord``."""

    ticket: Ticket


@dataclass(frozen=True, slots=True, kw_only=True)
class SwapAnswered:
    """The answer to ``SwapRecord``.

    Attributes:
        ticket: Of the request.
        outcome: ``unknown``: the answer was lost, and the swap may have succeeded (rule 9).
        revision: The revision that it wrote, when applied.
    """

    ticket: Ticket
    outcome: Literal["applied", "lost", "unknown"]
    revision: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class PromiseStored:
    """``StorePromise`` is on disk, flushed."""

    ticket: Ticket


@dataclass(frozen=True, slots=True, kw_only=True)
class PromiseFailed:
    """``StorePromise`` could not be written; the old promise remains."""

    ticket: Ticket
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerFrozen:
    """The answer to ``FreezeLedger``: a standby without a connection string to any leader (rule 4).

    Attributes:
        ticket: Of the request.
        receiving: Whether there still is a WAL receiver, including one that has not connected yet.
        received: ``pg_last_wal_receive_lsn()``; None after a restart.
        replayed: ``pg_last_wal_replay_lsn()``.
        ancestry: The epochs of the fence rows that it has replayed, ascending.
    """

    ticket: Ticket
    receiving: bool
    received: int | None
    replayed: int
    ancestry: tuple[Epoch, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class FenceWritten:
    """The answer to ``WriteFence``.

    Attributes:
        ticket: Of the request.
        fence_id: Identifies the row.
        lsn: Where its commit ends.
        confirmed: False if the quorum wait was cancelled: SQLSTATE 01000 (rule 7).
    """

    ticket: Ticket
    fence_id: UUID
    lsn: int
    confirmed: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerDrained:
    """The answer to ``DrainLedger``: no write is in progress, and the target has all WAL on disk.

    Attributes:
        ticket: Of the request.
        lsn: Where that WAL ends.
    """

    ticket: Ticket
    lsn: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerDone:
    """The answer to any other effect on the member: it is done."""

    ticket: Ticket


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerFailed:
    """An effect on the member failed; it can be requested again.

    Attributes:
        ticket: Of the request.
        reason: One line for people.
        diverged: ``FollowLedger`` only: the member has WAL that the leader's history does not have.
        torn: The data can no longer be used: a copy or a rewind was aborted.
    """

    ticket: Ticket
    reason: str
    diverged: bool = False
    torn: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerEnded:
    """The member's PostgreSQL ended unexpectedly."""


@dataclass(frozen=True, slots=True, kw_only=True)
class QuorumWaitCancelled:
    """A commit on this member returned before its quorum had it: SQLSTATE 01000, or its backend ended (rule 7).

    Attributes:
        epoch: The epoch of the write; an epoch that is over is ignored.
    """

    epoch: Epoch


@dataclass(frozen=True, slots=True, kw_only=True)
class StandbysStreaming:
    """The leader's member reported which standbys stream and are close behind: within a second's WAL.

    Attributes:
        regions: The regions of those standbys.
    """

    regions: frozenset[RegionName]


@dataclass(frozen=True, slots=True, kw_only=True)
class GossipHeard:
    """A heartbeat brought another agent's gossip about this cell.

    Attributes:
        sender: The agent's region.
        gossip: Its gossip.
    """

    sender: RegionName
    gossip: Gossip


@dataclass(frozen=True, slots=True, kw_only=True)
class SuspicionChanged:
    """The detector began or ceased to suspect a region.

    Attributes:
        region: The region.
        suspected: Whether phi is above its threshold.
    """

    region: RegionName
    suspected: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class QuorumCommit:
    """The leader's member has a newer LSN on a quorum.

    Attributes:
        lsn: That LSN.
    """

    lsn: int


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentPaused:
    """The agent itself did not run (paused, starved) for so long that its knowledge may be outdated."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StrongReads:
    """Strong reads arrived, which need proof that this region leads.

    Attributes:
        requests: Their numbers, returned in the answer.
    """

    requests: tuple[int, ...]


OrderKind = Literal["switch", "pause", "resume", "drain", "undrain", "add", "remove"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """An operator's order; answered by ``AnswerOrder``. Orders are idempotent.

    Attributes:
        ticket: The operator's, returned in the answer.
        kind: What to do. Only the leader's agent carries out ``switch``, ``add`` and ``remove``.
        region: The region that it concerns; None for ``pause`` and ``resume``.
        by: The operator and the reason, for the record.
    """

    ticket: Ticket
    kind: OrderKind
    region: RegionName | None = None
    by: str = ""


LedgerAnswer = LedgerFrozen | FenceWritten | LedgerDrained | LedgerDone | LedgerFailed

Event = (
    Started
    | Tick
    | RecordSeen
    | RecordRead
    | ReadFailed
    | SwapAnswered
    | PromiseStored
    | PromiseFailed
    | LedgerFrozen
    | FenceWritten
    | LedgerDrained
    | LedgerDone
    | LedgerFailed
    | LedgerEnded
    | QuorumWaitCancelled
    | StandbysStreaming
    | GossipHeard
    | SuspicionChanged
    | QuorumCommit
    | AgentPaused
    | StrongReads
    | Order
)

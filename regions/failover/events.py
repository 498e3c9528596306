"""What the failover core is told: facts, answers to its effects, and orders. Data only.

Every request that the core makes carries a ticket, and its answer carries it back. An answer may be late,
come twice or never; the core takes the one to the request that it is waiting for and drops the others.
Tickets are never used again, not even by the next incarnation of an agent.

Times are monotonic seconds that go on while a machine sleeps (CLOCK_BOOTTIME); they are passed beside an
event, never in it. LSNs are bytes, unsigned 64 bit.
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
        epoch: It acts for no lower one, ever (rule 2).
        lineage: The last epoch under which its member wrote or received WAL (rule 11).
        floor: Its member's position counts only when it holds the fence row of this epoch (rule 12).
        copying: Its member's data may be a copy of the ledger that led this epoch (rule 11); above ``lineage`` only
            while that is not known.
    """

    epoch: Epoch = 0
    lineage: Epoch = 0
    floor: Epoch = 0
    copying: Epoch = 0


LedgerKind = Literal["absent", "stopped", "frozen", "following", "primary"]


@dataclass(frozen=True, slots=True, kw_only=True)
class MemberState:
    """A ledger member as its driver knows it.

    Attributes:
        kind: ``absent``: no data, or data that was never finished. ``frozen``: runs as a standby that
            receives from nobody. ``following``, ``primary``: runs as such.
        epoch: Under which epoch it follows or writes; 0 for the other kinds.
    """

    kind: LedgerKind
    epoch: Epoch = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Vote:
    """A promise that was published, with the position at which the member is frozen.

    Attributes:
        epoch: What was promised.
        position: (epoch of the newest fence row in its WAL, end of its WAL).
        ancestry: The epochs of all fence rows in its WAL, ascending, the newest ``ANCESTRY_MAX``.
    """

    epoch: Epoch
    position: Position
    ancestry: tuple[Epoch, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    """A leader has given its epoch up for the successor that the record names, and nothing is written under it again.

    Its PostgreSQL has ended, after its writes had been closed and the successor had all of them on disk. With the
    record this is the beginning of the next epoch, whether etcd has heard of it or not (rule 20).

    Attributes:
        epoch: What was given up.
        revision: What wrote the succession: a record of this epoch that is older may name another.
        successor: Whose the next epoch is.
        lsn: Where the WAL ended that the successor has on disk.
    """

    epoch: Epoch
    revision: int
    successor: RegionName
    lsn: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Gossip:
    """What an agent says about a cell in each heartbeat. Only the newest counts, so losing one is harmless.

    Attributes:
        epoch: The highest epoch that it knows of.
        commit: The newest LSN that it, as leader of that epoch, knows on a quorum; 0 otherwise.
        suspects: The epoch whose acting region it suspects; 0 for none.
        vote: Its vote in this epoch, once its promise is durable.
        release: The last that it knows of, while etcd may not have heard of what came of it.
        drained: The epoch whose writes it has brought to the successor, all of them, as its leader: who that is needs
            nothing more from it, and may get ready. 0 for none.
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
        promise: What its disk says; None when the file is missing beside a ledger, or cannot be read.
        ledger: Its member; None in a region that holds none.
    """

    promise: Promise | None
    ledger: MemberState | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Tick:
    """Time has passed: ``next_deadline()`` is here, or the driver felt like it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordSeen:
    """etcd's watch delivered the record. It may be late, but is never in the wrong order.

    Attributes:
        revision: etcd's revision that wrote it.
        record: The record.
    """

    revision: int
    record: Leadership


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordRead:
    """The answer to ``ReadRecord``; record None and revision 0: there is none yet."""

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
        outcome: ``unknown``: the answer was lost, the swap may have taken place (rule 9).
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
    """``StorePromise`` could not be written; the old promise holds."""

    ticket: Ticket
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerFrozen:
    """The answer to ``Freeze``: a standby that was told to receive from nobody (rule 4).

    Attributes:
        ticket: Of the request.
        receiving: Whether there still is a walreceiver, also one that has not connected yet.
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
        fence_id: Identity of the row.
        lsn: Where its commit ends.
        confirmed: False when the wait for the quorum was cut short: SQLSTATE 01000 (rule 7).
    """

    ticket: Ticket
    fence_id: UUID
    lsn: int
    confirmed: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerDrained:
    """The answer to ``Drain``: no write is under way, and the target has all of the WAL on disk.

    Attributes:
        ticket: Of the request.
        lsn: Where that WAL ends.
    """

    ticket: Ticket
    lsn: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerDone:
    """The answer to any other effect on the member: it took place."""

    ticket: Ticket


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerFailed:
    """An effect on the member failed; it can be asked again.

    Attributes:
        ticket: Of the request.
        reason: One line for people.
        diverged: ``Follow`` only: the member has WAL that the leader's history does not have.
        torn: The data cannot be used any more: a copy or a rewind was given up half-way.
    """

    ticket: Ticket
    reason: str
    diverged: bool = False
    torn: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerEnded:
    """The member's PostgreSQL ended without being asked to."""


@dataclass(frozen=True, slots=True, kw_only=True)
class QuorumWaitCancelled:
    """A commit on this member came back before its quorum: SQLSTATE 01000, or an end of its backend (rule 7).

    Attributes:
        epoch: Under which the member was written to; one that is over means nothing any more.
    """

    epoch: Epoch


@dataclass(frozen=True, slots=True, kw_only=True)
class StandbysStreaming:
    """The leader's member told who follows it closely: within a second's WAL, streaming.

    Attributes:
        regions: Those that do.
    """

    regions: frozenset[RegionName]


@dataclass(frozen=True, slots=True, kw_only=True)
class GossipHeard:
    """Another agent's newest word on this cell.

    Attributes:
        sender: Its region.
        gossip: What it said.
    """

    sender: RegionName
    gossip: Gossip


@dataclass(frozen=True, slots=True, kw_only=True)
class SuspicionChanged:
    """The detector changed its mind about a region.

    Attributes:
        region: About whom.
        suspected: Whether phi is over its threshold.
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
    """The agent itself was away (paused, starved) for so long that what it knows may be old."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StrongReads:
    """Reads that want the newest state arrived at the leader's region.

    Attributes:
        requests: Their numbers, given back in the answer.
    """

    requests: tuple[int, ...]


OrderKind = Literal["switch", "pause", "resume", "drain", "undrain", "add", "remove"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """An operator's order; answered by ``AnswerOrder``. Giving it twice does no harm.

    Attributes:
        ticket: Of the operator, given back in the answer.
        kind: What to do. ``switch``, ``add`` and ``remove`` are for the leader's agent.
        region: About whom; None for ``pause`` and ``resume``.
        by: Who and why, for the record.
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

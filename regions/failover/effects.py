"""The output of the failover core. Data only; a driver performs the effects and answers with events.

**Effects on the member** (``LedgerEffect``) are performed one after the other. A newer one supersedes an older one that
is not answered: the driver aborts the older one (never by cancelling a COMMIT), and its answer no longer counts. Each
can be repeated after a crash at any point. Each names its epoch: the driver performs it only if the promise on its disk
is not above that epoch, and drops it otherwise (rule 2).
"""

from dataclasses import dataclass
from typing import Literal

from regions.failover.events import Gossip, Promise, Ticket
from regions.identity import Epoch, RegionName
from regions.leadership import Leadership


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadRecord:
    """Read the record of the cell.

    Attributes:
        ticket: Of this request.
        linearizable: Whether the answer must include everything written before the request. Otherwise any member of
            etcd may answer, including one that is cut off from the others.
    """

    ticket: Ticket
    linearizable: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class SwapRecord:
    """Replace the record if its revision is still ``expected_revision`` (0: if there is no record). Never retried."""

    ticket: Ticket
    expected_revision: int
    record: Leadership


@dataclass(frozen=True, slots=True, kw_only=True)
class StorePromise:
    """Write the promise to the agent's disk and flush it; answer ``PromiseStored`` only then."""

    ticket: Ticket
    promise: Promise


@dataclass(frozen=True, slots=True, kw_only=True)
class InitialiseLedger:
    """Create an empty ledger and run it as primary, without a quorum, for the first epoch."""

    ticket: Ticket
    epoch: Epoch


@dataclass(frozen=True, slots=True, kw_only=True)
class FreezeLedger:
    """Make the member a running standby that receives no WAL (rule 4).

    No ``primary_conninfo``, no ``restore_command``, all its WAL replayed. A primary is stopped first.
    """

    ticket: Ticket
    epoch: Epoch


@dataclass(frozen=True, slots=True, kw_only=True)
class SetQuorum:
    """Set ``synchronous_standby_names`` to any ``required`` of ``standbys``; answered when it is in force (rule 5).

    On a primary it is answered after a commit under it.
    """

    ticket: Ticket
    epoch: Epoch
    standbys: tuple[RegionName, ...]
    required: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PromoteLedger:
    """Promote the frozen member. After a crash the new primary does not restart by itself (rule 8)."""

    ticket: Ticket
    epoch: Epoch


@dataclass(frozen=True, slots=True, kw_only=True)
class WriteFence:
    """Commit the fence row of the epoch and wait for the quorum, without a timeout."""

    ticket: Ticket
    epoch: Epoch


@dataclass(frozen=True, slots=True, kw_only=True)
class FollowLedger:
    """Run as a standby of ``leader`` after that is primary; answered when WAL streams.

    Not before it is primary: a standby also serves WAL, and whether this member's WAL is in the leader's history can be
    decided only after the leader has begun its own timeline.
    """

    ticket: Ticket
    epoch: Epoch
    leader: RegionName


@dataclass(frozen=True, slots=True, kw_only=True)
class RewindLedger:
    """Stop, wait until the postmaster has ended, CHECKPOINT on ``leader``, then ``pg_rewind`` from it (rule 13)."""

    ticket: Ticket
    epoch: Epoch
    leader: RegionName


@dataclass(frozen=True, slots=True, kw_only=True)
class CopyLedger:
    """Take a base backup of ``leader`` beside the data; when it is complete, replace the data with it, stopped.

    An aborted copy leaves the old data: until the leader has a quorum, this member may be needed for the majority that
    elects another one.
    """

    ticket: Ticket
    epoch: Epoch
    leader: RegionName


@dataclass(frozen=True, slots=True, kw_only=True)
class DrainLedger:
    """Accept no more writes, complete those in progress, and wait until ``target`` has all WAL on disk.

    Answered by ``LedgerDrained``.
    """

    ticket: Ticket
    epoch: Epoch
    target: RegionName


@dataclass(frozen=True, slots=True, kw_only=True)
class StopLedger:
    """Stop PostgreSQL; the only way to demote a primary (rule 6)."""

    ticket: Ticket
    epoch: Epoch


@dataclass(frozen=True, slots=True, kw_only=True)
class StartServing:
    """Serve as the leader of this epoch: prove strong reads, and admit writes again after a drain.

    The fence row of the epoch is on a quorum; the write API admits writes by that row.
    """

    epoch: Epoch


@dataclass(frozen=True, slots=True, kw_only=True)
class StopServing:
    """Stop serving as the leader of this epoch: prove no more strong reads under it."""

    epoch: Epoch


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerStrongReads:
    """Answer strong reads; ``current``: a later read of etcd shows this region as the leader (rule 10)."""

    requests: tuple[int, ...]
    current: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerOrder:
    """Answer an operator's order; ``refused`` None: done, or done before."""

    ticket: Ticket
    refused: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class GossipChanged:
    """The gossip of this agent has changed: send a heartbeat at once."""

    gossip: Gossip


@dataclass(frozen=True, slots=True, kw_only=True)
class WatchLeader:
    """The leader or candidate of the cell has changed: watch this region from now on.

    Attributes:
        region: The region to watch; None for none.
        needs_commits: Whether only its heartbeats with a newer quorum commit count (a leader's), or all.
    """

    region: RegionName | None
    needs_commits: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Log:
    """A line for the log and the history.

    Attributes:
        level: The log level.
        text: The line.
    """

    level: Literal["info", "warning", "error"]
    text: str


LedgerEffect = (
    InitialiseLedger
    | FreezeLedger
    | SetQuorum
    | PromoteLedger
    | WriteFence
    | FollowLedger
    | RewindLedger
    | CopyLedger
    | DrainLedger
    | StopLedger
)

Effect = (
    ReadRecord
    | SwapRecord
    | StorePromise
    | InitialiseLedger
    | FreezeLedger
    | SetQuorum
    | PromoteLedger
    | WriteFence
    | FollowLedger
    | RewindLedger
    | CopyLedger
    | DrainLedger
    | StopLedger
    | StartServing
    | StopServing
    | AnswerStrongReads
    | AnswerOrder
    | GossipChanged
    | WatchLeader
    | Log
)

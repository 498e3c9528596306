"""What the failover core asks for. Data only; a driver performs them and answers with events.

**Effects on the member** (``LedgerEffect``) are performed one after the other. A newer one supersedes an
older one that has not been answered: the driver gives the older up (never by cancelling a COMMIT) and its
answer no longer matters. Each can be repeated after a crash at any point, and each names its epoch: the
driver performs it only when the promise on its disk is not above that epoch, and else drops it (rule 2).
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
        linearizable: Whether the answer must hold everything written before the request; else any
            member of etcd may answer, also one that is cut off from the others.
    """

    ticket: Ticket
    linearizable: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class SwapRecord:
    """Replace the record if it is still the one of ``expected_revision`` (0: if there is none). Tried once."""

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
    """Make an empty ledger where there is none and run it as primary, without a quorum, for the first epoch."""

    ticket: Ticket
    epoch: Epoch


@dataclass(frozen=True, slots=True, kw_only=True)
class FreezeLedger:
    """Make the member, whatever it is, a running standby that receives from nobody (rule 4).

    No ``primary_conninfo``, no ``restore_command``, all its WAL replayed. A primary is stopped first.
    """

    ticket: Ticket
    epoch: Epoch


@dataclass(frozen=True, slots=True, kw_only=True)
class SetQuorum:
    """Set ``synchronous_standby_names`` to any ``required`` of ``standbys``; answer when it is in force (rule 5).

    On a primary it is answered when a commit has passed under it.
    """

    ticket: Ticket
    epoch: Epoch
    standbys: tuple[RegionName, ...]
    required: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PromoteLedger:
    """Promote the frozen member. A crash of the new primary never starts it again by itself (rule 8)."""

    ticket: Ticket
    epoch: Epoch


@dataclass(frozen=True, slots=True, kw_only=True)
class WriteFence:
    """Commit the fence row of the epoch and wait for the quorum, for as long as it takes."""

    ticket: Ticket
    epoch: Epoch


@dataclass(frozen=True, slots=True, kw_only=True)
class FollowLedger:
    """Run as a standby of ``leader`` once that is primary; answer when WAL streams.

    Not before: a standby lets others stream as well, and whether this member's WAL is in the leader's history shows
    only when the leader has begun its own timeline.
    """

    ticket: Ticket
    epoch: Epoch
    leader: RegionName


@dataclass(frozen=True, slots=True, kw_only=True)
class RewindLedger:
    """Stop, wait for the postmaster's end, CHECKPOINT on ``leader``, then ``pg_rewind`` from it (rule 13)."""

    ticket: Ticket
    epoch: Epoch
    leader: RegionName


@dataclass(frozen=True, slots=True, kw_only=True)
class CopyLedger:
    """Take a base backup of ``leader`` beside the data, and put it in their place, stopped, once it is whole.

    A copy that is given up leaves what was there: until the leader has a quorum, this member may be half of the
    only one that can still choose another.
    """

    ticket: Ticket
    epoch: Epoch
    leader: RegionName


@dataclass(frozen=True, slots=True, kw_only=True)
class DrainLedger:
    """Take no more writes, end those under way, and wait until ``target`` has all of the WAL on disk.

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
    """Answer reads: ``current`` says that this region led when etcd was asked after they arrived (rule 10)."""

    requests: tuple[int, ...]
    current: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerOrder:
    """Tell the operator; ``refused`` None: done, or done already."""

    ticket: Ticket
    refused: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class GossipChanged:
    """What this agent has to say changed: send it at once, not with the next heartbeat."""

    gossip: Gossip


@dataclass(frozen=True, slots=True, kw_only=True)
class WatchLeader:
    """Another region acts for the cell, or none: whose heartbeats, and which of them, count from now on.

    Attributes:
        region: Who acts; None for nobody to be suspected.
        needs_commits: Whether only heartbeats with a newer quorum commit count (the leader's), or all.
    """

    region: RegionName | None
    needs_commits: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Log:
    """A line of the story, for the log and the history.

    Attributes:
        level: How loud.
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

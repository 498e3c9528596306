"""The rules of failover.md, one small pure function each, so that each can be read, tested and broken alone.

The numbers are those of docs/failover.md. ``machine.py`` asks these functions at each place where a rule
decides; tests/simulation breaks them one by one and shows that a checker notices.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from regions.failover.effects import LedgerEffect, StopLedger
from regions.failover.events import FenceWritten, LedgerFrozen, MemberState, Order, Promise, Release, Ticket, Vote
from regions.identity import Epoch, RegionName
from regions.leadership import ANCESTRY_MAX, Leadership
from regions.position import Position


def majority(voters: Sequence[RegionName]) -> int:
    """How many members have to be frozen before one may be promoted (rule 1)."""
    return len(voters) // 2 + 1


def required_standbys(voters: Sequence[RegionName]) -> int:
    """How many standbys must have a commit on disk: with the primary they are a majority (rule 1)."""
    return len(voters) // 2


def may_resize(revision: int, unsettled: int | None) -> bool:
    """Whether commits may wait for other voters than those of the record (rule 1).

    Only one voter more or fewer, or majorities need not meet. So not while an earlier swap of the leader, of which it
    knows no outcome, may yet put other voters into the record; a swap that succeeds makes every earlier one fail.
    """
    return unsettled is not None and revision != unsettled


def may_set_quorum(unsettled: int | None) -> bool:
    """Whether the quorum of a primary may be changed to what the known record says (rule 1).

    A record that is two changes of voters older than etcd's, or than what a pending swap would make of etcd's, names
    voters whose majorities need not meet those of etcd's. What the previous run has set differs by one at most.
    """
    return unsettled is not None


def shows_newest(*, linearizable: bool) -> bool:
    """Whether a read shows a record that no swap of a previous run precedes (rule 1).

    Such a swap expects a revision that etcd had before this run. A member of etcd that is cut off may show an older
    one: the swap then expects a revision that this run has yet to hear of.
    """
    return linearizable


def counted_votes(votes: Mapping[RegionName, Vote], record: Leadership) -> dict[RegionName, Vote]:
    """The votes that count for an epoch: of its voters, for it and no other, and given, never presumed.

    Time stands for nobody's vote: a leader whose lease would be over may still be writing (rule 14).
    """
    return {
        region: votes[region]
        for region in record.voters
        if region in votes and votes[region].epoch == record.epoch
    }  # fmt: skip


def enough_votes(votes: Mapping[RegionName, Vote], record: Leadership) -> bool:
    """Whether every quorum that may have acknowledged a write has a member among those frozen (rule 1)."""
    return len(votes) >= majority(record.voters)


def rank(vote: Vote) -> Position:
    """By what members are compared: the epoch of the newest fence row in the WAL, then the LSN (rule 3)."""
    return vote.position


def is_frozen(answer: LedgerFrozen) -> bool:
    """Whether a member receives nothing any more and has replayed what it received (rule 4)."""
    return not answer.receiving and (answer.received is None or answer.replayed >= answer.received)


def frozen_position(answer: LedgerFrozen) -> Position:
    """Where a frozen member's WAL ends: the greater of received and replayed (rule 4)."""
    lsn = answer.replayed if answer.received is None else max(answer.received, answer.replayed)
    return Position(max(answer.ancestry, default=0), lsn)


def may_publish(vote: Vote, durable: Promise) -> bool:
    """Whether the promise behind a vote is on disk, and the member holds what it had before a rewind (2, 12)."""
    return durable.epoch >= vote.epoch and position_counts(vote.position, durable)


def may_act(epoch: Epoch, durable: Promise) -> bool:
    """Whether an agent may act for an epoch: never for a lower one than it has promised (rule 2)."""
    return epoch >= durable.epoch


def may_promote(*, quorum_set: bool) -> bool:
    """Whether a member may become primary: only with its quorum in force, or it acknowledges alone (rule 5)."""
    return quorum_set


def demotion(ticket: Ticket, epoch: Epoch) -> LedgerEffect:
    """How a primary is demoted: it is stopped. Clearing its quorum would release its waiters (rule 6)."""
    return StopLedger(ticket=ticket, epoch=epoch)


def is_on_quorum(fence: FenceWritten) -> bool:
    """Whether a fence row has its quorum: a wait that was cut short says so only by a warning (rule 7)."""
    return fence.confirmed


def is_epoch_over(cut_short: Epoch, epoch: Epoch) -> bool:
    """Whether an epoch is over for its leader: a commit's wait under it was cut short (rule 7).

    The leader's member shows a row that no other may have, and nobody can tell when it is on a quorum after all. The
    next epoch begins with a fence row behind it, or without it.
    """
    return cut_short == epoch


def is_settled(seen: int, quorum: int) -> bool:
    """Whether what a read saw up to an LSN is on a quorum, so that a strong read may answer with it (rule 7).

    A row is visible from the moment in which its wait is cut short, before anybody can be told of it.
    """
    return seen <= quorum


def needs_new_epoch(ledger: MemberState, durable: Promise, record: Leadership, *, promoting: Epoch) -> bool:
    """Whether the leader's member may have been primary of this epoch, and is not: it shows rows that no standby has.

    So it may not be started again as primary but under another epoch, with another fence row (rule 8). The
    lineage is durable before a promotion; ``promoting`` is the epoch of one that this agent has under way.
    """
    runs = ledger.kind == "primary" and ledger.epoch == record.epoch
    return durable.lineage >= record.epoch and not runs and promoting != record.epoch


def proves_leadership(read: Leadership | None, serving_epoch: Epoch, region: RegionName) -> bool:
    """Whether a linearizable read that was begun after a strong read arrived says that this region leads (10)."""
    return read is not None and serving_epoch > 0 and read.epoch == serving_epoch and read.leader == region


def must_copy(ledger: MemberState, durable: Promise, record: Leadership) -> bool:
    """Whether a member can only follow this leader after a base backup (rule 11).

    A member whose last epoch has no fence row in the leader's WAL has seen a history that was given up, and
    timelines would not tell: two promotions can take the same number.
    """
    shares = durable.lineage == record.epoch or durable.lineage in record.ancestry
    return ledger.kind == "absent" or not shares or durable.copying > durable.lineage


def may_rewind(record: Leadership) -> bool:
    """Whether a member may go below WAL that it acknowledged: only when the leader has a quorum without it (12).

    Before that the cell may need this member's vote for another attempt, and a copy leaves it until it is whole.
    """
    return record.phase == "serving"


def before_rewind(durable: Promise, epoch: Epoch) -> Promise:
    """What is made durable before a rewind, which may go below acknowledged WAL (rule 12)."""
    return replace(durable, epoch=max(epoch, durable.epoch), floor=max(epoch, durable.floor))


def before_copy(durable: Promise, epoch: Epoch) -> Promise:
    """What is made durable before a copy, which brings WAL of the epoch (rule 11)."""
    return replace(durable, epoch=max(epoch, durable.epoch), copying=max(epoch, durable.copying))


def joined_promise(one: Promise, other: Promise) -> Promise:
    """The least promise that keeps both (rule 2)."""
    return Promise(
        epoch=max(one.epoch, other.epoch),
        lineage=max(one.lineage, other.lineage),
        floor=max(one.floor, other.floor),
        copying=max(one.copying, other.copying),
    )


def position_counts(position: Position, durable: Promise) -> bool:
    """Whether a member that was rewound or copied has caught up with the epoch that it joined (rule 12)."""
    return position.epoch >= durable.floor


def next_epoch(record: Leadership) -> Epoch:
    """The number of the epoch that whoever may begin one begins: not the one that is promised to a successor (20)."""
    return record.epoch + (1 if record.succession is None else 2)


def may_hand_over(record: Leadership, target: RegionName | None, *, announced: int) -> bool:
    """Whether the next epoch is the target's and stays so: the leader's own swap has said it (rule 20).

    That the record says it is not enough. It may be what is left of an earlier order, and a swap of the leader that
    takes it back may be on its way; its newest one has overtaken all others.
    """
    return record.succession is not None and record.succession.region == target and announced > 0


def release_of(order: Order, record: Leadership, *, announced: int, drained: int | None) -> Release | None:
    """What a leader whose PostgreSQL was stopped may say: that it has given up, if all is as it must be (rule 20).

    Its writes were closed and the successor has them. A PostgreSQL that ended by itself may have ended before that.
    """
    if drained is None or order.region is None or not may_hand_over(record, order.region, announced=announced):
        return None
    return Release(epoch=record.epoch, revision=announced, successor=order.region, lsn=drained)


def effective_record(record: Leadership, revision: int, release: Release | None) -> Leadership:
    """What a record of etcd means with a release: its own epoch, or the one that it has promised (rule 20).

    Whoever knows both knows the same, so that the successor need not wait for etcd.
    """
    succession = record.succession
    if succession is None or release is None:
        return record
    if release.epoch != record.epoch or release.revision > revision or release.successor != succession.region:
        return record
    return replace(
        record,
        epoch=record.epoch + 1,
        leader=succession.region,
        phase="promoting",
        fence_id=None,
        reason=succession.reason,
        since="",
        target=succession.region,
        succession=None,
        handed_over_at=Position(release.epoch, release.lsn),
    )


def has_predecessors_wal(position: Position, record: Leadership) -> bool:
    """Whether a member that was handed the leadership has what its predecessor had: else others choose (rule 20)."""
    return record.handed_over_at is None or position >= record.handed_over_at


def expected_revision(known: int) -> int:
    """Which revision a swap of the record is compared with: the one that was read, so nobody is overwritten."""
    return known


def shows_life(*, commit: int, newest: int, needs_commits: bool) -> bool:
    """Whether a heartbeat counts: a leader's only when it brings a newer commit that is on a quorum.

    A leader with a hung disk, or one that is cut off from its standbys, is as dead as a killed one.
    """
    return commit > newest or not needs_commits


def extended_ancestry(ancestry: tuple[Epoch, ...], epoch: Epoch) -> tuple[Epoch, ...]:
    """An ancestry with one epoch more, within its bound."""
    return (*(one for one in ancestry if one < epoch), epoch)[-ANCESTRY_MAX:]

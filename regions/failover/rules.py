"""The rules of docs/failover.md, one small pure function each, so that each can be read, tested and broken alone.

The numbers are those of docs/failover.md. The core calls one of these functions wherever a rule decides.
tests/simulation breaks most of them one by one and shows that a checker detects it; tests/mutants changes every
expression of all of them and shows that a unit test detects it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from regions.failover.effects import LedgerEffect, StopLedger
from regions.failover.events import FenceWritten, LedgerFrozen, MemberState, Order, Promise, Release, Ticket, Vote
from regions.identity import Epoch, RegionName
from regions.leadership import ANCESTRY_MAX, Leadership
from regions.position import Position


def majority(voters: Sequence[RegionName]) -> int:
    """The number of members that must be frozen before one may be promoted (rule 1)."""
    return len(voters) // 2 + 1


def required_standbys(voters: Sequence[RegionName]) -> int:
    """The number of standbys that must have a commit on disk: with the primary they are a majority (rule 1)."""
    return len(voters) // 2


def may_resize(revision: int, unsettled: int | None) -> bool:
    """Whether commits may wait for other voters than those of the record (rule 1).

    Voters change by one at a time, because majorities that differ by more need not intersect. So they do not change
    while an earlier swap of the leader, whose outcome is unknown, may still put other voters into the record. A swap
    that succeeds makes every earlier one fail.
    """
    return unsettled is not None and revision != unsettled


def may_set_quorum(unsettled: int | None) -> bool:
    """Whether the quorum of a primary may be changed to what the known record says (rule 1).

    If the known record is two changes of voters older than etcd's, or than the record of a pending swap, its majorities
    need not intersect with etcd's. The quorum that the previous run has set differs by one voter at most.
    """
    return unsettled is not None


def shows_newest(*, linearizable: bool) -> bool:
    """Whether a read shows a record that no pending swap of a previous run can still replace unseen (rule 1).

    Such a swap expects a revision that etcd had before this run. A member of etcd that is cut off may show an older
    record: the swap then expects a revision that this run has not seen yet.
    """
    return linearizable


def counted_votes(votes: Mapping[RegionName, Vote], record: Leadership) -> dict[RegionName, Vote]:
    """The votes that count for an epoch: those that its voters have published for this epoch.

    An expired timeout never counts as a vote: a leader whose lease has expired may still be writing (rule 14).
    """
    return {
        region: votes[region]
        for region in record.voters
        if region in votes and votes[region].epoch == record.epoch
    }  # fmt: skip


def enough_votes(votes: Mapping[RegionName, Vote], record: Leadership) -> bool:
    """Whether every quorum that may have acknowledged a write includes a frozen member (rule 1)."""
    return len(votes) >= majority(record.voters)


def rank(vote: Vote) -> Position:
    """The order of members: by the epoch of the newest fence row in the WAL, then by LSN (rule 3)."""
    return vote.position


def is_frozen(answer: LedgerFrozen) -> bool:
    """Whether a member has no WAL receiver and has replayed all WAL that it received (rule 4)."""
    return not answer.receiving and (answer.received is None or answer.replayed >= answer.received)


def frozen_position(answer: LedgerFrozen) -> Position:
    """Where a frozen member's WAL ends: the greater of received and replayed (rule 4)."""
    lsn = answer.replayed if answer.received is None else max(answer.received, answer.replayed)
    return Position(max(answer.ancestry, default=0), lsn)


def may_publish(vote: Vote, durable: Promise) -> bool:
    """Whether the promise of a vote is on disk, and the member has caught up after a rewind (rules 2 and 12)."""
    return durable.epoch >= vote.epoch and position_counts(vote.position, durable)


def may_act(epoch: Epoch, durable: Promise) -> bool:
    """Whether an agent may act for an epoch: never below the promised one (rule 2)."""
    return epoch >= durable.epoch


def may_promote(*, quorum_set: bool) -> bool:
    """Whether a member may become primary: only with its quorum in force; else it would acknowledge alone (rule 5)."""
    return quorum_set


def demotion(ticket: Ticket, epoch: Epoch) -> LedgerEffect:
    """The effect that demotes a primary: stop it. Clearing its quorum would acknowledge waiting commits (rule 6)."""
    return StopLedger(ticket=ticket, epoch=epoch)


def is_on_quorum(fence: FenceWritten) -> bool:
    """Whether a fence row has its quorum: PostgreSQL reports a cancelled wait only by a warning (rule 7)."""
    return fence.confirmed


def is_epoch_over(cancelled_epoch: Epoch, epoch: Epoch) -> bool:
    """Whether an epoch is over for its leader: the quorum wait of a commit under it was cancelled (rule 7).

    The leader's member shows a row that no other member may have, and no process learns when it reaches a quorum. The
    next epoch's fence row either follows that row in the WAL, or that WAL does not have the row.
    """
    return cancelled_epoch == epoch


def is_settled(seen: int, quorum: int) -> bool:
    """Whether everything that a read saw, up to an LSN, is on a quorum, so a strong read may answer with it (rule 7).

    A row becomes visible when its quorum wait is cancelled, before the agent can know of the cancellation.
    """
    return seen <= quorum


def needs_new_epoch(ledger: MemberState, durable: Promise, record: Leadership, *, promoting: Epoch) -> bool:
    """Whether the leader's member may have been primary of this epoch and no longer is (rule 8).

    It may then show rows that no standby has, so it may become primary again only under another epoch, with another
    fence row. The lineage is durable before a promotion; ``promoting`` is the epoch of a promotion under way here.
    """
    runs = ledger.kind == "primary" and ledger.epoch == record.epoch
    return durable.lineage >= record.epoch and not runs and promoting != record.epoch


def proves_leadership(read: Leadership | None, serving_epoch: Epoch, region: RegionName) -> bool:
    """Whether a linearizable read that began after a strong read arrived shows this region as the leader (rule 10)."""
    return read is not None and serving_epoch > 0 and read.epoch == serving_epoch and read.leader == region


def must_copy(ledger: MemberState, durable: Promise, record: Leadership) -> bool:
    """Whether a member needs a base backup before it can follow this leader (rule 11).

    A member whose last epoch has no fence row in the leader's WAL followed a history that was discarded. Timelines do
    not show this: two promotions can use the same number.
    """
    shares = durable.lineage == record.epoch or durable.lineage in record.ancestry
    return ledger.kind == "absent" or not shares or durable.copying > durable.lineage


def may_rewind(record: Leadership) -> bool:
    """Whether a rewind may discard WAL that the member has acknowledged: only after the epoch serves (rule 12).

    The leader then has a quorum without this member. Before that the cell may need this member's vote for another
    attempt. A copy keeps the old data until it is complete.
    """
    return record.phase == "serving"


def before_rewind(durable: Promise, epoch: Epoch) -> Promise:
    """The promise that is durable before a rewind, which may discard acknowledged WAL (rule 12)."""
    return replace(durable, epoch=max(epoch, durable.epoch), floor=max(epoch, durable.floor))


def before_copy(durable: Promise, epoch: Epoch) -> Promise:
    """The promise that is durable before a copy, which brings WAL of the epoch (rule 11)."""
    return replace(durable, epoch=max(epoch, durable.epoch), copying=max(epoch, durable.copying))


def joined_promise(one: Promise, other: Promise) -> Promise:
    """The least promise that is not below either (rule 2)."""
    return Promise(
        epoch=max(one.epoch, other.epoch),
        lineage=max(one.lineage, other.lineage),
        floor=max(one.floor, other.floor),
        copying=max(one.copying, other.copying),
    )


def position_counts(position: Position, durable: Promise) -> bool:
    """Whether the position of a member counts: after a rewind or copy it has to reach its floor (rule 12)."""
    return position.epoch >= durable.floor


def next_epoch(record: Leadership) -> Epoch:
    """The next epoch that a candidate begins; it skips one that is promised to a successor (rule 20)."""
    return record.epoch + (1 if record.succession is None else 2)


def may_hand_over(record: Leadership, target: RegionName | None, *, announced: int) -> bool:
    """Whether the next epoch belongs to the target for certain: the leader's own swap has announced it (rule 20).

    It is not enough that the record names the target. That may be left over from an earlier order, and a pending swap
    of the leader may withdraw it. The leader's newest swap makes all its earlier ones fail.

    Args:
        record: The record that the leader acts by.
        target: The ordered successor.
        announced: The revision with which the leader's own swap named the successor; 0 for none.
    """
    return record.succession is not None and record.succession.region == target and announced > 0


def release_of(order: Order, record: Leadership, *, announced: int, drained: int | None) -> Release | None:
    """The release that a leader may publish after it has stopped its PostgreSQL, or None (rule 20).

    It accepts no writes, and the successor has all of them (``drained``). If PostgreSQL ended by itself, that may have
    been before the successor had all writes.
    """
    if drained is None or order.region is None or not may_hand_over(record, order.region, announced=announced):
        return None
    return Release(epoch=record.epoch, revision=announced, successor=order.region, lsn=drained)


def effective_record(record: Leadership, revision: int, release: Release | None) -> Leadership:
    """The record to act by: the one in etcd, or the successor's next epoch if ``release`` has begun it (rule 20).

    Every agent that knows both computes the same record, so the successor need not wait for etcd.
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
    """Whether the successor's member has all WAL of its predecessor; if not, an election follows (rule 20)."""
    return record.handed_over_at is None or position >= record.handed_over_at


def expected_revision(known: int) -> int:
    """The revision that a swap expects: the one that was read, so no other agent's swap is overwritten."""
    return known


def is_sign_of_life(*, commit: int, newest: int, needs_commits: bool) -> bool:
    """Whether a heartbeat counts as a sign of life: a leader's only if it reports a newer commit on a quorum.

    A leader whose disk hangs, or that is cut off from its standbys, must be replaced like one that was killed.
    """
    return commit > newest or not needs_commits


def extended_ancestry(ancestry: tuple[Epoch, ...], epoch: Epoch) -> tuple[Epoch, ...]:
    """The ancestry with one more epoch, at most ``ANCESTRY_MAX`` long."""
    return (*(one for one in ancestry if one < epoch), epoch)[-ANCESTRY_MAX:]

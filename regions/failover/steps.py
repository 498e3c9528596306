"""Which effect the member needs next, and which votes and suspicions count: pure functions of facts.

``requests.py`` calls ``ledger_step`` after every event. It returns the same step until the facts change, so an agent
that restarts after a crash continues from its disk, etcd and its member. ``requests.py`` fills in the tickets.
"""

from dataclasses import replace
from typing import assert_never

from regions.failover import handover, rules
from regions.failover.effects import (
    CopyLedger,
    DrainLedger,
    FollowLedger,
    FreezeLedger,
    InitialiseLedger,
    LedgerEffect,
    PromoteLedger,
    RewindLedger,
    SetQuorum,
    StopLedger,
    WriteFence,
)
from regions.failover.events import MemberState, Promise, Release, Vote
from regions.failover.facts import Facts
from regions.failover.handover import Preparing, RestartDelayed
from regions.identity import Epoch, RegionName
from regions.leadership import Leadership

Step = LedgerEffect | Promise | None
"""An effect on the member, a promise that must be durable first, or nothing."""


def ledger_step(facts: Facts) -> Step:
    """Return the next effect on the member."""
    record, promise, ledger = facts.record, facts.member.promise, facts.member.ledger
    if record is None or promise is None or ledger is None or not rules.may_act(record.epoch, promise):
        return None
    if facts.outdated and promise == Promise():
        return None
    if ledger.kind == "primary" and (ledger.epoch < record.epoch or record.leader != facts.region):
        return rules.demotion(0, record.epoch)
    if facts.region not in record.voters and facts.region not in record.joining:
        return None if ledger.kind in ("absent", "stopped") else StopLedger(ticket=0, epoch=record.epoch)
    match record.phase:
        case "recruiting":
            return _freeze(facts, record, promise, ledger) if facts.votes_here else None
        case "bootstrapping":
            return (
                _bootstrap(facts, record, promise, ledger) if facts.leads else _follow(facts, record, promise, ledger)
            )
        case "promoting" | "establishing" | "serving":
            return _lead(facts, record, promise, ledger) if facts.leads else _follow(facts, record, promise, ledger)
        case _:
            assert_never(record.phase)


def _freeze(facts: Facts, record: Leadership, promise: Promise, ledger: MemberState) -> Step:
    if ledger.kind == "absent":
        return None
    if facts.member.frozen_vote is None or facts.member.frozen_vote.epoch != record.epoch:
        return FreezeLedger(ticket=0, epoch=record.epoch)
    if promise.epoch < record.epoch:
        return replace(promise, epoch=record.epoch)
    return None


def _bootstrap(facts: Facts, record: Leadership, promise: Promise, ledger: MemberState) -> Step:
    # No write was acknowledged under this epoch yet, so a member that ended may start again under it.
    if ledger.kind != "primary":
        if promise.lineage < record.epoch:
            return replace(promise, epoch=record.epoch, lineage=record.epoch)
        return InitialiseLedger(ticket=0, epoch=record.epoch)
    if facts.member.quorum != standbys_of(facts.region, record.voters):
        known = rules.may_set_quorum(facts.etcd.unsettled_revision)
        return quorum_of(facts.region, record.voters, record.epoch) if known else None
    return WriteFence(ticket=0, epoch=record.epoch) if facts.member.fence is None else None


def _lead(facts: Facts, record: Leadership, promise: Promise, ledger: MemberState) -> Step:
    if facts.is_primary_of(record.epoch):
        return _lead_as_primary(facts, record)
    if rules.needs_new_epoch(ledger, promise, record, promoting=facts.member.promoting_epoch):
        return None
    before = _freeze(facts, record, promise, ledger)
    # The successor of a hand-over publishes no vote. It stores one promise, immediately before its promotion.
    once = isinstance(before, Promise) and record.handed_over_at is not None
    if (before is not None and not once) or ledger.kind != "frozen":
        return before
    if not rules.may_promote(quorum_set=facts.member.quorum == standbys_of(facts.region, record.voters)):
        return quorum_of(facts.region, record.voters, record.epoch)
    assert facts.member.frozen_vote is not None, "it is frozen"
    if not rules.has_predecessors_wal(facts.member.frozen_vote.position, record):
        return None
    if promise.lineage < record.epoch:
        return replace(promise, epoch=record.epoch, lineage=record.epoch)
    return None if facts.outdated else PromoteLedger(ticket=0, epoch=record.epoch)


def _lead_as_primary(facts: Facts, record: Leadership) -> Step:
    if facts.member.fence is None and record.phase != "serving":
        return None if facts.outdated else WriteFence(ticket=0, epoch=record.epoch)
    switchover = facts.switchover
    if switchover is not None and rules.may_hand_over(
        record, switchover.order.region, announced=handover.announcement(switchover)
    ):
        assert switchover.order.region is not None, "a switch names its region"
        if handover.drained(switchover) is None:
            return DrainLedger(ticket=0, epoch=record.epoch, target=switchover.order.region)
        return rules.demotion(0, record.epoch)
    wanted = wanted_voters(facts, record)
    moves = facts.member.quorum != standbys_of(facts.region, wanted)
    if switchover is None and moves and rules.may_set_quorum(facts.etcd.unsettled_revision):
        return quorum_of(facts.region, wanted, record.epoch)
    return None


def _follow(facts: Facts, record: Leadership, promise: Promise, ledger: MemberState) -> Step:
    if isinstance(facts.handover, RestartDelayed) and ledger.kind == "stopped" and _is_not_needed(facts, record):
        return None
    prepares = isinstance(facts.handover, Preparing)
    if prepares and ledger.kind == "frozen":
        # The quorum is set while the leader stops, so the promotion need not wait for it. A standby ignores it.
        ready = facts.member.quorum == standbys_of(facts.region, record.voters)
        return None if ready else quorum_of(facts.region, record.voters, record.epoch)
    if ledger == MemberState(kind="following", epoch=record.epoch):
        # The successor freezes while the leader stops, so the promotion need not wait for it.
        return FreezeLedger(ticket=0, epoch=record.epoch) if prepares else None
    # A rewind that found nothing to do left WAL that the leader lacks; a second rewind would find the same.
    again = facts.member.diverged and facts.member.rebuilt_epoch == record.epoch
    must_copy = again or rules.must_copy(ledger, promise, record)
    if again or ((must_copy or facts.member.diverged) and facts.member.rebuilt_epoch != record.epoch):
        copies = must_copy or not rules.may_rewind(record)
        before = (rules.before_copy if copies else rules.before_rewind)(promise, record.epoch)
        if before != promise:
            return before
        rebuild = CopyLedger if copies else RewindLedger
        return rebuild(ticket=0, epoch=record.epoch, leader=record.leader)
    # The lineage is durable before the first byte of this epoch arrives: it decides later whether a copy is needed.
    # (A lineage is never above the promised epoch: both are raised together.)
    if promise.lineage < record.epoch:
        return replace(promise, epoch=record.epoch, lineage=record.epoch)
    return FollowLedger(ticket=0, epoch=record.epoch, leader=record.leader)


def _is_not_needed(facts: Facts, record: Leadership) -> bool:
    """Whether the other members that are heard are enough for a quorum without this one."""
    return sum(1 for voter in heard(facts, record) if voter != facts.region) >= rules.majority(record.voters)


def wanted_voters(facts: Facts, record: Leadership) -> tuple[RegionName, ...]:
    """Return the voters whose majority commits should wait for: one more or fewer than in the record, or the same.

    While a swap is pending, etcd may have either of two records, so the quorum stays as it is. A pending swap that
    expects an older record, or another epoch, can no longer succeed.
    """
    swapping = facts.requests.swapping
    if swapping is not None and (swapping.record.epoch, swapping.expected) == (record.epoch, facts.etcd.revision):
        return swapping.record.voters
    return (
        asked_voters(facts, record)
        if rules.may_resize(facts.etcd.revision, facts.etcd.unsettled_revision)
        else record.voters
    )


def asked_voters(facts: Facts, record: Leadership) -> tuple[RegionName, ...]:
    """Return the voters after the change that is asked for: without the removed one, or with one that has joined."""
    if facts.resize is not None:
        return facts.resize[0]
    ready = next((region for region in record.joining if region in facts.member.standbys), None)
    return record.voters if ready is None else (*record.voters, ready)


def needs_newest_record(facts: Facts) -> bool:
    """Whether a running primary needs another quorum while the known record may be outdated."""
    record = facts.record
    if record is None or not facts.leads or not facts.is_primary_of(record.epoch):
        return False
    return not rules.may_set_quorum(facts.etcd.unsettled_revision) and facts.member.quorum != standbys_of(
        facts.region, record.voters
    )


def standbys_of(region: RegionName, voters: tuple[RegionName, ...]) -> tuple[RegionName, ...]:
    """Return the standbys of a primary in ``region``."""
    return tuple(voter for voter in voters if voter != region)


def quorum_of(region: RegionName, voters: tuple[RegionName, ...], epoch: Epoch) -> SetQuorum:
    """Return the effect that makes commits wait for a majority of ``voters``."""
    required = rules.required_standbys(voters)
    return SetQuorum(ticket=0, epoch=epoch, standbys=standbys_of(region, voters), required=required)


def published_vote(facts: Facts) -> Vote | None:
    """Return the vote that heartbeats may carry; None if there is none, or its promise is not durable."""
    record, promise, vote = facts.record, facts.member.promise, facts.member.frozen_vote
    if record is None or promise is None or vote is None or vote.epoch != record.epoch or not facts.votes_here:
        return None
    if record.phase == "serving":
        # The member is frozen for a hand-over, and no candidate asks for votes.
        return None
    return vote if rules.may_publish(vote, promise) else None


def published_release(facts: Facts) -> Release | None:
    """Return the release that heartbeats carry: as long as etcd may not have the epoch that it has begun."""
    release, stored = facts.release, facts.etcd.record
    if release is None or stored is None:
        return release
    return release if release.epoch >= stored.epoch else None


def votes(facts: Facts, record: Leadership) -> dict[RegionName, Vote]:
    """Return the votes that count for the record's epoch, the own one included."""
    published = {region: gossip.vote for region, gossip in facts.peers.gossip.items() if gossip.vote is not None}
    own = published_vote(facts)
    if own is not None:
        published[facts.region] = own
    return rules.counted_votes(published, record)


def choose(given: dict[RegionName, Vote], record: Leadership, avoid: frozenset[RegionName]) -> RegionName:
    """Return the member to promote: by position, then the target, then one that is neither drained nor suspected."""

    def preference(region: RegionName) -> tuple[object, ...]:
        at = record.voters.index(region)
        return (
            rules.rank(given[region]),
            region == record.target,
            region not in record.drained,
            region not in avoid,
            -at,
        )

    return max(given, key=preference)


def count_suspecting_regions(facts: Facts, record: Leadership) -> int:
    """Return how many regions, this one included, suspect the record's leader."""
    if record.leader == facts.region or record.leader not in facts.peers.suspected:
        return 0
    # A suspected region is not heard, so its older gossip does not count.
    others = (
        region
        for region, gossip in facts.peers.gossip.items()
        if gossip.suspects == record.epoch and region not in facts.peers.suspected
    )
    return 1 + sum(1 for _ in others)


def heard(facts: Facts, record: Leadership) -> tuple[RegionName, ...]:
    """Return the voters that can be heard, this region included."""
    return tuple(voter for voter in record.voters if voter == facts.region or voter not in facts.peers.suspected)


def may_be_heard(facts: Facts, record: Leadership) -> bool:
    """Whether a majority of the voters is heard: without it an epoch cannot succeed."""
    return len(heard(facts, record)) >= rules.majority(record.voters)

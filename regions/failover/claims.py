"""Which record this region proposes next, and when: pure functions of facts and time.

A proposal replaces only the record that was read (compare-and-swap), so two candidates at once are safe. The head start
of the preferred region makes them rare.
"""

from dataclasses import replace

from regions.failover import handover, rules, steps
from regions.failover.effects import CopyLedger, RewindLedger
from regions.failover.events import MemberState, Order, Promise
from regions.failover.facts import Facts
from regions.identity import RegionName
from regions.leadership import Leadership, Succession


def proposal(facts: Facts, now: float) -> Leadership | None:
    """Return the record to swap in now, or None."""
    record = facts.record
    if facts.member.ledger is None or facts.member.promise is None:
        return None
    if record is None:
        return _first(facts)
    if not rules.may_act(record.epoch, facts.member.promise) or not facts.votes_here:
        return None
    mine = _of_leader(facts, record, now) if facts.leads else None
    return mine or _claim(facts, record, now)


def refusal(facts: Facts) -> str | None:
    """Return why this region cannot take part although it has a member, or None."""
    if (
        facts.member.ledger is None
        or facts.member.promise is None
        or facts.record is not None
        or not facts.etcd.was_read
    ):
        return None
    if facts.member.ledger.kind != "absent" or facts.member.promise != Promise():
        # An etcd that has lost its data must not restart an existing ledger at epoch 1.
        return "there is a ledger but etcd knows no leadership: restore etcd's data"
    return None


def next_deadline(facts: Facts) -> float | None:
    """Return when a proposal is due if no event comes before."""
    record = facts.record
    if record is None or facts.member.ledger is None or facts.member.promise is None or not facts.votes_here:
        return None
    if not rules.may_act(record.epoch, facts.member.promise):
        return None
    due, _ = claim_due(facts, record)
    if facts.leads and record.phase == "recruiting" and _waits_for_target(facts, record):
        due = min(due, _target_deadline(facts))
    return None if due == _NEVER else due


_NEVER = float("inf")


def claim_due(facts: Facts, record: Leadership) -> tuple[float, str]:
    """Return when this region begins the next epoch if no event comes before, and why; infinity for never."""
    assert facts.member.ledger is not None, "a region without a member claims nothing"
    assert facts.member.promise is not None, "a region that cannot promise claims nothing"
    if record.phase == "bootstrapping" or facts.member.ledger.kind == "absent":
        return _NEVER, ""
    if _lost_its_own(facts, record, facts.member.ledger, facts.member.promise):
        return facts.record_since, f"PostgreSQL of {facts.region} ended"
    if not steps.may_be_heard(facts, record):
        return _NEVER, ""
    if (
        facts.leads
        and facts.is_primary_of(record.epoch)
        and rules.is_epoch_over(facts.member.cancelled_wait_epoch, record.epoch)
    ):
        return facts.record_since, f"a quorum wait was cancelled in {facts.region}"
    return min(_by_suspicion(facts, record), _by_stall(facts, record))


def _lost_its_own(facts: Facts, record: Leadership, ledger: MemberState, promise: Promise) -> bool:
    if not facts.leads or record.phase == "recruiting":
        return False
    return rules.needs_new_epoch(ledger, promise, record, promoting=facts.member.promoting_epoch)


def _by_suspicion(facts: Facts, record: Leadership) -> tuple[float, str]:
    if facts.peers.leader_suspected_since is None or (record.phase == "serving" and not record.automatic):
        return _NEVER, ""
    due = facts.peers.leader_suspected_since
    if record.phase == "serving":
        due = _held_down_until(facts, facts.peers.leader_suspected_since)
    return due + _head_start_s(facts, record), f"{record.leader} is silent"


def _by_stall(facts: Facts, record: Leadership) -> tuple[float, str]:
    if record.phase == "serving" or _is_what_it_waits_for(facts, record):
        return _NEVER, ""
    established = max(record.ancestry, default=0)
    attempts = record.epoch - established - 1
    settings = facts.settings
    patience_s = min(settings.stall_s * 2 ** min(attempts, 8), settings.stall_s_max)
    return facts.record_since + patience_s + _head_start_s(facts, record), f"epoch {record.epoch} stays {record.phase}"


def _is_what_it_waits_for(facts: Facts, record: Leadership) -> bool:
    """Whether the epoch may wait for this member alone: it is being copied or rewound, or it is the primary.

    With two of three members left, the new primary's fence row waits until the other is copied. That may take longer
    than any timeout, and each new epoch would begin the copy again.
    """
    working = facts.requests.working
    rebuilds = working is not None and isinstance(working.effect, CopyLedger | RewindLedger)
    return rebuilds or facts.is_primary_of(record.epoch)


def _held_down_until(facts: Facts, now: float) -> float:
    """Delay the next failover after several in a short time (rule 17)."""
    settings = facts.settings
    if len(facts.failovers) < settings.failovers_max:
        return now
    return max(now, min(facts.failovers) + settings.hold_down_s)


def _head_start_s(facts: Facts, record: Leadership) -> float:
    # The leader or candidate of the failed epoch is the last to begin the next one.
    order = [voter for voter in record.voters if voter != record.leader]
    at = order.index(facts.region) if facts.region in order else len(order)
    return at * facts.settings.claim_stagger_s


def _first(facts: Facts) -> Leadership | None:
    if not facts.etcd.was_read or facts.region != facts.cell.voters[0] or refusal(facts) is not None:
        return None
    return Leadership(
        epoch=1,
        leader=facts.region,
        phase="bootstrapping",
        fence_id=None,
        reason="first start",
        since="",
        voters=facts.cell.voters,
    )


def _of_leader(facts: Facts, record: Leadership, now: float) -> Leadership | None:
    if record.phase == "recruiting":
        return _choice(facts, record, now)
    if record.phase != "serving":
        if facts.member.fence is None or not facts.is_primary_of(record.epoch):
            return _handed_over(facts, record)
        ancestry = rules.extended_ancestry(record.ancestry, record.epoch)
        return replace(record, phase="serving", fence_id=facts.member.fence.fence_id, ancestry=ancestry, since="")
    if not facts.is_primary_of(record.epoch):
        return None
    if facts.switchover is not None:
        order, announced = facts.switchover.order, handover.announcement(facts.switchover)
        promised = rules.may_hand_over(record, order.region, announced=announced)
        return None if promised else _announcement(order, record)
    if record.succession is not None:
        # The switchover failed, and this region still leads: withdraw the announcement.
        return replace(record, succession=None, since="")
    return _resized(facts, record)


def _resized(facts: Facts, record: Leadership) -> Leadership | None:
    """The record with one voter more or fewer, after the quorum of these voters is in force."""
    voters = steps.asked_voters(facts, record)
    if voters != record.voters and not rules.may_resize(facts.etcd.revision, facts.etcd.unsettled_revision):
        # Rewrite the record unchanged: a pending swap then fails its comparison.
        return replace(record, since="")
    if voters != record.voters and facts.member.quorum == steps.standbys_of(facts.region, voters):
        # The new quorum is in force and a commit has passed under it. Only now may an election freeze these voters.
        joining = tuple(region for region in record.joining if region not in voters)
        return replace(record, voters=voters, joining=joining, since="")
    return None


def _choice(facts: Facts, record: Leadership, now: float) -> Leadership | None:
    given = steps.votes(facts, record)
    if not rules.enough_votes(given, record) or (_waits_for_target(facts, record) and now < _target_deadline(facts)):
        return None
    chosen = steps.choose(given, record, facts.peers.suspected)
    return replace(record, leader=chosen, phase="promoting", ancestry=given[chosen].ancestry, since="")


def _waits_for_target(facts: Facts, record: Leadership) -> bool:
    """Whether only the vote of the region that an operator wants is missing for the choice."""
    given, target = steps.votes(facts, record), record.target
    can_vote = target in record.voters and target not in given and target not in facts.peers.suspected
    return can_vote and rules.enough_votes(given, record)


def _target_deadline(facts: Facts) -> float:
    return facts.record_since + facts.settings.target_s_max


def _announcement(order: Order, record: Leadership) -> Leadership:
    """The record that announces the successor; the leader still accepts writes under it."""
    target = order.region
    assert target is not None, "a switch names its region"
    return replace(record, succession=Succession(region=target, reason=f"switch to {target}: {order.by}"), since="")


def _handed_over(facts: Facts, record: Leadership) -> Leadership | None:
    """The record of the epoch that a release has begun, if etcd does not have it yet."""
    assert facts.etcd.record is not None, "a release without a record in etcd"
    return record if facts.etcd.record.epoch < record.epoch else None


def _claim(facts: Facts, record: Leadership, now: float) -> Leadership | None:
    due, reason = claim_due(facts, record)
    if now < due:
        return None
    # While automatic failover is paused, a leader whose PostgreSQL ended becomes the leader again.
    stays = record.leader == facts.region and not record.automatic
    return _next_epoch(record, leader=facts.region, target=facts.region if stays else None, reason=reason)


def _next_epoch(record: Leadership, *, leader: RegionName, target: RegionName | None, reason: str) -> Leadership:
    return replace(
        record,
        epoch=rules.next_epoch(record),
        leader=leader,
        phase="recruiting",
        fence_id=None,
        reason=reason,
        since="",
        target=target,
        succession=None,
        handed_over_at=None,
    )

"""Tests of ``claims.py``: which record a region proposes next, and when; each condition separately."""

from dataclasses import replace
from typing import Any
from uuid import UUID

import pytest

from regions.failover import claims
from regions.failover.effects import CopyLedger, FollowLedger, LedgerEffect, RewindLedger
from regions.failover.events import FenceWritten, Gossip, MemberState, Order, Promise, Vote
from regions.failover.facts import Facts, PendingEffect
from regions.failover.handover import Announcing, Draining
from regions.failover.settings import DEFAULTS, CellRegions, Settings
from regions.identity import RegionName
from regions.leadership import Leadership, Succession
from regions.position import Position
from tests.regions.failover.facts_builder import facts_of, with_facts

A, B, C, D = (RegionName(name) for name in ("us-east", "eu-west", "ap-south", "sa-east"))
SERVING = Leadership(
    epoch=2, leader=A, phase="serving", fence_id=UUID(int=2), reason="", since="noon", voters=(A, B, C), ancestry=(1, 2)
)
RECRUITING = replace(SERVING, epoch=3, leader=A, phase="recruiting", fence_id=None)
PROMOTING = replace(RECRUITING, phase="promoting")
NEXT = replace(SERVING, epoch=3, leader=B, phase="recruiting", fence_id=None, since="")
NEVER = float("inf")


def facts(**changes: Any) -> Facts:
    """Return the facts of the agent of B, which follows A and suspects no region."""
    fields: dict[str, Any] = {
        "region": B,
        "cell": CellRegions(voters=(A, B, C), regions=(A, B, C, D)),
        "settings": DEFAULTS,
        "last_ticket": 1,
        "started": True,
        "promise": Promise(epoch=2, lineage=2),
        "ledger": MemberState(kind="following", epoch=2),
        "record": SERVING,
        "record_since": 50.0,
        "was_read": True,
        "etcd_record": SERVING,
        "revision": 4,
        "unsettled_revision": 0,
    }
    return facts_of(**{**fields, **changes})


def suspecting(**changes: Any) -> Facts:
    """Return the same facts, and enough regions have suspected A since 100 s."""
    return facts(**{"suspected": frozenset({A}), "leader_suspected_since": 100.0, **changes})


def leading(**changes: Any) -> Facts:
    """Return the facts of the agent of A, which leads with the quorum of the record."""
    known: dict[str, Any] = {"region": A, "ledger": MemberState(kind="primary", epoch=2), "quorum": (B, C)}
    return facts(**{**known, **changes})


def recruiting(**changes: Any) -> Facts:
    """Return the facts of the agent of A, the candidate of epoch 3 since 50 s."""
    known: dict[str, Any] = {"region": A, "record": RECRUITING, "etcd_record": RECRUITING, "promise": Promise(epoch=3)}
    return facts(**{**known, "ledger": MemberState(kind="frozen"), **changes})


def promoted(**changes: Any) -> Facts:
    """Return the facts of the agent of A, which was chosen for epoch 3 and promoted."""
    known: dict[str, Any] = {
        "record": PROMOTING,
        "etcd_record": PROMOTING,
        "promise": Promise(epoch=3, lineage=3),
        "ledger": MemberState(kind="primary", epoch=3),
    }
    return leading(**{**known, **changes})


def vote(lsn: int, *, epoch: int = 3, fence: int = 2) -> Vote:
    return Vote(epoch=epoch, position=Position(fence, lsn), ancestry=(1, fence))


def votes(**given: Vote | None) -> dict[RegionName, Gossip]:
    names = {"us": A, "eu": B, "ap": C}
    return {names[name]: Gossip(epoch=3, vote=one) for name, one in given.items()}


# Regions that propose nothing.


@pytest.mark.parametrize(
    "changes",
    [
        {"ledger": None},
        {"promise": None},
        {"promise": Promise(epoch=3, lineage=2)},
        {"region": D},
        {"record": replace(SERVING, voters=(A, C, D))},
    ],
    ids=[
        "no member",
        "the promise cannot be read",
        "the promise is above the epoch",
        "view-only",
        "removed as a voter",
    ],
)
def test_a_region_that_may_not_begin_an_epoch_proposes_nothing_and_has_no_deadline(changes: dict[str, Any]) -> None:
    known = suspecting(**changes)
    assert claims.proposal(known, 1e9) is None
    assert claims.next_deadline(known) is None


def test_there_is_no_deadline_without_a_record() -> None:
    assert claims.next_deadline(facts(record=None, etcd_record=None)) is None


# A new cell.


def creating_cell(**changes: Any) -> Facts:
    """Return the facts of the agent of A, which has no data, after etcd answered that it has no record."""
    known: dict[str, Any] = {"region": A, "record": None, "etcd_record": None, "ledger": MemberState(kind="absent")}
    return facts(**{**known, "promise": Promise(), **changes})


def test_the_first_voter_of_a_new_cell_begins_its_first_epoch() -> None:
    assert claims.proposal(creating_cell(), 0.0) == Leadership(
        epoch=1, leader=A, phase="bootstrapping", fence_id=None, reason="first start", since="", voters=(A, B, C)
    )


LOST = "there is a ledger but etcd knows no leadership: restore etcd's data"


@pytest.mark.parametrize(
    ("changes", "refusal"),
    [
        ({"was_read": False}, None),
        ({"region": B}, None),
        ({"ledger": None}, None),
        ({"promise": None}, None),
        ({"ledger": MemberState(kind="stopped")}, LOST),
        ({"promise": Promise(epoch=1)}, LOST),
        ({"ledger": MemberState(kind="following", epoch=1), "promise": Promise(epoch=1, lineage=1)}, LOST),
        ({"ledger": MemberState(kind="stopped"), "was_read": False}, None),
    ],
    ids=[
        "etcd was not read",
        "another voter",
        "no member",
        "the promise cannot be read",
        "data exist",
        "a promise exists",
        "data and a promise exist",
        "data exist, and etcd was not read",
    ],
)
def test_only_the_first_voter_begins_a_cell_and_existing_data_without_a_record_are_refused(
    changes: dict[str, Any], refusal: str | None
) -> None:
    known = creating_cell(**changes)
    assert claims.proposal(known, 0.0) is None
    assert claims.refusal(known) == refusal


def test_a_region_takes_part_if_there_is_a_record_or_no_data() -> None:
    assert claims.refusal(creating_cell()) is None
    assert claims.refusal(facts()) is None
    assert claims.refusal(facts(ledger=MemberState(kind="absent"), promise=Promise())) is None


# When a region begins the next epoch.


@pytest.mark.parametrize(
    ("known", "due", "reason"),
    [
        (facts(), NEVER, ""),
        (suspecting(), 100.0, "us-east is silent"),
        (suspecting(region=C), 100.25, "us-east is silent"),
        (suspecting(record=replace(SERVING, voters=(A, C, B))), 100.25, "us-east is silent"),
        (suspecting(record=replace(SERVING, automatic=False)), NEVER, ""),
        (suspecting(record=replace(RECRUITING, automatic=False), record_since=99.0), 100.0, "us-east is silent"),
        (suspecting(suspected=frozenset({A, C})), NEVER, ""),
        (suspecting(ledger=MemberState(kind="absent")), NEVER, ""),
        (suspecting(record=replace(SERVING, phase="bootstrapping")), NEVER, ""),
    ],
    ids=[
        "no suspicion",
        "the first voter in order begins at once",
        "the second voter in order begins later",
        "the record defines the order",
        "automatic failover is paused",
        "a silent candidate is replaced while automatic failover is paused",
        "no majority is heard",
        "no data",
        "the cell is being created",
    ],
)
def test_a_region_replaces_a_silent_leader_after_its_head_start(known: Facts, due: float, reason: str) -> None:
    assert known.record is not None
    assert claims.claim_due(known, known.record) == (due, reason)
    assert claims.next_deadline(known) == (None if due == NEVER else due)


@pytest.mark.parametrize(
    ("failovers", "record", "due"),
    [
        ((), SERVING, 100.0),
        ((70.0, 80.0), SERVING, 100.0),
        ((70.0, 80.0, 90.0), SERVING, 115.0),
        ((50.0, 80.0, 90.0), SERVING, 100.0),
        ((56.0, 80.0, 90.0), SERVING, 101.0),
        ((70.0, 80.0, 90.0), RECRUITING, 100.0),
    ],
    ids=["no failover", "two", "three", "the first is 50 s old", "the first is 44 s old", "no leader serves"],
)
def test_rule_17_the_next_failover_is_delayed_after_three_within_45_s(
    failovers: tuple[float, ...], record: Leadership, due: float
) -> None:
    # The record is recent, so the epoch has not stalled.
    known = suspecting(record=record, failovers=failovers, record_since=99.0)
    assert claims.claim_due(known, record)[0] == due


@pytest.mark.parametrize(
    ("epoch", "ancestry", "seconds"),
    [(3, (1, 2), 2.0), (4, (1, 2), 4.0), (5, (1, 2), 8.0), (6, (1, 2), 16.0), (7, (1, 2), 16.0), (2, (), 4.0)],
)
def test_an_epoch_that_stays_in_one_phase_is_replaced_after_a_time_that_doubles(
    epoch: int, ancestry: tuple[int, ...], seconds: float
) -> None:
    record = replace(RECRUITING, epoch=epoch, ancestry=ancestry)
    known = facts(record=record, promise=Promise(epoch=epoch), ledger=MemberState(kind="frozen"))
    assert claims.claim_due(known, record) == (50.0 + seconds, f"epoch {epoch} stays recruiting")


def test_the_time_of_an_attempt_doubles_at_most_eight_times() -> None:
    settings = replace(DEFAULTS, stall_s=1.0, stall_s_max=1000.0)
    for epoch, seconds in ((10, 128.0), (11, 256.0), (12, 256.0)):
        record = replace(RECRUITING, epoch=epoch)
        known = facts(record=record, settings=settings, promise=Promise(epoch=epoch))
        assert claims.claim_due(known, record)[0] == 50.0 + seconds


def pending(effect: LedgerEffect) -> PendingEffect:
    return PendingEffect(ticket=1, effect=effect, until=3600.0)


@pytest.mark.parametrize(
    ("known", "due"),
    [
        (recruiting(region=B), 52.0),
        (recruiting(region=C), 52.25),
        (recruiting(), 52.5),
        (recruiting(record=replace(RECRUITING, leader=C), region=B), 52.25),
        (facts(record_since=50.0), NEVER),
        (recruiting(region=B, working=pending(FollowLedger(ticket=0, epoch=3, leader=A))), 52.0),
        (recruiting(region=B, working=pending(CopyLedger(ticket=0, epoch=3, leader=A))), NEVER),
        (recruiting(region=B, working=pending(RewindLedger(ticket=0, epoch=3, leader=A))), NEVER),
        (promoted(), NEVER),
        (promoted(ledger=MemberState(kind="frozen"), promoting_epoch=3), 52.5),
    ],
    ids=[
        "the first voter in order",
        "the second voter in order",
        "the candidate itself is last",
        "the candidate has no place in the order",
        "an epoch that serves does not stall",
        "a member with a short effect under way",
        "not a member that is being copied",
        "not a member that is being rewound",
        "not the primary, which waits for its quorum",
        "a member that is being promoted",
    ],
)
def test_a_stalled_epoch_is_replaced_by_a_region_that_it_does_not_wait_for(known: Facts, due: float) -> None:
    assert known.record is not None
    assert claims.claim_due(known, known.record)[0] == due


def test_a_claim_is_due_at_the_earlier_of_silence_and_stall() -> None:
    for agreed_at, due in ((51.0, (51.0, "us-east is silent")), (53.0, (52.0, "epoch 3 stays recruiting"))):
        known = recruiting(region=B, suspected=frozenset({A}), leader_suspected_since=agreed_at)
        assert claims.claim_due(known, RECRUITING) == due


@pytest.mark.parametrize(
    ("known", "due", "reason"),
    [
        (leading(), NEVER, ""),
        (leading(ledger=MemberState(kind="stopped")), 50.0, "PostgreSQL of us-east ended"),
        (
            leading(ledger=MemberState(kind="stopped"), suspected=frozenset({B, C})),
            50.0,
            "PostgreSQL of us-east ended",
        ),
        (promoted(ledger=MemberState(kind="frozen")), 50.0, "PostgreSQL of us-east ended"),
        (recruiting(promise=Promise(epoch=3, lineage=3)), 52.5, "epoch 3 stays recruiting"),
        (facts(ledger=MemberState(kind="stopped")), NEVER, ""),
        (leading(cancelled_wait_epoch=2), 50.0, "a quorum wait was cancelled in us-east"),
        (leading(cancelled_wait_epoch=1), NEVER, ""),
        (leading(cancelled_wait_epoch=2, suspected=frozenset({B, C})), NEVER, ""),
        (facts(cancelled_wait_epoch=2), NEVER, ""),
        (facts(cancelled_wait_epoch=2, ledger=MemberState(kind="primary", epoch=2)), NEVER, ""),
        (
            leading(cancelled_wait_epoch=2, ledger=MemberState(kind="frozen"), promise=Promise(epoch=2, lineage=1)),
            NEVER,
            "",
        ),
    ],
    ids=[
        "a leader without a failure",
        "its PostgreSQL ended",
        "its PostgreSQL ended, and no majority is heard",
        "its member may have been primary before a crash",
        "a candidate",
        "the PostgreSQL of a follower ended",
        "a quorum wait was cancelled",
        "a quorum wait of an older epoch was cancelled",
        "a quorum wait was cancelled, and no majority is heard",
        "a quorum wait was cancelled, and the region follows",
        "a quorum wait was cancelled on a primary that does not lead",
        "a quorum wait was cancelled, and the member is not primary",
    ],
)
def test_a_leader_begins_the_next_epoch_after_its_postgresql_ended_or_a_quorum_wait_was_cancelled(
    known: Facts, due: float, reason: str
) -> None:
    assert known.record is not None
    assert claims.claim_due(known, known.record) == (due, reason)


def test_the_next_record_keeps_fields_of_the_cell_and_clears_fields_of_the_epoch() -> None:
    last = replace(
        SERVING,
        joining=(D,),
        drained=(C,),
        target=A,
        succession=Succession(region=C, reason="switch"),
        handed_over_at=Position(1, 500),
    )
    assert claims.proposal(suspecting(record=last), 99.99) is None
    # Epoch 3 is promised to a successor, so the next number is 4.
    assert claims.proposal(suspecting(record=last), 100.0) == replace(
        NEXT, epoch=4, joining=(D,), drained=(C,), reason="us-east is silent"
    )


@pytest.mark.parametrize(
    ("region", "automatic", "target"),
    [(A, True, None), (A, False, A), (B, False, None)],
    ids=["automatic", "paused", "another region begins"],
)
def test_a_leader_whose_postgresql_ended_targets_itself_while_automatic_failover_is_paused(
    region: RegionName, automatic: bool, target: RegionName | None
) -> None:
    record = replace(PROMOTING, automatic=automatic)
    ended = promoted(record=record, ledger=MemberState(kind="stopped"))
    known = (
        ended
        if region == A
        else recruiting(region=B, record=record, suspected=frozenset({A}), leader_suspected_since=50.0)
    )
    proposed = claims.proposal(known, 60.0)
    assert proposed is not None
    assert (proposed.epoch, proposed.leader, proposed.target) == (4, region, target)


# The choice of the member to promote.


def test_a_candidate_chooses_when_a_majority_is_frozen() -> None:
    own = {"frozen_vote": vote(500)}
    assert claims.proposal(recruiting(**own), 50.0) is None
    heard = recruiting(**own, gossip=votes(eu=vote(510, fence=1)))
    assert claims.proposal(heard, 50.0) == replace(PROMOTING, leader=A, ancestry=(1, 2), since="")
    ahead = recruiting(**own, gossip=votes(ap=vote(100, fence=2), eu=vote(510)))
    assert claims.proposal(ahead, 50.0) == replace(PROMOTING, leader=B, ancestry=(1, 2), since="")
    # Of two equal positions, the one of a region that is not suspected is chosen.
    equal = recruiting(gossip=votes(eu=vote(500), ap=vote(500)), suspected=frozenset({B}))
    assert claims.proposal(equal, 50.0) == replace(PROMOTING, leader=C, ancestry=(1, 2), since="")


def test_the_record_gets_the_ancestry_of_the_chosen_member() -> None:
    other = Vote(epoch=3, position=Position(2, 600), ancestry=(2,))
    known = recruiting(frozen_vote=vote(500), gossip=votes(ap=other))
    assert claims.proposal(known, 50.0) == replace(PROMOTING, leader=C, ancestry=(2,), since="")


WITH_TARGET = replace(RECRUITING, target=C)


@pytest.mark.parametrize(
    ("changes", "waits"),
    [
        ({"gossip": votes(eu=vote(500))}, True),
        ({"gossip": votes(eu=vote(500)), "suspected": frozenset({C})}, False),
        ({"gossip": votes(eu=vote(500), ap=vote(500))}, False),
        ({"gossip": votes(eu=vote(500)), "record": replace(WITH_TARGET, target=D)}, False),
        ({"gossip": votes(eu=vote(500)), "record": RECRUITING}, False),
    ],
    ids=["the target is heard", "the target is silent", "the target has voted", "the target is no voter", "no target"],
)
def test_a_candidate_waits_two_seconds_for_the_vote_of_the_target(changes: dict[str, Any], waits: bool) -> None:
    known = recruiting(
        **{"record": WITH_TARGET, "frozen_vote": vote(500), "settings": replace(DEFAULTS, stall_s=8.0), **changes}
    )
    assert (claims.proposal(known, 51.99) is None) is waits
    assert claims.proposal(known, 52.0) is not None
    # Without a wait, the next deadline is that of the stall.
    assert claims.next_deadline(known) == (52.0 if waits else 58.5)


def test_a_candidate_without_a_majority_does_not_choose_at_the_deadline_of_the_target() -> None:
    known = recruiting(record=WITH_TARGET, frozen_vote=vote(500), settings=replace(DEFAULTS, stall_s=8.0))
    assert claims.next_deadline(known) == 58.5
    assert claims.proposal(known, 58.0) is None


def test_a_candidate_that_has_chosen_has_no_deadline_for_the_target() -> None:
    # It chose itself after two seconds without the vote of C.
    known = promoted(record=replace(PROMOTING, target=C), ledger=MemberState(kind="frozen"), promoting_epoch=3)
    voted = with_facts(known, frozen_vote=vote(500), gossip=votes(eu=vote(500)))
    assert claims.next_deadline(voted) == 52.5


def test_only_the_candidate_chooses() -> None:
    voted = votes(us=vote(500), ap=vote(500))
    known = recruiting(
        region=B, record=WITH_TARGET, frozen_vote=vote(500), gossip=voted, settings=replace(DEFAULTS, stall_s=8.0)
    )
    assert claims.proposal(known, 57.0) is None
    assert claims.next_deadline(with_facts(known, gossip=votes(us=vote(500)))) == 58.0


# Changes of the record by the leader.

FENCE = FenceWritten(ticket=1, fence_id=UUID(int=3), lsn=510, confirmed=True)


def test_a_leader_records_that_its_epoch_serves_once_its_fence_row_is_on_a_quorum() -> None:
    serving = replace(PROMOTING, phase="serving", fence_id=UUID(int=3), ancestry=(1, 2, 3), since="")
    assert claims.proposal(promoted(), 50.0) is None
    assert claims.proposal(promoted(fence=FENCE), 50.0) == serving
    first = replace(PROMOTING, epoch=1, phase="bootstrapping", ancestry=())
    begun = promoted(
        record=first, promise=Promise(epoch=1, lineage=1), fence=FENCE, ledger=MemberState(kind="primary", epoch=1)
    )
    assert claims.proposal(begun, 50.0) == replace(serving, epoch=1, ancestry=(1,))


def test_a_fence_row_is_ignored_after_its_member_stopped_being_primary() -> None:
    restarted = promoted(fence=FENCE, ledger=MemberState(kind="frozen"), promoting_epoch=3)
    assert claims.proposal(restarted, 50.0) is None


def test_a_successor_writes_the_epoch_that_a_release_began_if_etcd_does_not_have_it() -> None:
    handed_over = replace(PROMOTING, handed_over_at=Position(2, 500))
    known = promoted(record=handed_over, etcd_record=SERVING, ledger=MemberState(kind="frozen"), promoting_epoch=3)
    assert claims.proposal(known, 50.0) == handed_over
    assert claims.proposal(with_facts(known, etcd_record=handed_over), 50.0) is None
    # The same applies to the primary before its fence row is written.
    assert claims.proposal(promoted(record=handed_over, etcd_record=SERVING), 50.0) == handed_over


SWITCH = Order(ticket=1, kind="switch", region=B, by="an operator")
ANNOUNCED = replace(SERVING, succession=Succession(region=B, reason="switch to eu-west: an operator"), since="")
ANNOUNCED_C = replace(ANNOUNCED, succession=Succession(region=C, reason="switch to ap-south: an operator"))


@pytest.mark.parametrize(
    ("changes", "proposed"),
    [
        ({}, None),
        ({"handover": Announcing(order=SWITCH)}, ANNOUNCED),
        ({"handover": Announcing(order=SWITCH), "record": ANNOUNCED}, ANNOUNCED),
        ({"handover": Draining(order=SWITCH, revision=4), "record": ANNOUNCED}, None),
        ({"handover": Draining(order=replace(SWITCH, region=C), revision=4), "record": ANNOUNCED}, ANNOUNCED_C),
        ({"record": replace(ANNOUNCED, since="noon")}, replace(SERVING, since="")),
        ({"record": ANNOUNCED, "ledger": MemberState(kind="frozen"), "promise": Promise(epoch=2, lineage=1)}, None),
        (
            {
                "handover": Announcing(order=SWITCH),
                "ledger": MemberState(kind="frozen"),
                "promise": Promise(epoch=2, lineage=1),
            },
            None,
        ),
    ],
    ids=[
        "no order",
        "announces the target of the order",
        "announces it again until its own swap is confirmed",
        "its own swap is confirmed",
        "announces another target",
        "withdraws the announcement of a switchover that failed",
        "the member is not primary",
        "an order, and the member is not primary",
    ],
)
def test_a_serving_leader_announces_and_withdraws_its_successor(
    changes: dict[str, Any], proposed: Leadership | None
) -> None:
    assert claims.proposal(leading(**changes), 50.0) == proposed


JOINING = replace(SERVING, joining=(D, RegionName("af-south")))
REMOVAL = ((A, B), Order(ticket=1, kind="remove", region=C))


@pytest.mark.parametrize(
    ("changes", "proposed"),
    [
        ({}, None),
        ({"record": JOINING, "standbys": frozenset({B, C})}, None),
        ({"record": JOINING, "standbys": frozenset({D})}, None),
        (
            {"record": JOINING, "standbys": frozenset({D}), "quorum": (B, C, D)},
            replace(SERVING, voters=(A, B, C, D), joining=(RegionName("af-south"),), since=""),
        ),
        ({"resize": REMOVAL}, None),
        ({"resize": REMOVAL, "quorum": (B,)}, replace(SERVING, voters=(A, B), since="")),
        ({"resize": REMOVAL, "quorum": (B,), "unsettled_revision": 4}, replace(SERVING, since="")),
        ({"resize": REMOVAL, "quorum": (B, C), "unsettled_revision": None}, replace(SERVING, since="")),
        ({"unsettled_revision": 4}, None),
        ({"quorum": None}, None),
    ],
    ids=[
        "the same voters",
        "no joining region streams",
        "a joining region streams and is not in the quorum yet",
        "a joining region streams and is in the quorum",
        "the removed region is still in the quorum",
        "the removed region is not in the quorum",
        "a swap is unsettled: rewrites the record unchanged",
        "a previous run is unsettled: rewrites the record unchanged",
        "a swap is unsettled, and no region joins or leaves",
        "the quorum is unknown",
    ],
)
def test_a_leader_records_new_voters_after_its_quorum_is_in_force(
    changes: dict[str, Any], proposed: Leadership | None
) -> None:
    assert claims.proposal(leading(**changes), 50.0) == proposed


def test_head_start_target_wait_and_stall_come_from_the_settings() -> None:
    settings = Settings(claim_stagger_s=1.0, target_s_max=5.0, stall_s=20.0, stall_s_max=20.0)
    assert claims.claim_due(suspecting(region=C, settings=settings), SERVING)[0] == 101.0
    known = recruiting(record=WITH_TARGET, frozen_vote=vote(500), gossip=votes(eu=vote(500)), settings=settings)
    assert claims.next_deadline(known) == 55.0
    impatient = replace(settings, claim_stagger_s=0.25, stall_s=1.0)
    assert claims.next_deadline(replace(known, settings=impatient)) == 51.5

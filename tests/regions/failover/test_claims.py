"""What the record should become next, and when: each condition of ``claims.py`` by itself."""

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
from tests.regions.failover.knowledge import facts_of, with_facts

A, B, C, D = (RegionName(name) for name in ("us-east", "eu-west", "ap-south", "sa-east"))
SERVING = Leadership(
    epoch=2, leader=A, phase="serving", fence_id=UUID(int=2), reason="", since="noon", voters=(A, B, C), ancestry=(1, 2)
)
RECRUITING = replace(SERVING, epoch=3, leader=A, phase="recruiting", fence_id=None)
PROMOTING = replace(RECRUITING, phase="promoting")
NEXT = replace(SERVING, epoch=3, leader=B, phase="recruiting", fence_id=None, since="")
NEVER = float("inf")


def facts(**changes: Any) -> Facts:
    """What the agent of B knows: it follows A, and suspects nobody."""
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
    """The same, and it agrees with others since 100 s that A is silent."""
    return facts(**{"suspected": frozenset({A}), "leader_suspected_since": 100.0, **changes})


def leading(**changes: Any) -> Facts:
    """A leads, and its quorum is that of the record."""
    known: dict[str, Any] = {"region": A, "ledger": MemberState(kind="primary", epoch=2), "quorum": (B, C)}
    return facts(**{**known, **changes})


def recruiting(**changes: Any) -> Facts:
    """A is the candidate of epoch 3 since 50 s."""
    known: dict[str, Any] = {"region": A, "record": RECRUITING, "etcd_record": RECRUITING, "promise": Promise(epoch=3)}
    return facts(**{**known, "ledger": MemberState(kind="frozen"), **changes})


def promoted(**changes: Any) -> Facts:
    """A was chosen for epoch 3 and promoted."""
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


# Who proposes nothing.


@pytest.mark.parametrize(
    "changes",
    [
        {"ledger": None},
        {"promise": None},
        {"promise": Promise(epoch=3, lineage=2)},
        {"region": D},
        {"record": replace(SERVING, voters=(A, C, D))},
    ],
    ids=["without a member", "without a promise that can be read", "after a later promise", "no voter", "no more"],
)
def test_who_may_not_begin_an_epoch_proposes_nothing_and_waits_for_no_time(changes: dict[str, Any]) -> None:
    known = suspecting(**changes)
    assert claims.proposal(known, 1e9) is None
    assert claims.next_deadline(known) is None


def test_without_a_record_there_is_no_time_to_wait_for() -> None:
    assert claims.next_deadline(facts(record=None, etcd_record=None)) is None


# A new cell.


def beginning(**changes: Any) -> Facts:
    """A has asked etcd, which has no record, and has no data."""
    known: dict[str, Any] = {"region": A, "record": None, "etcd_record": None, "ledger": MemberState(kind="absent")}
    return facts(**{**known, "promise": Promise(), **changes})


def test_the_first_voter_of_a_new_cell_begins_its_first_epoch() -> None:
    assert claims.proposal(beginning(), 0.0) == Leadership(
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
        "no promise that can be read",
        "data",
        "a promise",
        "both",
        "data, and etcd was not read",
    ],
)
def test_nobody_else_begins_a_cell_and_who_has_a_ledger_says_that_etcd_has_lost_its_data(
    changes: dict[str, Any], refusal: str | None
) -> None:
    known = beginning(**changes)
    assert claims.proposal(known, 0.0) is None
    assert claims.refusal(known) == refusal


def test_a_ledger_beside_a_record_is_no_reason_to_refuse() -> None:
    assert claims.refusal(beginning()) is None
    assert claims.refusal(facts()) is None
    assert claims.refusal(facts(ledger=MemberState(kind="absent"), promise=Promise())) is None


# When the next epoch is begun.


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
        "not without a suspicion",
        "at once by the first in the order of voters",
        "later by the second",
        "the order is that of the record",
        "not while automatic failover is paused",
        "a candidate that is silent is replaced all the same",
        "not when no majority is heard",
        "not without data",
        "not before a cell was begun",
    ],
)
def test_a_silent_leader_is_replaced(known: Facts, due: float, reason: str) -> None:
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
    ids=["no failover", "two", "three", "the first is long ago", "the first is almost long ago", "nobody serves"],
)
def test_rule_17_after_three_failovers_within_45_s_the_next_one_waits(
    failovers: tuple[float, ...], record: Leadership, due: float
) -> None:
    # The record is new, so that it has not stalled.
    known = suspecting(record=record, failovers=failovers, record_since=99.0)
    assert claims.claim_due(known, record)[0] == due


@pytest.mark.parametrize(
    ("epoch", "ancestry", "seconds"),
    [(3, (1, 2), 2.0), (4, (1, 2), 4.0), (5, (1, 2), 8.0), (6, (1, 2), 16.0), (7, (1, 2), 16.0), (2, (), 4.0)],
)
def test_an_epoch_that_stays_in_one_phase_is_replaced_and_each_attempt_has_twice_the_time(
    epoch: int, ancestry: tuple[int, ...], seconds: float
) -> None:
    record = replace(RECRUITING, epoch=epoch, ancestry=ancestry)
    known = facts(record=record, promise=Promise(epoch=epoch), ledger=MemberState(kind="frozen"))
    assert claims.claim_due(known, record) == (50.0 + seconds, f"epoch {epoch} stays recruiting")


def test_the_time_of_an_attempt_does_not_double_for_ever() -> None:
    settings = replace(DEFAULTS, stall_s=1.0, stall_s_max=1000.0)
    for epoch, seconds in ((10, 128.0), (11, 256.0), (12, 256.0)):
        record = replace(RECRUITING, epoch=epoch)
        known = facts(record=record, settings=settings, promise=Promise(epoch=epoch))
        assert claims.claim_due(known, record)[0] == 50.0 + seconds


def under_way(effect: LedgerEffect) -> PendingEffect:
    return PendingEffect(ticket=1, effect=effect, until=3600.0)


@pytest.mark.parametrize(
    ("known", "due"),
    [
        (recruiting(region=B), 52.0),
        (recruiting(region=C), 52.25),
        (recruiting(), 52.5),
        (recruiting(record=replace(RECRUITING, leader=C), region=B), 52.25),
        (facts(record_since=50.0), NEVER),
        (recruiting(region=B, working=under_way(FollowLedger(ticket=0, epoch=3, leader=A))), 52.0),
        (recruiting(region=B, working=under_way(CopyLedger(ticket=0, epoch=3, leader=A))), NEVER),
        (recruiting(region=B, working=under_way(RewindLedger(ticket=0, epoch=3, leader=A))), NEVER),
        (promoted(), NEVER),
        (promoted(ledger=MemberState(kind="frozen"), promoting_epoch=3), 52.5),
    ],
    ids=[
        "by the first in the order of voters",
        "by the second",
        "by the candidate itself last",
        "the candidate has no place in the order",
        "not while it serves",
        "by one that does something short",
        "not by one that is copied for it",
        "not by one that is rewound for it",
        "not by the primary, which waits for its quorum",
        "by one that is being promoted",
    ],
)
def test_who_begins_the_epoch_after_one_that_stalls(known: Facts, due: float) -> None:
    assert known.record is not None
    assert claims.claim_due(known, known.record)[0] == due


def test_the_sooner_of_silence_and_stall_decides() -> None:
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
        (leading(cancelled_wait_epoch=2), 50.0, "a commit's wait was cut short in us-east"),
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
        "not while all is well",
        "its PostgreSQL ended",
        "also when nobody is heard",
        "it may have been primary before it crashed",
        "not while it is the candidate",
        "not for the PostgreSQL of a follower",
        "a commit's wait was cut short",
        "not for an older epoch",
        "not when no majority is heard",
        "not by a follower",
        "not by a primary that does not lead",
        "not by one that is no primary",
    ],
)
def test_a_leader_begins_the_next_epoch_itself(known: Facts, due: float, reason: str) -> None:
    assert known.record is not None
    assert claims.claim_due(known, known.record) == (due, reason)


def test_the_next_epoch_keeps_what_belongs_to_the_cell_and_nothing_of_the_epoch() -> None:
    last = replace(
        SERVING,
        joining=(D,),
        drained=(C,),
        target=A,
        succession=Succession(region=C, reason="switch"),
        handed_over_at=Position(1, 500),
    )
    assert claims.proposal(suspecting(record=last), 99.99) is None
    # The number after the one that is promised to a successor.
    assert claims.proposal(suspecting(record=last), 100.0) == replace(
        NEXT, epoch=4, joining=(D,), drained=(C,), reason="us-east is silent"
    )


@pytest.mark.parametrize(
    ("region", "automatic", "target"), [(A, True, None), (A, False, A), (B, False, None)], ids=["", "paused", "other"]
)
def test_a_leader_comes_back_where_it_was_while_automatic_failover_is_paused(
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


# The choice.


def test_a_candidate_chooses_when_a_majority_is_frozen() -> None:
    own = {"frozen_vote": vote(500)}
    assert claims.proposal(recruiting(**own), 50.0) is None
    heard = recruiting(**own, gossip=votes(eu=vote(510, fence=1)))
    assert claims.proposal(heard, 50.0) == replace(PROMOTING, leader=A, ancestry=(1, 2), since="")
    ahead = recruiting(**own, gossip=votes(ap=vote(100, fence=2), eu=vote(510)))
    assert claims.proposal(ahead, 50.0) == replace(PROMOTING, leader=B, ancestry=(1, 2), since="")
    # A tie goes to one that is heard.
    equal = recruiting(gossip=votes(eu=vote(500), ap=vote(500)), suspected=frozenset({B}))
    assert claims.proposal(equal, 50.0) == replace(PROMOTING, leader=C, ancestry=(1, 2), since="")


def test_the_chosen_member_gives_the_record_its_ancestry() -> None:
    other = Vote(epoch=3, position=Position(2, 600), ancestry=(2,))
    known = recruiting(frozen_vote=vote(500), gossip=votes(ap=other))
    assert claims.proposal(known, 50.0) == replace(PROMOTING, leader=C, ancestry=(2,), since="")


WANTED = replace(RECRUITING, target=C)


@pytest.mark.parametrize(
    ("changes", "waits"),
    [
        ({"gossip": votes(eu=vote(500))}, True),
        ({"gossip": votes(eu=vote(500)), "suspected": frozenset({C})}, False),
        ({"gossip": votes(eu=vote(500), ap=vote(500))}, False),
        ({"gossip": votes(eu=vote(500)), "record": replace(WANTED, target=D)}, False),
        ({"gossip": votes(eu=vote(500)), "record": RECRUITING}, False),
    ],
    ids=["of a voter that is heard", "not when it is silent", "not when it has voted", "no voter", "nobody is wanted"],
)
def test_a_candidate_waits_two_seconds_for_the_vote_that_an_operator_wants(
    changes: dict[str, Any], waits: bool
) -> None:
    known = recruiting(
        **{"record": WANTED, "frozen_vote": vote(500), "settings": replace(DEFAULTS, stall_s=8.0), **changes}
    )
    assert (claims.proposal(known, 51.99) is None) is waits
    assert claims.proposal(known, 52.0) is not None
    # Without a wait the next time is that of the stall.
    assert claims.next_deadline(known) == (52.0 if waits else 58.5)


def test_a_candidate_without_a_majority_waits_for_more_than_the_target() -> None:
    known = recruiting(record=WANTED, frozen_vote=vote(500), settings=replace(DEFAULTS, stall_s=8.0))
    assert claims.next_deadline(known) == 58.5
    assert claims.proposal(known, 58.0) is None


def test_who_has_chosen_waits_for_the_wanted_vote_no_more() -> None:
    # It chose itself after two seconds without the vote of C.
    known = promoted(record=replace(PROMOTING, target=C), ledger=MemberState(kind="frozen"), promoting_epoch=3)
    voted = with_facts(known, frozen_vote=vote(500), gossip=votes(eu=vote(500)))
    assert claims.next_deadline(voted) == 52.5


def test_only_the_candidate_chooses() -> None:
    voted = votes(us=vote(500), ap=vote(500))
    known = recruiting(
        region=B, record=WANTED, frozen_vote=vote(500), gossip=voted, settings=replace(DEFAULTS, stall_s=8.0)
    )
    assert claims.proposal(known, 57.0) is None
    assert claims.next_deadline(with_facts(known, gossip=votes(us=vote(500)))) == 58.0


# The leader's own changes.

FENCE = FenceWritten(ticket=1, fence_id=UUID(int=3), lsn=510, confirmed=True)


def test_a_fence_row_on_a_quorum_makes_the_epoch_serve() -> None:
    serving = replace(PROMOTING, phase="serving", fence_id=UUID(int=3), ancestry=(1, 2, 3), since="")
    assert claims.proposal(promoted(), 50.0) is None
    assert claims.proposal(promoted(fence=FENCE), 50.0) == serving
    first = replace(PROMOTING, epoch=1, phase="bootstrapping", ancestry=())
    begun = promoted(
        record=first, promise=Promise(epoch=1, lineage=1), fence=FENCE, ledger=MemberState(kind="primary", epoch=1)
    )
    assert claims.proposal(begun, 50.0) == replace(serving, epoch=1, ancestry=(1,))


def test_a_fence_row_of_a_member_that_is_no_primary_any_more_makes_nothing_serve() -> None:
    restarted = promoted(fence=FENCE, ledger=MemberState(kind="frozen"), promoting_epoch=3)
    assert claims.proposal(restarted, 50.0) is None


def test_an_epoch_that_a_release_has_begun_is_written_where_etcd_lacks_it() -> None:
    handed_over = replace(PROMOTING, handed_over_at=Position(2, 500))
    known = promoted(record=handed_over, etcd_record=SERVING, ledger=MemberState(kind="frozen"), promoting_epoch=3)
    assert claims.proposal(known, 50.0) == handed_over
    assert claims.proposal(with_facts(known, etcd_record=handed_over), 50.0) is None
    # Also when its fence row is not written yet.
    assert claims.proposal(promoted(record=handed_over, etcd_record=SERVING), 50.0) == handed_over


SWITCH = Order(ticket=1, kind="switch", region=B, by="an operator")
PROMISED = replace(SERVING, succession=Succession(region=B, reason="switch to eu-west: an operator"), since="")
PROMISED_TO_C = replace(PROMISED, succession=Succession(region=C, reason="switch to ap-south: an operator"))


@pytest.mark.parametrize(
    ("changes", "proposed"),
    [
        ({}, None),
        ({"handover": Announcing(order=SWITCH)}, PROMISED),
        ({"handover": Announcing(order=SWITCH), "record": PROMISED}, PROMISED),
        ({"handover": Draining(order=SWITCH, revision=4), "record": PROMISED}, None),
        ({"handover": Draining(order=replace(SWITCH, region=C), revision=4), "record": PROMISED}, PROMISED_TO_C),
        ({"record": replace(PROMISED, since="noon")}, replace(SERVING, since="")),
        ({"record": PROMISED, "ledger": MemberState(kind="frozen"), "promise": Promise(epoch=2, lineage=1)}, None),
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
        "nothing without an order",
        "the promise",
        "again, until a swap of its own was confirmed",
        "not after that",
        "another target",
        "the promise is taken back when the switch was given up",
        "nothing by one that is no primary",
        "nor with an order",
    ],
)
def test_a_leader_that_serves_promises_the_next_epoch(changes: dict[str, Any], proposed: Leadership | None) -> None:
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
        "nobody who joins streams",
        "not before commits wait for one more",
        "one more",
        "not before commits wait for one fewer",
        "one fewer",
        "the same again, so that a swap of which nothing is known fails",
        "also when nothing was settled",
        "nothing when nobody joins or leaves",
        "nor when the quorum is not known",
    ],
)
def test_a_leader_records_the_voters_for_whom_its_commits_wait(
    changes: dict[str, Any], proposed: Leadership | None
) -> None:
    assert claims.proposal(leading(**changes), 50.0) == proposed


def test_settings_give_the_times() -> None:
    settings = Settings(claim_stagger_s=1.0, target_s_max=5.0, stall_s=20.0, stall_s_max=20.0)
    assert claims.claim_due(suspecting(region=C, settings=settings), SERVING)[0] == 101.0
    known = recruiting(record=WANTED, frozen_vote=vote(500), gossip=votes(eu=vote(500)), settings=settings)
    assert claims.next_deadline(known) == 55.0
    impatient = replace(settings, claim_stagger_s=0.25, stall_s=1.0)
    assert claims.next_deadline(replace(known, settings=impatient)) == 51.5

"""Tests of ``steps.py``: the next step of a member, the choice, the regions heard, the voters that commits wait for.

The transcripts in tests/scenarios show the same decisions in context; here each condition is tested separately.
"""

from dataclasses import replace
from typing import Any
from uuid import UUID

import pytest

from regions.failover import steps
from regions.failover.effects import (
    CopyLedger,
    DrainLedger,
    FollowLedger,
    FreezeLedger,
    InitialiseLedger,
    PromoteLedger,
    RewindLedger,
    SetQuorum,
    StopLedger,
    WriteFence,
)
from regions.failover.events import FenceWritten, Gossip, MemberState, Order, Promise, Release, Vote
from regions.failover.facts import Facts, PendingSwap
from regions.failover.handover import Announcing, Draining, Preparing, Releasing, RestartDelayed
from regions.failover.settings import DEFAULTS, CellRegions
from regions.identity import RegionName
from regions.leadership import Leadership, Phase, Succession
from regions.position import Position
from tests.regions.failover.facts_builder import facts_of, with_facts

A, B, C, D = (RegionName(name) for name in ("us-east", "eu-west", "ap-south", "sa-east"))
SERVING = Leadership(
    epoch=2, leader=A, phase="serving", fence_id=UUID(int=2), reason="", since="", voters=(A, B, C), ancestry=(1, 2)
)
RECRUITING = replace(SERVING, epoch=3, leader=B, phase="recruiting", fence_id=None)


def facts(**changes: Any) -> Facts:
    """Return the facts of the agent of A, which leads epoch 2."""
    fields: dict[str, Any] = {
        "region": A,
        "cell": CellRegions(voters=(A, B, C), regions=(A, B, C, D)),
        "settings": DEFAULTS,
        "last_ticket": 1,
        "started": True,
        "promise": Promise(epoch=2, lineage=2),
        "ledger": MemberState(kind="primary", epoch=2),
        "record": SERVING,
        "etcd_record": SERVING,
        "revision": 4,
        "unsettled_revision": 0,
    }
    return facts_of(**{**fields, **changes})


def vote_at(epoch: int, lsn: int) -> Vote:
    return Vote(epoch=3, position=Position(epoch, lsn), ancestry=(epoch,))


# The next step of a member. Epoch 3 is the one of a candidate or a chosen leader, epoch 2 the one that serves.

PRIMARY, FROZEN, STOPPED, ABSENT = (
    MemberState(kind="primary", epoch=2),
    MemberState(kind="frozen"),
    MemberState(kind="stopped"),
    MemberState(kind="absent"),
)
SWITCH = Order(ticket=1, kind="switch", region=B)
ANNOUNCED = replace(SERVING, succession=Succession(region=B, reason=""))
CHOSEN = replace(SERVING, epoch=3, phase="promoting", fence_id=None)
HANDED_OVER = replace(CHOSEN, handed_over_at=Position(2, 500))
FENCE = FenceWritten(ticket=1, fence_id=UUID(int=3), lsn=510, confirmed=True)


def leading(**changes: Any) -> Facts:
    """Return the facts of the agent of A, which leads: its member is primary with the quorum of the record."""
    return facts(**{"quorum": (B, C), **changes})


def chosen(**changes: Any) -> Facts:
    """Return the facts of the agent of A, which was chosen: its member is frozen, and its quorum is set."""
    known: dict[str, Any] = {
        "record": CHOSEN,
        "ledger": FROZEN,
        "promise": Promise(epoch=3, lineage=3),
        "promoting_epoch": 3,
        "frozen_vote": vote_at(2, 500),
        "quorum": (B, C),
    }
    return facts(**{**known, **changes})


def promoted(**changes: Any) -> Facts:
    """Return the facts of the agent of A, which was promoted and has not written its fence row."""
    return leading(**{"record": CHOSEN, "ledger": MemberState(kind="primary", epoch=3), **changes})


def following(**changes: Any) -> Facts:
    """Return the facts of the agent of B, which follows A."""
    return facts(**{"region": B, "ledger": MemberState(kind="following", epoch=2), **changes})


def creating_cell(**changes: Any) -> Facts:
    """Return the facts of the agent of A, which creates a new cell."""
    first = replace(SERVING, epoch=1, phase="bootstrapping", fence_id=None, ancestry=())
    known: dict[str, Any] = {"record": first, "ledger": ABSENT, "promise": Promise(epoch=1, lineage=1)}
    return facts(**{**known, **changes})


@pytest.mark.parametrize(
    ("known", "step"),
    [
        pytest.param(facts(record=None), None, id="no record"),
        pytest.param(facts(promise=None), None, id="the promise cannot be read"),
        pytest.param(facts(ledger=None), None, id="no member"),
        pytest.param(facts(promise=Promise(epoch=3, lineage=2)), None, id="the promise is above the epoch"),
        pytest.param(facts(promise=Promise(), outdated=True), None, id="the promise is empty, and etcd has to be read"),
        pytest.param(facts(record=RECRUITING), StopLedger(ticket=0, epoch=3), id="a primary of an older epoch stops"),
        pytest.param(
            facts(record=replace(SERVING, leader=B)),
            StopLedger(ticket=0, epoch=2),
            id="a primary stops when another region leads its epoch",
        ),
        pytest.param(
            facts(record=RECRUITING, outdated=True),
            StopLedger(ticket=0, epoch=3),
            id="a primary of an older epoch stops before etcd is read",
        ),
        pytest.param(
            facts(region=D, ledger=MemberState(kind="following", epoch=2)),
            StopLedger(ticket=0, epoch=2),
            id="a member that neither votes nor joins stops",
        ),
        pytest.param(facts(region=D, ledger=STOPPED), None, id="a stopped member that neither votes nor joins"),
        pytest.param(facts(region=D, ledger=ABSENT), None, id="an absent member that neither votes nor joins"),
    ],
)
def test_a_member_that_may_not_take_part_stops_or_does_nothing(known: Facts, step: steps.Step) -> None:
    assert steps.ledger_step(known) == step


@pytest.mark.parametrize(
    ("known", "step"),
    [
        pytest.param(
            facts(region=C, record=RECRUITING, ledger=STOPPED),
            FreezeLedger(ticket=0, epoch=3),
            id="freezes for a candidate",
        ),
        pytest.param(
            facts(region=C, record=RECRUITING, ledger=STOPPED, outdated=True),
            FreezeLedger(ticket=0, epoch=3),
            id="freezes before etcd is read",
        ),
        pytest.param(
            facts(region=C, record=RECRUITING, ledger=FROZEN, frozen_vote=replace(vote_at(2, 500), epoch=2)),
            FreezeLedger(ticket=0, epoch=3),
            id="freezes again after a vote for another epoch",
        ),
        pytest.param(
            facts(region=C, record=RECRUITING, ledger=FROZEN, frozen_vote=vote_at(2, 500)),
            Promise(epoch=3, lineage=2),
            id="stores its promise when it is frozen",
        ),
        pytest.param(
            facts(
                region=C,
                record=RECRUITING,
                ledger=FROZEN,
                frozen_vote=vote_at(2, 500),
                promise=Promise(epoch=3, lineage=2),
            ),
            None,
            id="waits when its promise is stored",
        ),
        pytest.param(facts(region=C, record=RECRUITING, ledger=ABSENT), None, id="an absent member does not freeze"),
        pytest.param(
            facts(region=D, record=replace(RECRUITING, joining=(D,)), ledger=ABSENT),
            None,
            id="an absent member that joins does nothing",
        ),
        pytest.param(
            facts(region=D, record=replace(RECRUITING, joining=(D,)), ledger=STOPPED),
            None,
            id="a stopped member that joins does not freeze",
        ),
    ],
)
def test_a_voter_freezes_its_member_then_stores_its_promise(known: Facts, step: steps.Step) -> None:
    assert steps.ledger_step(known) == step


@pytest.mark.parametrize(
    ("known", "step"),
    [
        pytest.param(
            chosen(quorum=None),
            SetQuorum(ticket=0, epoch=3, standbys=(B, C), required=1),
            id="sets its quorum before the promotion",
        ),
        pytest.param(
            chosen(quorum=(B,)),
            SetQuorum(ticket=0, epoch=3, standbys=(B, C), required=1),
            id="sets the quorum of the record if it has another",
        ),
        pytest.param(
            chosen(promise=Promise(epoch=3, lineage=2), promoting_epoch=0),
            Promise(epoch=3, lineage=3),
            id="stores its lineage before the promotion",
        ),
        pytest.param(chosen(), PromoteLedger(ticket=0, epoch=3), id="is promoted"),
        pytest.param(chosen(outdated=True), None, id="is not promoted before etcd is read"),
        pytest.param(chosen(promoting_epoch=0), None, id="is not promoted again after a crash"),
        pytest.param(
            chosen(promise=Promise(epoch=2, lineage=2), promoting_epoch=0),
            Promise(epoch=3, lineage=2),
            id="stores its promise first if it was chosen by votes",
        ),
        pytest.param(
            chosen(promise=Promise(epoch=2, lineage=2), promoting_epoch=0, quorum=None),
            Promise(epoch=3, lineage=2),
            id="stores that promise before its quorum is set",
        ),
        pytest.param(
            chosen(ledger=STOPPED, frozen_vote=None, promise=Promise(epoch=3, lineage=2), promoting_epoch=0),
            FreezeLedger(ticket=0, epoch=3),
            id="freezes again after a restart",
        ),
        pytest.param(
            chosen(
                ledger=ABSENT, frozen_vote=None, promise=Promise(epoch=3, lineage=2), promoting_epoch=0, quorum=None
            ),
            None,
            id="is not promoted without data",
        ),
        pytest.param(
            chosen(record=HANDED_OVER, promise=Promise(epoch=2, lineage=2), promoting_epoch=0),
            Promise(epoch=3, lineage=3),
            id="a successor stores one promise",
        ),
        pytest.param(
            chosen(record=HANDED_OVER, promise=Promise(epoch=2, lineage=2), promoting_epoch=0, quorum=None),
            SetQuorum(ticket=0, epoch=3, standbys=(B, C), required=1),
            id="a successor sets its quorum before that promise",
        ),
        pytest.param(
            chosen(record=HANDED_OVER, frozen_vote=None, promise=Promise(epoch=2, lineage=2), promoting_epoch=0),
            FreezeLedger(ticket=0, epoch=3),
            id="a successor freezes first",
        ),
        pytest.param(
            chosen(
                record=HANDED_OVER, frozen_vote=vote_at(2, 499), promise=Promise(epoch=2, lineage=2), promoting_epoch=0
            ),
            None,
            id="a successor without all WAL of its predecessor is not promoted",
        ),
    ],
)
@pytest.mark.parametrize("phase", ["promoting", "establishing"])
def test_a_chosen_member_is_promoted_after_freeze_promise_quorum_and_lineage(
    known: Facts, step: steps.Step, phase: Phase
) -> None:
    assert known.record is not None
    assert steps.ledger_step(replace(known, record=replace(known.record, phase=phase))) == step


@pytest.mark.parametrize(
    ("known", "step"),
    [
        pytest.param(promoted(), WriteFence(ticket=0, epoch=3), id="writes its fence row"),
        pytest.param(promoted(outdated=True), None, id="writes no fence row before etcd is read"),
        pytest.param(promoted(fence=FENCE), None, id="writes its fence row once"),
        pytest.param(leading(), None, id="writes no fence row when the record serves"),
        pytest.param(
            leading(quorum=None), SetQuorum(ticket=0, epoch=2, standbys=(B, C), required=1), id="sets its quorum"
        ),
        pytest.param(
            leading(quorum=None, unsettled_revision=None), None, id="sets no quorum before the newest record is known"
        ),
        pytest.param(
            leading(record=replace(SERVING, joining=(D,)), standbys=frozenset({B, C, D})),
            SetQuorum(ticket=0, epoch=2, standbys=(B, C, D), required=2),
            id="adds a joining region that streams to its quorum",
        ),
        pytest.param(
            leading(
                record=replace(SERVING, joining=(D,)), standbys=frozenset({B, C, D}), handover=Announcing(order=SWITCH)
            ),
            None,
            id="keeps its quorum during a switchover",
        ),
        pytest.param(
            leading(record=ANNOUNCED, handover=Announcing(order=SWITCH)),
            None,
            id="does not drain before its announcement is confirmed",
        ),
        pytest.param(
            leading(record=ANNOUNCED, handover=Draining(order=SWITCH, revision=4)),
            DrainLedger(ticket=0, epoch=2, target=B),
            id="drains after its announcement is confirmed",
        ),
        pytest.param(
            leading(record=ANNOUNCED, handover=Releasing(order=SWITCH, revision=4, lsn=500)),
            StopLedger(ticket=0, epoch=2),
            id="stops after the drain",
        ),
    ],
)
def test_a_primary_writes_its_fence_row_sets_its_quorum_and_hands_over(known: Facts, step: steps.Step) -> None:
    assert steps.ledger_step(known) == step


@pytest.mark.parametrize(
    ("known", "step"),
    [
        pytest.param(creating_cell(), InitialiseLedger(ticket=0, epoch=1), id="initialises the ledger"),
        pytest.param(
            creating_cell(promise=Promise()), Promise(epoch=1, lineage=1), id="stores its lineage before that"
        ),
        pytest.param(
            creating_cell(ledger=MemberState(kind="primary", epoch=1)),
            SetQuorum(ticket=0, epoch=1, standbys=(B, C), required=1),
            id="sets its quorum",
        ),
        pytest.param(
            creating_cell(ledger=MemberState(kind="primary", epoch=1), unsettled_revision=None),
            None,
            id="sets no quorum before the newest record is known",
        ),
        pytest.param(
            creating_cell(ledger=MemberState(kind="primary", epoch=1), quorum=(B, C)),
            WriteFence(ticket=0, epoch=1),
            id="writes its fence row",
        ),
        pytest.param(
            creating_cell(ledger=MemberState(kind="primary", epoch=1), quorum=(B, C), fence=FENCE),
            None,
            id="does nothing after the fence row",
        ),
        pytest.param(
            creating_cell(region=B, promise=Promise()),
            Promise(epoch=1, copying=1),
            id="another voter stores the promise of a copy",
        ),
        pytest.param(
            creating_cell(region=B, promise=Promise(epoch=1, copying=1)),
            CopyLedger(ticket=0, epoch=1, leader=A),
            id="another voter copies",
        ),
    ],
)
def test_the_first_epoch_initialises_the_ledger_and_copies_it_to_the_other_voters(
    known: Facts, step: steps.Step
) -> None:
    assert steps.ledger_step(known) == step


REWOUND = Promise(epoch=2, lineage=1, floor=2)


@pytest.mark.parametrize(
    ("known", "step"),
    [
        pytest.param(following(), None, id="follows this epoch already"),
        pytest.param(
            following(ledger=MemberState(kind="following", epoch=1)),
            FollowLedger(ticket=0, epoch=2, leader=A),
            id="follows this epoch after an older one",
        ),
        pytest.param(
            following(ledger=STOPPED), FollowLedger(ticket=0, epoch=2, leader=A), id="follows when it is stopped"
        ),
        pytest.param(
            following(ledger=STOPPED, promise=Promise(epoch=2, lineage=1)),
            Promise(epoch=2, lineage=2),
            id="stores its lineage before it follows",
        ),
        pytest.param(
            following(ledger=STOPPED, diverged=True),
            Promise(epoch=2, lineage=2, floor=2),
            id="stores its floor before a rewind",
        ),
        pytest.param(
            following(ledger=STOPPED, diverged=True, promise=REWOUND),
            RewindLedger(ticket=0, epoch=2, leader=A),
            id="rewinds if it has WAL that the leader lacks",
        ),
        pytest.param(
            following(ledger=STOPPED, diverged=True, rebuilt_epoch=2, promise=REWOUND),
            Promise(epoch=2, lineage=1, floor=2, copying=2),
            id="copies if it still diverges after a rewind",
        ),
        pytest.param(
            following(ledger=STOPPED, diverged=True, promise=REWOUND, record=replace(CHOSEN, epoch=2)),
            Promise(epoch=2, lineage=1, floor=2, copying=2),
            id="copies instead while the leader has no quorum, after it stored that promise",
        ),
        pytest.param(
            following(ledger=ABSENT, promise=Promise(epoch=2, copying=2)),
            CopyLedger(ticket=0, epoch=2, leader=A),
            id="copies if it has no data",
        ),
        pytest.param(
            following(ledger=STOPPED, rebuilt_epoch=2, promise=Promise(epoch=2, copying=2)),
            Promise(epoch=2, lineage=2, copying=2),
            id="stores its lineage after a copy",
        ),
    ],
)
def test_a_follower_stores_its_promise_then_follows_rewinds_or_copies(known: Facts, step: steps.Step) -> None:
    assert steps.ledger_step(known) == step


def successor(**changes: Any) -> Facts:
    """Return the facts of the agent of B, the successor, after A reported that it has drained."""
    return following(**{"record": ANNOUNCED, "handover": Preparing(until=9.0), **changes})


@pytest.mark.parametrize(
    ("known", "step"),
    [
        pytest.param(successor(), FreezeLedger(ticket=0, epoch=2), id="freezes"),
        pytest.param(
            successor(ledger=FROZEN), SetQuorum(ticket=0, epoch=2, standbys=(A, C), required=1), id="sets its quorum"
        ),
        pytest.param(successor(ledger=FROZEN, quorum=(A, C)), None, id="waits for the release"),
        pytest.param(
            successor(ledger=FROZEN, quorum=(A, C), handover=None),
            FollowLedger(ticket=0, epoch=2, leader=A),
            id="follows again when the leader continues",
        ),
    ],
)
def test_a_successor_freezes_and_sets_its_quorum_while_the_leader_stops(known: Facts, step: steps.Step) -> None:
    assert steps.ledger_step(known) == step


@pytest.mark.parametrize(
    ("changes", "delayed"),
    [
        ({}, True),
        ({"handover": None}, False),
        ({"suspected": frozenset({A})}, False),
        ({"suspected": frozenset({C})}, False),
        ({"ledger": FROZEN}, False),
        ({"ledger": MemberState(kind="following", epoch=2)}, False),
    ],
    ids=[
        "the others are a majority",
        "the delay is over",
        "the successor is silent",
        "the third voter is silent",
        "the member is frozen",
        "the member follows",
    ],
)
def test_an_old_leader_stays_stopped_during_its_delay_while_the_others_are_a_majority(
    changes: dict[str, Any], delayed: bool
) -> None:
    # B has handed over to A.
    before = {
        "record": HANDED_OVER,
        "ledger": STOPPED,
        "promise": Promise(epoch=3, lineage=3),
        "handover": RestartDelayed(until=0.5),
    }
    step = steps.ledger_step(following(**{**before, **changes}))
    assert step == (None if delayed else FollowLedger(ticket=0, epoch=3, leader=A))


# Each criterion of the choice against all later ones. C is last in the order of voters and has only the criterion.


@pytest.mark.parametrize(
    ("given", "record", "silent"),
    [
        ({B: vote_at(2, 500), C: vote_at(2, 501)}, replace(RECRUITING, target=B, drained=(C,)), {C}),
        ({B: vote_at(1, 900), C: vote_at(2, 100)}, replace(RECRUITING, target=B, drained=(C,)), {C}),
        ({B: vote_at(2, 500), C: vote_at(2, 500)}, replace(RECRUITING, target=C, drained=(C,)), {C}),
        ({B: vote_at(2, 500), C: vote_at(2, 500)}, replace(RECRUITING, drained=(B,)), {C}),
        ({B: vote_at(2, 500), C: vote_at(2, 500)}, RECRUITING, {B}),
    ],
    ids=["more WAL", "a newer fence row", "the target of an order", "not drained", "not suspected"],
)
def test_each_criterion_of_the_choice_outweighs_all_later_ones(
    given: dict[RegionName, Vote], record: Leadership, silent: set[RegionName]
) -> None:
    assert steps.choose(given, record, frozenset(silent)) == C
    assert steps.choose(dict(reversed(given.items())), record, frozenset(silent)) == C


def test_between_equals_the_first_in_the_order_of_voters_is_chosen() -> None:
    equal = {C: vote_at(2, 500), B: vote_at(2, 500), A: vote_at(2, 500)}
    assert steps.choose(equal, RECRUITING, frozenset()) == A
    assert steps.choose(equal, replace(RECRUITING, voters=(C, B, A)), frozenset()) == C


# Regions that suspect the leader, and regions that are heard.


def heard_from(**suspects: int) -> dict[RegionName, Gossip]:
    names = {"us": A, "eu": B, "ap": C, "sa": D}
    return {names[name]: Gossip(epoch=2, suspects=epoch) for name, epoch in suspects.items()}


@pytest.mark.parametrize(
    ("changes", "count"),
    [
        ({}, 1),
        ({"gossip": heard_from(ap=2)}, 2),
        ({"gossip": heard_from(ap=2, sa=2)}, 3),
        ({"gossip": heard_from(ap=1)}, 1),
        ({"gossip": heard_from(us=2)}, 1),
        ({"gossip": heard_from(ap=2), "suspected": frozenset({A, C})}, 1),
        ({"gossip": heard_from(ap=2), "suspected": frozenset({C})}, 0),
        ({"gossip": heard_from(ap=2), "region": A}, 0),
    ],
    ids=[
        "only this region suspects it",
        "another region suspects it",
        "a region without a vote suspects it as well",
        "another region suspects the leader of an older epoch",
        "the gossip of the leader itself",
        "the other region is suspected as well",
        "this region does not suspect it",
        "this region leads",
    ],
)
def test_observers_are_the_heard_regions_that_suspect_the_leader_of_this_epoch(
    changes: dict[str, Any], count: int
) -> None:
    known = facts(**{"region": B, "suspected": frozenset({A}), **changes})
    assert steps.count_suspecting_regions(known, SERVING) == count


def test_this_region_and_all_voters_that_are_not_suspected_count_as_heard() -> None:
    assert steps.heard(facts(suspected=frozenset({A, B})), SERVING) == (A, C)
    assert steps.may_be_heard(facts(suspected=frozenset({B})), SERVING)
    assert not steps.may_be_heard(facts(suspected=frozenset({B, C})), SERVING)


# The voters that commits wait for.


def test_commits_wait_for_the_voters_of_the_record_and_for_a_joining_region_that_streams() -> None:
    joining = replace(SERVING, joining=(D,))
    assert steps.wanted_voters(facts(), SERVING) == (A, B, C)
    assert steps.wanted_voters(facts(), joining) == (A, B, C)
    assert steps.wanted_voters(facts(standbys=frozenset({D})), joining) == (A, B, C, D)
    assert steps.wanted_voters(facts(standbys=frozenset({D})), SERVING) == (A, B, C), "no order has added it"


def test_commits_wait_for_the_voters_that_remain_after_an_ordered_removal() -> None:
    removal = ((A, B), Order(ticket=1, kind="remove", region=C))
    joining = replace(SERVING, joining=(D,))
    assert steps.wanted_voters(facts(resize=removal, standbys=frozenset({D})), joining) == (A, B)


def test_commits_wait_for_the_voters_of_the_record_while_a_swap_is_unsettled() -> None:
    joining = replace(SERVING, joining=(D,))
    unsure = facts(unsettled_revision=4, standbys=frozenset({D}))
    assert steps.wanted_voters(unsure, joining) == (A, B, C)
    assert steps.asked_voters(unsure, joining) == (A, B, C, D)


def test_commits_wait_for_the_voters_of_a_pending_swap() -> None:
    swapping = PendingSwap(ticket=1, record=replace(SERVING, voters=(A, B)), until=1.0, expected=4)
    assert steps.wanted_voters(facts(swapping=swapping), SERVING) == (A, B)


@pytest.mark.parametrize(
    "changes", [{"expected": 3}, {"epoch": 1}], ids=["it expects an older record", "it is of another epoch"]
)
def test_a_pending_swap_that_can_no_longer_succeed_does_not_change_the_voters(changes: dict[str, int]) -> None:
    expected, epoch = changes.get("expected", 4), changes.get("epoch", 2)
    record = replace(SERVING, epoch=epoch, voters=(A, B))
    swapping = PendingSwap(ticket=1, record=record, until=1.0, expected=expected)
    assert steps.wanted_voters(facts(swapping=swapping), SERVING) == (A, B, C)


@pytest.mark.parametrize(
    ("changes", "needed"),
    [
        ({}, True),
        ({"unsettled_revision": 4}, False),
        ({"quorum": (B, C)}, False),
        ({"quorum": (B,)}, True),
        ({"record": None}, False),
        ({"record": replace(SERVING, leader=B)}, False),
        ({"ledger": MemberState(kind="frozen")}, False),
        ({"ledger": MemberState(kind="primary", epoch=1)}, False),
    ],
    ids=[
        "a primary with an unknown quorum",
        "etcd was read",
        "the quorum is that of the record",
        "the quorum is another",
        "no record",
        "another region leads",
        "the member is not promoted yet",
        "the member is primary of an older epoch",
    ],
)
def test_a_running_primary_needs_the_newest_record_before_it_changes_its_quorum(
    changes: dict[str, Any], needed: bool
) -> None:
    assert steps.needs_newest_record(facts(**{"unsettled_revision": None, **changes})) is needed


def test_the_first_joining_region_that_streams_is_added_next() -> None:
    joining = replace(SERVING, voters=(A, B), joining=(C, D))
    assert steps.wanted_voters(facts(standbys=frozenset({C, D})), joining) == (A, B, C)
    assert steps.wanted_voters(facts(standbys=frozenset({D})), joining) == (A, B, D)


# Votes and releases in the gossip.


def test_a_vote_is_published_until_the_epoch_serves_and_only_with_its_promise_on_disk() -> None:
    frozen = facts(
        record=RECRUITING, frozen_vote=vote_at(2, 500), promise=Promise(epoch=3), ledger=MemberState(kind="frozen")
    )
    assert steps.published_vote(frozen) == vote_at(2, 500)
    assert steps.published_vote(with_facts(frozen, promise=Promise(epoch=2))) is None
    assert steps.published_vote(with_facts(frozen, promise=None)) is None
    assert steps.published_vote(replace(frozen, record=None)) is None
    assert steps.published_vote(with_facts(frozen, frozen_vote=None)) is None
    assert steps.published_vote(replace(frozen, record=replace(RECRUITING, epoch=4))) is None
    assert steps.published_vote(replace(frozen, record=replace(RECRUITING, voters=(B, C)))) is None
    serving = replace(RECRUITING, phase="serving", fence_id=UUID(int=3))
    assert steps.published_vote(replace(frozen, record=serving)) is None


def test_the_own_vote_counts_in_addition_to_votes_in_the_gossip() -> None:
    frozen = facts(
        record=RECRUITING,
        frozen_vote=vote_at(2, 500),
        promise=Promise(epoch=3),
        gossip={B: Gossip(epoch=3, vote=vote_at(2, 400)), C: Gossip(epoch=3), D: Gossip(epoch=3, vote=vote_at(2, 900))},
    )
    assert steps.votes(frozen, RECRUITING) == {A: vote_at(2, 500), B: vote_at(2, 400)}


def test_a_release_is_published_until_etcd_has_the_next_epoch() -> None:
    release = Release(epoch=2, revision=4, successor=B, lsn=500)
    assert steps.published_release(facts(release=release)) == release
    assert steps.published_release(facts(release=release, etcd_record=None)) == release
    assert steps.published_release(facts(release=release, etcd_record=RECRUITING)) is None
    assert steps.published_release(facts()) is None

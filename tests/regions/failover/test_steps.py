"""Who is promoted, who counts as heard, and for whom commits wait, where no transcript compares them one by one."""

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
from tests.regions.failover.knowledge import facts_of, with_facts

A, B, C, D = (RegionName(name) for name in ("us-east", "eu-west", "ap-south", "sa-east"))
SERVING = Leadership(
    epoch=2, leader=A, phase="serving", fence_id=UUID(int=2), reason="", since="", voters=(A, B, C), ancestry=(1, 2)
)
RECRUITING = replace(SERVING, epoch=3, leader=B, phase="recruiting", fence_id=None)


def facts(**changes: Any) -> Facts:
    """What the agent of A knows, which leads and has all its standbys."""
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


def at(epoch: int, lsn: int) -> Vote:
    return Vote(epoch=3, position=Position(epoch, lsn), ancestry=(epoch,))


# What the member of a region needs next. An epoch is 3 in what follows a choice, and 2 in what serves.

PRIMARY, FROZEN, STOPPED, ABSENT = (
    MemberState(kind="primary", epoch=2),
    MemberState(kind="frozen"),
    MemberState(kind="stopped"),
    MemberState(kind="absent"),
)
SWITCH = Order(ticket=1, kind="switch", region=B)
PROMISED = replace(SERVING, succession=Succession(region=B, reason=""))
CHOSEN = replace(SERVING, epoch=3, phase="promoting", fence_id=None)
HANDED_OVER = replace(CHOSEN, handed_over_at=Position(2, 500))
FENCE = FenceWritten(ticket=1, fence_id=UUID(int=3), lsn=510, confirmed=True)


def leading(**changes: Any) -> Facts:
    """A leads: its member is primary, with the quorum of the record."""
    return facts(**{"quorum": (B, C), **changes})


def chosen(**changes: Any) -> Facts:
    """A was chosen: its member is frozen, its vote was published, and its quorum is set."""
    known: dict[str, Any] = {
        "record": CHOSEN,
        "ledger": FROZEN,
        "promise": Promise(epoch=3, lineage=3),
        "promoting_epoch": 3,
        "frozen_vote": at(2, 500),
        "quorum": (B, C),
    }
    return facts(**{**known, **changes})


def reigning(**changes: Any) -> Facts:
    """A was promoted, and its fence row is not written yet."""
    return leading(**{"record": CHOSEN, "ledger": MemberState(kind="primary", epoch=3), **changes})


def following(**changes: Any) -> Facts:
    """B follows A."""
    return facts(**{"region": B, "ledger": MemberState(kind="following", epoch=2), **changes})


def beginning(**changes: Any) -> Facts:
    """A begins a new cell."""
    first = replace(SERVING, epoch=1, phase="bootstrapping", fence_id=None, ancestry=())
    known: dict[str, Any] = {"record": first, "ledger": ABSENT, "promise": Promise(epoch=1, lineage=1)}
    return facts(**{**known, **changes})


@pytest.mark.parametrize(
    ("known", "step"),
    [
        pytest.param(facts(record=None), None, id="without a record nothing"),
        pytest.param(facts(promise=None), None, id="without a promise that can be read nothing"),
        pytest.param(facts(ledger=None), None, id="without a member nothing"),
        pytest.param(facts(promise=Promise(epoch=3, lineage=2)), None, id="for an epoch below the promise nothing"),
        pytest.param(facts(promise=Promise(), outdated=True), None, id="on a new disk nothing before etcd is read"),
        pytest.param(facts(record=RECRUITING), StopLedger(ticket=0, epoch=3), id="a primary of an older epoch stops"),
        pytest.param(
            facts(record=replace(SERVING, leader=B)),
            StopLedger(ticket=0, epoch=2),
            id="a primary stops when another leads its epoch",
        ),
        pytest.param(
            facts(record=RECRUITING, outdated=True), StopLedger(ticket=0, epoch=3), id="also when etcd is to be read"
        ),
        pytest.param(
            facts(region=D, ledger=MemberState(kind="following", epoch=2)),
            StopLedger(ticket=0, epoch=2),
            id="who neither votes nor joins stops",
        ),
        pytest.param(facts(region=D, ledger=STOPPED), None, id="who neither votes nor joins stays stopped"),
        pytest.param(facts(region=D, ledger=ABSENT), None, id="and gets no data"),
    ],
)
def test_who_may_not_take_part_does_nothing_but_stop(known: Facts, step: steps.Step) -> None:
    assert steps.ledger_step(known) == step


@pytest.mark.parametrize(
    ("known", "step"),
    [
        pytest.param(
            facts(region=C, record=RECRUITING, ledger=STOPPED),
            FreezeLedger(ticket=0, epoch=3),
            id="freezes when an epoch is recruited for",
        ),
        pytest.param(
            facts(region=C, record=RECRUITING, ledger=STOPPED, outdated=True),
            FreezeLedger(ticket=0, epoch=3),
            id="also when etcd is to be read",
        ),
        pytest.param(
            facts(region=C, record=RECRUITING, ledger=FROZEN, frozen_vote=replace(at(2, 500), epoch=2)),
            FreezeLedger(ticket=0, epoch=3),
            id="freezes again after it was frozen for another epoch",
        ),
        pytest.param(
            facts(region=C, record=RECRUITING, ledger=FROZEN, frozen_vote=at(2, 500)),
            Promise(epoch=3, lineage=2),
            id="promises when it is frozen",
        ),
        pytest.param(
            facts(
                region=C, record=RECRUITING, ledger=FROZEN, frozen_vote=at(2, 500), promise=Promise(epoch=3, lineage=2)
            ),
            None,
            id="waits when it has promised",
        ),
        pytest.param(facts(region=C, record=RECRUITING, ledger=ABSENT), None, id="has nothing to freeze without data"),
        pytest.param(
            facts(region=D, record=replace(RECRUITING, joining=(D,)), ledger=ABSENT),
            None,
            id="who joins has no vote and no data",
        ),
        pytest.param(
            facts(region=D, record=replace(RECRUITING, joining=(D,)), ledger=STOPPED),
            None,
            id="who joins has no vote: its copy is left alone",
        ),
    ],
)
def test_a_voter_is_frozen_then_promises(known: Facts, step: steps.Step) -> None:
    assert steps.ledger_step(known) == step


@pytest.mark.parametrize(
    ("known", "step"),
    [
        pytest.param(
            chosen(quorum=None),
            SetQuorum(ticket=0, epoch=3, standbys=(B, C), required=1),
            id="its quorum is set before it is promoted",
        ),
        pytest.param(
            chosen(quorum=(B,)),
            SetQuorum(ticket=0, epoch=3, standbys=(B, C), required=1),
            id="and is that of the record",
        ),
        pytest.param(
            chosen(promise=Promise(epoch=3, lineage=2), promoting_epoch=0),
            Promise(epoch=3, lineage=3),
            id="its lineage is on disk before it is promoted",
        ),
        pytest.param(chosen(), PromoteLedger(ticket=0, epoch=3), id="then it is promoted"),
        pytest.param(chosen(outdated=True), None, id="not before etcd is read, when that is in doubt"),
        pytest.param(chosen(promoting_epoch=0), None, id="not a second time after a crash"),
        pytest.param(
            chosen(promise=Promise(epoch=2, lineage=2), promoting_epoch=0),
            Promise(epoch=3, lineage=2),
            id="who was chosen by votes promises first",
        ),
        pytest.param(
            chosen(promise=Promise(epoch=2, lineage=2), promoting_epoch=0, quorum=None),
            Promise(epoch=3, lineage=2),
            id="before its quorum is set",
        ),
        pytest.param(
            chosen(ledger=STOPPED, frozen_vote=None, promise=Promise(epoch=3, lineage=2), promoting_epoch=0),
            FreezeLedger(ticket=0, epoch=3),
            id="one that was restarted is frozen again",
        ),
        pytest.param(
            chosen(
                ledger=ABSENT, frozen_vote=None, promise=Promise(epoch=3, lineage=2), promoting_epoch=0, quorum=None
            ),
            None,
            id="one without data is not promoted",
        ),
        pytest.param(
            chosen(record=HANDED_OVER, promise=Promise(epoch=2, lineage=2), promoting_epoch=0),
            Promise(epoch=3, lineage=3),
            id="who was handed the leadership promises once",
        ),
        pytest.param(
            chosen(record=HANDED_OVER, promise=Promise(epoch=2, lineage=2), promoting_epoch=0, quorum=None),
            SetQuorum(ticket=0, epoch=3, standbys=(B, C), required=1),
            id="after its quorum is set",
        ),
        pytest.param(
            chosen(record=HANDED_OVER, frozen_vote=None, promise=Promise(epoch=2, lineage=2), promoting_epoch=0),
            FreezeLedger(ticket=0, epoch=3),
            id="and is frozen first",
        ),
        pytest.param(
            chosen(record=HANDED_OVER, frozen_vote=at(2, 499), promise=Promise(epoch=2, lineage=2), promoting_epoch=0),
            None,
            id="and has all that its predecessor had",
        ),
    ],
)
@pytest.mark.parametrize("phase", ["promoting", "establishing"])
def test_who_was_chosen_is_promoted_when_all_is_on_disk_and_in_force(
    known: Facts, step: steps.Step, phase: Phase
) -> None:
    assert known.record is not None
    assert steps.ledger_step(replace(known, record=replace(known.record, phase=phase))) == step


@pytest.mark.parametrize(
    ("known", "step"),
    [
        pytest.param(reigning(), WriteFence(ticket=0, epoch=3), id="writes its fence row"),
        pytest.param(reigning(outdated=True), None, id="not before etcd is read, when that is in doubt"),
        pytest.param(reigning(fence=FENCE), None, id="writes it once"),
        pytest.param(leading(), None, id="needs none when it serves"),
        pytest.param(leading(quorum=None), SetQuorum(ticket=0, epoch=2, standbys=(B, C), required=1), id="its quorum"),
        pytest.param(leading(quorum=None, unsettled_revision=None), None, id="not before the newest record is known"),
        pytest.param(
            leading(record=replace(SERVING, joining=(D,)), standbys=frozenset({B, C, D})),
            SetQuorum(ticket=0, epoch=2, standbys=(B, C, D), required=2),
            id="one more that streams is waited for",
        ),
        pytest.param(
            leading(
                record=replace(SERVING, joining=(D,)), standbys=frozenset({B, C, D}), handover=Announcing(order=SWITCH)
            ),
            None,
            id="the quorum stays while a switch is under way",
        ),
        pytest.param(
            leading(record=PROMISED, handover=Announcing(order=SWITCH)),
            None,
            id="no drain before the promise is confirmed",
        ),
        pytest.param(
            leading(record=PROMISED, handover=Draining(order=SWITCH, revision=4)),
            DrainLedger(ticket=0, epoch=2, target=B),
            id="a confirmed promise is followed by the drain",
        ),
        pytest.param(
            leading(record=PROMISED, handover=Releasing(order=SWITCH, revision=4, lsn=500)),
            StopLedger(ticket=0, epoch=2),
            id="the drain by the stop",
        ),
    ],
)
def test_what_a_primary_needs_next(known: Facts, step: steps.Step) -> None:
    assert steps.ledger_step(known) == step


@pytest.mark.parametrize(
    ("known", "step"),
    [
        pytest.param(beginning(), InitialiseLedger(ticket=0, epoch=1), id="data"),
        pytest.param(beginning(promise=Promise()), Promise(epoch=1, lineage=1), id="its lineage before them"),
        pytest.param(
            beginning(ledger=MemberState(kind="primary", epoch=1)),
            SetQuorum(ticket=0, epoch=1, standbys=(B, C), required=1),
            id="a quorum",
        ),
        pytest.param(
            beginning(ledger=MemberState(kind="primary", epoch=1), unsettled_revision=None),
            None,
            id="no quorum before the newest record is known",
        ),
        pytest.param(
            beginning(ledger=MemberState(kind="primary", epoch=1), quorum=(B, C)),
            WriteFence(ticket=0, epoch=1),
            id="a fence row",
        ),
        pytest.param(
            beginning(ledger=MemberState(kind="primary", epoch=1), quorum=(B, C), fence=FENCE), None, id="nothing more"
        ),
        pytest.param(
            beginning(region=B, promise=Promise()), Promise(epoch=1, copying=1), id="others a copy, and promise it"
        ),
        pytest.param(
            beginning(region=B, promise=Promise(epoch=1, copying=1)),
            CopyLedger(ticket=0, epoch=1, leader=A),
            id="then they copy",
        ),
    ],
)
def test_what_the_first_epoch_needs_next(known: Facts, step: steps.Step) -> None:
    assert steps.ledger_step(known) == step


REWOUND = Promise(epoch=2, lineage=1, floor=2)


@pytest.mark.parametrize(
    ("known", "step"),
    [
        pytest.param(following(), None, id="one that follows this epoch needs nothing"),
        pytest.param(
            following(ledger=MemberState(kind="following", epoch=1)),
            FollowLedger(ticket=0, epoch=2, leader=A),
            id="one that follows an older epoch follows anew",
        ),
        pytest.param(
            following(ledger=STOPPED), FollowLedger(ticket=0, epoch=2, leader=A), id="one that is stopped too"
        ),
        pytest.param(
            following(ledger=STOPPED, promise=Promise(epoch=2, lineage=1)),
            Promise(epoch=2, lineage=2),
            id="its lineage is on disk first",
        ),
        pytest.param(
            following(ledger=STOPPED, diverged=True),
            Promise(epoch=2, lineage=2, floor=2),
            id="before a rewind its floor is on disk",
        ),
        pytest.param(
            following(ledger=STOPPED, diverged=True, promise=REWOUND),
            RewindLedger(ticket=0, epoch=2, leader=A),
            id="one that has more than the leader is rewound",
        ),
        pytest.param(
            following(ledger=STOPPED, diverged=True, rebuilt_epoch=2, promise=REWOUND),
            Promise(epoch=2, lineage=1, floor=2, copying=2),
            id="it is copied when the rewind left something",
        ),
        pytest.param(
            following(ledger=STOPPED, diverged=True, promise=REWOUND, record=replace(CHOSEN, epoch=2)),
            Promise(epoch=2, lineage=1, floor=2, copying=2),
            id="it is copied while the leader has no quorum, and that is on disk first",
        ),
        pytest.param(
            following(ledger=ABSENT, promise=Promise(epoch=2, copying=2)),
            CopyLedger(ticket=0, epoch=2, leader=A),
            id="one without data is copied",
        ),
        pytest.param(
            following(ledger=STOPPED, rebuilt_epoch=2, promise=Promise(epoch=2, copying=2)),
            Promise(epoch=2, lineage=2, copying=2),
            id="one that was copied follows, after its lineage is on disk",
        ),
    ],
)
def test_what_a_follower_needs_next(known: Facts, step: steps.Step) -> None:
    assert steps.ledger_step(known) == step


def successor(**changes: Any) -> Facts:
    """B, to whom A hands over, has heard that A has drained."""
    return following(**{"record": PROMISED, "handover": Preparing(until=9.0), **changes})


@pytest.mark.parametrize(
    ("known", "step"),
    [
        pytest.param(successor(), FreezeLedger(ticket=0, epoch=2), id="is frozen"),
        pytest.param(
            successor(ledger=FROZEN), SetQuorum(ticket=0, epoch=2, standbys=(A, C), required=1), id="has its quorum set"
        ),
        pytest.param(successor(ledger=FROZEN, quorum=(A, C)), None, id="and waits"),
        pytest.param(
            successor(ledger=FROZEN, quorum=(A, C), handover=None),
            FollowLedger(ticket=0, epoch=2, leader=A),
            id="follows again when the leader goes on",
        ),
    ],
)
def test_a_successor_gets_ready_while_the_leader_stops(known: Facts, step: steps.Step) -> None:
    assert steps.ledger_step(known) == step


@pytest.mark.parametrize(
    ("changes", "rests"),
    [
        ({}, True),
        ({"handover": None}, False),
        ({"suspected": frozenset({A})}, False),
        ({"suspected": frozenset({C})}, False),
        ({"ledger": FROZEN}, False),
        ({"ledger": MemberState(kind="following", epoch=2)}, False),
    ],
    ids=["the others are enough", "its time is over", "the next is silent", "a third is silent", "it runs", "follows"],
)
def test_who_has_handed_over_rests_while_the_others_are_a_quorum(changes: dict[str, Any], rests: bool) -> None:
    # B has handed over to A.
    before = {
        "record": HANDED_OVER,
        "ledger": STOPPED,
        "promise": Promise(epoch=3, lineage=3),
        "handover": RestartDelayed(until=0.5),
    }
    step = steps.ledger_step(following(**{**before, **changes}))
    assert step == (None if rests else FollowLedger(ticket=0, epoch=3, leader=A))


# What decides between two members, each wish against all that come after it. C is the last in the order of voters.


@pytest.mark.parametrize(
    ("given", "record", "silent"),
    [
        ({B: at(2, 500), C: at(2, 501)}, replace(RECRUITING, target=B, drained=(C,)), {C}),
        ({B: at(1, 900), C: at(2, 100)}, replace(RECRUITING, target=B, drained=(C,)), {C}),
        ({B: at(2, 500), C: at(2, 500)}, replace(RECRUITING, target=C, drained=(C,)), {C}),
        ({B: at(2, 500), C: at(2, 500)}, replace(RECRUITING, drained=(B,)), {C}),
        ({B: at(2, 500), C: at(2, 500)}, RECRUITING, {B}),
    ],
    ids=["more WAL", "a newer fence row", "an operator's wish", "not drained", "heard"],
)
def test_it_is_chosen_before_a_member_that_has_all_the_rest(
    given: dict[RegionName, Vote], record: Leadership, silent: set[RegionName]
) -> None:
    assert steps.choose(given, record, frozenset(silent)) == C
    assert steps.choose(dict(reversed(given.items())), record, frozenset(silent)) == C


def test_between_equals_the_first_in_the_order_of_voters_is_chosen() -> None:
    equal = {C: at(2, 500), B: at(2, 500), A: at(2, 500)}
    assert steps.choose(equal, RECRUITING, frozenset()) == A
    assert steps.choose(equal, replace(RECRUITING, voters=(C, B, A)), frozenset()) == C


# Who suspects, and who is heard.


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
        "alone",
        "another agrees",
        "one without a vote agrees as well",
        "of an epoch that is over",
        "the one that is suspected counts not",
        "nor who is silent now",
        "who does not suspect it is none of them",
        "nobody suspects himself",
    ],
)
def test_those_count_that_suspect_the_leader_of_this_epoch_and_are_heard(changes: dict[str, Any], count: int) -> None:
    known = facts(**{"region": B, "suspected": frozenset({A}), **changes})
    assert steps.observers(known, SERVING) == count


def test_a_majority_may_be_heard_with_this_region_and_those_that_are_not_suspected() -> None:
    assert steps.heard(facts(suspected=frozenset({A, B})), SERVING) == (A, C)
    assert steps.may_be_heard(facts(suspected=frozenset({B})), SERVING)
    assert not steps.may_be_heard(facts(suspected=frozenset({B, C})), SERVING)


# For whom commits wait.


def test_commits_wait_for_the_voters_of_the_record_and_for_one_that_has_joined_and_streams() -> None:
    joining = replace(SERVING, joining=(D,))
    assert steps.wanted_voters(facts(), SERVING) == (A, B, C)
    assert steps.wanted_voters(facts(), joining) == (A, B, C)
    assert steps.wanted_voters(facts(standbys=frozenset({D})), joining) == (A, B, C, D)
    assert steps.wanted_voters(facts(standbys=frozenset({D})), SERVING) == (A, B, C), "nobody has asked for it"


def test_commits_wait_for_those_that_an_order_leaves() -> None:
    removal = ((A, B), Order(ticket=1, kind="remove", region=C))
    joining = replace(SERVING, joining=(D,))
    assert steps.wanted_voters(facts(resize=removal, standbys=frozenset({D})), joining) == (A, B)


def test_commits_wait_for_the_voters_of_the_record_while_a_swap_is_in_doubt() -> None:
    joining = replace(SERVING, joining=(D,))
    unsure = facts(unsettled_revision=4, standbys=frozenset({D}))
    assert steps.wanted_voters(unsure, joining) == (A, B, C)
    assert steps.asked_voters(unsure, joining) == (A, B, C, D)


def test_commits_wait_for_the_voters_that_are_being_recorded() -> None:
    swapping = PendingSwap(ticket=1, record=replace(SERVING, voters=(A, B)), until=1.0, expected=4)
    assert steps.wanted_voters(facts(swapping=swapping), SERVING) == (A, B)


@pytest.mark.parametrize("changes", [{"expected": 3}, {"epoch": 1}], ids=["over an older record", "of another epoch"])
def test_a_swap_that_cannot_take_place_any_more_says_nothing_about_voters(changes: dict[str, int]) -> None:
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
        "a primary whose quorum is not known",
        "etcd was read",
        "its quorum is that of the record",
        "its quorum is another",
        "no record",
        "another leads",
        "not promoted yet",
        "of an older epoch",
    ],
)
def test_the_newest_record_is_needed_to_set_the_quorum_of_a_primary_that_runs(
    changes: dict[str, Any], needed: bool
) -> None:
    assert steps.needs_newest_record(facts(**{"unsettled_revision": None, **changes})) is needed


def test_of_two_that_have_joined_the_first_that_streams_is_next() -> None:
    joining = replace(SERVING, voters=(A, B), joining=(C, D))
    assert steps.wanted_voters(facts(standbys=frozenset({C, D})), joining) == (A, B, C)
    assert steps.wanted_voters(facts(standbys=frozenset({D})), joining) == (A, B, D)


# What others may hear.


def test_a_vote_is_heard_while_it_is_asked_for_and_its_promise_is_on_disk() -> None:
    frozen = facts(
        record=RECRUITING, frozen_vote=at(2, 500), promise=Promise(epoch=3), ledger=MemberState(kind="frozen")
    )
    assert steps.published_vote(frozen) == at(2, 500)
    assert steps.published_vote(with_facts(frozen, promise=Promise(epoch=2))) is None
    assert steps.published_vote(with_facts(frozen, promise=None)) is None
    assert steps.published_vote(replace(frozen, record=None)) is None
    assert steps.published_vote(with_facts(frozen, frozen_vote=None)) is None
    assert steps.published_vote(replace(frozen, record=replace(RECRUITING, epoch=4))) is None
    assert steps.published_vote(replace(frozen, record=replace(RECRUITING, voters=(B, C)))) is None
    serving = replace(RECRUITING, phase="serving", fence_id=UUID(int=3))
    assert steps.published_vote(replace(frozen, record=serving)) is None


def test_the_own_vote_counts_beside_those_that_were_heard() -> None:
    frozen = facts(
        record=RECRUITING,
        frozen_vote=at(2, 500),
        promise=Promise(epoch=3),
        gossip={B: Gossip(epoch=3, vote=at(2, 400)), C: Gossip(epoch=3), D: Gossip(epoch=3, vote=at(2, 900))},
    )
    assert steps.votes(frozen, RECRUITING) == {A: at(2, 500), B: at(2, 400)}


def test_a_release_is_heard_until_etcd_has_what_came_of_it() -> None:
    release = Release(epoch=2, revision=4, successor=B, lsn=500)
    assert steps.published_release(facts(release=release)) == release
    assert steps.published_release(facts(release=release, etcd_record=None)) == release
    assert steps.published_release(facts(release=release, etcd_record=RECRUITING)) is None
    assert steps.published_release(facts()) is None

"""Who is promoted, who counts as heard, and for whom commits wait, where no transcript compares them one by one."""

from dataclasses import replace
from typing import Any
from uuid import UUID

import pytest

from regions.failover import steps
from regions.failover.events import Gossip, LedgerFound, Order, Promise, Release, Vote
from regions.failover.facts import Facts, Swapping
from regions.failover.settings import DEFAULTS, CellRegions
from regions.identity import RegionName
from regions.leadership import Leadership
from regions.position import Position

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
        "next_ticket": 1,
        "started": True,
        "promise": Promise(epoch=2, lineage=2),
        "ledger": LedgerFound(kind="primary", epoch=2),
        "record": SERVING,
        "stored": SERVING,
        "revision": 4,
        "unsettled": 0,
    }
    return Facts(**{**fields, **changes})


def at(epoch: int, lsn: int) -> Vote:
    return Vote(epoch=3, position=Position(epoch, lsn), ancestry=(epoch,))


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
    unsure = facts(unsettled=4, standbys=frozenset({D}))
    assert steps.wanted_voters(unsure, joining) == (A, B, C)
    assert steps.asked_voters(unsure, joining) == (A, B, C, D)


def test_commits_wait_for_the_voters_that_are_being_recorded() -> None:
    swapping = Swapping(ticket=1, record=replace(SERVING, voters=(A, B)), until=1.0, expected=4)
    assert steps.wanted_voters(facts(swapping=swapping), SERVING) == (A, B)


@pytest.mark.parametrize("changes", [{"expected": 3}, {"epoch": 1}], ids=["over an older record", "of another epoch"])
def test_a_swap_that_cannot_take_place_any_more_says_nothing_about_voters(changes: dict[str, int]) -> None:
    expected, epoch = changes.get("expected", 4), changes.get("epoch", 2)
    record = replace(SERVING, epoch=epoch, voters=(A, B))
    swapping = Swapping(ticket=1, record=record, until=1.0, expected=expected)
    assert steps.wanted_voters(facts(swapping=swapping), SERVING) == (A, B, C)


@pytest.mark.parametrize(
    ("changes", "needed"),
    [
        ({}, True),
        ({"unsettled": 4}, False),
        ({"quorum": (B, C)}, False),
        ({"quorum": (B,)}, True),
        ({"record": None}, False),
        ({"record": replace(SERVING, leader=B)}, False),
        ({"ledger": LedgerFound(kind="frozen")}, False),
        ({"ledger": LedgerFound(kind="primary", epoch=1)}, False),
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
    assert steps.needs_newest_record(facts(**{"unsettled": None, **changes})) is needed


def test_of_two_that_have_joined_the_first_that_streams_is_next() -> None:
    joining = replace(SERVING, voters=(A, B), joining=(C, D))
    assert steps.wanted_voters(facts(standbys=frozenset({C, D})), joining) == (A, B, C)
    assert steps.wanted_voters(facts(standbys=frozenset({D})), joining) == (A, B, D)


# What others may hear.


def test_a_vote_is_heard_while_it_is_asked_for_and_its_promise_is_on_disk() -> None:
    frozen = facts(record=RECRUITING, frozen=at(2, 500), promise=Promise(epoch=3), ledger=LedgerFound(kind="frozen"))
    assert steps.published_vote(frozen) == at(2, 500)
    assert steps.published_vote(replace(frozen, promise=Promise(epoch=2))) is None
    assert steps.published_vote(replace(frozen, promise=None)) is None
    assert steps.published_vote(replace(frozen, record=None)) is None
    assert steps.published_vote(replace(frozen, frozen=None)) is None
    assert steps.published_vote(replace(frozen, record=replace(RECRUITING, epoch=4))) is None
    assert steps.published_vote(replace(frozen, record=replace(RECRUITING, voters=(B, C)))) is None
    serving = replace(RECRUITING, phase="serving", fence_id=UUID(int=3))
    assert steps.published_vote(replace(frozen, record=serving)) is None


def test_the_own_vote_counts_beside_those_that_were_heard() -> None:
    frozen = facts(
        record=RECRUITING,
        frozen=at(2, 500),
        promise=Promise(epoch=3),
        gossip={B: Gossip(epoch=3, vote=at(2, 400)), C: Gossip(epoch=3), D: Gossip(epoch=3, vote=at(2, 900))},
    )
    assert steps.votes(frozen, RECRUITING) == {A: at(2, 500), B: at(2, 400)}


def test_a_release_is_heard_until_etcd_has_what_came_of_it() -> None:
    release = Release(epoch=2, revision=4, successor=B, lsn=500)
    assert steps.published_release(facts(release=release)) == release
    assert steps.published_release(facts(release=release, stored=None)) == release
    assert steps.published_release(facts(release=release, stored=RECRUITING)) is None
    assert steps.published_release(facts()) is None

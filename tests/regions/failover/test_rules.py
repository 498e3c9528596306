"""Tests of the functions of ``rules.py``, one for each rule of docs/failover.md that code can break.

Some functions only pass on their argument: rules 5 and 6, a part of rule 7, and the revision that a swap expects.
``test_machine.py`` and tests/scenarios show what breaks without them.
"""

from dataclasses import replace
from itertools import combinations
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from regions.failover import rules
from regions.failover.events import LedgerFrozen, MemberState, Order, Promise, Release, Vote
from regions.identity import RegionName
from regions.leadership import ANCESTRY_MAX, Leadership, Succession
from regions.position import Position

A, B, C, D = (RegionName(name) for name in ("us-east", "eu-west", "ap-south", "sa-east"))


def record(epoch: int = 5, *, leader: RegionName = A, ancestry: tuple[int, ...] = (1, 3)) -> Leadership:
    return Leadership(
        epoch=epoch,
        leader=leader,
        phase="promoting",
        fence_id=None,
        reason="",
        since="",
        voters=(A, B, C),
        ancestry=ancestry,
    )


def vote(epoch: int = 5, *, fence: int = 3, lsn: int = 0x500) -> Vote:
    return Vote(epoch=epoch, position=Position(fence, lsn), ancestry=(fence,))


def frozen(*, receiving: bool = False, received: int | None = 0x500, replayed: int = 0x500) -> LedgerFrozen:
    return LedgerFrozen(ticket=1, receiving=receiving, received=received, replayed=replayed, ancestry=(1, 3))


@given(st.integers(min_value=1, max_value=9))
def test_rule_1_a_frozen_majority_includes_a_member_with_every_acknowledged_write(voters: int) -> None:
    names = [RegionName(f"r{number}") for number in range(voters)]
    acknowledged = rules.required_standbys(names) + 1
    for has_it in combinations(names, acknowledged):
        for is_frozen in combinations(names, rules.majority(names)):
            assert set(has_it) & set(is_frozen)


@given(st.integers(min_value=3, max_value=8))
def test_rule_1_majorities_of_cells_that_differ_by_one_voter_intersect(voters: int) -> None:
    fewer = [RegionName(f"r{number}") for number in range(voters)]
    more = [*fewer, RegionName("one-more")]
    for one, other in ((fewer, more), (more, fewer)):
        for has_it in combinations(one, rules.required_standbys(one) + 1):
            for is_frozen in combinations(other, rules.majority(other)):
                assert set(has_it) & set(is_frozen)


def test_rule_1_voters_do_not_change_while_an_unanswered_swap_may_still_succeed() -> None:
    assert rules.may_resize(7, 0)
    assert rules.may_resize(8, 7), "the record has a newer revision, so the swap fails"
    assert not rules.may_resize(7, 7)
    assert not rules.may_resize(7, None), "a previous run may have requested a swap that expects any revision"


def test_rule_1_a_primary_keeps_its_quorum_until_the_newest_record_is_known() -> None:
    assert rules.may_set_quorum(0)
    assert rules.may_set_quorum(7)
    assert not rules.may_set_quorum(None)


def test_rule_1_only_a_linearizable_read_shows_the_newest_record() -> None:
    assert rules.shows_newest(linearizable=True)
    assert not rules.shows_newest(linearizable=False)


def test_rule_1_two_votes_of_three_are_enough_and_one_is_not() -> None:
    assert rules.enough_votes({A: vote(), C: vote()}, record())
    assert not rules.enough_votes({C: vote()}, record())


def test_rule_1_only_votes_of_voters_for_this_epoch_count() -> None:
    given_votes = {A: vote(), B: vote(4), D: vote()}
    assert rules.counted_votes(given_votes, record()) == {A: vote()}


def test_rule_2_an_agent_does_not_act_for_an_epoch_below_its_promise() -> None:
    assert rules.may_act(5, Promise(epoch=5))
    assert not rules.may_act(4, Promise(epoch=5))


def test_rule_2_a_vote_is_published_only_with_its_promise_on_disk() -> None:
    assert rules.may_publish(vote(5), Promise(epoch=5))
    assert not rules.may_publish(vote(5), Promise(epoch=4))


def test_rule_3_members_are_ordered_by_fence_row_then_lsn() -> None:
    assert rules.rank(vote(fence=3, lsn=0x100)) > rules.rank(vote(fence=1, lsn=0x900))
    assert rules.rank(vote(fence=3, lsn=0x900)) > rules.rank(vote(fence=3, lsn=0x100))


@pytest.mark.parametrize(
    ("answer", "is_frozen"),
    [
        (frozen(), True),
        (frozen(received=None), True),
        (frozen(received=0x400), True),
        (frozen(received=0x501), False),
        (frozen(receiving=True), False),
    ],
)
def test_rule_4_a_member_is_frozen_without_a_receiver_and_with_all_wal_replayed(
    answer: LedgerFrozen, *, is_frozen: bool
) -> None:
    assert rules.is_frozen(answer) == is_frozen


@pytest.mark.parametrize(("received", "lsn"), [(None, 0x500), (0x400, 0x500), (0x600, 0x600)])
def test_rule_4_the_position_is_the_greater_of_received_and_replayed(received: int | None, lsn: int) -> None:
    assert rules.frozen_position(frozen(received=received)) == Position(3, lsn)


def test_the_position_of_a_member_without_a_fence_row_has_epoch_zero() -> None:
    answer = LedgerFrozen(ticket=1, receiving=False, received=None, replayed=7, ancestry=())
    assert rules.frozen_position(answer) == Position(0, 7)


def test_rule_7_an_epoch_is_over_when_a_quorum_wait_under_it_was_cancelled() -> None:
    assert rules.is_epoch_over(5, 5)
    assert not rules.is_epoch_over(0, 5)
    assert not rules.is_epoch_over(4, 5)


def test_rule_7_a_strong_read_shows_only_what_a_quorum_has() -> None:
    assert rules.is_settled(700, 700)
    assert not rules.is_settled(701, 700)


@pytest.mark.parametrize(
    ("ledger", "lineage", "promoting", "needs"),
    [
        (MemberState(kind="frozen"), 4, 0, False),
        (MemberState(kind="frozen"), 5, 5, False),
        (MemberState(kind="frozen"), 5, 0, True),
        (MemberState(kind="stopped"), 5, 4, True),
        (MemberState(kind="primary", epoch=5), 5, 0, False),
        (MemberState(kind="primary", epoch=4), 5, 0, True),
        (MemberState(kind="following", epoch=5), 5, 0, True),
    ],
)
def test_rule_8_a_member_that_may_have_been_primary_is_not_started_again_under_the_same_epoch(
    ledger: MemberState, lineage: int, promoting: int, *, needs: bool
) -> None:
    assert rules.needs_new_epoch(ledger, Promise(epoch=5, lineage=lineage), record(), promoting=promoting) == needs


def test_rule_10_a_strong_read_is_current_only_if_etcd_names_this_region_and_its_serving_epoch() -> None:
    assert rules.proves_leadership(record(5), 5, A)
    assert not rules.proves_leadership(record(6), 5, A)
    assert not rules.proves_leadership(record(5, leader=B), 5, A)
    assert not rules.proves_leadership(record(5), 0, A)
    assert not rules.proves_leadership(None, 5, A)


@pytest.mark.parametrize(
    ("kind", "lineage", "copies"),
    [
        ("stopped", 5, False),
        ("stopped", 3, False),
        ("frozen", 1, False),
        ("stopped", 4, True),
        ("stopped", 2, True),
        ("stopped", 0, True),
        ("absent", 5, True),
    ],
)
def test_rule_11_a_member_whose_lineage_is_not_in_the_ancestry_is_copied(
    kind: str, lineage: int, *, copies: bool
) -> None:
    ledger = MemberState(kind=kind)  # pyright: ignore[reportArgumentType] - a parameter of the test
    assert rules.must_copy(ledger, Promise(epoch=5, lineage=lineage), record()) == copies


def test_rule_11_a_member_with_an_unconfirmed_copy_is_copied_again() -> None:
    ledger = MemberState(kind="stopped")
    assert rules.must_copy(ledger, Promise(epoch=5, lineage=3, copying=4), record())
    assert not rules.must_copy(ledger, Promise(epoch=5, lineage=5, copying=5), record())


def test_rule_11_the_promise_before_a_copy_names_its_epoch_and_lowers_nothing() -> None:
    assert rules.before_copy(Promise(epoch=4, lineage=4), 5) == Promise(epoch=5, lineage=4, copying=5)
    assert rules.before_copy(Promise(epoch=6, lineage=4, copying=6), 5) == Promise(epoch=6, lineage=4, copying=6)


def test_rule_12_the_promise_before_a_rewind_raises_the_floor_and_lowers_nothing() -> None:
    assert rules.before_rewind(Promise(epoch=4, lineage=4, floor=2), 5) == Promise(epoch=5, lineage=4, floor=5)
    assert rules.before_rewind(Promise(epoch=6, lineage=4, floor=6), 5) == Promise(epoch=6, lineage=4, floor=6)


def test_rule_12_a_member_is_rewound_only_after_the_epoch_serves() -> None:
    assert not rules.may_rewind(record())
    assert rules.may_rewind(replace(record(), phase="serving", fence_id=UUID(int=5)))


def test_rule_2_a_promise_is_not_below_an_earlier_one_that_may_be_on_disk() -> None:
    one, other = Promise(epoch=5, lineage=3, floor=1), Promise(epoch=4, lineage=4, copying=4)
    assert rules.joined_promise(one, other) == Promise(epoch=5, lineage=4, floor=1, copying=4)
    assert rules.joined_promise(other, one) == rules.joined_promise(one, other)


def test_rule_12_a_member_votes_only_with_the_fence_row_of_the_epoch_that_it_joined() -> None:
    durable = Promise(epoch=6, lineage=5, floor=5)
    assert not rules.may_publish(vote(6, fence=4), durable)
    assert rules.may_publish(vote(6, fence=5), durable)


ANNOUNCED = replace(
    record(), phase="serving", fence_id=UUID(int=5), since="noon", succession=Succession(region=B, reason="switch to b")
)
RELEASE = Release(epoch=5, revision=7, successor=B, lsn=0x500)


def test_rule_20_a_leader_hands_over_only_to_the_region_that_its_own_swap_announced() -> None:
    assert rules.may_hand_over(ANNOUNCED, B, announced=1)
    assert not rules.may_hand_over(ANNOUNCED, B, announced=0), "the record may be left over from an earlier order"
    assert not rules.may_hand_over(ANNOUNCED, C, announced=1), "another region is announced"
    assert not rules.may_hand_over(record(), B, announced=1), "no region is announced"


def test_rule_20_a_leader_releases_its_epoch_only_after_its_own_announcement_and_the_drain() -> None:
    switch = Order(ticket=1, kind="switch", region=B)
    assert rules.release_of(switch, ANNOUNCED, announced=7, drained=0x500) == RELEASE
    assert rules.release_of(switch, ANNOUNCED, announced=7, drained=None) is None
    assert rules.release_of(switch, ANNOUNCED, announced=0, drained=0x500) is None
    assert rules.release_of(replace(switch, region=C), ANNOUNCED, announced=7, drained=0x500) is None


def test_rule_20_a_record_and_the_release_of_its_epoch_yield_the_next_epoch() -> None:
    next_one = rules.effective_record(ANNOUNCED, 7, RELEASE)
    assert (next_one.epoch, next_one.leader, next_one.phase, next_one.target) == (6, B, "promoting", B)
    assert (next_one.fence_id, next_one.succession, next_one.since) == (None, None, "")
    assert next_one.reason == "switch to b"
    assert next_one.handed_over_at == Position(5, 0x500)
    assert rules.effective_record(ANNOUNCED, 8, RELEASE) == next_one, (
        "a later record of the epoch does not revoke the release"
    )


@pytest.mark.parametrize(
    ("known", "revision", "release"),
    [
        (ANNOUNCED, 7, None),
        (record(), 7, RELEASE),
        (ANNOUNCED, 6, RELEASE),
        (ANNOUNCED, 7, replace(RELEASE, epoch=4)),
        (ANNOUNCED, 7, replace(RELEASE, epoch=6)),
        (ANNOUNCED, 7, replace(RELEASE, successor=C)),
    ],
    ids=[
        "no release",
        "no announcement",
        "a record older than the announcement",
        "a release of an older epoch",
        "a release of a later epoch",
        "a release for another successor",
    ],
)
def test_rule_20_a_record_is_unchanged_without_a_matching_release(
    known: Leadership, revision: int, release: Release | None
) -> None:
    assert rules.effective_record(known, revision, release) == known


def test_rule_20_a_successor_that_lacks_wal_of_its_predecessor_is_not_promoted() -> None:
    handed = replace(record(), handed_over_at=Position(5, 0x500))
    assert rules.has_predecessors_wal(Position(5, 0x500), handed)
    assert not rules.has_predecessors_wal(Position(5, 0x4FF), handed)
    assert not rules.has_predecessors_wal(Position(4, 0x900), handed)
    assert rules.has_predecessors_wal(Position(4, 0x100), record()), (
        "a member chosen by votes has the greatest position"
    )


def test_a_leader_shows_life_by_newer_commits_and_other_regions_by_heartbeats() -> None:
    assert rules.is_sign_of_life(commit=6, newest=5, needs_commits=True)
    assert not rules.is_sign_of_life(commit=5, newest=5, needs_commits=True)
    assert rules.is_sign_of_life(commit=0, newest=5, needs_commits=False)


def test_an_ancestry_is_extended_at_its_end_up_to_its_bound() -> None:
    assert rules.extended_ancestry((1, 3), 5) == (1, 3, 5)
    assert rules.extended_ancestry((1, 3, 5), 5) == (1, 3, 5)
    full = tuple(range(1, ANCESTRY_MAX + 1))
    assert rules.extended_ancestry(full, 99) == (*full[1:], 99)

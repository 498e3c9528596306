"""Tests of ``violations``: it reports each violated invariant in one line, and no state that is permitted."""

from dataclasses import replace
from typing import Any
from unittest.mock import patch
from uuid import UUID

import pytest

from regions.failover import rules
from regions.failover.effects import (
    CopyLedger,
    FollowLedger,
    InitialiseLedger,
    LedgerEffect,
    PromoteLedger,
    WriteFence,
)
from regions.failover.events import FenceWritten, MemberState, Order, Promise, Vote
from regions.failover.facts import Facts, PendingEffect, PendingPromise
from regions.failover.handover import Announcing, Draining, Preparing
from regions.failover.invariants import violations
from regions.failover.settings import DEFAULTS, CellRegions
from regions.identity import RegionName
from regions.leadership import Leadership
from regions.position import Position
from tests.regions.failover.facts_builder import facts_of, with_facts

A, B = RegionName("a"), RegionName("b")
VOTERS = (A, B, RegionName("c"))
RECORD = Leadership(
    epoch=2, leader=A, phase="promoting", fence_id=None, reason="", since="", voters=VOTERS, ancestry=(1,)
)
FROZEN = Vote(epoch=2, position=Position(1, 5), ancestry=(1,))


def facts(**changes: Any) -> Facts:
    fields: dict[str, Any] = {
        "region": A,
        "cell": CellRegions(voters=VOTERS),
        "settings": DEFAULTS,
        "last_ticket": 1,
        "started": True,
        "promise": Promise(epoch=2, lineage=2),
        "ledger": MemberState(kind="primary", epoch=2),
        "record": RECORD,
    }
    return facts_of(**{**fields, **changes})


def copying(epoch: int) -> PendingEffect:
    return PendingEffect(ticket=1, effect=CopyLedger(ticket=0, epoch=epoch, leader=B), until=1.0)


def promoting(epoch: int) -> PendingEffect:
    return PendingEffect(ticket=1, effect=PromoteLedger(ticket=0, epoch=epoch), until=1.0)


FENCE = FenceWritten(ticket=1, fence_id=UUID(int=2), lsn=5, confirmed=True)
SWITCH = Order(ticket=1, kind="switch", region=B)
SERVES = replace(RECORD, phase="serving", fence_id=UUID(int=2))
SERVING = {"serving_epoch": 2, "record": SERVES}
OTHER_LEADER = "writes are accepted under epoch 2, and the record gives it to another"
TAKEN_BACK = "a promise is taken back"


def pending(effect: LedgerEffect) -> PendingEffect:
    return PendingEffect(ticket=1, effect=effect, until=1.0)


def storing(promise: Promise) -> PendingPromise:
    return PendingPromise(ticket=1, promise=promise, until=1.0)


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"serving_epoch": 2}, "writes are accepted under epoch 2, and its fence row is on no quorum"),
        (
            {**SERVING, "ledger": MemberState(kind="stopped")},
            "writes are accepted under epoch 2, and the member is no primary of it",
        ),
        (
            {**SERVING, "ledger": MemberState(kind="primary", epoch=1)},
            "writes are accepted under epoch 2, and the member is no primary of it",
        ),
        ({**SERVING, "record": None}, OTHER_LEADER),
        ({**SERVING, "record": replace(SERVES, leader=B)}, OTHER_LEADER),
        ({**SERVING, "record": replace(SERVES, epoch=3)}, OTHER_LEADER),
        (
            {**SERVING, "cancelled_wait_epoch": 2},
            "writes are accepted under epoch 2, and a quorum wait under it was cancelled",
        ),
        (
            {**SERVING, "handover": Draining(order=SWITCH, revision=2)},
            "writes are accepted under epoch 2, and it is being handed over",
        ),
        ({"promise": Promise(epoch=1)}, "the member is primary of epoch 2, and epoch 1 is promised"),
        ({"working": promoting(1)}, "PromoteLedger is asked for epoch 1, below the promise"),
        ({"working": promoting(2), "promise": None}, "PromoteLedger is asked for epoch 2, below the promise"),
        (
            {"working": promoting(2), "promise": Promise(epoch=2, lineage=1)},
            "PromoteLedger of epoch 2, and no lineage would show it after a crash",
        ),
        (
            {"working": pending(InitialiseLedger(ticket=0, epoch=2)), "promise": Promise(epoch=2, lineage=1)},
            "InitialiseLedger of epoch 2, and no lineage would show it after a crash",
        ),
        (
            {"working": promoting(2), "record": replace(RECORD, leader=B)},
            "PromoteLedger of epoch 2 by a region that does not lead",
        ),
        (
            {"working": pending(WriteFence(ticket=0, epoch=2)), "record": replace(RECORD, leader=B)},
            "WriteFence of epoch 2 by a region that does not lead",
        ),
        ({"working": promoting(2), "record": None}, "PromoteLedger of epoch 2 by a region that does not lead"),
        (
            {"working": promoting(2), "record": replace(RECORD, epoch=3, leader=B)},
            "PromoteLedger of epoch 2 by a region that does not lead",
        ),
        (
            {
                "working": promoting(2),
                "record": replace(RECORD, epoch=3, leader=B),
                "storing": storing(Promise(epoch=2, lineage=2)),
            },
            "PromoteLedger of epoch 2 by a region that does not lead",
        ),
        (
            {
                "working": promoting(2),
                "record": replace(RECORD, leader=B),
                "storing": storing(Promise(epoch=3, lineage=2)),
            },
            "PromoteLedger of epoch 2 by a region that does not lead",
        ),
    ],
)
def test_a_violated_invariant_is_reported(changes: dict[str, Any], what: str) -> None:
    assert violations(facts(**changes)) == (what,)


@pytest.mark.parametrize("part", ["epoch", "lineage", "floor", "copying"])
def test_a_promise_with_one_lower_part_is_reported(part: str) -> None:
    promise = Promise(epoch=2, lineage=2, floor=2, copying=2)
    less = {"epoch": 2, "lineage": 2, "floor": 2, "copying": 2, part: 1}
    (found,) = violations(facts(promise=promise, storing=storing(Promise(**less))))
    assert found.startswith(TAKEN_BACK)
    assert violations(facts(promise=promise, storing=storing(promise))) == ()


@pytest.mark.parametrize(
    "changes",
    [
        SERVING,
        {"serving_epoch": 2, "fence": FENCE},
        {**SERVING, "cancelled_wait_epoch": 1},
        {**SERVING, "handover": Announcing(order=SWITCH)},
        {**SERVING, "handover": Preparing(until=9.0)},
        {"handover": Draining(order=SWITCH, revision=2)},
        {"promise": Promise(epoch=3, lineage=2)},
        {"ledger": MemberState(kind="following", epoch=3)},
        {"ledger": None},
        {"working": promoting(2)},
        {"working": pending(WriteFence(ticket=0, epoch=2)), "promise": Promise(epoch=2)},
        {"working": pending(InitialiseLedger(ticket=0, epoch=2)), "record": replace(RECORD, leader=B)},
        {"working": copying(1)},
        {
            "working": promoting(2),
            "record": replace(RECORD, epoch=3, leader=B),
            "storing": storing(Promise(epoch=3, lineage=2)),
        },
    ],
    ids=[
        "serves",
        "promoting, and the fence row is on a quorum",
        "a quorum wait of an older epoch was cancelled",
        "a switchover that is not announced yet",
        "a preparation as the successor",
        "a switchover that drains, and no writes are accepted",
        "a later epoch is promised",
        "the member follows an epoch above the promise",
        "a region without a member",
        "a promotion",
        "a fence row without a lineage",
        "an initialisation by a region that does not lead",
        "a copy of an older epoch",
        "a promotion of an older epoch, while the promise of the newer one is being written",
    ],
)
def test_a_permitted_state_is_not_reported(changes: dict[str, Any]) -> None:
    assert violations(facts(**changes)) == ()


@pytest.mark.parametrize(
    ("promise", "what"),
    [
        (Promise(epoch=1), "a vote for epoch 2 is published, and epoch 1 is promised"),
        (Promise(epoch=2, floor=2), "a vote at epoch 1 is published below the floor 2"),
    ],
)
def test_a_vote_published_against_rule_2_or_12_is_reported(promise: Promise, what: str) -> None:
    recruiting = replace(RECORD, phase="recruiting", leader=B)
    voting = facts(ledger=MemberState(kind="frozen"), record=recruiting, frozen_vote=FROZEN, promise=promise)
    assert not violations(voting)
    with patch.object(rules, "may_publish", return_value=True):
        assert violations(voting) == (what,)
        assert not violations(with_facts(voting, promise=Promise(epoch=2, floor=1))), (
            "a position at the floor is permitted"
        )


def test_a_serving_leader_that_stores_a_higher_promise_violates_nothing() -> None:
    serving = replace(RECORD, phase="serving", fence_id=UUID(int=2))
    growing = PendingPromise(ticket=1, promise=Promise(epoch=3, lineage=2), until=1.0)
    assert not violations(facts(serving_epoch=2, record=serving, storing=growing))


def test_a_copy_below_a_later_promise_violates_nothing() -> None:
    # The leader of epoch 3 was chosen, the promise of a copy from it was stored, and then a candidate began epoch 4.
    begun = replace(RECORD, epoch=4, phase="recruiting", leader=B)
    absent = MemberState(kind="absent")
    assert violations(facts(record=begun, ledger=absent, promise=Promise(epoch=3, copying=3), working=copying(1))) == ()


def test_a_follower_and_a_voter_violate_nothing() -> None:
    following = PendingEffect(ticket=1, effect=FollowLedger(ticket=0, epoch=2, leader=B), until=1.0)
    assert not violations(facts(ledger=MemberState(kind="stopped"), working=following))
    recruiting = replace(RECORD, phase="recruiting", leader=B)
    assert not violations(facts(ledger=MemberState(kind="frozen"), record=recruiting, frozen_vote=FROZEN))
    assert not violations(facts(promise=None, ledger=MemberState(kind="stopped")))

from dataclasses import replace
from typing import Any
from unittest.mock import patch
from uuid import UUID

import pytest

from regions.failover import rules
from regions.failover.effects import CopyLedger, FollowLedger, PromoteLedger
from regions.failover.events import LedgerFound, Order, Promise, Vote
from regions.failover.facts import Facts, Storing, Working
from regions.failover.invariants import violations
from regions.failover.settings import DEFAULTS, CellRegions
from regions.identity import RegionName
from regions.leadership import Leadership
from regions.position import Position

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
        "next_ticket": 1,
        "started": True,
        "promise": Promise(epoch=2, lineage=2),
        "ledger": LedgerFound(kind="primary", epoch=2),
        "record": RECORD,
    }
    return Facts(**{**fields, **changes})


def copying(epoch: int) -> Working:
    return Working(ticket=1, effect=CopyLedger(ticket=0, epoch=epoch, leader=B), until=1.0)


def promoting(epoch: int) -> Working:
    return Working(ticket=1, effect=PromoteLedger(ticket=0, epoch=epoch), until=1.0)


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"open_epoch": 2}, "its fence row is on no quorum"),
        (
            {"open_epoch": 2, "handover": Order(ticket=1, kind="switch", region=B), "announced": 2},
            "it is being handed over",
        ),
        ({"open_epoch": 2, "cut_short": 2}, "a wait under it was cut short"),
        ({"open_epoch": 1}, "the member is no primary of it"),
        ({"open_epoch": 2, "record": replace(RECORD, leader=B)}, "the record gives it to another"),
        ({"promise": Promise(epoch=1)}, "the member is primary of epoch 2, and epoch 1 is promised"),
        ({"working": promoting(1)}, "below the promise"),
        ({"working": promoting(2), "promise": Promise(epoch=2)}, "no lineage tells of it"),
        ({"working": promoting(2), "record": replace(RECORD, leader=B)}, "by a region that does not lead"),
        (
            {"storing": Storing(ticket=1, promise=Promise(epoch=2, lineage=1), until=1.0)},
            "a promise is taken back",
        ),
    ],
)
def test_what_must_not_be_is_named(changes: dict[str, Any], what: str) -> None:
    assert any(what in one for one in violations(facts(**changes)))


@pytest.mark.parametrize(
    ("promise", "what"),
    [
        (Promise(epoch=1), "a vote for epoch 2 is published, and epoch 1 is promised"),
        (Promise(epoch=2, floor=2), "a vote at epoch 1 is published below the floor 2"),
    ],
)
def test_a_vote_that_a_broken_rule_lets_through_is_named(promise: Promise, what: str) -> None:
    recruiting = replace(RECORD, phase="recruiting", leader=B)
    voting = facts(ledger=LedgerFound(kind="frozen"), record=recruiting, frozen=FROZEN, promise=promise)
    assert not violations(voting)
    with patch.object(rules, "may_publish", return_value=True):
        assert violations(voting) == (what,)


def test_all_is_well_with_a_leader_that_serves_and_one_that_makes_its_promise_grow() -> None:
    serving = replace(RECORD, phase="serving", fence_id=UUID(int=2))
    growing = Storing(ticket=1, promise=Promise(epoch=3, lineage=2), until=1.0)
    assert not violations(facts(open_epoch=2, record=serving, storing=growing))


def test_all_is_well_with_a_copy_that_a_promise_overtook() -> None:
    # The next leader was chosen, another copy was promised, and then the next candidate began.
    begun = replace(RECORD, epoch=4, phase="recruiting", leader=B)
    absent = LedgerFound(kind="absent")
    assert violations(facts(record=begun, ledger=absent, promise=Promise(epoch=3, copying=3), working=copying(1))) == ()


def test_all_is_well_with_a_member_that_follows_and_one_that_votes() -> None:
    following = Working(ticket=1, effect=FollowLedger(ticket=0, epoch=2, leader=B), until=1.0)
    assert not violations(facts(ledger=LedgerFound(kind="stopped"), working=following))
    recruiting = replace(RECORD, phase="recruiting", leader=B)
    assert not violations(facts(ledger=LedgerFound(kind="frozen"), record=recruiting, frozen=FROZEN))
    assert not violations(facts(promise=None, ledger=LedgerFound(kind="stopped")))

"""What follows from the facts of one cell by itself."""

from dataclasses import fields
from typing import Any
from uuid import UUID

import pytest

from regions.failover.events import MemberState, Promise
from regions.failover.facts import Facts, Requests, Retry
from regions.failover.settings import DEFAULTS, CellRegions
from regions.identity import RegionName
from regions.leadership import Leadership, Phase
from tests.regions.failover.knowledge import facts_of

A, B, C = (RegionName(name) for name in ("us-east", "eu-west", "ap-south"))


def record(phase: Phase = "serving", *, epoch: int = 2, leader: RegionName = A) -> Leadership:
    return Leadership(
        epoch=epoch, leader=leader, phase=phase, fence_id=UUID(int=epoch), reason="", since="", voters=(A, B)
    )


def facts(**changes: Any) -> Facts:
    """What the agent of A knows, which leads epoch 2."""
    known: dict[str, Any] = {
        "region": A,
        "cell": CellRegions(voters=(A, B), regions=(A, B, C)),
        "settings": DEFAULTS,
        "last_ticket": 1,
        "record": record(),
        "ledger": MemberState(kind="primary", epoch=2),
    }
    return facts_of(**{**known, **changes})


def test_a_pause_is_over_when_its_time_has_come_and_its_length_is_kept_for_the_next() -> None:
    pause = Retry(at=5.0, pause_s=0.4)
    assert pause.at_time(4.9) == pause
    assert pause.at_time(5.0) == Retry(at=None, pause_s=0.4)
    assert pause.at_time(5.1) == Retry(at=None, pause_s=0.4)
    assert Retry(pause_s=0.4).at_time(9.0) == Retry(pause_s=0.4)


def test_who_leads_and_who_votes_is_in_the_record() -> None:
    assert facts().leads
    assert not facts(region=B).leads
    assert not facts(record=None).leads
    assert facts(region=B).votes_here
    assert not facts(region=C).votes_here
    assert not facts(record=None).votes_here


def test_a_member_is_primary_of_the_epoch_that_it_writes_under() -> None:
    assert facts().is_primary_of(2)
    assert not facts().is_primary_of(1)
    assert not facts(ledger=None).is_primary_of(2)
    assert not facts(ledger=MemberState(kind="following", epoch=2)).is_primary_of(2)


@pytest.mark.parametrize(
    ("changes", "commits"),
    [
        ({}, True),
        ({"serving_epoch": 2}, True),
        ({"record": record("promoting")}, False),
        ({"record": record("promoting"), "serving_epoch": 2}, True),
        ({"record": record("promoting", epoch=1), "serving_epoch": 1}, True),
        ({"record": record(leader=B)}, False),
        ({"ledger": MemberState(kind="frozen")}, False),
        ({"ledger": MemberState(kind="primary", epoch=1)}, False),
        ({"record": None, "serving_epoch": 2}, False),
        ({"cancelled_wait_epoch": 2}, False),
        ({"cancelled_wait_epoch": 2, "serving_epoch": 2}, False),
        ({"cancelled_wait_epoch": 1}, True),
    ],
    ids=[
        "a leader that serves",
        "and takes writes",
        "not before its fence row is on a quorum",
        "when it takes writes before etcd knows",
        "also in the first epoch",
        "another leads",
        "its member is no primary",
        "its member is primary of an older epoch",
        "no record",
        "a wait was cut short",
        "also while writes are open",
        "not when that was in an older epoch",
    ],
)
def test_who_brings_commits_onto_a_quorum(changes: dict[str, Any], commits: bool) -> None:
    assert facts(**changes).commits_on_quorum is commits


def test_an_agent_that_starts_has_promised_nothing_and_nothing_is_under_way() -> None:
    cell = CellRegions(voters=(A, B))
    first = Facts(region=A, cell=cell, settings=DEFAULTS, requests=Requests(last_ticket=1))
    assert first.requests.requested_promise == Promise()
    assert (first.requests.ledger_retry, first.requests.etcd_retry) == (Retry(), Retry())
    assert first.peers.gossip == {}
    # Everything else is False, 0, empty or None.
    given = {"region", "cell", "settings", "last_ticket", "requested_promise", "ledger_retry", "etcd_retry", "gossip"}
    groups = {"etcd": first.etcd, "member": first.member, "peers": first.peers, "requests": first.requests}
    parts = [first, *groups.values()]
    names = [(part, field.name) for part in parts for field in fields(part) if field.name not in given | set(groups)]
    assert len(names) > 30
    assert {name: getattr(part, name) for part, name in names if getattr(part, name)} == {}
    assert first.etcd.unsettled_revision is None, "no swap of an earlier run is known to be settled"


def test_a_snapshot_shares_no_group_with_the_facts_that_it_was_taken_from() -> None:
    known = facts()
    twin = known.snapshot()
    assert twin == known
    twin.etcd.revision, twin.member.serving_epoch, twin.peers.in_minority, twin.requests.last_ticket = 9, 9, True, 9
    left = (known.etcd.revision, known.member.serving_epoch, known.peers.in_minority, known.requests.last_ticket)
    assert left == (0, 0, False, 1)

"""Tests of the properties, the defaults and the snapshot of ``Facts``."""

from dataclasses import fields
from typing import Any
from uuid import UUID

import pytest

from regions.failover.events import MemberState, Promise
from regions.failover.facts import Facts, Requests, Retry
from regions.failover.settings import DEFAULTS, CellRegions
from regions.identity import RegionName
from regions.leadership import Leadership, Phase
from tests.regions.failover.facts_builder import facts_of

A, B, C = (RegionName(name) for name in ("us-east", "eu-west", "ap-south"))


def record(phase: Phase = "serving", *, epoch: int = 2, leader: RegionName = A) -> Leadership:
    return Leadership(
        epoch=epoch, leader=leader, phase=phase, fence_id=UUID(int=epoch), reason="", since="", voters=(A, B)
    )


def facts(**changes: Any) -> Facts:
    """Return the facts of the agent of A, which leads epoch 2."""
    known: dict[str, Any] = {
        "region": A,
        "cell": CellRegions(voters=(A, B), regions=(A, B, C)),
        "settings": DEFAULTS,
        "last_ticket": 1,
        "record": record(),
        "ledger": MemberState(kind="primary", epoch=2),
    }
    return facts_of(**{**known, **changes})


def test_a_retry_pause_ends_at_its_time_and_keeps_its_length() -> None:
    pause = Retry(at=5.0, pause_s=0.4)
    assert pause.at_time(4.9) == pause
    assert pause.at_time(5.0) == Retry(at=None, pause_s=0.4)
    assert pause.at_time(5.1) == Retry(at=None, pause_s=0.4)
    assert Retry(pause_s=0.4).at_time(9.0) == Retry(pause_s=0.4)


def test_the_record_determines_whether_the_region_leads_and_votes() -> None:
    assert facts().leads
    assert not facts(region=B).leads
    assert not facts(record=None).leads
    assert facts(region=B).votes_here
    assert not facts(region=C).votes_here
    assert not facts(record=None).votes_here


def test_a_member_is_primary_only_of_its_own_epoch() -> None:
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
        "the record serves",
        "the record serves, and the agent accepts writes",
        "promoting, and the agent accepts no writes",
        "promoting, and the agent accepts writes already",
        "promoting in the first epoch, and the agent accepts writes already",
        "another region leads",
        "the member is not primary",
        "the member is primary of an older epoch",
        "no record",
        "a quorum wait was cancelled",
        "a quorum wait was cancelled while it accepts writes",
        "a quorum wait of an older epoch was cancelled",
    ],
)
def test_a_region_commits_on_a_quorum_only_as_a_serving_leader(changes: dict[str, Any], commits: bool) -> None:
    assert facts(**changes).commits_on_quorum is commits


def test_new_facts_contain_no_promise_no_request_and_no_record() -> None:
    cell = CellRegions(voters=(A, B))
    first = Facts(region=A, cell=cell, settings=DEFAULTS, requests=Requests(last_ticket=1))
    assert first.requests.requested_promise == Promise()
    assert (first.requests.ledger_retry, first.requests.etcd_retry) == (Retry(), Retry())
    assert first.peers.gossip == {}
    # Every other field is False, 0, empty or None.
    given = {"region", "cell", "settings", "last_ticket", "requested_promise", "ledger_retry", "etcd_retry", "gossip"}
    groups = {"etcd": first.etcd, "member": first.member, "peers": first.peers, "requests": first.requests}
    parts = [first, *groups.values()]
    names = [(part, field.name) for part in parts for field in fields(part) if field.name not in given | set(groups)]
    assert len(names) > 30
    assert {name: getattr(part, name) for part, name in names if getattr(part, name)} == {}
    assert first.etcd.unsettled_revision is None, "a swap of a previous run may still be pending"


def test_a_snapshot_shares_no_group_with_its_original() -> None:
    known = facts()
    twin = known.snapshot()
    assert twin == known
    twin.etcd.revision, twin.member.serving_epoch, twin.peers.in_minority, twin.requests.last_ticket = 9, 9, True, 9
    left = (known.etcd.revision, known.member.serving_epoch, known.peers.in_minority, known.requests.last_ticket)
    assert left == (0, 0, False, 1)

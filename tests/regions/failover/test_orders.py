"""Tests of ``orders.plan``: the plan of each order, and the refusals that no transcript in tests/scenarios shows."""

from dataclasses import replace
from uuid import UUID

import pytest

from regions.failover import orders
from regions.failover.events import MemberState, Order, OrderKind, Promise
from regions.failover.facts import Facts
from regions.failover.handover import Announcing
from regions.failover.settings import DEFAULTS, CellRegions
from regions.identity import RegionName
from regions.leadership import Leadership
from tests.regions.failover.facts_builder import facts_of, with_facts

A, B, C, D, E = (RegionName(name) for name in ("us-east", "eu-west", "ap-south", "sa-east", "af-south"))
RECORD = Leadership(
    epoch=1,
    leader=A,
    phase="serving",
    fence_id=UUID(int=1),
    reason="first start",
    since="yesterday",
    voters=(A, B, C),
    ancestry=(1,),
)


def leading() -> Facts:
    """Return the facts of the agent of A, which leads with all its standbys."""
    return facts_of(
        region=A,
        cell=CellRegions(voters=(A, B, C), regions=(A, B, C, D, E)),
        settings=DEFAULTS,
        started=True,
        promise=Promise(epoch=1, lineage=1),
        ledger=MemberState(kind="primary", epoch=1),
        record=RECORD,
        revision=1,
        serving_epoch=1,
        standbys=frozenset({B, C}),
    )


def order(kind: OrderKind, region: RegionName | None = None) -> Order:
    return Order(ticket=7, kind=kind, region=region, by="an operator")


def changed(facts: Facts, **what: object) -> Facts:
    return with_facts(facts, **what)


@pytest.mark.parametrize("kind", ["switch", "add", "remove", "drain", "undrain"])
def test_an_order_for_an_unknown_region_is_refused(kind: OrderKind) -> None:
    assert orders.plan(leading(), order(kind)) == orders.Answer(refused="there is no region None")
    mars = orders.plan(leading(), order(kind, RegionName("mars")))
    assert mars == orders.Answer(refused="there is no region mars")


def test_the_regions_of_a_cell_default_to_its_voters() -> None:
    facts = changed(leading(), cell=CellRegions(voters=(A, B, C)))
    assert orders.plan(facts, order("switch", B)) == orders.HandOver()
    assert orders.plan(facts, order("drain", D)) == orders.Answer(refused="there is no region sa-east")


def test_an_order_before_the_first_record_is_refused() -> None:
    facts = changed(leading(), record=None)
    assert orders.plan(facts, order("pause")) == orders.Answer(refused="the cell has no leadership yet")


@pytest.mark.parametrize("kind", ["switch", "add", "remove"])
def test_a_region_that_does_not_lead_refuses_and_names_the_leader(kind: OrderKind) -> None:
    facts = changed(leading(), region=B)
    assert orders.plan(facts, order(kind, C)) == orders.Answer(refused="eu-west does not lead: ask us-east")


@pytest.mark.parametrize("kind", ["switch", "add", "remove"])
def test_a_leader_that_does_not_accept_writes_refuses_switch_add_and_remove(kind: OrderKind) -> None:
    facts = changed(leading(), serving_epoch=0)
    refused = "us-east does not take writes at the moment: ask again"
    assert orders.plan(facts, order(kind, C)) == orders.Answer(refused=refused)


@pytest.mark.parametrize(
    "busy", [{"handover": Announcing(order=order("switch", B))}, {"resize": ((A, B), order("remove", C))}]
)
def test_a_second_order_is_refused_while_one_is_carried_out(busy: dict[str, object]) -> None:
    facts = changed(leading(), **busy)
    assert orders.plan(facts, order("add", D)) == orders.Answer(refused="another order is being carried out")


def test_a_switch_requires_a_voter_that_is_heard_and_streams_closely() -> None:
    facts = leading()
    assert orders.plan(facts, order("switch", B)) == orders.HandOver()
    assert orders.plan(facts, order("switch", A)) == orders.Answer(refused=None)
    assert orders.plan(facts, order("switch", D)) == orders.Answer(refused="sa-east holds no ledger")
    silent = changed(facts, suspected=frozenset({B}))
    assert orders.plan(silent, order("switch", B)) == orders.Answer(refused="eu-west is silent")
    behind = changed(facts, standbys=frozenset({C}))
    lags = orders.Answer(refused="eu-west lags behind, or does not stream")
    assert orders.plan(behind, order("switch", B)) == lags


def test_pause_and_resume_change_the_record_and_are_idempotent() -> None:
    facts = leading()
    paused = replace(RECORD, automatic=False, since="")
    assert orders.plan(facts, order("pause")) == orders.Swap(record=paused)
    assert orders.plan(facts, order("resume")) == orders.Answer(refused=None)
    facts = changed(facts, record=paused)
    assert orders.plan(facts, order("pause")) == orders.Answer(refused=None)
    assert orders.plan(facts, order("resume")) == orders.Swap(record=replace(RECORD, since=""))


def test_drain_and_undrain_change_the_record_and_are_idempotent() -> None:
    facts = leading()
    assert orders.plan(facts, order("drain", D)) == orders.Answer(refused="sa-east holds no ledger")
    assert orders.plan(facts, order("drain", B)) == orders.Swap(record=replace(RECORD, drained=(B,), since=""))
    assert orders.plan(facts, order("undrain", B)) == orders.Answer(refused=None)
    facts = changed(facts, record=replace(RECORD, drained=(B,)))
    assert orders.plan(facts, order("drain", C)) == orders.Swap(record=replace(RECORD, drained=(B, C), since=""))
    facts = changed(facts, record=replace(RECORD, drained=(B, C)))
    assert orders.plan(facts, order("drain", B)) == orders.Answer(refused=None)
    assert orders.plan(facts, order("drain", C)) == orders.Answer(refused=None)
    assert orders.plan(facts, order("undrain", B)) == orders.Swap(record=replace(RECORD, drained=(C,), since=""))


def test_add_puts_a_region_into_joining_and_remove_takes_it_out() -> None:
    facts = leading()
    joining = replace(RECORD, joining=(D,), since="")
    assert orders.plan(facts, order("add", D)) == orders.Swap(record=joining)
    facts = changed(facts, record=joining)
    assert orders.plan(facts, order("add", D)) == orders.Answer(refused=None)
    assert orders.plan(facts, order("remove", D)) == orders.Swap(record=replace(RECORD, since=""))


def test_joining_regions_are_added_and_removed_independently() -> None:
    one, both = replace(RECORD, joining=(E,)), replace(RECORD, joining=(E, D))
    facts = changed(leading(), record=one)
    assert orders.plan(facts, order("add", D)) == orders.Swap(record=replace(both, since=""))
    facts = changed(leading(), record=both)
    assert orders.plan(facts, order("remove", D)) == orders.Swap(record=replace(one, since=""))


def test_a_voter_is_removed_by_changing_the_quorum_first() -> None:
    four = changed(leading(), record=replace(RECORD, voters=(A, B, C, D)))
    assert orders.plan(four, order("remove", C)) == orders.Resize(voters=(A, B, D))
    leads = orders.Answer(refused="us-east leads: switch to another region first")
    assert orders.plan(four, order("remove", A)) == leads
    fewer = orders.Answer(refused=f"a cell needs 3 voters: drain {C} instead, or add another voter first")
    assert orders.plan(leading(), order("remove", C)) == fewer
    assert orders.plan(leading(), order("remove", D)) == orders.Answer(refused=None)


@pytest.mark.parametrize("busy", [{"must_read": True}, {"swapping": object()}])
def test_an_order_is_refused_while_the_record_may_have_changed(busy: dict[str, object]) -> None:
    facts = changed(leading(), **busy)
    refused = orders.Answer(refused="the record is being written: ask again")
    assert orders.plan(facts, order("pause")) == refused
    assert orders.plan(facts, order("add", D)) == refused
    four = changed(facts, record=replace(RECORD, voters=(A, B, C, D)))
    assert orders.plan(four, order("remove", D)) == refused

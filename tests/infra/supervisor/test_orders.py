"""Tests which agent gets an order, and how the leader region is drained, with fake agents."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from infra.supervisor import orders
from infra.supervisor.environment import DeploymentContext
from infra.supervisor.errors import OrderRefused, UnknownTarget
from infra.supervisor.layout import create_folders, open_layout
from infra.supervisor.orders import give_order
from infra.supervisor.plan import Plan
from infra.supervisor.secrets import load_or_create_secrets
from infra.supervisor.supervisor import Supervisor

EAST, WEST, SOUTH = REGIONS = ("us-east", "eu-west", "ap-south")
CAFE = "cafe"


@dataclass
class Agents:
    """Fake agents that carry out every order except those that they refuse.

    Attributes:
        refused: The reasons of the next refusals, by kind and region; each is used once.
        asked: The regions whose agent was asked for its own status.
        looks: How often the status of the deployment was read.
        settles: After how many status requests a switchover has ended.
        stays: Whether the leader stays the same.
    """

    context: DeploymentContext
    leader: str = EAST
    drained: list[str] = field(default_factory=list[str])
    given: list[tuple[str, str, str]] = field(default_factory=list[tuple[str, str, str]])
    refused: dict[tuple[str, str], list[str]] = field(default_factory=dict[tuple[str, str], list[str]])
    silent: tuple[str, ...] = ()
    asked: list[str] = field(default_factory=list[str])
    looks: int = 0
    settles: int = 0
    stays: bool = False

    async def status(self) -> dict[str, Any]:
        self.looks += 1
        cell = {"leader": self.leader, "phase": "serving", "epoch": 1, "voters": list(REGIONS), "reason": "a test"}
        return {"cells": [cell | {"drained": list(self.drained), "joining": []}]}

    def answer(self, request: httpx.Request) -> httpx.Response:
        agent = next(one for one in REGIONS if self.context.plan.port(one, "agent_internal") == request.url.port)
        if agent in self.silent:
            raise httpx.ConnectError("nobody listens")
        if request.url.path == "/status":
            self.asked.append(agent)
            settled = len(self.asked) > self.settles
            return httpx.Response(200, json={"leader": self.leader, "phase": "serving" if settled else "promoting"})
        order = json.loads(request.content)
        kind, region = order["kind"], order["region"]
        self.given.append((agent, kind, region))
        reasons = self.refused.get((kind, region), [])
        if reasons:
            return httpx.Response(409, json={"detail": reasons.pop(0)})
        if kind == "drain":
            self.drained.append(region)
        if kind == "switch" and not self.stays:
            self.leader = region
        return httpx.Response(200, json={"done": True})

    async def give(self, kind: str, region: str) -> dict[str, Any]:
        async with httpx.AsyncClient(transport=httpx.MockTransport(self.answer)) as client:
            return await give_order(client, self.context, self.status, kind=kind, region=region, by="a test")


@pytest.fixture
def context(tmp_path: Path) -> DeploymentContext:
    layout = open_layout(tmp_path)
    plan = Plan(deployment="d", regions=REGIONS, view_regions=(CAFE,), port_base=20_000)
    create_folders(layout, plan.all_regions)
    return DeploymentContext(
        layout=layout, plan=plan, secrets=load_or_create_secrets(layout.secrets), postgres_bin=tmp_path, os_user=None
    )


async def test_a_drain_of_the_leader_switches_over_to_the_first_voter_that_can_lead(context: DeploymentContext) -> None:
    agents = Agents(context, refused={("switch", WEST): ["eu-west lags behind, or does not stream"]})
    cell = await agents.give("drain", EAST)
    assert (cell["leader"], cell["drained"]) == (SOUTH, [EAST])
    assert agents.given == [(EAST, "drain", EAST), (EAST, "switch", WEST), (EAST, "switch", SOUTH)]


async def test_during_a_switchover_only_the_agent_of_its_target_is_polled(context: DeploymentContext) -> None:
    agents = Agents(context, settles=3)
    cell = await agents.give("switch", WEST)
    assert (cell["leader"], cell["phase"]) == (WEST, "serving")
    assert agents.asked == [WEST] * 4
    assert agents.looks == 2, "who leads before, and what is the case after it"


async def test_a_switchover_that_ends_at_another_region_is_refused_with_its_reason(
    context: DeploymentContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(orders, "SETTLED_S_MAX", 0.0)
    agents = Agents(context, stays=True)
    with pytest.raises(OrderRefused, match=r"us-east leads: eu-west was not chosen \(a test\)"):
        await agents.give("switch", WEST)


async def test_a_drain_of_a_follower_does_not_move_the_leadership(context: DeploymentContext) -> None:
    agents = Agents(context)
    await agents.give("drain", WEST)
    assert agents.given == [(EAST, "drain", WEST)]


async def test_a_drain_retries_the_switchover_until_a_standby_is_close(context: DeploymentContext) -> None:
    lags = "it lags behind, or does not stream"
    agents = Agents(context, refused={("switch", WEST): [lags, lags], ("switch", SOUTH): [lags, lags]})
    assert (await agents.give("drain", EAST))["leader"] == WEST


async def test_a_drain_is_refused_with_the_reason_if_no_voter_can_take_over(
    context: DeploymentContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(orders, "HANDED_OVER_S_MAX", 0.0)
    agents = Agents(context, refused={("switch", one): [f"{one} is silent"] * 9 for one in (WEST, SOUTH)})
    with pytest.raises(OrderRefused, match="drained and still leads"):
        await agents.give("drain", EAST)


async def test_the_last_undrained_voter_is_not_drained_while_it_leads(context: DeploymentContext) -> None:
    agents = Agents(context, drained=[WEST, SOUTH])
    with pytest.raises(OrderRefused, match="undrain one first"):
        await agents.give("drain", EAST)
    assert agents.given == []


async def test_any_agent_accepts_a_drain_and_only_the_leader_a_change_of_voters(
    context: DeploymentContext,
) -> None:
    agents = Agents(context, silent=(EAST,))
    await agents.give("undrain", SOUTH)
    assert agents.given == [(WEST, "undrain", SOUTH)]
    for kind in ("add", "remove"):
        with pytest.raises(OrderRefused, match="agent of us-east does not answer"):
            await agents.give(kind, SOUTH)


@pytest.mark.parametrize("kind", ["switch", "drain", "undrain", "add", "remove"])
@pytest.mark.parametrize(("region", "says"), [("mars", "unknown region"), (CAFE, "cafe only reads")])
async def test_an_order_for_a_view_only_region_is_an_unknown_target(
    context: DeploymentContext, kind: str, region: str, says: str
) -> None:
    supervisor = Supervisor(context, {})
    with pytest.raises(UnknownTarget, match=says):
        await supervisor.order(kind, region, "a test")

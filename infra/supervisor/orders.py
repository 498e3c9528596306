"""Sends an operator's order to an agent that can carry it out, and reads the history of epochs.

Decides which agent gets an order. The failover core of that agent decides whether the order is allowed; this module
passes its refusal on.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

import httpx

from infra.supervisor.environment import DeploymentContext, address
from infra.supervisor.errors import OrderRefused
from infra.supervisor.status import ask

ORDER_TIMEOUT_S = 16.0  # longer than an agent takes at most to answer an order
SETTLED_S_MAX = 15.0  # a switchover between regions 80 ms apart takes one to two seconds
HANDED_OVER_S_MAX = 20.0  # no switchover of a drain starts later; the last may take as long as an agent's answer
POLL_S = 0.1

FOR_THE_LEADER = ("switch", "add", "remove")

Status = Callable[[], Awaitable[dict[str, Any]]]


async def give_order(  # noqa: PLR0913 - the parts of an order
    client: httpx.AsyncClient, context: DeploymentContext, status: Status, *, kind: str, region: str | None, by: str
) -> dict[str, Any]:
    """Carry out an order; return the cell of the status document afterwards.

    `drain` of the leader includes a switchover to the first voter that can lead. After `add` the region is still
    joining: the caller waits until its copy of the ledger is complete.

    Raises:
        OrderRefused: The order cannot be carried out; the message gives the reason.
    """
    sender = _OrderSender(client, context, status, by)
    if kind == "drain":
        assert region is not None, "a drain names its region"
        return await sender.drain(region)
    await sender.send(kind, region)
    if kind == "switch":
        assert region is not None, "a switch names its region"
        return await sender.until_led_by(region)
    cell: dict[str, Any] = (await status())["cells"][0]
    return cell


@dataclass(frozen=True, slots=True)
class _OrderSender:
    """Sends the orders of one operator, each to an agent that can carry it out."""

    client: httpx.AsyncClient
    context: DeploymentContext
    status: Status
    by: str

    async def send(self, kind: str, region: str | None) -> None:
        """Send one order to the leader's agent; if any agent can carry it out, to the first that answers.

        Raises:
            OrderRefused: The agent refuses the order, or none answers.
        """
        leader = (await self.status())["cells"][0]["leader"]
        if leader is None:
            raise OrderRefused("no agent knows who leads")
        others = [one for one in self.context.plan.regions if one != leader]
        problem = ""
        for agent in [leader] if kind in FOR_THE_LEADER else [leader, *others]:
            try:
                answer = await self.client.post(
                    f"http://{address(self.context.plan.port(agent, 'agent_internal'))}/order",
                    json={"kind": kind, "region": region, "by": self.by},
                    headers={"authorization": f"Bearer {self.context.secrets.agent}"},
                    timeout=ORDER_TIMEOUT_S,
                )
            except httpx.HTTPError as error:
                problem = f"the agent of {agent} does not answer ({type(error).__name__})"
                continue
            if answer.status_code != HTTPStatus.OK:
                raise OrderRefused(str(answer.json().get("detail", answer.status_code)))
            return
        raise OrderRefused(problem)

    async def until_led_by(self, region: str) -> dict[str, Any]:
        """Wait until a region serves as the leader; return the cell of the status document.

        Raises:
            OrderRefused: It does not serve within SETTLED_S_MAX.
        """
        await self._wait_until_leading(region, time.monotonic() + SETTLED_S_MAX)
        cell: dict[str, Any] = (await self.status())["cells"][0]
        if cell["phase"] == "serving" and cell["leader"] != region:
            raise OrderRefused(f"{cell['leader']} leads: {region} was not chosen ({cell['reason']})")
        if cell["phase"] != "serving":
            raise OrderRefused(f"{region} does not serve after {SETTLED_S_MAX:.0f} s: look at `palaver status`")
        return cell

    async def _wait_until_leading(self, region: str, deadline: float) -> None:
        """Wait until a region's agent reports that it serves as the leader, or until the deadline.

        This polls one agent only: the whole status takes 50 ms of CPU time, which the waiting writes may need.
        """
        while not await self._reports_leading(region) and time.monotonic() < deadline:  # noqa: ASYNC110 - a remote state
            await asyncio.sleep(POLL_S)

    async def _reports_leading(self, region: str) -> bool:
        answer = await ask(self.client, self.context.plan, region, "agent_internal", "status") or {}
        return (answer.get("leader"), answer.get("phase")) == (region, "serving")

    async def drain(self, region: str) -> dict[str, Any]:
        """Exclude a region from leadership; if it leads, switch over to another voter.

        Raises:
            OrderRefused: Every other voter is drained, and nothing was changed; or the region is drained and no other
                voter took over in time.
        """
        cell = (await self.status())["cells"][0]
        if cell["leader"] == region and not _successors(cell):
            raise OrderRefused(f"{region} leads and every other voter is drained: undrain one first")
        await self.send("drain", region)
        deadline, problem = time.monotonic() + HANDED_OVER_S_MAX, ""
        while (cell := (await self.status())["cells"][0])["leader"] == region or cell["phase"] != "serving":
            if time.monotonic() > deadline:
                problem = problem or f"epoch {cell['epoch']} is {cell['phase']}"
                raise OrderRefused(f"{region} is drained and still leads: {problem}; ask again")
            if cell["leader"] == region:
                problem = await self._hand_over(cell, deadline) or problem
            await asyncio.sleep(POLL_S)
        return cell

    async def _hand_over(self, cell: dict[str, Any], deadline: float) -> str:
        """Switch over to the first voter that can lead; return why none could, or an empty text."""
        problems: list[str] = []
        for successor in _successors(cell):
            try:
                await self.send("switch", successor)
            except OrderRefused as error:
                problems.append(str(error))
            else:
                await self._wait_until_leading(successor, deadline)
                return ""
        return "; ".join(problems)


def _successors(cell: dict[str, Any]) -> list[str]:
    """Return the voters that may replace the leader, in order of preference."""
    return [one for one in cell["voters"] if one != cell["leader"] and one not in cell["drained"]]


async def read_history(context: DeploymentContext) -> list[dict[str, Any]]:
    """Return the entries of the newest epochs, the oldest first (`regions.history`).

    Raises:
        OrderRefused: etcd does not answer.
    """
    # Imported here, because every command imports this module and only this function talks to etcd.
    from regions.coordination import Coordination, CoordinationError
    from regions.history import parse_entry
    from regions.identity import CellId
    from regions.topology import parse_address

    endpoints = [parse_address(address(context.plan.port(region, "etcd"))) for region in context.plan.regions]
    try:
        async with Coordination(endpoints, "root", context.secrets.etcd) as coordination:
            stored = await coordination.read_history(CellId(context.plan.cell))
    except CoordinationError as error:
        raise OrderRefused(str(error)) from error
    return [entry for text in stored if (entry := parse_entry(text)) is not None]

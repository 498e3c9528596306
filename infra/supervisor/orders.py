"""Carries an operator's order to the agent that can fulfil it, and reads the history of epochs.

Decides whom to ask. Refuses to decide whether: the failover core of that agent does, and its refusal is passed on.
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

ORDER_TIMEOUT_S = 16.0  # above what an agent itself takes to answer
SETTLED_S_MAX = 15.0  # a switch between regions 80 ms apart takes one to two seconds
HANDED_ON_S_MAX = 20.0  # a switch is tried within it; the last one may take as long as an agent's answer
POLL_S = 0.1

FOR_THE_LEADER = ("switch", "add", "remove")

Status = Callable[[], Awaitable[dict[str, Any]]]


async def give_order(  # noqa: PLR0913 - what an order consists of
    client: httpx.AsyncClient, context: DeploymentContext, status: Status, *, kind: str, region: str | None, by: str
) -> dict[str, Any]:
    """Carry an order out; return the cell as it is then.

    A region that is drained hands its leadership on first to whom it can. One that is added is joining when this
    returns: whoever asked waits for the end of its copy.

    Raises:
        OrderRefused: It cannot be; the text says why.
    """
    desk = _Desk(client, context, status, by)
    if kind == "drain":
        assert region is not None, "a drain names its region"
        return await desk.drain(region)
    await desk.give(kind, region)
    if kind == "switch":
        assert region is not None, "a switch names its region"
        return await desk.until_led_by(region)
    cell: dict[str, Any] = (await status())["cells"][0]
    return cell


@dataclass(frozen=True, slots=True)
class _Desk:
    """Gives the orders of one operator, each to an agent that can fulfil it."""

    client: httpx.AsyncClient
    context: DeploymentContext
    status: Status
    by: str

    async def give(self, kind: str, region: str | None) -> None:
        """Give one order, to the leader's agent or, where any will do, to the first that answers.

        Raises:
            OrderRefused: It cannot be carried out.
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
        """Wait until a region serves as the leader; return the cell as it is then.

        Raises:
            OrderRefused: It does not, in time.
        """
        await self._until_said_by(region, time.monotonic() + SETTLED_S_MAX)
        cell: dict[str, Any] = (await self.status())["cells"][0]
        if cell["phase"] == "serving" and cell["leader"] != region:
            raise OrderRefused(f"{cell['leader']} leads: {region} was not chosen ({cell['reason']})")
        if cell["phase"] != "serving":
            raise OrderRefused(f"{region} does not serve after {SETTLED_S_MAX:.0f} s: look at `palaver status`")
        return cell

    async def _until_said_by(self, region: str, deadline: float) -> None:
        """Wait until a region's agent says that it serves as the leader, or so long.

        Nobody else is asked meanwhile: the status of everything takes 50 ms of a processor, which the writes that wait
        may need.
        """
        while not await self._says_that_it_leads(region) and time.monotonic() < deadline:  # noqa: ASYNC110 - nobody sets an event
            await asyncio.sleep(POLL_S)

    async def _says_that_it_leads(self, region: str) -> bool:
        said = await ask(self.client, self.context.plan, region, "agent_internal", "status") or {}
        return (said.get("leader"), said.get("phase")) == (region, "serving")

    async def drain(self, region: str) -> dict[str, Any]:
        """Make a region no candidate, and move the leadership elsewhere when it has it.

        Raises:
            OrderRefused: Nobody else may lead, which leaves everything as it was; or nobody else could.
        """
        cell = (await self.status())["cells"][0]
        if cell["leader"] == region and not _heirs(cell):
            raise OrderRefused(f"{region} leads and every other voter is drained: undrain one first")
        await self.give("drain", region)
        deadline, problem = time.monotonic() + HANDED_ON_S_MAX, ""
        while (cell := (await self.status())["cells"][0])["leader"] == region or cell["phase"] != "serving":
            if time.monotonic() > deadline:
                problem = problem or f"epoch {cell['epoch']} is {cell['phase']}"
                raise OrderRefused(f"{region} is drained and still leads: {problem}; ask again")
            if cell["leader"] == region:
                problem = await self._hand_on(cell, deadline) or problem
            await asyncio.sleep(POLL_S)
        return cell

    async def _hand_on(self, cell: dict[str, Any], deadline: float) -> str:
        """Switch to the first voter that can lead; return why none could, or nothing."""
        problems: list[str] = []
        for heir in _heirs(cell):
            try:
                await self.give("switch", heir)
            except OrderRefused as error:
                problems.append(str(error))
            else:
                await self._until_said_by(heir, deadline)
                return ""
        return "; ".join(problems)


def _heirs(cell: dict[str, Any]) -> list[str]:
    """Return who may lead instead of the leader, in order of preference."""
    return [one for one in cell["voters"] if one != cell["leader"] and one not in cell["drained"]]


async def read_history(context: DeploymentContext) -> list[dict[str, Any]]:
    """Return what became of the newest epochs, the oldest first.

    Raises:
        OrderRefused: etcd does not answer.
    """
    # Late: every command imports this package, and only this one speaks to etcd.
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

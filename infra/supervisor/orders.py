"""Carries an operator's order to the agent that can fulfil it, and reads the history of epochs.

Decides whom to ask. Refuses to decide whether: the failover core of that agent does, and its refusal is passed on.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import Any

import httpx

from infra.supervisor.environment import Site, address
from infra.supervisor.errors import OrderRefused

ORDER_TIMEOUT_S = 12.0  # above what an agent itself takes to answer
SETTLED_S_MAX = 15.0  # a switch between regions 80 ms apart takes one to two seconds
POLL_S = 0.1

FOR_THE_LEADER = ("switch", "add", "remove")

Status = Callable[[], Awaitable[dict[str, Any]]]


async def give_order(  # noqa: PLR0913 - what an order consists of
    client: httpx.AsyncClient, site: Site, status: Status, *, kind: str, region: str | None, by: str
) -> dict[str, Any]:
    """Carry an order out; return the cell as it is then.

    Raises:
        OrderRefused: It cannot be; the text says why.
    """
    cell = (await status())["cells"][0]
    leader = cell["leader"]
    if leader is None:
        raise OrderRefused("no agent knows who leads")
    agents = [leader] if kind in FOR_THE_LEADER else [leader, *(one for one in site.plan.regions if one != leader)]
    problem = ""
    for agent in agents:
        try:
            answer = await client.post(
                f"http://{address(site.plan.port(agent, 'agent_internal'))}/order",
                json={"kind": kind, "region": region, "by": by},
                headers={"authorization": f"Bearer {site.secrets.agent}"},
                timeout=ORDER_TIMEOUT_S,
            )
        except httpx.HTTPError as error:
            problem = f"the agent of {agent} does not answer ({type(error).__name__})"
            continue
        if answer.status_code != HTTPStatus.OK:
            raise OrderRefused(str(answer.json().get("detail", answer.status_code)))
        return await _settled(status, leader=region if kind == "switch" else None)
    raise OrderRefused(problem)


async def _settled(status: Status, *, leader: str | None) -> dict[str, Any]:
    """Wait until the wanted leader serves."""
    deadline = time.monotonic() + SETTLED_S_MAX
    while True:
        cell: dict[str, Any] = (await status())["cells"][0]
        if leader is None or (cell["leader"] == leader and cell["phase"] == "serving"):
            return cell
        if cell["phase"] == "serving" and cell["leader"] != leader and time.monotonic() > deadline:
            raise OrderRefused(f"{cell['leader']} leads: {leader} was not chosen ({cell['reason']})")
        if time.monotonic() > deadline:
            raise OrderRefused(f"{leader} does not serve after {SETTLED_S_MAX:.0f} s: look at `palaver status`")
        await asyncio.sleep(POLL_S)


async def read_history(site: Site) -> list[dict[str, Any]]:
    """Return what became of the newest epochs, the oldest first.

    Raises:
        OrderRefused: etcd does not answer.
    """
    # Late: every command imports this package, and only this one speaks to etcd.
    from regions.coordination import Coordination, CoordinationError
    from regions.history import parse_chapter
    from regions.identity import CellId
    from regions.topology import parse_address

    endpoints = [parse_address(address(site.plan.port(region, "etcd"))) for region in site.plan.regions]
    try:
        async with Coordination(endpoints, "root", site.secrets.etcd) as coordination:
            stored = await coordination.read_history(CellId(site.plan.cell))
    except CoordinationError as error:
        raise OrderRefused(str(error)) from error
    return [chapter for entry in stored if (chapter := parse_chapter(entry)) is not None]

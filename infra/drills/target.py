"""Acts on the deployment under a drill: resolves roles to regions, injects faults, and reads its databases.

Decides which region a role means when a step begins. Uses the same interfaces of supervisor and relay as
`palaver fault`.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from typing import Any

import httpx
import psycopg

from infra.drills.clients import PAGE_LIMIT
from infra.drills.disks import Disk
from infra.drills.drill import Drill, InvalidDrill, RoleAtStart, Step
from infra.drills.evidence import Holdings, Regions
from infra.drills.operator import ManualPromotion
from infra.relay.client import RelayClient
from infra.servers.unprivileged import accessible_data_folder, account, reachable_install
from infra.supervisor.clocks import have_clocks, why_no_clocks
from infra.supervisor.control_client import ControlClient
from infra.supervisor.deployment import find_servers
from infra.supervisor.environment import address
from infra.supervisor.errors import OrderRefused
from infra.supervisor.layout import Layout
from infra.supervisor.plan import Plan
from infra.supervisor.secrets import Secrets
from infra.supervisor.sites import create_site
from regions.plain_http import PlainTransport

AGENT_TIMEOUT_S = 0.25
"""An agent on loopback answers in milliseconds; a stopped agent must not delay a sample."""

PAGE_TIMEOUT_S = 5.0
REST_LIMIT = 200
"""Comments on each page after the first (`PAGE_LIMIT`), so that a thread takes few requests."""

MOVE_ETCD_S = 10.0
MOVE_ETCD_POLL_S = 0.05
"""A move takes milliseconds. After a move away, etcd refuses the move back until the other member has caught up."""

AGENT_STOPPED_S_MAX = 0.5
"""Less than the silence after which a leader is suspected, about a second."""

ETCD_POLL_S = 0.3
"""Delay between the order to kill and the question for etcd's leader: the region is dead by then, and the other members
still name the leader that it had (the election timeout is 1 s)."""

LEDGER_ROWS = """
SELECT comments.id::text, comments.body, comments.epoch FROM palaver.comments
JOIN palaver.threads ON threads.id = comments.thread_id WHERE threads.key = %s
"""
FENCES = "SELECT epoch, leader FROM palaver.fence ORDER BY epoch"
VIEW_ROWS = """
SELECT comments.id::text FROM comments JOIN threads ON threads.id = comments.thread_id WHERE threads.key = %s
"""


class Target:
    """A running deployment.

    Attributes:
        names: Regions by the names that earlier steps gave with `as`.
    """

    def __init__(self, layout: Layout, plan: Plan, secrets: Secrets) -> None:
        self._layout = layout
        self._plan = plan
        self._secrets = secrets
        self._http = httpx.AsyncClient(timeout=AGENT_TIMEOUT_S, transport=PlainTransport(), trust_env=False)
        self.names: dict[str, tuple[str, ...]] = {}
        self._disks = {region: Disk(layout.region(region)) for region in plan.regions}

    @property
    def edges(self) -> dict[str, str]:
        """Base URL of each region's edge, in the order of the plan."""
        return {region: f"http://{address(self._plan.port(region, 'edge'))}" for region in self._plan.all_regions}

    def lacks(self, drill: Drill) -> str | None:
        """Return what this deployment lacks for a drill, as one line; None if it lacks nothing."""
        if drill.needs_clocks and not have_clocks(self._layout):
            return why_no_clocks()
        if drill.needs_disks and not all(disk.is_own for disk in self._disks.values()):
            return (
                "disk faults cannot be injected: the ledgers have no disks of their own; run the drill without --data, "
                "as root, where loop devices with ext4 can be mounted"
            )
        return None

    async def create_site(self) -> str:
        """Create a site for the drill; return its id."""
        made = await asyncio.to_thread(
            create_site, self._layout, self._plan, name="Drill", origins=["https://drill.example"]
        )
        return str(made["id"])

    async def status(self) -> dict[str, Any]:
        """Return the document of `palaver status --json`."""
        return await asyncio.to_thread(self._ask)

    def _ask(self) -> dict[str, Any]:
        with ControlClient(self._layout) as control:
            return control.get("/status")

    async def agents(self) -> dict[str, dict[str, Any]]:
        """Return the status of each region's agent, by region; without agents that do not answer within the limit."""
        answers = await asyncio.gather(*(self._ask_agent(region) for region in self._plan.all_regions))
        return {region: one for region, one in zip(self._plan.all_regions, answers, strict=True) if one is not None}

    async def _ask_agent(self, region: str) -> dict[str, Any] | None:
        try:
            answer = await self._http.get(f"http://{address(self._plan.port(region, 'agent_internal'))}/status")
            status: dict[str, Any] = answer.json()
        except (httpx.HTTPError, ValueError):
            return None
        return status

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    def resolve(self, target: str, leader: str | None) -> tuple[str, ...]:
        """Return the regions that a target means now.

        Raises:
            InvalidDrill: It means no region.
        """
        if target in self.names:
            return self.names[target]
        if target.startswith("region:"):
            return self._known(target.removeprefix("region:"))
        if target in self._plan.all_regions:
            return (target,)
        if leader is None:
            raise InvalidDrill(f"no region leads, so {target!r} means no region")
        followers = tuple(region for region in self._plan.regions if region != leader)
        match target:
            case "leader":
                return (leader,)
            case "follower":
                return followers[:1]
            case "other-follower":
                return followers[1:2]
            case "followers":
                return followers
            case "all":
                return tuple(self._plan.all_regions)
            case _:
                raise InvalidDrill(f"{target!r} is no role, and no earlier step named it")

    def regions(self, leader: str | None) -> Regions:
        """Return the regions and their current roles; without a leader no region has a role."""
        followers = [region for region in self._plan.regions if region != leader]
        named = [leader, *followers] if leader is not None else []
        names: tuple[RoleAtStart, ...] = ("leader", "follower", "other-follower")
        return Regions(every=self._plan.all_regions, roles=dict(zip(names, named, strict=False)))

    def _known(self, region: str) -> tuple[str, ...]:
        if region not in self._plan.all_regions:
            raise InvalidDrill(f"there is no region {region}; the regions are {', '.join(self._plan.all_regions)}")
        return (region,)

    async def kill(self, region: str, process: str | None) -> None:
        """Kill a process, or all processes of a region at once, with SIGKILL."""
        await self._order("/fault/kill", region=region, process=process)

    async def kill_with_etcd(self, region: str) -> None:
        """Move etcd's leadership to a region, and kill the region before an agent moves the leadership away.

        Raises:
            OrderRefused: The leadership could not be moved, or moved on before the kill.
        """
        # Imported here because every command imports this package, and only this fault uses etcd.
        from regions.coordination import Coordination, CoordinationError
        from regions.topology import parse_address

        addresses = {one: parse_address(address(self._plan.port(one, "etcd"))) for one in self._plan.regions}
        others = [addresses[one] for one in addresses if one != region]
        deadline = asyncio.get_running_loop().time() + MOVE_ETCD_S
        # The members that survive come first.
        async with Coordination([*others, addresses[region]], "root", self._secrets.etcd) as etcd:

            async def moved() -> str | None:
                try:
                    async with asyncio.timeout(AGENT_STOPPED_S_MAX):
                        for other in others:
                            await etcd.move_etcd_leader(other, [region])
                        return await etcd.etcd_leader()
                except (CoordinationError, TimeoutError) as error:
                    return f"not moved: {error}"

            async def led() -> str | None:
                await asyncio.sleep(ETCD_POLL_S)
                try:
                    return await etcd.etcd_leader()
                except CoordinationError:
                    return None

            while True:
                # The region's agent would move the leadership away between this check and the kill, so it is stopped
                # for that time, which is too short for a suspicion.
                await self.pause(region, "region_agent")
                if (leads := await moved()) == region:
                    break
                await self.resume(region, "region_agent")
                if asyncio.get_running_loop().time() > deadline:
                    raise OrderRefused(f"etcd's leadership did not move to {region}: {leads}")
                await asyncio.sleep(MOVE_ETCD_POLL_S)
            _, leads = await asyncio.gather(self.kill(region, None), led())
        if leads not in (region, None):
            raise OrderRefused(
                f"{leads} was etcd's leader when {region} was killed, so both leaders were not lost at once"
            )

    async def promote_by_hand(self, region: str, thread: str, *, leave_running: bool) -> None:
        """Promote the ledger of a killed region by hand and insert a row; see `ManualPromotion`.

        Raises:
            ManualPromotionFailed: A step of it failed.
        """
        await asyncio.to_thread(self._promote_by_hand, region, thread, leave_running)

    def _promote_by_hand(self, region: str, thread: str, leave_running: bool) -> None:
        runs_as = account()
        data = accessible_data_folder(self._layout.region(region) / "ledger", runs_as)
        promotion = ManualPromotion(
            programs=reachable_install(find_servers()["postgres"].bin_dir, runs_as),
            data=data,
            log=data / "operator.log",
            account=runs_as,
            port=self._plan.port(region, "ledger"),
            password=self._secrets.ledger_superuser,
        )
        promotion.promote(thread, leave_running=leave_running)

    async def set_clock(self, region: str, offset_s: float) -> None:
        """Set the wall clock of a region off by `offset_s` seconds; 0 resets it."""
        await self._order("/fault/clock", region=region, offset_s=offset_s)

    async def pause(self, region: str, process: str | None) -> None:
        """Stop a process, or all processes of a region at once, with SIGSTOP."""
        await self._order("/fault/pause", region=region, process=process)

    async def resume(self, region: str, process: str | None) -> None:
        """Continue a stopped process or region with SIGCONT."""
        await self._order("/fault/resume", region=region, process=process)

    async def restart(self, region: str) -> None:
        """Start a killed region again."""
        await self._order("/region/restart", region=region)

    async def fill_disk(self, region: str) -> None:
        """Fill the disk of a region's ledger."""
        await asyncio.to_thread(self._disk(region).fill)

    async def stall_disk(self, region: str, stall_ms: float) -> None:
        """Delay every write to the disk of a region's ledger by `stall_ms`; 0: until it is mended."""
        await asyncio.to_thread(self._disk(region).stall, stall_ms)

    async def mend_disk(self, region: str) -> None:
        """Undo `fill_disk` and `stall_disk`."""
        await asyncio.to_thread(self._disk(region).mend)

    def _disk(self, region: str) -> Disk:
        if region not in self._disks:
            raise InvalidDrill(f"{region} has no ledger, so it has no ledger disk")
        return self._disks[region]

    async def switch(self, region: str) -> None:
        """Order a switchover to a region."""
        await self._order("/order", kind="switch", region=region, by="a drill")

    async def _order(self, path: str, **body: object) -> None:
        def post() -> None:
            with ControlClient(self._layout) as control:
                control.post(path, **body)

        await asyncio.to_thread(post)

    async def change_network(self, step: Step, regions: Sequence[str], others: Sequence[str]) -> None:
        """Cut the network between regions and others, or delay and lose packets there."""
        await asyncio.to_thread(self._change_network, step, regions, others)

    def _change_network(self, step: Step, regions: Sequence[str], others: Sequence[str]) -> None:
        pairs = [(one, other) for one in regions for other in others if one != other]
        directed = {
            "both": [*pairs, *((other, one) for one, other in pairs)],
            "out": pairs,
            "in": [(other, one) for one, other in pairs],
        }[step.direction]
        with self._relay() as relay:
            for source, target in dict.fromkeys(directed):
                if step.do == "cut":
                    relay.cut(source, target, both_ways=False)
                else:
                    relay.set_fault(
                        source, target, delay_ms=step.delay_ms, jitter_ms=0.0, loss=step.loss, both_ways=False
                    )

    async def heal(self) -> None:
        """Undo every cut, delay and loss; the round trip is again the one that the deployment was started with."""

        def heal() -> None:
            with self._relay() as relay:
                relay.heal(None)

        await asyncio.to_thread(heal)

    def _relay(self) -> RelayClient:
        return RelayClient(address(self._plan.deployment_port("relay_control")), self._secrets.relay_token)

    async def holdings(self, leader: str, site: str, thread: str) -> Holdings:
        """Read a thread from the leader's ledger, from every view, and through every edge."""
        ledger_port = self._plan.port(leader, "ledger")
        ledger = await self._query("palaver", self._secrets.ledger_superuser, ledger_port, LEDGER_ROWS, thread)
        fences = await self._query("palaver", self._secrets.ledger_superuser, ledger_port, FENCES)
        views: dict[str, list[str]] = {}
        for region in self._plan.all_regions:
            rows = await self._query(
                "palaver_reader", self._secrets.view_reader, self._plan.port(region, "view"), VIEW_ROWS, thread
            )
            views[region] = [str(row[0]) for row in rows]
        return Holdings(
            ledger=[(str(row[0]), str(row[1]), int(row[2])) for row in ledger],
            views=views,
            pages={region: await self._shown(f"{edge}/v1/sites/{site}", thread) for region, edge in self.edges.items()},
            fences=[(int(row[0]), str(row[1])) for row in fences],
        )

    async def _shown(self, site: str, thread: str) -> list[str]:
        """Return the ids on the pages of a thread, up to the first page that cannot be read."""
        ids: list[str] = []
        query: dict[str, str | int] = {"thread": thread, "limit": PAGE_LIMIT}
        with contextlib.suppress(httpx.HTTPError):
            while True:
                answer = await self._http.get(f"{site}/comments", params=query, timeout=PAGE_TIMEOUT_S)
                page = answer.raise_for_status().json()
                ids += [comment["id"] for comment in page["comments"]]
                if page["next"] is None:
                    break
                query |= {"cursor": page["next"], "limit": REST_LIMIT}
        return ids

    async def _query(self, user: str, password: str, port: int, query: str, *arguments: str) -> list[tuple[Any, ...]]:
        connection = await psycopg.AsyncConnection.connect(
            host="127.0.0.1", port=port, dbname="palaver", user=user, password=password, connect_timeout=5
        )
        async with connection:
            cursor = await connection.execute(query.encode(), arguments or None)
            return await cursor.fetchall()

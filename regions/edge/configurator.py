"""Tells Envoy what it should do and asks whether it does.

Decides when files are replaced and what counts as taken. File xDS has no refusal message, so Envoy's own
counters are read after each write: a rejected update leaves the old one in force and must be said.
"""

import asyncio
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import httpx

from regions.edge.resources import CLUSTERS_FILE, render, transition_clusters, version_of
from regions.edge.settings import EdgeSettings
from regions.identity import RegionName
from regions.leadership import Leadership, LeadershipSource
from regions.plain_http import PlainTransport
from regions.topology import Topology

CONFIRM_POLL_S = 0.02
CONFIRM_S_MAX = 3.0
"""Envoy takes a file within 10 ms; a cluster that warms up waits for its first health checks. Each question takes the
agent 2 ms, just when a failover has it do other things."""

LOOK_S = 2.0
SETTLED_LOOK_S = 5.0
"""How often the counters are read while nothing changes, so that a restarted Envoy is noticed; the second while all
that was written is in force."""

ADMIN_S = 1.0

# The counter family of each file in Envoy's statistics.
_STATISTICS = {
    "lds/listeners.json": "listener_manager.lds",
    "cds/clusters.json": "cluster_manager.cds",
    "rds/routes.json": "http.edge.rds.edge",
    "eds/read_api.json": "cluster.read_api",
}
_FILTER = r"(lds|cds|rds\.edge|cluster\.read_api)\.(version_text|update_rejected)$"

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class EdgeStatus:
    """What Envoy says of itself.

    Attributes:
        reachable: Whether its admin interface answers.
        version: Version of the routes in force, '' before the first.
        confirmed: Whether everything in force is what was written last.
        update_rejected: Updates that it refused since its start.
    """

    reachable: bool = False
    version: str = ""
    confirmed: bool = False
    update_rejected: int = 0


class EdgeConfigurator:
    """Feeds the Envoy of one region.

    Attributes:
        status: What Envoy said when it was last asked.
    """

    def __init__(self, topology: Topology, settings: EdgeSettings) -> None:
        self.status = EdgeStatus()
        self._topology = topology
        self._settings = settings
        self._leader: RegionName | None = None

    async def run(self, view: LeadershipSource) -> None:
        """Keep Envoy's files as the leadership says, for ever."""
        transport = PlainTransport(uds=self._settings.admin)
        async with httpx.AsyncClient(transport=transport, base_url="http://edge", timeout=ADMIN_S) as admin:
            # An agent that starts again knows no leadership yet; what an earlier one wrote stays in force.
            if not (self._settings.folder / "lds" / "listeners.json").exists():
                await self.apply(None, admin)
            while True:
                told = view.current
                if told is not None:
                    await self.apply(told, admin)
                # Until it is another than what was told: it may have changed while that was written.
                await self._watch_over(told, view, admin)

    async def apply(self, leadership: Leadership | None, admin: httpx.AsyncClient) -> None:
        """Replace the files that differ and wait, for a bounded time, until Envoy has taken them."""
        if leadership is not None and leadership.leader != self._leader:
            await self._apply_clusters_first(leadership.leader, admin)
        files = render(self._topology, leadership, self._settings)
        changed = await self._write(files)
        if not changed:
            return
        await self._until_taken(files, admin)
        leader = "nobody" if leadership is None else f"{leadership.leader}, epoch {leadership.epoch}"
        if self.status.confirmed:
            _log.info("edge: writes go to %s", leader)
        elif self.status.reachable:
            _log.error("edge: Envoy has not taken %s: writes should go to %s", ", ".join(changed), leader)
        else:
            _log.info("edge: written for an Envoy that does not run yet: writes go to %s", leader)

    async def _apply_clusters_first(self, leader: RegionName, admin: httpx.AsyncClient) -> None:
        """Have the new leader's cluster lead to it before any request is sent there."""
        content = transition_clusters(self._topology, self._settings, leader=leader, before=self._leader)
        self._leader = leader
        files = {CLUSTERS_FILE: content}
        if await self._write(files):
            await self._until_taken(files, admin)

    async def _until_taken(self, files: Mapping[str, bytes], admin: httpx.AsyncClient) -> None:
        """Wait for a bounded time; not at all for an Envoy that does not run."""
        deadline = asyncio.get_running_loop().time() + CONFIRM_S_MAX
        while not await self._confirm(files, admin):
            if not self.status.reachable or asyncio.get_running_loop().time() > deadline:
                return
            await asyncio.sleep(CONFIRM_POLL_S)

    async def _watch_over(self, known: Leadership | None, view: LeadershipSource, admin: httpx.AsyncClient) -> None:
        """Ask Envoy now and then until the leadership is another than ``known``."""
        files = render(self._topology, known, self._settings)
        while view.current == known:
            await self._confirm(files, admin)
            try:
                async with asyncio.timeout(SETTLED_LOOK_S if self.status.confirmed else LOOK_S):
                    await view.next_after(known)
            except TimeoutError:
                continue

    async def _confirm(self, files: Mapping[str, bytes], admin: httpx.AsyncClient) -> bool:
        wanted = {_STATISTICS[name]: version_of(content) for name, content in files.items()}
        try:
            answer = await admin.get("/stats", params={"format": "json", "filter": _FILTER})
            statistics = cast("dict[str, list[dict[str, object]]]", answer.json())["stats"]
        except (httpx.HTTPError, ValueError, KeyError):
            self.status = EdgeStatus()
            return False
        values = {str(one["name"]): one["value"] for one in statistics if "name" in one}
        rejected = sum(int(str(values.get(f"{family}.update_rejected", 0))) for family in _STATISTICS.values())
        if rejected > self.status.update_rejected:
            _log.error("edge: Envoy refused an update (%d so far); the old one stays in force", rejected)
        self.status = EdgeStatus(
            reachable=True,
            version=str(values.get("http.edge.rds.edge.version_text", "")),
            confirmed=all(values.get(f"{family}.version_text") == text for family, text in wanted.items()),
            update_rejected=rejected,
        )
        return self.status.confirmed

    async def _write(self, files: Mapping[str, bytes]) -> list[str]:
        """Replace the files that differ; return their names.

        In a thread: while others flush the same disk each of its steps may wait some 10 ms, and the loop that would
        wait here has a failover to perform.
        """
        return await asyncio.to_thread(
            lambda: [name for name, content in files.items() if self._replace(name, content)]
        )

    def _replace(self, name: str, content: bytes) -> bool:
        """Replace a file in one step; return whether it differed. Blocking."""
        path = self._settings.folder / name
        if path.exists() and path.read_bytes() == content:
            return False
        path.parent.mkdir(parents=True, exist_ok=True)
        # Envoy reads the folder again at each rename into it, so the temporary name lies beside it.
        temporary = self._settings.folder / f"{Path(name).name}.new"
        temporary.write_bytes(content)
        os.replace(temporary, path)  # noqa: PTH105 - said as what it is: rename(2), atomic
        return True

"""Writes Envoy's xDS files and checks in Envoy's statistics that Envoy applied them.

Decides when files are replaced, and when an update counts as applied. File-based xDS has no NACK, so the configurator
reads Envoy's counters after each write. Envoy keeps the old configuration after a rejected update, which is logged.
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
"""Envoy applies a file within 10 ms; a warming cluster waits for its first health checks. Each poll costs the agent 2
ms of CPU time, during a failover."""

CHECK_INTERVAL_S = 2.0
SETTLED_CHECK_INTERVAL_S = 5.0
"""Intervals at which the counters are read while nothing changes, to detect a restarted Envoy; the second applies while
everything that was written is in force."""

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
    """State of Envoy according to its admin interface.

    Attributes:
        reachable: Whether the admin interface answers.
        version: Version of the routes in force, '' if there are none yet.
        confirmed: Whether the last files written are in force.
        update_rejected: Number of updates that Envoy has rejected since its start.
    """

    reachable: bool = False
    version: str = ""
    confirmed: bool = False
    update_rejected: int = 0


class EdgeConfigurator:
    """Configures the Envoy of one region.

    Attributes:
        status: State of Envoy when it was last read.
    """

    def __init__(self, topology: Topology, settings: EdgeSettings) -> None:
        self.status = EdgeStatus()
        self._topology = topology
        self._settings = settings
        self._leader: RegionName | None = None

    async def run(self, view: LeadershipSource) -> None:
        """Update Envoy's files at each change of the leadership, until cancelled."""
        transport = PlainTransport(uds=self._settings.admin)
        async with httpx.AsyncClient(transport=transport, base_url="http://edge", timeout=ADMIN_S) as admin:
            # A restarted agent does not know the leadership yet; the files of the earlier agent stay in force.
            if not (self._settings.folder / "lds" / "listeners.json").exists():
                await self.apply(None, admin)
            while True:
                applied = view.current
                if applied is not None:
                    await self.apply(applied, admin)
                # Returns at once if the leadership changed while the files were written.
                await self._watch_over(applied, view, admin)

    async def apply(self, leadership: Leadership | None, admin: httpx.AsyncClient) -> None:
        """Replace the files that differ, and wait for a bounded time until Envoy has applied them."""
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
            _log.error("edge: Envoy has not applied %s: writes should go to %s", ", ".join(changed), leader)
        else:
            _log.info("edge: files are written, but Envoy does not run yet: writes will go to %s", leader)

    async def _apply_clusters_first(self, leader: RegionName, admin: httpx.AsyncClient) -> None:
        """Point the new leader's cluster at the new leader before the routes name it."""
        content = transition_clusters(self._topology, self._settings, leader=leader, before=self._leader)
        self._leader = leader
        files = {CLUSTERS_FILE: content}
        if await self._write(files):
            await self._until_taken(files, admin)

    async def _until_taken(self, files: Mapping[str, bytes], admin: httpx.AsyncClient) -> None:
        """Wait for a bounded time until Envoy has applied the files; do not wait if Envoy does not run."""
        deadline = asyncio.get_running_loop().time() + CONFIRM_S_MAX
        while not await self._confirm(files, admin):
            if not self.status.reachable or asyncio.get_running_loop().time() > deadline:
                return
            await asyncio.sleep(CONFIRM_POLL_S)

    async def _watch_over(self, known: Leadership | None, view: LeadershipSource, admin: httpx.AsyncClient) -> None:
        """Read Envoy's statistics at intervals until the leadership differs from ``known``."""
        files = render(self._topology, known, self._settings)
        while view.current == known:
            await self._confirm(files, admin)
            try:
                async with asyncio.timeout(SETTLED_CHECK_INTERVAL_S if self.status.confirmed else CHECK_INTERVAL_S):
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
            _log.error(
                "edge: Envoy refused an update (%d since its start); the old configuration stays in force", rejected
            )
        self.status = EdgeStatus(
            reachable=True,
            version=str(values.get("http.edge.rds.edge.version_text", "")),
            confirmed=all(values.get(f"{family}.version_text") == text for family, text in wanted.items()),
            update_rejected=rejected,
        )
        return self.status.confirmed

    async def _write(self, files: Mapping[str, bytes]) -> list[str]:
        """Replace the files that differ; return their names.

        It runs in a thread: while other processes flush the same disk, each file operation may take 10 ms, which would
        block the event loop during a failover.
        """
        return await asyncio.to_thread(
            lambda: [name for name, content in files.items() if self._replace(name, content)]
        )

    def _replace(self, name: str, content: bytes) -> bool:
        """Replace a file atomically; return whether it differed. Blocking."""
        path = self._settings.folder / name
        if path.exists() and path.read_bytes() == content:
            return False
        path.parent.mkdir(parents=True, exist_ok=True)
        # Envoy reads the folder again at each rename into it, so the temporary file is in the parent folder.
        temporary = self._settings.folder / f"{Path(name).name}.new"
        temporary.write_bytes(content)
        os.replace(temporary, path)  # noqa: PTH105 - rename(2), which is atomic
        return True

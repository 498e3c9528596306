"""The end of the tour: it kills the leader region while visitors post, and starts it again.

The tour claims that no post through the edge of another region is refused, and that no acknowledged post is missing in
any region after the killed region is back. The visitors measure the write outage; the tour prints it and sets no bound.
"""

from __future__ import annotations

import asyncio
import itertools
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from infra.demo.visitor import Posted, VisitFailed, Visitor
from infra.drills.clients import LoadPlan, running_load
from infra.drills.drill import Load
from infra.drills.journal import Journal

LOAD = Load(writers=8, unkeyed=0, readers=0, pause_ms=50)
BEFORE_S = 1.0
"""How long visitors post before the kill, and after the new leader serves."""

MOVED_S_MAX = 30.0
HEALTHY_S_MAX = 90.0
POLL_S = 0.1
THREAD = "demo-disaster"


class Deployment(Protocol):
    """What the tour needs of a deployment; `infra.supervisor.supervisor.Supervisor` implements it."""

    async def status(self) -> dict[str, Any]:
        """Return the status document."""
        ...

    async def kill(self, region: str, process: str | None) -> list[int]:
        """Kill all processes of a region, which are not restarted. Return their pids."""
        ...

    async def restart_region(self, region: str) -> None:
        """Start a killed region again."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaderLoss:
    """The observed loss of the leader region.

    Attributes:
        died: The killed leader region.
        leads: The new leader region.
        epoch: The new leader's epoch.
        still_ms: The write outage: the longest time between two acknowledgements after the kill, in milliseconds; the
            kill and the end of the measurement count as acknowledgements.
        posted_after: Posts that were acknowledged after the kill.
        back_s: Seconds from the restart of the killed region until all regions were healthy.
    """

    died: str
    leads: str
    epoch: int
    still_ms: float
    posted_after: int
    back_s: float


async def lose_the_leader(
    visitor: Visitor, regions: Sequence[str], deployment: Deployment, before: dict[str, Any]
) -> tuple[LeaderLoss, list[Posted], list[str]]:
    """Kill the leader region under load, wait until another region serves, and start the killed one again.

    Args:
        visitor: Knows the edges and the site.
        regions: All regions.
        deployment: The deployment of these regions.
        before: The cell of the present status document.

    Returns:
        The observed loss, the acknowledged posts, and a line for each attempt to post that was not acknowledged.

    Raises:
        VisitFailed: No other region took over, or the killed region did not become healthy.
    """
    survivors = [region for region in regions if region != before["leader"]]
    edges = {region: visitor.edges[region] for region in survivors}
    load_plan = LoadPlan(edges=edges, site=visitor.site, thread=THREAD, homes=survivors)
    with tempfile.TemporaryDirectory(prefix="palaver-demo-") as folder:
        async with (
            Journal(Path(folder) / "journal.jsonl") as journal,
            running_load(load_plan, LOAD, journal, seed=1),
        ):
            await asyncio.sleep(BEFORE_S)
            killed_at = journal.now
            await deployment.kill(before["leader"], None)
            after = await _until_moved(deployment, before["epoch"])
            await asyncio.sleep(BEFORE_S)
            stopped_at = journal.now
    if after is None:
        raise VisitFailed(f"no other region took writes within {MOVED_S_MAX:.0f} s")
    acknowledged_at = [record["t"] for record in journal.records if record["kind"] == "acknowledged"]
    restarted_at = time.perf_counter()
    await deployment.restart_region(before["leader"])
    await _until_healthy(deployment)
    seen = LeaderLoss(
        died=before["leader"],
        leads=after["leader"],
        epoch=after["epoch"],
        still_ms=longest_pause_ms(acknowledged_at, killed_at, stopped_at),
        posted_after=acknowledged_after(acknowledged_at, killed_at),
        back_s=time.perf_counter() - restarted_at,
    )
    return seen, posts_of(journal.records), refusals_of(journal.records)


def acknowledged_after(acknowledged_at: Sequence[float], since: float) -> int:
    """Return how many posts were acknowledged after a time."""
    return sum(at > since for at in acknowledged_at)


def longest_pause_ms(acknowledged_at: Sequence[float], since: float, until: float) -> float:
    """Return the longest time without an acknowledgement between two times in seconds, in milliseconds."""
    times = [since, *(at for at in acknowledged_at if since < at < until), until]
    return max(1000 * (later - earlier) for earlier, later in itertools.pairwise(times))


def posts_of(records: Sequence[Mapping[str, Any]]) -> list[Posted]:
    """Return the acknowledged posts in the records of a journal."""
    return [
        Posted(
            id=record["id"],
            thread=THREAD,
            parent=None,
            body=record["key"],
            region=record["region"],
            took_ms=1000 * (record["t"] - record["sent"]),
            position=record["position"],
        )
        for record in records
        if record["kind"] == "acknowledged"
    ]


def refusals_of(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return a line for each attempt to post that was refused or not answered."""
    return [
        f"{record['region']}: {record.get('status') or 'no answer,'} {record['reason'][:200]}"
        for record in records
        if record["kind"] in ("refused", "unknown")
    ]


async def _until_moved(deployment: Deployment, epoch: int) -> dict[str, Any] | None:
    """Return the cell once another region serves; None if none does in time."""
    deadline = time.monotonic() + MOVED_S_MAX
    while time.monotonic() < deadline:
        cell: dict[str, Any] = (await deployment.status())["cells"][0]
        if cell["epoch"] > epoch and cell["phase"] == "serving":
            return cell
        await asyncio.sleep(POLL_S)
    return None


async def _until_healthy(deployment: Deployment) -> None:
    deadline, missing = time.monotonic() + HEALTHY_S_MAX, ""
    while time.monotonic() < deadline:
        status = await deployment.status()
        missing = "; ".join(
            f"{one['region']}: {', '.join(one['missing'])}" for one in status["regions"] if not one["healthy"]
        )
        if not missing:
            return
        await asyncio.sleep(POLL_S)
    raise VisitFailed(f"not everything is healthy after {HEALTHY_S_MAX:.0f} s: {missing}")

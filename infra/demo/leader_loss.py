"""The end of the tour: it kills the leader region while visitors post, and starts it again.

The tour claims that no post through the edge of another region is refused, and that no acknowledged post is missing in
any region after the killed region is back. The visitors measure the write outage; the tour prints it and sets no bound.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import httpx

from infra.demo.visitor import Posted, VisitFailed, Visitor

WRITERS = 8
PAUSE_S = 0.05
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
        kill
            and the end of the measurement count as acknowledgements.
        posted_after: Posts that were acknowledged after the kill.
        back_s: Seconds from the restart of the killed region until all regions were healthy.
    """

    died: str
    leads: str
    epoch: int
    still_ms: float
    posted_after: int
    back_s: float


class _Posters:
    """Visitors that post through the edges of the surviving regions, and the time of each acknowledgement."""

    def __init__(self, visitor: Visitor, regions: Sequence[str]) -> None:
        self._visitor = visitor
        self._regions = regions
        self._done = asyncio.Event()
        self.posted: list[Posted] = []
        self.answered: list[float] = []
        self.refused: list[str] = []

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            for number in range(WRITERS):
                group.create_task(self._post(number))

    def stop(self) -> None:
        self._done.set()

    async def _post(self, number: int) -> None:
        region, count = self._regions[number % len(self._regions)], 0
        while not self._done.is_set():
            count += 1
            try:
                self.posted.append(
                    await self._visitor.post(
                        region, thread=THREAD, body=f"Still here ({number}.{count})", parent=None, author="Grace"
                    )
                )
            except (VisitFailed, httpx.HTTPError) as error:
                self.refused.append(f"{region}: {error or type(error).__name__}")
            else:
                self.answered.append(time.perf_counter())
            await asyncio.sleep(PAUSE_S)

    def answered_after(self, since: float) -> int:
        """Return how many posts were acknowledged after a time."""
        return sum(at > since for at in self.answered)

    def longest_pause_ms(self, since: float, until: float) -> float:
        """Return the longest time without an acknowledgement between two times, in milliseconds."""
        times = [since, *(at for at in self.answered if since < at < until), until]
        return max(1000 * (later - earlier) for earlier, later in itertools.pairwise(times))


async def lose_the_leader(
    visitor: Visitor, regions: Sequence[str], deployment: Deployment, before: dict[str, Any]
) -> tuple[LeaderLoss, list[Posted], list[str]]:
    """Kill the leader region under load, wait until another region serves, and start the killed one again.

    Args:
        visitor: Sends the posts.
        regions: All regions.
        deployment: The deployment of these regions.
        before: The cell of the present status document.

    Returns:
        The observed loss, the acknowledged posts, and a line for each refused post.

    Raises:
        VisitFailed: No other region took over, or the killed region did not become healthy.
    """
    posters = _Posters(visitor, [region for region in regions if region != before["leader"]])
    async with asyncio.TaskGroup() as group:
        group.create_task(posters.run())
        try:
            await asyncio.sleep(BEFORE_S)
            killed_at = time.perf_counter()
            await deployment.kill(before["leader"], None)
            after = await _until_moved(deployment, before["epoch"])
            await asyncio.sleep(BEFORE_S)
            stopped_at = time.perf_counter()
        finally:
            posters.stop()
    restarted_at = time.perf_counter()
    await deployment.restart_region(before["leader"])
    await _until_healthy(deployment)
    seen = LeaderLoss(
        died=before["leader"],
        leads=after["leader"],
        epoch=after["epoch"],
        still_ms=posters.longest_pause_ms(killed_at, stopped_at),
        posted_after=posters.answered_after(killed_at),
        back_s=time.perf_counter() - restarted_at,
    )
    return seen, posters.posted, posters.refused


async def _until_moved(deployment: Deployment, epoch: int) -> dict[str, Any]:
    deadline = time.monotonic() + MOVED_S_MAX
    while time.monotonic() < deadline:
        cell: dict[str, Any] = (await deployment.status())["cells"][0]
        if cell["epoch"] > epoch and cell["phase"] == "serving":
            return cell
        await asyncio.sleep(POLL_S)
    raise VisitFailed(f"no other region took writes within {MOVED_S_MAX:.0f} s")


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

"""The end of the tour: the leader region is killed while visitors post, and everything they were told is still there.

Decides what is claimed of it: no post through a living edge is refused, and none that was acknowledged is missing
in any region once the dead one is back. How long writes stood still is measured by the visitors and told, not judged.
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
"""How long posts flow before the region dies, and after they flow again."""

MOVED_S_MAX = 30.0
HEALTHY_S_MAX = 90.0
POLL_S = 0.1
THREAD = "demo-disaster"


class Deployment(Protocol):
    """What the tour does to the deployment, as `infra.supervisor.supervisor.Supervisor` does it."""

    async def status(self) -> dict[str, Any]:
        """Return the status document."""
        ...

    async def kill(self, region: str, process: str | None) -> list[int]:
        """Kill a region's processes at once; they stay dead. Return their pids."""
        ...

    async def restart_region(self, region: str) -> None:
        """Start a killed region again."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Disaster:
    """What was seen.

    Attributes:
        died: The region that led and was killed.
        leads: The region that led afterwards, and ``epoch``, its epoch.
        still_ms: The longest time between two acknowledgements from the kill on, or to the end when none followed.
        posted_after: Posts that were answered after the kill.
        back_s: From its restart until everything was healthy.
    """

    died: str
    leads: str
    epoch: int
    still_ms: float
    posted_after: int
    back_s: float


class _Posters:
    """Visitors who post through the edges that live, and when each was answered."""

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
        """How many posts were answered after a moment."""
        return sum(at > since for at in self.answered)

    def longest_pause_ms(self, since: float, until: float) -> float:
        """The longest time without an answer between two moments."""
        times = [since, *(at for at in self.answered if since < at < until), until]
        return max(1000 * (later - earlier) for earlier, later in itertools.pairwise(times))


async def lose_the_leader(
    visitor: Visitor, regions: Sequence[str], deployment: Deployment, before: dict[str, Any]
) -> tuple[Disaster, list[Posted], list[str]]:
    """Kill the leader region under load, wait until another takes writes, and bring it back.

    Args:
        visitor: Posts.
        regions: All regions.
        deployment: Where.
        before: The cell of the status document, as it is now.

    Returns:
        What was seen, what was acknowledged meanwhile, and what was refused.

    Raises:
        VisitFailed: No other region took over, or the dead one did not come back.
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
    seen = Disaster(
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

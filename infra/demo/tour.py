"""The steps and claims of the demo's tour; every claim is a check that can fail.

Knows the deployment only by its edges, its status document, and the kill and restart of a region.
"""

from __future__ import annotations

import asyncio
import random
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from infra.demo.leader_loss import Deployment, LeaderLoss, lose_the_leader
from infra.demo.visitor import Posted, Visitor

COMMENTS = 300
THREADS = 6
WRITERS = 12
REPLY_SHARE = 0.7
DEPTH_MAX = 8
VISIBILITY_SAMPLES = 8  # posts through each edge whose time to visibility in every region is measured

Say = Callable[[str], None]

SENTENCES = (
    "The second chart changed my mind.",
    "I measured the same at home, with *another* result.",
    "Could you say where the figure comes from?",
    "This aged well.",
    "`ANY 1` of two standbys is what makes the difference here.",
    "I disagree, and here is why: the tail matters more than the median.",
    "Thank you, this is the answer I was looking for.",
    "> it cannot fail\n\nEverything can fail; the question is what then.",
)
AUTHORS = ("Ada", "Boris", "Chidi", "Dalia", "Esra", "Femi", "Grace", "Hiro")


@dataclass(slots=True, kw_only=True)
class TourResult:
    """The results of a tour.

    Attributes:
        posted: Every acknowledged comment.
        visible_ms: By (region of the edge, region of the read): from the 201 to the first successful read, in ms.
        commit_ms: By edge: median and maximum duration of a post before the leader region was killed, in ms.
        failures: Claims that did not hold.
        disaster: The observed loss of the leader region; None if the tour failed before.
    """

    posted: list[Posted] = field(default_factory=list[Posted])
    visible_ms: dict[tuple[str, str], list[float]] = field(default_factory=dict[tuple[str, str], list[float]])
    commit_ms: dict[str, dict[str, float]] = field(default_factory=dict[str, dict[str, float]])
    failures: list[str] = field(default_factory=list[str])
    disaster: LeaderLoss | None = None


async def write_threads(visitor: Visitor, regions: Sequence[str], seed: int = 1) -> list[Posted]:
    """Post nested threads through all edges at once."""
    chooser = random.Random(seed)  # noqa: S311 - a script, not a secret
    written: dict[str, list[tuple[Posted, int]]] = {f"demo-thread-{n}": [] for n in range(1, THREADS + 1)}
    tickets = asyncio.Queue[int]()
    for number in range(COMMENTS):
        tickets.put_nowait(number)

    async def writer() -> None:
        while not tickets.empty():
            number = tickets.get_nowait()
            thread = f"demo-thread-{number % THREADS + 1}"
            open_parents = [entry for entry in written[thread] if entry[1] < DEPTH_MAX]
            reply = bool(open_parents) and chooser.random() < REPLY_SHARE
            parent, depth = chooser.choice(open_parents) if reply else (None, -1)
            comment = await visitor.post(
                regions[number % len(regions)],
                thread=thread,
                body=f"{chooser.choice(SENTENCES)} ({number})",
                parent=None if parent is None else parent.id,
                author=chooser.choice(AUTHORS),
            )
            written[thread].append((comment, depth + 1))

    async with asyncio.TaskGroup() as group:
        for _ in range(WRITERS):
            group.create_task(writer())
    return [comment for entries in written.values() for comment, _ in entries]


async def time_visibility(visitor: Visitor, regions: Sequence[str], result: TourResult) -> None:
    """Post one comment at a time through each edge, and wait for it in all regions concurrently."""
    for sample in range(VISIBILITY_SAMPLES):
        for region in regions:
            comment = await visitor.post(
                region, thread="demo-travel", body=f"Seen from afar, {sample}.", parent=None, author="Ada"
            )
            result.posted.append(comment)
            times = await asyncio.gather(*(visitor.until_visible(other, comment.id) for other in regions))
            for other, took_ms in zip(regions, times, strict=True):
                result.visible_ms.setdefault((region, other), []).append(took_ms)


def check_posted(result: TourResult, regions: Sequence[str]) -> None:
    """Check that all comments were posted, through every edge, and enough of them timed into every region."""
    if len(result.posted) < COMMENTS:
        result.failures.append(f"{len(result.posted)} comments were posted, {COMMENTS} were to be")
    for source in regions:
        if not any(comment.region == source for comment in result.posted):
            result.failures.append(f"no comment was posted through {source}")
        for target in regions:
            seen = len(result.visible_ms.get((source, target), ()))
            if seen < VISIBILITY_SAMPLES:
                result.failures.append(
                    f"{seen} comments from {source} were timed to {target}, not {VISIBILITY_SAMPLES}"
                )


def check_posts_during_leader_loss(
    disaster: LeaderLoss, posted: Sequence[Posted], survivors: Sequence[str], result: TourResult
) -> None:
    """Check that visitors posted through every surviving edge, and that posts were acknowledged after the kill."""
    for region in survivors:
        if not any(comment.region == region for comment in posted):
            result.failures.append(f"nobody posted through {region} while {disaster.died} died")
    if not disaster.posted_after:
        result.failures.append(f"no post was answered after the death of {disaster.died}")


async def check_every_region(visitor: Visitor, regions: Sequence[str], result: TourResult) -> None:
    """Read every thread in every region, and compare it with the acknowledged comments."""
    threads = sorted({comment.thread for comment in result.posted})
    for region in regions:
        for thread in threads:
            expected = {comment.id: comment for comment in result.posted if comment.thread == thread}
            found, count = await visitor.read_thread(region, thread)
            ours = {key: value for key, value in found.items() if key in expected}
            missing = expected.keys() - ours.keys()
            if missing:
                result.failures.append(f"{region}: {len(missing)} acknowledged comments of {thread} are missing")
            if count != len(found):
                result.failures.append(f"{region}: {thread} says {count} comments and shows {len(found)}")
            wrong = [
                key
                for key, value in ours.items()
                if value["body"] != expected[key].body or value["parent"] != expected[key].parent
            ]
            if wrong:
                result.failures.append(f"{region}: {len(wrong)} comments of {thread} have another body or parent")


def check_status(status: dict[str, Any], result: TourResult) -> None:
    """Check that there is one leader with an epoch, and that every region is healthy."""
    cell = status["cells"][0]
    if cell["phase"] != "serving" or not cell["epoch"]:
        result.failures.append(f"cell {cell['cell']} is {cell['phase']} under epoch {cell['epoch']}")
    leaders = [region["region"] for region in status["regions"] if region["role"] == "leader"]
    if leaders != [cell["leader"]]:
        result.failures.append(f"etcd names {cell['leader']} as leader, the agents say {leaders}")
    for region in status["regions"]:
        if not region["healthy"]:
            result.failures.append(f"{region['region']} is not healthy: {'; '.join(region['missing'])}")


def print_figures(result: TourResult, regions: Sequence[str], say: Say) -> None:
    """Print the duration of the posts so far, and store the figures for the document.

    The posts during the failover come later and are not included: their delay is the write outage, a separate figure.
    """
    for region in regions:
        times = sorted(comment.took_ms for comment in result.posted if comment.region == region)
        commit_ms = {"median": round(statistics.median(times), 1), "max": round(times[-1], 1)}
        result.commit_ms[region] = commit_ms
        say(
            f"  {region}: {len(times)} comments committed on the quorum, "
            f"median {commit_ms['median']:.0f} ms, slowest {commit_ms['max']:.0f} ms"
        )
    say("readable after (median of the time between the 201 and the first GET that returns the comment):")
    for source in regions:
        seen = ", ".join(
            f"{target} {statistics.median(result.visible_ms[source, target]):.0f} ms" for target in regions
        )
        say(f"  posted at {source}: {seen}")


def facts_of(result: TourResult, regions: Sequence[str]) -> dict[str, Any]:
    """Return the figures of a tour as a document, times in milliseconds; a tour that failed early has fewer."""
    return {
        "comments": len(result.posted),
        "commit_ms": result.commit_ms,
        "readable_after_ms": {
            source: {
                target: round(statistics.median(result.visible_ms[source, target]), 1)
                for target in regions
                if result.visible_ms.get((source, target))
            }
            for source in regions
        },
        "failures": result.failures,
        "disaster": None if result.disaster is None else asdict(result.disaster),
    }


async def show_leader_loss(
    visitor: Visitor, regions: Sequence[str], deployment: Deployment, result: TourResult, say: Say
) -> None:
    """Kill the leader region while visitors post, and print what they saw."""
    cell = (await deployment.status())["cells"][0]
    say(f"killing all processes of the leader region {cell['leader']} while visitors post through the other edges …")
    seen, posted, refused = await lose_the_leader(visitor, regions, deployment, cell)
    result.disaster = seen
    result.posted += posted
    check_posts_during_leader_loss(seen, posted, [region for region in regions if region != seen.died], result)
    result.failures += [f"a post was refused: {one}" for one in refused[:5]]
    sent = len(posted) + len(refused)
    say(
        f"  {seen.leads} leads under epoch {seen.epoch}; writes were unavailable for {seen.still_ms / 1000:.1f} s; "
        f"{len(refused)} of {sent} posts were refused; {seen.died} is back as a follower after {seen.back_s:.0f} s"
    )


async def run_tour(visitor: Visitor, regions: Sequence[str], deployment: Deployment, say: Say) -> TourResult:
    """Run the tour; return its results, with the claims that did not hold.

    Args:
        visitor: Sends requests to the edges.
        regions: The regions whose edges are used.
        deployment: Returns its status, and kills and restarts a region.
        say: Prints a line.
    """
    result = TourResult()
    say(f"posting {COMMENTS} comments in {THREADS} nested threads through {len(regions)} edges …")
    result.posted += await write_threads(visitor, regions)
    await time_visibility(visitor, regions, result)
    check_posted(result, regions)
    if result.failures:
        return result
    print_figures(result, regions, say)
    check_status(await deployment.status(), result)
    await show_leader_loss(visitor, regions, deployment, result, say)
    await check_every_region(visitor, regions, result)
    check_status(await deployment.status(), result)
    if not result.failures:
        say(f"read back: all {len(result.posted)} comments, in all {len(regions)} regions, bodies and trees as written")
    return result

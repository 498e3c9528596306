"""Runs the clients of drills against a deployment while a test acts on it, and compares their journal with the regions.

Each edge has one writer and one reader, which send to no other edge: the writes through an edge prove the path through
that edge. The clients run in a thread with an event loop of its own, because these tests are synchronous. Every answer
is checked against the OpenAPI document, and a write may be answered with 201 or 503 only. A wrong answer ends the load;
the next use of `Account.acknowledged`, at the latest the end of the load, raises an exception
group that contains its assertion error.
"""

import asyncio
import tempfile
import threading
import uuid
from collections import Counter
from collections.abc import Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from infra.drills.clients import LoadPlan, running_load
from infra.drills.drill import Load
from infra.drills.journal import Journal
from tests.integration.stack import REGIONS, Stack
from tests.waiting import eventually

LOAD = Load(writers=1, unkeyed=0, readers=1, pause_ms=10)
"""The clients of one edge."""

GIVE_UP_S = 30.0
"""A writer gives up a write after this time."""

READ_S_MAX = 10.0
"""A read that takes longer is a failed read; the clients of drills wait 15 s."""

STOP_POLL_S = 0.02
VISIBLE_WITHIN_S = 20.0


@dataclass(kw_only=True)
class Account:
    """The outcomes of the writes and reads.

    Attributes:
        thread: The key of the thread that all comments go to.
        through: The regions whose edges have clients.
        records: The records of the journal. The key of a write is also the body of its comment.
        clients: Done when the clients have ended; raises the assertion error of a wrong answer.
    """

    thread: str
    through: Sequence[str]
    records: list[dict[str, Any]]
    clients: "Future[None]"

    def of_kind(self, kind: str) -> list[dict[str, Any]]:
        # A copy, because the thread of the clients appends to the list.
        return [record for record in list(self.records) if record["kind"] == kind]

    def add_write(self, region: str, body: str, comment: str) -> None:
        """Add an acknowledged write that a test made itself."""
        self.records.append({"kind": "acknowledged", "key": body, "region": region, "id": comment})

    @property
    def acknowledged(self) -> dict[str, str]:
        """The id of each acknowledged comment, by its body."""
        if self.clients.done():
            self.clients.result()
        return {record["key"]: record["id"] for record in self.of_kind("acknowledged")}

    @property
    def refused(self) -> int:
        """The number of answers 503 to a write."""
        return sum(record["status"] is not None for record in self.of_kind("refused"))

    @property
    def given_up(self) -> list[str]:
        """The bodies of the writes without an acknowledgement; while clients run, this includes those under way."""
        return sorted({record["key"] for record in self.of_kind("sent")} - self.acknowledged.keys())

    @property
    def reads(self) -> dict[str, int]:
        """The number of successful reads, by region."""
        return {region: len(self._reads(region)) - len(self.read_failures[region]) for region in REGIONS}

    @property
    def read_failures(self) -> dict[str, list[str]]:
        """Status and text of each answer to a read that is not 200, or the error without an answer, by region.

        A read that took longer than `READ_S_MAX` is among them.
        """
        return {
            region: [
                f"{read['status']} {read.get('reason', '')} after {read['t'] - read['sent']:.1f} s"
                for read in self._reads(region)
                if read["status"] != 200 or read["t"] - read["sent"] > READ_S_MAX
            ]
            for region in REGIONS
        }

    def _reads(self, region: str) -> list[dict[str, Any]]:
        return [read for read in self.of_kind("read") if read["region"] == region]


@contextmanager
def load(stack: Stack, through: Sequence[str] = REGIONS) -> Generator[Account]:
    """Write and read through each of these edges while the context lasts."""
    stop = threading.Event()
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(1, "load") as thread:
        journal = Journal(Path(folder) / "journal.jsonl")
        key = f"load-{uuid.uuid4().hex[:8]}"
        clients = thread.submit(asyncio.run, _run_clients(stack, key, through, journal, stop))
        account = Account(thread=key, through=through, records=journal.records, clients=clients)
        try:
            eventually(
                lambda: len(account.acknowledged),
                lambda count: count >= 10 or not through,
                within_s=30,
                what="the load is under way",
            )
            yield account
        finally:
            stop.set()
            clients.result()


async def _run_clients(
    stack: Stack, thread: str, through: Sequence[str], journal: Journal, stop: threading.Event
) -> None:
    hooks = stack.answers.hooks()
    hooks["response"].append(_check_status_of_write)

    async def load_edge(region: str, seed: int) -> None:
        load_plan = LoadPlan(
            edges={region: stack.edges[region]},
            site=stack.site,
            thread=thread,
            homes=[region],
            reads=["eventual"],
            give_up_s=GIVE_UP_S,
            finish_s=GIVE_UP_S,
        )
        async with running_load(load_plan, LOAD, journal, seed=seed, event_hooks=hooks):
            while not stop.is_set():  # noqa: ASYNC110 - another thread sets it
                await asyncio.sleep(STOP_POLL_S)

    async with journal, asyncio.TaskGroup() as group:
        for seed, region in enumerate(through):
            group.create_task(load_edge(region, seed))


async def _check_status_of_write(response: httpx.Response) -> None:
    if response.request.method == "POST":
        assert response.status_code in (201, 503), f"a write was answered {response.status_code} {response.text}"


def check_nothing_lost_or_doubled(stack: Stack, account: Account) -> None:
    """Check that every acknowledged comment is in every region exactly once, under the id of its acknowledgement.

    A write that was given up may be there, once.
    """
    expected = account.acknowledged
    assert expected, "nothing was acknowledged, so nothing could be lost"
    through = Counter(record["region"] for record in account.of_kind("acknowledged"))
    for region in account.through:
        assert account.reads[region] > 0, f"no read succeeded in {region}"
        assert through[region] > 0, f"no write came through {region}"
    assert len(set(expected.values())) == len(expected), "two writes were answered with one id"
    for region in REGIONS:
        found = eventually(
            lambda region=region: [(one["body"], one["id"]) for one in stack.thread_comments(region, account.thread)],
            lambda comments: expected.items() <= set(comments),
            within_s=VISIBLE_WITHIN_S,
            what=f"every acknowledged comment in {region}",
        )
        shown_twice = [body for body, count in Counter(body for body, _ in found).items() if count > 1]
        assert shown_twice == [], f"{region} has a comment twice"
        assert len({comment for _, comment in found}) == len(found), f"{region} has an id twice"
        unexplained = {body for body, _ in found} - expected.keys() - set(account.given_up)
        assert unexplained == set(), f"{region} has comments that no client sent"

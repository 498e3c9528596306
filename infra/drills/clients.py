"""Generates load with a journal: writers and readers that try the edges in an order of preference.

Decides what a client does if an edge fails: it sends a keyed write again, with the same key, to the next edge. It sends
a write without a key once; if the connection breaks before the answer, the outcome stays unknown. The journal has each
attempt of a write before it is sent, and its outcome.

Drills, the demo, `make bench-switcher` and the tests of whole deployments use these clients. The other load generator,
`infra/bench/load.py`, costs less for each request and has no journal.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
import uuid
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

import httpx

from infra.drills.drill import Load
from infra.drills.journal import Journal
from regions.plain_http import PlainTransport

REQUEST_TIMEOUT_S = 15.0
"""Longer than an edge retries a keyed write (12 s)."""

CONNECT_TIMEOUT_S = 1.0
GIVE_UP_S = 60.0
"""A writer gives up a keyed write after this time. When the load ends, `finish_s` applies."""

READS = ("strong", "session", "eventual")

PAGE_LIMIT = 20
"""Comments on the page that readers request during a drill, and that the drill checks afterwards. Both send the same
limit, because caches store a page by its query."""

RETRY_S = 0.1
READ_PAUSE_S = 0.05
RECENT = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadPlan:
    """Where the load is sent.

    Attributes:
        edges: Base URL of each region's edge.
        site: The site that is written to.
        thread: The key of the thread that all comments go to.
        homes: Regions whose edges are preferred: client N prefers `homes[N % len(homes)]`.
        reads: The consistency levels that readers request in turn.
        give_up_s: A writer gives up a keyed write after this time.
        finish_s: The same for a write that is under way when the load ends.
    """

    edges: Mapping[str, str]
    site: str
    thread: str
    homes: Sequence[str]
    reads: Sequence[str] = READS
    give_up_s: float = GIVE_UP_S
    finish_s: float = REQUEST_TIMEOUT_S

    def preference(self, number: int) -> list[str]:
        """Return the regions in the order in which a client tries their edges."""
        home = self.homes[number % len(self.homes)]
        others = [region for region in (*self.homes, *self.edges) if region != home]
        return [home, *dict.fromkeys(others)]


@asynccontextmanager
async def running_load(
    load_plan: LoadPlan,
    load: Load,
    journal: Journal,
    *,
    seed: int,
    event_hooks: Mapping[str, list[Any]] | None = None,
) -> AsyncGenerator[None]:
    """Write and read while the context lasts; at its end, wait for the clients to finish what they have begun.

    Args:
        load_plan: Where the load is sent.
        load: The number of clients, and their pauses.
        journal: Where the clients record each attempt and each read.
        seed: Seed of the pauses.
        event_hooks: Hooks of httpx for every request and answer. If a hook raises, the load ends with an
            exception group that contains that exception.
    """
    stop = asyncio.Event()
    recent: dict[str, list[tuple[str, str]]] = {}
    timeout = httpx.Timeout(REQUEST_TIMEOUT_S, connect=CONNECT_TIMEOUT_S)
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    # The environment may name a proxy; the edges are on loopback.
    async with httpx.AsyncClient(
        timeout=timeout, transport=PlainTransport(limits=limits), trust_env=False, event_hooks=event_hooks
    ) as http:
        numbers = range(load.writers + load.unkeyed + load.readers)
        clients = [_Client(load_plan, http, journal, stop, recent, number, seed) for number in numbers]
        async with asyncio.TaskGroup() as group:
            for number, client in enumerate(clients):
                if number < load.writers:
                    group.create_task(client.write_keyed(load.pause_ms / 1000))
                elif number < load.writers + load.unkeyed:
                    group.create_task(client.write_unkeyed(load.pause_ms / 1000))
                else:
                    group.create_task(client.read())
            try:
                yield
            finally:
                stop.set()


class _Client:
    def __init__(  # noqa: PLR0913, PLR0917 - the state of one client
        self,
        load_plan: LoadPlan,
        http: httpx.AsyncClient,
        journal: Journal,
        stop: asyncio.Event,
        recent: dict[str, list[tuple[str, str]]],
        number: int,
        seed: int,
    ) -> None:
        self._load_plan = load_plan
        self._http = http
        self._journal = journal
        self._stop = stop
        self._recent = recent
        self._number = number
        self._random = random.Random(seed * 1000 + number)  # noqa: S311 - a script, not a secret
        self._preference = load_plan.preference(number)

    async def _pause(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds * self._random.uniform(0.5, 1.5)):
                await self._stop.wait()

    async def write_keyed(self, pause_s: float) -> None:
        while not self._stop.is_set():
            await self._write_until_settled(uuid.uuid4().hex)
            await self._pause(pause_s)

    async def _write_until_settled(self, key: str) -> None:
        """Try one edge after another until one acknowledges the write, or give up. The key makes this safe."""
        began = self._journal.now
        for attempt in itertools.count():
            region = self._preference[attempt % len(self._preference)]
            if await self._write(key, region, attempt, keyed=True):
                return
            if self._stop.is_set() and self._journal.now - began > self._load_plan.finish_s:
                return
            if self._journal.now - began > self._load_plan.give_up_s:
                return
            if attempt % len(self._preference) == len(self._preference) - 1:
                await asyncio.sleep(RETRY_S)

    async def write_unkeyed(self, pause_s: float) -> None:
        while not self._stop.is_set():
            await self._write(uuid.uuid4().hex, self._preference[0], 0, keyed=False)
            await self._pause(pause_s)

    async def _write(self, key: str, region: str, attempt: int, *, keyed: bool) -> bool:
        """Send one write once; return whether it was acknowledged."""
        fields = {"key": key, "region": region, "attempt": attempt, "keyed": keyed}
        sent = await self._journal.note("sent", **fields)
        fields["sent"] = sent["t"]
        try:
            answer = await self._http.post(
                f"{self._load_plan.edges[region]}/v1/sites/{self._load_plan.site}/comments",
                json={"thread": self._load_plan.thread, "body": key},
                headers={"idempotency-key": key} if keyed else {},
            )
        except httpx.ConnectError as error:
            # Without a connection nothing was sent. A keyed writer tries the next edge; a writer without a key does not
            # repeat the write.
            await self._journal.note("refused", status=None, reason=type(error).__name__, **fields)
            return False
        except httpx.HTTPError as error:
            await self._journal.note("unknown", reason=type(error).__name__, **fields)
            return False
        if answer.status_code == HTTPStatus.CREATED:
            comment, position = str(answer.json()["id"]), answer.headers["palaver-position"]
            await self._journal.note("acknowledged", id=comment, position=position, **fields)
            known = self._recent.setdefault(region, [])
            known.append((comment, position))
            del known[:-RECENT]
            return True
        after = answer.headers.get("retry-after")
        reason = answer.text[:300]
        await self._journal.note("refused", status=answer.status_code, retry_after=after, reason=reason, **fields)
        return False

    async def read(self) -> None:
        """Read in turn at the levels of the plan.

        A `strong` read gets the newest comment, a `session` read an acknowledged one, and an `eventual` read a page.
        Before the first acknowledged write of its edge, a `session` read is sent as `strong`.
        """
        page = {"thread": self._load_plan.thread, "limit": PAGE_LIMIT}
        newest = page | {"limit": 1}
        for requested_consistency in itertools.cycle(self._load_plan.reads):
            if self._stop.is_set():
                return
            region = self._preference[0]
            recent = self._recent.get(region)
            if requested_consistency == "session" and recent:
                comment, position = self._random.choice(recent)
                await self._get(region, f"/comments/{comment}", "session", {"palaver-position": position}, {})
            elif requested_consistency == "eventual":
                await self._get(region, "/comments", "eventual", {}, page)
            else:
                await self._get(region, "/comments", "strong", {"palaver-consistency": "strong"}, newest)
            await self._pause(READ_PAUSE_S)

    async def _get(
        self,
        region: str,
        path: str,
        requested_consistency: str,
        headers: Mapping[str, str],
        query: Mapping[str, str | int],
    ) -> None:
        began = self._journal.now
        url = f"{self._load_plan.edges[region]}/v1/sites/{self._load_plan.site}{path}"
        fields = {"region": region, "asked": requested_consistency, "sent": round(began, 6)}
        try:
            answer = await self._http.get(url, params=query, headers=headers)
        except httpx.HTTPError as error:
            await self._journal.note("read", status=None, reason=type(error).__name__, **fields)
            return
        served = answer.headers.get("palaver-consistency", "").partition(";")[0]
        position = answer.headers.get("palaver-position")
        if answer.status_code != HTTPStatus.OK:
            fields["reason"] = answer.text[:300]
        await self._journal.note("read", status=answer.status_code, served=served, position=position, **fields)

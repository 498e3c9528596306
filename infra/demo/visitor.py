"""Posts and reads single comments by plain HTTP through the edges, as a website's visitors do.

A client of the public API, not a load generator. The tour needs replies, authors, visibility and whole threads, and
fails at the first wrong answer. The load during the failover is that of `infra/drills/clients.py`.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

import httpx

from regions.plain_http import PlainTransport

REQUEST_TIMEOUT_S = 15.0  # longer than an edge retries a keyed write
CONNECTIONS_MAX = 64
VISIBLE_TIMEOUT_S = 20.0
VISIBLE_POLL_S = 0.002
PAGES_MAX = 10_000  # a page has at least one comment, and a tour posts fewer comments than this


class VisitFailed(Exception):
    """A step of the tour failed: an edge gave a wrong answer, or a wait ended without its result."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Posted:
    """An acknowledged comment.

    Attributes:
        id: The comment's id.
        thread: Its thread's key.
        parent: The id of the comment that it replies to, or None.
        body: Its text.
        region: The region of the edge that it was posted through.
        took_ms: From the request to its answer, in milliseconds.
        position: The `Palaver-Position` of the answer.
    """

    id: str
    thread: str
    parent: str | None
    body: str
    region: str
    took_ms: float
    position: str


class Visitor:
    """Has one HTTP client for each edge.

    Attributes:
        edges: Base URL by region.
        site: The site's id.
    """

    def __init__(self, edges: Mapping[str, str], site: str) -> None:
        self.edges = edges
        self.site = site
        limits = httpx.Limits(max_connections=CONNECTIONS_MAX)
        self._clients = {
            # No proxy for loopback.
            region: httpx.AsyncClient(
                base_url=f"{edge}/v1/sites/{site}",
                timeout=REQUEST_TIMEOUT_S,
                transport=PlainTransport(limits=limits),
                trust_env=False,
            )
            for region, edge in edges.items()
        }

    async def close(self) -> None:
        """Close all connections."""
        for client in self._clients.values():
            await client.aclose()

    async def post(self, region: str, *, thread: str, body: str, parent: str | None, author: str) -> Posted:
        """Post a comment through an edge, with an Idempotency-Key so that the edge may retry it.

        Raises:
            VisitFailed: The answer is not 201.
        """
        content = {"thread": thread, "body": body, "author": {"name": author}}
        if parent is not None:
            content["parent"] = parent
        started = time.perf_counter()
        answer = await self._clients[region].post(
            "/comments", json=content, headers={"idempotency-key": uuid.uuid4().hex}
        )
        took_ms = (time.perf_counter() - started) * 1000
        if answer.status_code != HTTPStatus.CREATED:
            raise VisitFailed(f"POST through {region}: {answer.status_code} {answer.text[:200]}")
        return Posted(
            id=answer.json()["id"], thread=thread, parent=parent, body=body, region=region,
            took_ms=took_ms, position=answer.headers["palaver-position"],
        )  # fmt: skip

    async def until_visible(self, region: str, comment: str) -> float:
        """Poll an edge until it returns a comment.

        Returns:
            How long that took, in milliseconds.

        Raises:
            VisitFailed: The comment did not appear within VISIBLE_TIMEOUT_S.
        """
        started = time.perf_counter()
        last = "no answer"
        while time.perf_counter() - started < VISIBLE_TIMEOUT_S:
            answer = await self._clients[region].get(f"/comments/{comment}")
            if answer.status_code == HTTPStatus.OK:
                return (time.perf_counter() - started) * 1000
            last = f"{answer.status_code}, {answer.headers.get('palaver-consistency')}, {answer.text[:200]}"
            await asyncio.sleep(VISIBLE_POLL_S)
        raise VisitFailed(
            f"comment {comment} did not appear in {region} within {VISIBLE_TIMEOUT_S:.0f} s; last answer: {last}"
        )

    async def read_thread(self, region: str, thread: str) -> tuple[dict[str, dict[str, Any]], int]:
        """Read a whole thread by following every cursor.

        Returns:
            Comments by id, and the thread's own count.
        """
        found: dict[str, dict[str, Any]] = {}
        count = 0
        cursors: list[str | None] = [None]
        for _ in range(PAGES_MAX):
            if not cursors:
                return found, count
            cursor = cursors.pop()
            page = await self._page(region, thread, cursor)
            count = page["thread"]["count"]
            cursors += [page["next"]] if page["next"] else []
            _collect(page["comments"], found, cursors)
        raise VisitFailed(f"thread {thread} in {region} does not end")

    async def _page(self, region: str, thread: str, cursor: str | None) -> dict[str, Any]:
        query = {"thread": thread} | ({} if cursor is None else {"cursor": cursor})
        answer = await self._clients[region].get("/comments", params=query)
        if answer.status_code != HTTPStatus.OK:
            raise VisitFailed(f"GET in {region}: {answer.status_code} {answer.text[:200]}")
        page: dict[str, Any] = answer.json()
        return page


def _collect(comments: list[dict[str, Any]], found: dict[str, dict[str, Any]], cursors: list[str | None]) -> None:
    waiting = list(comments)
    while waiting:
        comment = waiting.pop()
        found[comment["id"]] = comment
        waiting += comment["replies"]["items"]
        if comment["replies"]["next"]:
            cursors.append(comment["replies"]["next"])

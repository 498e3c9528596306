"""Answers reads of thread pages, the most frequent requests: from memory, else from Redis, else by one query.

Decides the order of the sources. Requests for the same page share one query. A request for a cached page does three
dictionary lookups and sends two messages; every other request may be slower. The claim of an answer is that of its
source (`claim.py`), and it is taken before the source is read, so it does not include changes that arrive meanwhile. A
read whose level a cached page does not meet bypasses the caches.
"""

import asyncio
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Final
from uuid import UUID

from regions.identity import CellId
from regions.position import ZERO
from services.api.answers import answer
from services.api.cors import SITE_PREFIX
from services.api.identifiers import parse_uuid
from services.api.markdown import HtmlCache
from services.api.problems import DEGRADED_HEADER, Problem, unavailable
from services.api.requests import IF_NONE_MATCH_BYTES_MAX
from services.read_api.claim import NOTHING, Claim
from services.read_api.consistent import (
    GrantedConsistency,
    add_headers_to_problems,
    grant,
    headers_of,
    requested_consistency,
)
from services.read_api.freshness import Freshness
from services.read_api.memory import Encoded, Entry, PageMemory, Request, request_of
from services.read_api.page import Page, PageQuery, build_page, parse_page_query
from services.read_api.settings import ReadSettings
from services.read_api.shared_cache import HIT_MEMORY, SharedCache
from services.read_api.strong import Prover
from services.read_api.view_reader import ViewBusy, ViewReader, ViewUnavailable, turn
from services.telemetry.middleware import EXCHANGE, AsgiApp, Receive, Scope, Send

TEMPLATE: Final = "/v1/sites/{site}/comments"
_SUFFIX: Final = "/comments"
_SLASHES: Final = TEMPLATE.count("/")
BUILT_AT_A_TIME_MAX: Final = 4
"""Pages that are read and built at a time. A large page takes 40 ms of the event loop, in steps. A request for a cached
page, which takes microseconds, waits for one step of each. Four keep the view and the event loop busy."""

# Browsers send less than a hundred bytes. Requests with longer values are answered without compression.
ACCEPT_ENCODING_BYTES_MAX: Final = 256


@dataclass(slots=True, kw_only=True, eq=False)
class Flight:
    """A page that is being read, for one request or several.

    Attributes:
        claim: Claim of the page. It becomes the view's claim if Redis does not have the page.
        landed: The result: the page, or the problem.
    """

    claim: Claim
    landed: asyncio.Future[Entry] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class Pages:
    """Answers `GET /v1/sites/{site}/comments`."""

    def __init__(  # noqa: PLR0913 - the composition root hands over what it built, by name
        self,
        *,
        view: ViewReader,
        shared: SharedCache,
        memory: PageMemory,
        freshness: Freshness,
        html: HtmlCache,
        cell: CellId,
        prover: Prover,
        settings: ReadSettings,
    ) -> None:
        self._view = view
        self._shared = shared
        self._memory = memory
        self._freshness = freshness
        self._html = html
        self._cell = cell
        self._prover = prover
        self._settings = settings
        # Key: the query, and whether the read bypasses the caches.
        self._flights: dict[tuple[PageQuery, bool], Flight] = {}
        self._building = asyncio.Semaphore(BUILT_AT_A_TIME_MAX)

    def in_front_of(self, app: AsgiApp) -> AsgiApp:
        """Return an application that answers thread pages itself and passes other requests to `app`."""

        async def front(scope: Scope, receive: Receive, send: Send) -> None:
            path: str = scope.get("path", "")
            if (
                path.endswith(_SUFFIX)
                and scope["method"] in ("GET", "HEAD")
                and path.startswith(SITE_PREFIX)
                and path.count("/") == _SLASHES
            ):
                await self.get(scope, send)
            else:
                await app(scope, receive, send)

        return front

    async def get(self, scope: Scope, send: Send) -> None:
        """Answer one request."""
        scope[EXCHANGE].route = TEMPLATE
        wanted = requested_consistency(scope, self._cell)
        granted = await grant(wanted, self._freshness, self._prover)
        if granted.at_least > ZERO:
            await self._freshness.wait_for_announcement(granted.at_least)
        request = request_of(scope)
        entry = self._memory.get(request)
        # A cached page includes every announced change, because its invalidation would have dropped it.
        claim = NOTHING if entry is None else entry.claim.or_later(self._freshness.announced)
        if entry is not None and granted.allows(claim):
            HIT_MEMORY.inc()
        else:
            entry = await self._find(scope, request, granted)
            claim = entry.claim
        fresh = headers_of(granted, self._freshness, claim)
        none_match = encodings = None
        for name, value in scope["headers"]:
            if name == b"if-none-match":
                none_match = value
            elif name == b"accept-encoding":
                encodings = value
        encoded = entry.plain
        if encodings is not None and entry.shrinks and accepts_gzip(encodings):
            encoded = entry.gzipped or await self._gzip(request, entry)
        if none_match is not None and (matches(none_match, encoded.etag) or matches(none_match, entry.page.etag)):
            await answer(send, 304, b"", [*encoded.headers[2:], *fresh])
            return
        await send({"type": "http.response.start", "status": 200, "headers": [*encoded.headers, *fresh]})
        await send({"type": "http.response.body", "body": encoded.body})

    async def _gzip(self, request: Request, entry: Entry) -> Encoded:
        encoded = await asyncio.to_thread(entry.gzip)
        self._memory.keep_gzipped(request, entry, encoded)
        return encoded

    async def _find(self, scope: Scope, request: Request, granted: GrantedConsistency) -> Entry:
        with add_headers_to_problems(granted, self._freshness, self._freshness.viewed):
            site = parse_site(scope["path"][len(SITE_PREFIX) : -len(_SUFFIX)])
            query = parse_page_query(scope, site, limit_default=self._settings.page_limit_default)
        announced = self._freshness.announced
        past_caches = announced is None or not granted.allows(announced)
        flight = self._flights.get((query, past_caches))
        try:
            if flight is None or not granted.allows(flight.claim):
                flight = Flight(claim=self._freshness.viewed if past_caches or announced is None else announced)
                return await self._lead(flight, query, request, past_caches=past_caches)
            # Another request reads the same page already. Its failure is the answer to this request as well.
            return await asyncio.shield(flight.landed)
        except Problem as problem:
            assert flight is not None
            raise problem.with_headers(headers_of(granted, self._freshness, flight.claim)) from problem

    async def _lead(self, flight: "Flight", query: PageQuery, request: Request, *, past_caches: bool) -> Entry:
        """Build a page for this request and for those that ask for the same page meanwhile."""
        key = (query, past_caches)
        self._flights[key] = flight
        try:
            entry = await self._build(flight, query, request, past_caches=past_caches)
        except BaseException as error:
            if isinstance(error, Exception):
                flight.landed.set_exception(error)
            else:
                flight.landed.set_exception(unavailable("view-unavailable", "The reader of this page went away."))
            flight.landed.exception()  # mark the exception as retrieved: possibly no other request waits
            raise
        finally:
            if self._flights.get(key) is flight:
                del self._flights[key]
        flight.landed.set_result(entry)
        return entry

    async def _build(self, flight: "Flight", query: PageQuery, request: Request, *, past_caches: bool) -> Entry:
        thread = (query.site, query.thread)
        build = self._memory.begin(thread)
        try:
            page = None if past_caches else await self._shared.get(thread, query.field)
            if page is None:
                flight.claim = self._freshness.viewed
                page = await self._read(query)
                if self._memory.may_keep(build, page):
                    await self._shared.put(thread, query.field, page)
            return self._memory.keep(request, build, page, flight.claim)
        finally:
            self._memory.end(build)

    async def _read(self, query: PageQuery) -> Page:
        settings = self._settings
        arguments = query.arguments(
            replies_max=settings.page_replies_max,
            comments_max=settings.page_comments_max,
            bytes_max=settings.page_bytes_max,
        )
        try:
            async with turn(self._building):
                rows = await self._view.page(*arguments)
                if not rows:
                    raise unknown_site()
                return await build_page(query, rows, self._html, bytes_max=settings.page_bytes_max)
        except ViewUnavailable as error:
            raise view_unavailable(error) from error


def matches(none_match: bytes, etag: bytes) -> bool:
    """Whether an If-None-Match header names an entity tag (weak comparison: the tags are quoted hashes).

    A header beyond the limit matches nothing: a complete answer is always correct.
    """
    if len(none_match) > IF_NONE_MATCH_BYTES_MAX:
        return False
    return etag in none_match or none_match.strip() == b"*"


def accepts_gzip(accept_encoding: bytes) -> bool:
    """Whether an Accept-Encoding header allows gzip: named without q=0, or by ``*`` (RFC 9110, 12.5.3)."""
    return len(accept_encoding) <= ACCEPT_ENCODING_BYTES_MAX and _accepts_gzip(accept_encoding)


@lru_cache(maxsize=256)  # browsers send a handful of values
def _accepts_gzip(accept_encoding: bytes) -> bool:
    named: dict[bytes, bool] = {}
    for part in accept_encoding.lower().split(b","):
        coding, _, weight = part.partition(b";")
        quality = weight.strip().removeprefix(b"q=").strip()
        named[coding.strip()] = quality.strip(b"0.") != b"" or not quality
    return named.get(b"gzip", named.get(b"*", False))


def unknown_site() -> Problem:
    """Return the problem of a site that does not exist, or has not arrived in this region yet."""
    return Problem("unknown-site", "No site has this id.")


def view_unavailable(error: ViewUnavailable) -> Problem:
    """Return a problem for which the edge asks another region. It ejects a process whose view is gone."""
    if isinstance(error, ViewBusy):
        return unavailable("overloaded", "Too many reads wait for the view of this region.")
    problem = unavailable("view-unavailable", f"The view does not answer ({str(error).partition(':')[0]}).")
    return problem.with_headers([(DEGRADED_HEADER, b"view")])


def parse_site(text: str) -> UUID:
    """Return the id of the site in a path; raise `unknown-site` if it is malformed."""
    site = parse_uuid(text)
    if site is None:
        raise unknown_site()
    return site

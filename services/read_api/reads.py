"""Answers the less frequent reads: one comment, counts, the OpenAPI document and its page."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Final
from uuid import UUID

import orjson
from fastapi import Request, Response

import services.api
from regions.identity import CellId
from services.api.answers import Header
from services.api.comment import Comment, comment_json, entity_tag
from services.api.cursor import Cursor, encode_cursor
from services.api.identifiers import parse_uuid
from services.api.markdown import HtmlCache
from services.api.openapi import openapi_bytes
from services.api.problems import Problem, invalid
from services.api.requests import header, parse_query
from services.api.thread_key import parse_thread_key
from services.read_api.consistent import add_headers_to_problems, grant, headers_of, requested_consistency
from services.read_api.freshness import Freshness
from services.read_api.page import SORTS, comment_of, hash_tag
from services.read_api.pages import matches, parse_site, unknown_site, view_unavailable
from services.read_api.strong import Prover
from services.read_api.view_reader import ViewReader, ViewUnavailable

# Enough for an index page of a blog. The query stays below the edge's limit for a request line.
COUNTED_THREADS_MAX: Final = 100

_DOCS: Final = Path(services.api.__file__).with_name("docs.html").read_bytes()
_DOCS_POLICY: Final = "default-src 'none'; connect-src 'self'; style-src 'unsafe-inline'; script-src 'unsafe-inline'"


class Reads:
    """Endpoints that query the view. Each takes its claim from the view's known position before the query."""

    def __init__(
        self, *, view: ViewReader, freshness: Freshness, html: HtmlCache, cell: CellId, prover: Prover
    ) -> None:
        self._view = view
        self._freshness = freshness
        self._html = html
        self._cell = cell
        self._prover = prover

    async def comment(self, request: Request) -> Response:
        """`GET /v1/sites/{site}/comments/{comment}`; `replies.next` is the cursor to its replies."""
        scope = request.scope
        parse_query(scope, ())
        granted = await grant(requested_consistency(scope, self._cell), self._freshness, self._prover)
        claim = self._freshness.viewed
        with add_headers_to_problems(granted, self._freshness, claim):
            site = parse_site(request.path_params["site"])
            comment_id = parse_uuid(request.path_params["comment"])
            if comment_id is None:
                raise Problem("unknown-comment", "No comment has this id.")
            comment = await self._comment(site, comment_id)
        more = None
        if comment.reply_count:
            more = encode_cursor(Cursor(parent=comment.id), site=site, thread=comment.thread, sort=SORTS[0])
        headers = [(b"etag", entity_tag(comment)), *headers_of(granted, self._freshness, claim)]
        none_match = header(scope, b"if-none-match")
        if none_match is not None and matches(none_match, entity_tag(comment)):
            return _response(304, b"", headers)
        return _response(200, orjson.dumps(comment_json(comment, (), more)), headers)

    async def _comment(self, site: UUID, comment_id: UUID) -> Comment:
        try:
            row = await self._view.comment(site, comment_id)
        except ViewUnavailable as error:
            raise view_unavailable(error) from error
        if row is None:
            raise unknown_site()
        if row["id"] is None or row["thread_key"] is None:
            raise Problem("unknown-comment", "The site has no comment with this id.")
        return await comment_of(row, row["thread_key"], self._html)

    async def counts(self, request: Request) -> Response:
        """`GET /v1/sites/{site}/counts?thread=…&thread=…`; the answer has the keys as the request wrote them."""
        scope = request.scope
        asked = parse_query(scope, ("thread",), repeated="thread").get("thread", [])
        if not 1 <= len(asked) <= COUNTED_THREADS_MAX:
            raise invalid("thread", f"must occur 1 to {COUNTED_THREADS_MAX} times")
        keys = {text: parse_thread_key(text) for text in asked}
        granted = await grant(requested_consistency(scope, self._cell), self._freshness, self._prover)
        claim = self._freshness.viewed
        with add_headers_to_problems(granted, self._freshness, claim):
            site = parse_site(request.path_params["site"])
            counts = await self._counts(site, set(keys.values()))
        body = orjson.dumps({"counts": {text: counts.get(key, 0) for text, key in keys.items()}})
        etag = hash_tag(body)
        headers = [(b"etag", etag), *headers_of(granted, self._freshness, claim)]
        none_match = header(scope, b"if-none-match")
        if none_match is not None and matches(none_match, etag):
            return _response(304, b"", headers)
        return _response(200, body, headers)

    async def _counts(self, site: UUID, keys: Collection[str]) -> Mapping[str, int]:
        try:
            if await self._view.origins(site) is None:
                raise unknown_site()
            return await self._view.counts(site, list(keys))
        except ViewUnavailable as error:
            raise view_unavailable(error) from error


async def openapi(request: Request) -> Response:
    """`GET /v1/openapi.json`."""
    parse_query(request.scope, ())
    return _response(200, openapi_bytes(), [(b"access-control-allow-origin", b"*")])


async def docs_page(request: Request) -> Response:
    """`GET /docs`: one page without external resources."""
    parse_query(request.scope, ())
    return Response(_DOCS, media_type="text/html", headers={"content-security-policy": _DOCS_POLICY})


def _response(status: int, body: bytes, headers: Sequence[Header]) -> Response:
    response = Response(body, status, media_type="application/json" if body else None)
    response.raw_headers.extend([*headers, (b"cache-control", b"no-cache"), (b"vary", b"origin")])
    return response

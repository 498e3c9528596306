"""Renders previews of comments: Markdown in, HTML out, in the region that receives the request.

The read APIs answer previews. The write APIs do as well, because edges of the previous release send previews to them.

Decides how many previews are rendered at a time: a preview needs no key, so it must not take CPU time from the reads.
"""

import asyncio
from typing import Final

import orjson
from fastapi import Request, Response

from services.api import models
from services.api.comment_body import check_body
from services.api.identifiers import parse_uuid
from services.api.markdown import render_aside
from services.api.problems import Problem, unavailable
from services.api.requests import header, parse_idempotency_key, parse_json, read_body, require_json

PREVIEW_TEMPLATE: Final = "/v1/sites/{site}/preview"

RENDERED_AT_A_TIME_MAX: Final = 2
"""The renderer releases the interpreter's lock. Two renderers leave CPU time for the event loop on two cores."""

WAITING_MAX: Final = 64
"""With three milliseconds for each preview and two at a time, the last one waits a tenth of a second."""


class Previews:
    """The endpoint of previews."""

    def __init__(self, *, body_chars_max: int) -> None:
        self._body_chars_max = body_chars_max
        self._turns = asyncio.Semaphore(RENDERED_AT_A_TIME_MAX)
        self._waiting = 0

    async def preview(self, request: Request) -> Response:
        """`POST /v1/sites/{site}/preview`. Writes nothing, so it does not check that the site exists."""
        scope = request.scope
        if parse_uuid(request.path_params["site"]) is None:
            raise Problem("unknown-site", "No site has this id.")
        parse_idempotency_key(header(scope, b"idempotency-key"))
        require_json(header(scope, b"content-type"))
        new = parse_json(models.COMMENT_BODY, await read_body(request.receive))
        check_body(new.body, self._body_chars_max)
        if self._waiting >= WAITING_MAX:
            raise unavailable("overloaded", "Too many previews are being rendered.")
        self._waiting += 1
        try:
            async with self._turns:
                html = await render_aside(new.body)
        finally:
            self._waiting -= 1
        return Response(orjson.dumps({"html": html}), media_type="application/json")

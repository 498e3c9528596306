"""Posts, edits and deletes comments with one CALL each, and builds the answers.

Decides that the answer to a post is built from the request and from the ids and times that the ledger returns. A replay
of an Idempotency-Key therefore gets the same bytes, even if the comment has changed since. The answer to an edit has
the fields that the ledger has; the counts of replies and votes are not among them (ADR 0036).
"""

import hashlib
from collections.abc import Sequence
from datetime import datetime
from functools import partial
from uuid import UUID

import orjson
from fastapi import Request, Response

from regions.identity import CellId
from services import ledger
from services.api import models
from services.api.answers import Header, answer_json
from services.api.comment import Comment, comment_json, entity_tag, ledger_json, version_tag
from services.api.comment_body import check_body
from services.api.cors import SITE_PREFIX
from services.api.identifiers import parse_uuid
from services.api.markdown import render_aside
from services.api.problems import Problem
from services.api.requests import (
    header,
    parse_bearer,
    parse_idempotency_key,
    parse_if_match,
    parse_json,
    read_body,
    require_json,
)
from services.api.thread_key import parse_thread_key
from services.telemetry.http_protocol import client_is_gone
from services.telemetry.middleware import EXCHANGE, AsgiApp, Receive, Scope, Send
from services.telemetry.tracing import sampled_traceparent
from services.write_api.leadership import ATTEMPT_HEADER, EPOCH_HEADER, LeadershipGuard
from services.write_api.outcomes import (
    DELETION_AGAIN,
    EDIT_AGAIN,
    POST_AGAIN,
    UNKEYED_AGAIN,
    Writes,
    position_header,
    refuse,
)
from services.write_api.site_keys import hash_api_key

POST_TEMPLATE = "/v1/sites/{site}/comments"
_POST_SUFFIX = "/comments"
_POST_SLASHES = POST_TEMPLATE.count("/")
_POST = ledger.statement("post_comment")
_EDIT = ledger.statement("edit_comment")
_DELETE = ledger.statement("delete_comment")


class Comments:
    """Endpoints of comments: `guard` admits each request, `writes` executes it."""

    def __init__(
        self, writes: Writes, guard: LeadershipGuard, cell: CellId, *, body_chars_max: int, depth_max: int
    ) -> None:
        self._writes = writes
        self._guard = guard
        self._cell = cell
        self._body_chars_max = body_chars_max
        self._depth_max = depth_max

    def in_front_of(self, app: AsgiApp) -> AsgiApp:
        """Return an application that handles posts of comments itself and passes other requests to `app`."""

        async def front(scope: Scope, receive: Receive, send: Send) -> None:
            path: str = scope.get("path", "")
            if (
                scope.get("method") == "POST"
                and path.startswith(SITE_PREFIX)
                and path.endswith(_POST_SUFFIX)
                and path.count("/") == _POST_SLASHES
            ):
                await self.post(scope, receive, send)
            else:
                await app(scope, receive, send)

        return front

    async def post(self, scope: Scope, receive: Receive, send: Send) -> None:
        """`POST /v1/sites/{site}/comments`."""
        scope[EXCHANGE].route = POST_TEMPLATE
        site = require_site(scope["path"][len(SITE_PREFIX) : -len(_POST_SUFFIX)])
        content_type = key_header = epoch_header = attempt_header = None
        for name, value in scope["headers"]:
            if name == b"content-type":
                content_type = value
            elif name == b"idempotency-key":
                key_header = value
            elif name == EPOCH_HEADER:
                epoch_header = value
            elif name == ATTEMPT_HEADER:
                attempt_header = value
        epoch = await self._guard.admit(epoch_header, attempt_header)
        require_json(content_type)
        key = parse_idempotency_key(key_header)
        body = await read_body(receive)
        new = parse_json(models.NEW_COMMENT, body)
        check_body(new.body, self._body_chars_max)
        thread = parse_thread_key(new.thread)
        author = new.author
        row = await self._writes.call(
            _POST,
            epoch,
            site,
            thread,
            new.title,
            new.parent,
            new.body,
            author and author.name,
            author and author.email,
            author and author.url,
            key,
            hashlib.sha256(body).digest() if key is not None else None,
            self._depth_max,
            sampled_traceparent(),
            gone=partial(client_is_gone, scope),
            again=UNKEYED_AGAIN if key is None else POST_AGAIN,
            keyed=key is not None,
        )
        outcome = row["outcome"]
        if outcome not in ("created", "replayed"):
            raise refuse(outcome, depth_max=self._depth_max)
        comment = Comment(
            id=row["comment_id"],
            thread=thread,
            parent=new.parent,
            author_id=None,
            author_name=author.name if author else None,
            author_url=author.url if author else None,
            body=new.body,
            html=await render_aside(new.body),
            created_at=row["comment_created_at"],
            edited_at=None,
            version=1,
            state="approved",
        )
        headers: Sequence[Header] = (
            (b"location", f"{SITE_PREFIX}{site}/comments/{comment.id}".encode()),
            (b"etag", entity_tag(comment)),
            position_header(self._cell, epoch, row["lsn"]),
        )
        await answer_json(send, 201, comment_json(comment), headers)

    async def edit(self, request: Request) -> Response:
        """`PATCH /v1/sites/{site}/comments/{comment}`."""
        scope = request.scope
        site, comment_id = path_ids(request)
        epoch = await self._guard.admit(header(scope, EPOCH_HEADER), header(scope, ATTEMPT_HEADER))
        key_hash = hash_api_key(parse_bearer(header(scope, b"authorization")))
        if_match = header(scope, b"if-match")
        if if_match is None:
            raise Problem("precondition-required", "Send If-Match with the comment's ETag, or *.")
        version = parse_if_match(if_match)
        require_json(header(scope, b"content-type"))
        new = parse_json(models.COMMENT_BODY, await read_body(request.receive))
        check_body(new.body, self._body_chars_max)
        row = await self._writes.call(
            _EDIT,
            epoch,
            site,
            key_hash,
            comment_id,
            version,
            new.body,
            sampled_traceparent(),
            gone=partial(client_is_gone, scope),
            again=EDIT_AGAIN,
        )
        outcome = row["outcome"]
        if outcome != "edited":
            raise refuse(outcome)
        comment = await _from_ledger(orjson.loads(row["comment"]))
        headers = [(b"etag", version_tag(comment.version)), position_header(self._cell, epoch, row["lsn"])]
        return complete_response(200, orjson.dumps(ledger_json(comment)), headers)

    async def delete(self, request: Request) -> Response:
        """`DELETE /v1/sites/{site}/comments/{comment}`."""
        scope = request.scope
        site, comment_id = path_ids(request)
        epoch = await self._guard.admit(header(scope, EPOCH_HEADER), header(scope, ATTEMPT_HEADER))
        key_hash = hash_api_key(parse_bearer(header(scope, b"authorization")))
        if_match = header(scope, b"if-match")
        version = None if if_match is None else parse_if_match(if_match)
        row = await self._writes.call(
            _DELETE,
            epoch,
            site,
            key_hash,
            comment_id,
            version,
            sampled_traceparent(),
            gone=partial(client_is_gone, scope),
            again=DELETION_AGAIN,
        )
        outcome = row["outcome"]
        if outcome != "deleted":
            raise refuse(outcome)
        return complete_response(204, b"", [position_header(self._cell, epoch, row["lsn"])])


def require_site(text: str) -> UUID:
    """Return the id of the site in a path; raise `unknown-site` if it is malformed."""
    site = parse_uuid(text)
    if site is None:
        raise Problem("unknown-site", "No site has this id.")
    return site


def path_ids(request: Request) -> tuple[UUID, UUID]:
    """Return the ids of the site and the comment in a path; raise a problem if one is malformed."""
    site = require_site(request.path_params["site"])
    comment = parse_uuid(request.path_params["comment"])
    if comment is None:
        raise Problem("unknown-comment", "No comment has this id.")
    return site, comment


def complete_response(status: int, body: bytes, headers: Sequence[Header]) -> Response:
    """Return a response with these headers; the media type is JSON if it has a body."""
    response = Response(body, status, media_type="application/json" if body else None)
    response.raw_headers.extend(headers)
    return response


async def _from_ledger(row: dict[str, object]) -> Comment:
    """Return the comment of the row that the edit procedure returns as JSON."""
    assert isinstance(row["version"], int)

    def text(name: str) -> str | None:
        value = row[name]
        assert value is None or isinstance(value, str)
        return value

    parent, edited_at = text("parent_id"), text("edited_at")
    return Comment(
        id=UUID(text("id")),
        thread=text("thread_key") or "",
        parent=None if parent is None else UUID(parent),
        author_id=text("author_id"),
        author_name=text("author_name"),
        author_url=text("author_url"),
        body=text("body"),
        html=await render_aside(text("body") or ""),
        created_at=datetime.fromisoformat(text("created_at") or ""),
        edited_at=None if edited_at is None else datetime.fromisoformat(edited_at),
        version=row["version"],
        state=text("state") or "",
    )

"""Lists every operation of the public API. The OpenAPI document and the Allow header are generated from the list.

Decides names, summaries, examples and the problems of each operation. The two processes have their own routes; a test
checks that they route exactly these operations.
"""

import re
from dataclasses import dataclass, field
from functools import cache
from typing import Final

from pydantic import BaseModel

from services.api import models

EXAMPLE_SITE: Final = "01990d5e-3a00-7c62-9d2b-5a2a6f0c1e11"
EXAMPLE_COMMENT: Final[dict[str, object]] = {
    "id": "01990d5e-40ab-7f11-8a6e-2f4f7b1d9c02",
    "thread": "https://example.com/posts/hello",
    "parent": None,
    "author": {"id": None, "name": "Ann"},
    "body": "I *like* this.",
    "html": "<p>I <em>like</em> this.</p>",
    "created_at": "2026-01-02T03:04:05.678901Z",
    "edited_at": None,
    "version": 1,
    "state": "approved",
    "score": 2,
    "votes": {"up": 3, "down": 1},
    "replies": {"count": 0, "items": [], "next": None},
}
_SITE: Final[dict[str, object]] = {"id": EXAMPLE_SITE, "name": "My blog", "origins": ["https://example.com"]}
_EDITED_COMMENT: Final[dict[str, object]] = {
    **{name: value for name, value in EXAMPLE_COMMENT.items() if name not in {"score", "votes", "replies"}},
    "body": "I *love* this.",
    "html": "<p>I <em>love</em> this.</p>",
    "version": 2,
    "edited_at": "2026-01-02T03:10:00.000001Z",
}
_THREAD: Final[dict[str, object]] = {
    "key": "https://example.com/posts/hello",
    "id": "01990d5e-3fff-7a00-b1c5-0d9b5d3f2a10",
    "title": "Hello",
    "state": "open",
    "count": 1,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameter:
    """A query parameter or header of a request."""

    name: str
    where: str
    description: str
    schema: dict[str, object]
    required: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """One method of one path template.

    Attributes:
        problems: Slugs of the problems that the operation can return, besides those of every operation.
        security: The key that it requires: `admin`, `site`, or None for no key.
        at_leader: Whether the leader's write API answers this read. It answers all writes.
        in_region: Whether the region's read API answers this POST. It answers all other reads.
    """

    method: str
    template: str
    name: str
    summary: str
    description: str = ""
    parameters: tuple[Parameter, ...] = ()
    request: type[BaseModel] | None = None
    request_example: object = None
    status: int = 200
    answer: type[BaseModel] | None = None
    answer_example: object = None
    answer_headers: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()
    security: str | None = None
    at_leader: bool = False
    in_region: bool = False
    media_type: str = field(default="application/json")


_TEXT: Final[dict[str, object]] = {"type": "string"}
IDEMPOTENCY_KEY: Final = Parameter(
    name="Idempotency-Key",
    where="header",
    description="1 to 255 visible ASCII characters. The same key with the same body gives the same answer for"
    " at least 24 hours in which writes were taken; with another body it is refused.",
    schema={"type": "string", "minLength": 1, "maxLength": 255, "pattern": "^[!-~]+$"},
)
POSITION: Final = Parameter(
    name="Palaver-Position",
    where="header",
    description="A position that an earlier answer gave: the read waits up to a second until this region has it.",
    schema={"type": "string", "pattern": r"^[a-z][a-z0-9-]{0,30}\.(0|[1-9][0-9]{0,18})\.[0-9A-F]{16}$"},
)
CONSISTENCY: Final = Parameter(
    name="Palaver-Consistency",
    where="header",
    description="eventual (default), session (with Palaver-Position), bounded=<seconds>, strong (all that was"
    " acknowledged before). The answer's header says what was served: eventual when nothing proves a strong read.",
    schema={"type": "string", "pattern": r"^(eventual|session|strong|bounded=[0-9]{1,6}(\.[0-9]{1,3})?)$"},
)
IF_NONE_MATCH: Final = Parameter(
    name="If-None-Match", where="header", description="ETag of an earlier answer.", schema=_TEXT
)


def _if_match(*, required: bool) -> Parameter:
    return Parameter(
        name="If-Match",
        where="header",
        description="ETag of the comment to change, or *.",
        schema={"type": "string", "maxLength": 256, "pattern": r'^(\*|(W/)?"[^",]*")$'},
        required=required,
    )


def _thread_parameter(description: str) -> Parameter:
    return Parameter(
        name="thread",
        where="query",
        description=description,
        schema={"type": "string", "minLength": 1, "maxLength": 2000},
        required=True,
    )


_KEY_RULES: Final = (
    "A page's address or an own id, 1 to 2,000 characters. Of an address the scheme becomes https, the host"
    " lower-case; user information, fragment, the ports 80 and 443, trailing slashes and tracking parameters go."
)
_READ_HEADERS: Final = ("ETag", "Palaver-Position", "Palaver-Consistency")
_READ_PROBLEMS: Final = (
    "unknown-site",
    "invalid-request",
    "invalid-position",
    "too-stale",
    "view-unavailable",
    "overloaded",
)
_LEADER_PROBLEMS: Final = ("stale-epoch", "ledger-unavailable", "overloaded")
_WRITE_PROBLEMS: Final = (*_LEADER_PROBLEMS, "outcome-unknown")
_BODY_PROBLEMS: Final = ("malformed-json", "unsupported-media-type", "invalid-request")
_COMMENTS: Final = "/v1/sites/{site}/comments"
_COMMENT: Final = "/v1/sites/{site}/comments/{comment}"
_VOTE: Final = "/v1/sites/{site}/comments/{comment}/vote"

OPERATIONS: Final = (
    Operation(
        method="POST",
        template="/v1/sites",
        name="createSite",
        summary="Create a site",
        description="The secrets are shown this once. `origins` are the pages that may call from a browser.",
        parameters=(IDEMPOTENCY_KEY,),
        request=models.NewSite,
        request_example={"name": "My blog", "origins": ["https://example.com"]},
        status=201,
        answer=models.CreatedSite,
        answer_example={
            "id": EXAMPLE_SITE,
            "name": "My blog",
            "api_key": "psk_3f2a…",
            "token_secret": "9b1c…",
        },
        answer_headers=("Location", "Palaver-Position"),
        problems=("unauthorized", "idempotency-key-reused", *_BODY_PROBLEMS, *_WRITE_PROBLEMS),
        security="admin",
    ),
    Operation(
        method="GET",
        template="/v1/sites",
        name="listSites",
        summary="List the sites",
        description="In the order of their ids: by creation, as the leaders' clocks show it. The leader answers.",
        parameters=(
            Parameter(
                name="limit",
                where="query",
                description="Sites of a page.",
                schema={"type": "integer", "minimum": 1, "maximum": 200, "default": 50},
            ),
            Parameter(name="cursor", where="query", description="`next` of an earlier page.", schema=_TEXT),
        ),
        answer=models.SitePage,
        answer_example={"sites": [_SITE], "next": None},
        answer_headers=("Link",),
        problems=("unauthorized", "invalid-request", "invalid-cursor", *_LEADER_PROBLEMS),
        security="admin",
        at_leader=True,
    ),
    Operation(
        method="GET",
        template="/v1/sites/{site}",
        name="readSite",
        summary="Read a site",
        description="The leader answers, whose ledger knows the keys: right after the creation, and in each region.",
        answer=models.Site,
        answer_example=_SITE,
        problems=("unauthorized", "unknown-site", *_LEADER_PROBLEMS),
        security="site",
        at_leader=True,
    ),
    Operation(
        method="PATCH",
        template="/v1/sites/{site}",
        name="editSite",
        summary="Change the name or the origins of a site",
        description="A field that is left out stays as it is; `origins` replaces the whole list. A second request with"
        " the same body changes nothing and is answered in the same way. A region uses new origins within about ten"
        " seconds.",
        request=models.SiteChanges,
        request_example={"origins": ["https://example.com", "https://www.example.com"]},
        answer=models.Site,
        answer_example={**_SITE, "origins": ["https://example.com", "https://www.example.com"]},
        answer_headers=("Palaver-Position",),
        problems=("unauthorized", "unknown-site", *_BODY_PROBLEMS, *_WRITE_PROBLEMS),
        security="admin",
    ),
    Operation(
        method="POST",
        template=_COMMENTS,
        name="postComment",
        summary="Post a comment",
        description=f"`thread`: {_KEY_RULES}",
        parameters=(IDEMPOTENCY_KEY,),
        request=models.NewComment,
        request_example={
            "thread": "https://example.com/posts/hello",
            "title": "Hello",
            "body": "I *like* this.",
            "author": {"name": "Ann"},
        },
        status=201,
        answer=models.CommentShape,
        answer_example=EXAMPLE_COMMENT,
        answer_headers=("Location", "ETag", "Palaver-Position"),
        problems=(
            "unknown-site",
            "thread-closed",
            "body-too-long",
            "too-deep",
            "unknown-parent",
            "idempotency-key-reused",
            *_BODY_PROBLEMS,
            *_WRITE_PROBLEMS,
        ),
    ),
    Operation(
        method="GET",
        template=_COMMENTS,
        name="readThread",
        summary="Read a page of a thread",
        description="A tree, cut by `limit`, `depth` and a bound on the page: wherever something was left out, a"
        " `next` cursor continues there. Replies are in the order they were written. A thread nobody has written"
        " in is an empty page.",
        parameters=(
            _thread_parameter(_KEY_RULES),
            Parameter(
                name="sort",
                where="query",
                description="Order of the first level.",
                schema={"type": "string", "enum": ["newest", "oldest"], "default": "newest"},
            ),
            Parameter(
                name="limit",
                where="query",
                description="Comments of the first level.",
                schema={"type": "integer", "minimum": 1, "maximum": 200, "default": 50},
            ),
            Parameter(
                name="depth",
                where="query",
                description="Levels of the tree; 1 is the first level alone.",
                schema={"type": "integer", "minimum": 1, "maximum": 21, "default": 21},
            ),
            Parameter(
                name="cursor",
                where="query",
                description="`next` of an earlier page with the same thread and sort.",
                schema=_TEXT,
            ),
            IF_NONE_MATCH,
            POSITION,
            CONSISTENCY,
        ),
        answer=models.ThreadPage,
        answer_example={"thread": _THREAD, "comments": [EXAMPLE_COMMENT], "next": None},
        answer_headers=(*_READ_HEADERS, "Link"),
        problems=("invalid-cursor", *_READ_PROBLEMS),
    ),
    Operation(
        method="GET",
        template=_COMMENT,
        name="readComment",
        summary="Read one comment",
        parameters=(IF_NONE_MATCH, POSITION, CONSISTENCY),
        answer=models.CommentShape,
        answer_example=EXAMPLE_COMMENT,
        answer_headers=_READ_HEADERS,
        problems=("unknown-comment", *_READ_PROBLEMS),
    ),
    Operation(
        method="PATCH",
        template=_COMMENT,
        name="editComment",
        summary="Edit a comment",
        parameters=(_if_match(required=True),),
        request=models.CommentBody,
        request_example={"body": "I *love* this."},
        description="The answer is the comment without its replies, score and votes, which only views have. Its ETag"
        " names the version, for the next If-Match; a read's ETag names the counts of replies and votes as well.",
        answer=models.EditedComment,
        answer_example=_EDITED_COMMENT,
        answer_headers=("ETag", "Palaver-Position"),
        problems=(
            "unauthorized",
            "unknown-site",
            "unknown-comment",
            "version-mismatch",
            "body-too-long",
            "precondition-required",
            *_BODY_PROBLEMS,
            *_WRITE_PROBLEMS,
        ),
        security="site",
    ),
    Operation(
        method="DELETE",
        template=_COMMENT,
        name="deleteComment",
        summary="Delete a comment",
        description="The comment becomes a tombstone: its place in the tree stays, its words, author and votes go.",
        parameters=(_if_match(required=False),),
        status=204,
        answer_headers=("Palaver-Position",),
        problems=(
            "unauthorized",
            "unknown-site",
            "unknown-comment",
            "version-mismatch",
            "invalid-request",
            *_WRITE_PROBLEMS,
        ),
        security="site",
    ),
    Operation(
        method="PUT",
        template=_VOTE,
        name="setVote",
        summary="Set the vote of a user on a comment",
        description="A user has one vote on each comment: 1, -1, or 0 to withdraw it. A second request with the same"
        " body changes nothing and is answered in the same way. `user` is the site's own id of the user; prefer an"
        " opaque id, because it is stored until the comment is deleted. A closed thread still takes votes, a read-only"
        " thread takes none.",
        request=models.Vote,
        request_example={"value": 1, "user": "user-4711"},
        answer=models.VoteCounts,
        answer_example={"up": 3, "down": 1, "score": 2, "mine": 1},
        answer_headers=("Palaver-Position",),
        problems=(
            "unauthorized",
            "unknown-site",
            "unknown-comment",
            "thread-closed",
            *_BODY_PROBLEMS,
            *_WRITE_PROBLEMS,
        ),
        security="site",
    ),
    Operation(
        method="GET",
        template="/v1/sites/{site}/counts",
        name="countComments",
        summary="Count the comments of up to 100 threads",
        parameters=(
            _thread_parameter("A thread key; give it once for each thread."),
            IF_NONE_MATCH,
            POSITION,
            CONSISTENCY,
        ),
        answer=models.Counts,
        answer_example={"counts": {"https://example.com/posts/hello": 3}},
        answer_headers=_READ_HEADERS,
        problems=_READ_PROBLEMS,
    ),
    Operation(
        method="POST",
        template="/v1/sites/{site}/preview",
        name="previewComment",
        summary="Render Markdown as a comment would be",
        parameters=(IDEMPOTENCY_KEY,),
        request=models.CommentBody,
        request_example={"body": "I *like* this."},
        answer=models.Preview,
        answer_example={"html": "<p>I <em>like</em> this.</p>"},
        problems=("unknown-site", "body-too-long", "malformed-request", "overloaded", *_BODY_PROBLEMS),
        in_region=True,
    ),
    Operation(
        method="GET",
        template="/healthz",
        name="isAlive",
        summary="Whether the process is alive",
        answer=models.Alive,
        answer_example={"alive": True},
    ),
    Operation(
        method="GET",
        template="/readyz",
        name="isReady",
        summary="Whether the process can serve, and what is missing",
        answer=models.Ready,
        answer_example={"ready": True},
        problems=("not-ready",),
    ),
    Operation(
        method="GET",
        template="/v1/openapi.json",
        name="readDocument",
        summary="This document",
        problems=("invalid-request",),
    ),
    Operation(
        method="GET",
        template="/docs",
        name="readDocs",
        summary="This document as a page",
        problems=("invalid-request",),
        media_type="text/html",
    ),
)


def template_of(path: str) -> str | None:
    """Return the template that matches a path, or None."""
    return next((one.template for one in OPERATIONS if _pattern(one.template).fullmatch(path)), None)


def allowed_methods(path: str) -> list[str]:
    """Return the methods that either process accepts at a path; empty for an unknown path."""
    return methods_of(template_of(path))


def methods_of(template: str | None) -> list[str]:
    """Return the methods that either process accepts for a template."""
    methods = [operation.method for operation in OPERATIONS if operation.template == template]
    return [*methods, *(["HEAD"] if "GET" in methods else []), "OPTIONS"] if methods else []


@cache
def _pattern(template: str) -> re.Pattern[str]:
    return re.compile(re.sub(r"\{[a-z]+\}", "[^/]+", template))

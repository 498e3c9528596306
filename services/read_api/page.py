"""Parses the query of a thread page, and builds the page's JSON from the rows of the view.

Decides the shape of the comment tree and where it has cursors. No I/O.
"""

import asyncio
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, Protocol
from urllib.parse import urlencode
from uuid import UUID

import orjson

from services.api.comment import DELETED, Comment, comment_json
from services.api.cors import SITE_PREFIX
from services.api.cursor import Cursor, decode_cursor, encode_cursor
from services.api.markdown import HtmlCache
from services.api.problems import invalid
from services.api.requests import parse_count, parse_query
from services.api.thread_key import parse_thread_key
from services.telemetry.middleware import Scope

LIMIT_MAX: Final = 200
DEPTH_MAX: Final = 21
SORTS: Final = ("newest", "oldest")
# Comments rendered before the event loop may run other tasks: about two milliseconds of Markdown. A long comment is
# rendered in a thread.
RENDERED_AT_ONCE: Final = 16

_FIRST: Final = datetime(1, 1, 1, tzinfo=UTC)
_LAST: Final = datetime(9999, 12, 31, tzinfo=UTC)
_NIL: Final = UUID(int=0)
_MAX: Final = UUID(int=2**128 - 1)


class Row(Protocol):
    """A row of the view, by column."""

    def __getitem__(self, key: str, /) -> Any: ...  # noqa: ANN401 - columns are of any type


@dataclass(frozen=True, slots=True, kw_only=True)
class PageQuery:
    """The parsed query of a request. Different spellings of the same query are equal."""

    site: UUID
    thread: str
    sort: str
    limit: int
    depth: int
    cursor: Cursor | None

    @property
    def field(self) -> str:
        """Name of this query among the cached pages of its thread."""
        cursor = "" if self.cursor is None else self.cursor_text(self.cursor)
        return f"{self.sort}:{self.limit}:{self.depth}:{cursor}"

    def cursor_text(self, cursor: Cursor) -> str:
        """Return a cursor of this list as text."""
        return encode_cursor(cursor, site=self.site, thread=self.thread, sort=self.sort)

    def arguments(self, *, replies_max: int, comments_max: int, bytes_max: int) -> tuple[object, ...]:
        """Return the arguments of `page.sql`."""
        cursor = self.cursor or Cursor(parent=None)
        descending = cursor.parent is None and self.sort == "newest"
        return (
            self.site,
            self.thread,
            "replies" if cursor.parent is not None else self.sort,
            cursor.parent,
            cursor.created_at or (_LAST if descending else _FIRST),
            cursor.after or (_MAX if descending else _NIL),
            self.limit,
            replies_max,
            self.depth,
            comments_max,
            bytes_max,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """A page as it is cached and sent.

    Attributes:
        version: `page_version` of its thread in the view; None if the thread does not exist yet.
        etag: Hash of the body, quoted.
        link: Value of the Link header; empty if there is no next page.
        body: The JSON.
    """

    version: int | None
    etag: bytes
    link: bytes
    body: bytes


def parse_page_query(scope: Scope, site: UUID, *, limit_default: int) -> PageQuery:
    """Parse the query of a thread page.

    Raises:
        Problem: A parameter is missing, unknown, repeated or out of range, or the cursor is of another list.
    """
    values = parse_query(scope, ("thread", "sort", "limit", "depth", "cursor"))
    first = {name: texts[0] for name, texts in values.items()}
    if "thread" not in first:
        raise invalid("thread", "is required")
    thread = parse_thread_key(first["thread"])
    sort = first.get("sort", SORTS[0])
    if sort not in SORTS:
        raise invalid("sort", f"must be one of {', '.join(SORTS)}")
    cursor = first.get("cursor")
    return PageQuery(
        site=site,
        thread=thread,
        sort=sort,
        limit=parse_count("limit", first.get("limit"), default=limit_default, maximum=LIMIT_MAX),
        depth=parse_count("depth", first.get("depth"), default=DEPTH_MAX, maximum=DEPTH_MAX),
        cursor=None if cursor is None else decode_cursor(cursor, site=site, thread=thread, sort=sort),
    )


async def build_page(query: PageQuery, rows: Sequence[Row], html: HtmlCache, *, bytes_max: int) -> Page:
    """Build the page from the rows of `page.sql`. There is at least one row, because the site exists.

    A page has at most bytes_max bytes, but at least one comment.
    """
    head = rows[0]
    found = rows if head["thread_id"] is not None and head["id"] is not None else ()
    # The row beyond the limit only shows that there is a next page.
    level_one = [place for place, row in enumerate(found) if row["level"] == 1]
    beyond = level_one[query.limit :]
    shown = [row for place, row in enumerate(found) if place not in beyond]
    comments = await _comments(query, shown, html)
    body, following = _document(query, head, shown, comments, more=bool(beyond))
    if len(body) > bytes_max:
        fitting = _fitting(query, head, comments, bytes_max)
        more = bool(beyond) or any(row["level"] == 1 for row in shown[fitting:])
        body, following = _document(query, head, shown[:fitting], comments, more=more)
    return Page(
        version=head["page_version"],
        etag=hash_tag(body),
        link=b"" if following is None else _link(query, following),
        body=body,
    )


async def comment_of(row: Row, thread: str, html: HtmlCache) -> Comment:
    """Return the comment of a row of the view; a tombstone has neither body nor author."""
    gone = row["state"] == DELETED
    body: str | None = None if gone else row["body"]
    return Comment(
        id=row["id"],
        thread=thread,
        parent=row["parent_id"],
        author_id=None if gone else row["author_id"],
        author_name=None if gone else row["author_name"],
        author_url=None if gone else row["author_url"],
        body=body,
        html=None if body is None else await html.render(row["id"], row["version"], body),
        created_at=row["created_at"],
        edited_at=row["edited_at"],
        version=row["version"],
        state=row["state"],
        up=row["up"],
        down=row["down"],
        reply_count=row["reply_count"],
    )


async def _comments(query: PageQuery, rows: Sequence[Row], html: HtmlCache) -> list[Comment]:
    comments: list[Comment] = []
    for number, row in enumerate(rows):
        if number % RENDERED_AT_ONCE == RENDERED_AT_ONCE - 1:
            await asyncio.sleep(0)
        comments.append(await comment_of(row, query.thread, html))
    return comments


def _document(
    query: PageQuery, head: Row, rows: Sequence[Row], comments: Sequence[Comment], *, more: bool
) -> tuple[bytes, str | None]:
    """Return the JSON of a page, and the cursor to the rest of the first level.

    Rows are ordered by level, then by parent. The first N rows are therefore some complete levels and the first
    replies of some comments of the next level, so each list that is cut has a cursor to its rest.
    """
    first = [row for row in rows if row["level"] == 1]
    parent = None if query.cursor is None else query.cursor.parent
    following = _after(query, parent, first[-1]) if more else None
    children: dict[UUID, list[Row]] = {}
    for row in rows:
        if row["level"] > 1:
            children.setdefault(row["parent_id"], []).append(row)
    built: dict[UUID, dict[str, object]] = {}
    # In reverse order each comment is built after its replies.
    for row, comment in zip(reversed(rows), reversed(comments[: len(rows)]), strict=True):
        replies = children.get(row["id"], [])
        after: str | None = None
        if row["reply_count"] > len(replies):
            after = _after(query, row["id"], replies[-1]) if replies else query.cursor_text(Cursor(parent=row["id"]))
        built[row["id"]] = comment_json(comment, [built[reply["id"]] for reply in replies], after)
    return _json(query, head, [built[row["id"]] for row in first], following), following


def _json(query: PageQuery, head: Row, comments: Sequence[dict[str, object]], following: str | None) -> bytes:
    return orjson.dumps(
        {
            "thread": {
                "key": query.thread,
                "id": None if head["thread_id"] is None else str(head["thread_id"]),
                "title": head["thread_title"],
                "state": head["thread_state"] or "open",
                "count": head["thread_count"] or 0,
            },
            "comments": comments,
            "next": following,
        }
    )


def hash_tag(body: bytes) -> bytes:
    """Return the ETag of an answer without a version: a hash of its bytes."""
    return b'"%b"' % hashlib.blake2b(body, digest_size=12).hexdigest().encode()


def _fitting(query: PageQuery, head: Row, comments: Sequence[Comment], bytes_max: int) -> int:
    """Return how many comments, each with a cursor, fit into a page; at least one."""
    cursor = query.cursor_text(Cursor(parent=None))
    taken = len(_json(query, head, (), cursor))
    for number, comment in enumerate(comments):
        taken += len(orjson.dumps(comment_json(comment, (), cursor))) + len(",")
        if taken > bytes_max:
            return max(number, 1)
    return len(comments)


def _after(query: PageQuery, parent: UUID | None, row: Row) -> str:
    return query.cursor_text(Cursor(parent=parent, created_at=row["created_at"], after=row["id"]))


def _link(query: PageQuery, cursor: str) -> bytes:
    values = {
        "thread": query.thread,
        "sort": query.sort,
        "limit": query.limit,
        "depth": query.depth,
        "cursor": cursor,
    }
    return f'<{SITE_PREFIX}{query.site}/comments?{urlencode(values)}>; rel="next"'.encode("ascii")

"""Formats a comment as JSON, its entity tag and its times, for comments from the ledger and from the view."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final
from uuid import UUID

DELETED: Final = "deleted"


@dataclass(frozen=True, slots=True, kw_only=True)
class Comment:
    """A comment as the API shows it; the fields of a tombstone that held personal data are None."""

    id: UUID
    thread: str
    parent: UUID | None
    author_id: str | None
    author_name: str | None
    author_url: str | None
    body: str | None
    html: str | None
    created_at: datetime
    edited_at: datetime | None
    version: int
    state: str
    up: int = 0
    down: int = 0
    reply_count: int = 0

    @property
    def score(self) -> int:
        """Votes up minus votes down."""
        return self.up - self.down


def timestamp(moment: datetime) -> str:
    """Return RFC 3339 in UTC with microseconds. `moment` must be in UTC; both databases return UTC."""
    return f"{moment.replace(tzinfo=None).isoformat(timespec='microseconds')}Z"


def ledger_json(comment: Comment) -> dict[str, object]:
    """Return the fields of a comment's JSON object that the ledger has: all except replies, score and votes."""
    author: dict[str, object] = {"id": comment.author_id, "name": comment.author_name}
    if comment.author_url is not None:
        author["url"] = comment.author_url
    return {
        "id": str(comment.id),
        "thread": comment.thread,
        "parent": None if comment.parent is None else str(comment.parent),
        "author": author,
        "body": comment.body,
        "html": comment.html,
        "created_at": timestamp(comment.created_at),
        "edited_at": None if comment.edited_at is None else timestamp(comment.edited_at),
        "version": comment.version,
        "state": comment.state,
    }


def comment_json(
    comment: Comment, replies: Sequence[dict[str, object]] = (), replies_next: str | None = None
) -> dict[str, object]:
    """Return the complete JSON object of a comment with these replies."""
    return ledger_json(comment) | {
        "score": comment.score,
        "votes": {"up": comment.up, "down": comment.down},
        "replies": {"count": comment.reply_count, "items": list(replies), "next": replies_next},
    }


def entity_tag(comment: Comment) -> bytes:
    """Return the ETag of a read: the version, which If-Match compares, then the counts of replies and votes."""
    return b'"%d-%d-%d-%d"' % (comment.version, comment.reply_count, comment.up, comment.down)


def version_tag(version: int) -> bytes:
    """Return the ETag of an edit: the version, for If-Match. It is never equal to the ETag of a read (ADR 0036)."""
    return b'"%d"' % version

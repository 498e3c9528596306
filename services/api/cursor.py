"""Encodes the place at which a page ended as an opaque cursor, which continues only the list that it came from.

Decides the wire form: a checksum over site, thread and sort binds a cursor to its list. A cursor of another list, a
truncated one and a changed one are therefore refused. The checksum is no secret: all comments that a cursor can
reach are public, and each region must accept the cursors of all regions.
"""

import base64
import hashlib
import struct
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final
from uuid import UUID

from services.api.problems import Problem

_BODY: Final = struct.Struct(">Bq16s16s")
# 41 + 10 bytes are a multiple of three, so the base64 text has neither padding nor unused bits.
_DIGEST_BYTES: Final = 10
_FORMAT: Final = 1
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_NIL: Final = UUID(int=0)
CURSOR_CHARS: Final = (_BODY.size + _DIGEST_BYTES) // 3 * 4
assert (_BODY.size + _DIGEST_BYTES) % 3 == 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Cursor:
    """A place in a list of comments.

    Attributes:
        parent: The comment whose replies the list contains; None for the comments of the first level.
        created_at: Time of the last comment of the previous page; None to begin with the first.
        after: Id of the last comment of the previous page; None to begin with the first.
    """

    parent: UUID | None
    created_at: datetime | None = None
    after: UUID | None = None


def encode_cursor(cursor: Cursor, *, site: UUID, thread: str, sort: str) -> str:
    """Return the text of a cursor for this list."""
    microseconds = 0 if cursor.created_at is None else (cursor.created_at - _EPOCH) // timedelta(microseconds=1)
    body = _BODY.pack(_FORMAT, microseconds, (cursor.after or _NIL).bytes, (cursor.parent or _NIL).bytes)
    return base64.urlsafe_b64encode(_digest(body, site, thread, sort) + body).decode()


def decode_cursor(text: str, *, site: UUID, thread: str, sort: str) -> Cursor:
    """Parse a cursor for this list.

    Raises:
        Problem: `invalid-cursor`: it is malformed, or belongs to another site, thread or sort.
    """
    try:
        cursor = _decode(text, site, thread, sort)
    except (ValueError, OverflowError):
        cursor = None
    if cursor is None:
        raise Problem(
            "invalid-cursor", "Use a cursor as it was given, with the site, thread and sort it was given for."
        )
    return cursor


def _decode(text: str, site: UUID, thread: str, sort: str) -> Cursor | None:
    # The decoder accepts the characters of the standard alphabet as well; a cursor would have two texts.
    if len(text) != CURSOR_CHARS or "+" in text or "/" in text:
        return None
    data = base64.b64decode(text, altchars=b"-_", validate=True)
    digest, body = data[:_DIGEST_BYTES], data[_DIGEST_BYTES:]
    form, microseconds, after, parent = _BODY.unpack(body)
    if form != _FORMAT or digest != _digest(body, site, thread, sort):
        return None
    first = after == _NIL.bytes
    return Cursor(
        parent=None if parent == _NIL.bytes else UUID(bytes=parent),
        created_at=None if first else _EPOCH + timedelta(microseconds=microseconds),
        after=None if first else UUID(bytes=after),
    )


def _digest(body: bytes, site: UUID, thread: str, sort: str) -> bytes:
    digest = hashlib.blake2b(body, digest_size=_DIGEST_BYTES, person=b"palaver-cursor")
    digest.update(site.bytes + sort.encode() + b"\x00" + thread.encode())
    return digest.digest()

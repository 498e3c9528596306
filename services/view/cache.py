"""The protocol of the page cache: Redis keys, scripts and messages that the writer and the readers share.

Decides how a page that was read before a change can never be found after it: a thread's hash carries the
version of its newest change, the store script refuses older pages, and every change leaves its version behind
(`INVALIDATE_SCRIPT`) before it is announced. Refuses to know connections and page contents.

The writer (replicator), at start: `SET GENERATION_KEY <random> NX`, `INCR` it, publish `encode_flush`; this
covers a crash between the view's commit and the invalidation. A reader that finds no generation keeps nothing in
Redis until it hears a flush, and Redis must not evict the key: `volatile-lru`, for it alone has no time to live.

After each batch: run `INVALIDATE_SCRIPT` on `thread_key(…)` of each thread that moved, publish
`encode_invalidations`, then publish `encode_applied` with the new position. The order on the channel is the
promise: who has heard a position has heard every invalidation up to it.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, cast
from uuid import UUID

import orjson

GENERATION_KEY: Final = "palaver:generation"
CHANNEL: Final = "palaver:invalidate"
VERSION_FIELD: Final = "version"

# Longer than any reader holds a page between its read and its store: a version outlives late writers.
THREAD_TTL_S: Final = 3600
# Different queries of one thread that are kept; more than a page's widgets ask for, less than a crawler does.
FIELDS_MAX: Final = 64
# Threads of one script call and one message: Redis serves nobody else meanwhile, and 512 take below 1 ms.
INVALIDATIONS_MAX: Final = 512

_FOLDER: Final = Path(__file__).parent / "lua"
STORE_SCRIPT: Final = (_FOLDER / "store.lua").read_text("utf-8")
"""KEYS: thread_key. ARGV: version, field, bytes, THREAD_TTL_S, FIELDS_MAX. Returns 1 when stored."""
INVALIDATE_SCRIPT: Final = (_FOLDER / "invalidate.lua").read_text("utf-8")
"""KEYS: thread_keys (at most INVALIDATIONS_MAX). ARGV: THREAD_TTL_S, then the version of each key."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Invalidation:
    """A thread moved on.

    Attributes:
        site: Id of the site.
        key: Key of the thread as the ledger has it (already canonical).
        version: The thread's new `page_version`.
    """

    site: UUID
    key: str
    version: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Flush:
    """Everything kept is void; the new generation counts."""

    generation: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Applied:
    """The view has everything up to a position, and every invalidation up to it has been published.

    Attributes:
        position: Position token.
        fresh_at_us: Microseconds since 1970 at which the view had everything.
    """

    position: str
    fresh_at_us: int


class MessageMalformed(ValueError):
    """A message on the channel is none of ours; a reader treats it as a flush."""


def thread_key(generation: int, site: UUID, key: str) -> str:
    """Return the Redis key of a thread's pages."""
    return f"palaver:{generation}:thread:{site}:{hashlib.sha256(key.encode()).hexdigest()[:32]}"


def encode_invalidations(invalidations: Iterable[Invalidation]) -> bytes:
    """Return the message for threads that moved on; at most INVALIDATIONS_MAX of them."""
    rows = [{"site": str(i.site), "key": i.key, "version": i.version} for i in invalidations]
    assert 0 < len(rows) <= INVALIDATIONS_MAX, len(rows)
    return orjson.dumps(rows)


def encode_flush(generation: int) -> bytes:
    """Return the message that voids everything kept under older generations."""
    return orjson.dumps({"flush": generation})


def encode_applied(position: str, fresh_at_us: int) -> bytes:
    """Return the message that says how far the view is."""
    return orjson.dumps({"applied": position, "fresh_at_us": fresh_at_us})


def decode_message(data: bytes) -> list[Invalidation] | Flush | Applied:
    """Read a message of the channel.

    Raises:
        MessageMalformed: It is none of ours.
    """
    try:
        document: object = orjson.loads(data)
        if isinstance(document, list):
            rows = cast("list[dict[str, object]]", document)
            return [
                Invalidation(site=UUID(str(r["site"])), key=str(r["key"]), version=int(str(r["version"]))) for r in rows
            ]
        if isinstance(document, dict):
            fields = cast("dict[str, object]", document)
            if "flush" in fields:
                return Flush(generation=int(str(fields["flush"])))
            return Applied(position=str(fields["applied"]), fresh_at_us=int(str(fields["fresh_at_us"])))
    except (ValueError, KeyError, TypeError) as error:
        raise MessageMalformed(str(error)) from error
    raise MessageMalformed("neither a list nor an object")

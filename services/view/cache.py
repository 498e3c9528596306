"""Defines the protocol of the page cache: the Redis keys, scripts and messages that its writer and its readers share.

Decides how a page that was read before a change is never served from Redis after it. Redis stores the version of a
thread's newest change beside the hash of the thread's pages. The store script refuses older pages, and
`INVALIDATE_SCRIPT` stores the version of a change before it publishes the change. The version expires separately from
the pages, and later. Does not know connections and the contents of pages.

The writer (the replicator) runs `BEGIN_SCRIPT` when it starts, when Redis was unreachable, and each time apply reads
its checkpoint, because the invalidations of earlier commits may not have been published. Redis must not evict the
generation: it runs with `volatile-lru`, and the generation is the only key without a time to live.

After each batch the writer runs `INVALIDATE_SCRIPT` for the changed threads. Each call publishes
`encode_invalidations`, and the last call of a batch also publishes `encode_applied` with the new position. Without a
batch the writer repeats the last position every `HEARTBEAT_S`. The channel therefore guarantees that a reader that has
received a position has received every invalidation up to it. A reader that receives nothing for `SILENCE_S_MAX` may
have missed an invalidation.

A reader caches pages from the first position that it receives on a subscription. As a second safeguard `STORE_SCRIPT`
bounds the lifetime of each page, even if no invalidation arrives.
"""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, cast
from uuid import UUID

import orjson

GENERATION_KEY: Final = "palaver:generation"
CHANNEL: Final = "palaver:invalidate"

# Longer than the time between a reader's query and its store, so that a late store still finds the version. No page
# lives longer (PALAVER_PAGE_LIFE_S), and each store restarts the lifetime of the version.
TOMBSTONE_TTL_S: Final = 3600
# Cached queries per thread: more than the widgets of a page request, and fewer than a crawler requests.
FIELDS_MAX: Final = 64
# Threads per script call and per message. Redis serves no other client meanwhile; 512 threads take less than 1 ms.
INVALIDATIONS_MAX: Final = 512
# The writer repeats its position at least this often, so that readers distinguish an idle ledger from a lost channel.
HEARTBEAT_S: Final = 0.5
# Six heartbeats, so that readers do not give up a writer that a busy machine only delays. Claims do not depend on it,
# because their age follows from the announcements received. It bounds how long a reader serves cached pages after the
# last message.
SILENCE_S_MAX: Final = 3.0

_FOLDER: Final = Path(__file__).parent / "lua"
STORE_SCRIPT: Final = (_FOLDER / "store.lua").read_text("utf-8")
"""KEYS: `thread_key`, `version_key`. ARGV: see `store_arguments`. Returns 1 if the page was stored, otherwise 0."""
INVALIDATE_SCRIPT: Final = (_FOLDER / "invalidate.lua").read_text("utf-8")
"""KEYS: GENERATION_KEY. ARGV: see `invalidate_arguments`. Fails if there is no generation."""
BEGIN_SCRIPT: Final = (_FOLDER / "begin_generation.lua").read_text("utf-8")
"""KEYS: GENERATION_KEY. ARGV: the start number if Redis has no generation, CHANNEL. Returns the new generation."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Invalidation:
    """A thread has changed.

    Attributes:
        site: Id of the site.
        key: Key of the thread in the canonical form that the ledger stores.
        version: The thread's new `page_version`.
    """

    site: UUID
    key: str
    version: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Flush:
    """All cached pages are invalid; a new generation has begun."""

    generation: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Applied:
    """The view has every change up to a position, and every invalidation up to it has been published.

    Attributes:
        position: Position token.
        fresh_at_us: Time at which the view had every change, in microseconds since 1970.
    """

    position: str
    fresh_at_us: int


class MessageMalformed(ValueError):
    """A message on the channel has an unknown format. A reader cannot tell what it missed, and subscribes again."""


def thread_key(generation: int, site: UUID, key: str) -> str:
    """Return the Redis key of a thread's pages."""
    return f"palaver:{generation}:thread:{_thread_name(site, key)}"


def version_key(generation: int, site: UUID, key: str) -> str:
    """Return the Redis key of the version of a thread's newest change."""
    return f"{thread_key(generation, site, key)}:version"


def store_arguments(version: int, field: str, page: bytes, life_s: int) -> list[str | bytes | int]:
    """Return the ARGV of `STORE_SCRIPT` for a page, the query that it answers (`field`) and its lifetime."""
    assert life_s <= TOMBSTONE_TTL_S, life_s
    return [version, field, page, life_s, FIELDS_MAX, TOMBSTONE_TTL_S]


def invalidate_arguments(invalidations: Sequence[Invalidation], messages: Sequence[bytes]) -> list[str | bytes | int]:
    """Return the ARGV of `INVALIDATE_SCRIPT`: at most INVALIDATIONS_MAX threads, and messages to publish after them."""
    assert len(invalidations) <= INVALIDATIONS_MAX, len(invalidations)
    threads = [part for one in invalidations for part in (_thread_name(one.site, one.key), one.version)]
    return [CHANNEL, TOMBSTONE_TTL_S, len(messages), *messages, *threads]


def encode_invalidations(invalidations: Iterable[Invalidation]) -> bytes:
    """Return the message that invalidates threads: at least one, at most INVALIDATIONS_MAX."""
    rows = [{"site": str(i.site), "key": i.key, "version": i.version} for i in invalidations]
    assert 0 < len(rows) <= INVALIDATIONS_MAX, len(rows)
    return orjson.dumps(rows)


def encode_applied(position: str, fresh_at_us: int) -> bytes:
    """Return the message that announces the position of the view."""
    return orjson.dumps({"applied": position, "fresh_at_us": fresh_at_us})


def decode_message(data: bytes) -> list[Invalidation] | Flush | Applied:
    """Decode a message of the channel.

    Raises:
        MessageMalformed: The message has an unknown format.
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


def _thread_name(site: UUID, key: str) -> str:
    """Return the part of a thread's key that `invalidate.lua` appends to the generation."""
    return f"{site}:{hashlib.sha256(key.encode()).hexdigest()[:32]}"

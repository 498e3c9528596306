"""The protocol of the page cache: Redis keys, scripts and messages that the writer and the readers share.

Decides how a page that was read before a change can never be found after it: beside the hash of a thread's pages is the
version of its newest change, the store script refuses older pages, and every change leaves its version behind
(`INVALIDATE_SCRIPT`) before it is announced. The version has a life of its own, which is longer than that of the pages.
Refuses to know connections and page contents.

The writer (replicator) runs `BEGIN_SCRIPT` when it starts, when Redis was away, and each time apply begins at a
checkpoint: what was committed before may have been announced by nobody. Redis must not evict the generation:
`volatile-lru`, for it alone has no time to live.

After each batch it runs `INVALIDATE_SCRIPT` for the threads that moved. The script publishes
`encode_invalidations`, and the last one of a batch `encode_applied` with the new position. Without a batch the writer
repeats the last position each `HEARTBEAT_S`. So the channel promises: whoever has heard a position has heard every
invalidation up to it, and whoever hears nothing for `SILENCE_S_MAX` may have missed one.

A reader keeps pages from the first position that it hears on a subscription. A page lives for a bounded time
(`STORE_SCRIPT`), whatever is heard: the second line of defence.
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

# Longer than any reader holds a page between its read and its store: a version outlives late writers. No page lives
# longer (PALAVER_PAGE_LIFE_S), and each store begins the life of the version again.
TOMBSTONE_TTL_S: Final = 3600
# Different queries of one thread that are kept; more than a page's widgets ask for, less than a crawler does.
FIELDS_MAX: Final = 64
# Threads of one script call and one message: Redis serves nobody else meanwhile, and 512 take below 1 ms.
INVALIDATIONS_MAX: Final = 512
# The writer repeats its position at least this often: an idle ledger is told from a Redis that does not answer.
HEARTBEAT_S: Final = 0.5
# Six heartbeats: a writer that a busy machine delays is not taken for one that is gone. Claims do not depend on it,
# because they age by what was heard; it bounds how long a kept page is served after the last word.
SILENCE_S_MAX: Final = 3.0

_FOLDER: Final = Path(__file__).parent / "lua"
STORE_SCRIPT: Final = (_FOLDER / "store.lua").read_text("utf-8")
"""KEYS: `thread_key`, `version_key`. ARGV: see `store_arguments`. Returns 1 when stored."""
INVALIDATE_SCRIPT: Final = (_FOLDER / "invalidate.lua").read_text("utf-8")
"""KEYS: GENERATION_KEY. ARGV: see `invalidate_arguments`. Fails when there is no generation."""
BEGIN_SCRIPT: Final = (_FOLDER / "begin_generation.lua").read_text("utf-8")
"""KEYS: GENERATION_KEY. ARGV: where a Redis without a generation begins, CHANNEL. Returns the new generation."""


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
    """A message on the channel is none of ours; a reader cannot know what it missed, and subscribes anew."""


def thread_key(generation: int, site: UUID, key: str) -> str:
    """Return the Redis key of a thread's pages."""
    return f"palaver:{generation}:thread:{_thread_name(site, key)}"


def version_key(generation: int, site: UUID, key: str) -> str:
    """Return the Redis key of the version of a thread's newest change."""
    return f"{thread_key(generation, site, key)}:version"


def store_arguments(version: int, field: str, page: bytes, life_s: int) -> list[str | bytes | int]:
    """Return the ARGV of `STORE_SCRIPT`: a page, what it is an answer to, and the seconds that it lives."""
    assert life_s <= TOMBSTONE_TTL_S, life_s
    return [version, field, page, life_s, FIELDS_MAX, TOMBSTONE_TTL_S]


def invalidate_arguments(invalidations: Sequence[Invalidation], messages: Sequence[bytes]) -> list[str | bytes | int]:
    """Return the ARGV of `INVALIDATE_SCRIPT`: threads, at most INVALIDATIONS_MAX, and what to publish after them."""
    assert len(invalidations) <= INVALIDATIONS_MAX, len(invalidations)
    threads = [part for one in invalidations for part in (_thread_name(one.site, one.key), one.version)]
    return [CHANNEL, TOMBSTONE_TTL_S, len(messages), *messages, *threads]


def encode_invalidations(invalidations: Iterable[Invalidation]) -> bytes:
    """Return the message for threads that moved on; at most INVALIDATIONS_MAX of them."""
    rows = [{"site": str(i.site), "key": i.key, "version": i.version} for i in invalidations]
    assert 0 < len(rows) <= INVALIDATIONS_MAX, len(rows)
    return orjson.dumps(rows)


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


def _thread_name(site: UUID, key: str) -> str:
    """Return the part of a thread's key that `invalidate.lua` puts behind the generation."""
    return f"{site}:{hashlib.sha256(key.encode()).hexdigest()[:32]}"

"""Caches pages in the memory of the process, and drops each page when an invalidation for its thread arrives.

Decides which pages may be cached. An invalidation drops the older pages of its thread. A page whose read began before
the invalidation is cached only if its version is new enough. While the invalidation channel is not live, no page is
cached or served. Each page has a limited life, so that an invalidation that was never sent (a bug elsewhere) has a
limited effect. No I/O; the clock is passed in.

A page is cached in two encodings: as JSON, and gzipped after the first request that accepts gzip. Gzip makes the JSON
five to ten times smaller, which matters to readers on slow networks and to each proxy on the way.
"""

import sys
import time
import zlib
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final
from uuid import UUID

from services.read_api.claim import Claim
from services.read_api.page import Page
from services.telemetry.middleware import Scope
from services.telemetry.ready_protocol import header_lines

# The number of pages bounds the memory of small pages. The objects of a page take about a kilobyte besides its texts.
ENTRIES_MAX: Final = 8192
ENTRY_BYTES: Final = 1024

# A page below this size needs as many packets with gzip as without.
GZIP_BYTES_MIN: Final = 1400
# Level 4 takes half the time of zlib's default for 3 % more bytes on pages of comments.
GZIP_LEVEL: Final = 4
_GZIP_WINDOW: Final = 31  # the largest window, with a gzip header (zlib.compressobj)

Thread = tuple[UUID, str]
Request = tuple[str, bytes]
"""Path and raw query. Another spelling of the same query is another request."""


def request_of(scope: Scope) -> Request:
    """Return the key under which a page is cached."""
    return scope["path"], scope["query_string"]


@dataclass(slots=True, kw_only=True)
class Entry:
    """A cached page with its constant headers.

    Attributes:
        request: The key under which it is cached.
        claim: The claim of the page when it was read.
        ends_s: The end of its life in the cache, in seconds of the memory's clock.
        plain: The page as JSON.
        gzipped: The page gzipped; None until `keep_gzipped` is called, which does not happen for small pages.
    """

    page: Page
    request: Request
    thread: Thread
    claim: Claim
    ends_s: float = 0.0
    plain: "Encoded" = field(init=False)
    gzipped: "Encoded | None" = field(init=False, default=None)

    def __post_init__(self) -> None:
        self.plain = _encoded(self.page, self.page.body, self.page.etag, ())

    @property
    def shrinks(self) -> bool:
        """Whether the page is worth compressing."""
        return len(self.page.body) >= GZIP_BYTES_MIN

    @property
    def size(self) -> int:
        """Size in bytes, with the client's texts in its key."""
        gzipped = 0 if self.gzipped is None else self.gzipped.size
        key = sum(map(sys.getsizeof, (*self.request, self.thread[1])))
        return self.plain.size + gzipped + len(self.page.link) + key + ENTRY_BYTES

    def gzip(self) -> "Encoded":
        """Return the page gzipped. It takes about a millisecond for 100 kB and may run in a thread.

        It has its own entity tag, because a strong tag identifies one sequence of bytes (RFC 9110, 8.8.3).
        """
        compressor = zlib.compressobj(GZIP_LEVEL, zlib.DEFLATED, _GZIP_WINDOW)
        body = compressor.compress(self.page.body) + compressor.flush()
        return _encoded(self.page, body, gzip_etag(self.page.etag), ((b"content-encoding", b"gzip"),))


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoded:
    """One encoding of a page, with its constant headers.

    Attributes:
        headers: The first two describe the content; a 304 omits them.
        head: Status line and header lines of a 200.
        not_modified: Status line and header lines of a 304.
    """

    body: bytes
    etag: bytes
    headers: tuple[tuple[bytes, bytes], ...]
    head: bytes = field(init=False)
    not_modified: bytes = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "head", b"HTTP/1.1 200 OK\r\n" + header_lines(self.headers))
        object.__setattr__(self, "not_modified", b"HTTP/1.1 304 Not Modified\r\n" + header_lines(self.headers[2:]))

    @property
    def size(self) -> int:
        """Size in bytes."""
        return len(self.body) + len(self.head) + len(self.not_modified)


def gzip_etag(etag: bytes) -> bytes:
    """Return the entity tag of the gzipped page."""
    return etag[:-1] + b'-gzip"'


def _encoded(page: Page, body: bytes, etag: bytes, more: tuple[tuple[bytes, bytes], ...]) -> Encoded:
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", b"%d" % len(body)),
        (b"etag", etag),
        (b"cache-control", b"no-cache"),
        (b"vary", b"origin, accept-encoding"),
        *more,
    ]
    if page.link:
        headers.append((b"link", page.link))
    return Encoded(body=body, etag=etag, headers=tuple(headers))


@dataclass(slots=True, kw_only=True, eq=False)
class Build:
    """A page that is being read. It records the invalidations of its thread that arrive meanwhile.

    Builds are compared by identity: `end` must not remove an equal build of the same thread.
    """

    thread: Thread
    version_min: int = 0
    void: bool = False


class PageMemory:
    """A bounded cache of pages that evicts the least recently used. It caches nothing until `enable` is called."""

    def __init__(
        self,
        *,
        bytes_max: int,
        entries_max: int = ENTRIES_MAX,
        life_s: float,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        """Create an empty cache.

        Args:
            bytes_max: Bytes of pages, with their headers and keys.
            entries_max: Number of pages.
            life_s: Life of a page.
            now: Seconds of a clock that does not jump.
        """
        self._life_s = life_s
        self._now = now
        self._bytes_max = bytes_max
        self._entries_max = entries_max
        self._entries: OrderedDict[Request, Entry] = OrderedDict()
        self._by_thread: dict[Thread, set[Request]] = {}
        self._builds: dict[Thread, list[Build]] = {}
        self._bytes = 0
        self._enabled = False

    @property
    def enabled(self) -> bool:
        """Whether the invalidation channel is live, so that pages may be cached and served."""
        return self._enabled

    @property
    def bytes(self) -> int:
        """Size of the cached pages."""
        return self._bytes

    def get(self, request: Request) -> Entry | None:
        """Return the cached page of a request, or None."""
        entry = self._entries.get(request)
        if entry is None:
            return None
        if entry.ends_s <= self._now():
            self._drop(request)
            return None
        self._entries.move_to_end(request)
        return entry

    def begin(self, thread: Thread) -> Build:
        """Register a build before a page of this thread is read. The caller must call `end` afterwards."""
        build = Build(thread=thread, void=not self._enabled)
        self._builds.setdefault(thread, []).append(build)
        return build

    def end(self, build: Build) -> None:
        """Remove a build, whether its page was cached or not."""
        builds = self._builds[build.thread]
        builds.remove(build)
        if not builds:
            del self._builds[build.thread]

    def may_keep(self, build: Build, page: Page) -> bool:
        """Whether no invalidation has arrived that is newer than the page of this build."""
        return not build.void and page.version is not None and page.version >= build.version_min

    def keep(self, request: Request, build: Build, page: Page, claim: Claim) -> Entry:
        """Return the entry of a page, and cache it if `may_keep` allows. Must be called before `end`."""
        entry = Entry(page=page, request=request, thread=build.thread, claim=claim, ends_s=self._now() + self._life_s)
        if self.may_keep(build, page):
            self._drop(request)
            self._entries[request] = entry
            self._by_thread.setdefault(entry.thread, set()).add(request)
            self._bytes += entry.size
            self._make_room()
        return entry

    def keep_gzipped(self, request: Request, entry: Entry, encoded: Encoded) -> None:
        """Add the gzipped encoding to an entry if the entry is still cached."""
        if self._entries.get(request) is not entry or entry.gzipped is not None:
            return
        entry.gzipped = encoded
        self._bytes += encoded.size
        self._make_room()

    def invalidate(self, thread: Thread, version: int) -> None:
        """Drop the pages of a thread that are older than this version, and do not cache older builds."""
        for build in self._builds.get(thread, ()):
            build.version_min = max(build.version_min, version)
        for request in list(self._by_thread.get(thread, ())):
            kept = self._entries[request].page.version
            if kept is None or kept < version:
                self._drop(request)

    def enable(self) -> None:
        """Enable the cache, because the channel is live. Pages whose read began earlier are not cached."""
        self.clear()
        self._enabled = True

    def channel_lost(self) -> None:
        """Clear and disable the cache, because invalidations may be lost from now on."""
        self.clear()
        self._enabled = False

    def clear(self) -> None:
        """Drop all pages, and do not cache the pages of running builds."""
        self._entries.clear()
        self._by_thread.clear()
        self._bytes = 0
        for builds in self._builds.values():
            for build in builds:
                build.void = True

    def _make_room(self) -> None:
        while self._bytes > self._bytes_max or len(self._entries) > self._entries_max:
            self._drop(next(iter(self._entries)))

    def _drop(self, request: Request) -> None:
        entry = self._entries.pop(request, None)
        if entry is None:
            return
        self._bytes -= entry.size
        requests = self._by_thread[entry.thread]
        requests.discard(request)
        if not requests:
            del self._by_thread[entry.thread]

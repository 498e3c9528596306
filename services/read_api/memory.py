"""Ready pages in the process's memory, and the rule that none outlives the news of its end.

Decides what may be kept: an invalidation drops the pages it makes old and forbids builds that began before it to
be kept, unless they turned out new enough. While the channel of invalidations is not heard, nothing is kept and
nothing kept is served. A page lives for a bounded time, whatever is heard: an invalidation that nobody sent is the
fault of somebody else, and its effect ends. No I/O; the clock is passed in.

A page is kept in two encodings: as JSON, and gzipped from the first time somebody asks for it so. Text shrinks
five- to tenfold, which is what readers on a slow network wait for and what every proxy on the way copies.
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

# Small pages are bounded by their number; the objects of one take about a kilobyte beside its texts.
ENTRIES_MAX: Final = 8192
ENTRY_BYTES: Final = 1024

# Below this a gzipped page needs as many packets as a plain one.
GZIP_BYTES_MIN: Final = 1400
# Level 4 takes half the time of zlib's default for 3 % more bytes on pages of comments.
GZIP_LEVEL: Final = 4
_GZIP_WINDOW: Final = 31  # the largest window, with a gzip header (zlib.compressobj)

Thread = tuple[UUID, str]
Request = tuple[str, bytes]
"""Path and raw query: the same question in the same spelling."""


def request_of(scope: Scope) -> Request:
    """Return what a page is kept under."""
    return scope["path"], scope["query_string"]


@dataclass(slots=True, kw_only=True)
class Entry:
    """A kept page with the headers that never change.

    Attributes:
        request: What it is kept under.
        claim: What the page has at least, as of when it was read.
        ends_s: When its life ends if it is kept, in seconds of the memory's clock.
        plain: The page as JSON.
        gzipped: The page gzipped; None until `gzip` has been called, and for small pages for ever.
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
        """Bytes that it takes, with the texts of the client under which it is kept."""
        gzipped = 0 if self.gzipped is None else self.gzipped.size
        key = sum(map(sys.getsizeof, (*self.request, self.thread[1])))
        return self.plain.size + gzipped + len(self.page.link) + key + ENTRY_BYTES

    def gzip(self) -> "Encoded":
        """Return the page gzipped; takes about a millisecond for 100 kB, and may run in a thread.

        Its entity tag is its own: the same tag for two sequences of bytes would be no strong one (RFC 9110, 8.8.3).
        """
        compressor = zlib.compressobj(GZIP_LEVEL, zlib.DEFLATED, _GZIP_WINDOW)
        body = compressor.compress(self.page.body) + compressor.flush()
        return _encoded(self.page, body, gzip_etag(self.page.etag), ((b"content-encoding", b"gzip"),))


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoded:
    """A page as it is sent, with the headers that never change.

    Attributes:
        headers: The first two are about the content; a 304 goes without them.
        head: Status line and header lines of a 200.
        not_modified: The same of a 304.
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
        """Bytes that it takes."""
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
    """A page being read. What happens to its thread meanwhile is noted here.

    Two builds of a thread are two, however equal: one that ends must not take the other's place among those that are
    told.
    """

    thread: Thread
    version_min: int = 0
    void: bool = False


class PageMemory:
    """A bounded memory of pages, least recently used first out. Silent until `hear` is called."""

    def __init__(
        self,
        *,
        bytes_max: int,
        entries_max: int = ENTRIES_MAX,
        life_s: float,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        """Begin empty.

        Args:
            bytes_max: Bytes of pages, with their headers and what they are kept under.
            entries_max: Number of pages.
            life_s: How long a page is kept at most.
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
        self._heard = False

    @property
    def heard(self) -> bool:
        """Whether invalidations are heard, so that pages may be kept and served."""
        return self._heard

    @property
    def bytes(self) -> int:
        """Bytes of the kept pages."""
        return self._bytes

    def get(self, request: Request) -> Entry | None:
        """Return the kept page of a request."""
        entry = self._entries.get(request)
        if entry is None:
            return None
        if entry.ends_s <= self._now():
            self._drop(request)
            return None
        self._entries.move_to_end(request)
        return entry

    def begin(self, thread: Thread) -> Build:
        """Note that a page of this thread is about to be read. `end` must follow."""
        build = Build(thread=thread, void=not self._heard)
        self._builds.setdefault(thread, []).append(build)
        return build

    def end(self, build: Build) -> None:
        """Forget a build, kept or not."""
        builds = self._builds[build.thread]
        builds.remove(build)
        if not builds:
            del self._builds[build.thread]

    def may_keep(self, build: Build, page: Page) -> bool:
        """Whether a page that this build read is still the newest as far as anybody has said."""
        return not build.void and page.version is not None and page.version >= build.version_min

    def keep(self, request: Request, build: Build, page: Page, claim: Claim) -> Entry:
        """Return the entry of a page, kept when it may be. Must be called before `end`."""
        entry = Entry(page=page, request=request, thread=build.thread, claim=claim, ends_s=self._now() + self._life_s)
        if self.may_keep(build, page):
            self._drop(request)
            self._entries[request] = entry
            self._by_thread.setdefault(entry.thread, set()).add(request)
            self._bytes += entry.size
            self._make_room()
        return entry

    def keep_gzipped(self, request: Request, entry: Entry, encoded: Encoded) -> None:
        """Keep the gzipped form of an entry beside it, if the entry itself is still kept."""
        if self._entries.get(request) is not entry or entry.gzipped is not None:
            return
        entry.gzipped = encoded
        self._bytes += encoded.size
        self._make_room()

    def invalidate(self, thread: Thread, version: int) -> None:
        """The thread moved on to this version: older pages are dropped, and older builds not kept."""
        for build in self._builds.get(thread, ()):
            build.version_min = max(build.version_min, version)
        for request in list(self._by_thread.get(thread, ())):
            kept = self._entries[request].page.version
            if kept is None or kept < version:
                self._drop(request)

    def hear(self) -> None:
        """Invalidations are heard from now on. What was read before this is not kept."""
        self.clear()
        self._heard = True

    def go_deaf(self) -> None:
        """Invalidations may be missed from now on."""
        self.clear()
        self._heard = False

    def clear(self) -> None:
        """Drop everything, builds that are under way included."""
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

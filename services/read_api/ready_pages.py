"""Answers thread pages that are in memory at once: the same answer that the application gives, without a task.

Decides which requests are that plain: an eventual read of a kept page, in an encoding that is there. Everything else,
and every doubt, is left to the application. `tests/services/read_api/test_ready_pages.py` holds the two to each other.
"""

from functools import lru_cache
from time import perf_counter
from typing import Final
from urllib.parse import unquote
from uuid import UUID

from services.api.cors import SITE_PREFIX, allowed_origin, marks_of
from services.api.requests import HEADER_BYTES_MAX
from services.api.site_origins import SiteOrigins
from services.read_api.freshness import Freshness
from services.read_api.memory import Encoded, PageMemory, Request
from services.read_api.pages import TEMPLATE, accepts_gzip, matches
from services.read_api.shared_cache import HIT_MEMORY
from services.telemetry.middleware import begin_exchange, end_span
from services.telemetry.ready_protocol import Headers, header_lines
from services.telemetry.red import REQUESTS
from services.telemetry.tracing import Tracing

# Longer targets are rare, and what is remembered of a target must have a bound: 4096 of them take 16 MB at most.
TARGET_BYTES_MAX: Final = 2048
_TARGETS_MAX: Final = 4096

_SAYS: Final = (b"if-none-match", b"accept-encoding", b"origin", b"x-request-id", b"traceparent")
_ASKS_FOR_MORE: Final = (
    b"palaver-consistency", b"palaver-position", b"content-length", b"transfer-encoding", b"expect",
)  # fmt: skip
_HEEDED: Final = frozenset(_SAYS + _ASKS_FOR_MORE)
_Wishes = tuple[bytes | None, bytes | None, bytes | None, bytes | None, bytes | None]
_PREFIX: Final = SITE_PREFIX.encode()


class ReadyPages:
    """The `ReadyAnswers` of the read API."""

    def __init__(self, *, memory: PageMemory, freshness: Freshness, origins: SiteOrigins, tracing: Tracing) -> None:
        self._memory = memory
        self._freshness = freshness
        self._origins = origins
        self._tracing = tracing
        self._fresh: object = None
        self._fresh_lines = b""

    def __call__(self, target: bytes, headers: Headers) -> tuple[bytes, bytes] | None:
        """See `ReadyAnswers`."""
        if len(target) > TARGET_BYTES_MAX or not target.startswith(_PREFIX):
            return None
        entry = self._memory.get(_request_of_target(target))
        if entry is None:
            return None
        started_s = perf_counter()
        wishes = _wishes_of(target, headers)
        if wishes is None:
            return None
        none_match, encodings, origin, request_id, traceparent = wishes
        encoded: Encoded | None = entry.plain
        if encodings is not None and entry.shrinks and accepts_gzip(encodings):
            encoded = entry.gzipped
        marks = b"" if origin is None else self._marks(entry.thread[0], origin)
        if encoded is None or marks is None:
            return None
        status, head, body = 200, encoded.head, encoded.body
        if none_match is not None and (matches(none_match, encoded.etag) or matches(none_match, entry.page.etag)):
            status, head, body = 304, encoded.not_modified, b""
        request_id, trace, span = begin_exchange(self._tracing, "GET", request_id=request_id, traceparent=traceparent)
        head = b"%b%b%bx-request-id: %b\r\ntraceparent: %b\r\n" % (
            head, self._freshness_lines(), marks, request_id, trace.traceparent.encode()
        )  # fmt: skip
        HIT_MEMORY.inc()
        REQUESTS.route("GET", TEMPLATE).observe(status, perf_counter() - started_s)
        if span is not None:
            end_span(span, "GET", TEMPLATE, status)
        return head, body

    def _marks(self, site: UUID, origin: bytes) -> bytes | None:
        """Return the lines for a page of this origin, or None when the site's origins are not known freshly."""
        origins = self._origins.remembered(site)
        return None if origins is None else header_lines(marks_of(allowed_origin(origins, origin)))

    def _freshness_lines(self) -> bytes:
        fresh = self._freshness.headers()
        if fresh is not self._fresh:
            self._fresh, self._fresh_lines = fresh, header_lines(fresh)
        return self._fresh_lines


def _wishes_of(target: bytes, headers: Headers) -> _Wishes | None:
    """Return what a plain request says, or None when it is not one."""
    none_match = encodings = origin = request_id = traceparent = None
    header_bytes = len(target)
    for name, value in headers:
        header_bytes += len(name) + len(value)
        if name not in _HEEDED:
            continue
        if name == b"x-request-id":
            request_id = value
        elif name == b"accept-encoding":
            encodings = value
        elif name == b"if-none-match":
            none_match = value
        elif name == b"origin":
            origin = value
        elif name == b"traceparent":
            traceparent = value
        else:
            return None
    return None if header_bytes > HEADER_BYTES_MAX else (none_match, encodings, origin, request_id, traceparent)


@lru_cache(maxsize=_TARGETS_MAX)
def _request_of_target(target: bytes) -> Request:
    """Return what the page of a target is kept under, read as uvicorn reads it."""
    path, _, query = target.partition(b"?")
    return unquote(path.decode("latin-1")), query

"""Answers reads of cached thread pages in the HTTP protocol, without an ASGI task, with the application's answer.

Decides which requests qualify: an eventual read of a cached page, or a session read whose position the invalidation
channel has announced, in an encoding that is cached. The application answers every other request.
`tests/services/read_api/test_ready_pages.py` checks that both give the same answers.
"""

from functools import lru_cache
from time import perf_counter
from typing import Final
from urllib.parse import unquote
from uuid import UUID

from regions.identity import CellId
from regions.position import InvalidPosition, Position, decode_token
from services.api.consistency import Level
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

# Longer targets are rare. The limit bounds the cache of parsed targets: 4096 of them take 16 MB at most.
TARGET_BYTES_MAX: Final = 2048
_TARGETS_MAX: Final = 4096

_APPLICATION_HEADERS: Final = frozenset((b"content-length", b"transfer-encoding", b"expect"))
_KNOWN_HEADERS: Final = _APPLICATION_HEADERS | {
    b"if-none-match", b"accept-encoding", b"origin", b"x-request-id", b"traceparent", b"palaver-consistency",
    b"palaver-position",
}  # fmt: skip

# A token has 30 characters and the name of a cell. Each session has its own token, and many of its reads repeat it.
TOKEN_BYTES_MAX: Final = 128
_TOKENS_MAX: Final = 4096
_PREFIX: Final = SITE_PREFIX.encode()


class ReadyPages:
    """The `ReadyAnswers` of the read API."""

    def __init__(
        self, *, memory: PageMemory, freshness: Freshness, origins: SiteOrigins, cell: CellId, tracing: Tracing
    ) -> None:
        self._memory = memory
        self._freshness = freshness
        self._origins = origins
        self._tracing = tracing
        self._cell = cell
        self._fresh: dict[Level, object] = {}
        self._fresh_lines: dict[Level, bytes] = {}

    def __call__(self, target: bytes, headers: Headers) -> tuple[bytes, bytes] | None:
        """See `ReadyAnswers`."""
        if len(target) > TARGET_BYTES_MAX or not target.startswith(_PREFIX):
            return None
        entry = self._memory.get(_request_of_target(target))
        if entry is None:
            return None
        started_s = perf_counter()
        known = _known_headers(target, headers)
        if known is None:
            return None
        none_match, encodings, origin = (known.get(name) for name in (b"if-none-match", b"accept-encoding", b"origin"))
        token = known.get(b"palaver-position")
        level: Level = "eventual" if token is None else "session"
        if token is not None and not self._has_announced(token):
            return None
        encoded: Encoded | None = entry.plain
        if encodings is not None and entry.shrinks and accepts_gzip(encodings):
            encoded = entry.gzipped
        marks = b"" if origin is None else self._marks(entry.thread[0], origin)
        if encoded is None or marks is None:
            return None
        status, head, body = 200, encoded.head, encoded.body
        if none_match is not None and (matches(none_match, encoded.etag) or matches(none_match, entry.page.etag)):
            status, head, body = 304, encoded.not_modified, b""
        request_id, trace, span = begin_exchange(
            self._tracing, "GET", request_id=known.get(b"x-request-id"), traceparent=known.get(b"traceparent")
        )
        head = b"%b%b%bx-request-id: %b\r\ntraceparent: %b\r\n" % (
            head, self._freshness_lines(level), marks, request_id, trace.traceparent.encode()
        )  # fmt: skip
        HIT_MEMORY.inc()
        REQUESTS.route("GET", TEMPLATE).observe(status, perf_counter() - started_s)
        if span is not None:
            end_span(span, "GET", TEMPLATE, status)
        return head, body

    def _marks(self, site: UUID, origin: bytes) -> bytes | None:
        """Return the CORS header lines for this origin, or None if the site's origins are not cached."""
        origins = self._origins.remembered(site)
        return None if origins is None else header_lines(marks_of(allowed_origin(origins, origin)))

    def _has_announced(self, token: bytes) -> bool:
        """Whether cached pages include the position of a token; the application refuses malformed tokens."""
        announced = self._freshness.announced
        wanted = _position_of(token)
        return (
            announced is not None and wanted is not None and wanted[0] == self._cell and announced.position >= wanted[1]
        )

    def _freshness_lines(self, level: Level) -> bytes:
        fresh = self._freshness.headers(level)
        if fresh is not self._fresh.get(level):
            self._fresh[level], self._fresh_lines[level] = fresh, header_lines(fresh)
        return self._fresh_lines[level]


def _known_headers(target: bytes, headers: Headers) -> dict[bytes, bytes] | None:
    """Return the relevant headers of a request, by name, or None if the application must answer it."""
    known: dict[bytes, bytes] = {}
    header_bytes = len(target)
    for name, value in headers:
        header_bytes += len(name) + len(value)
        if name in _KNOWN_HEADERS:
            known[name] = value
    if header_bytes > HEADER_BYTES_MAX or not _APPLICATION_HEADERS.isdisjoint(known):
        return None
    consistency = known.get(b"palaver-consistency")
    if consistency is not None and (consistency != b"session" or b"palaver-position" not in known):
        return None
    return known


def _position_of(token: bytes) -> tuple[CellId, Position] | None:
    """Return the cell and the position of a token; None for a malformed token.

    The length is checked before the cache is used, because the cache keeps its keys in memory.
    """
    return None if len(token) > TOKEN_BYTES_MAX else _decoded(token)


@lru_cache(maxsize=_TOKENS_MAX)
def _decoded(token: bytes) -> tuple[CellId, Position] | None:
    try:
        return decode_token(token.decode("ascii"))
    except (InvalidPosition, UnicodeDecodeError):
        return None


@lru_cache(maxsize=_TARGETS_MAX)
def _request_of_target(target: bytes) -> Request:
    """Return the key under which the page of a target is cached; parses the target as uvicorn does."""
    path, _, query = target.partition(b"?")
    return unquote(path.decode("latin-1")), query

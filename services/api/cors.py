"""Adds CORS headers: pages of the origins that a site lists may read its answers, errors included, and write to it.

Decides per site, because sites are tenants; every origin is allowed only if the site's list contains `*`. Credentials
are never allowed, because tokens are sent in the Authorization header. If the origins are not known (the site does not
exist, or the database does not answer), every page may read a problem, as it may read the edge's problems: the problem
contains no data of a site, and the page has to read when it can try again (ADR 0037). Source: the Fetch standard,
section 3.3.
"""

from collections.abc import Awaitable, Callable, Sequence
from typing import Final
from uuid import UUID

from services.api.identifiers import UUID_CHARS, parse_uuid
from services.telemetry.middleware import AsgiApp, Message, Receive, Scope, Send

# Chromium caches a preflight for at most two hours.
PREFLIGHT_MAX_AGE_S: Final = 7200
SITE_PREFIX: Final = "/v1/sites/"
# The longest origin that a site may name (`services/api/models.py`).
ORIGIN_BYTES_MAX: Final = 2000

ALLOWED_HEADERS: Final = (
    b"authorization, content-type, idempotency-key, if-match, if-none-match, palaver-consistency,"
    b" palaver-position, traceparent, x-request-id"
)
EXPOSED_HEADERS: Final = (
    b"allow, etag, link, location, palaver-consistency, palaver-position, retry-after, traceparent, x-request-id"
)
FIRST_PROBLEM_STATUS: Final = 400

OriginsOf = Callable[[UUID], Awaitable[frozenset[str] | None]]
"""Returns the origins of a site; None if the site does not exist or its origins cannot be read. Must not raise."""


def site_of(path: str) -> UUID | None:
    """Return the id of the site in a path, or None."""
    if not path.startswith(SITE_PREFIX):
        return None
    return parse_uuid(path[len(SITE_PREFIX) : len(SITE_PREFIX) + UUID_CHARS])


class CorsMiddleware:
    """Adds CORS headers to answers, and the preflight headers to answers of preflights; see the module."""

    def __init__(self, app: AsgiApp, origins_of: OriginsOf) -> None:
        self._app = app
        self._origins_of = origins_of

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection event."""
        origin: bytes | None = None
        asks_first = False
        for name, value in scope["headers"] if scope["type"] == "http" else ():
            if name == b"origin":
                origin = value
            elif name == b"access-control-request-method":
                asks_first = scope["method"] == "OPTIONS"
        if origin is None:
            await self._app(scope, receive, send)
            return
        site = site_of(scope["path"])
        origins = None if site is None else await self._origins_of(site)
        await self._app(scope, receive, _marking_send(origins, origin, send, preflight=asks_first))


def allowed_origin(origins: frozenset[str] | None, origin: bytes) -> bytes | None:
    """Return the value of Access-Control-Allow-Origin for an origin, or None if the origin is not allowed."""
    if origins is None:
        return None
    if "*" in origins:
        return b"*"
    return origin if len(origin) <= ORIGIN_BYTES_MAX and origin.decode("latin-1") in origins else None


def marks_of(allowed: bytes | None) -> Sequence[tuple[bytes, bytes]]:
    """Return the CORS headers of an answer, except `Vary`."""
    if allowed is None:
        return ()
    return (
        (b"access-control-allow-origin", allowed),
        (b"access-control-expose-headers", EXPOSED_HEADERS),
    )


def _marking_send(origins: frozenset[str] | None, origin: bytes, send: Send, *, preflight: bool) -> Send:
    allowed = allowed_origin(origins, origin)

    async def send_marked(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = list(message.get("headers", ()))
            if origins is None and message["status"] >= FIRST_PROBLEM_STATUS:
                headers += marks_of(b"*")
            elif preflight and allowed is not None:
                headers += _preflight_marks(allowed, headers)
            else:
                headers += marks_of(allowed)
            if not any(name == b"vary" and b"origin" in value for name, value in headers):
                headers.append((b"vary", b"origin"))
            message = {**message, "headers": headers}
        await send(message)

    return send_marked


def _preflight_marks(allowed: bytes, headers: Sequence[tuple[bytes, bytes]]) -> Sequence[tuple[bytes, bytes]]:
    methods = next((value for name, value in headers if name == b"allow"), b"")
    return (
        (b"access-control-allow-origin", allowed),
        (b"access-control-allow-methods", methods),
        (b"access-control-allow-headers", ALLOWED_HEADERS),
        (b"access-control-max-age", b"%d" % PREFLIGHT_MAX_AGE_S),
    )

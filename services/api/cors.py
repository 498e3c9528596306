"""Cross-origin access: the origins a site names may read and write it from a browser, errors included.

Decides per site, because sites are tenants; there is no wildcard unless the site's list says `*`. Credentials
are never allowed: tokens travel in the Authorization header. Source: the Fetch standard, section 3.3.
"""

from collections.abc import Awaitable, Callable, Sequence
from typing import Final
from uuid import UUID

from services.telemetry.middleware import AsgiApp, Message, Receive, Scope, Send

# Two hours is what Chromium honours at most.
PREFLIGHT_MAX_AGE_S: Final = 7200
SITE_PREFIX: Final = "/v1/sites/"
_UUID_CHARS: Final = 36

ALLOWED_HEADERS: Final = (
    b"authorization, content-type, idempotency-key, if-match, if-none-match, palaver-consistency,"
    b" palaver-position, traceparent, x-request-id"
)
EXPOSED_HEADERS: Final = (
    b"etag, link, location, palaver-consistency, palaver-position, retry-after, traceparent, x-request-id"
)
ALLOWED_METHODS: Final = b"GET, HEAD, POST, PUT, PATCH, DELETE"

OriginsOf = Callable[[UUID], Awaitable[frozenset[str]]]
"""Returns the origins of a site; empty when it is unknown or cannot be read now. Must not raise."""


def site_of(path: str) -> UUID | None:
    """Return the site a path is below, or None."""
    if not path.startswith(SITE_PREFIX):
        return None
    return parse_uuid(path[len(SITE_PREFIX) : len(SITE_PREFIX) + _UUID_CHARS])


def parse_uuid(text: str) -> UUID | None:
    """Return a UUID in its usual text form (either case), or None for any other text."""
    if len(text) != _UUID_CHARS or text[8] != "-" or not text.isascii():
        return None
    try:
        return UUID(text)
    except ValueError:
        return None


class CorsMiddleware:
    """Answers preflights and marks answers for the origins of a site; see the module."""

    def __init__(self, app: AsgiApp, origins_of: OriginsOf) -> None:
        self._app = app
        self._origins_of = origins_of

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection event."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        origin: bytes | None = None
        wanted_method: bytes | None = None
        for name, value in scope["headers"]:
            if name == b"origin":
                origin = value
            elif name == b"access-control-request-method":
                wanted_method = value
        if origin is None:
            await self._app(scope, receive, send)
            return
        allowed = await self._allowed_origin(scope["path"], origin)
        if scope["method"] == "OPTIONS" and wanted_method is not None:
            await _answer_preflight(allowed, send)
            return
        await self._app(scope, receive, _marking_send(allowed, send))

    async def _allowed_origin(self, path: str, origin: bytes) -> bytes | None:
        site = site_of(path)
        return None if site is None else allowed_origin(await self._origins_of(site), origin)


def allowed_origin(origins: frozenset[str], origin: bytes) -> bytes | None:
    """Return what an answer says to a page of this origin; None says nothing, and the browser refuses."""
    if "*" in origins:
        return b"*"
    return origin if origin.decode("latin-1") in origins else None


def marks_of(allowed: bytes | None) -> Sequence[tuple[bytes, bytes]]:
    """Return the headers of an answer for an origin, besides `Vary`."""
    if allowed is None:
        return ()
    return (
        (b"access-control-allow-origin", allowed),
        (b"access-control-expose-headers", EXPOSED_HEADERS),
    )


def _marking_send(allowed: bytes | None, send: Send) -> Send:
    varies = (b"vary", b"origin")
    extra = marks_of(allowed)

    async def send_marked(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = [*message.get("headers", ()), *extra]
            if not any(name == b"vary" and b"origin" in value for name, value in headers):
                headers.append(varies)
            message = {**message, "headers": headers}
        await send(message)

    return send_marked


async def _answer_preflight(allowed: bytes | None, send: Send) -> None:
    headers = [(b"vary", b"origin"), (b"content-length", b"0")]
    if allowed is not None:
        headers += [
            (b"access-control-allow-origin", allowed),
            (b"access-control-allow-methods", ALLOWED_METHODS),
            (b"access-control-allow-headers", ALLOWED_HEADERS),
            (b"access-control-max-age", b"%d" % PREFLIGHT_MAX_AGE_S),
        ]
    await send({"type": "http.response.start", "status": 204, "headers": headers})
    await send({"type": "http.response.body", "body": b""})

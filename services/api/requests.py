"""Reads what a request says, strictly: bodies, headers and query values, each with a bound.

Decides what is refused before any route thinks about it: sizes, media types, JSON that is none, text that
PostgreSQL or a JSON document could not carry (NUL, lone surrogates, invalid UTF-8), fields nobody knows.
"""

import asyncio
import contextlib
import re
from collections.abc import Iterable
from typing import Final, TypeVar
from urllib.parse import parse_qsl

from pydantic import TypeAdapter, ValidationError

from services.api.problems import FieldError, Problem, invalid
from services.telemetry.middleware import AsgiApp, Message, Receive, Scope, Send

# The edge refuses 60 kB of headers; a caller inside gets the same answer a little later.
HEADER_BYTES_MAX: Final = 65_536
# A hundred thread keys of a counts request, and room for what a route adds.
QUERY_FIELDS_MAX: Final = 128
# nginx's lingering_close is the precedent: it reads on for a while, bounded, before it closes.
DRAIN_BYTES_MAX: Final = 16 * 1024 * 1024
DRAIN_S_MAX: Final = 2.0
# Errors of one body that are listed; the rest are found after these are mended.
FIELD_ERRORS_MAX: Final = 20
IDEMPOTENCY_KEY_CHARS_MAX: Final = 255

_IDEMPOTENCY_KEY: Final = re.compile(rb"[\x21-\x7e]{1,%d}" % IDEMPOTENCY_KEY_CHARS_MAX)
_ENTITY_TAG: Final = re.compile(rb'"([0-9]{1,9})(?:-[0-9-]*)?"')

_T = TypeVar("_T")


class RequestLimitMiddleware:
    """Refuses requests whose headers or body are too large, chunked bodies as they arrive."""

    def __init__(self, app: AsgiApp, *, body_bytes_max: int) -> None:
        self._app = app
        self._body_bytes_max = body_bytes_max

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection event."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        limit = self._body_bytes_max
        header_bytes = len(scope["raw_path"]) + len(scope["query_string"])
        for name, value in scope["headers"]:
            header_bytes += len(name) + len(value)
            if name == b"content-length" and (not value.isdigit() or int(value) > limit):
                await _drain(receive)
                raise self._too_large()
        if header_bytes > HEADER_BYTES_MAX:
            raise Problem("headers-too-large", f"Headers may take {HEADER_BYTES_MAX} bytes.")
        received = 0

        async def receive_bounded() -> Message:
            nonlocal received
            message = await receive()
            if message["type"] == "http.request":
                received += len(message.get("body", b""))
                if received > limit:
                    if message.get("more_body", False):
                        await _drain(receive)
                    raise self._too_large()
            return message

        await self._app(scope, receive_bounded, send)

    def _too_large(self) -> Problem:
        # The connection is closed, because nobody reads what may be left of the body.
        return Problem(
            "request-too-large",
            f"A request body may take {self._body_bytes_max} bytes.",
            headers=[(b"connection", b"close")],
        )


async def _drain(receive: Receive) -> None:
    """Read and forget what is left of a body that is refused, up to a bound.

    Whoever answers and closes while the other side still sends has its answer destroyed by the reset that
    follows (RFC 9112, 9.6): the edge would report a lost connection instead of a body that is too large.
    """
    drained = 0
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(DRAIN_S_MAX):
            while drained <= DRAIN_BYTES_MAX:
                message = await receive()
                drained += len(message.get("body", b""))
                if message["type"] == "http.disconnect" or not message.get("more_body", False):
                    return


async def read_body(receive: Receive) -> bytes:
    """Return the whole body. `RequestLimitMiddleware` has bounded it."""
    message = await receive()
    body: bytes = message.get("body", b"")
    if not message.get("more_body", False):
        return body
    chunks = [body]
    while message.get("more_body", False):
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Problem("malformed-request", "The body ended before it was complete.")
        chunks.append(message.get("body", b""))
    return b"".join(chunks)


def header(scope: Scope, name: bytes) -> bytes | None:
    """Return a header's value, or None. The name is lower-case; a repeated header counts once, as its last."""
    found: bytes | None = None
    for key, value in scope["headers"]:
        if key == name:
            found = value
    return found


def require_json(content_type: bytes | None) -> None:
    """Refuse a body that does not claim to be JSON in UTF-8."""
    kind, _, parameters = (content_type or b"").lower().partition(b";")
    charset = parameters.replace(b" ", b"").replace(b'"', b"")
    if kind.strip() != b"application/json" or charset not in (b"", b"charset=utf-8"):
        raise Problem("unsupported-media-type", "Send application/json in UTF-8.")


def parse_json(adapter: TypeAdapter[_T], body: bytes) -> _T:
    """Return the body as the model the adapter stands for.

    Raises:
        Problem: `malformed-json` when it is no JSON in UTF-8, `invalid-request` with the wrong fields.
    """
    try:
        return adapter.validate_json(body, strict=True)
    except ValidationError as error:
        details = error.errors(include_url=False, include_context=False, include_input=False)
        if details[0]["type"] == "json_invalid":
            raise Problem("malformed-json", details[0]["msg"]) from None
        errors = [
            FieldError(".".join(map(str, detail["loc"])) or "request", _message(detail["type"], detail["msg"]))
            for detail in details[:FIELD_ERRORS_MAX]
        ]
        first = errors[0]
        raise Problem("invalid-request", f"{first.field}: {first.message}", errors=errors) from None


def _message(kind: str, text: str) -> str:
    return "unknown field" if kind == "extra_forbidden" else text.removeprefix("Value error, ")


def parse_query(scope: Scope, known: Iterable[str], *, repeated: str | None = None) -> dict[str, list[str]]:
    """Return the query's values by name, in their order.

    Args:
        scope: The request.
        known: Names that may occur.
        repeated: The one name that may occur more than once.

    Raises:
        Problem: A name is unknown or repeated, or a value is not UTF-8 or holds a NUL.
    """
    try:
        pairs = parse_qsl(
            scope["query_string"].decode("ascii"),
            keep_blank_values=True,
            errors="strict",
            max_num_fields=QUERY_FIELDS_MAX,
        )
    except UnicodeDecodeError:
        raise invalid("query", "must be UTF-8, percent-encoded") from None
    except ValueError:
        raise invalid("query", f"may have {QUERY_FIELDS_MAX} values") from None
    allowed = frozenset(known)
    values: dict[str, list[str]] = {}
    for name, value in pairs:
        if name not in allowed:
            raise invalid("query", f"unknown parameter {name[:50]!r}; known: {', '.join(sorted(allowed))}")
        if "\x00" in value:
            raise invalid(name, "must not contain a NUL character")
        if name in values and name != repeated:
            raise invalid(name, "must occur once")
        values.setdefault(name, []).append(value)
    return values


def parse_count(field: str, text: str | None, *, default: int, maximum: int) -> int:
    """Return a whole number from 1 to `maximum`, or the default when nothing was said."""
    if text is None:
        return default
    if not (text.isascii() and text.isdigit() and len(text) <= 9 and 1 <= int(text) <= maximum):  # noqa: PLR2004 - digits of a bounded integer
        raise invalid(field, f"must be a whole number from 1 to {maximum}")
    return int(text)


def parse_idempotency_key(value: bytes | None) -> str | None:
    """Return the key, or None when the request has none."""
    if value is None:
        return None
    if not _IDEMPOTENCY_KEY.fullmatch(value):
        raise invalid("Idempotency-Key", f"must be 1 to {IDEMPOTENCY_KEY_CHARS_MAX} visible ASCII characters")
    return value.decode("ascii")


def parse_if_match(value: bytes) -> int | None:
    """Return the version of an If-Match header, or None for `*`: any version.

    Raises:
        Problem: `version-mismatch` for a tag that can never match, `invalid-request` for a list of tags.
    """
    text = value.strip()
    if text == b"*":
        return None
    match = _ENTITY_TAG.fullmatch(text)
    if match is not None:
        return int(match[1])
    if b"," in text:
        raise invalid("If-Match", "must be one entity tag or *")
    raise Problem("version-mismatch", "The entity tag is not one of this comment.")


def parse_bearer(value: bytes | None) -> bytes:
    """Return the token of an Authorization header.

    Raises:
        Problem: `unauthorized` when it is missing or of another scheme.
    """
    scheme, _, token = (value or b"").partition(b" ")
    token = token.strip()
    if scheme.lower() != b"bearer" or not token:
        raise unauthorized("Send `Authorization: Bearer …`.")
    return token


def unauthorized(detail: str) -> Problem:
    """Return the problem of missing or wrong credentials."""
    return Problem("unauthorized", detail, headers=[(b"www-authenticate", b"Bearer")])

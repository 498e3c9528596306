"""Parses bodies, headers and query values of requests strictly, each with a limit.

Decides what is refused before a route handles the request: sizes, media types, malformed JSON, text that PostgreSQL or
a JSON document cannot contain (NUL, lone surrogates, invalid UTF-8), unknown fields.

The length of each text is checked first, and each later step takes linear time, because one event loop serves all
clients. `tests/services/api/test_client_texts.py` measures each step.
"""

import asyncio
import binascii
import contextlib
import re
from collections.abc import Iterable
from typing import Any, Final, TypeVar, cast

from pydantic import TypeAdapter, ValidationError
from pydantic_core import ErrorDetails, from_json, to_json

from services.api.problems import FieldError, Problem, invalid
from services.telemetry.middleware import AsgiApp, Message, Receive, Scope, Send

# The edge refuses 60 kB of headers. A request that does not come through the edge gets the same answer here.
HEADER_BYTES_MAX: Final = 65_536
# A thread key of 2,000 characters, each percent-encoded in twelve bytes, fits; so do a hundred keys of 300 bytes.
QUERY_BYTES_MAX: Final = 32_768
# A hundred thread keys of a counts request, and room for more parameters.
QUERY_FIELDS_MAX: Final = 128
# nginx's lingering_close is the precedent: it reads on for a while, bounded, before it closes.
DRAIN_BYTES_MAX: Final = 16 * 1024 * 1024
DRAIN_S_MAX: Final = 2.0
# Errors that a problem lists. The client finds the others after it has corrected these.
FIELD_ERRORS_MAX: Final = 20
# Characters of a client's field name that an error repeats.
FIELD_NAME_CHARS_MAX: Final = 100
# Fields of one object: three times what the largest request has.
OBJECT_FIELDS_MAX: Final = 16
# Items of one array: more than the longest list of a request may have (`services/api/models.py`, origins).
ARRAY_ITEMS_MAX: Final = 64
# A body with fewer commas has neither an object with too many fields nor an array with too many items.
_COMMAS_SUSPICIOUS_MIN: Final = min(OBJECT_FIELDS_MAX, ARRAY_ITEMS_MAX)
IDEMPOTENCY_KEY_CHARS_MAX: Final = 255
# The longest useful value of each, and room.
CONTENT_TYPE_BYTES_MAX: Final = 256
CREDENTIALS_BYTES_MAX: Final = 512
IF_MATCH_BYTES_MAX: Final = 256
NO_VERSION: Final = -1
"""No comment has this version. None has the next version either: it would mean that the edit was already done."""
# A list of fifty entity tags.
IF_NONE_MATCH_BYTES_MAX: Final = 4096
# Digits of a 64-bit integer.
INTEGER_DIGITS_MAX: Final = 19

_IDEMPOTENCY_KEY: Final = re.compile(rb"[\x21-\x7e]{1,%d}" % IDEMPOTENCY_KEY_CHARS_MAX)
_ENTITY_TAG: Final = re.compile(rb'"([0-9]{1,9})(?:-[0-9-]*)?"')
_MALFORMED_ESCAPE: Final = re.compile(rb"%(?![0-9A-Fa-f]{2})")

_T = TypeVar("_T")


class RequestLimitMiddleware:
    """Refuses requests whose headers or body are too large. It counts a chunked body while it arrives."""

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
            if name == b"content-length" and _whole_number(value, limit) is None:
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
        # The connection is closed, because the process does not read the rest of the body.
        return Problem(
            "request-too-large",
            f"A request body may take {self._body_bytes_max} bytes.",
            headers=[(b"connection", b"close")],
        )


def _whole_number(text: bytes, maximum: int) -> int | None:
    """Return a whole number up to `maximum`, or None for any other text. int() raises for very long texts."""
    return int(text) if len(text) <= INTEGER_DIGITS_MAX and text.isdigit() and int(text) <= maximum else None


async def _drain(receive: Receive) -> None:
    """Read and discard the rest of a refused body, up to a limit.

    If a server closes the connection while the client still sends, TCP resets it and the client may lose the answer
    (RFC 9112, 9.6): the edge would report a lost connection instead of a body that is too large.
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
    """Return the complete body. `RequestLimitMiddleware` limits its size."""
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
    """Return a header's value, or None. `name` must be lower-case. Of a repeated header the last value counts."""
    found: bytes | None = None
    for key, value in scope["headers"]:
        if key == name:
            found = value
    return found


def require_json(content_type: bytes | None) -> None:
    """Raise a problem unless the content type is JSON in UTF-8."""
    if content_type is not None and len(content_type) <= CONTENT_TYPE_BYTES_MAX:
        kind, _, parameters = content_type.lower().partition(b";")
        charset = parameters.replace(b" ", b"").replace(b'"', b"")
        if kind.strip() == b"application/json" and charset in (b"", b"charset=utf-8"):
            return
    raise Problem("unsupported-media-type", "Send application/json in UTF-8.")


def parse_json(adapter: TypeAdapter[_T], body: bytes) -> _T:
    """Return the body as the model of the adapter.

    Raises:
        Problem: `malformed-json` if it is not JSON in UTF-8; `invalid-request` with the invalid fields.
    """
    if body.count(b",") >= _COMMAS_SUSPICIOUS_MIN:
        body = _with_few_parts(body)
    try:
        return adapter.validate_json(body, strict=True)
    except ValidationError as error:
        details = error.errors(include_url=False, include_input=False)
        if details[0]["type"] == "json_invalid":
            where = details[0]["msg"].removeprefix("Invalid JSON: ")
            raise Problem("malformed-json", f"The body is not valid JSON: {where}.") from None
        errors = [FieldError(_field_name(detail["loc"]), _message(detail)) for detail in details[:FIELD_ERRORS_MAX]]
        first = errors[0]
        raise Problem("invalid-request", f"{first.field}: {first.message}", errors=errors) from None


def _with_few_parts(body: bytes) -> bytes:
    """Return the body with each field once.

    The validator creates an error for each unknown field, and thousands of errors take twenty milliseconds.

    Raises:
        Problem: The body is not an object, or has too many fields or items.
    """
    try:
        document: object = from_json(body)
    except ValueError:
        return body  # the validator reports the error
    if not isinstance(document, dict):
        raise invalid("request", "must be an object")
    fields = cast("dict[str, Any]", document)
    for one in (fields, *fields.values()):
        if isinstance(one, dict) and len(cast("dict[str, Any]", one)) > OBJECT_FIELDS_MAX:
            raise invalid("request", f"an object may have {OBJECT_FIELDS_MAX} fields")
        if isinstance(one, list) and len(cast("list[Any]", one)) > ARRAY_ITEMS_MAX:
            raise invalid("request", f"an array may have {ARRAY_ITEMS_MAX} items")
    return to_json(fields)


def _field_name(place: tuple[int | str, ...]) -> str:
    return ".".join(map(str, place))[:FIELD_NAME_CHARS_MAX] or "request"


_MESSAGES: Final = {
    "extra_forbidden": "unknown field",
    "missing": "is required",
    "string_type": "must be a string",
    "string_too_short": "must not be empty",
    "string_too_long": "may have {max_length} characters",
    "string_unicode": "must be valid Unicode",
    "list_type": "must be an array",
    "too_long": "may have {max_length} items",
    "model_type": "must be an object",
    "model_attributes_type": "must be an object",
    "int_type": "must be a whole number",
    "uuid_type": "must be a UUID",
    "uuid_parsing": "must be a UUID",
}
"""Messages to clients for the validator's kinds of errors; the validator's own messages use terms of Python. The
messages of the checks in `models.py` are sent unchanged."""


def _message(detail: ErrorDetails) -> str:
    text = _MESSAGES.get(detail["type"])
    return detail["msg"].removeprefix("Value error, ") if text is None else text.format_map(detail.get("ctx", {}))


def parse_query(scope: Scope, known: Iterable[str], *, repeated: str | None = None) -> dict[str, list[str]]:
    """Return the values of the query by name, in the order of the request.

    Args:
        scope: The request.
        known: Allowed names.
        repeated: The one name that may occur more than once.

    Raises:
        Problem: The query is too long, a name is unknown or repeated, or a value is not UTF-8, percent-encoded, or
            contains a NUL.
    """
    query: bytes = scope["query_string"]
    if len(query) > QUERY_BYTES_MAX:
        raise invalid("query", f"may have {QUERY_BYTES_MAX} bytes")
    if query.count(b"&") >= QUERY_FIELDS_MAX:
        raise invalid("query", f"may have {QUERY_FIELDS_MAX} values")
    allowed = frozenset(known)
    values: dict[str, list[str]] = {}
    for name, value in _pairs(query):
        if name not in allowed:
            raise invalid("query", f"unknown parameter {name[:50]!r}; known: {', '.join(sorted(allowed))}")
        if "\x00" in value:
            raise invalid(name, "must not contain a NUL character")
        if name in values and name != repeated:
            raise invalid(name, "must occur once")
        values.setdefault(name, []).append(value)
    return values


def _pairs(query: bytes) -> list[tuple[str, str]]:
    """Return names and values of a form-encoded query (WHATWG URL, 5.1), strictly decoded."""
    parts = [pair.partition(b"=") for pair in query.split(b"&") if pair]
    try:
        return [(_decoded(name), _decoded(value)) for name, _, value in parts]
    except ValueError:
        raise invalid("query", "must be UTF-8, percent-encoded") from None


def _decoded(text: bytes) -> str:
    """Decode a percent-encoded text.

    Quoted-printable (RFC 2045, 6.7) is the same encoding with another escape character, and its decoder is native.
    urllib.parse decodes in a Python loop, which takes 30 ms for 60 kB of percent signs.
    """
    text = text.replace(b"+", b" ")
    if b"%" in text:
        if _MALFORMED_ESCAPE.search(text):
            raise ValueError("a percent sign that encodes nothing")
        text = binascii.a2b_qp(text.replace(b"=", b"%3D").replace(b"%", b"="))
    elif not text.isascii():
        raise ValueError("not percent-encoded")
    return text.decode()


def parse_count(field: str, text: str | None, *, default: int, maximum: int) -> int:
    """Return a whole number from 1 to `maximum`, or the default if the parameter is absent."""
    if text is None:
        return default
    number = _whole_number(text.encode(), maximum) if len(text) <= INTEGER_DIGITS_MAX else None
    if not number:
        raise invalid(field, f"must be a whole number from 1 to {maximum}")
    return number


def parse_idempotency_key(value: bytes | None) -> str | None:
    """Return the key, or None if the request has none."""
    if value is None:
        return None
    if len(value) > IDEMPOTENCY_KEY_CHARS_MAX or not _IDEMPOTENCY_KEY.fullmatch(value):
        raise invalid("Idempotency-Key", f"must be 1 to {IDEMPOTENCY_KEY_CHARS_MAX} visible ASCII characters")
    return value.decode("ascii")


def parse_if_match(value: bytes) -> int | None:
    """Return the version of an If-Match header, or None for `*`: any version.

    For a tag that can never match, return `NO_VERSION`. The ledger then reports the mismatch after it has checked the
    site, the key and the comment, because a precondition is evaluated only if the request would succeed without it
    (RFC 9110, section 13.2.1).

    Raises:
        Problem: `invalid-request` for a list of tags.
    """
    if len(value) > IF_MATCH_BYTES_MAX:
        raise invalid("If-Match", "must be one entity tag or *")
    text = value.strip()
    if text == b"*":
        return None
    match = _ENTITY_TAG.fullmatch(text)
    if match is not None:
        return int(match[1])
    if b"," in text:
        raise invalid("If-Match", "must be one entity tag or *")
    return NO_VERSION


def parse_bearer(value: bytes | None) -> bytes:
    """Return the token of an Authorization header.

    Raises:
        Problem: `unauthorized` if the header is missing or has another scheme.
    """
    if value is not None and len(value) <= CREDENTIALS_BYTES_MAX:
        scheme, _, token = value.partition(b" ")
        token = token.strip()
        if scheme.lower() == b"bearer" and token:
            return token
    raise unauthorized("Send `Authorization: Bearer …`.")


def unauthorized(detail: str) -> Problem:
    """Return the problem of missing or wrong credentials."""
    return Problem("unauthorized", detail, headers=[(b"www-authenticate", b"Bearer")])

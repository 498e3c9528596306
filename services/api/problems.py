"""Turns every error of the public API into a problem document, with a type that clients can switch on.

Decides the catalogue of types, and that each answer with an error status is a problem document. An unexpected exception
becomes `internal-error`: the log gets the traceback, the client gets the request id.

Source: RFC 9457.
"""

import logging
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

import orjson

from services.telemetry.middleware import EXCHANGE, AsgiApp, Exchange, Receive, Scope, Send

TYPE_PREFIX: Final = "https://palaver.dev/problems/"
CONTENT_TYPE: Final = b"application/problem+json"

CATALOGUE: Final[Mapping[str, tuple[int, str]]] = {
    "malformed-request": (400, "The request is malformed"),
    "malformed-json": (400, "The body is not JSON"),
    "unauthorized": (401, "Credentials are missing or wrong"),
    "not-found": (404, "No resource is at this address"),
    "unknown-site": (404, "There is no such site"),
    "unknown-comment": (404, "There is no such comment"),
    "method-not-allowed": (405, "The method is not allowed at this address"),
    "request-timeout": (408, "The request did not arrive in time"),
    "thread-closed": (409, "The thread is closed"),
    "version-mismatch": (412, "The comment has another version"),
    "request-too-large": (413, "The request is too large"),
    "unsupported-media-type": (415, "The body must be JSON"),
    "invalid-request": (422, "The request is invalid"),
    "body-too-long": (422, "The comment is too long"),
    "too-deep": (422, "The reply is nested too deep"),
    "unknown-parent": (422, "There is no such comment to reply to"),
    "invalid-cursor": (422, "The cursor does not belong to this page"),
    "invalid-position": (422, "The position is invalid in this deployment"),
    "idempotency-key-reused": (422, "The Idempotency-Key was used with another body"),
    "precondition-required": (428, "If-Match is required"),
    "too-many-requests": (429, "Too many requests came from this address"),
    "headers-too-large": (431, "The request headers are too large"),
    "internal-error": (500, "Internal error"),
    "not-implemented": (501, "The method or encoding is not implemented"),
    "stale-epoch": (503, "This region does not lead"),
    "ledger-unavailable": (503, "The ledger cannot be reached"),
    "outcome-unknown": (503, "The outcome of the write is unknown"),
    "overloaded": (503, "Too many requests are waiting"),
    "view-unavailable": (503, "The view cannot be reached"),
    "too-stale": (503, "The view is older than the request allows"),
    "not-ready": (503, "The process is not ready"),
}

_log = logging.getLogger("palaver.api")


class FieldError(NamedTuple):
    """One invalid field: its dotted path, and a message for a human."""

    field: str
    message: str


class Problem(Exception):
    """An error that the client receives. Raise it anywhere below `ProblemMiddleware`.

    Attributes:
        slug: Last part of the type, a key of `CATALOGUE`.
        status: HTTP status of that type.
        detail: What happened in this request, in one or two sentences for a human.
        errors: The invalid fields, for types that have them.
        headers: Headers of the answer, besides those about its content.
    """

    def __init__(
        self,
        slug: str,
        detail: str,
        *,
        errors: Sequence[FieldError] = (),
        headers: Sequence[tuple[bytes, bytes]] = (),
    ) -> None:
        super().__init__(f"{slug}: {detail}")
        self.slug = slug
        self.status, self.title = CATALOGUE[slug]
        self.detail = detail
        self.errors = tuple(errors)
        self.headers = tuple(headers)

    def with_headers(self, headers: Sequence[tuple[bytes, bytes]]) -> "Problem":
        """Return a copy with more headers. The original stays as it is, because several requests may share it."""
        return Problem(self.slug, self.detail, errors=self.errors, headers=(*self.headers, *headers))

    def document(self, *, instance: str, request_id: str) -> bytes:
        """Return the problem document for one request."""
        fields: dict[str, object] = {
            "type": TYPE_PREFIX + self.slug,
            "title": self.title,
            "status": self.status,
            "detail": self.detail,
            "instance": instance,
            "request_id": request_id,
        }
        if self.errors:
            fields["errors"] = [error._asdict() for error in self.errors]
        return orjson.dumps(fields)


def invalid(field: str, message: str) -> Problem:
    """Return the problem of one invalid field."""
    return Problem("invalid-request", f"{field}: {message}", errors=[FieldError(field, message)])


REPEAT_HEADER: Final = b"palaver-repeat"
"""Marks a refusal that the edge may retry if the write has a key: `now`, or the seconds to wait. The edge removes the
header from answers to clients, and retries no refusal without it (`regions/edge/resources.py`)."""


DEGRADED_HEADER: Final = b"palaver-degraded"
"""Marks a 503 whose cause is the process and not the request. After three of them in a row the edge ejects the process
for a while. No other 503 counts, because a client can cause `too-stale` as often as it likes. The edge removes the
header from answers to clients (`regions/edge/resources.py`)."""


def unavailable(slug: str, detail: str, *, retry_after_s: int = 1, repeat: bytes | None = None) -> Problem:
    """Return a 503 with Retry-After and, if the edge may retry the request, `REPEAT_HEADER`."""
    headers = [(b"retry-after", b"%d" % retry_after_s)]
    return Problem(slug, detail, headers=headers if repeat is None else [*headers, (REPEAT_HEADER, repeat)])


class ProblemMiddleware:
    """Turns an exception of the layers below it into a problem document. See the module."""

    def __init__(self, app: AsgiApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection event."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            await self._app(scope, receive, send)
        except Problem as problem:
            await _send_problem(problem, scope, send)
        except Exception:
            exchange = scope[EXCHANGE]
            assert isinstance(exchange, Exchange)
            _log.exception(
                "unhandled error", extra={"request_id": exchange.request_id.decode(), "route": exchange.route}
            )
            if exchange.status:
                raise
            await _send_problem(Problem("internal-error", "The request id finds it in the log."), scope, send)


async def _send_problem(problem: Problem, scope: Scope, send: Send) -> None:
    exchange = scope[EXCHANGE]
    assert isinstance(exchange, Exchange)
    instance = scope["path"].encode("utf-8", "replace").decode()
    body = problem.document(instance=instance, request_id=exchange.request_id.decode())
    headers = [
        (b"content-type", CONTENT_TYPE),
        (b"content-length", b"%d" % len(body)),
        (b"cache-control", b"no-store"),
        *problem.headers,
    ]
    await send({"type": "http.response.start", "status": problem.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})

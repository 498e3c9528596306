"""The HTTP messages of the change server: problem documents and the body of a stream.

Decides their form. The types are those of ASGI (asgi.readthedocs.io, "HTTP & WebSocket").
"""

from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from http import HTTPStatus
from typing import Any, Final

import orjson
from starlette.responses import Response

from sync.change import Item, encode_line

RETRY_AFTER_S: Final = "1"

STREAM_HEADERS: Final = [(b"content-type", b"application/x-ndjson"), (b"cache-control", b"no-store")]

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


def body_of(items: Sequence[Item]) -> Message:
    """Return the ASGI message that sends ``items`` as lines of a stream."""
    return {"type": "http.response.body", "body": b"".join([encode_line(item) for item in items]), "more_body": True}


def problem(status: int, slug: str, detail: str) -> Response:
    """Return a problem document (RFC 9457); with status 503 it asks the client to retry after a second."""
    fields = {
        "type": f"https://palaver.dev/problems/{slug}",
        "title": slug.replace("-", " ").capitalize(),
        "status": status,
        "detail": detail,
    }
    headers = {"retry-after": RETRY_AFTER_S} if status == HTTPStatus.SERVICE_UNAVAILABLE else None
    return Response(orjson.dumps(fields), status_code=status, headers=headers, media_type="application/problem+json")

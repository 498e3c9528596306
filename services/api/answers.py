"""Sends a complete response over ASGI without building a response object."""

from collections.abc import Sequence
from typing import Final

import orjson

from services.telemetry.middleware import Send

Header = tuple[bytes, bytes]
WITHOUT_CONTENT: Final = (204, 304)
JSON_HEADER: Final[Header] = (b"content-type", b"application/json")


async def answer_json(send: Send, status: int, document: object, headers: Sequence[Header] = ()) -> None:
    """Send a JSON document."""
    await answer(send, status, orjson.dumps(document), [JSON_HEADER, *headers])


async def answer(send: Send, status: int, body: bytes, headers: Sequence[Header]) -> None:
    """Send a complete answer; add the content length if the status has content."""
    length = () if status in WITHOUT_CONTENT else ((b"content-length", b"%d" % len(body)),)
    await send({"type": "http.response.start", "status": status, "headers": [*headers, *length]})
    await send({"type": "http.response.body", "body": body})

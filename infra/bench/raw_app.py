"""The limit for reads: a bare ASGI application that returns given bytes, on the same server software."""

from __future__ import annotations

import socket
import sys
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any

import uvicorn

Message = MutableMapping[str, Any]


def application(body: bytes) -> Callable[..., Awaitable[None]]:
    """An application that answers everything with the same bytes."""
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]

    async def answer(
        scope: Message, receive: Callable[[], Awaitable[Message]], send: Callable[[Message], Awaitable[None]]
    ) -> None:
        del scope, receive
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    return answer


def main() -> None:
    """Serve the bytes of a file on a port of loopback."""
    port, path = int(sys.argv[1]), Path(sys.argv[2])
    config = uvicorn.Config(
        application(path.read_bytes()), host="127.0.0.1", port=port, loop="uvloop", http="httptools",
        access_log=False, lifespan="off", log_level="warning", server_header=False,
    )  # fmt: skip
    uvicorn.Server(config).run()


def free_port() -> int:
    """A port that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


if __name__ == "__main__":
    main()

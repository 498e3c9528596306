"""What a client of plain HTTP sees when its peer does the worst."""

import asyncio
import contextlib
import socket
import struct
import threading
from collections.abc import Generator

import httpx
import pytest
import uvloop

from regions.plain_http import PlainTransport


@pytest.fixture
def resetting() -> Generator[str]:
    """Return the address of a server that resets each connection as soon as it is there."""
    with socket.create_server(("127.0.0.1", 0), backlog=512) as server:

        def reset() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = server.accept()
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    connection.close()

        thread = threading.Thread(target=reset)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.getsockname()[1]}/"
        finally:
            server.shutdown(socket.SHUT_RDWR)
            thread.join()


def test_a_connection_that_is_reset_while_it_is_made_is_an_error_of_http(resetting: str) -> None:
    async def ask() -> list[BaseException | httpx.Response]:
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(transport=PlainTransport(limits=limits), trust_env=False) as client:
            answers: list[BaseException | httpx.Response] = []
            for _ in range(10):
                asking = (client.post(resetting, json={}) for _ in range(50))
                answers += await asyncio.gather(*asking, return_exceptions=True)
            return answers

    # The services run on uvloop, and only there is the socket gone before anybody asks for its address.
    answers = uvloop.run(ask())
    assert {type(answer) for answer in answers if not isinstance(answer, httpx.HTTPError)} == set()
    assert any("reset while it was made" in str(answer) for answer in answers)

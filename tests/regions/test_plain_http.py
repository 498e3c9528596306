"""Errors that the plain HTTP client raises if its peer resets the connection."""

import asyncio
import socket
import struct
from typing import Any

import httpx
import pytest
import uvloop

from regions.plain_http import PlainTransport


class ResetBeforeReturn(uvloop.Loop):
    """An event loop that returns a new connection only after the peer has reset it.

    The services run on uvloop. Only uvloop closes the socket so early that the client can no longer read its address.
    """

    async def create_connection(self, protocol_factory: Any, *arguments: Any, **options: Any) -> Any:
        lost = asyncio.Event()

        def make_protocol() -> Any:
            protocol = protocol_factory()
            original = protocol.connection_lost

            def connection_lost(error: Exception | None) -> None:
                original(error)
                lost.set()

            protocol.connection_lost = connection_lost
            return protocol

        made = await super().create_connection(make_protocol, *arguments, **options)
        async with asyncio.timeout(20):
            await lost.wait()
        return made


async def post() -> None:
    """Post to a server that resets each connection immediately."""

    async def reset(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        own = writer.get_extra_info("socket")
        own.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()

    async with await asyncio.start_server(reset, "127.0.0.1", 0) as server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
        async with httpx.AsyncClient(transport=PlainTransport(), trust_env=False) as client:
            await client.post(url, json={})


def test_a_reset_while_a_connection_is_opened_raises_an_httpx_error() -> None:
    with (
        pytest.raises(httpx.ConnectError, match="reset while it was opened"),
        asyncio.Runner(loop_factory=ResetBeforeReturn) as runner,
    ):
        runner.run(post())


@pytest.mark.parametrize("loop", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_a_reset_after_a_connection_is_opened_raises_an_httpx_error(loop: Any) -> None:
    with pytest.raises(httpx.HTTPError), asyncio.Runner(loop_factory=loop) as runner:
        runner.run(post())

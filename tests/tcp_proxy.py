"""Proxies TCP connections to a server on loopback, for tests in which some bytes do not arrive."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable

CHUNK_BYTES = 65536


class TcpProxy:
    """Forwards connections to a server. A subclass decides which bytes pass.

    Args:
        port: Port of the server.
    """

    def __init__(self, port: int) -> None:
        self._port = port
        self._writers: list[asyncio.StreamWriter] = []

    @contextlib.asynccontextmanager
    async def listening(self) -> AsyncGenerator[int]:
        """Listen; yield the port."""
        server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        try:
            yield server.sockets[0].getsockname()[1]
        finally:
            server.close()
            self.cut()

    def cut(self) -> None:
        """Close all connections. New connections are still accepted."""
        for writer in self._writers:
            writer.close()
        self._writers.clear()

    def pass_request(self, data: bytes) -> bytes:
        """Return the bytes that the server receives of a chunk from a client."""
        return data

    def pass_response(self, data: bytes) -> bytes:
        """Return the bytes that the client receives of a chunk from the server."""
        return data

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        from_server, to_server = await asyncio.open_connection("127.0.0.1", self._port)
        self._writers += [writer, to_server]
        with contextlib.suppress(OSError):
            await asyncio.gather(
                _carry(reader, to_server, self.pass_request), _carry(from_server, writer, self.pass_response)
            )


async def _carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, passed: Callable[[bytes], bytes]) -> None:
    while data := await reader.read(CHUNK_BYTES):
        writer.write(passed(data))
        await writer.drain()
    writer.close()

"""A TCP proxy in front of a server on loopback, for tests in which bytes do not arrive."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable

CHUNK_BYTES = 65536


class TcpProxy:
    """Carries connections to a server; a subclass decides which bytes pass.

    Args:
        port: Where the server listens.
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
        """Close all connections; new ones are accepted."""
        for writer in self._writers:
            writer.close()
        self._writers.clear()

    def pass_request(self, data: bytes) -> bytes:
        """Return what the server gets of a chunk that a client sent."""
        return data

    def pass_response(self, data: bytes) -> bytes:
        """Return what the client gets of a chunk that the server sent."""
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

"""Runs the relay's network in this process between real sockets: region "a" reaches a host in region "b" through it."""

import asyncio
import contextlib
import functools
import json
import socket
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from infra.relay.connection import Connection
from infra.relay.links import parse_config
from infra.relay.network import Network
from tests import waiting
from tests.child_processes import free_port

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]
Host = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]

SOCKS_NAME = "b.etcd.internal"

# Long enough for a loaded machine, short enough for a test that hangs.
PATIENCE_S = 20.0


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Echo all bytes, and end when the client does."""
    with contextlib.suppress(ConnectionError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    writer.close()


@dataclass(kw_only=True)
class Wire:
    """The network, with the actions of a client in region "a"."""

    network: Network
    port: int
    socks_port: int
    upstream_port: int
    _open: list[asyncio.StreamWriter] = field(default_factory=list[asyncio.StreamWriter])

    async def connect(self, port: int | None = None) -> Streams:
        streams = await asyncio.open_connection("127.0.0.1", port or self.port)
        self._open.append(streams[1])
        return streams

    def set(self, source: str, target: str, **settings: object) -> None:
        self.network.change([{"source": source, "target": target, **settings}])

    def held_bytes(self) -> int:
        return sum(direction.held_bytes for direction in self.network.directions())

    def held_items(self) -> int:
        """Return how many items all delay lines hold: signals, and bytes as they were sent."""
        return sum(
            len(delay_line._queue) for direction in self.network.directions() for delay_line in direction.delay_lines
        )

    def delivered_bytes(self, source: str, target: str) -> int:
        return next(one.bytes_total for one in self.network.directions() if one.pair == (source, target))

    def connections(self) -> list[Connection]:
        return list(self.network._connections)

    def connections_open(self) -> int:
        return sum(direction.connections_open for direction in self.network.directions())

    def hang_up(self) -> None:
        for writer in self._open:
            writer.transport.abort()


async def round_trip(streams: Streams, data: bytes = b"ping") -> float:
    """Send bytes to the echo service and wait for them; return the duration in seconds."""
    reader, writer = streams
    began = time.monotonic()
    writer.write(data)
    assert await asyncio.wait_for(reader.readexactly(len(data)), PATIENCE_S) == data
    return time.monotonic() - began


until = functools.partial(waiting.until, timeout_s=PATIENCE_S)


def document(*, upstream_port: int) -> dict[str, Any]:
    """A configuration with one link and one SOCKS listener."""
    upstream = f"127.0.0.1:{upstream_port}"
    return {
        "control": f"127.0.0.1:{free_port()}",
        "token": "secret",
        "links": [{"listen": f"127.0.0.1:{free_port()}", "source": "a", "target": "b", "upstream": upstream}],
        "socks": [
            {
                "listen": f"127.0.0.1:{free_port()}",
                "source": "a",
                "routes": {f"{SOCKS_NAME}:2380": {"target": "b", "upstream": upstream}},
            }
        ],
    }


@contextlib.asynccontextmanager
async def wired(host: Host | None = echo, *, faults: Sequence[Mapping[str, object]] = ()) -> AsyncGenerator[Wire]:
    """Run a network with a host in region "b"; if it is None, no process listens there."""
    upstream_port = free_port()
    config = parse_config(json.dumps({**document(upstream_port=upstream_port), "faults": list(faults)}))
    visits: list[None] = []

    async def visit(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert host is not None
        visits.append(None)
        try:
            await host(reader, writer)
        finally:
            visits.pop()

    server = None if host is None else await asyncio.start_server(visit, "127.0.0.1", upstream_port)
    try:
        async with Network(config) as network:
            wire = Wire(
                network=network,
                port=config.links[0].listen.port,
                socks_port=config.socks[0].listen.port,
                upstream_port=upstream_port,
            )
            yield wire
            wire.hang_up()
    finally:
        if server is not None:
            server.close()
        await until(lambda: not visits)


def receive_buffer(streams: Streams, size_bytes: int) -> None:
    """Make the client's receive buffer small, so that bytes which it does not read stay in the network."""
    streams[1].get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, size_bytes)

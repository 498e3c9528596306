"""Sends HTTP/1.1 requests in a closed loop, at a cost that is small beside that of the measured server.

Decides nothing about the requests; a source makes them. Supports keep-alive and Content-Length only, because a general
client costs several times as much per request as the measured servers on one core (httpx about 600 µs, this about
30 µs).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import cast

HEAD_END = b"\r\n\r\n"
LENGTH = b"content-length:"


def percentile(values: Sequence[float], share: float) -> float:
    """Return a percentile of at least one value; `share` from 0 to 1."""
    assert values, "a percentile needs a value"
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


class BadAnswer(Exception):
    """An answer that the measurement does not expect."""


@dataclass(slots=True, kw_only=True)
class LoadResult:
    """The result of a run.

    Attributes:
        requests: Answers with the expected status.
        seconds: Wall time.
        latencies_s: One entry per answer.
        bytes_read: Bytes of heads and bodies.
    """

    requests: int = 0
    seconds: float = 0.0
    latencies_s: list[float] = field(default_factory=list[float])
    bytes_read: int = 0

    @property
    def per_second(self) -> float:
        """Answers per second."""
        assert self.seconds > 0, "a rate needs a duration"
        return self.requests / self.seconds

    def percentile_ms(self, share: float) -> float:
        """Return a percentile of the latency in milliseconds; `share` from 0 to 1."""
        return percentile(self.latencies_s, share) * 1000


class _Connection(asyncio.Protocol):
    """One keep-alive connection: sends the next request as soon as an answer is complete."""

    def __init__(
        self,
        source: Callable[[], bytes],
        expected: int,
        result: LoadResult,
        deadline: float,
        on_head: Callable[[bytes], None] | None,
    ) -> None:
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._source = source
        self._expected = f"HTTP/1.1 {expected} ".encode()
        self._result = result
        self._deadline = deadline
        self._on_head = on_head
        self._head = b""
        self._body_left = -1
        self._sent_at = 0.0
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # Not asserted: uvloop's transports have the interface without the base class.
        self._transport = cast("asyncio.Transport", transport)
        self._send()

    def _send(self) -> None:
        assert self._transport is not None
        self._sent_at = time.perf_counter()
        if self._sent_at >= self._deadline:
            self._transport.close()
            return
        self._transport.write(self._source())

    def data_received(self, data: bytes) -> None:
        self._result.bytes_read += len(data)
        if self._body_left < 0:
            self._head += data
            end = self._head.find(HEAD_END)
            if end < 0:
                return
            head, rest = self._head[:end], len(self._head) - end - len(HEAD_END)
            self._head = b""
            if not head.startswith(self._expected):
                self._fail(BadAnswer(head[:200].decode(errors="replace")))
                return
            if self._on_head is not None:
                self._on_head(head)
            self._body_left = _content_length(head) - rest
        else:
            self._body_left -= len(data)
        if self._body_left == 0:
            self._body_left = -1
            self._result.requests += 1
            self._result.latencies_s.append(time.perf_counter() - self._sent_at)
            self._send()

    def _fail(self, error: Exception) -> None:
        assert self._transport is not None
        if not self.done.done():
            self.done.set_exception(error)
        self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.done.done():
            if exc is not None or time.perf_counter() < self._deadline:
                self.done.set_exception(exc or BadAnswer("the server closed the connection"))
            else:
                self.done.set_result(None)


def _content_length(head: bytes) -> int:
    lowered = head.lower()
    start = lowered.index(LENGTH) + len(LENGTH)
    end = lowered.find(b"\r\n", start)
    return int(lowered[start : end if end >= 0 else None])


class Session:
    """One keep-alive connection, for one request at a time; its user closes it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @staticmethod
    async def open(port: int) -> Session:
        """Connect to a server on loopback."""
        return Session(*await asyncio.open_connection("127.0.0.1", port))

    async def request(self, request: bytes) -> tuple[int, bytes]:
        """Send a request; return status and body."""
        status, _, body = await self.request_with_head(request)
        return status, body

    async def request_with_head(self, request: bytes) -> tuple[int, bytes, bytes]:
        """Send a request; return status, head and body."""
        self._writer.write(request)
        head = await self._reader.readuntil(HEAD_END)
        return int(head[9:12]), head, await self._reader.readexactly(_content_length(head[: -len(HEAD_END)]))

    def close(self) -> None:
        """Close the connection."""
        self._writer.close()


async def run_load(  # noqa: PLR0913 - the parts of a measurement, by name
    port: int,
    source: Callable[[], bytes],
    *,
    connections: int,
    seconds: float,
    expected: int,
    on_head: Callable[[bytes], None] | None = None,
) -> LoadResult:
    """Load a server on loopback for some seconds.

    Args:
        port: The server's port.
        source: Makes the bytes of the next request.
        connections: Number of connections, each with one request at a time.
        seconds: Duration.
        expected: The status that every answer must have.
        on_head: Called with the head of every answer.

    Raises:
        BadAnswer: An answer has another status, or the server closed a connection early.
    """
    loop = asyncio.get_running_loop()
    result = LoadResult()
    started = time.perf_counter()
    deadline = started + seconds

    def connect() -> _Connection:
        return _Connection(source, expected, result, deadline, on_head)

    made = [(await loop.create_connection(connect, "127.0.0.1", port))[1] for _ in range(connections)]
    await asyncio.gather(*(connection.done for connection in made))
    result.seconds = time.perf_counter() - started
    return result


def get_request(target: str, headers: str = "") -> bytes:
    """Return the bytes of a GET; `headers` are whole lines with their line ends."""
    return f"GET {target} HTTP/1.1\r\nHost: bench\r\n{headers}\r\n".encode()


def post_request(target: str, body: bytes, headers: str = "") -> bytes:
    """Return the bytes of a POST of JSON; `headers` are whole lines with their line ends."""
    return (
        f"POST {target} HTTP/1.1\r\nHost: bench\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n{headers}\r\n"
    ).encode() + body

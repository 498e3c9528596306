"""One TCP connection through the relay: two sockets and the two delay lines between them.

Decides how a connection opens, half-closes, breaks and ends across the simulated network, as two real hosts
would see it. Does not know which listener accepted it.

The operating system accepts the client's connection before the relay sees it. A client that has to wait for the round
trip of a handshake, or for the end of a cut, therefore sees an open connection without traffic. The relay buffers what
the client sends until the handshake is complete, as the client's own socket would.
"""

import asyncio
import logging
import socket
import struct
from collections.abc import Coroutine
from typing import Any, Protocol, assert_never, cast

from infra.relay.delay_line import DelayLine, Direction, Item, Signal
from infra.relay.links import Route

_LOGGER = logging.getLogger(__name__)

# A local connect completes at once; this is the bound for a listener whose backlog is full.
CONNECT_TIMEOUT_S = 10.0

# How long the relay keeps a connection whose client sent FIN before the handshake was complete: long enough for a
# client that sent its whole request and half-closed, short enough that a client which retries every second leaves only
# a few.
EARLY_END_S_MAX = 10.0

# What a client may send before the handshake is complete (the initial window of a Linux socket is 64 KB).
EARLY_BYTES_MAX = 64 * 1024

# How much one socket's write buffer may hold before its delay line stops. With asyncio's default of 64 KiB, a bulk
# transfer would stop and resume too often.
WRITE_BUFFER_BYTES_MAX = 256 * 1024

# With this option a closed socket sends RST, as a host does that has no listener for a connection.
_LINGER_RESET = struct.pack("ii", 1, 0)


class Owner(Protocol):
    """The interface of `Network` that a connection uses."""

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Run a task that ends when the network ends."""
        ...

    def forget(self, connection: "Connection") -> None:
        """Drop the connection, which has ended."""
        ...


class Connection:
    """A connection of a client (`near`) to a service (`far`); `near` is the protocol of the client's socket."""

    def __init__(
        self,
        owner: Owner,
        route: Route,
        directions: tuple[Direction, Direction],
        *,
        greeting: bytes = b"",
        refusal: bytes = b"",
    ) -> None:
        """Make a connection that is not open yet.

        Args:
            owner: runs the task that connects to the service, and drops the connection at its end.
            route: source, target and address of the service.
            directions: from client to service, and back.
            greeting: sent to the client when the service has accepted the connection.
            refusal: sent to the client, instead of RST, if the service has not accepted it.
        """
        there, back = directions
        self._owner = owner
        self._route = route
        self._there = there
        self._greeting = greeting
        self._refusal = refusal
        self._established = False
        self._over = False
        self._forgotten = False
        self._early: list[bytes] = []
        self._early_bytes = 0
        self._early_end: asyncio.TimerHandle | None = None
        self.near = Endpoint(self)
        self.far = Endpoint(self)
        self._to_far = DelayLine(there, deliver=self._arrives_far, slow_down=self.near.slow_down, expire=self.abort)
        self._to_near = DelayLine(back, deliver=self._arrives_near, slow_down=self.far.slow_down, expire=self.abort)
        there.connections_total += 1
        there.connections_open += 1

    def abort(self) -> None:
        """Reset both sockets at once and drop the connection."""
        self._over = True
        self.near.abort()
        self.far.abort()
        self._forget()

    def attached(self, side: "Endpoint") -> None:
        """Send OPEN to the far side for the client's socket, or OPENED back for the service's, before its bytes."""
        if side is self.near:
            self._to_far.push(Signal.OPEN)
        elif self._over:
            side.abort()
        else:
            self._to_near.push(Signal.OPENED)

    def received(self, side: "Endpoint", data: bytes) -> None:
        """Forward bytes; those of the client wait until the handshake is complete."""
        if side is self.far:
            self._to_near.push(data)
        elif self._established:
            self._to_far.push(data)
        else:
            self._early.append(data)
            self._early_bytes += len(data)
            if self._early_bytes > EARLY_BYTES_MAX:
                side.slow_down(True)

    def ended(self, side: "Endpoint") -> None:
        """Forward the end (FIN) of one direction."""
        if side is self.far:
            self._to_near.push(Signal.END)
        elif self._established:
            self._to_far.push(Signal.END)
        else:
            self._early_end = asyncio.get_running_loop().call_later(EARLY_END_S_MAX, self.abort)

    def full(self, side: "Endpoint", blocked: bool) -> None:
        """Stop the delay line to a side whose write buffer is full, or restart it."""
        delay_line = self._to_near if side is self.near else self._to_far
        if blocked:
            delay_line.block()
        else:
            delay_line.unblock()

    def lost(self, side: "Endpoint") -> None:
        """Send RESET to the other side over the simulated network, because this socket is closed."""
        other, delay_line = (self.far, self._to_far) if side is self.near else (self.near, self._to_near)
        if other.gone:
            self._forget()
        elif not self._over:
            delay_line.push(Signal.RESET)

    def _forget(self) -> None:
        if self._forgotten:
            return
        self._over = self._forgotten = True
        self._to_far.close()
        self._to_near.close()
        if self._early_end is not None:
            self._early_end.cancel()
        self._there.connections_open -= 1
        self._owner.forget(self)

    def _arrives_far(self, item: Item) -> None:
        match item:
            case bytes():
                self.far.write(item)
            case Signal.OPEN:
                self._owner.spawn(self._connect())
            case Signal.END:
                self._end(self.far)
            case Signal.RESET:
                self.far.abort()
            case Signal.OPENED:
                raise AssertionError("only the far side takes connections")
            case _:
                assert_never(item)

    def _arrives_near(self, item: Item) -> None:
        match item:
            case bytes():
                self.near.write(item)
            case Signal.OPENED:
                self._establish()
            case Signal.END:
                self._end(self.near)
            case Signal.RESET:
                self._break_near()
            case Signal.OPEN:
                raise AssertionError("only the near side asks for connections")
            case _:
                assert_never(item)

    async def _connect(self) -> None:
        upstream = self._route.upstream
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                await loop.create_connection(lambda: self.far, upstream.host, upstream.port)
        except (OSError, TimeoutError) as error:
            pair = {"source": self._route.source, "target": self._route.target}
            _LOGGER.info("%s accepted no connection: %s", upstream, error, extra=pair)
            self._there.refused_total += 1
            if not self._over:
                self._to_near.push(Signal.RESET)

    def _establish(self) -> None:
        self._established = True
        self.near.write(self._greeting)
        self.near.slow_down(False)
        for data in self._early:
            self._to_far.push(data)
        self._early.clear()
        if self._early_end is not None:
            self._early_end.cancel()
            self._to_far.push(Signal.END)

    def _end(self, side: "Endpoint") -> None:
        side.end()
        if self.near.end_sent and self.far.end_sent:
            self._over = True
            self.near.close()
            self.far.close()

    def _break_near(self) -> None:
        if self._refusal and not self._established:
            self._over = True
            self.near.write(self._refusal)
            self.near.close()
        else:
            self.near.abort()


class Endpoint(asyncio.Protocol):
    """One of the two sockets of a connection.

    Attributes:
        gone: whether there is no open socket (not yet, or no longer).
        end_sent: whether FIN was written to the socket.
    """

    __slots__ = ("_connection", "_end_received", "_paused", "_transport", "end_sent", "gone")

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._transport: asyncio.Transport | None = None
        self._end_received = False
        self._paused = False
        self.gone = True
        self.end_sent = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Store the transport and set its options."""
        self._transport = cast("asyncio.Transport", transport)
        self.gone = False
        self._transport.set_write_buffer_limits(high=WRITE_BUFFER_BYTES_MAX)
        self._option(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._connection.attached(self)

    def data_received(self, data: bytes) -> None:
        """Pass received bytes to the connection."""
        self._connection.received(self, data)

    def eof_received(self) -> bool:
        """Pass the received FIN to the connection, and keep the other direction open."""
        if not self._end_received:
            self._end_received = True
            self._connection.ended(self)
        return True

    def pause_writing(self) -> None:
        """Stop the delay line to this socket, whose write buffer is full."""
        self._connection.full(self, True)

    def resume_writing(self) -> None:
        """Restart the delay line to this socket."""
        self._connection.full(self, False)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - the reason changes nothing
        """Report the closed socket to the connection."""
        self.gone = True
        self._connection.lost(self)

    def write(self, data: bytes) -> None:
        """Write bytes; discard them if the socket is closed."""
        if data and self._transport is not None and not self._transport.is_closing():
            self._transport.write(data)

    def end(self) -> None:
        """Write FIN: no more bytes follow."""
        self.end_sent = True
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write_eof()

    def close(self) -> None:
        """Close the socket after its buffer has been written."""
        if self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        """Close the socket at once, with RST."""
        if self._transport is not None and not self.gone:
            self._option(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_RESET)
            self._transport.abort()

    def slow_down(self, slowed: bool) -> None:
        """Pause or resume reading from the socket."""
        if self._transport is None or self._transport.is_closing() or self._end_received:
            return
        if slowed and not self._paused:
            self._transport.pause_reading()
        elif self._paused and not slowed:
            self._transport.resume_reading()
        self._paused = slowed

    def _option(self, level: int, name: int, value: int | bytes) -> None:
        assert self._transport is not None
        sock = self._transport.get_extra_info("socket")
        try:
            sock.setsockopt(level, name, value)
        except OSError as error:
            # The peer may have closed the connection already; then the option no longer matters.
            _LOGGER.debug("a socket option could not be set: %s", error)

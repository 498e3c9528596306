"""The SOCKS 5 handshake: the CONNECT command without authentication, for a few known names (RFC 1928).

Parses the client's first bytes; the routes of its listener give the target. The client gets the answer to its request
when the service has accepted the connection, so that a connect takes a whole round trip.
"""

import asyncio
import ipaddress
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

from infra.relay.connection import Endpoint
from infra.relay.links import Route, SocksListener

_LOGGER = logging.getLogger(__name__)

VERSION = 5
NO_PASSWORD = 0
CONNECT = 1
IPV4, NAME, IPV6 = 1, 3, 4

# A SOCKS client sends its few bytes at once; one that does not (a port scanner) is disconnected after this.
OPENING_TIMEOUT_S = 10.0

METHOD_ACCEPTED = bytes([VERSION, NO_PASSWORD])
METHOD_REFUSED = bytes([VERSION, 0xFF])


def _reply(code: int) -> bytes:
    """Return the answer to a request, with 0.0.0.0:0 as the bound address, because no client uses it."""
    return bytes([VERSION, code, 0, IPV4, 0, 0, 0, 0, 0, 0])


GRANTED, NOT_ALLOWED, REFUSED, COMMAND_UNKNOWN = _reply(0), _reply(2), _reply(5), _reply(7)


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A client's request: the destination "host:port" in lower case, and the length of the request in bytes."""

    destination: str
    length_bytes: int


class NotSocks(Exception):
    """The handshake is invalid or refused; `answer` is sent to the client before its socket is closed."""

    def __init__(self, message: str, answer: bytes) -> None:
        super().__init__(message)
        self.answer = answer


def read_methods(data: bytes) -> int | None:
    """Return the length of the client's first message, None if it is incomplete.

    Raises:
        NotSocks: it is another protocol, or the client requires authentication.
    """
    if data[:1] not in (b"", bytes([VERSION])):
        raise NotSocks("the first byte is not that of SOCKS 5", b"")
    if len(data) < 2 or len(data) < 2 + data[1]:  # noqa: PLR2004 - version and number of methods
        return None
    if NO_PASSWORD not in data[2 : 2 + data[1]]:
        raise NotSocks("the client offers no method without a password", METHOD_REFUSED)
    return 2 + data[1]


def read_request(data: bytes) -> Request | None:
    """Return the client's request, None if it is incomplete.

    Raises:
        NotSocks: the command is not CONNECT.
    """
    if len(data) < 5:  # noqa: PLR2004 - up to the first byte of the address
        return None
    version, command, _, kind, first = data[:5]
    if version != VERSION or command != CONNECT or kind not in (IPV4, NAME, IPV6):
        raise NotSocks("the client asks for something else than a connection", COMMAND_UNKNOWN)
    begin, length = {IPV4: (4, 4), IPV6: (4, 16), NAME: (5, first)}[kind]
    end = begin + length
    if len(data) < end + 2:
        return None
    raw = data[begin:end]
    host = raw.decode("ascii", "replace") if kind == NAME else str(ipaddress.ip_address(raw))
    port = int.from_bytes(data[end : end + 2], "big")
    return Request(destination=f"{host.lower()}:{port}", length_bytes=end + 2)


class SocksHandshake(asyncio.Protocol):
    """The protocol of a client's socket until its request is complete; then a `Connection` takes the socket over."""

    def __init__(self, listener: SocksListener, connect: Callable[[Route, bytes, bytes], Endpoint | None]) -> None:
        """Wait for a client.

        Args:
            listener: has the routes that the client may request.
            connect: makes a connection with a greeting and a refusal; returns None if too many are open.
        """
        self._listener = listener
        self._connect = connect
        self._transport: asyncio.Transport | None = None
        self._timeout: asyncio.TimerHandle | None = None
        self._received = b""
        self._method_accepted = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Start the timeout of the handshake."""
        self._transport = cast("asyncio.Transport", transport)
        self._timeout = asyncio.get_running_loop().call_later(OPENING_TIMEOUT_S, self._transport.abort)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - the reason changes nothing
        """Cancel the timeout."""
        self._stop_waiting()

    def data_received(self, data: bytes) -> None:
        """Collect bytes until the request is complete."""
        assert self._transport is not None
        self._received += data
        try:
            self._advance(self._transport)
        except NotSocks as error:
            _LOGGER.warning("not SOCKS: %s", error, extra={"source": self._listener.source})
            self._stop_waiting()
            self._transport.write(error.answer)
            self._transport.close()

    def _advance(self, transport: asyncio.Transport) -> None:
        if not self._method_accepted:
            length_bytes = read_methods(self._received)
            if length_bytes is None:
                return
            self._received = self._received[length_bytes:]
            self._method_accepted = True
            transport.write(METHOD_ACCEPTED)
        request = read_request(self._received)
        if request is None:
            return
        route = self._listener.routes.get(request.destination)
        if route is None:
            raise NotSocks(f"{request.destination} is no known name", NOT_ALLOWED)
        self._stop_waiting()
        side = self._connect(route, GRANTED, REFUSED)
        if side is None:
            transport.abort()
            return
        transport.set_protocol(side)
        side.connection_made(transport)
        early = self._received[request.length_bytes :]
        if early:
            side.data_received(early)

    def _stop_waiting(self) -> None:
        if self._timeout is not None:
            self._timeout.cancel()
            self._timeout = None

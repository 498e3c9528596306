"""SOCKS 5, as far as a program needs it that asks for one of a few known names (RFC 1928, without passwords).

Decides what a client's opening bytes mean; the routes of its listener decide where that leads. The answer to a
request is sent when the far side took the connection, so that a connect takes the round trip it should.
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

# A client sends its few bytes at once; one that does not is none (a port scanner, a mistake).
OPENING_TIMEOUT_S = 10.0

METHOD_ACCEPTED = bytes([VERSION, NO_PASSWORD])
METHOD_REFUSED = bytes([VERSION, 0xFF])


def _reply(code: int) -> bytes:
    """Answer a request; the bound address is not told, as nobody needs it."""
    return bytes([VERSION, code, 0, IPV4, 0, 0, 0, 0, 0, 0])


GRANTED, NOT_ALLOWED, REFUSED, COMMAND_UNKNOWN = _reply(0), _reply(2), _reply(5), _reply(7)


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What a client asked for: "host:port" in lower case, and the length of the bytes that said so."""

    destination: str
    length_bytes: int


class NotSocks(Exception):
    """The bytes cannot be understood; `answer` is what the client gets before it is closed."""

    def __init__(self, message: str, answer: bytes) -> None:
        super().__init__(message)
        self.answer = answer


def read_methods(data: bytes) -> int | None:
    """Return the length of the client's first message, None when there are bytes to come.

    Raises:
        NotSocks: when it is another protocol or wants a password.
    """
    if data[:1] not in (b"", bytes([VERSION])):
        raise NotSocks("the first byte is not that of SOCKS 5", b"")
    if len(data) < 2 or len(data) < 2 + data[1]:  # noqa: PLR2004 - version and number of methods
        return None
    if NO_PASSWORD not in data[2 : 2 + data[1]]:
        raise NotSocks("the client offers no method without a password", METHOD_REFUSED)
    return 2 + data[1]


def read_request(data: bytes) -> Request | None:
    """Return the client's request, None when there are bytes to come.

    Raises:
        NotSocks: when it asks for something else than a connection.
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
    """The client's socket until its request is known; then a connection takes it over."""

    def __init__(self, listener: SocksListener, connect: Callable[[Route, bytes, bytes], Endpoint | None]) -> None:
        """Wait for a client.

        Args:
            listener: whose routes may be asked for.
            connect: makes a connection with a greeting and a refusal; None when there are too many.
        """
        self._listener = listener
        self._connect = connect
        self._transport: asyncio.Transport | None = None
        self._timeout: asyncio.TimerHandle | None = None
        self._received = b""
        self._method_accepted = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the socket and give the client its time."""
        self._transport = cast("asyncio.Transport", transport)
        self._timeout = asyncio.get_running_loop().call_later(OPENING_TIMEOUT_S, self._transport.abort)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - a client that leaves may
        """Stop waiting."""
        self._stop_waiting()

    def data_received(self, data: bytes) -> None:
        """Take bytes until they make a request."""
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

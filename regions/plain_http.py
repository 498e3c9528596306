"""What clients of plain HTTP inside a deployment give httpx.

httpx reads all certificate authorities for each client, 20 ms of a processor, also for one that never speaks TLS; a
start asks some hundred times whether a process is ready.
"""

import ssl
from pathlib import Path

import httpx

TRUST_NOBODY = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
"""No authority is in it: an address with https would be refused."""

LIMITS = httpx.Limits(max_connections=100, max_keepalive_connections=20)
"""httpx's own, which it gives to transports of its own only."""


class PlainTransport(httpx.AsyncHTTPTransport):
    """Transport of plain HTTP, each of whose failures is an `httpx.HTTPError`.

    A connection that its peer resets while it is made lets an AttributeError through (httpx 0.28 with anyio 4 on
    uvloop: the socket is gone when its address is asked for). Nothing was sent on it.
    """

    def __init__(self, *, limits: httpx.Limits = LIMITS, uds: Path | None = None) -> None:
        """Prepare.

        Args:
            limits: Of the connections.
            uds: Unix socket to connect to instead of the host of a URL.
        """
        super().__init__(verify=TRUST_NOBODY, limits=limits, uds=None if uds is None else str(uds))

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """See `httpx.AsyncBaseTransport`."""
        try:
            return await super().handle_async_request(request)
        except AttributeError as error:
            if error.name != "getpeername":
                raise
            raise httpx.ConnectError("reset while it was made", request=request) from error

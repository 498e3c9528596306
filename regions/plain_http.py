"""A transport of httpx for clients of plain HTTP inside a deployment.

httpx loads all certificate authorities for each client, also for a client that never uses TLS. That takes 20 ms of CPU
time, and a start makes about a hundred readiness requests.
"""

import ssl
from pathlib import Path

import httpx

TRUST_NOBODY = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
"""An SSL context without certificate authorities: a request to an https URL fails."""

LIMITS = httpx.Limits(max_connections=100, max_keepalive_connections=20)
"""httpx's default limits, which httpx applies only to transports that it creates."""


class PlainTransport(httpx.AsyncHTTPTransport):
    """Transport of plain HTTP that raises every failure as an `httpx.HTTPError`.

    If the peer resets a connection while it is opened, httpx 0.28 with anyio 4 on uvloop raises an AttributeError: the
    socket is closed when anyio reads its address. Nothing was sent on that connection.
    """

    def __init__(self, *, limits: httpx.Limits = LIMITS, uds: Path | None = None) -> None:
        """Initialise a transport.

        Args:
            limits: Limits of the connection pool.
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
            raise httpx.ConnectError("the connection was reset while it was opened", request=request) from error

"""Extends uvicorn's HTTP protocol: bounds the path, and answers a request that it cannot parse with a problem document.

It puts the connection into the scope, so that an endpoint can check whether the client is still connected
(`client_is_gone`).

uvicorn decodes the percent-encoding of a path in a Python loop before it calls the application: 30 ms for 60 kB. Paths
are therefore truncated. Every route is much shorter than the bound, so a truncated path matches no route.

Overrides callbacks of `HttpToolsProtocol`, which uvicorn does not document as an interface. Tests check them with the
pinned version.
"""

import sys
from collections.abc import Mapping
from typing import Any, Final, cast

import httptools
import orjson
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

CONNECTION: Final = "palaver.connection"
"""Key of the ASGI scope that holds the transport of the request's connection."""

PATH_BYTES_MAX: Final = 1024
"""The longest path of a route has about a hundred bytes, and three times as many percent-encoded."""

_MALFORMED: Final = (400, "Bad Request", "malformed-request", "The request is malformed")
_NO_SUCH_METHOD: Final = (501, "Not Implemented", "not-implemented", "The method or encoding is not implemented")


def client_is_gone(scope: Mapping[str, Any]) -> bool:
    """Return whether the connection of a request is closed, so that the client cannot receive an answer.

    Returns False if the server does not put the connection into the scope.
    """
    connection = scope.get(CONNECTION)
    return connection is not None and connection.is_closing()


class PublicProtocol(HttpToolsProtocol):
    """One connection of a server. See the module docstring."""

    def on_headers_complete(self) -> None:
        """Hand the request to uvicorn, with a bounded path."""
        path, separator, query = self.url.partition(b"?")
        if len(path) > PATH_BYTES_MAX:
            self.url = path[:PATH_BYTES_MAX] + separator + query
        scope: dict[str, Any] = cast("Any", self.scope)
        scope[CONNECTION] = self.transport
        super().on_headers_complete()

    def send_400_response(self, msg: str) -> None:
        """Answer a request that the parser rejects, and close the connection."""
        no_such_method = isinstance(sys.exception(), httptools.HttpParserInvalidMethodError)
        status, reason, slug, title = _NO_SUCH_METHOD if no_such_method else _MALFORMED
        document = {"type": f"https://palaver.dev/problems/{slug}", "title": title, "status": status, "detail": msg}
        body = orjson.dumps(document)
        head = (
            f"HTTP/1.1 {status} {reason}\r\ncontent-type: application/problem+json\r\n"
            f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
        )
        self.transport.write(head.encode("ascii") + body)
        self.transport.close()

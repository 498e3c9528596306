"""uvicorn's HTTP protocol, with a bound on the path of a request and a problem document for what it cannot parse.

It puts the connection into the scope, so that an endpoint can ask whether the client is still there (`client_is_gone`).

uvicorn decodes the percent-encodings of a path in a loop of Python before the application sees it: 30 ms for 60 kB. No
route is nearly as long, so that what is left of a path that was cut is no route either.

Overrides callbacks of `HttpToolsProtocol`, which uvicorn does not document as an interface; the pinned version is
held to them by tests.
"""

import sys
from collections.abc import Mapping
from typing import Any, Final, cast

import httptools
import orjson
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

CONNECTION: Final = "palaver.connection"
"""Key of the ASGI scope under which the transport of the request's connection is found."""

PATH_BYTES_MAX: Final = 1024
"""The longest path of a route has about a hundred bytes, and three times as many percent-encoded."""

_MALFORMED: Final = (400, "Bad Request", "malformed-request", "The request is malformed")
_NO_SUCH_METHOD: Final = (501, "Not Implemented", "not-implemented", "The method or encoding is not implemented")


def client_is_gone(scope: Mapping[str, Any]) -> bool:
    """Return whether the connection of a request is closed, so that nobody reads an answer.

    A server that does not put its connection into the scope says that the client is there.
    """
    connection = scope.get(CONNECTION)
    return connection is not None and connection.is_closing()


class PublicProtocol(HttpToolsProtocol):
    """One connection of a server. See the module."""

    def on_headers_complete(self) -> None:
        """Hand the request to uvicorn, with a bounded path."""
        path, separator, query = self.url.partition(b"?")
        if len(path) > PATH_BYTES_MAX:
            self.url = path[:PATH_BYTES_MAX] + separator + query
        scope: dict[str, Any] = cast("Any", self.scope)
        scope[CONNECTION] = self.transport
        super().on_headers_complete()

    def send_400_response(self, msg: str) -> None:
        """Answer a request that the parser refused, and close the connection."""
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

"""uvicorn's HTTP protocol, which answers what it cannot parse with a problem document as everything behind it does.

Overrides a callback of `HttpToolsProtocol`, which uvicorn does not document as an interface; the pinned version is
held to it by tests.
"""

import sys
from typing import Final

import httptools
import orjson
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

_MALFORMED: Final = (400, "Bad Request", "malformed-request", "The request is malformed")
_NO_SUCH_METHOD: Final = (501, "Not Implemented", "not-implemented", "No address takes this method or encoding")


class ProblemProtocol(HttpToolsProtocol):
    """One connection of a server. See the module."""

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

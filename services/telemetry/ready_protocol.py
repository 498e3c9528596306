"""Extends uvicorn's HTTP protocol with a fast path: it sends an answer that is ready while it parses the request.

Decides when the fast path applies (a GET on an idle keep-alive connection of HTTP/1.1), and leaves every other or
doubtful request to uvicorn. uvicorn needs a task, a scope, an event and two sends through the layers of the
application for a request, which costs several times as much as the lookup of a page. Overrides the parser's callbacks
of `HttpToolsProtocol`, which uvicorn does not document as an interface. Tests check them with the pinned version.
"""

import asyncio
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from uvicorn.config import Config
from uvicorn.server import ServerState

from services.telemetry.http_protocol import PublicProtocol

Headers = Sequence[tuple[bytes, bytes]]
ReadyAnswers = Callable[[bytes, Headers], tuple[bytes, bytes] | None]
"""Takes the target of a GET as received, and its headers with lower-case names.

Returns None to leave the request to the application. Otherwise returns the head of the answer (status line and header
lines, without the empty line) and its body. Must not raise.
"""


def header_lines(headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Return headers in wire format, each with its line end."""
    return b"".join([b"%b: %b\r\n" % header for header in headers])


class ReadyProtocol(PublicProtocol):
    """One connection of a server that calls `ready` before its application."""

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
        *,
        ready: ReadyAnswers,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._ready = ready
        self._answered = False

    def on_message_begin(self) -> None:
        """Begin a request; `on_headers_complete` builds its scope only if the application has to answer."""
        self.url = b""
        self.headers = []
        self.expect_100_continue = False
        self._answered = False

    def on_headers_complete(self) -> None:
        """Send the answer if it is ready; otherwise begin the request again in uvicorn."""
        answer = self._ready(self.url, self.headers) if self._may_answer() else None
        if answer is not None:
            self._answered = True
            self._send(*answer)
            return
        url, headers, expects = self.url, self.headers, self.expect_100_continue
        super().on_message_begin()
        self.url, self.expect_100_continue = url, expects
        self.headers.extend(headers)  # the scope holds a reference to this list
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Pass a part of the body to uvicorn, or drop it if the request is answered."""
        if not self._answered:
            super().on_body(body)

    def on_message_complete(self) -> None:
        """End the request in uvicorn, unless it is answered."""
        if not self._answered:
            super().on_message_complete()

    def _may_answer(self) -> bool:
        parser: Any = self.parser
        cycle: Any = self.cycle
        return (
            parser.get_method() == b"GET"
            and (cycle is None or cycle.response_complete)
            and not self.flow.write_paused
            and not self.transport.is_closing()
            and parser.get_http_version() == "1.1"
            and parser.should_keep_alive()
            and not parser.should_upgrade()
        )

    def _send(self, head: bytes, body: bytes) -> None:
        head = b"%b%b\r\n" % (head, header_lines(self.server_state.default_headers))
        self.transport.writelines((head, body) if body else (head,))
        self.on_response_complete()

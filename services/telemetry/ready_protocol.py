"""uvicorn's HTTP protocol with a short cut: an answer that is ready goes out while its request is being parsed.

Decides when the short cut may be taken (a whole GET on an idle keep-alive connection) and leaves everything else,
every doubt included, to uvicorn. A request costs uvicorn a task, a scope, an event and two sends through the layers
of the application: several times of what it costs to look a page up. Overrides the parser's callbacks of
`HttpToolsProtocol`, which uvicorn does not document as an interface; the pinned version is held to it by tests.
"""

import asyncio
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from uvicorn.config import Config
from uvicorn.server import ServerState

from services.telemetry.http_protocol import PublicProtocol

Headers = Sequence[tuple[bytes, bytes]]
ReadyAnswers = Callable[[bytes, Headers], tuple[bytes, bytes] | None]
"""Takes the target of a GET as it came and its headers with lower-case names. Returns None to leave the request to the
application, or head and body of a whole answer: status line and header lines, without the empty line. Must not raise.
"""


def header_lines(headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Return headers as they are sent, each with its line end."""
    return b"".join([b"%b: %b\r\n" % header for header in headers])


class ReadyProtocol(PublicProtocol):
    """One connection of a server that asks `ready` before its application."""

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
        """Begin a request; its scope is built when the application needs it."""
        self.url = b""
        self.headers = []
        self.expect_100_continue = False
        self._answered = False

    def on_headers_complete(self) -> None:
        """Answer what is ready, or hand the request to uvicorn as if nothing had been."""
        answer = self._ready(self.url, self.headers) if self._may_answer() else None
        if answer is not None:
            self._answered = True
            self._send(*answer)
            return
        url, headers, expects = self.url, self.headers, self.expect_100_continue
        super().on_message_begin()
        self.url, self.expect_100_continue = url, expects
        self.headers.extend(headers)  # the scope holds this list
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Take a part of a body."""
        if not self._answered:
            super().on_body(body)

    def on_message_complete(self) -> None:
        """End a request."""
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

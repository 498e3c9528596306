"""Runs an ASGI application on uvicorn inside the loop of a process, with a bounded stop.

Decides the server's settings (no access log, no server header, httptools) and that the process, not the
server, owns the signals and the exit status. A port that is taken is an exception, not an exit.
"""

import asyncio
import functools
import os
import socket
from pathlib import Path
from typing import Any, Final

import uvicorn

from regions.embedded_server import EmbeddedServer
from services.telemetry.http_protocol import PublicProtocol
from services.telemetry.middleware import AsgiApp
from services.telemetry.ready_protocol import ReadyAnswers, ReadyProtocol

# A service must be gone three seconds after SIGTERM; uvicorn adds two ticks of 0.1 s around this.
GRACEFUL_STOP_S: Final = 2
# Waiting connections while the loop is busy; SOMAXCONN of Linux was 128 before 5.4, since then 4096.
BACKLOG: Final = 2048
# Envoy keeps upstream connections open for an hour by default; ours must outlive short pauses of a client.
KEEP_ALIVE_S: Final = 75


class ListenFailed(Exception):
    """The address cannot be listened on; the message says which and why."""


def parse_listen(text: str) -> tuple[str, int]:
    """Split `host:port`.

    Raises:
        ValueError: It is not of that form, or the port is out of range.
    """
    host, separator, port = text.rpartition(":")
    if not separator or not host or not port.isascii() or not port.isdigit() or int(port) > 65535:  # noqa: PLR2004 - the largest port
        raise ValueError(f"{text!r} is not host:port")
    return host.strip("[]"), int(port)


def bind(listen: str) -> socket.socket:
    """Open a listening socket for `host:port` (port 0 picks a free one).

    Raises:
        ListenFailed: The port is taken or the address is not ours.
    """
    host, port = parse_listen(listen)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise ListenFailed(f"cannot listen on {listen}: {error.strerror or error}") from error
    listener.setblocking(False)
    return listener


def bind_unix(path: Path) -> socket.socket:
    """Open a listening unix socket that only our own account can connect to; takes the place of an old one.

    Raises:
        ListenFailed: The path is too long, or not ours.
    """
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        path.unlink(missing_ok=True)
        os.fchmod(listener.fileno(), 0o600)  # what bind creates has the mode of the socket (unix(7))
        listener.bind(str(path))
    except OSError as error:
        listener.close()
        raise ListenFailed(f"cannot listen on {path}: {error.strerror or error}") from error
    listener.setblocking(False)
    return listener


def bind_public(listen: str, unix_listen: Path | None) -> list[socket.socket]:
    """Open what an API is asked on: `host:port`, and the edge's own way in when there is one.

    Raises:
        ListenFailed: One of them cannot be listened on.
    """
    listeners = [bind(listen)]
    if unix_listen is not None:
        listeners.append(bind_unix(unix_listen))
    return listeners


async def serve_http(
    app: AsgiApp,
    *listeners: socket.socket,
    ready: ReadyAnswers | None = None,
    graceful_stop_s: int = GRACEFUL_STOP_S,
) -> None:
    """Serve until the task is cancelled; then stop accepting, let requests end (bounded) and return.

    Args:
        app: The ASGI application. Its lifespan is not run: composition roots own what they open.
        listeners: From `bind` or `bind_unix`; closed at the end.
        ready: Answers that need no thought; asked before the application.
        graceful_stop_s: How long requests may go on after the cancellation.
    """
    # uvicorn calls it with the arguments of its own protocol class.
    protocol: Any = PublicProtocol if ready is None else functools.partial(ReadyProtocol, ready=ready)
    config = uvicorn.Config(
        app,
        http=protocol,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        backlog=BACKLOG,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=graceful_stop_s,
    )
    server = EmbeddedServer(config)
    try:
        async with asyncio.TaskGroup() as group:
            serving = group.create_task(server.serve(sockets=list(listeners)), name="http-server")
            try:
                await asyncio.shield(serving)
            except asyncio.CancelledError:
                server.should_exit = True
                # uvicorn looks at the flag every 0.1 s and bounds its own stop by `graceful_stop_s`.
                await asyncio.shield(serving)
                raise
    finally:
        # A second cancellation ends uvicorn before it has closed anything.
        for listening in server.servers if server.started else ():
            listening.close()
        for listener in listeners:
            listener.close()

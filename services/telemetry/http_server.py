"""Runs an ASGI application on uvicorn in the event loop of a process, with a bounded stop.

Decides the server's settings (no access log, no server header, httptools). The process, not the server, handles signals
and sets the exit status. If a port is taken, `bind` raises an exception and does not end the process.
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

# A service has to end within three seconds of SIGTERM; uvicorn adds two ticks of 0.1 s to this time.
GRACEFUL_STOP_S: Final = 2
# Connections that wait while the event loop is busy. The default limit of Linux (SOMAXCONN) is 4096 since 5.4, and was
# 128 before.
BACKLOG: Final = 2048
# Envoy keeps upstream connections open for an hour by default. The server keeps them over short pauses of a client.
KEEP_ALIVE_S: Final = 75


class ListenFailed(Exception):
    """The process cannot listen on an address; the message has the address and the reason."""


def parse_listen(text: str) -> tuple[str, int]:
    """Split `host:port`.

    Raises:
        ValueError: The text has another form, or the port is out of range.
    """
    host, separator, port = text.rpartition(":")
    if not separator or not host or not port.isascii() or not port.isdigit() or int(port) > 65535:  # noqa: PLR2004 - the largest port
        raise ValueError(f"{text!r} is not host:port")
    return host.strip("[]"), int(port)


def bind(listen: str) -> socket.socket:
    """Bind a TCP socket to `host:port`; port 0 selects a free port. uvicorn listens on it.

    Raises:
        ListenFailed: The port is taken, or the address is not one of this machine.
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
    """Bind a Unix socket to which only the account of this process can connect; replaces an existing socket.

    Raises:
        ListenFailed: The path is too long, or cannot be written.
    """
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        path.unlink(missing_ok=True)
        os.fchmod(listener.fileno(), 0o600)  # bind creates the file with the mode of the socket (unix(7))
        listener.bind(str(path))
    except OSError as error:
        listener.close()
        raise ListenFailed(f"cannot listen on {path}: {error.strerror or error}") from error
    listener.setblocking(False)
    return listener


def bind_public(listen: str, unix_listen: Path | None) -> list[socket.socket]:
    """Bind the sockets of a public API: `host:port`, and the edge's Unix socket if there is one.

    Raises:
        ListenFailed: One of the addresses cannot be bound.
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
    """Serve until the task is cancelled; then accept no more connections, and wait a bounded time for requests to end.

    Args:
        app: The ASGI application. Its lifespan is not run, because the `__main__` of a process owns what it opens.
        listeners: Sockets from `bind` or `bind_unix`; closed at the end.
        ready: Returns answers that are ready; called before the application.
        graceful_stop_s: Seconds for which requests may continue after the cancellation.
    """
    # uvicorn calls it with the arguments of `HttpToolsProtocol`.
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
                # uvicorn checks the flag every 0.1 s, and bounds its stop by `graceful_stop_s`.
                await asyncio.shield(serving)
                raise
    finally:
        # A second cancellation ends uvicorn before it closes its sockets.
        for listening in server.servers if server.started else ():
            listening.close()
        for listener in listeners:
            listener.close()

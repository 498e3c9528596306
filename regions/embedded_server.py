"""A uvicorn server that runs inside a process which handles the signals itself.

`uvicorn.Server.serve` installs its own signal handlers. A process of Palaver has one set of handlers for all that it
runs, and sets `should_exit` of each server when it stops.
"""

import contextlib
from collections.abc import Generator

import uvicorn


class EmbeddedServer(uvicorn.Server):
    """uvicorn without signal handlers."""

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None]:
        """Leave the signal handlers of the process in place."""
        yield

"""Configures the log of a process: JSON lines on standard error (`regions/json_lines.py`), with epoch and trace id.

Does not know files, rotation and shipping; the supervisor of the process stores the stream.
"""

import logging
import sys
from collections.abc import Callable
from typing import Final, TextIO

from regions.json_lines import JsonLinesFormatter
from services.telemetry.tracing import current_trace_id

_QUIET_LOGGERS: Final = ("httpx", "httpcore", "asyncio", "alembic", "uvicorn.error")

_epoch_provider: Callable[[], int | None] = lambda: None  # noqa: E731 - a replaceable default, not a function


def set_epoch_provider(provider: Callable[[], int | None]) -> None:
    """Add the provider's epoch to each line; it is called for every line."""
    global _epoch_provider  # noqa: PLW0603 - logging is process-wide by nature
    _epoch_provider = provider


def current_epoch() -> int | None:
    """Return the provider's epoch, or None if it fails, because logging must not fail."""
    try:
        return _epoch_provider()
    except Exception:  # noqa: BLE001 - telemetry never raises
        return None


def _current_fields() -> dict[str, object]:
    return {"epoch": current_epoch(), "trace_id": current_trace_id()}


def configure_logging(
    *,
    process: str,
    region: str | None = None,
    cell: str | None = None,
    level: str = "info",
    stream: TextIO | None = None,
) -> None:
    """Send every logger of the process, uvicorn's included, through one JSON-lines handler.

    Args:
        process: Name of the process, for example `write_api`.
        region: Region the process runs in, or None when it has none.
        cell: Cell the process serves, or None when it has none.
        level: Name of the lowest level written: debug, info, warning, error.
        stream: Where the lines go; standard error by default.

    Raises:
        ValueError: The level is unknown.
    """
    handler = logging.StreamHandler(stream if stream is not None else sys.stderr)
    identity = {"process": process, "region": region, "cell": cell}
    handler.setFormatter(JsonLinesFormatter(identity, _current_fields))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    logging.raiseExceptions = False
    logging.captureWarnings(capture=True)
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access"):
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = True
    for name in _QUIET_LOGGERS:
        # These libraries log each request or connection at info: their warnings are enough.
        logging.getLogger(name).setLevel(max(logging.WARNING, root.level))

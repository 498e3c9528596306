"""JSON lines to one stream: what a process says about itself.

Decides the shape of a line and that logging can never break what it reports on. Refuses to know files,
rotation and shipping: the stream is standard error and whoever started the process keeps it.
"""

import json
import logging
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final, TextIO

import orjson

from services.telemetry.tracing import current_trace_id

_STANDARD_ATTRIBUTES: Final = frozenset(
    {
        *vars(logging.LogRecord("", 0, "", 0, "", None, None)),
        "message",
        "asctime",
        "taskName",
        "color_message",
    }
)
_QUIET_LOGGERS: Final = ("httpx", "httpcore", "asyncio", "alembic", "uvicorn.error")

_epoch_provider: Callable[[], int | None] = lambda: None  # noqa: E731 - a replaceable default, not a function


def set_epoch_provider(provider: Callable[[], int | None]) -> None:
    """Let each line carry the epoch the process believes in; the provider must be cheap."""
    global _epoch_provider  # noqa: PLW0603 - logging is process-wide by nature
    _epoch_provider = provider


def current_epoch() -> int | None:
    """Return what the provider says, or None when it fails: a log line outlives its epoch source."""
    try:
        return _epoch_provider()
    except Exception:  # noqa: BLE001 - telemetry never raises
        return None


class JsonLinesFormatter(logging.Formatter):
    """One record, one line of JSON. Extra fields stand beside the fixed ones and never replace them."""

    def __init__(self, *, process: str, region: str | None, cell: str | None) -> None:
        super().__init__()
        self._identity = {"process": process, "region": region, "cell": cell}

    def format(self, record: logging.LogRecord) -> str:
        """Return the line; a record that cannot be rendered becomes a line that says so."""
        try:
            return _encode(self._fields(record))
        except Exception as error:  # noqa: BLE001 - telemetry never raises
            return json.dumps(
                {
                    "ts": _timestamp(record.created),
                    "level": "error",
                    "msg": f"a log record could not be rendered: {type(error).__name__}",
                    "logger": record.name,
                    "source": f"{record.pathname}:{record.lineno}",
                    **self._identity,
                }
            )

    def _fields(self, record: logging.LogRecord) -> dict[str, object]:
        fields: dict[str, object] = {
            "ts": _timestamp(record.created),
            "level": record.levelname.lower(),
            "msg": record.getMessage(),
            "logger": record.name,
            **self._identity,
            "epoch": current_epoch(),
            "trace_id": current_trace_id(),
        }
        for name, value in record.__dict__.items():
            # A record that names a trace itself (a span, written by another thread) knows better than the context.
            if name not in _STANDARD_ATTRIBUTES and fields.get(name) is None:
                fields[name] = value
        if record.exc_info and record.exc_info[0] is not None:
            fields["exception"] = self.formatException(record.exc_info)
        if record.stack_info:
            fields["stack"] = record.stack_info
        return fields


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
    handler.setFormatter(JsonLinesFormatter(process=process, region=region, cell=cell))
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
        # These libraries narrate each request or connection at info: their warnings are enough.
        logging.getLogger(name).setLevel(max(logging.WARNING, root.level))


def _timestamp(created_s: float) -> str:
    return datetime.fromtimestamp(created_s, UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def _encode(fields: dict[str, object]) -> str:
    try:
        return orjson.dumps(fields, default=repr, option=orjson.OPT_NON_STR_KEYS).decode()
    except (orjson.JSONEncodeError, UnicodeError):
        # Lone surrogates and integers above 64 bits: the slow encoder escapes what the fast one refuses.
        return json.dumps(fields, default=repr, skipkeys=True)

"""Writes the logs of the supervisor and its guardian as JSON lines in the data folder.

The services log with `services.telemetry`, which `infra` may not import.
"""

from __future__ import annotations

import logging
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson

EXTRAS = ("process_name", "exit", "restarts")


class JsonLines(logging.Formatter):
    """Formats a record as one JSON object, with the field names of the services' logs."""

    def __init__(self, process: str) -> None:
        super().__init__()
        self._process = process

    def format(self, record: logging.LogRecord) -> str:
        """Encode a record."""
        fields: dict[str, Any] = {
            "ts": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="microseconds").replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "process": self._process,
            "logger": record.name,
            "msg": record.getMessage(),
        }
        fields |= {name: getattr(record, name) for name in EXTRAS if hasattr(record, name)}
        if record.exc_info:
            fields["exception"] = self.formatException(record.exc_info)
        return orjson.dumps(fields, default=str).decode()


def log_to(path: Path, process: str) -> logging.Handler:
    """Write all log records of this process to a file; the caller closes the handler."""
    handler = logging.FileHandler(path)
    handler.setFormatter(JsonLines(process))
    root = logging.getLogger()
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    for chatty in ("httpx", "httpcore", "uvicorn.error"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    return handler

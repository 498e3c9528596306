"""Writes the logs of the supervisor and the guardian as JSON lines to files in the data folder."""

from __future__ import annotations

import logging
from pathlib import Path

from regions.json_lines import JsonLinesFormatter


def log_to(path: Path, process: str) -> logging.Handler:
    """Write all log records of this process to a file; the caller closes the handler."""
    handler = logging.FileHandler(path)
    handler.setFormatter(JsonLinesFormatter({"process": process}))
    root = logging.getLogger()
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    for chatty in ("httpx", "httpcore", "uvicorn.error"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    return handler

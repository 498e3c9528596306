"""Writes the relay's log to standard error: one JSON object a line, with the field names of the services' logs."""

import logging
import sys

from regions.json_lines import JsonLinesFormatter


def configure_logging(level: str = "info") -> None:
    """Send every logger of the process to standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLinesFormatter({"process": "relay"}))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    # The relay logs start and stop of the control server itself.
    logging.getLogger("uvicorn").setLevel(logging.WARNING)

"""Writes the relay's log to standard error: one JSON object a line, with the field names of the services' logs."""

import json
import logging
import sys
from datetime import UTC, datetime

_STANDARD_ATTRIBUTES = frozenset((*vars(logging.LogRecord("", 0, "", 0, "", None, None)), "message", "taskName"))


class JsonLines(logging.Formatter):
    """Formats a record as one line of JSON; its extra fields are added to the fixed ones."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        moment = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="microseconds")
        fields: dict[str, object] = {
            "ts": moment.replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "msg": record.getMessage(),
            "logger": record.name,
            "process": "relay",
        }
        for name, value in vars(record).items():
            if name not in _STANDARD_ATTRIBUTES:
                fields.setdefault(name, value)
        if record.exc_info and record.exc_info[0] is not None:
            fields["exception"] = self.formatException(record.exc_info)
        return json.dumps(fields, default=str)


def configure_logging(level: str = "info") -> None:
    """Send every logger of the process to standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    # The relay logs start and stop of the control server itself.
    logging.getLogger("uvicorn").setLevel(logging.WARNING)

"""Log lines of the relay: one JSON object each, on standard error, shaped as those of the services."""

import json
import logging
import sys
from datetime import UTC, datetime

_STANDARD_ATTRIBUTES = frozenset((*vars(logging.LogRecord("", 0, "", 0, "", None, None)), "message", "taskName"))


class JsonLines(logging.Formatter):
    """Shapes a record as one line of JSON; extra fields stand beside the fixed ones."""

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
    # Each start and stop of the control server is said by the relay itself.
    logging.getLogger("uvicorn").setLevel(logging.WARNING)

"""Formats log records as JSON lines, the same way in every process of a deployment.

Decides the fields of a line and that logging never raises. Does not know where the lines go, nor what an epoch or a
trace is: the process passes fixed fields and a function that returns the current ones.
"""

import json
import logging
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Final

import orjson

_STANDARD_ATTRIBUTES: Final = frozenset(
    {
        *vars(logging.LogRecord("", 0, "", 0, "", None, None)),
        "message",
        "asctime",
        "taskName",
        "color_message",
    }
)


class JsonLinesFormatter(logging.Formatter):
    """Formats one record as one line of JSON. Extra fields are added; they do not replace the fixed fields."""

    def __init__(
        self, identity: Mapping[str, object], current: Callable[[], Mapping[str, object]] | None = None
    ) -> None:
        """Prepare.

        Args:
            identity: Fields that are the same in each line, such as the name of the process.
            current: Returns fields that are read for each line, such as the epoch. Must not raise.
        """
        super().__init__()
        self._identity = dict(identity)
        self._current = current

    def format(self, record: logging.LogRecord) -> str:
        """Return the line. For a record that cannot be formatted, return a line that reports this."""
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
            **(self._current() if self._current is not None else {}),
        }
        for name, value in record.__dict__.items():
            # An extra field replaces a fixed one that is null: a span is logged by another thread, with its trace id.
            if name not in _STANDARD_ATTRIBUTES and fields.get(name) is None:
                fields[name] = value
        if record.exc_info and record.exc_info[0] is not None:
            fields["exception"] = self.formatException(record.exc_info)
        if record.stack_info:
            fields["stack"] = record.stack_info
        return fields


def _timestamp(created_s: float) -> str:
    return datetime.fromtimestamp(created_s, UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def _encode(fields: dict[str, object]) -> str:
    try:
        return orjson.dumps(fields, default=repr, option=orjson.OPT_NON_STR_KEYS).decode()
    except (orjson.JSONEncodeError, UnicodeError):
        # json escapes what orjson refuses: lone surrogates, and integers above 64 bits.
        return json.dumps(fields, default=repr, skipkeys=True)

"""Tests the JSON log lines."""

import contextvars
import io
import json
import logging
from collections.abc import Generator

import pytest

from services.telemetry.logs import configure_logging, set_epoch_provider
from services.telemetry.tracing import TraceContext, enter_trace


@pytest.fixture
def lines() -> Generator[io.StringIO]:
    root = logging.getLogger()
    kept = root.handlers[:], root.level, logging.raiseExceptions
    stream = io.StringIO()
    configure_logging(process="test", region="us-east", cell="main", stream=stream)
    yield stream
    root.handlers[:], logging.raiseExceptions = kept[0], kept[2]
    root.setLevel(kept[1])
    logging.captureWarnings(capture=False)
    set_epoch_provider(lambda: None)


def only(stream: io.StringIO) -> dict[str, object]:
    (line,) = stream.getvalue().splitlines()
    return json.loads(line)


def test_a_line_carries_its_identity_and_its_extra_fields(lines: io.StringIO) -> None:
    set_epoch_provider(lambda: 7)
    context = contextvars.copy_context()
    context.run(enter_trace, TraceContext("ab" * 16, "cd" * 8, sampled=False))
    context.run(logging.getLogger("palaver.x").info, "hello %s", "you", extra={"rows": 3, "region": "elsewhere"})
    line = only(lines)
    assert str(line.pop("ts")).endswith("Z")
    assert line == {
        "level": "info",
        "msg": "hello you",
        "logger": "palaver.x",
        "process": "test",
        "region": "us-east",
        "cell": "main",
        "epoch": 7,
        "trace_id": "ab" * 16,
        "rows": 3,
    }


def test_an_exception_is_one_field_of_one_line(lines: io.StringIO) -> None:
    try:
        int("broken\nbadly")
    except ValueError:
        logging.getLogger("palaver.x").exception("it failed")
    assert "ValueError: invalid literal" in str(only(lines)["exception"])


class Hostile:
    def __repr__(self) -> str:
        raise RuntimeError("no")


@pytest.mark.parametrize(
    ("message", "arguments", "extra"),
    [
        ("%d", ("not a number",), {}),
        ("x", (), {"value": Hostile()}),
        ("lone \ud800 surrogate", (), {}),
        ("x", (), {"value": 2**70, "keys": {(1, 2): 3}}),
    ],
    ids=["arguments", "repr", "surrogate", "number-and-keys"],
)
def test_a_record_that_cannot_be_rendered_is_still_one_line(
    lines: io.StringIO,
    message: str,
    arguments: tuple[object, ...],
    extra: dict[str, object],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # pytest would keep the record for its report, and cannot send it from one process to another.
    handlers = logging.getLogger().handlers
    own = [one for one in handlers if getattr(one, "stream", None) is lines]
    monkeypatch.setattr(logging.getLogger(), "handlers", own)
    logging.getLogger("palaver.x").info(message, *arguments, extra=extra)
    assert only(lines)["logger"] == "palaver.x"


def test_a_failing_epoch_source_removes_only_the_epoch_from_a_line(lines: io.StringIO) -> None:
    set_epoch_provider(lambda: 1 // 0)
    logging.getLogger("palaver.x").warning("hello")
    assert only(lines)["epoch"] is None


def test_uvicorn_logs_through_the_same_handler(lines: io.StringIO) -> None:
    logging.getLogger("uvicorn.error").error("bad")
    assert only(lines)["logger"] == "uvicorn.error"


def test_an_unknown_level_is_an_error() -> None:
    with pytest.raises(ValueError, match="LOUD"):
        configure_logging(process="test", level="loud")

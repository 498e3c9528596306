"""Starts and stops the processes of the API and the region agent: settings, signals, exit statuses.

Decides how a process reports invalid settings (one line, exit status 2) and how it stops (SIGTERM or SIGINT cancels the
main task once; the task closes what it opened).
"""

import asyncio
import signal
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, Literal, NoReturn, TypeVar

import uvloop
from pydantic import Field, ValidationError, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from services.telemetry.http_server import ListenFailed, parse_listen

EXIT_WRONG_SETTINGS = 2
EXIT_FAILED = 1


class ProcessSettings(BaseSettings):
    """Settings of every process; each variable has the prefix PALAVER_."""

    model_config = SettingsConfigDict(env_prefix="PALAVER_", frozen=True, extra="ignore")

    topology: Path
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    internal_listen: str
    trace_ratio: float = Field(default=0.01, ge=0, le=1)

    @field_validator("internal_listen", "listen", check_fields=False)
    @classmethod
    def _is_address(cls, value: str) -> str:
        parse_listen(value)
        return value


_S = TypeVar("_S", bound=ProcessSettings)


def load_settings(kind: type[_S]) -> _S:
    """Read the settings from the environment; if they are invalid, print the errors in one line and exit (status 2)."""
    try:
        return kind.model_validate({})
    except ValidationError as error:
        wrong = "; ".join(
            f"PALAVER_{'_'.join(map(str, detail['loc'])).upper()}: {detail['msg']}"
            for detail in error.errors(include_url=False, include_input=False)
        )
        give_up(wrong)


def give_up(reason: str, status: int = EXIT_WRONG_SETTINGS) -> NoReturn:
    """Print the reason in one line on standard error, and exit."""
    print(f"palaver: {' '.join(reason.split())}", file=sys.stderr)  # noqa: T201 - logging may not be set up yet
    raise SystemExit(status)


def run_until_signalled(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run `main` on uvloop until it ends or a SIGTERM or SIGINT cancels it; then return (exit status 0).

    Raises:
        SystemExit: With status 2 if the process cannot listen on an address.
    """
    try:
        uvloop.run(_cancelled_by_signals(main))
    except ListenFailed as error:
        give_up(str(error))
    except BaseExceptionGroup as group:
        listen_failed, _ = group.split(ListenFailed)
        if listen_failed is None:
            raise
        give_up(str(listen_failed.exceptions[0]))


async def _cancelled_by_signals(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    loop = asyncio.get_running_loop()
    task = asyncio.current_task()
    assert task is not None
    signalled = False

    def stop() -> None:
        nonlocal signalled
        if not signalled:
            signalled = True
            task.cancel()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
    try:
        await main()
    except asyncio.CancelledError:
        if not signalled:
            raise

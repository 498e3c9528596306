"""The display of a start ends when everything is ready: what restarts later is not a start."""

import asyncio
from types import SimpleNamespace
from typing import cast

import pytest

from infra.cli.progress import ProgressDisplay
from infra.supervisor.supervisor import Supervisor

REGIONS = ("us-east", "eu-west")


def starting() -> SimpleNamespace:
    """A supervisor with one process in each region; none is ready."""
    processes = {
        region: SimpleNamespace(spec=SimpleNamespace(region=region, process="etcd"), is_ready=asyncio.Event())
        for region in REGIONS
    }
    return SimpleNamespace(
        plan=SimpleNamespace(all_regions=REGIONS), processes=processes, all_ready=asyncio.Event()
    )  # fmt: skip


def show(display: ProgressDisplay, supervisor: SimpleNamespace) -> None:
    display.update(cast("Supervisor", supervisor))


@pytest.mark.parametrize("terminal", [True, False])
def test_a_region_that_restarts_after_the_start_adds_no_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *, terminal: bool
) -> None:
    monkeypatch.setenv("FORCE_COLOR" if terminal else "NO_COLOR", "1")
    supervisor = starting()
    with ProgressDisplay() as display:
        show(display, supervisor)
        for process in supervisor.processes.values():
            process.is_ready.set()
        supervisor.all_ready.set()
        show(display, supervisor)
        started = capsys.readouterr().out
        assert "ready after" in started
        supervisor.processes["us-east"].is_ready.clear()
        show(display, supervisor)
        supervisor.processes["us-east"].is_ready.set()
        show(display, supervisor)
    assert capsys.readouterr().out == ""


def test_without_a_terminal_each_region_has_a_line_when_it_is_up(capsys: pytest.CaptureFixture[str]) -> None:
    supervisor = starting()
    with ProgressDisplay() as display:
        supervisor.processes["eu-west"].is_ready.set()
        show(display, supervisor)
        show(display, supervisor)
        assert capsys.readouterr().out == "eu-west: all processes are up\n"
        supervisor.processes["us-east"].is_ready.set()
        supervisor.all_ready.set()
        show(display, supervisor)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "us-east: all processes are up"
    assert lines[1].startswith("everything is ready after")

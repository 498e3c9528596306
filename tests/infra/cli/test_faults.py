"""Tests what `palaver fault` prints, and how its commands parse numbers, with a fake control interface."""

import sys
from pathlib import Path

import pytest

from infra.cli import main
from infra.cli.output import fault_lines
from tests.infra.cli.control import Control, Palaver


@pytest.mark.parametrize(
    ("arguments", "pids", "line"),
    [
        (("fault", "kill", "ap-south", "redis"), [1], "killed ap-south/redis (1 process)\n"),
        (("fault", "pause", "ap-south"), [1, 2], "paused ap-south (2 processes)\n"),
        (("fault", "resume", "ap-south", "redis"), [], "resumed ap-south/redis (0 processes)\n"),
    ],
)
def test_a_fault_prints_how_many_processes_it_reached(
    palaver: Palaver, control: Control, arguments: tuple[str, ...], pids: list[int], line: str
) -> None:
    control.documents[f"/fault/{arguments[1]}"] = {"pids": pids}
    assert palaver(*arguments) == (0, line, "")


def test_a_negative_offset_is_accepted(palaver: Palaver, control: Control) -> None:
    assert palaver("fault", "clock", "eu-west", "-3600")[:2] == (0, "eu-west: wall clock shifted by -3600 s\n")
    assert control.orders == [{"region": "eu-west", "offset_s": -3600.0, "path": "/fault/clock"}]


def test_a_negative_number_may_also_follow_two_dashes(
    control: Control, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["palaver", "fault", "clock", "--data", str(data), "eu-west", "--", "-5"])
    with pytest.raises(SystemExit) as ended:
        main.run()
    assert ended.value.code == 0
    assert control.orders == [{"region": "eu-west", "offset_s": -5.0, "path": "/fault/clock"}]


def test_a_negative_delay_is_refused_as_a_number_and_an_unknown_option_as_an_option(palaver: Palaver) -> None:
    code, _, err = palaver("fault", "delay", "us-east", "eu-west", "-5")
    assert (code, len(err.splitlines())) == (2, 1)
    assert "delay -5 ms" in err
    assert "0 to 10000 ms" in err
    code, _, err = palaver("fault", "delay", "us-east", "eu-west", "-5", "--los", "0.1")
    assert code == 2
    assert "No such option: --los" in err


def test_faults_are_unknown_without_the_relay() -> None:
    assert fault_lines(None) == ["faults: unknown, because the relay does not answer"]
    assert fault_lines([]) == []

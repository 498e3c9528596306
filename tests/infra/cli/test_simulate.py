"""Tests what `palaver simulate` prints, and which arguments it refuses."""

import json
import subprocess
import sys

import pytest

pytestmark = pytest.mark.simulation


def simulate(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "infra.cli", "simulate", *arguments]
    return subprocess.run(command, check=False, capture_output=True, text=True)


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("--seeds", "1..2", "--seed", "1"),
        ("--seeds", "5..1"),
        ("--seeds", "many"),
        ("--seed", "-1"),
        ("--seed", "one"),
        ("--seed", "1", "--minutes", "0"),
    ],
)
def test_wrong_input_ends_with_one_line_and_exit_code_2(arguments: tuple[str, ...]) -> None:
    done = simulate(*arguments)
    assert done.returncode == 2
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("palaver: ")


def test_the_summary_of_seeds_is_printed_as_json() -> None:
    done = simulate("--seeds", "1..2", "--minutes", "1", "--json")
    assert done.returncode == 0
    facts = json.loads(done.stdout)
    assert facts["seeds"] == 2
    assert facts["findings"] == []
    assert facts["simulated_seconds"] == pytest.approx(120)
    assert facts["transitions"]["starting -> bootstrapping"] == 2


def test_one_seed_prints_its_trace() -> None:
    done = simulate("--seed", "1", "--minutes", "1", "--trace")
    assert done.returncode == 0
    assert "epoch 1 bootstrapping eu: first start" in done.stdout
    assert "simulated seconds a second of a core" in done.stdout

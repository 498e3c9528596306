"""Runs the short drills on the shared deployment: kill of a region, a cut network, a switchover.

`make drills` runs all drills once, `make soak` repeats them. `tests/regions/test_switcher.py` tests the pause of a
leader and the loss of two regions with real servers.
"""

import os
import re
from pathlib import Path

import orjson
import pytest

from infra.drills.drill import catalogue
from tests.integration.stack import Stack, palaver

pytestmark = [pytest.mark.integration, pytest.mark.stack, pytest.mark.drill]

DRILLS = catalogue()
SHORT = sorted((name for name, drill in DRILLS.items() if drill.short), key=lambda name: (name != "switchover", name))
"""The switchover is first, because the hold-down after failovers of earlier tests delays the other drills."""
ROUNDS = int(os.environ.get("PALAVER_DRILL_ROUNDS", "1"))
SEED = int(os.environ.get("PALAVER_DRILL_SEED", "1"))


def run(stack: Stack, name: str, report: Path, seed: int) -> None:
    stack.until_healthy(within_s=120)
    done = palaver(
        "drill", "run", name, "--seed", str(seed), "--report", str(report), "--json", data=stack.data, check=False
    )
    (facts,) = orjson.loads(done.stdout)
    if facts["skipped"] is not None:
        pytest.skip(facts["skipped"])
    failed = [line for check in facts["checks"] for line in check["failed"]]
    assert facts["passed"], f"{facts['trouble']}; {failed[:5]}; {facts['story']}"
    assert done.returncode == 0
    assert facts["acknowledged"] > 0
    assert Path(facts["report"]).read_text().startswith("<!doctype html>")


def test_a_drill_on_an_unhealthy_deployment_is_refused(stack: Stack, tmp_path: Path) -> None:
    status = stack.until_healthy(within_s=120)
    victim = next(region["region"] for region in status["regions"] if region["role"] == "follower")
    stack.palaver("fault", "pause", victim, "read_api")
    try:
        done = palaver(
            "drill",
            "run",
            "kill-agent",
            "--steady-within-s",
            "2",
            "--report",
            str(tmp_path),
            data=stack.data,
            check=False,
        )
    finally:
        stack.palaver("fault", "resume", victim, "read_api")
    assert done.returncode == 1
    assert "not healthy" in done.stderr
    assert list(tmp_path.iterdir()) == []
    stack.until_healthy(within_s=60)


@pytest.mark.parametrize(
    ("name", "lacking"),
    [
        ("clock-jump", "wall clocks cannot be shifted: .*(libfaketime|palaver up --clocks)"),
        ("full-disk-leader", "disk faults cannot be injected: the ledgers have no disks of their own"),
    ],
)
def test_a_drill_with_an_unavailable_fault_is_skipped_and_does_not_pass(
    stack: Stack, tmp_path: Path, name: str, lacking: str
) -> None:
    done = palaver("drill", "run", name, "--report", str(tmp_path), data=stack.data, check=False)
    assert done.returncode == 1
    assert re.search(f"{name} skipped: {lacking}", done.stdout), done.stdout
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_drill_is_wrong_input(stack: Stack) -> None:
    done = palaver("drill", "run", "hug-region", data=stack.data, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("palaver: there is no drill 'hug-region'")


@pytest.mark.parametrize("name", SHORT)
def test_a_short_drill_passes(stack: Stack, name: str, tmp_path: Path) -> None:
    run(stack, name, tmp_path, SEED)


@pytest.mark.soak
@pytest.mark.timeout(0)
@pytest.mark.parametrize("number", range(ROUNDS))
@pytest.mark.parametrize("name", sorted(name for name, drill in DRILLS.items() if not drill.needs_clocks))
def test_every_drill_passes(stack: Stack, name: str, number: int, tmp_path: Path) -> None:
    run(stack, name, tmp_path, SEED + number)

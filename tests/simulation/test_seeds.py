"""Runs the failover core under faults with a fixed list of seeds; the soak runs many more."""

import os
from pathlib import Path

import pytest

from infra.simulation import regressions
from infra.simulation.campaign import Summary, replay_command, run_seeds
from infra.simulation.plans import Fault, FaultPlan
from infra.simulation.runner import run_plan, run_seed
from infra.simulation.shrink import Shrinker

pytestmark = pytest.mark.simulation

REGRESSIONS = Path(__file__).parent / "regressions"
SEEDS = 250
"""Enough seeds to give each checker a fact to compare. More seeds run in the soak only: what they find is seldom caused
by the change that is under test."""

MINUTES = 1.25
SOAK_SEEDS = int(os.environ.get("PALAVER_SOAK_SEEDS", "20000"))
SOAK_FIRST = 1_000_000


def assert_no_finding(summary: Summary) -> None:
    """Fail if there is a finding: report how to replay it, and store the shrunk plan as a regression."""
    if not summary.findings:
        return
    first = summary.findings[0]
    failing = run_seed(first.seed, minutes=summary.minutes)
    small = Shrinker(failing).shrink()
    path = regressions.store(small, REGRESSIONS, found_as=first.seed)
    lines = [f"seed {one.seed}: {one.violation}" for one in summary.findings[:10]]
    faults = "\n".join(f"  {fault}" for fault in small.plan.faults)
    pytest.fail("\n".join([*lines, replay_command(first.seed, summary.minutes), f"shrunk, kept in {path}:", faults]))


@pytest.mark.timeout(900)
def test_no_seed_breaks_a_rule() -> None:
    summary = run_seeds(range(SEEDS), minutes=MINUTES)
    assert_no_finding(summary)
    assert summary.seeds == SEEDS
    assert summary.judged_nothing == []
    assert summary.commits > 0.97 * summary.begun
    assert len(summary.recoveries_s) > SEEDS / 4


@pytest.mark.parametrize("path", sorted(REGRESSIONS.glob("*.json")), ids=lambda path: path.stem)
def test_a_plan_that_once_failed_passes(path: Path) -> None:
    report = run_plan(regressions.load(path))
    assert report.violation is None


@pytest.mark.soak
@pytest.mark.timeout(24 * 3600)
def test_no_seed_of_the_soak_breaks_a_rule() -> None:
    summary = run_seeds(range(SOAK_FIRST, SOAK_FIRST + SOAK_SEEDS), minutes=MINUTES)
    assert_no_finding(summary)
    assert summary.judged_nothing == []


def test_a_shrunk_plan_still_resumes_what_it_paused() -> None:
    paused = Fault(at=1.0, kind="order", order="pause")
    resumed = Fault(at=2.0, kind="order", order="resume")
    assert FaultPlan(seed=1, seconds=9.0, faults=()).ends_resumed
    assert FaultPlan(seed=1, seconds=9.0, faults=(resumed, paused)).ends_resumed
    assert not FaultPlan(seed=1, seconds=9.0, faults=(paused,)).ends_resumed

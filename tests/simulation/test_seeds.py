"""The failover core under faults: a fixed number of seeds, which are the same at each run; the soak has the others."""

import os
from pathlib import Path

import pytest

from infra.simulation import regressions
from infra.simulation.campaign import Summary, replay, run_seeds
from infra.simulation.plans import Fault, FaultPlan
from infra.simulation.runner import run_plan, run_seed
from infra.simulation.shrink import Shrinker

pytestmark = pytest.mark.simulation

REGRESSIONS = Path(__file__).parent / "regressions"
SEEDS = 250
"""As many as give each checker something to compare. The soak looks beyond them: what it finds is seldom the fault of a
change that is tested."""

MINUTES = 1.25
SOAK_SEEDS = int(os.environ.get("PALAVER_SOAK_SEEDS", "20000"))
SOAK_FIRST = 1_000_000


def assert_no_finding(summary: Summary) -> None:
    """Fail with what is needed to go on: how to replay, and the smallest plan, kept as a regression."""
    if not summary.findings:
        return
    first = summary.findings[0]
    failing = run_seed(first.seed, minutes=summary.minutes)
    small = Shrinker(failing).shrink()
    path = regressions.store(small, REGRESSIONS, found_as=first.seed)
    lines = [f"seed {one.seed}: {one.violation}" for one in summary.findings[:10]]
    faults = "\n".join(f"  {fault}" for fault in small.plan.faults)
    pytest.fail("\n".join([*lines, replay(first.seed, summary.minutes), f"shrunk, kept in {path}:", faults]))


@pytest.mark.timeout(900)
def test_no_seed_breaks_a_rule() -> None:
    summary = run_seeds(range(SEEDS), minutes=MINUTES)
    assert_no_finding(summary)
    assert summary.seeds == SEEDS
    assert summary.judged_nothing == []
    assert summary.commits > 0.97 * summary.begun
    assert len(summary.recoveries_s) > SEEDS / 4


@pytest.mark.parametrize("path", sorted(REGRESSIONS.glob("*.json")), ids=lambda path: path.stem)
def test_what_once_failed_holds(path: Path) -> None:
    report = run_plan(regressions.load(path))
    assert report.violation is None


@pytest.mark.soak
@pytest.mark.timeout(24 * 3600)
def test_no_seed_of_many_breaks_a_rule() -> None:
    summary = run_seeds(range(SOAK_FIRST, SOAK_FIRST + SOAK_SEEDS), minutes=MINUTES)
    assert_no_finding(summary)
    assert summary.judged_nothing == []


def test_a_shrunk_plan_still_resumes_what_it_paused() -> None:
    paused = Fault(at=1.0, kind="order", order="pause")
    resumed = Fault(at=2.0, kind="order", order="resume")
    assert FaultPlan(seed=1, seconds=9.0, faults=()).is_resumed
    assert FaultPlan(seed=1, seconds=9.0, faults=(resumed, paused)).is_resumed
    assert not FaultPlan(seed=1, seconds=9.0, faults=(paused,)).is_resumed

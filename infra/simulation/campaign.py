"""Runs many seeds on all processor cores, and sums up findings, recovery times, speed and covered transitions."""

from __future__ import annotations

import gc
import multiprocessing
import os
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from infra.simulation.checkers import CHECKERS
from infra.simulation.plans import FaultPlan
from infra.simulation.runner import Report, run_seed
from regions.failover.states import TRANSITIONS

CHUNK = 4
"""Number of seeds that a worker process takes at a time."""

SEEDS_MIN_FOR_QUIET_RUN = 200
"""A campaign of this many seeds must contain a plan without a fault.

One plan in twenty has no fault, so the probability that none of 200 plans is without a fault is 1 in 28,000.
"""

OPTIONAL_CHECKERS = ("one epoch acknowledges",)
"""Checkers that may compare no fact in a campaign.

Once the next epoch serves, a former leader acknowledges nothing, except for a reply that is in flight. A campaign of a
few hundred seeds has no such reply. The facts are reported, but not required.
"""


@dataclass(slots=True, kw_only=True)
class Finding:
    """A seed whose run violated an invariant."""

    seed: int
    violation: str
    plan: FaultPlan


@dataclass(slots=True, kw_only=True)
class Summary:
    """The totals of many runs.

    Attributes:
        seeds: Number of seeds that ran.
        minutes: Virtual minutes of each run.
        findings: The seeds whose runs violated an invariant.
        recoveries_s: Recovery times of all runs; `run_seeds` sorts them.
        transitions: How often each transition of the core was taken, in all runs.
        facts: How many facts each checker compared, in all runs.
        faults: Number of faults of each kind in the plans.
        commits: Writes whose commit a client was informed of.
        begun: Writes that clients began.
        reads: Strong reads that were answered as current.
        seconds: Virtual seconds of all runs.
        cpu_s: Processor seconds of all runs.
        elapsed_s: Wall-clock seconds of the campaign.
    """

    minutes: float
    seeds: int = 0
    findings: list[Finding] = field(default_factory=list[Finding])
    recoveries_s: list[float] = field(default_factory=list[float])
    transitions: Counter[str] = field(default_factory=Counter[str])
    facts: Counter[str] = field(default_factory=Counter[str])
    faults: Counter[str] = field(default_factory=Counter[str])
    commits: int = 0
    begun: int = 0
    reads: int = 0
    seconds: float = 0.0
    cpu_s: float = 0.0
    elapsed_s: float = 0.0

    def add(self, report: Report) -> None:
        """Add the report of a run to the totals."""
        self.seeds += 1
        if report.violation is not None:
            self.findings.append(Finding(seed=report.plan.seed, violation=report.violation, plan=report.plan))
        self.recoveries_s.extend(report.recoveries_s)
        self.transitions.update(report.transitions)
        self.facts.update(report.facts)
        self.faults.update(fault.kind for fault in report.plan.faults)
        self.commits += report.commits
        self.begun += report.begun
        self.reads += report.reads
        self.seconds += report.seconds
        self.cpu_s += report.cpu_s

    @property
    def not_taken(self) -> list[str]:
        """The transitions in the core's table that no run took."""
        table = (f"{before} -> {after}" for before, after in TRANSITIONS)
        return sorted(one for one in table if one not in self.transitions)

    @property
    def judged_nothing(self) -> list[str]:
        """One line for each checker that compared no fact in any run; a campaign with such a line has failed.

        A campaign without a commit, or without a failover after a commit, therefore fails.
        """
        idle = [name for name in CHECKERS if not self.facts[name] and name not in OPTIONAL_CHECKERS]
        if self.seeds < SEEDS_MIN_FOR_QUIET_RUN:
            idle = [name for name in idle if name != "no failover without a fault"]
        lines = [f"{name}: judged on nothing: no {CHECKERS[name]}" for name in idle]
        if not self.commits:
            lines.append("no client knows of a commit")
        return lines

    def to_json(self) -> dict[str, Any]:
        """The summary as JSON."""
        return {
            "seeds": self.seeds,
            "minutes": self.minutes,
            "findings": [
                {"seed": one.seed, "violation": one.violation, "replay": replay_command(one.seed, self.minutes)}
                for one in self.findings
            ],
            "recovery_s": {
                "count": len(self.recoveries_s),
                "median": quantile(self.recoveries_s, 0.5),
                "p99": quantile(self.recoveries_s, 0.99),
                "max": max(self.recoveries_s, default=None),
            },
            "simulated_seconds": round(self.seconds, 1),
            "simulated_seconds_per_cpu_second": round(self.seconds / self.cpu_s, 1) if self.cpu_s else None,
            "elapsed_s": round(self.elapsed_s, 1),
            "writes": {"begun": self.begun, "committed": self.commits},
            "strong_reads": self.reads,
            "facts": {name: self.facts[name] for name in CHECKERS},
            "judged_nothing": self.judged_nothing,
            "faults": dict(sorted(self.faults.items())),
            "transitions": dict(sorted(self.transitions.items())),
            "transitions_not_taken": self.not_taken,
        }


def quantile(numbers: list[float], share: float) -> float | None:
    """The quantile of ``numbers`` at ``share``, from 0 to 1; None if ``numbers`` is empty."""
    ordered = sorted(numbers)
    return round(ordered[min(len(ordered) - 1, int(share * len(ordered)))], 3) if ordered else None


def replay_command(seed: int, minutes: float) -> str:
    """The command that runs a seed again."""
    return f"palaver simulate --seed {seed} --minutes {minutes:g}"


def run_seeds(
    seeds: Iterable[int], *, minutes: float, workers: int | None = None, budget_s: float | None = None
) -> Summary:
    """Run seeds on all processor cores.

    Args:
        seeds: The seeds.
        minutes: Virtual minutes of each run.
        workers: Number of processes; None for one per processor core.
        budget_s: If given, no result is taken after this many real seconds.
    """
    summary = Summary(minutes=minutes)
    begun = time.monotonic()
    for report in _reports(seeds, minutes, workers or os.cpu_count() or 1):
        summary.add(report)
        if budget_s is not None and time.monotonic() - begun > budget_s:
            break
    summary.recoveries_s.sort()
    summary.elapsed_s = time.monotonic() - begun
    return summary


def _collect_seldom() -> None:
    """Collect garbage rarely: a run creates many small objects and few cycles, and collection takes 10% of its time."""
    gc.freeze()
    gc.set_threshold(100_000, 50, 100)


def _reports(seeds: Iterable[int], minutes: float, workers: int) -> Iterator[Report]:
    work = partial(run_seed, minutes=minutes)
    if workers == 1:
        yield from map(work, seeds)
        return
    # Spawn, not fork, because the caller may have threads.
    with multiprocessing.get_context("spawn").Pool(workers, initializer=_collect_seldom) as pool:
        yield from pool.imap(work, seeds, chunksize=CHUNK)

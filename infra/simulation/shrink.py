"""Makes a failing plan small: delta debugging over its faults, then over what is left of each.

Source: Zeller and Hildebrandt, Simplifying and isolating failure-inducing input, 2002. A change of the plan changes
what chance does afterwards, so a smaller plan may fail for another reason; only the same checker counts.
"""

from __future__ import annotations

from dataclasses import replace

from infra.simulation.plans import Fault
from infra.simulation.runner import Report, run_plan

RUNS_MAX = 300
"""A shrink that takes longer than this is good enough as it is."""

SEEDS_TRIED = 3
"""Chance is drawn anew this often for each smaller list before it counts as harmless."""


class Shrinker:
    """Shrinks one plan.

    Attributes:
        runs: How many runs it took.
    """

    def __init__(self, failing: Report, *, runs_max: int = RUNS_MAX) -> None:
        assert failing.checker is not None, "only a failing plan can be shrunk"
        self._checker = failing.checker
        self._best = failing
        self._runs_max = runs_max
        self.runs = 0

    def shrink(self) -> Report:
        """The report of the smallest plan found that fails in the same way."""
        parts = 2
        while parts <= max(2, len(self._best.plan.faults)) and self.runs < self._runs_max:
            parts = 2 if self._without_a_part(parts) else 2 * parts
        self._simplify()
        return self._best

    def _without_a_part(self, parts: int) -> bool:
        faults = self._best.plan.faults
        size = max(1, -(-len(faults) // parts))
        # From the end: what comes later needs what came before, not the other way round.
        starts = range(0, len(faults), size)
        return any(self._fails((*faults[:start], *faults[start + size :])) for start in reversed(starts))

    def _simplify(self) -> None:
        for index, fault in enumerate(self._best.plan.faults):
            for simpler in (
                replace(fault, when=""),
                replace(fault, amount=0.5),
                replace(fault, seconds=fault.seconds / 2),
            ):
                faults = self._best.plan.faults
                if simpler != faults[index]:
                    self._fails((*faults[:index], simpler, *faults[index + 1 :]))

    def _fails(self, faults: tuple[Fault, ...]) -> bool:
        seed = self._best.plan.seed
        if not replace(self._best.plan, faults=faults).is_resumed:
            return False
        for attempt in range(SEEDS_TRIED):
            if self.runs >= self._runs_max:
                return False
            self.runs += 1
            report = run_plan(replace(self._best.plan, faults=faults, seed=seed + attempt))
            if report.checker == self._checker:
                self._best = report
                return True
        return False

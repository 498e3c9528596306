"""Reduces a failing fault plan: delta debugging over its faults, then a simplification of each remaining fault.

Source: Zeller and Hildebrandt, Simplifying and isolating failure-inducing input, 2002. A changed plan draws other
random numbers, so a smaller plan may fail for another reason; only a violation found by the same checker counts.
"""

from __future__ import annotations

from dataclasses import replace

from infra.simulation.plans import Fault
from infra.simulation.runner import Report, run_plan

RUNS_MAX = 300
"""Shrinking stops after this number of runs."""

SEEDS_TRIED = 3
"""A smaller list of faults runs with this number of seeds before it counts as passing."""


class Shrinker:
    """Shrinks one plan.

    Attributes:
        runs: Number of runs so far.
    """

    def __init__(self, failing: Report, *, runs_max: int = RUNS_MAX) -> None:
        assert failing.checker is not None, "only a failing plan can be shrunk"
        self._checker = failing.checker
        self._best = failing
        self._runs_max = runs_max
        self.runs = 0

    def shrink(self) -> Report:
        """Shrink, and return the report of the smallest plan found whose run the same checker fails."""
        parts = 2
        while parts <= max(2, len(self._best.plan.faults)) and self.runs < self._runs_max:
            parts = 2 if self._without_a_part(parts) else 2 * parts
        self._simplify()
        return self._best

    def _without_a_part(self, parts: int) -> bool:
        faults = self._best.plan.faults
        size = max(1, -(-len(faults) // parts))
        # Remove later faults first, because they depend on earlier faults, and not the other way round.
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
        if not replace(self._best.plan, faults=faults).ends_resumed:
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

"""Provides virtual time and randomness for everything in a run.

Calls are made in the order of their times, and calls at the same time in the order in which they were scheduled. A run
is a function of its seed, so no module of the simulation may depend on hashes, addresses or a real clock.
"""

from __future__ import annotations

from collections.abc import Callable
from heapq import heappop, heappush
from random import Random
from typing import Any

Call = Callable[..., None]


class Scheduler:
    """A scheduler: makes calls at virtual times.

    Attributes:
        now: Virtual seconds since the beginning of the run.
        random: The run's only source of randomness.
        trace: The lines of the trace; None if the run is not traced.
        events: Number of calls that were made.
    """

    __slots__ = ("_calls", "_serial", "events", "now", "random", "trace")

    def __init__(self, seed: int, *, traced: bool = False) -> None:
        self.now = 0.0
        self.random = Random(seed)  # noqa: S311 - reproducible randomness, no secret
        self.trace: list[str] | None = [] if traced else None
        self.events = 0
        self._calls: list[tuple[float, int, Call, tuple[Any, ...]]] = []
        self._serial = 0

    def at(self, time: float, call: Call, *arguments: Any) -> None:  # noqa: ANN401 - passed through untouched
        """Schedule a call at a virtual time, which must not be in the past."""
        assert time >= self.now, "a call in the past"
        self._serial += 1
        heappush(self._calls, (time, self._serial, call, arguments))

    def after(self, seconds: float, call: Call, *arguments: Any) -> None:  # noqa: ANN401 - passed through untouched
        """Schedule a call in ``seconds`` from now."""
        self._serial += 1
        heappush(self._calls, (self.now + seconds, self._serial, call, arguments))

    def run_until(self, end: float) -> None:
        """Make all calls up to a virtual time, including calls that are scheduled meanwhile."""
        calls = self._calls
        made = 0
        while calls and calls[0][0] <= end:
            self.now, _, call, arguments = heappop(calls)
            call(*arguments)
            made += 1
        self.events += made
        self.now = end

    def between(self, low: float, high: float) -> float:
        """Draw a number in [low, high)."""
        return low + (high - low) * self.random.random()

    def chance(self, probability: float) -> bool:
        """Draw True with a probability."""
        return self.random.random() < probability

    def trace_line(self, text: str) -> None:
        """Add a line to the trace, if the run is traced."""
        if self.trace is not None:
            self.trace.append(f"{self.now:11.6f} {text}")


class Clock:
    """A node's clocks: a monotonic clock that drifts, and a wall clock that jumps and must decide nothing (rule 16)."""

    __slots__ = ("_base", "_rate", "_scheduler", "_since", "wall_offset")

    def __init__(self, scheduler: Scheduler, *, start: float, rate: float = 1.0) -> None:
        self._scheduler = scheduler
        self._since = scheduler.now
        self._base = start
        self._rate = rate
        self.wall_offset = 0.0

    def now(self) -> float:
        """The node's monotonic clock in seconds; it continues while the node is paused."""
        return self._base + (self._scheduler.now - self._since) * self._rate

    def virtual_time(self, reading: float) -> float:
        """The virtual time at which the clock will show ``reading`` if its rate does not change."""
        return self._since + (reading - self._base) / self._rate

    def set_rate(self, rate: float) -> None:
        """Change the rate of the clock: ``rate`` of its seconds pass in one virtual second."""
        self._base, self._since, self._rate = self.now(), self._scheduler.now, rate

    def wall(self) -> float:
        """The node's wall clock in seconds since 1970."""
        return max(0.0, 1.8e9 + self._scheduler.now + self.wall_offset)

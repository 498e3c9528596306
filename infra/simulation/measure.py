"""Measures the failover core: time to detect silence, rate of false suspicions, time until another region writes.

``python -m infra.simulation.measure`` prints the figures as JSON. Detection is measured twice: on the detectors alone,
over simulated days, and in whole runs, in which only heartbeats with a newer quorum commit count.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from random import Random
from typing import Any

from infra.printing import print_json
from infra.simulation.campaign import quantile
from infra.simulation.plans import Fault, FaultPlan
from infra.simulation.runner import Run
from regions.failover.detector import PhiDetector
from regions.failover.settings import DEFAULTS, Settings

ONE_WAY_S = (0.03, 0.05)
"""One-way delay for a round trip of 80 ms ± 20 ms."""

LOSS = 0.01
STALL_EVERY_S = 60.0
STALL_S_MAX = 0.9
WARM_UP_BEATS = 1200
KILL_AT_S = 9.0
RUN_S = 25.0
_AGREED = re.compile(r"^ *([\d.]+) (?!eu).*is silent, and others agree")


class MeasuredNothing(Exception):
    """The measured event did not occur, so there is no figure."""


class Observer:
    """A region that receives the leader's heartbeats over its own link.

    Attributes:
        heard: Number of heartbeats that arrived.
        detector: The failure detector of the core.
        silences: (suspected at, heard again at) of each suspicion that ended.
    """

    def __init__(self, settings: Settings, random: Random) -> None:
        self._random = random
        self._newest = 0.0
        self.heard = 0
        self.detector = PhiDetector(settings, now=0.0)
        self.silences: list[tuple[float, float]] = []

    def receive(self, sent_at: float) -> None:
        """Receive a heartbeat that was sent at ``sent_at``, or lose it."""
        if self._random.random() < LOSS:
            return
        arrives = max(sent_at + self._random.uniform(*ONE_WAY_S), self._newest)
        self._newest = arrives
        if arrives >= self.detector.trips_at:
            self.silences.append((self.detector.trips_at, arrives))
        self.detector.heard(arrives)
        self.heard += 1


def heartbeat_times(settings: Settings, random: Random, seconds: float, *, stalls: bool) -> Iterator[float]:
    """Yield the times at which a leader sends heartbeats; with ``stalls`` its event loop stalls occasionally."""
    now, next_stall = 0.0, random.expovariate(1 / STALL_EVERY_S)
    while now < seconds:
        yield now
        now += settings.heartbeat_interval_s
        if stalls and now > next_stall:
            now += random.uniform(0, STALL_S_MAX)
            next_stall = now + random.expovariate(1 / STALL_EVERY_S)


def measure_false_suspicions(
    hours: float, *, stalls: bool, settings: Settings = DEFAULTS, seed: int = 1
) -> dict[str, Any]:
    """Count the suspicions of a leader that is alive, by one observer and by both at once.

    Raises:
        MeasuredNothing: An observer received no heartbeat.
    """
    random = Random(seed)  # noqa: S311 - reproducible randomness, no secret
    observers = [Observer(settings, random) for _ in range(2)]
    for sent_at in heartbeat_times(settings, random, hours * 3600, stalls=stalls):
        for observer in observers:
            observer.receive(sent_at)
    if not all(observer.heard for observer in observers):
        raise MeasuredNothing(f"an observer received no heartbeat in {hours:g} hours")
    one, other = (observer.silences for observer in observers)
    agreed = sum(1 for begin, end in one if any(begin < stop and start < end for start, stop in other))
    return {"hours": hours, "stalls": stalls, "by_one": len(one) + len(other), "agreed": agreed}


def measure_detection(deaths: int, *, settings: Settings = DEFAULTS, seed: int = 1) -> dict[str, Any]:
    """Measure the time from a leader's death until one observer knows that both suspect the leader.

    Raises:
        MeasuredNothing: No leader died.
    """
    random = Random(seed)  # noqa: S311 - reproducible randomness, no secret
    times: list[float] = []
    for _ in range(deaths):
        observers = [Observer(settings, random) for _ in range(2)]
        dies_at = WARM_UP_BEATS * settings.heartbeat_interval_s * random.uniform(0.3, 1)
        for sent_at in heartbeat_times(settings, random, dies_at, stalls=False):
            for observer in observers:
                observer.receive(sent_at)
        one, other = (observer.detector.trips_at for observer in observers)
        told = random.uniform(*ONE_WAY_S), random.uniform(*ONE_WAY_S)
        times.append(min(max(one, other + told[0]), max(other, one + told[1])) - dies_at)
    if not times:
        raise MeasuredNothing("no leader died")
    return {"deaths": deaths, "p50_s": quantile(times, 0.5), "p99_s": quantile(times, 0.99), "max_s": max(times)}


def measure_takeover(runs: int, *, first_seed: int = 1) -> dict[str, Any]:
    """Kill the leader's region in whole runs; measure the time to the agreed suspicion and to the new leader's writes.

    Raises:
        MeasuredNothing: A run violated an invariant, or had no agreed suspicion or no new leader.
    """
    agreed: list[float] = []
    opened: list[float] = []
    for seed in range(first_seed, first_seed + runs):
        kill_at = KILL_AT_S + Random(seed).random()  # noqa: S311 - reproducible randomness, no secret
        kill = Fault(at=kill_at, kind="crash-region", target="leader", seconds=2 * RUN_S)
        run = Run(FaultPlan(seed=seed, seconds=RUN_S, loss=LOSS, faults=(kill,)), traced=True)
        report = run.run()
        # The region stays dead until the end of the run, so liveness is not required.
        if report.checker not in (None, "liveness"):
            raise MeasuredNothing(f"seed {seed}: {report.violation}")
        assert report.trace is not None, "the run was not traced"
        lines = (_AGREED.match(line) for line in report.trace)
        told = [float(found[1]) - kill_at for found in lines if found is not None]
        agreed.extend([after for after in told if after > 0][:1])
        opened.extend([time - kill_at for time, _, epoch in run.checkers.serving_starts if epoch > 1][:1])
    if not opened or not len(agreed) == len(opened) == runs:
        raise MeasuredNothing(f"in {runs} runs the leader was suspected {len(agreed)} and replaced {len(opened)} times")
    return {
        "runs": runs,
        "agreed_p50_s": quantile(agreed, 0.5),
        "agreed_p99_s": quantile(agreed, 0.99),
        "writes_p50_s": quantile(opened, 0.5),
        "writes_p99_s": quantile(opened, 0.99),
        "writes_max_s": max(opened),
        "taken_over": len(opened),
    }


def main() -> None:
    """Print all measurements as JSON."""
    parser = argparse.ArgumentParser(description="Measure the failover core.")
    parser.add_argument("--hours", type=float, default=48)
    parser.add_argument("--deaths", type=int, default=500)
    parser.add_argument("--runs", type=int, default=500)
    chosen = parser.parse_args()
    print_json(
        {
            "false_suspicions": [
                measure_false_suspicions(chosen.hours, stalls=False),
                measure_false_suspicions(chosen.hours, stalls=True),
            ],
            "detection": measure_detection(chosen.deaths),
            "takeover": measure_takeover(chosen.runs),
        }
    )


if __name__ == "__main__":
    main()

"""Phi accrual: how suspicious is the silence of a region?

Each heartbeat's interval goes into a window; phi is the negative logarithm of the chance that a heartbeat
comes even later than now, were intervals normally distributed. Doubling the silence does not double phi,
it makes it jump: so one threshold suits calm and shaky networks. Time is passed in, monotonic, in seconds.

Source: Hayashibara et al., The phi accrual failure detector, 2004; failover.md for the parameters.
"""

import math
from collections import deque
from functools import cache

from regions.failover.settings import Settings

_SURVIVAL_MIN = 1e-300
"""``erfc`` reaches zero at about 38 deviations; its logarithm has to stay finite."""

_PRIOR_INTERVALS = 20
"""Intervals that a new history begins with, at the pace that is configured: one late packet is no pattern."""


def phi_of(deviations: float) -> float:
    """Phi of a silence that is this many standard deviations longer than expected."""
    return -math.log10(max(0.5 * math.erfc(deviations / math.sqrt(2)), _SURVIVAL_MIN))


@cache
def deviations_at(phi: float) -> float:
    """The inverse of ``phi_of``, by bisection; 8 gives 5.61."""
    low, high = -10.0, 40.0
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if phi_of(middle) < phi else (low, middle)
    return high


class PhiDetector:
    """The suspicion of one observer about one region."""

    __slots__ = (
        "_deviations",
        "_interval_s",
        "_intervals",
        "_pause_s",
        "_pauses_s",
        "_squares",
        "_stddev_min_s",
        "_sum",
        "last_s",
        "trips_at",
    )

    def __init__(self, settings: Settings, *, now: float) -> None:
        """Begin a history; the region counts as heard ``now``."""
        self._intervals: deque[float] = deque(maxlen=settings.phi_window)
        self._interval_s = settings.heartbeat_interval_s
        self._pauses_s = settings.phi_pause_s, settings.refused_pause_s
        self._pause_s = settings.phi_pause_s
        self._stddev_min_s = settings.phi_stddev_min_s
        self._deviations = deviations_at(settings.phi_threshold)
        self.last_s = now
        self.forget()

    def forget(self) -> None:
        """Begin the history anew, for a peer that began anew; what it still owes stays as old as it is."""
        self._intervals.clear()
        self._sum = self._squares = 0.0
        for _ in range(_PRIOR_INTERVALS):
            self._remember(self._interval_s)
        self.trips_at = self.last_s + self._patience_s()

    def heard(self, now: float) -> None:
        """A heartbeat that counts arrived."""
        # A silence that was suspicious is an outage, not a pace: remembered, it would blind the detector.
        if now < self.trips_at:
            self._remember(now - self.last_s)
        self.restart(now)

    def restart(self, now: float) -> None:
        """Count from ``now`` on, without taking the silence until then for an interval."""
        self.last_s = now
        self._pause_s = self._pauses_s[0]
        self.trips_at = now + self._patience_s()

    def hasten(self) -> None:
        """Forgive less of the silence that lasts: there is another sign that the region is dead."""
        self._pause_s = self._pauses_s[1]
        self.trips_at = self.last_s + self._patience_s()

    def phi(self, now: float) -> float:
        """The suspicion at ``now``; 0.3 when a heartbeat is just due, the threshold at ``trips_at``."""
        expected = self._mean_s() + self._pause_s
        return phi_of((now - self.last_s - expected) / self._stddev_s())

    def _remember(self, interval_s: float) -> None:
        full = len(self._intervals) == self._intervals.maxlen
        oldest = self._intervals[0] if full else 0.0
        self._intervals.append(interval_s)
        self._sum += interval_s - oldest
        self._squares += interval_s * interval_s - oldest * oldest

    def _mean_s(self) -> float:
        return self._sum / len(self._intervals)

    def _stddev_s(self) -> float:
        variance = self._squares / len(self._intervals) - self._mean_s() ** 2
        return max(math.sqrt(max(variance, 0.0)), self._stddev_min_s)

    def _patience_s(self) -> float:
        return self._mean_s() + self._pause_s + self._deviations * self._stddev_s()

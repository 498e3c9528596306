"""The phi accrual failure detector: how suspicious is the silence of a region?

A window keeps the intervals between heartbeats. Phi is the negative decimal logarithm of the probability that a
heartbeat comes even later than now, if intervals are normally distributed. Phi grows much faster than the silence, so
one threshold suits both stable and unstable networks. Time is passed in, monotonic, in seconds.

Source: Hayashibara et al., The phi accrual failure detector, 2004; failover.md for the parameters.
"""

import math
from collections import deque
from functools import cache

from regions.failover.settings import Settings

_SURVIVAL_MIN = 1e-300
"""``erfc`` reaches zero at about 38 deviations; the logarithm must stay finite."""

_PRIOR_INTERVALS = 20
"""Intervals of the configured length with which a history begins, so that one late packet changes little."""


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
    """How much one observer suspects one region."""

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
        """Begin a history; the region counts as heard at ``now``."""
        self._intervals: deque[float] = deque(maxlen=settings.phi_window)
        self._interval_s = settings.heartbeat_interval_s
        self._pauses_s = settings.phi_pause_s, settings.refused_pause_s
        self._pause_s = settings.phi_pause_s
        self._stddev_min_s = settings.phi_stddev_min_s
        self._deviations = deviations_at(settings.phi_threshold)
        self.last_s = now
        self.forget()

    def forget(self) -> None:
        """Discard the history, for a peer that has restarted; the time of its last heartbeat is kept."""
        self._intervals.clear()
        self._sum = self._squares = 0.0
        for _ in range(_PRIOR_INTERVALS):
            self._remember(self._interval_s)
        self.trips_at = self.last_s + self._patience_s()

    def heard(self, now: float) -> None:
        """Note a heartbeat that counts."""
        # A silence that was suspected is an outage. In the window it would make the detector slow.
        if now < self.trips_at:
            self._remember(now - self.last_s)
        self.restart(now)

    def restart(self, now: float) -> None:
        """Begin a new silence at ``now``; the one until then does not enter the window."""
        self.last_s = now
        self._pause_s = self._pauses_s[0]
        self.trips_at = now + self._patience_s()

    def hasten(self) -> None:
        """Use the shorter acceptable pause for this silence: there is another sign that the region has failed."""
        self._pause_s = self._pauses_s[1]
        self.trips_at = self.last_s + self._patience_s()

    def phi(self, now: float) -> float:
        """Return phi at ``now``: 0.3 when a heartbeat is just due, the threshold at ``trips_at``."""
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

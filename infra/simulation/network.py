"""Models the network between regions: delay, jitter, loss, duplication, reordering, and one-way or two-way partitions.

Decides whether and when a datagram arrives, and whether a connection works. Does not know what is sent.
"""

from __future__ import annotations

from infra.simulation.scheduler import Call, Scheduler
from regions.identity import RegionName

LOCAL_DELAY_S = 0.0002
"""Delay inside a region."""

HEAL_S_MAX = 1.0
"""TCP retransmits what a partition has held up within this time after the partition ends."""

LATE_S_MAX = 1.0
"""Longest extra delay of a late or duplicated datagram."""


class Network:
    """All links; each has one direction.

    Attributes:
        one_way_s: Mean one-way delay in seconds.
        jitter_s: Largest difference from the mean delay, in seconds.
        loss: Share of datagrams that are lost on every link.
        doubled: Share of datagrams that arrive twice.
        late: Share of datagrams that arrive up to ``LATE_S_MAX`` late.
        slow: Extra delay in seconds, by region, in both directions.
        lossy: Extra share of lost datagrams, by region, in both directions.
    """

    __slots__ = (
        "_cuts",
        "_listeners",
        "_scheduler",
        "doubled",
        "jitter_s",
        "late",
        "loss",
        "lossy",
        "one_way_s",
        "slow",
    )

    def __init__(self, scheduler: Scheduler, *, rtt_s: float, jitter_s: float, loss: float) -> None:
        self._scheduler = scheduler
        self.one_way_s = rtt_s / 2
        self.jitter_s = jitter_s / 2
        self.loss = loss
        self.doubled = 0.0
        self.late = 0.0
        self.slow: dict[RegionName, float] = {}
        self.lossy: dict[RegionName, float] = {}
        self._cuts: dict[tuple[RegionName, RegionName], int] = {}
        self._listeners: list[Call] = []

    def on_change(self, call: Call) -> None:
        """Make a call each time the cuts change. etcd uses it for elections; connections recover by other means."""
        self._listeners.append(call)

    def cut(self, source: RegionName, target: RegionName) -> None:
        """Cut one direction; repeated cuts are counted, and each needs its own `heal`."""
        self._cuts[source, target] = self._cuts.get((source, target), 0) + 1
        self._notify()

    def heal(self, source: RegionName, target: RegionName) -> None:
        """Undo one cut of one direction."""
        left = self._cuts[source, target] - 1
        if left:
            self._cuts[source, target] = left
        else:
            del self._cuts[source, target]
        self._notify()

    def _notify(self) -> None:
        for call in self._listeners:
            call()

    def is_open(self, source: RegionName, target: RegionName) -> bool:
        """Whether the link from one region to another is not cut."""
        return (source, target) not in self._cuts

    def is_connected(self, one: RegionName, other: RegionName) -> bool:
        """Whether a connection between two regions works; it needs both directions."""
        return (one, other) not in self._cuts and (other, one) not in self._cuts

    def delay(self, source: RegionName, target: RegionName) -> float:
        """Draw the delay of one message, in seconds."""
        if source == target:
            return LOCAL_DELAY_S
        seconds = self.one_way_s + self.jitter_s * (2 * self._scheduler.random.random() - 1)
        if self.slow:
            seconds += self.slow.get(source, 0.0) + self.slow.get(target, 0.0)
        return seconds

    def send(self, source: RegionName, target: RegionName, call: Call, argument: object) -> None:
        """Send a datagram: ``call`` is made when it arrives, which may be once, twice or never."""
        scheduler = self._scheduler
        if (source, target) in self._cuts or scheduler.random.random() < self._loss(source, target):
            return
        seconds = self.delay(source, target)
        if self.late and scheduler.chance(self.late):
            seconds += scheduler.between(0, LATE_S_MAX)
        scheduler.after(seconds, call, argument)
        if self.doubled and scheduler.chance(self.doubled):
            scheduler.after(seconds + scheduler.between(0, LATE_S_MAX), call, argument)

    def _loss(self, source: RegionName, target: RegionName) -> float:
        if self.lossy:
            return self.loss + self.lossy.get(source, 0.0) + self.lossy.get(target, 0.0)
        return self.loss

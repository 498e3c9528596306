"""The network between regions: delay with jitter, loss, doubling, reordering, and cuts of one direction or both.

Decides what becomes of a datagram, and whether a connection gets through. Refuses to know what is sent.
"""

from __future__ import annotations

from infra.simulation.world import Call, World
from regions.identity import RegionName

LOCAL_DELAY_S = 0.0002
"""Inside a region."""

HEAL_S_MAX = 1.0
"""TCP sends again what a cut has held up within this time after the cut ends."""

LATE_S_MAX = 1.0
"""A straggler among datagrams is this late at most."""


class Network:
    """All links; a link has a direction.

    Attributes:
        one_way_s: Mean delay of one direction.
        jitter_s: A delay differs from the mean by this much at most.
        loss: Share of datagrams lost everywhere.
        doubled: Share of datagrams that arrive twice.
        late: Share of datagrams that arrive up to ``LATE_S_MAX`` late.
        slow: Extra delay by region, in both directions.
        lossy: Extra loss by region, in both directions.
    """

    __slots__ = ("_cuts", "_healed", "_world", "doubled", "jitter_s", "late", "loss", "lossy", "one_way_s", "slow")

    def __init__(self, world: World, *, rtt_s: float, jitter_s: float, loss: float) -> None:
        self._world = world
        self.one_way_s = rtt_s / 2
        self.jitter_s = jitter_s / 2
        self.loss = loss
        self.doubled = 0.0
        self.late = 0.0
        self.slow: dict[RegionName, float] = {}
        self.lossy: dict[RegionName, float] = {}
        self._cuts: dict[tuple[RegionName, RegionName], int] = {}
        self._healed: list[Call] = []

    def when_healed(self, call: Call) -> None:
        """Make a call each time that cuts change: at once, to those who elect; connections recover by themselves."""
        self._healed.append(call)

    def cut(self, source: RegionName, target: RegionName) -> None:
        """Cut one direction; cuts add up."""
        self._cuts[source, target] = self._cuts.get((source, target), 0) + 1
        self._tell()

    def heal(self, source: RegionName, target: RegionName) -> None:
        """Undo one cut of one direction."""
        left = self._cuts[source, target] - 1
        if left:
            self._cuts[source, target] = left
        else:
            del self._cuts[source, target]
        self._tell()

    def _tell(self) -> None:
        for call in self._healed:
            call()

    def is_open(self, source: RegionName, target: RegionName) -> bool:
        """Whether anything gets from one region to another."""
        return (source, target) not in self._cuts

    def talks(self, one: RegionName, other: RegionName) -> bool:
        """Whether a connection between two regions works, which takes both directions."""
        return (one, other) not in self._cuts and (other, one) not in self._cuts

    def delay(self, source: RegionName, target: RegionName) -> float:
        """How long something takes that arrives."""
        if source == target:
            return LOCAL_DELAY_S
        seconds = self.one_way_s + self.jitter_s * (2 * self._world.random.random() - 1)
        if self.slow:
            seconds += self.slow.get(source, 0.0) + self.slow.get(target, 0.0)
        return seconds

    def send(self, source: RegionName, target: RegionName, call: Call, argument: object) -> None:
        """Send a datagram: ``call`` is made when it arrives, perhaps never, perhaps twice."""
        world = self._world
        if (source, target) in self._cuts or world.random.random() < self._loss(source, target):
            return
        seconds = self.delay(source, target)
        if self.late and world.chance(self.late):
            seconds += world.between(0, LATE_S_MAX)
        world.after(seconds, call, argument)
        if self.doubled and world.chance(self.doubled):
            world.after(seconds + world.between(0, LATE_S_MAX), call, argument)

    def _loss(self, source: RegionName, target: RegionName) -> float:
        if self.lossy:
            return self.loss + self.lossy.get(source, 0.0) + self.lossy.get(target, 0.0)
        return self.loss

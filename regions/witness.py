"""Speaks for a leader whose agent is away while its ledger goes on, so that the loss of an agent moves nothing.

A leader is alive when new commits reach its quorum (ADR 0013). Its agent tells so; while it does not, a follower asks
the leader's ledger itself for the same proof, over the network between the regions, and the core hears what the agent
last said with the newer commit. Nobody vouches for a ledger that is dead, hung, cut off or no primary: then there is no
newer commit. Decides nothing; suspicion is never what safety rests on.

Heartbeats are counted anew here, because the core takes only what is newer than the last, also from an agent that goes
on where it was paused; what was recorded and is sent again is dropped here by its own count.
"""

from dataclasses import replace
from typing import Final

from regions.failover.heartbeats import Heartbeat
from regions.identity import CellId, RegionName

ASK_S: Final = 0.1
"""As often as an agent's own heartbeats."""

SILENCE_S: Final = 0.25
"""Two heartbeats and a half: before that nothing is missing."""

ANSWER_S_MAX: Final = 1.0
"""A ledger that does not answer by then is suspected for it."""


class Witness:
    """What was heard of each region, and what is said for it.

    Attributes:
        alive_at: When a newer commit was last heard of a region, seconds of the clock that the caller uses.
    """

    def __init__(self, cell: CellId) -> None:
        self.alive_at: dict[RegionName, float] = {}
        self._cell = cell
        self._heard: dict[RegionName, Heartbeat] = {}
        self._inserted: dict[RegionName, int] = {}

    def take(self, heartbeat: Heartbeat, *, now: float) -> Heartbeat | None:
        """Return a heartbeat as the core is to count it; None for one that is not newer than the last."""
        sender, last = heartbeat.sender, self._heard.get(heartbeat.sender)
        if last is not None and _count(heartbeat) <= _count(last):
            return None
        if last is None or heartbeat.incarnation != last.incarnation:
            self._inserted[sender] = 0
        if last is None or self._commit(heartbeat) > self._commit(last):
            self.alive_at[sender] = now
        self._heard[sender] = heartbeat
        return replace(heartbeat, sequence=heartbeat.sequence + self._inserted[sender])

    def speak_for(self, region: RegionName, commit: int, *, now: float) -> Heartbeat | None:
        """Return what a region would say whose ledger has this commit on a quorum; None when that is no news."""
        last = self._heard.get(region)
        if last is None or commit <= self._commit(last):
            return None
        self.alive_at[region] = now
        self._inserted[region] += 1
        cells = tuple(
            (cell, replace(gossip, commit=commit) if cell == self._cell else gossip) for cell, gossip in last.cells
        )
        self._heard[region] = replace(last, cells=cells)
        return replace(last, cells=cells, sequence=last.sequence + self._inserted[region])

    def _commit(self, heartbeat: Heartbeat) -> int:
        return dict(heartbeat.cells)[self._cell].commit if self._cell in dict(heartbeat.cells) else 0


def _count(heartbeat: Heartbeat) -> tuple[int, int]:
    return heartbeat.incarnation, heartbeat.sequence

"""Merges heartbeats of other agents with commits that this agent read from a silent leader's ledger.

A leader is alive if new commits reach its quorum (ADR 0013). Its agent reports this in heartbeats. While that agent is
silent, a follower queries the leader's ledger for the same proof, over the network between the regions. The core then
receives the agent's last heartbeat with the newer commit, so that the loss of an agent causes no failover (ADR 0021). A
ledger that is dead, hung, partitioned or no primary has no newer commit. Decides nothing; safety never depends on
suspicion.

The merger renumbers heartbeats, because the core accepts only heartbeats that are newer than the last one, also from an
agent that resumes after a pause. It drops repeated heartbeats by their original numbers.
"""

from dataclasses import replace
from typing import Final

from regions.failover.heartbeats import Heartbeat
from regions.identity import CellId, RegionName

ASK_S: Final = 0.1
"""Interval of the queries, the same as of an agent's heartbeats."""

SILENCE_S: Final = 0.25
"""Silence after which the ledger is queried: two and a half heartbeat intervals."""

ANSWER_S_MAX: Final = 1.0
"""Time limit of a query; without an answer the suspicion of the leader grows."""


class HeartbeatMerger:
    """Last heartbeat of each region, and the numbering of the heartbeats that the core receives.

    Attributes:
        alive_at: Time of the last newer commit of a region, in seconds of the caller's clock.
    """

    def __init__(self, cell: CellId) -> None:
        self.alive_at: dict[RegionName, float] = {}
        self._cell = cell
        self._heard: dict[RegionName, Heartbeat] = {}
        self._inserted: dict[RegionName, int] = {}

    def take(self, heartbeat: Heartbeat, *, now: float) -> Heartbeat | None:
        """Return a received heartbeat, renumbered for the core; None if it is not newer than the last one."""
        sender, last = heartbeat.sender, self._heard.get(heartbeat.sender)
        if last is not None and _count(heartbeat) <= _count(last):
            return None
        if last is None or heartbeat.incarnation != last.incarnation:
            self._inserted[sender] = 0
        if last is None or self._commit(heartbeat) > self._commit(last):
            self.alive_at[sender] = now
        self._heard[sender] = heartbeat
        return replace(heartbeat, sequence=heartbeat.sequence + self._inserted[sender])

    def heartbeat_with_commit(self, region: RegionName, commit: int, *, now: float) -> Heartbeat | None:
        """Return the last heartbeat of a region with a newer quorum commit; None if that commit is not newer."""
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

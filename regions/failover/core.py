"""The failover core of one agent: its cells, the agents that it hears, and its heartbeats.

It turns heartbeats into suspicions for the machine of each cell, and the machines' gossip into heartbeats. Like
everything in this package it has no clock and no I/O; time is passed in.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import assert_never

from regions.failover import rules
from regions.failover.detector import PhiDetector
from regions.failover.effects import Effect, GossipChanged, WatchLeader
from regions.failover.events import AgentPaused, Event, Gossip, GossipHeard, Started, SuspicionChanged, Tick
from regions.failover.heartbeats import (
    AgentEffect,
    AgentEvent,
    CellEffect,
    CellEvent,
    Heartbeat,
    HeartbeatReceived,
    LedgerRefused,
    ReadCommit,
    SendHeartbeat,
)
from regions.failover.machine import Machine
from regions.failover.settings import DEFAULTS, CellRegions, Settings
from regions.identity import CellId, RegionName

TICKETS_AN_INCARNATION = 1 << 32
"""The tickets of an incarnation are above those of all earlier ones."""


class CellMonitor:
    """The detectors of an agent for the other regions of one cell."""

    __slots__ = ("acting", "commit", "detectors", "heard_at", "needs_commits", "suspected")

    def __init__(self, regions: tuple[RegionName, ...], settings: Settings, now: float) -> None:
        self.detectors = {region: PhiDetector(settings, now=now) for region in regions}
        self.heard_at: dict[RegionName, float] = {}
        self.suspected: set[RegionName] = set()
        self.acting: RegionName | None = None
        self.needs_commits = False
        self.commit = 0

    def heard(self, sender: RegionName, gossip: Gossip, now: float) -> None:
        """Take a heartbeat; it counts as a sign of life by rule ``is_sign_of_life``."""
        self.heard_at[sender] = now
        acts = sender == self.acting and self.needs_commits
        if rules.is_sign_of_life(commit=gossip.commit, newest=self.commit, needs_commits=acts):
            self.detectors[sender].heard(now)
        if sender == self.acting:
            self.commit = max(self.commit, gossip.commit)

    def refused(self, region: RegionName, heard_since: float) -> None:
        """Suspect the leader sooner, if others are heard: its host refuses connections to its ledger."""
        heard = any(at >= heard_since for name, at in self.heard_at.items() if name != region)
        if heard and region == self.acting and self.needs_commits:
            self.detectors[region].hasten()

    def verdicts(self, now: float) -> list[SuspicionChanged]:
        """Return the regions whose suspicion has changed."""
        changed: list[SuspicionChanged] = []
        for region, detector in self.detectors.items():
            suspected = now >= detector.trips_at
            if suspected != (region in self.suspected):
                (self.suspected.add if suspected else self.suspected.discard)(region)
                changed.append(SuspicionChanged(region=region, suspected=suspected))
        return changed

    def excuse(self, now: float) -> None:
        """Ignore the silence until ``now``: the observer itself did not run."""
        for region, detector in self.detectors.items():
            if region not in self.suspected:
                detector.restart(now)

    def next_trip(self) -> float:
        """Return when the next region will be suspected if nothing is heard."""
        silent = self.suspected
        return min((one.trips_at for region, one in self.detectors.items() if region not in silent), default=_NEVER)


_NEVER = float("inf")

_HEARD_BEATS = 3
"""A refusal counts if another agent was heard within so many heartbeats: otherwise the own network may have failed."""


class FailoverCore:
    """The failover core of one region's agent, with all its cells."""

    def __init__(
        self,
        *,
        region: RegionName,
        incarnation: int,
        cells: Mapping[CellId, CellRegions],
        settings: Settings = DEFAULTS,
    ) -> None:
        """Make a core that waits for ``Started`` of each cell.

        Args:
            region: Its own region.
            incarnation: Higher than every earlier one of this region's agent; the first is 1.
            cells: The cells that it takes part in.
            settings: The numbers.
        """
        first = incarnation * TICKETS_AN_INCARNATION
        self.machines = {
            cell: Machine(region=region, cell=regions, settings=settings, first_ticket=first)
            for cell, regions in cells.items()
        }
        self._region = region
        self._incarnation = incarnation
        self._settings = settings
        self._peers = {
            cell: tuple(one for one in dict.fromkeys((*regions.regions, *regions.voters)) if one != region)
            for cell, regions in cells.items()
        }
        self._other_agents = tuple(dict.fromkeys(peer for peers in self._peers.values() for peer in peers))
        self._watched: dict[CellId, CellMonitor] = {}
        self._newest: dict[RegionName, tuple[int, int]] = {}
        self._sequence = 0
        self._next_beat: float | None = None
        self._due: float | None = None
        self._sends_now = False

    def handle(self, event: AgentEvent, *, now: float) -> list[AgentEffect]:
        """Take an event and return what is to be done. ``Started`` of a cell is its first event."""
        effects: list[AgentEffect] = []
        self._notice_lag(now, effects)
        match event:
            case HeartbeatReceived(heartbeat=heartbeat):
                self._receive(heartbeat, now, effects)
            case LedgerRefused(cell=cell, region=region):
                self._watched[cell].refused(region, now - _HEARD_BEATS * self._settings.heartbeat_interval_s)
            case CellEvent(cell=cell, event=inner):
                if isinstance(inner, Started):
                    self._watched[cell] = CellMonitor(self._peers[cell], self._settings, now)
                    self._next_beat = self._next_beat if self._next_beat is not None else now
                self._tell(cell, inner, now, effects)
            case _:
                assert_never(event)
        self._judge(now, effects)
        self._beat(now, effects)
        self._due = self._deadline()
        return effects

    def next_deadline(self) -> float | None:
        """Return when ``Tick`` of any cell is due if no event comes before."""
        return self._due

    def _deadline(self) -> float | None:
        if self._next_beat is None:
            return None
        due = self._next_beat
        for watched in self._watched.values():
            due = min(due, watched.next_trip())
        for machine in self.machines.values():
            own = machine.next_deadline()
            due = due if own is None else min(due, own)
        return due

    def phi(self, cell: CellId, region: RegionName, *, now: float) -> float:
        """Return phi of another region, for status and metrics."""
        return self._watched[cell].detectors[region].phi(now)

    def _notice_lag(self, now: float, effects: list[AgentEffect]) -> None:
        """An agent that did not run must not take its own pause for the silence of others."""
        if self._due is None or now <= self._due + self._settings.lag_s_max:
            return
        for cell, watched in self._watched.items():
            watched.excuse(now)
            self._tell(cell, AgentPaused(), now, effects)

    def _receive(self, heartbeat: Heartbeat, now: float, effects: list[AgentEffect]) -> None:
        sender = heartbeat.sender
        stamp = (heartbeat.incarnation, heartbeat.sequence)
        known = self._newest.get(sender)
        if known is not None and stamp <= known:
            return
        self._newest[sender] = stamp
        for cell, gossip in heartbeat.cells:
            watched = self._watched.get(cell)
            if watched is None or sender not in watched.detectors:
                continue
            if known is not None and heartbeat.incarnation != known[0]:
                watched.detectors[sender].forget()
            watched.heard(sender, gossip, now)
            before = self.machines[cell].facts.peers.gossip.get(sender)
            if before is None or replace(before, commit=gossip.commit) != gossip:
                self._tell(cell, GossipHeard(sender=sender, gossip=gossip), now, effects)

    def _judge(self, now: float, effects: list[AgentEffect]) -> None:
        for cell, watched in self._watched.items():
            for verdict in watched.verdicts(now):
                self._tell(cell, verdict, now, effects)
            own = self.machines[cell].next_deadline()
            if own is not None and now >= own:
                self._tell(cell, Tick(), now, effects)

    def _tell(self, cell: CellId, event: Event, now: float, effects: list[AgentEffect]) -> None:
        for effect in self.machines[cell].handle(event, now=now):
            self._pass_on(cell, effect, now, effects)

    def _pass_on(self, cell: CellId, effect: Effect, now: float, effects: list[AgentEffect]) -> None:
        match effect:
            case GossipChanged():
                self._sends_now = True
            case WatchLeader(region=region, needs_commits=needs_commits):
                watched = self._watched[cell]
                watched.acting, watched.needs_commits, watched.commit = region, needs_commits, 0
                if region is not None:
                    # Its earlier heartbeats say nothing about its new role: the full timeout begins here.
                    watched.detectors[region].restart(now)
            case _:
                effects.append(CellEffect(cell=cell, effect=effect))

    def _beat(self, now: float, effects: list[AgentEffect]) -> None:
        if self._next_beat is None:
            return
        due = now >= self._next_beat
        if due:
            # Heartbeats keep their interval; a missed one is not sent later.
            self._next_beat = max(self._next_beat + self._settings.heartbeat_interval_s, now)
            effects.extend(ReadCommit(cell=cell) for cell, one in self.machines.items() if one.facts.commits_on_quorum)
        if not due and not self._sends_now:
            return
        self._sends_now = False
        self._sequence += 1
        cells = tuple((cell, machine.gossip) for cell, machine in self.machines.items())
        heartbeat = Heartbeat(
            sender=self._region, incarnation=self._incarnation, sequence=self._sequence, cells=cells
        )  # fmt: skip
        effects.extend(SendHeartbeat(to=peer, heartbeat=heartbeat) for peer in self._other_agents)

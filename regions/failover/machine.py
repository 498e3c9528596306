"""The failover machine of one cell in one region: an event in, effects out.

``handle`` changes the facts by the event and then asks ``steps.py`` and ``claims.py`` what the facts call for, so the
order in which events arrive, and the point at which an agent crashed, do not matter. It has no clock, no I/O and no
randomness: the same events at the same times give the same effects. The driver performs the effects as ``effects.py``
says, sends ``Tick`` at ``next_deadline``, and sends ``Started`` first.

Facts change here and in the modules that get a ``Turn``: ``record_changes.py``, ``member_changes.py``,
``peer_changes.py`` and ``requests.py``; nowhere else. Source: docs/failover.md; ``rules.py`` has the rules.
"""

import copy
from dataclasses import replace
from typing import assert_never

from regions.failover import handover, member_changes, peer_changes, record_changes, requests, steps
from regions.failover.effects import Effect, GossipChanged, WatchLeader
from regions.failover.events import (
    AgentPaused,
    Event,
    FenceWritten,
    Gossip,
    GossipHeard,
    LedgerDone,
    LedgerDrained,
    LedgerEnded,
    LedgerFailed,
    LedgerFrozen,
    Order,
    Promise,
    PromiseFailed,
    PromiseStored,
    QuorumCommit,
    QuorumWaitCancelled,
    ReadFailed,
    RecordRead,
    RecordSeen,
    StandbysStreaming,
    Started,
    StrongReads,
    SuspicionChanged,
    SwapAnswered,
    Tick,
    Ticket,
)
from regions.failover.facts import Facts, Requests
from regions.failover.settings import CellRegions, Settings
from regions.failover.states import TRANSITIONS, State, state_of
from regions.failover.turn import Turn
from regions.identity import Epoch, RegionName


class Machine:
    """One cell as one region's agent sees it."""

    __slots__ = ("_acting", "_due", "_facts", "_gossiped", "state")

    def __init__(self, *, region: RegionName, cell: CellRegions, settings: Settings, first_ticket: Ticket) -> None:
        """Make a machine that waits for ``Started``.

        Args:
            region: Its own region.
            cell: The regions of the cell.
            settings: The numbers.
            first_ticket: Above every ticket that an earlier incarnation of this agent may have used.
        """
        self._facts = Facts(region=region, cell=cell, settings=settings, requests=Requests(last_ticket=first_ticket))
        self._gossiped = Gossip()
        self._acting: tuple[RegionName | None, bool] = (None, False)
        self.state: State = "starting"
        self._due: float | None = None

    @property
    def facts(self) -> Facts:
        """What it knows; to be looked at, never to be changed."""
        return self._facts

    @property
    def gossip(self) -> Gossip:
        """What its next heartbeat says about the cell."""
        return self._gossiped

    def clone(self) -> "Machine":
        """Return a machine that goes its own way from here."""
        twin = copy.copy(self)
        twin._facts = self._facts.snapshot()  # noqa: SLF001 - its own class
        return twin

    def handle(self, event: Event, *, now: float) -> list[Effect]:
        """Take an event and return what is to be done.

        Args:
            event: What happened. ``Started`` comes first, and once.
            now: Monotonic seconds; never less than at the call before.
        """
        assert self._facts.started != isinstance(event, Started), "Started comes first, and once"
        turn = Turn(facts=self._facts, now=now)
        _take(turn, event)
        requests.expire(turn)
        peer_changes.note_agreement(turn)
        peer_changes.note_majority(turn)
        requests.advance(turn)
        self._settle(turn)
        self._due = requests.next_deadline(self._facts)
        return turn.effects

    def next_deadline(self) -> float | None:
        """Return when ``Tick`` is due if nothing happens before; None: not at all."""
        return self._due

    def _settle(self, turn: Turn) -> None:
        """Note the new state, and report what other agents and the detector need to know."""
        facts, record = self._facts, self._facts.record
        state = state_of(facts)
        if state != self.state:
            assert (self.state, state) in TRANSITIONS, f"no transition from {self.state} to {state}"
            self.state = state
        acting = _acting(facts)
        if acting != self._acting:
            self._acting = acting
            turn.effects.append(WatchLeader(region=acting[0], needs_commits=acting[1]))
        epoch: Epoch = 0 if record is None else record.epoch
        suspects = epoch if record is not None and record.leader in facts.peers.suspected else 0
        commit = facts.member.quorum_commit if facts.commits_on_quorum else 0
        vote, release = steps.published_vote(facts), steps.published_release(facts)
        drained = 0 if handover.drained(facts.handover) is None else epoch
        gossip = Gossip(epoch=epoch, commit=commit, suspects=suspects, vote=vote, release=release, drained=drained)
        published, self._gossiped = self._gossiped, gossip
        if replace(published, commit=commit) != gossip:
            turn.effects.append(GossipChanged(gossip=gossip))


def _take(turn: Turn, event: Event) -> None:  # noqa: C901, PLR0912 - one case for each event
    facts = turn.facts
    match event:
        case Started():
            _start(turn, event)
        case Tick():
            pass
        case RecordSeen(revision=revision, record=record):
            record_changes.learn(turn, revision, record)
        case RecordRead():
            record_changes.take_read(turn, event)
        case ReadFailed(ticket=ticket):
            record_changes.take_failed_read(turn, ticket)
        case SwapAnswered():
            record_changes.take_swap(turn, event)
        case PromiseStored(ticket=ticket):
            member_changes.take_stored(turn, ticket)
        case PromiseFailed(ticket=ticket, reason=reason):
            member_changes.take_failed_store(turn, ticket, reason)
        case LedgerFrozen() | FenceWritten() | LedgerDrained() | LedgerDone() | LedgerFailed():
            member_changes.take_answer(turn, event)
        case LedgerEnded():
            member_changes.take_process_end(turn)
        case QuorumWaitCancelled(epoch=epoch):
            member_changes.take_cancelled_wait(turn, epoch)
        case StandbysStreaming(regions=regions):
            facts.member.standbys = regions
        case QuorumCommit(lsn=lsn):
            facts.member.quorum_commit = max(facts.member.quorum_commit, lsn)
        case GossipHeard(sender=sender, gossip=gossip):
            peer_changes.take_gossip(turn, sender, gossip)
        case SuspicionChanged():
            peer_changes.take_verdict(turn, event)
        case AgentPaused():
            # Rule 2: an agent that was paused reads the epoch again before it acts.
            facts.outdated = True
            turn.read_again()
        case StrongReads(requests=waiting):
            requests.take_strong_reads(turn, waiting)
        case Order():
            requests.take_order(turn, event)
        case _:
            assert_never(event)


def _start(turn: Turn, event: Started) -> None:
    facts = turn.facts
    facts.started, facts.member.promise, facts.member.ledger = True, event.promise, event.ledger
    if event.promise is None and event.ledger is not None:
        turn.refuse("the promise of this member cannot be read: remove its data as well, and it is copied anew")
    if event.promise == Promise():
        # A replaced disk has lost the promises of the old one. etcd has the epoch, if the read is linearizable.
        facts.outdated = True
        turn.read_again()


def _acting(facts: Facts) -> tuple[RegionName | None, bool]:
    """Return the region that the detector watches as the leader, and whether only its commits count as life."""
    record = facts.record
    if record is None or record.leader == facts.region or record.phase == "bootstrapping":
        return None, False
    return record.leader, record.phase == "serving"

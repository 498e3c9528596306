"""Models a region's agent in the exploration: the real machine, its disk, its open requests, and its gossip in flight.

Time is abstracted away. After each event each timer is either disarmed, or armed for a time that never comes; when the
exploration lets a timer fire, it first sets the timer's deadline into the past. So equal agents behave equally at any
time, and timers fire in any order. This covers more orders than real clocks can produce.
"""

from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

from infra.exploration.canonical_text import MIRRORED, PLAIN, REGIONS, canonical_text
from regions.failover import steps
from regions.failover.effects import (
    AnswerOrder,
    AnswerStrongReads,
    Effect,
    GossipChanged,
    LedgerEffect,
    Log,
    ReadRecord,
    StartServing,
    StopServing,
    StorePromise,
    SwapRecord,
    WatchLeader,
)
from regions.failover.events import Event, Gossip, MemberState, Promise, Started, Vote
from regions.failover.facts import NO_RETRY, Facts, Retry
from regions.failover.handover import Preparing, RestartDelayed
from regions.failover.invariants import violations
from regions.failover.machine import Machine
from regions.failover.settings import CellRegions, Settings
from regions.leadership import Leadership

NEVER = float("inf")
GOSSIP_MAX = 3
"""How many different gossips of an agent may be in flight: a suspicion can arrive after the vote that it led to."""

_SETTINGS = Settings(claim_stagger_s=0.0)
_CELL = CellRegions(voters=REGIONS, regions=REGIONS)
_ARMED = Retry(at=NEVER)

Mode = Literal["now", "late", "waiting", "done"]


class Violation(Exception):
    """An invariant is violated.

    Attributes:
        label: The label of the move that violated it; empty until it is known.
    """

    def __init__(self, what: str) -> None:
        super().__init__(what)
        self.label: tuple[Any, ...] = ()


@contextmanager
def label_violations(label: tuple[Any, ...]) -> Generator[None]:
    """Add the label of a move to a violation that it causes; an assertion error of the core becomes a violation."""
    try:
        yield
    except (Violation, AssertionError) as error:
        violated = error if isinstance(error, Violation) else Violation(f"assertion: {error}")
        violated.label = violated.label or label
        raise violated from error


class Request(NamedTuple):
    """An effect that a machine has requested and that is not answered.

    Attributes:
        effect: The effect.
        mode: ``now``: executed before anything else happens. ``late``: executed at any later time. ``waiting``:
            begun, and answered when the state of other regions allows. ``done``: executed, and the answer is in flight.
        strong: Whether strong reads wait for it.
        since: The newest revision when a late read was requested.
        answer: The answer, if the mode is ``done``.
    """

    effect: ReadRecord | SwapRecord | StorePromise | LedgerEffect
    mode: Mode = "now"
    strong: bool = False
    since: int = 0
    answer: Event | None = None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Node:
    """An agent and its disk; `NodeInterner` returns the same object for equal ones.

    Attributes:
        machine: The machine; None while the agent is down.
        disk: The promise on its disk.
        admitted_epoch: The epoch in which the agent has admitted writes; 0 for none. It survives a crash of the agent.
        writes_blocked: Whether the agent blocks all writers, by a lock in its member that ends with either.
        requests: Its open requests.
        gossip_in_flight: Its newest gossips, oldest first; each may still arrive.
        voted_epoch: The highest epoch for which it has published a vote.
        owed_writes: The client requests that were acknowledged when the open strong read arrived; None without one.
        facts_texts: The canonical text of its machine's facts, and of their mirror image.
        number: The number of this node among all nodes of an exploration.
        mirror: The number of its mirror image.
    """

    machine: Machine | None
    disk: Promise
    admitted_epoch: int = 0
    writes_blocked: bool = False
    requests: tuple[Request, ...] = ()
    gossip_in_flight: tuple[Gossip, ...] = ()
    voted_epoch: int = 0
    owed_writes: tuple[int, ...] | None = None
    facts_texts: tuple[str, str] = ("-", "-")
    number: int = 0
    mirror: int = 0


class Outcome(NamedTuple):
    """The result of an event for a node.

    Attributes:
        node: The node after the event.
        served_epoch: The epoch that it began to serve; 0 for none.
        current_reads: Whether it answered strong reads as current; None if it answered none.
        unanswered_swap: A swap that it no longer waits for, and that etcd may still apply.
        tie_alternative: The node with another, equally good member chosen, if the order of the voters decided.
    """

    node: Node
    served_epoch: int = 0
    current_reads: bool | None = None
    unanswered_swap: SwapRecord | None = None
    tie_alternative: Node | None = None


class NodeInterner:
    """All distinct nodes of an exploration, one object for each."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}
        self._known: dict[int, Node] = {}

    def __len__(self) -> int:
        return len(self._known)

    def intern(self, node: Node, region: int) -> Node:
        """Return the known node that is equal to ``node`` in ``region``, or add it."""
        number = self._number(_key(node, region, PLAIN, node.facts_texts[0]))
        if number not in self._known:
            mirror = self._number(_key(node, region, MIRRORED, node.facts_texts[1]))
            self._known[number] = replace(node, number=number, mirror=mirror)
        return self._known[number]

    def _number(self, key: str) -> int:
        return self._numbers.setdefault(key, len(self._numbers))


def _key(node: Node, region: int, names: Mapping[str, str], known: str) -> str:
    requests = sorted(canonical_text((type(one.effect).__name__, *one), names) for one in node.requests)
    rest = canonical_text(
        (
            node.disk,
            node.admitted_epoch,
            node.writes_blocked,
            node.gossip_in_flight,
            node.voted_epoch,
            node.owed_writes,
        ),
        names,
    )
    return f"{names[REGIONS[region]]} {known} {requests} {rest}"


def _texts(facts: Facts) -> tuple[str, str]:
    return canonical_text(facts, PLAIN), canonical_text(facts, MIRRORED)


def start(node: Node, region: int, found: MemberState, tickets: int) -> Outcome:
    """Start the agent of a region whose member is in the state ``found``; ``tickets`` is its first ticket."""
    machine = Machine(region=REGIONS[region], cell=_CELL, settings=_SETTINGS, first_ticket=tickets)
    return _advance(replace(node, machine=machine), Started(promise=node.disk, ledger=found), None)


def step(node: Node, event: Event, prepare: Callable[[Facts], None] | None = None) -> Outcome:
    """Let the machine handle an event; ``prepare`` changes the facts before, such as a timer's deadline."""
    assert node.machine is not None, "the agent is down"
    return _advance(replace(node, machine=node.machine.clone()), event, prepare)


def _advance(node: Node, event: Event, prepare: Callable[[Facts], None] | None) -> Outcome:
    machine = node.machine
    assert machine is not None
    if prepare is not None:
        prepare(machine.facts)
    effects = machine.handle(event, now=0.0)
    broken = violations(machine.facts)
    if broken:
        raise Violation("; ".join(broken))
    _remove_times(machine.facts)
    return _outcome(node, machine, effects)


def _outcome(node: Node, machine: Machine, effects: list[Effect]) -> Outcome:
    facts = machine.facts
    admitted_epoch, writes_blocked, served_epoch, current_reads = node.admitted_epoch, node.writes_blocked, 0, None
    asked: list[Request] = []
    for effect in effects:
        match effect:
            case StartServing(epoch=epoch):
                admitted_epoch = served_epoch = epoch
                writes_blocked = False
            case StopServing():
                admitted_epoch = 0
            case AnswerStrongReads(current=current):
                current_reads = current
            case GossipChanged() | WatchLeader() | Log() | AnswerOrder():
                pass
            case _:
                pending = facts.requests.strong_reading
                strong = pending is not None and pending.ticket == effect.ticket
                asked.append(Request(effect=effect, strong=strong))
    waiting = _awaited(facts)
    requests = tuple(one for one in (*node.requests, *asked) if one.effect.ticket in waiting)
    gone = (one.effect for one in node.requests if one.effect.ticket not in waiting and one.mode != "done")
    unanswered = next((one for one in gone if isinstance(one, SwapRecord) and not _is_decided(one, facts)), None)
    waits = facts.requests.strong_reads or facts.requests.strong_reading is not None
    made = replace(
        node,
        admitted_epoch=admitted_epoch,
        writes_blocked=writes_blocked,
        requests=requests,
        gossip_in_flight=_add_gossip(node, machine.gossip),
        voted_epoch=_voted_epoch(node, machine),
        owed_writes=node.owed_writes if waits else None,
        facts_texts=_texts(facts),
    )
    chooses = any(isinstance(one.effect, SwapRecord) for one in asked)
    return Outcome(
        node=made,
        served_epoch=served_epoch,
        current_reads=current_reads,
        unanswered_swap=unanswered,
        tie_alternative=_with_tie_resolved_otherwise(made) if chooses else None,
    )


def _is_decided(swap: SwapRecord, facts: Facts) -> bool:
    """Whether the machine knows a revision that decides this swap."""
    return facts.etcd.revision > swap.expected_revision


def _awaited(facts: Facts) -> frozenset[int]:
    asked = facts.requests
    slots = (asked.reading, asked.strong_reading, asked.swapping, asked.storing, asked.working)
    return frozenset(one.ticket for one in slots if one is not None)


def _add_gossip(node: Node, gossip: Gossip) -> tuple[Gossip, ...]:
    sent = replace(gossip, commit=0)
    if node.gossip_in_flight and node.gossip_in_flight[-1] == sent:
        return node.gossip_in_flight
    return (*node.gossip_in_flight, sent)[-GOSSIP_MAX:]


def _voted_epoch(node: Node, machine: Machine) -> int:
    vote = machine.gossip.vote
    if vote is None:
        return node.voted_epoch
    if not is_durable(vote, node.disk):
        raise Violation(f"a vote for epoch {vote.epoch} is published, and epoch {node.disk.epoch} is promised on disk")
    return max(node.voted_epoch, vote.epoch)


def is_durable(vote: Vote, disk: Promise) -> bool:
    """Whether the promise of a published vote is on the disk."""
    return vote.epoch <= disk.epoch


def _with_tie_resolved_otherwise(node: Node) -> Node | None:
    """The node with the other follower chosen, if only the order of the voters decided the choice; else None.

    The core may list the voters in either order. With both choices explored, the mirror image of every run is a run as
    well, so the exploration may continue from only one of two mirrored states.
    """
    machine = node.machine
    assert machine is not None
    facts = machine.facts
    swapping = facts.requests.swapping
    if facts.record is None or facts.record.phase != "recruiting":
        return None
    if swapping is None or swapping.record.phase != "promoting":
        return None
    chosen = swapping.record.leader
    given = steps.votes(facts, facts.record)
    other = next((one for one in REGIONS[1:] if one != chosen), None)
    if other is None or chosen not in REGIONS[1:] or other not in given or chosen not in given:
        return None
    alike = all(
        (
            given[chosen].position == given[other].position,
            (chosen in facts.peers.suspected) == (other in facts.peers.suspected),
            (chosen in facts.record.drained) == (other in facts.record.drained),
        )
    )
    if not alike:
        return None
    twin = machine.clone()
    record = replace(swapping.record, leader=other, ancestry=given[other].ancestry)
    twin.facts.requests.swapping = replace(swapping, record=record)
    requests = tuple(_with_record(one, record) for one in node.requests)
    return replace(node, machine=twin, requests=requests, facts_texts=_texts(twin.facts))


def _with_record(request: Request, record: Leadership) -> Request:
    if not isinstance(request.effect, SwapRecord):
        return request
    return request._replace(effect=replace(request.effect, record=record))


def _remove_times(facts: Facts) -> None:
    facts.record_since, facts.failovers, facts.member.quorum_commit = 0.0, (), 0
    # A swap that an agent requested before it led cannot be applied after the record that makes it leader, so its
    # revision makes no difference. None stays: a swap of a previous run may be unsettled, and that run may have led by
    # a record that this run has not received.
    etcd = facts.etcd
    if etcd.unsettled_revision is not None and not (facts.leads and etcd.unsettled_revision == etcd.revision):
        etcd.unsettled_revision = 0
    facts.peers.leader_suspected_since = None if facts.peers.leader_suspected_since is None else 0.0
    if isinstance(facts.handover, Preparing | RestartDelayed):
        facts.handover = replace(facts.handover, until=NEVER)
    facts.requests.ledger_retry = NO_RETRY if facts.requests.ledger_retry.at is None else _ARMED
    facts.requests.etcd_retry = NO_RETRY if facts.requests.etcd_retry.at is None else _ARMED
    for name in ("reading", "strong_reading", "swapping", "storing", "working"):
        one = getattr(facts.requests, name)
        if one is not None and one.until != NEVER:
            setattr(facts.requests, name, replace(one, until=NEVER))
    epoch = 0 if facts.record is None else facts.record.epoch
    heard = {sender: _relevant_gossip(gossip, epoch) for sender, gossip in facts.peers.gossip.items()}
    facts.peers.gossip = {sender: gossip for sender, gossip in heard.items() if gossip != _NOTHING}


_NOTHING = Gossip()


def _relevant_gossip(gossip: Gossip, epoch: int) -> Gossip:
    """The gossip without the parts that can never count again, because epochs only increase."""
    vote = gossip.vote if gossip.vote is not None and gossip.vote.epoch >= epoch else None
    suspects = gossip.suspects if gossip.suspects >= max(epoch, 1) else 0
    return Gossip(epoch=gossip.epoch if gossip.epoch > epoch else 0, suspects=suspects, vote=vote)

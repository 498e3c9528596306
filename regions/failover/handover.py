"""The hand-over of the leadership to an announced successor (rule 20): a sub-state of one agent, with its transitions.

The leader announces the successor, drains its writes to it and stops its PostgreSQL; the successor freezes its own
member while the leader still drains. ``Turn.move_handover`` moves from one value to the next, ``steps.py`` and
``claims.py`` decide what each value asks for, and ``rules.py`` decides whether the leader may go on. Source: ADR 0027,
0029, 0030 and 0046.
"""

from dataclasses import dataclass
from typing import Literal, assert_never

from regions.failover.events import Order

Kind = Literal["none", "announcing", "draining", "releasing", "restart-delayed", "preparing"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Announcing:
    """The leader has an order to hand over, and etcd has not confirmed the record that names the successor."""

    order: Order


@dataclass(frozen=True, slots=True, kw_only=True)
class Draining:
    """The leader accepts no more writes and waits until the successor has all of them.

    Attributes:
        order: The operator's order, answered at the end.
        revision: The revision with which this leader's own swap named the successor.
    """

    order: Order
    revision: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Releasing:
    """The successor has all writes on disk; the leader stops its PostgreSQL and then releases its epoch.

    Attributes:
        order: The operator's order, answered at the end.
        revision: The revision with which this leader's own swap named the successor.
        lsn: Where the WAL ends that the successor has on disk.
    """

    order: Order
    revision: int
    lsn: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RestartDelayed:
    """The old leader leaves its PostgreSQL stopped, because its start would slow down the promotion (ADR 0030).

    Attributes:
        until: Monotonic seconds; a record that says that the successor serves ends the delay earlier.
    """

    until: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Preparing:
    """The successor knows that the leader has drained: it freezes its member and sets its quorum (ADR 0046).

    Attributes:
        until: Monotonic seconds; then the successor follows the leader again, because the leader's agent may have died.
    """

    until: float


OfLeader = Announcing | Draining | Releasing
HandOver = OfLeader | RestartDelayed | Preparing

TRANSITIONS: dict[tuple[Kind, Kind], str] = {
    ("none", "announcing"): "an operator orders a switchover",
    ("restart-delayed", "announcing"): "the region leads again before its delay is over, and is ordered to hand over",
    ("announcing", "draining"): "etcd has accepted this leader's own swap that names the successor",
    ("draining", "releasing"): "the successor has all writes on disk",
    ("none", "restart-delayed"): "PostgreSQL is stopped and the epoch is released",
    ("none", "preparing"): "the leader reports that it has drained, and this region is the successor",
    ("announcing", "none"): "etcd did not answer the swap, or another epoch began",
    ("draining", "none"): "the successor did not catch up, draining failed, or another epoch began",
    ("releasing", "none"): "the next epoch began: the successor's, or another",
    ("restart-delayed", "none"): "the delay is over, or the record shows an epoch that serves or recruits",
    ("preparing", "none"): "the next epoch began, the leader goes on, or the time is over",
}
"""All transitions; ``moved`` refuses any other. docs/failover.md shows this table."""


def kind_of(handover: HandOver | None) -> Kind:
    """Return the name of a sub-state."""
    match handover:
        case None:
            return "none"
        case Announcing():
            return "announcing"
        case Draining():
            return "draining"
        case Releasing():
            return "releasing"
        case RestartDelayed():
            return "restart-delayed"
        case Preparing():
            return "preparing"
        case _:
            assert_never(handover)


def moved(old: HandOver | None, new: HandOver | None) -> HandOver | None:
    """Return ``new``, which has to be a transition from ``old``."""
    step = (kind_of(old), kind_of(new))
    assert step in TRANSITIONS, f"no transition of a hand-over from {step[0]} to {step[1]}"
    return new


def of_leader(handover: HandOver | None) -> OfLeader | None:
    """Return the hand-over that this region carries out as the leader; None if there is none."""
    return handover if isinstance(handover, Announcing | Draining | Releasing) else None


def announcement(handover: OfLeader) -> int:
    """Return the revision with which the leader's own swap named the successor; 0 before that."""
    return 0 if isinstance(handover, Announcing) else handover.revision


def drained(handover: HandOver | None) -> int | None:
    """Return up to which LSN the successor has everything; None before that is known."""
    return handover.lsn if isinstance(handover, Releasing) else None


def with_drained(handover: OfLeader, lsn: int) -> Releasing:
    """Return the sub-state after the successor has everything up to ``lsn``."""
    return Releasing(order=handover.order, revision=announcement(handover), lsn=lsn)


def deadline(handover: HandOver | None) -> float | None:
    """Return when the sub-state ends by itself; None if only an event ends it."""
    return handover.until if isinstance(handover, RestartDelayed | Preparing) else None

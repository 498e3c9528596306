"""Defines fault plans as data, and draws them from a seed.

Decides which faults happen at which time; does not know the invariants. ``faults.py`` injects a plan, ``shrink.py``
reduces one, and plans are stored as JSON. A fault names its target region, or a role that is resolved when the fault
happens (``leader``, ``other``). It can wait for a phase, so that a second fault hits during a recruitment or a
rejoin.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from random import Random
from typing import Any, Literal, cast

from regions.failover.events import OrderKind
from regions.identity import RegionName

FaultKind = Literal[
    "crash-region",
    "crash-in-record",
    "crash-agent",
    "pause-region",
    "pause-agent",
    "kill-ledger",
    "hang-disk",
    "cancel-waits",
    "lose-promise",
    "clock-rate",
    "clock-jump",
    "isolate",
    "isolate-in",
    "isolate-out",
    "cut",
    "loss",
    "noise",
    "slow",
    "etcd-outage",
    "etcd-leader-moves",
    "watch-lag",
    "order",
]

FaultPhase = Literal["", "recruiting", "promoting", "serving", "rejoining"]

WAIT_S_MAX = 15.0
"""A fault happens after this time even if its phase has not come."""

QUIET_S = 30.0
"""The end of each run that has no faults, so that liveness can be checked."""

FIRST_S = 6.0
"""Faults begin after this time, when the cell has been created."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One fault, or one order of an operator.

    Attributes:
        at: Virtual seconds since the beginning of the run.
        kind: The kind of fault.
        target: A region's name; ``other`` for the first region that is not the leader of the newest record; any other
            value (``leader``, ``candidate``) for that leader, which is the candidate during a recruitment.
        seconds: Duration; 0 for a fault without one.
        amount: Severity from 0 to 1; its meaning depends on the kind.
        when: The phase that the fault waits for; empty for none.
        order: The kind of order, if ``kind`` is ``order``.
    """

    at: float
    kind: FaultKind
    target: str = ""
    seconds: float = 0.0
    amount: float = 0.0
    when: FaultPhase = ""
    order: OrderKind | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class FaultPlan:
    """Everything about a run that is drawn before it starts.

    Attributes:
        seed: The seed of everything that is drawn during the run.
        seconds: Virtual seconds of the run.
        voters: Number of voters.
        observers: Number of view-only regions.
        spares: Number of regions that have a member and are not voters at first.
        rtt_s: Mean round trip between two regions.
        jitter_s: Largest difference from the mean round trip.
        loss: Share of datagrams that are lost.
        etcd_leader: Index of the region that leads etcd at first.
        faults: The faults, by time.
    """

    seed: int
    seconds: float
    voters: int = 3
    observers: int = 0
    spares: int = 0
    rtt_s: float = 0.08
    jitter_s: float = 0.02
    loss: float = 0.0
    etcd_leader: int = 1
    faults: tuple[Fault, ...] = field(default=())

    @property
    def healed_at(self) -> float:
        """When the last fault is over at the latest."""
        return max((one.at + one.seconds + (WAIT_S_MAX if one.when else 0.0) for one in self.faults), default=0.0)

    @property
    def ends_resumed(self) -> bool:
        """Whether no pause of failover is left in force; during a pause no recovery is required."""
        told = [one.order for one in sorted(self.faults, key=lambda one: one.at) if one.order in {"pause", "resume"}]
        return not told or told[-1] == "resume"

    @property
    def regions(self) -> tuple[RegionName, ...]:
        """The names of all regions, voters first."""
        names = ("eu", "us", "ap", "sa", "af", "oc", "in")
        return tuple(RegionName(name) for name in names[: self.voters + self.spares + self.observers])

    def to_json(self) -> dict[str, Any]:
        """The plan as JSON."""
        return asdict(self)

    @classmethod
    def from_json(cls, stored: dict[str, Any]) -> FaultPlan:
        """The plan in ``stored``."""
        faults = tuple(Fault(**one) for one in cast("list[dict[str, Any]]", stored["faults"]))
        fields: dict[str, Any] = {**stored, "faults": faults}
        return cls(**fields)


_WEIGHTS: Sequence[tuple[FaultKind, float, float, float]] = (
    # kind, weight, shortest and longest duration
    ("crash-region", 10, 0.5, 12.0),
    ("crash-in-record", 3, 0.5, 12.0),
    ("crash-agent", 8, 0.05, 6.0),
    ("pause-region", 6, 0.2, 8.0),
    ("pause-agent", 6, 0.2, 8.0),
    ("kill-ledger", 5, 0, 0),
    ("hang-disk", 5, 0.3, 8.0),
    ("cancel-waits", 3, 0, 0),
    ("lose-promise", 1, 0.5, 6.0),
    ("clock-rate", 3, 5.0, 20.0),
    ("clock-jump", 3, 0, 0),
    ("isolate", 8, 0.3, 10.0),
    ("isolate-in", 4, 0.3, 10.0),
    ("isolate-out", 4, 0.3, 10.0),
    ("cut", 6, 0.3, 10.0),
    ("loss", 3, 1.0, 10.0),
    ("noise", 3, 2.0, 15.0),
    ("slow", 3, 1.0, 10.0),
    ("etcd-outage", 3, 0.3, 4.0),
    ("etcd-leader-moves", 2, 0, 0),
    ("watch-lag", 4, 1.0, 15.0),
    ("order", 7, 0, 0),
)

_ORDERS: Sequence[OrderKind] = ("switch", "switch", "switch", "pause", "drain", "undrain", "add", "remove")
FIVE_VOTERS, OBSERVED, SPARE, ELSEWHERE, QUIET, DOUBLED, UNEQUAL = 0.12, 0.2, 0.15, 0.3, 0.05, 0.35, 0.15
"""Shares: of plans with five voters, with a view-only region, with a region that can be added as a voter, with etcd's
leader in a random voter's region, and without a fault; of faults that come with a second one; and of plans that begin
with unequal positions while a voter is drained."""

UNEQUAL_S = 12.0
"""Longest duration of such a beginning: a drain, a standby that falls behind, and the loss of the leader."""

_ROLES = ("leader", "leader", "leader", "candidate", "other")
_PHASES: Sequence[FaultPhase] = ("", "", "", "recruiting", "promoting", "rejoining", "serving")


def draw_plan(seed: int, *, seconds: float) -> FaultPlan:
    """Draw the plan of a seed; some plans have no fault."""
    random = Random(seed * 2 + 1)  # noqa: S311 - reproducible randomness, no secret
    voters = 5 if random.random() < FIVE_VOTERS else 3
    plan = FaultPlan(
        seed=seed,
        seconds=seconds,
        voters=voters,
        observers=int(random.random() < OBSERVED),
        spares=int(random.random() < SPARE),
        loss=random.choice((0.0, 0.0, 0.01, 0.02)),
        etcd_leader=random.randrange(voters) if random.random() < ELSEWHERE else 1,
    )
    if random.random() < QUIET:
        return plan
    at, end = FIRST_S, seconds - QUIET_S - WAIT_S_MAX
    faults: list[Fault] = []
    if random.random() < UNEQUAL:
        faults.extend(_draw_unequal_positions(random, plan, at))
        at += UNEQUAL_S
    pace = random.choice((2.0, 5.0, 8.0))
    while True:
        at += random.expovariate(1 / pace)
        if at >= end:
            break
        faults.extend(_draw_faults(random, plan, at, end))
    faults = _with_one_lost_promise(faults)
    if any(one.order == "pause" for one in faults):
        faults.append(Fault(at=end + WAIT_S_MAX, kind="order", order="resume"))
    return replace(plan, faults=tuple(sorted(faults, key=lambda one: one.at)))


def _with_one_lost_promise(faults: list[Fault]) -> list[Fault]:
    """Keep one lost promise at most: a cell in which two of three voters lost theirs does not recover by itself."""
    lost = [one for one in faults if one.kind == "lose-promise"]
    return [one for one in faults if one.kind != "lose-promise" or one is lost[0]]


def _draw_unequal_positions(random: Random, plan: FaultPlan, at: float) -> list[Fault]:
    """A voter is drained, a standby falls behind, then the leader is lost: the next leader must have every write.

    Random faults rarely contain these three in this order.
    """
    drained = random.choice(plan.regions[: plan.voters])
    behind: FaultKind = random.choice(("cut", "cut", "hang-disk"))
    lost: FaultKind = random.choice(("crash-region", "crash-in-record", "pause-region", "isolate"))
    lost_at = at + random.uniform(1.5, 3.0)
    return [
        Fault(at=round(at, 3), kind="order", order="drain", target=drained, amount=round(random.random(), 3)),
        Fault(
            at=round(at + random.uniform(0.5, 1.0), 3),
            kind=behind,
            target="leader" if behind == "cut" else random.choice(plan.regions[: plan.voters]),
            seconds=round(random.uniform(2.0, 5.0), 3),
            amount=round(random.random(), 3),
        ),
        Fault(at=round(lost_at, 3), kind=lost, target="leader", seconds=round(random.uniform(4.0, 8.0), 3)),
    ]


def _draw_faults(random: Random, plan: FaultPlan, at: float, end: float) -> list[Fault]:
    """Draw a fault, sometimes with a second one shortly after it."""
    faults = [_draw_fault(random, plan, at, end, "")]
    if random.random() < DOUBLED:
        faults.append(_draw_fault(random, plan, at + random.uniform(0, 3), end, random.choice(_PHASES)))
    return faults


def _draw_fault(random: Random, plan: FaultPlan, at: float, end: float, when: FaultPhase) -> Fault:
    kind, _, low, high = random.choices(_WEIGHTS, weights=[weight for _, weight, _, _ in _WEIGHTS])[0]
    seconds = low + (high - low) * random.random() ** 2
    target = random.choice((*_ROLES, *plan.regions))
    order = random.choice(_ORDERS) if kind == "order" else None
    return Fault(
        at=round(at, 3),
        kind=kind,
        target=target,
        seconds=round(min(seconds, max(0.0, end - at)), 3),
        amount=round(random.random(), 3),
        when=when,
        order=order,
    )

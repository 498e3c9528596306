"""Faults as data: a plan is drawn from a seed, written as JSON, cut down by ``shrink.py``, and carried out here.

Decides what hurts when. Refuses to know what must hold. A fault aims at a region by name or by its role at the moment
(``leader``, ``candidate``, ``other``), and can wait for a phase, so that second faults hit in the middle of a
recruitment or a rejoin.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from random import Random
from typing import Any, Literal, cast

from regions.failover.events import Order, OrderKind
from regions.identity import RegionName

from infra.simulation.etcd import Etcd
from infra.simulation.member import Member
from infra.simulation.network import Network
from infra.simulation.node import Node
from infra.simulation.world import World

FaultKind = Literal[
    "crash-region",
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

When = Literal["", "recruiting", "promoting", "serving", "rejoining"]

WAIT_S_MAX = 15.0
"""How long a fault waits for its phase before it takes place anyway."""

POLL_S = 0.01

QUIET_S = 30.0
"""The end of each run has no faults, so that liveness can be judged."""

FIRST_S = 6.0
"""Faults begin when the cell has been made."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One thing that goes wrong, or one order.

    Attributes:
        at: When, in seconds of the run.
        kind: What.
        target: A region's name, or ``leader``, ``candidate``, ``other``, ``all``.
        seconds: For how long; 0 for faults that are over at once.
        amount: How much, in the unit of the kind.
        when: A phase that is waited for, if any.
        order: The order's kind.
    """

    at: float
    kind: FaultKind
    target: str = ""
    seconds: float = 0.0
    amount: float = 0.0
    when: When = ""
    order: OrderKind | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Everything about a run that is drawn before it starts.

    Attributes:
        seed: Of all that is drawn during the run.
        seconds: How long it lasts.
        voters: How many regions vote.
        observers: How many regions hold no ledger.
        spares: How many regions hold a ledger and are no voters at first.
        rtt_s: Between regions.
        jitter_s: Of the round trip.
        loss: Share of datagrams.
        etcd_leader: Index of the region that leads etcd.
        faults: What goes wrong, by time.
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
    def regions(self) -> tuple[RegionName, ...]:
        """The names of all regions, voters first."""
        names = ("eu", "us", "ap", "sa", "af", "oc", "in")
        return tuple(RegionName(name) for name in names[: self.voters + self.spares + self.observers])

    def to_json(self) -> dict[str, Any]:
        """The plan as JSON."""
        return asdict(self)

    @classmethod
    def from_json(cls, stored: dict[str, Any]) -> Plan:
        """The plan in ``stored``."""
        faults = tuple(Fault(**one) for one in cast("list[dict[str, Any]]", stored["faults"]))
        return cls(**{**stored, "faults": faults})


_WEIGHTS: Sequence[tuple[FaultKind, float, float, float]] = (
    # kind, weight, shortest and longest duration
    ("crash-region", 10, 0.5, 12.0),
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
_ROLES = ("leader", "leader", "leader", "candidate", "other")
_WHENS: Sequence[When] = ("", "", "", "recruiting", "promoting", "rejoining", "serving")


def draw_plan(seed: int, *, seconds: float) -> Plan:
    """Draw the plan of a seed; some plans have no fault at all."""
    random = Random(seed * 2 + 1)  # noqa: S311 - chance that is repeated, no secret
    voters = 5 if random.random() < 0.12 else 3
    plan = Plan(
        seed=seed,
        seconds=seconds,
        voters=voters,
        observers=int(random.random() < 0.2),
        spares=int(random.random() < 0.15),
        loss=random.choice((0.0, 0.0, 0.01, 0.02)),
        etcd_leader=random.randrange(voters) if random.random() < 0.3 else 1,
    )
    if random.random() < 0.05:
        return plan
    faults: list[Fault] = []
    at, end = FIRST_S, seconds - QUIET_S - WAIT_S_MAX
    pace = random.choice((2.0, 5.0, 8.0))
    while True:
        at += random.expovariate(1 / pace)
        if at >= end:
            break
        faults.extend(_draw_faults(random, plan, at, end))
    faults = _with_one_lost_promise(faults)
    if any(one.order == "pause" for one in faults):
        faults.append(Fault(at=end + WAIT_S_MAX, kind="order", order="resume"))
    return Plan(**{**_fields(plan), "faults": tuple(sorted(faults, key=lambda one: one.at))})


def _with_one_lost_promise(faults: list[Fault]) -> list[Fault]:
    """Two members without their promises are a loss of two, which nothing comes back from by itself."""
    lost = [one for one in faults if one.kind == "lose-promise"]
    return [one for one in faults if one.kind != "lose-promise" or one is lost[0]]


def _fields(plan: Plan) -> dict[str, Any]:
    return {name: getattr(plan, name) for name in Plan.__slots__}


def _draw_faults(random: Random, plan: Plan, at: float, end: float) -> list[Fault]:
    """A fault, sometimes with a second one in its wake."""
    faults = [_draw_fault(random, plan, at, end, "")]
    if random.random() < 0.35:
        faults.append(_draw_fault(random, plan, at + random.uniform(0, 3), end, random.choice(_WHENS)))
    return faults


def _draw_fault(random: Random, plan: Plan, at: float, end: float, when: When) -> Fault:
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


class Injector:
    """Carries a plan out."""

    def __init__(
        self,
        world: World,
        network: Network,
        etcd: Etcd,
        nodes: dict[RegionName, Node],
        plan: Plan,
    ) -> None:
        self._world = world
        self._network = network
        self._etcd = etcd
        self._nodes = nodes
        self._plan = plan
        self._crashed: dict[RegionName, int] = {}
        self._hangs: dict[RegionName, int] = {}
        self._pauses: dict[RegionName, int] = {}
        self._agent_pauses: dict[RegionName, int] = {}
        self._tickets = 0
        self.hits: list[tuple[float, FaultKind, RegionName, bool]] = []

    def start(self) -> None:
        """Schedule all faults."""
        for fault in self._plan.faults:
            self._world.at(fault.at, self._await_phase, fault)

    def _await_phase(self, fault: Fault) -> None:
        if fault.when and self._world.now < fault.at + WAIT_S_MAX and not self._is_phase(fault):
            self._world.after(POLL_S, self._await_phase, fault)
            return
        region = self._aim(fault.target)
        record = self._etcd.record
        leads = record is not None and record.phase == "serving" and record.leader == region
        self.hits.append((self._world.now, fault.kind, region, leads))
        self._world.tell(f"FAULT {fault.kind} {region} {fault.seconds:g} s {fault.amount:g} {fault.order or ''}")
        self._do(fault, region)

    def _is_phase(self, fault: Fault) -> bool:
        record = self._etcd.record
        if record is None:
            return False
        if fault.when == "rejoining":
            return any(node.core is not None and _is_rejoining(node) for node in self._nodes.values())
        return record.phase == fault.when

    def _aim(self, target: str) -> RegionName:
        record = self._etcd.record
        regions = self._plan.regions
        if target in regions:
            return RegionName(target)
        if record is None:
            return regions[0]
        if target == "other":
            return next(region for region in regions if region != record.leader)
        return record.leader

    def _member(self, region: RegionName) -> Member | None:
        return self._nodes[region].member

    def _do(self, fault: Fault, region: RegionName) -> None:  # noqa: C901, PLR0912, PLR0915 - one case a fault
        kind, seconds, amount = fault.kind, fault.seconds, fault.amount
        match kind:
            case "crash-region":
                self._crash_region(region, seconds, lose_promise=False)
            case "lose-promise":
                self._crash_region(region, seconds, lose_promise=True)
            case "crash-agent":
                self._crash_agent(region, seconds)
            case "pause-region":
                self._pause_region(region, seconds)
            case "pause-agent":
                self._pause_agent(region, seconds)
            case "kill-ledger":
                self._kill_ledger(region)
            case "hang-disk":
                self._hang(region, seconds)
            case "cancel-waits":
                member = self._member(region)
                if member is not None and member.running and member.primary:
                    member.cancel_waits()
            case "clock-rate":
                clock = self._nodes[region].clock
                clock.set_rate(1 + (amount - 0.5) / 5)  # ten percent, far more than any clock has
                self._world.after(seconds, clock.set_rate, 1.0)
            case "clock-jump":
                self._nodes[region].clock.wall_offset += (amount - 0.5) * 2e6
            case "isolate" | "isolate-in" | "isolate-out":
                others = [other for other in self._plan.regions if other != region]
                out = [(region, other) for other in others] if kind != "isolate-in" else []
                into = [(other, region) for other in others] if kind != "isolate-out" else []
                self._cut([*out, *into], seconds)
            case "cut":
                others = [other for other in self._plan.regions if other != region]
                other = others[int(amount * len(others)) % len(others)]
                both = amount * 100 % 2 < 1
                self._cut([(region, other), (other, region)] if both else [(region, other)], seconds)
            case "loss":
                self._network.lossy[region] = 0.1 + 0.5 * amount
                self._world.after(seconds, self._network.lossy.pop, region, 0.0)
            case "noise":
                self._network.doubled, self._network.late = 0.1 * amount, 0.05
                self._world.after(seconds, self._quieten)
            case "slow":
                self._network.slow[region] = 0.3 * amount
                self._world.after(seconds, self._network.slow.pop, region, 0.0)
            case "etcd-outage":
                self._etcd.outage += 1
                self._etcd.changed()
                self._world.after(seconds, self._end_outage)
            case "etcd-leader-moves":
                self._etcd.leader = None
                self._etcd.changed()
            case "watch-lag":
                self._etcd.lag_s[region] = 3 * amount
                self._world.after(seconds, self._etcd.lag_s.pop, region, 0.0)
            case "order":
                self._order(fault, region)

    # Processes and machines.

    def _crash_region(self, region: RegionName, seconds: float, *, lose_promise: bool) -> None:
        if self._count(self._crashed, region, 1) > 1:
            self._world.after(seconds, self._start_region, region)
            return
        node = self._nodes[region]
        if node.up:
            node.crash()
        if node.member is not None:
            node.member.paused = node.member.hung = False
            node.member.crash()
        if lose_promise:
            node.disk = None
        self._etcd.set_down(region, down=True)
        self._world.after(seconds, self._start_region, region)

    def _start_region(self, region: RegionName) -> None:
        if self._count(self._crashed, region, -1):
            return
        self._apply_pauses(region)
        self._etcd.set_down(region, down=bool(self._pauses.get(region)))
        self._start_agent(region)

    def _crash_agent(self, region: RegionName, seconds: float) -> None:
        if self._nodes[region].up:
            self._nodes[region].crash()
        self._world.after(seconds, self._start_agent, region)

    def _start_agent(self, region: RegionName) -> None:
        node = self._nodes[region]
        if not node.up and not self._crashed.get(region):
            node.start()
            self._apply_pauses(region)

    def _apply_pauses(self, region: RegionName) -> None:
        node = self._nodes[region]
        if node.up and (self._pauses.get(region) or self._agent_pauses.get(region)):
            node.pause()
        if node.member is not None:
            node.member.paused = bool(self._pauses.get(region))
            node.member.hung = bool(self._hangs.get(region))

    def _pause_region(self, region: RegionName, seconds: float) -> None:
        self._count(self._pauses, region, 1)
        self._apply_pauses(region)
        self._etcd.set_down(region, down=True)
        self._world.after(seconds, self._resume_region, region)

    def _resume_region(self, region: RegionName) -> None:
        if self._count(self._pauses, region, -1):
            return
        if not self._crashed.get(region):
            self._etcd.set_down(region, down=False)
        self._apply_pauses(region)
        self._go_on(region)

    def _pause_agent(self, region: RegionName, seconds: float) -> None:
        self._count(self._agent_pauses, region, 1)
        self._apply_pauses(region)
        self._world.after(seconds, self._resume_agent, region)

    def _resume_agent(self, region: RegionName) -> None:
        if not self._count(self._agent_pauses, region, -1):
            self._go_on(region)

    def _go_on(self, region: RegionName) -> None:
        node = self._nodes[region]
        if not self._pauses.get(region) and not self._agent_pauses.get(region):
            node.resume()
        if node.member is not None and not node.member.paused and not node.member.hung:
            node.member.recover()
            if node.driver is not None:
                node.driver.go_on()

    def _kill_ledger(self, region: RegionName) -> None:
        node = self._nodes[region]
        if node.member is not None and node.member.running:
            node.member.crash()
            self._world.after(self._world.between(0.005, 0.05), self._notice_end, region)

    def _notice_end(self, region: RegionName) -> None:
        node = self._nodes[region]
        if node.member is not None and not node.member.running:
            node.ended()

    def _hang(self, region: RegionName, seconds: float) -> None:
        self._count(self._hangs, region, 1)
        self._apply_pauses(region)
        self._world.after(seconds, self._end_hang, region)

    def _end_hang(self, region: RegionName) -> None:
        if not self._count(self._hangs, region, -1):
            self._apply_pauses(region)
            self._go_on(region)

    @staticmethod
    def _count(counts: dict[RegionName, int], region: RegionName, change: int) -> int:
        counts[region] = counts.get(region, 0) + change
        return counts[region]

    # Network and etcd.

    def _cut(self, links: list[tuple[RegionName, RegionName]], seconds: float) -> None:
        for source, target in links:
            self._network.cut(source, target)
        self._world.after(seconds, self._heal, links)

    def _heal(self, links: list[tuple[RegionName, RegionName]]) -> None:
        for source, target in links:
            self._network.heal(source, target)
        for node in self._nodes.values():
            if node.member is not None:
                node.member.recover()

    def _quieten(self) -> None:
        self._network.doubled = self._network.late = 0.0

    def _end_outage(self) -> None:
        self._etcd.outage -= 1
        self._etcd.changed()

    # Orders.

    def _order(self, fault: Fault, region: RegionName) -> None:
        record = self._etcd.record
        if record is None or fault.order is None:
            return
        node = self._nodes[record.leader]
        regions = self._plan.regions
        about = regions[int(fault.amount * len(regions)) % len(regions)] if region == record.leader else region
        self._tickets += 1
        named = fault.order not in ("pause", "resume")
        order = Order(ticket=self._tickets, kind=fault.order, region=about if named else None, by="the simulation")
        self._world.tell(f"ORDER {order.kind} {order.region} to {node.region}")
        node.tell(order)


def _is_rejoining(node: Node) -> bool:
    core = node.core
    assert core is not None, "nobody rejoins"
    return any(machine.state == "rejoining" for machine in core.machines.values())


Call = Callable[..., None]

"""Injects the faults of a plan: crashes, pauses, hung disks, partitions, wrong clocks, and an operator's orders.

Does not check invariants (``checkers.py`` does), and does not use the checkers to choose a fault.
"""

from __future__ import annotations

from infra.simulation.etcd import Etcd
from infra.simulation.member import Member
from infra.simulation.network import Network
from infra.simulation.node import Node
from infra.simulation.plans import WAIT_S_MAX, Fault, FaultKind, FaultPlan
from infra.simulation.scheduler import Scheduler
from regions.failover.events import Order, OrderKind
from regions.identity import RegionName

POLL_S = 0.01
"""Interval at which a fault that waits for a phase looks at the phase."""

PARTIAL_RECORD_S_MAX = 0.1
"""Longest time from the first part of a record to the crash of the region that wrote it."""

ORDER_REPEATED_S = 1.0
"""Interval at which the operator repeats an order that had no effect."""


class Injector:
    """Injects the faults of one plan.

    Attributes:
        injected: (time, kind, region, whether the region led and served) of each injected fault.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        network: Network,
        etcd: Etcd,
        nodes: dict[RegionName, Node],
        plan: FaultPlan,
    ) -> None:
        self._scheduler = scheduler
        self._network = network
        self._etcd = etcd
        self._nodes = nodes
        self._plan = plan
        self._crashed: dict[RegionName, int] = {}
        self._hangs: dict[RegionName, int] = {}
        self._pauses: dict[RegionName, int] = {}
        self._agent_pauses: dict[RegionName, int] = {}
        self._tickets = 0
        self.injected: list[tuple[float, FaultKind, RegionName, bool]] = []

    def start(self) -> None:
        """Schedule all faults."""
        for fault in self._plan.faults:
            self._scheduler.at(fault.at, self._await_phase, fault)

    def _await_phase(self, fault: Fault) -> None:
        if fault.when and self._scheduler.now < fault.at + WAIT_S_MAX and not self._is_phase(fault):
            self._scheduler.after(POLL_S, self._await_phase, fault)
            return
        region = self._target_region(fault.target)
        record = self._etcd.record
        leads = record is not None and record.phase == "serving" and record.leader == region
        self.injected.append((self._scheduler.now, fault.kind, region, leads))
        self._scheduler.trace_line(
            f"FAULT {fault.kind} {region} {fault.seconds:g} s {fault.amount:g} {fault.order or ''}"
        )
        self._inject(fault, region)

    def _is_phase(self, fault: Fault) -> bool:
        record = self._etcd.record
        if record is None:
            return False
        if fault.when == "rejoining":
            return any(node.core is not None and _is_rejoining(node) for node in self._nodes.values())
        return record.phase == fault.when

    def _target_region(self, target: str) -> RegionName:
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

    def _inject(self, fault: Fault, region: RegionName) -> None:  # noqa: C901, PLR0912, PLR0915 - one case a fault
        kind, seconds, amount = fault.kind, fault.seconds, fault.amount
        match kind:
            case "crash-region":
                self._crash_region(region, seconds)
            case "crash-in-record":
                member = self._member(region)
                if member is not None and member.running and member.primary:
                    member.write_partial_record()
                # The region crashes about when that part arrives at the standbys, before it writes the rest.
                self._scheduler.after(amount * PARTIAL_RECORD_S_MAX, self._crash_region, region, seconds)
            case "lose-promise":
                # If the first leader loses its promise before the cell has served, the operator has to create the cell
                # again. So the promise is lost only later.
                record = self._etcd.record
                served = record is not None and record.phase != "bootstrapping"
                self._crash_region(region, seconds, lose_promise=served)
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
                clock.set_rate(1 + (amount - 0.5) / 5)  # up to 10%, far more than the drift of a real clock
                self._scheduler.after(seconds, clock.set_rate, 1.0)
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
                self._scheduler.after(seconds, _remove_amount, self._network.lossy, region)
            case "noise":
                self._network.doubled, self._network.late = 0.1 * amount, 0.05
                self._scheduler.after(seconds, self._end_noise)
            case "slow":
                self._network.slow[region] = 0.3 * amount
                self._scheduler.after(seconds, _remove_amount, self._network.slow, region)
            case "etcd-outage":
                self._etcd.outage += 1
                self._etcd.changed()
                self._scheduler.after(seconds, self._end_outage)
            case "etcd-leader-moves":
                self._etcd.leader = None
                self._etcd.changed()
            case "watch-lag":
                self._etcd.lag_s[region] = 3 * amount
                self._scheduler.after(seconds, _remove_amount, self._etcd.lag_s, region)
            case "order":
                self._order(fault, region)

    # Processes and machines.

    def _crash_region(self, region: RegionName, seconds: float, *, lose_promise: bool = False) -> None:
        if self._count(self._crashed, region, 1) > 1:
            self._scheduler.after(seconds, self._start_region, region)
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
        self._scheduler.after(seconds, self._start_region, region)

    def _start_region(self, region: RegionName) -> None:
        if self._count(self._crashed, region, -1):
            return
        self._apply_pauses(region)
        self._etcd.set_down(region, down=bool(self._pauses.get(region)))
        self._start_agent(region)

    def _crash_agent(self, region: RegionName, seconds: float) -> None:
        if self._nodes[region].up:
            self._nodes[region].crash()
        self._scheduler.after(seconds, self._start_agent, region)

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
        self._scheduler.after(seconds, self._resume_region, region)

    def _resume_region(self, region: RegionName) -> None:
        if self._count(self._pauses, region, -1):
            return
        if not self._crashed.get(region):
            self._etcd.set_down(region, down=False)
        self._apply_pauses(region)
        self._resume_processes(region)

    def _pause_agent(self, region: RegionName, seconds: float) -> None:
        self._count(self._agent_pauses, region, 1)
        self._apply_pauses(region)
        self._scheduler.after(seconds, self._resume_agent, region)

    def _resume_agent(self, region: RegionName) -> None:
        if not self._count(self._agent_pauses, region, -1):
            self._resume_processes(region)

    def _resume_processes(self, region: RegionName) -> None:
        node = self._nodes[region]
        if not self._pauses.get(region) and not self._agent_pauses.get(region):
            node.resume()
        if node.member is not None and not node.member.paused and not node.member.hung:
            node.member.resume_io()
            if node.driver is not None:
                node.driver.resume()

    def _kill_ledger(self, region: RegionName) -> None:
        node = self._nodes[region]
        if node.member is not None and node.member.running:
            node.member.crash()
            self._scheduler.after(self._scheduler.between(0.005, 0.05), self._notice_end, region)

    def _notice_end(self, region: RegionName) -> None:
        node = self._nodes[region]
        if node.member is not None and not node.member.running:
            node.ledger_ended()

    def _hang(self, region: RegionName, seconds: float) -> None:
        self._count(self._hangs, region, 1)
        self._apply_pauses(region)
        self._scheduler.after(seconds, self._end_hang, region)

    def _end_hang(self, region: RegionName) -> None:
        if not self._count(self._hangs, region, -1):
            self._apply_pauses(region)
            self._resume_processes(region)

    @staticmethod
    def _count(counts: dict[RegionName, int], region: RegionName, change: int) -> int:
        counts[region] = counts.get(region, 0) + change
        return counts[region]

    # Network and etcd.

    def _cut(self, links: list[tuple[RegionName, RegionName]], seconds: float) -> None:
        for source, target in links:
            self._network.cut(source, target)
        self._scheduler.after(seconds, self._heal, links)

    def _heal(self, links: list[tuple[RegionName, RegionName]]) -> None:
        for source, target in links:
            self._network.heal(source, target)
        for node in self._nodes.values():
            if node.member is not None:
                node.member.resume_io()

    def _end_noise(self) -> None:
        self._network.doubled = self._network.late = 0.0

    def _end_outage(self) -> None:
        self._etcd.outage -= 1
        self._etcd.changed()

    # Orders.

    def _order(self, fault: Fault, region: RegionName) -> None:
        record = self._etcd.record
        if record is None or fault.order is None:
            return
        regions = self._plan.regions
        about = regions[int(fault.amount * len(regions)) % len(regions)] if region == record.leader else region
        if fault.order == "resume":
            self._repeat_resume_order(regions.index(record.leader))
        else:
            self._send_order(record.leader, fault.order, None if fault.order == "pause" else about)

    def _repeat_resume_order(self, baseline: int) -> None:
        """Order the end of a pause until the record shows it, from one region after the other."""
        record = self._etcd.record
        if record is not None and not record.automatic:
            self._send_order(self._plan.regions[baseline % len(self._plan.regions)], "resume", None)
            self._scheduler.after(ORDER_REPEATED_S, self._repeat_resume_order, baseline + 1)

    def _send_order(self, to: RegionName, kind: OrderKind, about: RegionName | None) -> None:
        self._tickets += 1
        self._scheduler.trace_line(f"ORDER {kind} {about} to {to}")
        self._nodes[to].deliver_to_cell(Order(ticket=self._tickets, kind=kind, region=about, by="the simulation"))


def _is_rejoining(node: Node) -> bool:
    core = node.core
    assert core is not None, "only a running agent rejoins"
    return any(machine.state == "rejoining" for machine in core.machines.values())


def _remove_amount(amounts: dict[RegionName, float], region: RegionName) -> None:
    amounts.pop(region, None)

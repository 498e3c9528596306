"""Runs one fault plan: assembles virtual time, models, faults, clients and checkers, and reports the result."""

from __future__ import annotations

import time
import traceback
from collections import Counter
from dataclasses import dataclass, field

from infra.simulation.checkers import Checkers, Liveness, Violation
from infra.simulation.etcd import Etcd
from infra.simulation.faults import Injector
from infra.simulation.member import Member
from infra.simulation.network import Network
from infra.simulation.node import Node
from infra.simulation.plans import FaultPlan, draw_plan
from infra.simulation.scheduler import Scheduler
from infra.simulation.workload import Workload
from regions.failover.settings import DEFAULTS, CellRegions, Settings
from regions.identity import RegionName

MINUTES = 1.5
LEADER_FAULTS = (
    "crash-region",
    "crash-in-record",
    "pause-region",
    "kill-ledger",
    "isolate",
    "isolate-in",
    "isolate-out",
    "hang-disk",
)


@dataclass(slots=True, kw_only=True)
class Report:
    """The result of one run.

    Attributes:
        plan: The plan that was run.
        violation: The violated invariant, in one line; None if all held.
        checker: The checker that found the violation.
        recoveries_s: Seconds from each fault that took the leader away until another region served.
        transitions: How often each transition of the core's table was taken, as ``before -> after``.
        facts: How many facts each checker compared.
        commits: Writes whose commit a client was informed of.
        begun: Writes that clients began.
        reads: Strong reads that were answered as current.
        epochs: The last epoch.
        events: Number of scheduled calls that were made.
        seconds: Virtual seconds until the end of the run.
        cpu_s: Processor seconds.
        trace: The lines of the trace, if the run was traced.
    """

    plan: FaultPlan
    violation: str | None = None
    checker: str | None = None
    recoveries_s: list[float] = field(default_factory=list[float])
    transitions: Counter[str] = field(default_factory=Counter[str])
    facts: Counter[str] = field(default_factory=Counter[str])
    commits: int = 0
    begun: int = 0
    reads: int = 0
    epochs: int = 0
    events: int = 0
    seconds: float = 0.0
    cpu_s: float = 0.0
    trace: list[str] | None = None


class Run:
    """One run of a plan, with its own models, clients and checkers."""

    def __init__(self, plan: FaultPlan, *, traced: bool = False, settings: Settings = DEFAULTS) -> None:
        self.plan = plan
        self.settings = settings
        self.scheduler = Scheduler(plan.seed, traced=traced)
        self.network = Network(self.scheduler, rtt_s=plan.rtt_s, jitter_s=plan.jitter_s, loss=plan.loss)
        self.checkers = Checkers(self.scheduler)
        regions = plan.regions
        voters = regions[: plan.voters]
        self.etcd = Etcd(
            self.scheduler,
            self.network,
            regions=regions,
            voters=voters,
            leader=regions[plan.etcd_leader],
            written=self.checkers.record_written,
        )
        cell = CellRegions(voters=voters, regions=regions)
        self.nodes: dict[RegionName, Node] = {}
        members: dict[RegionName, Member] = {}
        for index, region in enumerate(regions):
            member = None
            if index < plan.voters + plan.spares:
                member = members[region] = Member(self.scheduler, self.network, region, 1 << index, self.checkers)
                member.peers = members
            self.nodes[region] = Node(
                self.scheduler,
                self.network,
                self.etcd,
                region=region,
                cell=cell,
                settings=settings,
                member=member,
                listener=self.checkers,
            )
        for node in self.nodes.values():
            node.peers = self.nodes
        self.checkers.set_nodes(self.nodes)
        self.workload = Workload(self.scheduler, self.network, self.etcd, self.nodes, self.checkers)
        self.injector = Injector(self.scheduler, self.network, self.etcd, self.nodes, plan)

    def run(self) -> Report:
        """Run the plan to its end or to the first violation."""
        report = Report(plan=self.plan, seconds=self.plan.seconds)
        begun = time.process_time()
        for node in self.nodes.values():
            self.scheduler.after(self.scheduler.between(0, 0.3), node.start)
        self.workload.start()
        self.injector.start()
        try:
            self.scheduler.run_until(self.plan.seconds)
            self._judge_end()
        except Violation as violated:
            report.violation, report.checker = str(violated), violated.checker
        except AssertionError:
            line = traceback.format_exc().strip().splitlines()
            place = next((text.strip() for text in reversed(line) if text.strip().startswith("File")), "")
            report.violation, report.checker = (
                f"assertion at {self.scheduler.now:.3f} s: {line[-1]} {place}",
                "assertion",
            )
        report.cpu_s = time.process_time() - begun
        self._fill(report)
        return report

    def _judge_end(self) -> None:
        self.checkers.check_facts()
        if self._is_majority_lost():
            return
        commits_at, end = self.workload.commits_at, self.scheduler.now
        if self.plan.faults:
            healed_at = self.plan.healed_at
            hold_down_s = self._hold_down_s(healed_at)
            Liveness.check(self.checkers, commits_at, healed_at=healed_at, end=end, hold_down_s=hold_down_s)
        else:
            Liveness.check_quiet(self.checkers, commits_at, end=end)

    def _hold_down_s(self, healed_at: float) -> float:
        """How long rule 17 may delay the next failover; 0 if there were too few failovers in a short time."""
        settings = self.settings
        begun = {record.epoch: time_s for time_s, record in self.checkers.records if record.phase == "serving"}
        recent = [time_s for time_s in begun.values() if time_s > healed_at - settings.hold_down_s]
        return settings.hold_down_s if len(recent) >= settings.failovers_max else 0.0

    def _is_majority_lost(self) -> bool:
        """Whether a majority cannot vote because a promise was lost, which only an operator can repair.

        If one of three voters has lost its promise, both others must be able to vote. A member that was rewound and
        has not caught up (rule 12), or that has no complete data, would wait for the lost one forever.
        """
        record = self.etcd.record
        voters = [self.nodes[region] for region in (() if record is None else record.voters)]
        refusing = sum(1 for node in voters if node.disk is None)
        absent = sum(1 for node in voters if node.member is not None and not node.member.exists)
        below = sum(1 for node in voters if node.disk is not None and self._is_below_floor(node))
        return refusing > 0 and 2 * (refusing + absent + below) > len(voters)

    @staticmethod
    def _is_below_floor(node: Node) -> bool:
        member, promise = node.member, node.disk
        if member is None or promise is None or not member.exists:
            return False
        return max(member.wal.ancestry(len(member.wal.entries)), default=0) < promise.floor

    def _fill(self, report: Report) -> None:
        report.transitions = Counter({f"{a} -> {b}": count for (a, b), count in self.checkers.transitions.items()})
        report.facts = self.checkers.facts
        report.commits, report.begun = self.workload.committed, self.workload.begun
        report.reads = self.workload.reads
        report.epochs = max((record.epoch for _, record in self.checkers.records), default=0)
        report.events = self.scheduler.events
        report.seconds = self.scheduler.now
        report.trace = self.scheduler.trace
        report.recoveries_s = self._recoveries()

    def _recoveries(self) -> list[float]:
        """Seconds from each fault that took the leader away until a region served a later epoch."""
        found: list[float] = []
        served_ledgers = self.checkers.serving_starts
        taken = 0.0
        for at, kind, region, leads in self.injector.injected:
            if not leads or kind not in LEADER_FAULTS or at < taken:
                continue
            led = max((epoch for time_s, one, epoch in served_ledgers if one == region and time_s <= at), default=0)
            later = next((time_s for time_s, _, epoch in served_ledgers if time_s > at and epoch > led), None)
            if later is not None:
                found.append(later - at)
                taken = later
        return found


def run_plan(plan: FaultPlan, *, traced: bool = False) -> Report:
    """Run a plan, and return its report."""
    return Run(plan, traced=traced).run()


def run_seed(seed: int, *, minutes: float = MINUTES, traced: bool = False) -> Report:
    """Draw the plan of a seed, run it, and return its report."""
    return run_plan(draw_plan(seed, seconds=60 * minutes), traced=traced)

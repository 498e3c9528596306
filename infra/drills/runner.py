"""Runs a drill: steady state, load, method, rollback, convergence, judgement. The rollback always runs.

Decides when a drill may begin, and when the deployment has converged. The drill defines what is done (`drill.py`), the
target how (`target.py`), and the judges what the result means (`judges.py`).
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg

from infra.drills.clients import LoadPlan, running_load
from infra.drills.drill import Drill, Phase, Step
from infra.drills.evidence import NOTHING_HELD, Evidence, Holdings, Regions, WriteOutage
from infra.drills.journal import Journal
from infra.drills.judges import Check, has_enough, judge
from infra.drills.target import Target
from infra.supervisor.errors import DeploymentError
from infra.supervisor.status import failover_of

SAMPLE_S = 0.1
WATCH_S = 0.05
"""Intervals between two samples of the agents' status; `WATCH_S` applies while a step waits for a phase, a refusal or a
message. Each sample takes 6 ms of a processor, which the regions may need."""

PHI_S = 0.1
DRIFT_S = 0.1
HEALTHY_WITHIN_S = 120.0
CONVERGED_WITHIN_S = 60.0
ENOUGH_WITHIN_S = 60.0
"""How much longer the load may last in each phase until it has the least numbers that a drill declares."""

ENOUGH_POLL_S = 0.25
STEADY_WITHIN_S = 15.0
HELD_DOWN_S_MAX = 60.0

Say = Callable[[str], None]


class DrillRefused(DeploymentError):
    """The deployment is not in a state in which a drill can be run or judged."""


class FaultUnavailable(DeploymentError):
    """A fault of the drill cannot be injected here; the message says what it needs. Nothing was done."""


class StepFailed(Exception):
    """The condition that a step waits for was not met in time; the drill is rolled back and fails."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How to treat a deployment that is not in a steady state.

    Attributes:
        steady_within_s: How long a drill waits for a steady state, seconds.
        force: Whether the drill then begins without one.
    """

    steady_within_s: float = STEADY_WITHIN_S
    force: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """The result of a drill.

    Attributes:
        evidence: The journal, the contents of the databases, and the roles.
        seed: Seed of the clients' pauses.
        checks: The results of the judges.
        seconds: Duration, including rollback and convergence.
        trouble: Why the method ended early, or None.
    """

    evidence: Evidence
    seed: int
    checks: Sequence[Check]
    seconds: float
    trouble: str | None

    @property
    def drill(self) -> Drill:
        """The drill."""
        return self.evidence.drill

    @property
    def records(self) -> Sequence[Mapping[str, Any]]:
        """The records of the journal."""
        return self.evidence.records

    @property
    def write_outages(self) -> list[WriteOutage]:
        """The write outages."""
        return self.evidence.write_outages

    @property
    def passed(self) -> bool:
        """Whether the method was executed to its end, there are checks, and all of them passed."""
        return self.trouble is None and bool(self.checks) and all(not check.failed for check in self.checks)

    @property
    def longest_stall_s(self) -> float | None:
        """The longest write outage: 0 if there was none, None if there was none and no write was acknowledged."""
        if not self.evidence.of_kind("acknowledged") and not self.write_outages:
            return None
        return max((stall.seconds for stall in self.write_outages), default=0.0)


async def run_drill(  # noqa: PLR0913 - the parts of a run, by name
    target: Target, drill: Drill, journal_path: Path, *, seed: int, patience: Patience, say: Say
) -> Outcome:
    """Run a drill on a running deployment.

    Args:
        target: The deployment.
        drill: The method and the expectations.
        journal_path: The journal's file; it must not exist.
        seed: Seed of the clients' pauses.
        patience: How to treat a deployment that is not healthy.
        say: Receives lines about the progress.

    Raises:
        DrillRefused: The deployment is not healthy.
        FaultUnavailable: This deployment or machine lacks what a step needs.
    """
    lacking = target.lacks(drill)
    if lacking is not None:
        raise FaultUnavailable(lacking)
    began = time.monotonic()
    status = await _until_healthy(target, patience.steady_within_s)
    if status is None and not patience.force:
        missing = [text for region in (await target.status())["regions"] for text in region["missing"]]
        reason = "; ".join(missing[:3]) or "no leader serves"
        raise DrillRefused(f"the deployment is not healthy ({reason}); a drill needs a steady state, or use --force")
    if status is not None:
        await _until_no_hold_down(target, say)
    status = status or await target.status()
    leader = status["cells"][0]["leader"]
    edges = target.edges
    homes = [region for region in edges if region != leader] if drill.load.edges == "followers" else list(edges)
    thread = f"drill-{drill.name}-{secrets.token_hex(4)}"
    load_plan = LoadPlan(edges=edges, site=await target.create_site(), thread=thread, homes=homes)
    target.names.clear()
    regions = target.regions(leader)
    async with Journal(journal_path) as journal:
        run = _Run(target, journal, say, thread, regions)
        trouble = await run.carry_out(drill, load_plan, seed)
        holdings = await run.converged(load_plan)
        await run.sample()
    evidence = Evidence(
        drill=drill, records=journal.records, holdings=holdings, regions=regions, end=round(journal.now, 6)
    )
    return Outcome(
        evidence=evidence,
        seed=seed,
        checks=judge(evidence),
        seconds=time.monotonic() - began,
        trouble=trouble,
    )


async def _until_healthy(target: Target, within_s: float) -> dict[str, Any] | None:
    """Return the first status in which all regions are healthy and the cell serves; None if there is none in time."""
    deadline = time.monotonic() + within_s
    while True:
        status = await target.status()
        serving = status["cells"][0]["phase"] == "serving"
        if serving and all(region["healthy"] for region in status["regions"]):
            return status
        if time.monotonic() > deadline:
            return None
        await asyncio.sleep(0.2)


async def _until_no_hold_down(target: Target, say: Say) -> None:
    """Wait until earlier failovers no longer delay the next failover by suspicion (rule 17).

    Consecutive drills cause more failovers in a minute than a deployment has in a year.
    """
    deadline, reported = time.monotonic() + HELD_DOWN_S_MAX, False
    while time.monotonic() < deadline:
        agents = await target.agents()
        held_s = max((failover_of(agent).get("held_down_s") or 0.0 for agent in agents.values()), default=0.0)
        if not held_s:
            return
        if not reported:
            say(f"  waits {held_s:.0f} s for the end of the hold-down that follows several failovers")
            reported = True
        await asyncio.sleep(0.2)


class _Run:
    """One run of a drill."""

    def __init__(self, target: Target, journal: Journal, say: Say, thread: str, regions: Regions) -> None:
        self._target = target
        self._regions = regions
        self._journal = journal
        self._say = say
        self._killed: set[str] = set()
        self._killed_processes: set[tuple[str, str]] = set()
        self._paused: set[tuple[str, str | None]] = set()
        self._offsets: dict[str, float] = {}
        self._thread = thread
        self._faulty_disks: set[str] = set()
        self._last: tuple[Any, ...] | None = None
        self._phi_at = 0.0
        self._current: dict[str, Any] = {}
        self._watches = False

    async def carry_out(self, drill: Drill, load_plan: LoadPlan, seed: int) -> str | None:
        """Run load, method and rollback; return why the method ended early, or None."""
        trouble: str | None = None
        async with self._sampling(), running_load(load_plan, drill.load, self._journal, seed=seed):
            try:
                await self._journal.note("phase", phase="before")
                await asyncio.sleep(drill.load.before_s)
                await self._until_enough(drill, "before")
                await self._carry_out(drill.method)
                await self._until_enough(drill, "during")
                await self._journal.note("phase", phase="after")
                await asyncio.sleep(drill.load.after_s)
                await self._until_enough(drill, "after")
                await self._journal.note("phase", phase="over")
            except (StepFailed, DeploymentError) as error:
                trouble = str(error)
                self._say(f"  {trouble}")
            finally:
                await asyncio.shield(self._roll_back(drill))
        return trouble

    async def _until_enough(self, drill: Drill, phase: Phase) -> None:
        """Extend the load until the phase has enough facts, within a bound; the judges report missing facts."""
        deadline = time.monotonic() + ENOUGH_WITHIN_S
        while time.monotonic() < deadline:
            known = Evidence(
                drill=drill, records=self._journal.records, holdings=NOTHING_HELD, regions=self._regions,
                end=self._journal.now,
            )  # fmt: skip
            if has_enough(known, phase):
                return
            await asyncio.sleep(ENOUGH_POLL_S)

    async def _carry_out(self, method: Sequence[Step]) -> None:
        """Execute the steps in order; record when each begins and ends."""
        first = next(number for number, step in enumerate(method) if not step.waits)
        for number, step in enumerate(method):
            if number == first:
                await self._journal.note("phase", phase="during")
            which = {"step": number + 1, "do": step.do, "label": step.label}
            await self._journal.note("began", **which)
            await self._do(step)
            await self._journal.note("done", **which)

    async def _roll_back(self, drill: Drill) -> None:
        """Undo all faults. A fault that cannot be undone does not stop the others from being undone."""
        with contextlib.suppress(DeploymentError):
            await self._target.heal()
        for region in sorted(self._offsets):
            with contextlib.suppress(DeploymentError):
                await self._set_clock(region, 0.0)
                await self._journal.note("step", do="clock", regions=[region], offset_s=0.0)
        for region in sorted(self._faulty_disks):
            with contextlib.suppress(DeploymentError):
                await self._mend_disk(region)
        for region, process in sorted(self._paused, key=str):
            with contextlib.suppress(DeploymentError):
                await self._target.resume(region, process)
                await self._journal.note("step", do="resume", regions=[region], process=process)
        for region in sorted(self._killed):
            with contextlib.suppress(DeploymentError):
                await self._target.restart(region)
        for step in drill.rollback:
            with contextlib.suppress(DeploymentError, StepFailed):
                await self._do(step)
        await _until_healthy(self._target, HEALTHY_WITHIN_S)
        await self._record_recovery()
        self._paused.clear()

    async def converged(self, load_plan: LoadPlan) -> Holdings:
        """Wait, within a bound, until every view and every edge has what the ledger has; return the contents."""
        deadline = time.monotonic() + CONVERGED_WITHIN_S
        while True:
            status = await self._target.status()
            leader = status["cells"][0]["leader"]
            if leader is not None:
                with contextlib.suppress(psycopg.Error):
                    holdings = await self._target.holdings(leader, load_plan.site, load_plan.thread)
                    ledger = {comment for comment, _, _ in holdings.ledger}
                    held = [*holdings.views.values(), *holdings.pages.values()]
                    done = all(set(ids) == ledger for ids in held)
                    if done or time.monotonic() > deadline:
                        return holdings
            if time.monotonic() > deadline + CONVERGED_WITHIN_S:
                raise DrillRefused("the databases do not answer; see `palaver status`")
            await asyncio.sleep(0.2)

    @asynccontextmanager
    async def _sampling(self) -> AsyncGenerator[None]:
        async def forever() -> None:
            while True:
                await self.sample()
                await asyncio.sleep(WATCH_S if self._watches else SAMPLE_S)

        sampling = asyncio.create_task(forever(), name="samples")
        try:
            yield
        finally:
            sampling.cancel()
            await asyncio.gather(sampling, return_exceptions=True)

    async def sample(self) -> None:
        """Read the agents' status, and record it if it changed."""
        agents = await self._target.agents()
        if self._journal.now - self._phi_at > PHI_S:
            self._phi_at = self._journal.now
            await self._journal.note("phi", phi={region: phi_of(agent) for region, agent in agents.items()})
        known = [agent for agent in agents.values() if agent.get("epoch") is not None]
        if not known:
            return
        newest = max(known, key=lambda agent: (agent["epoch"], _phase_rank(agent["phase"])))
        # A region's refusal does not count while another region accepts writes.
        taken = any(failover_of(agent).get("takes_writes") for agent in known)
        refusal = None if taken else next((agent["refusal"] for agent in known if agent.get("refusal")), None)
        self._current = {name: newest[name] for name in ("epoch", "leader", "phase", "reason")} | {"refusal": refusal}
        if (shown := tuple(self._current.values())) != self._last:
            self._last = shown
            await self._journal.note("status", **self._current)
            self._say(f"  {self._journal.now:7.3f} s  epoch {newest['epoch']} {newest['phase']} {newest['leader']}")

    async def _do(self, step: Step) -> None:
        self._watches = step.do in {"until-phase", "until-refused"}
        match step.do:
            case "sleep":
                await asyncio.sleep(step.seconds)
            case "until-phase":
                await self._until(lambda: self._current.get("phase") == step.phase, step, f"phase {step.phase}")
            case "until-writes":
                since = self._journal.now
                await self._until(lambda: self._acknowledged_after(since), step, "a write that is acknowledged")
            case "until-refused":
                await self._until(lambda: bool(self._current.get("refusal")), step, "a reason for refused writes")
            case "until-said":
                await self._until_said(step)
            case "until-healthy":
                if await _until_healthy(self._target, step.within_s) is None:
                    raise StepFailed(f"not all regions were healthy within {step.within_s:g} s")
                await self._record_recovery()
            case _:
                await self._act(step)

    async def _until(self, holds: Callable[[], bool], step: Step, what: str) -> None:
        deadline = time.monotonic() + step.within_s
        while not holds():
            if time.monotonic() > deadline:
                raise StepFailed(f"{what} did not come within {step.within_s:g} s")
            await asyncio.sleep(0.005)

    async def _until_said(self, step: Step) -> None:
        regions = self._target.resolve(step.target, self._current.get("leader"))
        deadline = time.monotonic() + step.within_s
        while True:
            agents = await self._target.agents()
            silent = [one for one in regions if (step.says or "") not in (agents.get(one, {}).get("refusal") or "")]
            if not silent:
                return
            if time.monotonic() > deadline:
                raise StepFailed(f"{', '.join(silent)} did not report {step.says!r} within {step.within_s:g} s")
            await asyncio.sleep(WATCH_S)

    def _acknowledged_after(self, since: float) -> bool:
        for record in reversed(self._journal.records):
            if record["t"] < since:
                return False
            if record["kind"] == "acknowledged" and record["sent"] >= since:
                return True
        return False

    async def _record_recovery(self) -> None:
        for region in sorted(self._killed):
            await self._journal.note("step", do="restarted", regions=[region])
        for region, process in sorted(self._killed_processes):
            # The supervisor restarts a killed process.
            await self._journal.note("step", do="restarted", regions=[region], process=process)
        self._killed.clear()
        self._killed_processes.clear()

    async def _act(self, step: Step) -> None:
        leader = self._current.get("leader")
        regions = self._target.resolve(step.target, leader)
        if step.named is not None:
            self._target.names[step.named] = regions
        others = [one for one in self._target.edges if one not in regions or step.target == "all"]
        if step.other is not None:
            others = list(self._target.resolve(step.other, leader))
        where = ", ".join(regions) + (f"/{step.process}" if step.process else "")
        self._say(f"  {self._journal.now:7.3f} s  {step.do} {where}")
        shown = others if step.do in ("cut", "delay") else []
        record: dict[str, Any] = {"do": step.do, "regions": list(regions), "process": step.process, "others": shown}
        if step.do == "resume":
            # Recorded when it is done: until then the edge cannot answer.
            await asyncio.gather(*(self._act_on(step, region) for region in regions))
            await self._journal.note("step", **record)
            return
        await self._journal.note("step", **record, **_extent(step))
        match step.do:
            case "cut" | "delay":
                await self._target.change_network(step, regions, others)
            case "heal":
                await self._target.heal()
            case "switch":
                await self._target.switch(regions[0])
            case _:
                await asyncio.gather(*(self._act_on(step, region) for region in regions))

    async def _act_on(self, step: Step, region: str) -> None:
        process = step.process
        match step.do:
            case "kill":
                if process is None:
                    self._killed.add(region)
                else:
                    self._killed_processes.add((region, process))
                await (self._target.kill_with_etcd(region) if step.leads_etcd else self._target.kill(region, process))
            case "pause":
                self._paused.add((region, process))
                await self._target.pause(region, process)
            case "resume":
                await self._target.resume(region, process)
                self._paused.discard((region, process))
            case "promote":
                await self._target.promote_by_hand(region, self._thread, leave_running=step.leave_running)
            case "clock" | "drift":
                await self._act_on_clock(step, region)
            case "fill-disk" | "stall-disk" | "mend-disk":
                await self._act_on_disk(step, region)
            case "restart":
                self._killed.add(region)  # until a status shows that it is healthy
                await self._target.restart(region)
            case _:
                raise AssertionError(step.do)

    async def _act_on_disk(self, step: Step, region: str) -> None:
        if step.do == "mend-disk":
            await self._mend_disk(region)
            return
        self._faulty_disks.add(region)
        if step.do == "fill-disk":
            await self._target.fill_disk(region)
        else:
            await self._target.stall_disk(region, step.stall_ms)

    async def _act_on_clock(self, step: Step, region: str) -> None:
        if step.do == "clock":
            await self._set_clock(region, step.offset_s or 0.0)
        else:
            await self._drift(region, step.rate, step.seconds)

    async def _drift(self, region: str, rate: float, seconds: float) -> None:
        """Let a clock gain or lose in small steps; a large step could stretch a sleep."""
        before, began = self._offsets.get(region, 0.0), time.monotonic()
        while (passed := min(time.monotonic() - began, seconds)) < seconds:
            await self._set_clock(region, before + rate * passed)
            await asyncio.sleep(DRIFT_S)
        await self._set_clock(region, before + rate * seconds)

    async def _set_clock(self, region: str, offset_s: float) -> None:
        self._offsets[region] = offset_s
        await self._target.set_clock(region, offset_s)

    async def _mend_disk(self, region: str) -> None:
        await self._target.mend_disk(region)
        self._faulty_disks.discard(region)


def _extent(step: Step) -> dict[str, object]:
    """Return the numbers of a clock step, for the journal."""
    match step.do:
        case "clock":
            return {"offset_s": step.offset_s}
        case "drift":
            return {"rate": step.rate, "seconds": step.seconds}
        case _:
            return {}


def phi_of(agent: Mapping[str, Any]) -> dict[str, float]:
    """Return the phi that an agent reports for each other region; empty if it reports none."""
    phi: dict[str, float] = failover_of(agent).get("phi") or {}
    return phi


def _phase_rank(phase: str | None) -> int:
    order = ("bootstrapping", "recruiting", "promoting", "establishing", "serving")
    return order.index(phase) if phase in order else -1

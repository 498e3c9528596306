"""Tests the runner on a fake deployment: what each step does, and that the rollback undoes it.

A drill with an unavailable fault is refused before its first step.
"""

import asyncio
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, cast

import pytest

from infra.drills.clients import LoadPlan
from infra.drills.drill import Drill, Load, Phase
from infra.drills.evidence import Evidence, Holdings, Regions
from infra.drills.report import PHASE_COLOURS, PHASE_MEANINGS, facts_of, page_of
from infra.drills.runner import FaultUnavailable, Outcome, Patience, run_drill
from infra.drills.target import Target
from infra.supervisor.errors import OrderRefused

ROLES = {"leader": ("east",), "followers": ("west", "south")}

EXPECT = {"fewest": {"before": {"follower": 1}, "during": {}, "after": {"follower": 1}}}

QUIET = Load(writers=1, unkeyed=0, readers=0, before_s=0, after_s=0)


class FakeTarget:
    """Records the calls, and refuses those that a test selects."""

    def __init__(self, *, lacking: str | None = None, refuses: str = "") -> None:
        self.edges = {"east": "http://127.0.0.1:1", "west": "http://127.0.0.1:1", "south": "http://127.0.0.1:1"}
        self.names: dict[str, tuple[str, ...]] = {}
        self.thread = ""
        self.calls: list[tuple[object, ...]] = []
        self.says: dict[str, str | None] = {}
        self.held_down_s: list[float] = []
        self.resumes_within_s = 0.0
        self._lacking = lacking
        self._refuses = refuses

    def lacks(self, drill: Drill) -> str | None:
        return self._lacking if drill.needs_clocks or drill.needs_disks else None

    def resolve(self, target: str, leader: str | None) -> tuple[str, ...]:
        del leader
        return self.names.get(target) or ROLES[target]

    def regions(self, leader: str | None) -> Regions:
        del leader
        return Regions(every=list(self.edges), roles={"leader": "east", "follower": "west", "other-follower": "south"})

    async def status(self) -> dict[str, Any]:
        regions: list[dict[str, Any]] = [{"region": region, "healthy": True, "missing": []} for region in self.edges]
        return {"cells": [{"leader": "east", "phase": "serving"}], "regions": regions}

    async def agents(self) -> dict[str, dict[str, Any]]:
        held_s = self.held_down_s.pop(0) if self.held_down_s else 0.0
        agents = {region: {"epoch": None, "refusal": text} for region, text in self.says.items()}
        return agents | ({"south": {"epoch": None, "failover": {"held_down_s": held_s}}} if held_s else {})

    async def create_site(self) -> str:
        return "s"

    async def holdings(self, leader: str, site: str, thread: str) -> Holdings:
        del leader, site, thread
        return Holdings(ledger=[], views={}, pages={}, fences=[])

    async def _record(self, *what: object) -> None:
        self.calls.append(what)
        if self._refuses in {what[0], f"{what[0]} {what[-1]}"}:
            raise OrderRefused("no")

    async def heal(self) -> None:
        await self._record("heal")

    async def kill(self, region: str, process: str | None) -> None:
        await self._record("kill", region, process)

    async def kill_with_etcd(self, region: str) -> None:
        await self._record("kill with etcd", region)

    async def pause(self, region: str, process: str | None) -> None:
        await self._record("pause", region, process)

    async def resume(self, region: str, process: str | None) -> None:
        await asyncio.sleep(self.resumes_within_s)
        await self._record("resume", region, process)

    async def restart(self, region: str) -> None:
        await self._record("restart", region)

    async def promote_by_hand(self, region: str, thread: str, *, leave_running: bool) -> None:
        self.thread = thread
        await self._record("promote", region, thread, leave_running)

    async def fill_disk(self, region: str) -> None:
        await self._record("fill", region)

    async def stall_disk(self, region: str, stall_ms: float) -> None:
        await self._record("stall", stall_ms, region)

    async def mend_disk(self, region: str) -> None:
        await self._record("mend", region)

    async def set_clock(self, region: str, offset_s: float) -> None:
        await self._record("clock", region, offset_s)


def drill_of(*method: Mapping[str, object]) -> Drill:
    return Drill.model_validate(
        {"name": "d", "title": "T", "hypothesis": "H.", "load": QUIET, "method": method, "expect": EXPECT}
    )


async def outcome_of(target: FakeTarget, tmp_path: Path, *method: Mapping[str, object]) -> Outcome:
    return await run_drill(
        cast("Target", target), drill_of(*method), tmp_path / "journal", seed=1, patience=Patience(),
        say=lambda _: None,
    )  # fmt: skip


async def carry_out(target: FakeTarget, tmp_path: Path, *method: Mapping[str, object]) -> str | None:
    return (await outcome_of(target, tmp_path, *method)).trouble


@pytest.fixture(autouse=True)
def no_load(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("infra.drills.runner.LoadPlan", partial(LoadPlan, give_up_s=0))
    monkeypatch.setattr("infra.drills.runner.ENOUGH_WITHIN_S", 0)


async def test_the_rollback_resets_a_clock(tmp_path: Path) -> None:
    target = FakeTarget()
    assert await carry_out(target, tmp_path, {"do": "clock", "offset_s": 60}) is None
    assert target.calls == [("clock", "east", 60.0), ("heal",), ("clock", "east", 0.0)]


async def test_the_rollback_resets_a_clock_whose_change_failed(tmp_path: Path) -> None:
    target = FakeTarget(refuses="clock")
    assert await carry_out(target, tmp_path, {"do": "clock", "offset_s": 60}) == "no"
    assert target.calls[-1] == ("clock", "east", 0.0)


async def test_a_drift_starts_at_the_current_offset_and_is_undone(tmp_path: Path) -> None:
    target = FakeTarget()
    steps = [{"do": "clock", "offset_s": 10}, {"do": "drift", "rate": -0.5, "seconds": 0.3}]
    assert await carry_out(target, tmp_path, *steps) is None
    offsets = [float(cast("float", one[2])) for one in target.calls if one[0] == "clock"]
    assert offsets[:-1] == sorted(offsets[:-1], reverse=True)
    assert len(offsets) >= 4
    assert offsets[-2:] == [pytest.approx(9.85), 0.0]


async def test_the_rollback_restarts_a_region_killed_with_etcds_leader(tmp_path: Path) -> None:
    target = FakeTarget(refuses="kill with etcd")
    assert await carry_out(target, tmp_path, {"do": "kill", "leads_etcd": True}) == "no"
    assert target.calls == [("kill with etcd", "east"), ("heal",), ("restart", "east")]


async def test_the_rollback_restarts_a_region_whose_ledger_was_promoted_by_hand(tmp_path: Path) -> None:
    target = FakeTarget()
    steps = [{"do": "kill", "as": "dead"}, {"do": "promote", "target": "dead", "leave_running": True}]
    assert await carry_out(target, tmp_path, *steps) is None
    assert target.thread.startswith("drill-d-")
    assert target.calls[1:] == [("promote", "east", target.thread, True), ("heal",), ("restart", "east")]


async def test_disk_steps_act_on_the_disks_of_their_targets(tmp_path: Path) -> None:
    target = FakeTarget()
    steps: list[Mapping[str, object]] = [
        {"do": "stall-disk", "stall_ms": 300, "as": "slow"},
        {"do": "mend-disk", "target": "slow"},
        {"do": "fill-disk", "target": "followers"},
        {"do": "mend-disk", "target": "followers"},
    ]
    assert await carry_out(target, tmp_path, *steps) is None
    both = [(what, region) for what in ("fill", "mend") for region in ("west", "south")]
    assert target.calls == [("stall", 300.0, "east"), ("mend", "east"), *both, ("heal",)]


@pytest.mark.parametrize("fault", ["fill-disk", "stall-disk"])
async def test_the_rollback_mends_a_disk_when_a_later_step_fails(tmp_path: Path, fault: str) -> None:
    target = FakeTarget()
    steps = [{"do": fault, "target": "followers"}, {"do": "until-refused", "within_s": 0.05}]
    assert "a reason for refused writes did not come" in str(await carry_out(target, tmp_path, *steps))
    assert target.calls[-2:] == [("mend", "south"), ("mend", "west")]


async def test_the_rollback_mends_all_disks_when_a_fault_reached_only_some(tmp_path: Path) -> None:
    target = FakeTarget(refuses="fill south")
    assert await carry_out(target, tmp_path, {"do": "fill-disk", "target": "followers"}) == "no"
    assert target.calls[-2:] == [("mend", "south"), ("mend", "west")]


async def test_the_rollback_mends_the_other_disks_when_one_cannot_be_mended(tmp_path: Path) -> None:
    target = FakeTarget(refuses="mend south")
    await carry_out(target, tmp_path, {"do": "stall-disk", "target": "followers"})
    assert target.calls[-2:] == [("mend", "south"), ("mend", "west")]


@pytest.mark.parametrize("step", [{"do": "clock", "offset_s": 1}, {"do": "fill-disk"}])
async def test_a_drill_with_an_unavailable_fault_is_refused_before_its_first_step(
    tmp_path: Path, step: Mapping[str, object]
) -> None:
    target = FakeTarget(lacking="this fault cannot be injected here: no way")
    with pytest.raises(FaultUnavailable, match="this fault cannot be injected here: no way"):
        await carry_out(target, tmp_path, step)
    assert target.calls == []
    assert not (tmp_path / "journal").exists()
    assert await carry_out(target, tmp_path, {"do": "heal"}) is None


async def test_until_said_fails_the_drill_when_an_agent_does_not_report_the_text(tmp_path: Path) -> None:
    target = FakeTarget()
    target.says = {"east": "the disk of its ledger is full; it takes part again", "west": None}
    until_said = {"do": "until-said", "says": "is full", "within_s": 0.1}
    heal = {"do": "heal"}
    assert await carry_out(target, tmp_path, heal, until_said | {"target": "leader"}) is None
    (tmp_path / "journal").unlink()
    trouble = await carry_out(target, tmp_path, heal, until_said | {"target": "followers"})
    assert trouble == "west, south did not report 'is full' within 0.1 s"


async def test_a_drill_waits_for_the_end_of_the_hold_down(tmp_path: Path) -> None:
    target = FakeTarget()
    target.held_down_s = [9.0, 8.8]
    lines: list[str] = []
    drill = drill_of({"do": "heal"})
    await run_drill(cast("Target", target), drill, tmp_path / "journal", seed=1, patience=Patience(), say=lines.append)
    assert target.held_down_s == []
    assert lines[0] == "  waits 9 s for the end of the hold-down that follows several failovers"


async def test_a_drill_on_a_deployment_that_answers_nothing_does_not_pass(tmp_path: Path) -> None:
    outcome = await outcome_of(FakeTarget(), tmp_path, {"do": "clock", "offset_s": 60})
    assert outcome.trouble is None
    assert not outcome.passed
    held = [check.name for check in outcome.checks if not check.failed]
    assert held == ["every step is executed"]
    report = facts_of(outcome)
    assert {(row["phase"], row["role"], row["least"]) for row in report["writes"]} >= {
        ("before", "follower", 1),
        ("during", "follower", 0),
        ("after", "follower", 1),
    }
    page = page_of(outcome)
    assert "too little evidence: 0 samples, at least 2 needed" in page
    # The page explains the timeline to a reader who does not know failover.
    for explained in ("phi", "agents suspect a region from 8 on", "refused", "unknown", "recruiting", "serving"):
        assert explained in page
    assert all(page.count(colour) >= 1 for phase, colour in PHASE_COLOURS.items() if phase in PHASE_MEANINGS)


async def test_the_journal_has_phases_and_steps(tmp_path: Path) -> None:
    steps = [{"do": "sleep", "seconds": 0.01}, {"do": "clock", "offset_s": 60, "label": "wrong"}]
    outcome = await outcome_of(FakeTarget(), tmp_path, *steps)
    kinds = [record for record in outcome.records if record["kind"] in ("phase", "began", "done")]
    assert [record.get("phase") or (record["kind"], record["step"], record["label"]) for record in kinds] == [
        "before",
        ("began", 1, None),
        ("done", 1, None),
        "during",
        ("began", 2, "wrong"),
        ("done", 2, "wrong"),
        "after",
        "over",
    ]


async def test_an_edge_is_excused_until_its_region_is_resumed(tmp_path: Path) -> None:
    target = FakeTarget()
    target.resumes_within_s = 0.05
    outcome = await outcome_of(target, tmp_path, {"do": "pause"}, {"do": "resume", "target": "leader"})
    (began,) = [one["t"] for one in outcome.records if one["kind"] == "began" and one["do"] == "resume"]
    (done,) = [one["t"] for one in outcome.records if one["kind"] == "done" and one["do"] == "resume"]
    (span,) = outcome.evidence.edge_outages
    assert began + 0.05 <= span.until <= done


async def test_an_edge_is_excused_until_the_end_if_its_region_could_not_be_resumed(tmp_path: Path) -> None:
    target = FakeTarget(refuses="resume")
    outcome = await outcome_of(target, tmp_path, {"do": "pause"}, {"do": "resume", "target": "leader"})
    assert outcome.trouble == "no"
    (span,) = outcome.evidence.edge_outages
    assert span.until == outcome.evidence.end


async def test_a_killed_envoy_is_excused_until_the_deployment_is_healthy(tmp_path: Path) -> None:
    steps = [{"do": "kill", "process": "envoy"}, {"do": "until-healthy"}]
    outcome = await outcome_of(FakeTarget(), tmp_path, *steps)
    (span,) = outcome.evidence.edge_outages
    assert (span.region, span.until < outcome.evidence.phases["after"][0]) == ("east", True)


async def test_the_load_runs_until_a_phase_has_enough_facts_within_a_bound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def enough(evidence: Evidence, phase: Phase) -> bool:
        assert evidence.phases[phase][1] == evidence.end
        asked.append(phase)
        return asked.count(phase) == 2 and phase != "after"

    monkeypatch.setattr("infra.drills.runner.has_enough", enough)
    monkeypatch.setattr("infra.drills.runner.ENOUGH_POLL_S", 0.001)
    monkeypatch.setattr("infra.drills.runner.ENOUGH_WITHIN_S", 0.1)
    outcome = await outcome_of(FakeTarget(), tmp_path, {"do": "heal"})
    assert asked[:5] == ["before", "before", "during", "during", "after"]
    assert outcome.evidence.phases["after"][1] < outcome.evidence.end

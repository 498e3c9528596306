"""The runner on a deployment that is played: what a step asks for, and that whatever it hurt is made good again.

What cannot be hurt here is refused before anything is.
"""

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import pytest

from infra.drills.drill import Drill, Load, Phase
from infra.drills.evidence import Evidence, Holdings, Regions
from infra.drills.report import PHASE_COLOURS, PHASE_MEANINGS, facts_of, page_of
from infra.drills.runner import FaultUnavailable, Outcome, Patience, run_drill
from infra.drills.target import Target
from infra.supervisor.errors import OrderRefused

ROLES = {"leader": ("east",), "followers": ("west", "south")}

EXPECT = {"fewest": {"before": {"follower": 1}, "during": {}, "after": {"follower": 1}}}

QUIET = Load(writers=1, unkeyed=0, readers=0, before_s=0, after_s=0)


class PlayedTarget:
    """Notes what it is told, and refuses what it is to refuse."""

    def __init__(self, *, lacking: str | None = None, refuses: str = "") -> None:
        self.edges = {"east": "http://127.0.0.1:1", "west": "http://127.0.0.1:1", "south": "http://127.0.0.1:1"}
        self.names: dict[str, tuple[str, ...]] = {}
        self.thread = ""
        self.told: list[tuple[object, ...]] = []
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
        told = {region: {"epoch": None, "refusal": text} for region, text in self.says.items()}
        return told | ({"south": {"epoch": None, "failover": {"held_down_s": held_s}}} if held_s else {})

    async def create_site(self) -> str:
        return "s"

    async def holdings(self, leader: str, site: str, thread: str) -> Holdings:
        del leader, site, thread
        return Holdings(ledger=[], views={}, pages={}, fences=[])

    async def _note(self, *what: object) -> None:
        self.told.append(what)
        if self._refuses in {what[0], f"{what[0]} {what[-1]}"}:
            raise OrderRefused("no")

    async def heal(self) -> None:
        await self._note("heal")

    async def kill(self, region: str, process: str | None) -> None:
        await self._note("kill", region, process)

    async def kill_with_etcd(self, region: str) -> None:
        await self._note("kill with etcd", region)

    async def pause(self, region: str, process: str | None) -> None:
        await self._note("pause", region, process)

    async def resume(self, region: str, process: str | None) -> None:
        await asyncio.sleep(self.resumes_within_s)
        await self._note("resume", region, process)

    async def restart(self, region: str) -> None:
        await self._note("restart", region)

    async def promote_by_hand(self, region: str, thread: str, *, leave_running: bool) -> None:
        self.thread = thread
        await self._note("promote", region, thread, leave_running)

    async def fill_disk(self, region: str) -> None:
        await self._note("fill", region)

    async def stall_disk(self, region: str, stall_ms: float) -> None:
        await self._note("stall", stall_ms, region)

    async def mend_disk(self, region: str) -> None:
        await self._note("mend", region)

    async def set_clock(self, region: str, offset_s: float) -> None:
        await self._note("clock", region, offset_s)


def drill_of(*method: Mapping[str, object]) -> Drill:
    return Drill.model_validate(
        {"name": "d", "title": "T", "hypothesis": "H.", "load": QUIET, "method": method, "expect": EXPECT}
    )


async def outcome_of(target: PlayedTarget, tmp_path: Path, *method: Mapping[str, object]) -> Outcome:
    return await run_drill(
        cast("Target", target), drill_of(*method), tmp_path / "journal", seed=1, patience=Patience(),
        say=lambda _: None,
    )  # fmt: skip


async def carry_out(target: PlayedTarget, tmp_path: Path, *method: Mapping[str, object]) -> str | None:
    return (await outcome_of(target, tmp_path, *method)).trouble


@pytest.fixture(autouse=True)
def no_load(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("infra.drills.clients.GIVE_UP_S", 0)
    monkeypatch.setattr("infra.drills.runner.ENOUGH_WITHIN_S", 0)


async def test_a_clock_that_was_set_wrong_is_right_again(tmp_path: Path) -> None:
    target = PlayedTarget()
    assert await carry_out(target, tmp_path, {"do": "clock", "offset_s": 60}) is None
    assert target.told == [("clock", "east", 60.0), ("heal",), ("clock", "east", 0.0)]


async def test_a_clock_is_set_right_even_when_it_is_not_known_whether_it_was_set_wrong(tmp_path: Path) -> None:
    target = PlayedTarget(refuses="clock")
    assert await carry_out(target, tmp_path, {"do": "clock", "offset_s": 60}) == "no"
    assert target.told[-1] == ("clock", "east", 0.0)


async def test_a_drift_goes_on_from_where_the_clock_is_and_is_undone(tmp_path: Path) -> None:
    target = PlayedTarget()
    steps = [{"do": "clock", "offset_s": 10}, {"do": "drift", "rate": -0.5, "seconds": 0.3}]
    assert await carry_out(target, tmp_path, *steps) is None
    offsets = [float(cast("float", one[2])) for one in target.told if one[0] == "clock"]
    assert offsets[:-1] == sorted(offsets[:-1], reverse=True)
    assert len(offsets) >= 4
    assert offsets[-2:] == [pytest.approx(9.85), 0.0]


async def test_a_region_that_died_with_etcds_leader_is_started_again(tmp_path: Path) -> None:
    target = PlayedTarget(refuses="kill with etcd")
    assert await carry_out(target, tmp_path, {"do": "kill", "leads_etcd": True}) == "no"
    assert target.told == [("kill with etcd", "east"), ("heal",), ("restart", "east")]


async def test_a_region_whose_ledger_was_promoted_by_hand_is_started_again(tmp_path: Path) -> None:
    target = PlayedTarget()
    steps = [{"do": "kill", "as": "dead"}, {"do": "promote", "target": "dead", "leave_running": True}]
    assert await carry_out(target, tmp_path, *steps) is None
    assert target.thread.startswith("drill-d-")
    assert target.told[1:] == [("promote", "east", target.thread, True), ("heal",), ("restart", "east")]


async def test_disks_are_hurt_and_mended_as_the_method_says(tmp_path: Path) -> None:
    target = PlayedTarget()
    steps: list[Mapping[str, object]] = [
        {"do": "stall-disk", "stall_ms": 300, "as": "slow"},
        {"do": "mend-disk", "target": "slow"},
        {"do": "fill-disk", "target": "followers"},
        {"do": "mend-disk", "target": "followers"},
    ]
    assert await carry_out(target, tmp_path, *steps) is None
    both = [(what, region) for what in ("fill", "mend") for region in ("west", "south")]
    assert target.told == [("stall", 300.0, "east"), ("mend", "east"), *both, ("heal",)]


@pytest.mark.parametrize("hurt", ["fill-disk", "stall-disk"])
async def test_a_disk_is_mended_when_a_later_step_fails(tmp_path: Path, hurt: str) -> None:
    target = PlayedTarget()
    steps = [{"do": hurt, "target": "followers"}, {"do": "until-refused", "within_s": 0.05}]
    assert "a reason for refused writes did not come" in str(await carry_out(target, tmp_path, *steps))
    assert target.told[-2:] == [("mend", "south"), ("mend", "west")]


async def test_a_disk_that_was_hurt_by_half_is_mended(tmp_path: Path) -> None:
    target = PlayedTarget(refuses="fill south")
    assert await carry_out(target, tmp_path, {"do": "fill-disk", "target": "followers"}) == "no"
    assert target.told[-2:] == [("mend", "south"), ("mend", "west")]


async def test_a_disk_that_cannot_be_mended_keeps_no_other_from_it(tmp_path: Path) -> None:
    target = PlayedTarget(refuses="mend south")
    await carry_out(target, tmp_path, {"do": "stall-disk", "target": "followers"})
    assert target.told[-2:] == [("mend", "south"), ("mend", "west")]


@pytest.mark.parametrize("step", [{"do": "clock", "offset_s": 1}, {"do": "fill-disk"}])
async def test_a_fault_that_cannot_be_injected_is_refused_before_anything_is_done(
    tmp_path: Path, step: Mapping[str, object]
) -> None:
    target = PlayedTarget(lacking="this fault cannot be injected here: no way")
    with pytest.raises(FaultUnavailable, match="this fault cannot be injected here: no way"):
        await carry_out(target, tmp_path, step)
    assert target.told == []
    assert not (tmp_path / "journal").exists()
    assert await carry_out(target, tmp_path, {"do": "heal"}) is None


async def test_a_region_that_does_not_say_what_it_should_fails_the_drill(tmp_path: Path) -> None:
    target = PlayedTarget()
    target.says = {"east": "the disk of its ledger is full; it takes part again", "west": None}
    said = {"do": "until-said", "says": "is full", "within_s": 0.1}
    hurt = {"do": "heal"}
    assert await carry_out(target, tmp_path, hurt, said | {"target": "leader"}) is None
    (tmp_path / "journal").unlink()
    trouble = await carry_out(target, tmp_path, hurt, said | {"target": "followers"})
    assert trouble == "west, south did not say 'is full' within 0.1 s"


async def test_a_drill_waits_until_its_failover_would_not_be_held_down(tmp_path: Path) -> None:
    target = PlayedTarget()
    target.held_down_s = [9.0, 8.8]
    said: list[str] = []
    drill = drill_of({"do": "heal"})
    await run_drill(cast("Target", target), drill, tmp_path / "journal", seed=1, patience=Patience(), say=said.append)
    assert target.held_down_s == []
    assert said[0] == "  waits 9 s: after several failovers the next one would be held down"


async def test_a_drill_on_a_deployment_that_serves_nobody_does_not_pass(tmp_path: Path) -> None:
    outcome = await outcome_of(PlayedTarget(), tmp_path, {"do": "clock", "offset_s": 60})
    assert outcome.trouble is None
    assert not outcome.passed
    held = [check.name for check in outcome.checks if not check.failed]
    assert held == ["every step is carried out"]
    report = facts_of(outcome)
    assert {(row["phase"], row["role"], row["least"]) for row in report["writes"]} >= {
        ("before", "follower", 1),
        ("during", "follower", 0),
        ("after", "follower", 1),
    }
    page = page_of(outcome)
    assert "too little evidence: 0 samples, at least 2 needed" in page
    # A reader who knows nothing of failover finds what the timeline shows.
    for explained in ("phi", "agents suspect a region from 8 on", "refused", "unknown", "recruiting", "serving"):
        assert explained in page
    assert all(page.count(colour) >= 1 for phase, colour in PHASE_COLOURS.items() if phase in PHASE_MEANINGS)


async def test_phases_and_steps_are_in_the_journal(tmp_path: Path) -> None:
    steps = [{"do": "sleep", "seconds": 0.01}, {"do": "clock", "offset_s": 60, "label": "wrong"}]
    outcome = await outcome_of(PlayedTarget(), tmp_path, *steps)
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


async def test_an_edge_is_excused_until_its_region_has_been_resumed(tmp_path: Path) -> None:
    target = PlayedTarget()
    target.resumes_within_s = 0.05
    outcome = await outcome_of(target, tmp_path, {"do": "pause"}, {"do": "resume", "target": "leader"})
    (began,) = [one["t"] for one in outcome.records if one["kind"] == "began" and one["do"] == "resume"]
    (done,) = [one["t"] for one in outcome.records if one["kind"] == "done" and one["do"] == "resume"]
    (span,) = outcome.evidence.hurt
    assert began + 0.05 <= span.until <= done


async def test_a_region_that_could_not_be_resumed_is_excused_until_it_was(tmp_path: Path) -> None:
    target = PlayedTarget(refuses="resume")
    outcome = await outcome_of(target, tmp_path, {"do": "pause"}, {"do": "resume", "target": "leader"})
    assert outcome.trouble == "no"
    (span,) = outcome.evidence.hurt
    assert span.until == outcome.evidence.end


async def test_an_envoy_that_was_killed_is_expected_to_answer_when_all_is_healthy(tmp_path: Path) -> None:
    steps = [{"do": "kill", "process": "envoy"}, {"do": "until-healthy"}]
    outcome = await outcome_of(PlayedTarget(), tmp_path, *steps)
    (span,) = outcome.evidence.hurt
    assert (span.region, span.until < outcome.evidence.phases["after"][0]) == ("east", True)


async def test_the_load_runs_until_there_is_something_to_judge_and_not_for_ever(
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
    outcome = await outcome_of(PlayedTarget(), tmp_path, {"do": "heal"})
    assert asked[:5] == ["before", "before", "during", "during", "after"]
    assert outcome.evidence.phases["after"][1] < outcome.evidence.end

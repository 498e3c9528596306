"""What a drill has hurt it undoes, also when a step fails; what cannot be hurt here is refused before anything is."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from infra.drills import clients
from infra.drills.disks import DiskTrouble
from infra.drills.drill import Drill
from infra.drills.judges import Holdings
from infra.drills.runner import FaultUnavailable, Outcome, run_drill
from infra.drills.target import Target

HERE, THERE, BEYOND = "us-east", "eu-west", "ap-south"


@pytest.fixture(autouse=True)
def impatient_clients(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody answers them, so they are not waited for."""
    monkeypatch.setattr(clients, "REQUEST_TIMEOUT_S", 0.1)


class Paper(Target):
    """A deployment on paper: always healthy, led from one region, with edges that nobody listens at."""

    def __init__(self, lacking: str | None = None, trouble: str = "") -> None:
        self.names = {}
        self.done: list[str] = []
        self._lacking = lacking
        self._trouble = trouble

    @property
    def edges(self) -> dict[str, str]:
        return dict.fromkeys((HERE, THERE, BEYOND), "http://127.0.0.1:9")

    def lacks(self, drill: Drill) -> str | None:
        return self._lacking if drill.needs_disks else None

    def resolve(self, target: str, leader: str | None) -> tuple[str, ...]:
        del leader
        return self.names.get(target) or {"leader": (HERE,), "followers": (THERE, BEYOND)}[target]

    async def create_site(self) -> str:
        return "site"

    async def status(self) -> dict[str, Any]:
        return {"cells": [{"phase": "serving", "leader": HERE}], "regions": [{"healthy": True, "missing": []}]}

    async def agents(self) -> dict[str, dict[str, Any]]:
        return {}

    async def holdings(self, leader: str, thread: str) -> Holdings:
        del leader, thread
        return Holdings(ledger=[], views={}, fences=[])

    async def heal(self) -> None:
        self.done.append("heal")

    async def fill_disk(self, region: str) -> None:
        self._do("fill", region)

    async def stall_disk(self, region: str, stall_ms: float) -> None:
        self._do(f"stall {stall_ms:g}", region)

    async def mend_disk(self, region: str) -> None:
        self._do("mend", region)

    def _do(self, what: str, region: str) -> None:
        self.done.append(f"{what} {region}")
        if self._trouble == f"{what} {region}":
            raise DiskTrouble(f"cannot {what}")


async def carried_out(target: Target, method: Sequence[dict[str, Any]], journal: Path) -> Outcome:
    load = {"writers": 1, "unkeyed": 0, "readers": 0, "before_s": 0, "after_s": 0, "pause_ms": 50}
    words = {"name": "paper", "title": "T", "hypothesis": "H.", "load": load, "method": method}
    return await run_drill(target, Drill.model_validate(words), journal, seed=1, force=False, say=lambda _: None)


async def test_disks_are_hurt_and_mended_as_the_method_says(tmp_path: Path) -> None:
    target = Paper()
    method = [
        {"do": "stall-disk", "stall_ms": 300, "as": "slow"},
        {"do": "mend-disk", "target": "slow"},
        {"do": "fill-disk", "target": "followers"},
        {"do": "mend-disk", "target": "followers"},
    ]
    outcome = await carried_out(target, method, tmp_path / "journal")
    assert outcome.trouble is None
    both = [f"{what} {region}" for what in ("fill", "mend") for region in (THERE, BEYOND)]
    assert target.done == [f"stall 300 {HERE}", f"mend {HERE}", *both, "heal"]


@pytest.mark.parametrize("hurt", ["fill-disk", "stall-disk"])
async def test_a_disk_is_mended_when_a_later_step_fails(tmp_path: Path, hurt: str) -> None:
    target = Paper()
    method = [{"do": hurt, "target": "followers"}, {"do": "until-refused", "within_s": 0.05}]
    outcome = await carried_out(target, method, tmp_path / "journal")
    assert not outcome.passed
    assert target.done[-2:] == [f"mend {BEYOND}", f"mend {THERE}"]


async def test_a_disk_that_was_hurt_by_half_is_mended_and_one_that_cannot_be_keeps_no_other_from_it(
    tmp_path: Path,
) -> None:
    target = Paper(trouble=f"fill {BEYOND}")
    outcome = await carried_out(target, [{"do": "fill-disk", "target": "followers"}], tmp_path / "filled")
    assert outcome.trouble == "cannot fill"
    assert target.done[-2:] == [f"mend {BEYOND}", f"mend {THERE}"]
    stuck = Paper(trouble=f"mend {BEYOND}")
    await carried_out(stuck, [{"do": "stall-disk", "target": "followers"}], tmp_path / "stalled")
    assert stuck.done[-2:] == [f"mend {BEYOND}", f"mend {THERE}"]


async def test_a_fault_that_cannot_be_injected_is_refused_before_anything_is_done(tmp_path: Path) -> None:
    target = Paper(lacking="this fault cannot be injected here: no disks")
    with pytest.raises(FaultUnavailable, match="cannot be injected here: no disks"):
        await carried_out(target, [{"do": "fill-disk"}], tmp_path / "journal")
    assert target.done == []
    assert not (tmp_path / "journal").exists()
    await carried_out(target, [{"do": "heal"}], tmp_path / "another")
    assert "heal" in target.done

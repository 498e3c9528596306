"""Failing plans, shrunk, as JSON files that a test runs again for ever."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

from infra.simulation.plans import FaultPlan
from infra.simulation.runner import Report


def store(report: Report, folder: Path, *, found_as: int) -> Path:
    """Write the plan of a failing run and what it broke; return the file."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"seed-{found_as}.json"
    document = {"broke": report.violation, "found_as_seed": found_as, "plan": report.plan.to_json()}
    path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    return path


def load(path: Path) -> FaultPlan:
    """The plan of a file that ``store`` wrote."""
    document = cast("dict[str, Any]", json.loads(path.read_text(encoding="utf-8")))
    return FaultPlan.from_json(document["plan"])

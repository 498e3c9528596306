"""Stores shrunk failing plans as JSON files, which a test runs again in every test run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

from infra.simulation.plans import FaultPlan
from infra.simulation.runner import Report


def store(report: Report, folder: Path, *, found_as: int) -> Path:
    """Write the plan and the violation of a failing run to a file in ``folder``; return its path."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"seed-{found_as}.json"
    document = {"broke": report.violation, "found_as_seed": found_as, "plan": report.plan.to_json()}
    path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    return path


def load(path: Path) -> FaultPlan:
    """Read the plan from a file that ``store`` wrote."""
    document = cast("dict[str, Any]", json.loads(path.read_text(encoding="utf-8")))
    return FaultPlan.from_json(document["plan"])

"""What `palaver status` makes of what agents answer."""

from typing import Any

import pytest

from infra.cli.output import print_status
from infra.supervisor.plan import Plan
from infra.supervisor.status import cell_document, region_document

REGIONS = ("us-east", "eu-west", "ap-south")
PLAN = Plan(deployment="d", regions=REGIONS, view_regions=(), port_base=20_000)


def answer(region: str, *warnings: str) -> dict[str, Any]:
    agent = {"region": region, "epoch": 1, "leader": "us-east", "phase": "serving", "warnings": list(warnings)}
    return {"agent": agent, "replicator": None, "missing": []}


def test_a_warning_is_shown_and_leaves_the_region_healthy(capsys: pytest.CaptureFixture[str]) -> None:
    answers = {
        "us-east": answer("us-east", "synchronous_commit is overridden: role a = off"),
        "eu-west": answer("eu-west"),
        "ap-south": {"agent": None, "replicator": None, "missing": ["region_agent: does not answer"]},
    }
    cell = cell_document(PLAN, answers)
    regions = [
        region_document(PLAN, region, pids={}, state="running", restarts={}, answers=answers[region], cell=cell)
        for region in REGIONS
    ]
    assert [(one["healthy"], len(one["warnings"])) for one in regions] == [(True, 1), (True, 0), (False, 0)]
    print_status({"cells": [cell], "regions": regions})
    printed = capsys.readouterr().out.splitlines()
    assert "us-east: warning: synchronous_commit is overridden: role a = off" in printed
    assert [line for line in printed if "warning" in line] == printed[-2:-1]

"""Tests the status document and its text, made from the answers of agents and relay."""

from dataclasses import replace
from typing import Any

import httpx
import pytest

from infra.cli.output import print_status
from infra.supervisor.plan import Plan
from infra.supervisor.status import ask_faults, cell_document, region_addresses, region_document, scrape_targets

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


def test_cuts_and_delays_are_printed_and_a_killed_region_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    answers = {region: answer(region) for region in REGIONS}
    answers["ap-south"] = {"agent": None, "replicator": None, "missing": ["region_agent: does not answer"]}
    cell = cell_document(PLAN, answers)
    pids: dict[str, int | None] = {"ledger": None, "redis": None}
    regions = [
        region_document(PLAN, one, pids=pids if dead else {}, state="killed" if dead else "running", restarts={},
                        answers=answers[one], cell=cell)
        for one in REGIONS for dead in [one == "ap-south"]
    ]  # fmt: skip
    usual = {"delay_ms": 0.0, "jitter_ms": 0.0, "loss": 0.0, "cut": False}
    pairs = [("us-east", "eu-west", {"cut": True}), ("eu-west", "us-east", {"cut": True})]
    pairs += [("us-east", "ap-south", {"delay_ms": 60.0, "jitter_ms": 10.0, "loss": 0.1})]
    faults = [{"source": source, "target": target, **usual, **changed} for source, target, changed in pairs]
    print_status({"cells": [cell], "regions": regions, "faults": faults})
    printed = capsys.readouterr().out.splitlines()
    assert "fault: eu-west ↔ us-east: cut" in printed
    assert "fault: us-east → ap-south: delay 60 ms ± 10, loss 0.1" in printed
    assert [line for line in printed if line.startswith("ap-south:")] == [
        "ap-south: killed; `palaver region restart ap-south` starts it"
    ]


async def test_faults_in_force_are_those_that_differ_from_the_plan() -> None:
    plan = replace(PLAN, rtt_ms=80.0)
    usual = {"source": "us-east", "target": "eu-west", "delay_ms": 40.0, "jitter_ms": 0.0, "loss": 0.0, "cut": False}
    cut = usual | {"target": "ap-south", "cut": True}
    asked: list[httpx.Request] = []

    def relay(request: httpx.Request) -> httpx.Response:
        asked.append(request)
        return httpx.Response(200, json={"faults": [usual, cut]})

    async with httpx.AsyncClient(transport=httpx.MockTransport(relay)) as client:
        assert await ask_faults(client, plan, "a token") == [cut]
    assert asked[0].url.port == plan.deployment_port("relay_control")
    assert asked[0].headers["authorization"] == "Bearer a token"
    async with httpx.AsyncClient(transport=httpx.MockTransport(lambda _: httpx.Response(401, json={}))) as client:
        assert await ask_faults(client, plan, "wrong") is None


def test_a_view_only_region_has_no_addresses_and_scrape_targets_of_voter_processes() -> None:
    plan = replace(PLAN, view_regions=("sa-east",))
    addresses = region_addresses(plan, "sa-east")
    assert addresses.keys() & {"etcd", "ledger", "write_api", "write_api_internal", "socks"} == set()
    assert addresses["view"] == f"127.0.0.1:{plan.port('sa-east', 'view')}"
    assert region_addresses(plan, "us-east")["write_api"] == f"127.0.0.1:{plan.port('us-east', 'write_api')}"
    targets = scrape_targets(plan)
    assert all(len(entry["targets"]) == 1 for entry in targets)
    listeners = {(entry["labels"].get("region"), entry["labels"]["process"]): entry["targets"][0] for entry in targets}
    services = {"region_agent", "write_api", "read_api", "replicator"}
    wanted = {(region, process) for region in REGIONS for process in services}
    wanted |= {("sa-east", process) for process in services - {"write_api"}} | {(None, "supervisor"), (None, "relay")}
    assert listeners.keys() == wanted
    assert listeners["us-east", "region_agent"] == f"127.0.0.1:{plan.port('us-east', 'agent_internal')}"
    assert listeners[None, "relay"] == f"127.0.0.1:{plan.deployment_port('relay_control')}"

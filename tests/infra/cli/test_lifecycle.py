"""Tests output, waits and exit codes of `palaver down` and `palaver region restart`, with a fake control interface."""

import importlib.metadata
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from infra.cli import faults, main
from infra.cli.lifecycle import ready_lines
from infra.supervisor.layout import open_layout
from infra.supervisor.plan import make_plan
from infra.supervisor.records import birth_of
from regions.version import VERSION
from services.api.openapi import openapi_document
from tests.infra.cli.control import Control, Palaver

CHANGELOG = Path(__file__).parents[3] / "CHANGELOG.md"


def region(*missing: str, state: str = "running", role: str = "follower") -> dict[str, Any]:
    healthy = state == "running" and not missing
    return {
        "region": "eu-west", "role": role, "state": state, "healthy": healthy, "missing": list(missing), "pids": {},
    }  # fmt: skip


def test_a_restart_waits_until_the_region_is_healthy(palaver: Palaver, control: Control) -> None:
    control.regions = [[region("ledger: not running")], [region("replicator: does not answer")], [region()]]
    code, out, err = palaver("region", "restart", "eu-west")
    assert (code, err) == (0, "")
    assert out.startswith("eu-west is healthy after ")
    assert "follower" in out
    assert len(control.regions) == 1, "it asked until the region was healthy"
    assert control.orders == [{"region": "eu-west", "path": "/region/restart"}]


def test_a_restart_that_does_not_become_healthy_fails_with_what_is_missing(
    palaver: Palaver, control: Control, monkeypatch: pytest.MonkeyPatch
) -> None:
    now_s = [1000.0]

    def sleep(seconds: float) -> None:
        now_s.append(now_s[-1] + seconds)

    monkeypatch.setattr(faults, "time", SimpleNamespace(monotonic=lambda: now_s[-1], sleep=sleep))
    control.regions = [[region("ledger: not running", "replicator: does not answer")]]
    code, out, err = palaver("region", "restart", "eu-west", "--healthy-within-s", "3")
    assert (code, out) == (1, "")
    assert "not healthy after 3 s: ledger: not running; replicator: does not answer" in err
    assert len(err.splitlines()) == 1
    assert now_s[-1] - now_s[0] == pytest.approx(3, abs=2 * faults.POLL_S)


def test_a_restart_with_a_wait_of_zero_does_not_wait(palaver: Palaver, control: Control) -> None:
    control.regions = [[region("ledger: not running")]]
    code, out, err = palaver("region", "restart", "eu-west", "--healthy-within-s", "0")
    assert (code, err) == (0, "")
    assert out.startswith("eu-west is starting")
    assert control.orders == [{"region": "eu-west", "path": "/region/restart"}]


def test_a_restart_as_json_is_one_document(palaver: Palaver, control: Control) -> None:
    control.regions = [[region(role="leader")]]
    code, out, _ = palaver("region", "restart", "eu-west", "--json")
    document = json.loads(out)
    assert (code, document["region"], document["role"]) == (0, "eu-west", "leader")


def test_down_prints_that_the_deployment_has_stopped_and_where_its_data_is(
    palaver: Palaver, control: Control, data: Path
) -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as supervisor:
        path = open_layout(data).control
        facts = json.loads(path.read_text()) | {"pid": supervisor.pid, "born": birth_of(supervisor.pid)}
        path.write_text(json.dumps(facts))

        def stop() -> None:
            path.unlink()
            supervisor.kill()

        control.on_stop = stop
        code, out, err = palaver("down")
        assert supervisor.wait() != 0
    assert (code, err) == (0, "")
    assert out == f"stopped; the data is kept in {data}\n"


def test_a_foreground_start_prints_every_edge_and_how_to_stop() -> None:
    plan = make_plan(regions=("a", "b", "c"), view_regions=("d",), rtt_ms=0, port_base=None, deployment="x")
    *edges, last = ready_lines(plan)
    assert edges == [f"{name}: http://127.0.0.1:{plan.port(name, 'edge')}" for name in "abcd"]
    assert "Ctrl-C" in last


def test_the_version_is_the_same_everywhere(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["palaver", "--version"])
    with pytest.raises(SystemExit) as ended:
        main.run()
    assert (ended.value.code, capsys.readouterr().out) == (0, f"palaver {VERSION}\n")
    assert openapi_document()["info"]["version"] == VERSION
    assert importlib.metadata.version("palaver") == VERSION
    assert f"The next release is {VERSION}" in CHANGELOG.read_text()

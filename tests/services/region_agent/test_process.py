"""Tests processes of the region agent with real etcd and PostgreSQL."""

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import AsyncGenerator, Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest

from infra.servers.unprivileged import account
from regions.plain_http import TRUST_NOBODY
from regions.process_identity import ProcessIdentity
from services.api.leader_port import CANCELLED_WAIT_PATH, CURRENT_PATH
from tests import servers
from tests.child_processes import Child, free_port
from tests.regions.deployment import REGIONS, Deployment, deployment
from tests.servers import EtcdCluster
from tests.waiting import until

pytestmark = pytest.mark.integration

SECRET = "a secret of the agents"

EAST, WEST, SOUTH = REGIONS


class Processes:
    """One agent process for each region."""

    def __init__(self, made: Deployment, etcd: EtcdCluster) -> None:
        self.made = made
        self.etcd = etcd
        self.internal = {region: free_port() for region in made.ports}
        self.children = {region: self._child(region) for region in made.ports}

    def environment(self, region: str) -> dict[str, str]:
        home = self.made.root / region
        home.mkdir(exist_ok=True)
        topology = home / "topology.json"
        topology.write_text(json.dumps(self._topology(region)))
        common = {
            "PATH": os.defpath,
            "PALAVER_TOPOLOGY": str(topology),
            "PALAVER_INTERNAL_LISTEN": f"127.0.0.1:{self.internal[region]}",
            "PALAVER_ETCD_USER": "root",
            "PALAVER_ETCD_PASSWORD": "secret",
            "PALAVER_STATE_DIR": str(home / "state"),
            "PALAVER_EDGE_DIR": str(home / "xds"),
            "PALAVER_EDGE_LISTEN": f"127.0.0.1:{self.made.ports[region]['edge']}",
            "PALAVER_EDGE_ADMIN": str(home / "admin.sock"),
            "PALAVER_AGENT_LISTEN": f"127.0.0.1:{self.made.ports[region]['agent']}",
            "PALAVER_AGENT_SECRET": SECRET,
        }
        if region not in REGIONS:
            return common
        settings = self.made.settings(region)
        owner = account()
        return common | {
            "PALAVER_LEDGER_DATA": str(settings.data),
            "PALAVER_LEDGER_LISTEN": str(settings.listen),
            "PALAVER_POSTGRES_BIN": str(settings.programs),
            "PALAVER_LEDGER_SUPERUSER_PASSWORD": settings.superuser_password,
            "PALAVER_REPLICATION_PASSWORD": settings.replication_password,
            "PALAVER_WRITER_PASSWORD": settings.writer_password,
            **({} if owner is None else {"PALAVER_OS_USER": owner.name}),
        }

    def _topology(self, region: str) -> dict[str, Any]:
        topology = self.made.topology(region)
        keys = ("etcd", "ledger", "write_api", "read_api", "changes", "agent")
        regions = [
            {"name": one.name, "voter": one.voter}
            | {key: str(getattr(one, key)) for key in keys if getattr(one, key) is not None}
            for one in topology.regions
        ]
        return {"cell": "main", "region": region, "regions": regions}

    def _child(self, region: str) -> Child:
        return Child(
            [sys.executable, "-m", "services.region_agent"],
            log=self.made.root / f"{region}.log",
            ready=lambda: self._answers(region),
            environment=self.environment(region) | {"PYTHONPATH": str(Path(__file__).parents[3])},
        )

    def _answers(self, region: str) -> bool:
        try:
            return self.get(region, "/healthz").status_code == 200
        except httpx.TransportError:
            return False

    def get(self, region: str, path: str) -> httpx.Response:
        url = f"http://127.0.0.1:{self.internal[region]}{path}"
        return httpx.get(url, timeout=5, trust_env=False, verify=TRUST_NOBODY)

    def order(self, region: str, secret: str, order: dict[str, str]) -> httpx.Response:
        return self.post(region, "/order", secret, order)

    def post(self, region: str, path: str, secret: str, document: Mapping[str, object]) -> httpx.Response:
        return httpx.post(
            f"http://127.0.0.1:{self.internal[region]}{path}",
            json=document,
            headers={"authorization": f"Bearer {secret}"},
            timeout=15,
            trust_env=False,
            verify=TRUST_NOBODY,
        )

    def status(self, region: str) -> dict[str, Any]:
        return self.get(region, "/status").json()

    async def ready(self, *regions: str) -> None:
        """Wait until these regions are ready."""

        async def all_ready() -> bool:
            return all(self.get(region, "/readyz").status_code == 200 for region in regions or self.children)

        await until(all_ready, 60)


@pytest.fixture
async def processes() -> AsyncGenerator[Processes]:
    with servers.etcd_cluster(3) as etcd:
        async with deployment(etcd=etcd.endpoints, view_regions=("view-only",)) as made:
            running = Processes(made, etcd)
            try:
                for child in running.children.values():
                    child.start(wait=False)
                for child in running.children.values():
                    child.wait_ready()
                yield running
            finally:
                for member in range(3):
                    etcd.resume(member)
                for child in running.children.values():
                    child.kill()


def gone(pid: int) -> bool:
    """Return whether a process has ended."""
    return ProcessIdentity.of(pid) is None


async def test_regions_bootstrap_are_adopted_after_a_kill_and_stop_with_their_ledger(processes: Processes) -> None:
    await processes.ready()
    status = processes.status(EAST)
    assert (status["epoch"], status["leader"], status["phase"], status["role"]) == (1, EAST, "serving", "leader")
    assert status["member"]["position"].startswith("main.1.")
    assert processes.status(WEST)["role"] == "follower"
    assert processes.status("view-only")["role"] == "view"
    assert processes.status("view-only")["member"] is None
    metrics = processes.get(EAST, "/metrics").text
    assert "palaver_epoch 1.0" in metrics
    assert 'palaver_agent_role{role="leader"} 1.0' in metrics
    # The agent reads the state of its member every second.
    slot = 'palaver_slot_retained_bytes{slot="palaver_view_only"}'
    await until(lambda: slot in processes.get(EAST, "/metrics").text)

    for secret, order, status_code in (
        ("another secret", {"kind": "pause", "by": "a test"}, 401),
        (SECRET, {"kind": "explode", "by": "a test"}, 400),
        (SECRET, {"kind": "switch", "by": "a test"}, 400),
        (SECRET, {"kind": "pause", "region": EAST, "by": "a test"}, 400),
        (SECRET, {"kind": "pause"}, 400),
        (SECRET, {"kind": "switch", "region": "mars", "by": "a test"}, 409),
        (SECRET, {"kind": "switch", "region": EAST, "by": "a test"}, 200),
    ):
        answer = processes.order(EAST, secret, order)
        assert answer.status_code == status_code, answer.text
    assert (
        "there is no region mars" in processes.order(EAST, SECRET, {"kind": "switch", "region": "mars", "by": "x"}).text
    )
    assert processes.order(WEST, SECRET, {"kind": "switch", "region": EAST, "by": "x"}).status_code == 409

    # Requests of the write API: the agent asks etcd which region leads, and a follower's report about an epoch changes
    # nothing.
    for region, current in ((EAST, True), (WEST, False), ("view-only", False)):
        answer = processes.post(region, CURRENT_PATH, SECRET, {})
        assert (answer.status_code, answer.json()) == (200, {"current": current}), region
    for region, secret, status_code in ((WEST, "another secret", 401), (WEST, SECRET, 200), ("view-only", SECRET, 503)):
        assert processes.post(region, CANCELLED_WAIT_PATH, secret, {"epoch": 1}).status_code == status_code
    assert "palaver_agent_waits_cut_short_total 1.0" in processes.get(WEST, "/metrics").text

    # After a kill the next agent adopts the running PostgreSQL in the same epoch.
    pid = status["member"]["pid"]
    processes.children[EAST].kill()
    processes.children[EAST].start()
    await processes.ready(EAST)
    again = processes.status(EAST)
    assert (again["epoch"], again["member"]["pid"]) == (1, pid)

    # A stop of the agent stops the ledger, and the next start begins a new epoch.
    await asyncio.to_thread(processes.children[EAST].stop)
    assert gone(pid)
    processes.children[EAST].start()
    await processes.ready()
    assert processes.status(EAST)["epoch"] == 2

    # A stop also works while etcd does not answer.
    pid = processes.status(WEST)["member"]["pid"]
    leader = processes.status(WEST)["leader"]
    assert processes.post(leader, CURRENT_PATH, SECRET, {}).json() == {"current": True}
    for member in range(3):
        processes.etcd.pause(member)
    assert processes.post(leader, CURRENT_PATH, SECRET, {}).json() == {"current": False}
    # etcd stays suspended until after the stop: an agent that waited for etcd would not end.
    await asyncio.to_thread(processes.children[WEST].stop)
    assert gone(pid)
    assert "Traceback" not in processes.children[WEST].log_text
    for line in processes.children[EAST].log_text.splitlines():
        assert json.loads(line)["process"] == "region_agent"


def metric(processes: Processes, region: str, name: str) -> float | None:
    """Return the value of one series, or None if there is none."""
    lines = processes.get(region, "/metrics").text.splitlines()
    return next((float(line.removeprefix(f"{name} ")) for line in lines if line.startswith(f"{name} ")), None)


def steps(processes: Processes, region: str, step: str) -> float | None:
    return metric(processes, region, f'palaver_failover_step_seconds_count{{step="{step}"}}')


async def test_overrides_and_missing_voters_show_in_metrics_status_and_log(processes: Processes) -> None:
    await processes.ready()
    weak, missing = 'palaver_ledger_commit_overrides{scope="role"}', f'palaver_voter_missing{{voter="{WEST}"}}'

    async def shows(name: str, value: float) -> None:
        await until(lambda: metric(processes, EAST, name) == value)

    await shows(missing, 0)
    await shows(weak, 0)
    # Both followers were copied once, and no member was rewound.
    for region in (WEST, SOUTH):
        assert (steps(processes, region, "CopyLedger"), steps(processes, region, "RewindLedger")) == (1, 0)
        assert metric(processes, region, "palaver_member_diverged") == 0
        assert metric(processes, region, weak) is None
        assert metric(processes, region, f'palaver_voter_missing{{voter="{EAST}"}}') is None

    # A restarted agent looks for overrides at once.
    operator = await processes.made.connect(EAST)
    await operator.execute("ALTER ROLE palaver_writer SET synchronous_commit = local")
    await operator.close()
    processes.children[EAST].kill()
    processes.children[EAST].start()
    await shows(weak, 1)
    overridden = "synchronous_commit is overridden: role palaver_writer = local"
    status = processes.status(EAST)
    assert (status["epoch"], status["warnings"]) == (1, [overridden])
    assert status["member"]["overrides"] == [{"scope": "role", "name": "palaver_writer", "value": "local"}]
    logged = [json.loads(line) for line in processes.children[EAST].log_text.splitlines()]
    assert [one["level"].lower() for one in logged if one["msg"] == f"ledger: {overridden}"] == ["warning"]

    await asyncio.to_thread(processes.children[WEST].stop)
    await shows(missing, 1)
    assert processes.status(EAST)["member"]["voters_missing"] == [WEST]
    processes.children[WEST].start()
    await shows(missing, 0)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"PALAVER_ETCD_USER": None}, "PALAVER_ETCD_USER"),
        ({"PALAVER_TOPOLOGY": "/absent.json"}, "No such file"),
        ({"PALAVER_LEDGER_DATA": None}, "PALAVER_LEDGER_DATA is missing"),
        ({"PALAVER_EDGE_LISTEN": "nonsense"}, "PALAVER_EDGE_LISTEN"),
        ({"PALAVER_AGENT_LISTEN": "nonsense"}, "PALAVER_AGENT_LISTEN"),
        ({"PALAVER_AGENT_SECRET": "short"}, "PALAVER_AGENT_SECRET"),
        ({"PALAVER_WAL_KEEP_MB": "1"}, "PALAVER_WAL_KEEP_MB"),
    ],
)
async def test_wrong_settings_are_one_line_and_status_2(change: dict[str, str | None], said: str) -> None:
    async with deployment() as made:
        unused = EtcdCluster(root=made.root, members=3)
        environment = Processes(made, unused).environment(EAST)
        wrong = {name: value for name, value in (environment | change).items() if value is not None}
        wrong["PYTHONPATH"] = str(Path(__file__).parents[3])
        ended = await asyncio.to_thread(
            subprocess.run,
            [sys.executable, "-m", "services.region_agent"],
            env=wrong,
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
        assert ended.returncode == 2, ended.stderr
        assert said in ended.stderr
        assert ended.stderr.count("\n") == 1

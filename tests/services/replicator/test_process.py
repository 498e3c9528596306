"""Tests the settings and the process of the replicator."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from regions.coordination import Coordination
from regions.plain_http import TRUST_NOBODY
from regions.topology import parse_address
from services.replicator.settings import InvalidSettings, Settings
from tests import servers
from tests.child_processes import free_port
from tests.servers import RedisServer
from tests.sync.rig import CELL, TOKEN, WAIT_S, Rig, differences, leadership, writing

GOOD: dict[str, str] = {
    "PALAVER_TOPOLOGY": "topology.json",
    "PALAVER_INTERNAL_LISTEN": "127.0.0.1:1",
    "PALAVER_VIEW_URL": "postgresql://a:b@127.0.0.1:1/palaver",
    "PALAVER_REDIS_URL": "redis://:b@127.0.0.1:1/0",
    "PALAVER_LEDGER_REPLICATION": "host=127.0.0.1 port=1 user=r password=secret",
    "PALAVER_CHANGES_LISTEN": "127.0.0.1:1",
    "PALAVER_CHANGES_TOKEN": TOKEN,
}


def load(monkeypatch: pytest.MonkeyPatch, **changed: str | None) -> Settings:
    for name in list(os.environ):
        if name.startswith("PALAVER_"):
            monkeypatch.delenv(name)
    for name, value in {**GOOD, **changed}.items():
        if value is not None:
            monkeypatch.setenv(name, value)
    return Settings.load()


def test_settings_have_their_documented_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = load(monkeypatch, PALAVER_LEDGER_REPLICATION=None)
    assert settings.log_level == "info"
    assert settings.trace_ratio == 0.01
    assert settings.ledger_replication is None
    assert TOKEN not in repr(settings)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PALAVER_TOPOLOGY", None),
        ("PALAVER_CHANGES_TOKEN", None),
        ("PALAVER_CHANGES_TOKEN", "short"),
        ("PALAVER_CHANGES_LISTEN", "nowhere"),
        ("PALAVER_INTERNAL_LISTEN", "127.0.0.1:70000"),
        ("PALAVER_VIEW_URL", "mysql://x"),
        ("PALAVER_REDIS_URL", "http://x"),
        ("PALAVER_LEDGER_REPLICATION", "this is no conninfo"),
        ("PALAVER_TRACE_RATIO", "2"),
        ("PALAVER_LOG_LEVEL", "loud"),
    ],
)
def test_a_wrong_setting_is_named_in_one_line_without_its_value(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str | None
) -> None:
    with pytest.raises(InvalidSettings) as caught:
        load(monkeypatch, **{name: value})
    text = str(caught.value)
    assert text.startswith(f"{name}: ")
    assert "\n" not in text


def run(environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "services.replicator"],
        env={"PATH": os.environ["PATH"], **environment},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


@pytest.mark.parametrize(
    ("changed", "text"),
    [
        ({"PALAVER_CHANGES_TOKEN": ""}, "PALAVER_CHANGES_TOKEN"),
        ({"PALAVER_TOPOLOGY": "/nowhere/topology.json"}, "/nowhere/topology.json"),
    ],
)
def test_the_process_refuses_wrong_settings_with_one_line_and_status_2(changed: dict[str, str], text: str) -> None:
    done = run({**GOOD, **changed})
    assert done.returncode == 2
    assert text in done.stderr
    assert done.stderr.count("\n") == 1


@contextmanager
def replicator(environment: dict[str, str], log: Path) -> Generator[subprocess.Popen[bytes]]:
    with (
        log.open("wb") as output,
        subprocess.Popen(
            [sys.executable, "-m", "services.replicator"],
            env={"PATH": os.environ["PATH"], **environment},
            stderr=output,
        ) as process,
    ):
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()


async def get(url: str) -> httpx.Response:
    async with httpx.AsyncClient(trust_env=False, verify=TRUST_NOBODY) as client:
        return await client.get(url)


async def until_status(url: str, **expected: object) -> dict[str, Any]:
    async with httpx.AsyncClient(base_url=url, trust_env=False, verify=TRUST_NOBODY) as client, asyncio.timeout(WAIT_S):
        while True:
            try:
                status: dict[str, Any] = (await client.get("/status")).json()
            except httpx.TransportError:
                status = {}
            if expected.items() <= status.items():
                return status
            await asyncio.sleep(0.05)


@pytest.mark.integration
async def test_the_replicator_follows_the_leader_and_stops_in_time(
    rig: Rig, redis: RedisServer, tmp_path: Path
) -> None:
    rig.create_slot()
    rig.fence()
    internal = f"127.0.0.1:{free_port()}"
    with servers.etcd_cluster() as etcd:
        region = {
            "name": rig.region,
            "voter": True,
            "etcd": etcd.endpoints[0],
            **dict.fromkeys(("ledger", "write_api", "read_api", "agent"), "127.0.0.1:9"),
            "changes": f"127.0.0.1:{rig.port}",
        }
        document = {"cell": CELL, "region": rig.region, "regions": [region]}
        (tmp_path / "topology.json").write_text(json.dumps(document))
        environment = {
            "PALAVER_TOPOLOGY": str(tmp_path / "topology.json"),
            "PALAVER_INTERNAL_LISTEN": internal,
            "PALAVER_VIEW_URL": rig.view_url,
            "PALAVER_REDIS_URL": redis.url,
            "PALAVER_LEDGER_REPLICATION": rig.stream_url,
            "PALAVER_CHANGES_LISTEN": f"127.0.0.1:{rig.port}",
            "PALAVER_CHANGES_TOKEN": TOKEN,
        }
        with replicator(environment, tmp_path / "log") as process:
            url = f"http://{internal}"
            status = await until_status(url, connected=False)
            assert (status["source"], status["source_position"]) == (None, None)
            assert (await get(f"{url}/healthz")).status_code == 200
            assert (await get(f"{url}/readyz")).status_code == 503
            async with Coordination((parse_address(etcd.endpoints[0]),), None, None) as coordination:
                assert await coordination.swap_leadership(CELL, leadership(rig.region), 0)
            async with writing(rig) as writer:
                thread = await writer.create_thread()
                for _ in range(10):
                    await writer.post(thread)
                status = await until_status(url, connected=True, source=rig.region, lag_ms=0, indexed=True)
                ((end,),) = rig.sql("SELECT pg_current_wal_flush_lsn() - '0/0'")
                async with asyncio.timeout(WAIT_S):
                    while int(status["applied_position"].rpartition(".")[2], 16) < int(str(end)):
                        status = await until_status(url, dead_letters=0)
            assert status["applied_position"].startswith("main.1.")
            assert (await get(f"{url}/readyz")).status_code == 200
            metrics = (await get(f"{url}/metrics")).text
            assert "palaver_epoch 1.0" in metrics
            assert "palaver_stream_connected 1.0" in metrics
            assert f'palaver_capture_transactions_total{{subscriber="{rig.region}"}} ' in metrics
            assert "palaver_slot_retained_bytes" in metrics
            assert differences(rig) == []
            process.send_signal(signal.SIGTERM)
            assert process.wait(timeout=10) == 0
    lines = (tmp_path / "log").read_text().splitlines()
    assert [line for line in lines if json.loads(line)["level"] == "error"] == []

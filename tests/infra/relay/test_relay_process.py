"""Tests the relay as a process, controlled by its client."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any

import httpx
import pytest

from infra.relay.client import RelayClient, RelayFailed
from infra.relay.faults import CLEAR, Fault
from regions.plain_http import TRUST_NOBODY
from tests.child_processes import Child, folder, free_port
from tests.infra.relay.wire import document

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def upstream() -> Generator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(10)
        yield server


@pytest.fixture(scope="module")
def settings(upstream: socket.socket) -> dict[str, Any]:
    faults = [{"source": "a", "target": "b", "delay_ms": 1.5}]
    return {**document(upstream_port=upstream.getsockname()[1]), "faults": faults}


@pytest.fixture(scope="module")
def relay(settings: dict[str, Any]) -> Generator[Child]:
    with folder() as root:
        (root / "relay.json").write_text(json.dumps(settings))
        child = Child(
            [sys.executable, "-m", "infra.relay", "--config", root / "relay.json"],
            log=root / "relay.log",
            ready=lambda: answers(settings["control"]),
            environment={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])},
        )
        try:
            child.start()
            yield child
        finally:
            child.kill()


def answers(control: str) -> bool:
    try:
        return httpx.get(f"http://{control}/healthz", verify=TRUST_NOBODY).is_success
    except httpx.HTTPError:
        return False


@pytest.fixture
def client(relay: Child, settings: dict[str, Any]) -> Generator[RelayClient]:
    assert relay.running
    with RelayClient(settings["control"], settings["token"]) as client:
        yield client
        client.heal()


def test_faults_are_read_changed_and_healed(client: RelayClient) -> None:
    first = {("a", "b"): Fault(delay_ms=1.5), ("b", "a"): CLEAR}
    assert client.faults() == first
    assert client.set_fault("a", "b", jitter_ms=2, loss=0.25) == {
        ("a", "b"): Fault(delay_ms=1.5, jitter_ms=2, loss=0.25)
    }
    assert all(fault.cut for fault in client.cut("a", "b").values())
    client.set_fault("b", "a", cut=False)
    assert [fault.cut for fault in client.faults().values()] == [True, False]
    assert client.heal([("a", "b")]) == {("a", "b"): first["a", "b"]}
    assert all(fault.cut for fault in client.cut("a", "b").values())
    assert client.heal() == client.faults() == first


def test_a_fault_set_over_the_api_is_in_force(
    client: RelayClient, settings: dict[str, Any], upstream: socket.socket
) -> None:
    host, port = settings["links"][0]["listen"].split(":")
    with contextlib.ExitStack() as stack:
        near = stack.enter_context(socket.create_connection((host, int(port)), timeout=10))
        far = stack.enter_context(upstream.accept()[0])
        near.sendall(b"there")
        assert far.recv(5) == b"there"
        client.cut("b", "a", both_ways=False)
        far.sendall(b"back")
        held, metrics = 'palaver_relay_held_bytes{source="b",target="a"} 4.0', ""
        deadline = time.monotonic() + 20
        while held not in metrics:
            assert time.monotonic() < deadline
            metrics = httpx.get(f"http://{settings['control']}/metrics", verify=TRUST_NOBODY).text
        assert 'palaver_relay_connections_total{source="a",target="b"} 1.0' in metrics
        near.setblocking(False)
        with pytest.raises(BlockingIOError):
            near.recv(4)
        client.heal()
        near.settimeout(10)
        assert near.recv(4) == b"back"


@pytest.mark.usefixtures("relay")
def test_the_control_api_lists_links_and_socks_listeners(settings: dict[str, Any]) -> None:
    bearer = {"Authorization": f"Bearer {settings['token']}"}
    listeners = httpx.get(f"http://{settings['control']}/v1/links", verify=TRUST_NOBODY, headers=bearer).json()
    assert listeners == {"links": settings["links"], "socks": settings["socks"]}


def test_invalid_requests_are_refused_with_a_reason(client: RelayClient, settings: dict[str, Any]) -> None:
    with pytest.raises(RelayFailed, match="no link leads from 'a' to 'x'"):
        client.cut("a", "x")
    with pytest.raises(RelayFailed, match="'x'"):
        client.cut("x", "a")
    with pytest.raises(RelayFailed, match="delay_ms"):
        client.set_fault("a", "b", delay_ms=-1)
    base = f"http://{settings['control']}"
    bearer = {"Authorization": f"Bearer {settings['token']}"}
    assert httpx.get(f"{base}/v1/faults", verify=TRUST_NOBODY).status_code == 401
    assert httpx.get(f"{base}/v1/none", verify=TRUST_NOBODY, headers=bearer).status_code == 404
    assert httpx.delete(f"{base}/v1/faults", verify=TRUST_NOBODY, headers=bearer).status_code == 405
    for body in (b"{", b"[]", b'{"changes": 1}', b'{"changes": [1]}', b"\xff"):
        answer = httpx.patch(f"{base}/v1/faults", verify=TRUST_NOBODY, content=body, headers=bearer)
        assert (answer.status_code, list(answer.json())) == (400, ["error"])
    for body in (b'{"pairs": 1}', b'{"pairs": [["a"]]}', b'{"pairs": [["a", 1]]}'):
        answer = httpx.post(f"{base}/v1/faults/heal", verify=TRUST_NOBODY, content=body, headers=bearer)
        assert (answer.status_code, list(answer.json())) == (400, ["error"])


def test_a_relay_that_does_not_run_is_an_error_of_one_line() -> None:
    with (
        RelayClient(f"127.0.0.1:{free_port()}", "t") as client,
        pytest.raises(RelayFailed, match="does not answer"),
    ):
        client.faults()


def test_sigterm_ends_it_with_status_0_and_its_log_is_json(
    relay: Child, settings: dict[str, Any], upstream: socket.socket
) -> None:
    host, port = settings["links"][0]["listen"].split(":")
    with socket.create_connection((host, int(port)), timeout=5), upstream.accept()[0] as far:
        assert relay.stop(signal.SIGTERM) == 0
        with contextlib.suppress(ConnectionResetError):
            assert far.recv(1) == b""
    lines = [json.loads(line) for line in relay.log_text.splitlines()]
    assert [lines[0]["msg"], lines[-1]["msg"]] == ["the network is up", "the network is down"]
    assert {line["level"] for line in lines} == {"info"}


def run(config: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "infra.relay", "--config", str(config)]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=60, check=False)


def test_an_invalid_configuration_is_status_2_and_one_line(tmp_path: Path) -> None:
    for path in (tmp_path / "none.json", tmp_path / "bad.json"):
        (tmp_path / "bad.json").write_text('{"control": 1}')
        done = run(path)
        assert done.returncode == 2
        assert len(done.stderr.splitlines()) == 1


def test_a_used_port_is_status_1_and_one_line(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        fresh = document(upstream_port=free_port())
        link = {**fresh["links"][0], "listen": address}
        for change in ({"control": address}, {"links": [link]}):
            (tmp_path / "relay.json").write_text(json.dumps({**fresh, **change}))
            done = run(tmp_path / "relay.json")
            assert done.returncode == 1, done.stderr
            assert done.stderr.startswith(f"relay: cannot listen on {address}: ")
            assert len(done.stderr.splitlines()) == 1

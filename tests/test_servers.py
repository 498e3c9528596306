"""Tests the temporary servers of `tests/servers.py`."""

import socket
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from regions.plain_http import TRUST_NOBODY
from tests import servers

pytestmark = pytest.mark.integration


def test_postgres_18_runs_unprivileged_with_database_palaver_and_keeps_rows_after_a_kill() -> None:
    with servers.postgres({"application_name": "it's"}) as postgres:
        assert postgres.sql("SELECT current_database(), current_user")[0] == ("palaver", "palaver")
        assert postgres.sql("SHOW application_name") != []
        assert postgres.sql("CREATE TABLE kept (n int); INSERT INTO kept VALUES (7); SELECT n FROM kept") == [(7,)]
        assert Path(f"/proc/{postgres.process.pid}").stat().st_uid != 0
        postgres.kill()
        postgres.start()
        assert postgres.sql("SELECT n FROM kept WHERE n = %s", 7) == [(7,)]
        assert postgres.sql("SHOW server_version_num")[0][0].startswith("18")
        data = postgres.data
    assert not data.exists()


def test_an_etcd_cluster_serves_without_one_member_and_readmits_it() -> None:
    with servers.etcd_cluster(3) as etcd:
        etcd.kill(0)
        ask_until_answered(etcd.endpoints[1], "kv/put", {"key": "YQ==", "value": "Yg=="})
        etcd.start(0)
        answer = ask_until_answered(etcd.endpoints[0], "kv/range", {"key": "YQ=="})
        assert answer["kvs"][0]["value"] == "Yg=="


def ask_until_answered(endpoint: str, path: str, body: dict[str, str]) -> dict[str, Any]:
    """Repeat the request while etcd elects a leader: the killed member may have been the leader."""
    deadline = time.monotonic() + 20
    while True:
        answer = httpx.post(f"http://{endpoint}/v3/{path}", json=body, timeout=10, verify=TRUST_NOBODY)
        if answer.is_success:
            return answer.json()
        assert time.monotonic() < deadline, answer.text
        time.sleep(0.05)


def test_redis_asks_for_its_password_and_starts_again_on_its_port() -> None:
    with servers.redis_server() as server:
        assert redis_says(server.port, "PING").startswith("-NOAUTH")
        server.kill()
        server.start()
        assert redis_says(server.port, f"AUTH {server.password}") == "+OK"


def redis_says(port: int, command: str) -> str:
    with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
        connection.sendall(f"{command}\r\n".encode())
        return connection.recv(1000).decode().strip()


def test_envoy_is_live_when_its_context_is_entered() -> None:
    with servers.envoy({"static_resources": {}}) as envoy:
        assert envoy.admin.get("/ready").text == "LIVE\n"

"""Tests the process of the write API with a real etcd and a real ledger."""

import asyncio
import json
import socket
import uuid
from pathlib import Path

import pytest

from regions.coordination import Coordination, Leadership
from regions.identity import CellId, RegionName
from regions.topology import Address
from tests import servers
from tests.answers import read_answer
from tests.services.processes import Service, raw_exchange, topology

pytestmark = pytest.mark.integration

SECRETS = {
    "PALAVER_ADMIN_KEY": "admin-key-of-tests",
    "PALAVER_AGENT": "127.0.0.1:1",
    "PALAVER_AGENT_SECRET": "a secret of the agents",
    "PALAVER_DERIVATION_SECRET": "derivation-secret",
    "PALAVER_LEDGER_URL": "postgresql://palaver_writer:throwaway@127.0.0.1:1/palaver",
}


async def lead(endpoint: str, epoch: int, leader: str = "us-east") -> None:
    host, _, port = endpoint.rpartition(":")
    leadership = Leadership(
        epoch=epoch,
        leader=RegionName(leader),
        phase="serving",
        fence_id=uuid.uuid4(),
        reason="test",
        since="2026-01-01T00:00:00Z",
    )
    async with Coordination([Address(host, int(port))], None, None) as coordination:
        stored = await coordination.read_leadership(CellId("main"))
        revision = stored[1] if stored else 0
        assert await coordination.swap_leadership(CellId("main"), leadership, revision)


def test_the_write_api_serves_while_its_region_leads_and_survives_its_ledger(
    ledger_server: servers.PostgresServer, tmp_path: Path
) -> None:
    with servers.etcd_cluster() as etcd:
        environment = {
            **SECRETS,
            "PALAVER_TOPOLOGY": str(topology(tmp_path, etcd=etcd.endpoints[0])),
            "PALAVER_LEDGER_URL": ledger_server.url(user="palaver_writer"),
            "PALAVER_TRACE_RATIO": "1",
        }
        with Service("write_api", environment) as service:
            not_ready = service.probe("/readyz")
            assert (not_ready.status_code, not_ready.headers["content-type"]) == (503, "application/problem+json")
            asyncio.run(lead(etcd.endpoints[0], 1))
            service.until_ready()
            created = service.call(
                "POST",
                "/v1/sites",
                json={"name": "S", "origins": []},
                headers={"authorization": "Bearer admin-key-of-tests"},
            )
            assert created.status_code == 201
            path = f"/v1/sites/{created.json()['id']}/comments"
            comment = {"thread": "a", "body": "hello"}
            posted = service.call("POST", path, json=comment, headers={"palaver-epoch": "1"})
            assert posted.status_code == 201
            assert "server" not in posted.headers
            text = service.probe("/metrics").text
            assert (
                'palaver_http_requests_total{method="POST",route="/v1/sites/{site}/comments",status="201"} 1.0' in text
            )
            assert "palaver_epoch 1.0" in text
            assert 'palaver_ledger_pool_connections{state="idle"}' in text
            assert service.probe("/status").json()["serves"] is True

            oversized = b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\nx-large: " + b"x" * 1_000_000 + b"\r\n\r\n"
            assert raw_exchange(service.public, oversized).startswith(b"HTTP/1.1 431 ")
            service.answers.check(read_answer(oversized, raw_exchange(service.public, oversized)))
            chunk = b"%x\r\n" % 65_536 + b"x" * 65_536 + b"\r\n"
            chunked = (
                b"POST %b HTTP/1.1\r\nhost: x\r\nconnection: close\r\ntransfer-encoding: chunked\r\n" % path.encode()
            )
            unfinished = chunked + b"content-type: application/json\r\n\r\n" + chunk * 3
            answer = raw_exchange(service.public, unfinished)
            assert answer.startswith(b"HTTP/1.1 413 ")
            service.answers.check(read_answer(unfinished, answer))

            ledger_server.kill()
            down = service.call("POST", path, json=comment)
            assert (down.status_code, down.headers["retry-after"]) == (503, "1")
            ledger_server.start()
            assert service.call("POST", path, json=comment).status_code == 201

            asyncio.run(lead(etcd.endpoints[0], 2, "eu-west"))
            while service.probe("/status").json()["epoch"] != 2:
                pass
            stale = service.call("POST", path, json=comment)
            assert (stale.status_code, stale.json()["type"].rpartition("/")[2]) == (503, "stale-epoch")
            assert service.stop(path) == 0
            lines = [json.loads(line) for line in service.lines]
            assert {line["process"] for line in lines} == {"write_api"}
            span = next(line for line in lines if line["msg"] == "span" and line["span"].endswith("/comments"))
            assert len(span["trace_id"]) == 32


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"PALAVER_TOPOLOGY": "/nowhere.json"}, "PALAVER_TOPOLOGY"),
        ({"PALAVER_ADMIN_KEY": "short"}, "PALAVER_ADMIN_KEY"),
        ({"PALAVER_AGENT": "nonsense"}, "PALAVER_AGENT"),
        ({"PALAVER_AGENT_SECRET": "short"}, "PALAVER_AGENT_SECRET"),
        ({"PALAVER_POOL_SIZE": "many"}, "PALAVER_POOL_SIZE"),
        ({"PALAVER_LISTEN": "nonsense"}, "PALAVER_LISTEN"),
        ({"PALAVER_LOG_LEVEL": "loud"}, "PALAVER_LOG_LEVEL"),
    ],
)
def test_wrong_settings_are_one_line_and_status_2(change: dict[str, str], said: str, tmp_path: Path) -> None:
    environment = {**SECRETS, "PALAVER_TOPOLOGY": str(topology(tmp_path)), **change}
    with Service("write_api", environment) as service:
        assert service.wait() == 2
        (line,) = service.lines
        assert said in line
        assert "short" not in line


def test_a_taken_port_is_one_line_and_status_2(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        environment = {**SECRETS, "PALAVER_TOPOLOGY": str(topology(tmp_path)), "PALAVER_LISTEN": address}
        with Service("write_api", environment) as service:
            assert service.wait() == 2
            (line,) = service.lines
            assert f"cannot listen on {address}" in line

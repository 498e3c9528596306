"""Tests an etcd cluster whose members use the same names everywhere, and the SOCKS listener of their own region."""

import asyncio
import itertools
import json
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import httpx
import pytest

from infra.relay.links import parse_config
from infra.relay.network import Network
from infra.servers.resolver import resolve
from regions.plain_http import TRUST_NOBODY
from tests.child_processes import Child, folder, free_port
from tests.infra.relay.wire import PATIENCE_S

pytestmark = pytest.mark.integration

REGIONS = ("a", "b", "c")


@dataclass(kw_only=True)
class Cluster:
    network: Network
    clients: dict[str, int]
    members: dict[str, Child]

    async def leader(self, region: str) -> str | None:
        """Return the etcd leader, as the status of a region's member reports it."""
        async with httpx.AsyncClient(trust_env=False, verify=TRUST_NOBODY, timeout=2) as http:
            try:
                base = f"http://127.0.0.1:{self.clients[region]}/v3"
                status = (await http.post(f"{base}/maintenance/status", json={})).json()
                found = (await http.post(f"{base}/cluster/member/list", json={"linearizable": False})).json()
            except httpx.TransportError:
                return None
        names = {member["ID"]: member.get("name") for member in found.get("members", [])}
        return names.get(status.get("leader"))

    async def put(self, region: str) -> bool:
        async with httpx.AsyncClient(trust_env=False, verify=TRUST_NOBODY, timeout=1) as http:
            try:
                body = {"key": "YQ==", "value": "Yg=="}
                answer = await http.post(f"http://127.0.0.1:{self.clients[region]}/v3/kv/put", json=body)
            except httpx.TransportError:
                return False
        return answer.is_success

    async def until_put(self, region: str) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while not await self.put(region):  # noqa: ASYNC110 - a state of other processes
                await asyncio.sleep(0.1)


@asynccontextmanager
async def cluster(delay_ms: float) -> AsyncGenerator[Cluster]:
    peers = {region: free_port() for region in REGIONS}
    clients = {region: free_port() for region in REGIONS}
    socks = {region: free_port() for region in REGIONS}
    document = {
        "control": f"127.0.0.1:{free_port()}",
        "token": "secret",
        "socks": [
            {
                "listen": f"127.0.0.1:{socks[source]}",
                "source": source,
                "routes": {
                    f"{target}.etcd.internal:2380": {
                        "target": target,
                        "upstream": f"127.0.0.1:{peers[target]}",
                    }
                    for target in REGIONS
                    if target != source
                },
            }
            for source in REGIONS
        ],
        "faults": [
            {"source": source, "target": target, "delay_ms": delay_ms}
            for source, target in itertools.permutations(REGIONS, 2)
        ],
    }
    with folder() as root:
        members: dict[str, Child] = {}
        for region in REGIONS:
            client = f"http://127.0.0.1:{clients[region]}"
            members[region] = Child(
                [
                    resolve("etcd").path,
                    f"--name={region}",
                    f"--data-dir={root / region}",
                    f"--listen-client-urls={client}",
                    f"--advertise-client-urls={client}",
                    f"--listen-peer-urls=http://127.0.0.1:{peers[region]}",
                    f"--initial-advertise-peer-urls=http://{region}.etcd.internal:2380",
                    "--initial-cluster=" + ",".join(f"{r}=http://{r}.etcd.internal:2380" for r in REGIONS),
                    "--heartbeat-interval=50",
                    "--election-timeout=500",
                    "--unsafe-no-fsync",
                    "--log-level=error",
                ],
                log=root / f"{region}.log",
                ready=lambda: True,
                environment={"HTTP_PROXY": f"socks5://127.0.0.1:{socks[region]}", "NO_PROXY": ""},
            )
        try:
            async with Network(parse_config(json.dumps(document))) as network:
                for member in members.values():
                    member.start()
                yield Cluster(network=network, clients=clients, members=members)
        finally:
            for member in members.values():
                member.kill()


async def test_an_etcd_cluster_forms_and_survives_the_cut_of_a_region() -> None:
    async with cluster(delay_ms=10) as etcd:
        for region in REGIONS:
            await etcd.until_put(region)
        lost = await etcd.leader("a")
        assert lost in REGIONS
        others = [region for region in REGIONS if region != lost]
        etcd.network.change(
            {"source": source, "target": target, "cut": True}
            for source, target in itertools.permutations(REGIONS, 2)
            if lost in (source, target)
        )
        await etcd.until_put(others[0])
        assert await etcd.leader(others[0]) in others
        assert not await etcd.put(lost)
        etcd.network.heal()
        await etcd.until_put(lost)
        assert await etcd.leader(lost) == await etcd.leader(others[0])

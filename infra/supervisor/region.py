"""The processes of one region: command line, start order and readiness probe of each.

The order is a table (`NEEDS`). It does not contain the ledger's PostgreSQL: the region agent starts and stops it,
because the leadership decides what it may do.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Mapping

from infra.servers.resolver import ServerBinary, ServerName
from infra.servers.unprivileged import accessible_data_folder, account
from infra.supervisor.clocks import clock_environment
from infra.supervisor.environment import (
    DeploymentContext,
    address,
    redis_url,
    service_environment,
    topology_document,
    view_url,
)
from infra.supervisor.envoy import bootstrap, write_bootstrap
from infra.supervisor.probes import http_probe, postgres_probe, redis_probe
from infra.supervisor.process import READY_POLL_S, ProcessSpec, base_environment
from infra.supervisor.records import DEPLOYMENT_VARIABLE
from infra.supervisor.secrets import write_private
from infra.supervisor.view import prepare_view

VOTER_PROCESSES = ("etcd", "view", "redis", "region_agent", "write_api", "read_api", "replicator", "envoy")
VIEW_PROCESSES = ("view", "redis", "region_agent", "read_api", "replicator", "envoy")
# The names that `palaver status` and `palaver fault` use, in the order of the documentation.
PROCESS_NAMES = (
    "etcd", "ledger", "view", "redis", "envoy", "region_agent", "write_api", "read_api", "replicator",
)  # fmt: skip
# Envoy's default is one worker for each processor, but the edges of all regions share the processors of this machine.
ENVOY_WORKERS = min(4, os.cpu_count() or 1)
NEEDS: Mapping[str, tuple[str, ...]] = {
    "etcd": (),
    "view": (),
    "redis": (),
    "region_agent": ("etcd",),
    "write_api": ("etcd",),
    "replicator": ("view", "redis"),
    "read_api": ("view", "redis"),
    "envoy": ("region_agent",),
}
STOP_ORDER = (
    ("envoy",),
    ("write_api", "read_api", "replicator"),
    ("region_agent",),
    ("redis", "view"),
    ("etcd",),
)

ETCD_HEARTBEAT_MS_MIN = 50
ETCD_ELECTION_PER_HEARTBEAT = 10  # etcd's tuning guide: election timeout at least ten round trips
ETCD_TOKEN_TTL_S = (
    365 * 24 * 3600
)  # simple tokens: a restarted member does not know them, and clients authenticate again


def region_specs(
    context: DeploymentContext, servers: Mapping[ServerName, ServerBinary], region: str
) -> list[ProcessSpec]:
    """Write the topology of a region; return the processes to run, each after those that it needs."""
    write_private(context.layout.topology(region), topology_document(context.plan, region))
    names = VOTER_PROCESSES if context.plan.is_voter(region) else VIEW_PROCESSES
    makers = {"etcd": _etcd, "view": _view, "redis": _redis, "envoy": _envoy}
    specs: list[ProcessSpec] = []
    for name in names:
        if name in makers:
            specs.append(makers[name](context, servers, region))
        else:
            specs.append(_service(context, region, name))
    return specs


def etcd_host(region: str) -> str:
    """Return the host name by which etcd members know each other.

    No resolver knows it. etcd connects to its peers through the SOCKS listener that the relay has for its region (Go's
    HTTP client honours HTTP_PROXY=socks5://); the listener and the name give the relay both ends of the connection.
    """
    return f"{region}.etcd.palaver.internal"


def _server_environment(context: DeploymentContext) -> dict[str, str]:
    return base_environment() | {DEPLOYMENT_VARIABLE: context.plan.deployment}


def _etcd(context: DeploymentContext, servers: Mapping[ServerName, ServerBinary], region: str) -> ProcessSpec:
    plan, server = context.plan, servers["etcd"]
    client = f"http://{address(plan.port(region, 'etcd'))}"
    peer_port = plan.port(region, "etcd_peer")
    members = ",".join(f"{name}=http://{etcd_host(name)}:2380" for name in plan.regions)
    heartbeat_ms = max(ETCD_HEARTBEAT_MS_MIN, round(plan.rtt_ms * 1.25))
    argv = (
        str(server.path), *server.extra_flags, "--name", region,
        "--data-dir", str(context.layout.region(region) / "etcd"),
        "--listen-client-urls", client, "--advertise-client-urls", client,
        "--listen-peer-urls", f"http://{address(peer_port)}",
        "--initial-advertise-peer-urls", f"http://{etcd_host(region)}:2380",
        "--initial-cluster", members, "--initial-cluster-token", plan.deployment,
        "--heartbeat-interval", str(heartbeat_ms),
        "--election-timeout", str(heartbeat_ms * ETCD_ELECTION_PER_HEARTBEAT),
        "--grpc-keepalive-min-time", "100ms", "--auth-token-ttl", str(ETCD_TOKEN_TTL_S), "--bcrypt-cost", "4",
        "--auto-compaction-mode", "periodic", "--auto-compaction-retention", "1h",
        "--log-level", "warn",
    )  # fmt: skip
    proxy = f"socks5://{address(plan.port(region, 'socks'))}"
    return ProcessSpec(
        region=region,
        process="etcd",
        argv=argv,
        env=_server_environment(context) | {"HTTP_PROXY": proxy, "NO_PROXY": "", "no_proxy": ""},
        log=context.layout.log(region, "etcd"),
        ready=http_probe(f"{client}/health"),
    )


def _view(context: DeploymentContext, _: Mapping[ServerName, ServerBinary], region: str) -> ProcessSpec:
    folder = context.layout.region(region) / "view"
    target = accessible_data_folder(folder, account())

    async def prepare() -> None:
        port = context.plan.port(region, "view")
        await prepare_view(folder, postgres_bin=context.postgres_bin, port=port, secrets=context.secrets)

    return ProcessSpec(
        region=region,
        process="view",
        argv=(str(context.postgres_bin / "postgres"), "-D", str(target)),
        env=_server_environment(context) | clock_environment(context.layout, region),
        log=context.layout.log(region, "view"),
        ready=postgres_probe(view_url(context, region, "palaver_apply", context.secrets.view_apply)),
        os_user=context.os_user,
        prepare=prepare,
        stop_signal=signal.SIGINT,
    )


def _redis(context: DeploymentContext, servers: Mapping[ServerName, ServerBinary], region: str) -> ProcessSpec:
    home = context.layout.region(region) / "redis"
    lines = {
        "bind": "127.0.0.1",
        "port": str(context.plan.port(region, "redis")),
        "requirepass": context.secrets.redis,
        "dir": f'"{home}"',
        "save": '""',
        "appendonly": "no",
        "maxmemory": "64mb",
        "maxmemory-policy": "volatile-lru",  # the generation of the pages has no time to live and must not be evicted
        "daemonize": "no",
    }
    config = home / "redis.conf"
    write_private(config, "".join(f"{name} {value}\n" for name, value in lines.items()).encode())
    return ProcessSpec(
        region=region,
        process="redis",
        argv=(str(servers["redis"].path), str(config)),
        env=_server_environment(context) | clock_environment(context.layout, region),
        log=context.layout.log(region, "redis"),
        ready=redis_probe(redis_url(context, region)),
    )


def _envoy(context: DeploymentContext, servers: Mapping[ServerName, ServerBinary], region: str) -> ProcessSpec:
    xds, admin = context.layout.xds(region), context.layout.unix_socket(region, "admin")
    listeners, clusters = xds / "lds" / "listeners.json", xds / "cds" / "clusters.json"
    config = context.layout.region(region) / "envoy" / "bootstrap.json"
    write_bootstrap(config, bootstrap(region=region, xds=xds, admin_socket=admin))

    async def prepare() -> None:
        admin.unlink(missing_ok=True)  # Envoy does not start if the socket of a killed Envoy exists.
        # Envoy does not start without the files that it watches; the agent writes them.
        while not (listeners.exists() and clusters.exists()):  # noqa: ASYNC110 - another process creates the files
            await asyncio.sleep(READY_POLL_S)

    return ProcessSpec(
        region=region,
        process="envoy",
        argv=(
            str(servers["envoy"].path), "-c", str(config), "--concurrency", str(ENVOY_WORKERS), "--disable-hot-restart",
            "--log-level", "warning",
            "--log-format", '{"ts":"%Y-%m-%dT%T.%fZ","level":"%l","logger":"%n","msg":"%j"}',
        ),
        env=_server_environment(context),
        log=context.layout.log(region, "envoy"),
        ready=http_probe("http://envoy/ready", unix_socket=admin),
        needs=NEEDS["envoy"],
        prepare=prepare,
    )  # fmt: skip


def _service(context: DeploymentContext, region: str, service: str) -> ProcessSpec:
    environment = service_environment(context, region, service)
    needs = NEEDS[service]
    return ProcessSpec(
        region=region,
        process=service,
        argv=(sys.executable, "-P", "-m", f"services.{service}"),
        env=environment,
        log=context.layout.log(region, service),
        ready=http_probe(f"http://{environment['PALAVER_INTERNAL_LISTEN']}/healthz"),
        needs=needs if context.plan.is_voter(region) else tuple(need for need in needs if need != "etcd"),
        # The agent shuts its PostgreSQL down as well, which may write a checkpoint.
        stop_timeout_s=20.0 if service == "region_agent" else 8.0,
    )

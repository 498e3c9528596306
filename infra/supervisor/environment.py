"""The environment of each process of a region: which process gets which address and which secret.

The processes run unchanged under docker-compose or Kubernetes; `docs/settings.md` documents their settings. This module
decides no defaults: a setting that it does not name has the process's own default.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import orjson

from infra.servers.unprivileged import accessible_data_folder, account
from infra.supervisor.clocks import clock_environment, clocked_programs, have_clocks
from infra.supervisor.layout import Layout
from infra.supervisor.plan import LINKED_SERVICES, Plan
from infra.supervisor.process import base_environment
from infra.supervisor.records import DEPLOYMENT_VARIABLE
from infra.supervisor.secrets import Secrets

LOOPBACK = "127.0.0.1"
VOTER_SERVICES = ("etcd", "ledger", "write_api")  # a view-only region has none of these


@dataclass(frozen=True, slots=True, kw_only=True)
class DeploymentContext:
    """What the processes of a deployment are configured from.

    Attributes:
        plan: Regions and ports.
        secrets: Passwords and tokens.
        layout: Folders.
        postgres_bin: Folder of the PostgreSQL programs.
        os_user: Account that PostgreSQL runs as; None if the supervisor itself is unprivileged.
    """

    plan: Plan
    secrets: Secrets
    layout: Layout
    postgres_bin: Path
    os_user: str | None


def address(port: int) -> str:
    """Return `host:port` on loopback. No process of an embedded deployment listens on another interface."""
    return f"{LOOPBACK}:{port}"


def topology_document(plan: Plan, source: str) -> bytes:
    """Return the topology file of `source`: its own services directly, those of other regions through the relay."""

    def reached(target: str, service: str) -> str:
        if target == source:
            return address(plan.port(target, service))
        return address(plan.link_port(source, target, service))

    regions = [
        {"name": target, "voter": plan.is_voter(target)}
        | {
            service: reached(target, service)
            for service in LINKED_SERVICES
            if plan.is_voter(target) or service not in VOTER_SERVICES
        }
        for target in plan.all_regions
    ]
    document = {"cell": plan.cell, "region": source, "regions": regions}
    return orjson.dumps(document, option=orjson.OPT_INDENT_2)


def view_url(context: DeploymentContext, region: str, role: str, password: str) -> str:
    """Return the URL of a region's view for one database role."""
    return f"postgresql://{role}:{password}@{address(context.plan.port(region, 'view'))}/palaver"


def redis_url(context: DeploymentContext, region: str) -> str:
    """Return the URL of a region's Redis."""
    return f"redis://:{context.secrets.redis}@{address(context.plan.port(region, 'redis'))}/0"


def service_environment(context: DeploymentContext, region: str, service: str) -> dict[str, str]:
    """Return the whole environment of `python -m services.<service>` in a region."""
    plan, secrets = context.plan, context.secrets
    common = (
        base_environment()
        | clock_environment(context.layout, region)
        | {
            DEPLOYMENT_VARIABLE: plan.deployment,
            "PALAVER_TOPOLOGY": str(context.layout.topology(region)),
        }
    )
    etcd = {"PALAVER_ETCD_USER": "root", "PALAVER_ETCD_PASSWORD": secrets.etcd}
    match service:
        case "region_agent":
            own = etcd | _agent_environment(context, region)
            listener = "agent_internal"
        case "write_api":
            own = etcd | _write_environment(context, region)
            listener = "write_api_internal"
        case "read_api":
            own = {
                "PALAVER_LISTEN": address(plan.port(region, "read_api")),
                "PALAVER_UNIX_LISTEN": str(context.layout.unix_socket(region, "read_api")),
                "PALAVER_VIEW_URL": view_url(context, region, "palaver_reader", secrets.view_reader),
                "PALAVER_REDIS_URL": redis_url(context, region),
            }
            listener = "read_api_internal"
        case "replicator":
            own = etcd | _replicator_environment(context, region)
            listener = "replicator_internal"
        case _:
            raise AssertionError(f"no such service: {service}")
    return common | own | {"PALAVER_INTERNAL_LISTEN": address(plan.port(region, listener))}


def _agent_environment(context: DeploymentContext, region: str) -> dict[str, str]:
    home, plan, secrets = context.layout.region(region), context.plan, context.secrets
    edge = {
        "PALAVER_STATE_DIR": str(home / "agent"),
        "PALAVER_EDGE_DIR": str(context.layout.xds(region)),
        "PALAVER_EDGE_LISTEN": address(plan.port(region, "edge")),
        "PALAVER_EDGE_ADMIN": str(context.layout.unix_socket(region, "admin")),
        "PALAVER_EDGE_READ_SOCKET": str(context.layout.unix_socket(region, "read_api")),
        "PALAVER_AGENT_LISTEN": address(plan.port(region, "agent")),
        "PALAVER_AGENT_SECRET": secrets.agent,
    }
    if not plan.limit_clients:
        edge |= {"PALAVER_EDGE_CLIENT_REQUESTS_PER_S": "0", "PALAVER_EDGE_CLIENT_WRITES_PER_S": "0"}
    if not plan.is_voter(region):
        return edge
    edge["PALAVER_EDGE_WRITE_SOCKET"] = str(context.layout.unix_socket(region, "write_api"))
    clocked = have_clocks(context.layout)
    programs = clocked_programs(context.layout, region) if clocked else context.postgres_bin
    ledger = {
        "PALAVER_LEDGER_DATA": str(accessible_data_folder(home / "ledger", account())),
        "PALAVER_LEDGER_LISTEN": address(plan.port(region, "ledger")),
        "PALAVER_LEDGER_LOG": str(context.layout.log(region, "ledger")),
        "PALAVER_POSTGRES_BIN": str(programs),
        "PALAVER_LEDGER_SUPERUSER_PASSWORD": secrets.ledger_superuser,
        "PALAVER_REPLICATION_PASSWORD": secrets.ledger_replication,
        "PALAVER_WRITER_PASSWORD": secrets.ledger_writer,
    }
    runs_as = {} if context.os_user is None else {"PALAVER_OS_USER": context.os_user}
    return edge | ledger | runs_as


def _write_environment(context: DeploymentContext, region: str) -> dict[str, str]:
    ledger = address(context.plan.port(region, "ledger"))
    return {
        "PALAVER_LISTEN": address(context.plan.port(region, "write_api")),
        "PALAVER_UNIX_LISTEN": str(context.layout.unix_socket(region, "write_api")),
        "PALAVER_LEDGER_URL": f"postgresql://palaver_writer:{context.secrets.ledger_writer}@{ledger}/palaver",
        "PALAVER_AGENT": address(context.plan.port(region, "agent_internal")),
        "PALAVER_AGENT_SECRET": context.secrets.agent,
        "PALAVER_ADMIN_KEY": context.secrets.admin_key,
        "PALAVER_DERIVATION_SECRET": context.secrets.derivation,
    }


def _replicator_environment(context: DeploymentContext, region: str) -> dict[str, str]:
    plan, secrets = context.plan, context.secrets
    own = {
        "PALAVER_VIEW_URL": view_url(context, region, "palaver_apply", secrets.view_apply),
        "PALAVER_REDIS_URL": redis_url(context, region),
        "PALAVER_CHANGES_LISTEN": address(plan.port(region, "changes")),
        "PALAVER_CHANGES_TOKEN": secrets.changes_token,
    }
    if not plan.is_voter(region):
        return own
    conninfo = (
        f"host={LOOPBACK} port={plan.port(region, 'ledger')} dbname=palaver "
        f"user=palaver_replication password={secrets.ledger_replication}"
    )
    return own | {"PALAVER_LEDGER_REPLICATION": conninfo}

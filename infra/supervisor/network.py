"""The relay's configuration for a deployment: the links between its regions.

Decides which traffic goes through the relay: everything that a topology lists as an address of another region, and the
peer traffic of etcd. Knows only the delay with which a deployment starts; commands change delays at the relay itself.
"""

from __future__ import annotations

import itertools
import sys
from typing import Any

import orjson

from infra.supervisor.environment import VOTER_SERVICES, DeploymentContext, address
from infra.supervisor.plan import LINKED_SERVICES, Plan
from infra.supervisor.probes import http_probe
from infra.supervisor.process import ProcessSpec, base_environment
from infra.supervisor.records import DEPLOYMENT_VARIABLE
from infra.supervisor.region import etcd_host
from infra.supervisor.secrets import write_private


def relay_document(context: DeploymentContext) -> dict[str, Any]:
    """Return the relay's configuration: a listener for each pair and service, and a SOCKS listener for each voter."""
    plan = context.plan
    return {
        "control": address(plan.deployment_port("relay_control")),
        "token": context.secrets.relay_token,
        "links": [link for source in plan.all_regions for link in _links(plan, source)],
        "socks": [_socks(plan, source) for source in plan.regions],
        "faults": [
            {"source": source, "target": target, "delay_ms": plan.rtt_ms / 2}
            for source, target in itertools.permutations(plan.all_regions, 2)
        ],
    }


def _links(plan: Plan, source: str) -> list[dict[str, Any]]:
    return [
        {
            "listen": address(plan.link_port(source, target, service)),
            "source": source,
            "target": target,
            "upstream": address(plan.port(target, service)),
        }
        for target in plan.all_regions
        for service in LINKED_SERVICES
        if target != source and (plan.is_voter(target) or service not in VOTER_SERVICES)
    ]


def _socks(plan: Plan, source: str) -> dict[str, Any]:
    return {
        "listen": address(plan.port(source, "socks")),
        "source": source,
        "routes": {
            f"{etcd_host(target)}:2380": {"target": target, "upstream": address(plan.port(target, "etcd_peer"))}
            for target in plan.regions
            if target != source
        },
    }


def relay_spec(context: DeploymentContext) -> ProcessSpec:
    """Write the relay's configuration file; return its process specification."""
    config = context.layout.relay_config
    write_private(config, orjson.dumps(relay_document(context), option=orjson.OPT_INDENT_2))
    control = address(context.plan.deployment_port("relay_control"))
    return ProcessSpec(
        region=None,
        process="relay",
        argv=(sys.executable, "-P", "-m", "infra.relay", "--config", str(config)),
        env=base_environment() | {DEPLOYMENT_VARIABLE: context.plan.deployment},
        log=context.layout.log(None, "relay"),
        ready=http_probe(f"http://{control}/healthz"),
    )

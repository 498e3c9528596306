"""Reads the present state of a deployment from its agents, replicators, services and relay.

Decides when a region is healthy and which addresses `palaver status --json` lists. Opens no file, starts no process.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

import httpx

from infra.supervisor.environment import VOTER_SERVICES, address
from infra.supervisor.plan import REGION_PORTS, Plan

ASK_TIMEOUT_S = 1.0  # so that a paused process does not delay the status of all others
READY_SERVICES = {
    "region_agent": "agent_internal",
    "read_api": "read_api_internal",
    "replicator": "replicator_internal",
}

METRICS_LISTENERS = {
    "region_agent": "agent_internal",
    "write_api": "write_api_internal",
    "read_api": "read_api_internal",
    "replicator": "replicator_internal",
}
VOTER_LISTENERS = {*VOTER_SERVICES, "etcd_peer", "write_api_internal", "socks"}

Document = dict[str, Any]


def region_addresses(plan: Plan, region: str) -> dict[str, str]:
    """Return the `host:port` of each listener of a region, by its name in the plan."""
    names = (name for name in REGION_PORTS if plan.is_voter(region) or name not in VOTER_LISTENERS)
    return {name: address(plan.port(region, name)) for name in names}


def scrape_targets(plan: Plan) -> list[Document]:
    """Return the address of each own process that serves `/metrics`, in the format of Prometheus' `file_sd_configs`.

    The labels are `region` and `process`; the supervisor and the relay belong to no region.
    """
    targets: list[Document] = [
        {"targets": [address(plan.deployment_port(name))], "labels": {"process": process}}
        for process, name in (("supervisor", "control"), ("relay", "relay_control"))
    ]
    for region in plan.all_regions:
        listeners = region_addresses(plan, region)
        targets += [
            {"targets": [listeners[listener]], "labels": {"region": region, "process": process}}
            for process, listener in METRICS_LISTENERS.items()
            if listener in listeners
        ]
    return targets


async def ask_region(client: httpx.AsyncClient, plan: Plan, region: str) -> Document:
    """Ask the services of one region for their status and for what they still lack.

    Returns:
        `{"agent": status or None, "replicator": status or None, "missing": [text…]}`.
    """
    names = list(READY_SERVICES)
    answers = await asyncio.gather(
        ask(client, plan, region, "agent_internal", "status"),
        ask(client, plan, region, "replicator_internal", "status"),
        *(ask(client, plan, region, READY_SERVICES[name], "readyz") for name in names),
    )
    missing = [
        f"{name}: {_missing_text(answer)}"
        for name, answer in zip(names, answers[2:], strict=True)
        if answer is None or answer.get("http_status") != HTTPStatus.OK
    ]
    return {"agent": _ok(answers[0]), "replicator": _ok(answers[1]), "missing": missing}


async def ask(client: httpx.AsyncClient, plan: Plan, region: str, listener: str, path: str) -> Document | None:
    """Return the JSON answer of one service, plus its status code as `http_status`; None if it does not answer."""
    try:
        answer = await client.get(f"http://{address(plan.port(region, listener))}/{path}", timeout=ASK_TIMEOUT_S)
        document: Document = answer.json() if answer.content else {}
    except (httpx.HTTPError, ValueError):
        return None
    return document | {"http_status": answer.status_code}


async def ask_faults(client: httpx.AsyncClient, plan: Plan, token: str) -> list[Document] | None:
    """Return each direction between two regions whose network differs from the plan; None if the relay does not answer.

    An entry has the relay's fields: `source`, `target`, `delay_ms`, `jitter_ms`, `loss`, `cut`.
    """
    url = f"http://{address(plan.deployment_port('relay_control'))}/v1/faults"
    try:
        answer = await client.get(url, headers={"authorization": f"Bearer {token}"}, timeout=ASK_TIMEOUT_S)
        entries: list[Document] = answer.json()["faults"]
    except (httpx.HTTPError, ValueError, KeyError):
        return None
    usual = {"delay_ms": plan.rtt_ms / 2, "jitter_ms": 0.0, "loss": 0.0, "cut": False}
    return [entry for entry in entries if any(entry[name] != value for name, value in usual.items())]


def _ok(answer: Document | None) -> Document | None:
    return answer if answer is not None and answer["http_status"] == HTTPStatus.OK else None


def _missing_text(answer: Document | None) -> str:
    if answer is None:
        return "does not answer"
    return str(answer.get("detail") or answer.get("missing") or f"answers {answer['http_status']}")


def region_document(  # noqa: PLR0913 - the parts of one document, all named
    plan: Plan,
    region: str,
    *,
    pids: Mapping[str, int | None],
    state: str,
    restarts: Mapping[str, int],
    answers: Document,
    cell: Document,
) -> Document:
    """Return one entry of `regions` in `palaver status --json`.

    The role comes from the cell's newest record, because an agent that is cut off may still report its region as
    leader. A region that was removed from the voters is view-only, and its ledger does not have to run.
    """
    agent: Document = answers["agent"] or {}
    replicator: Document = answers["replicator"] or {}
    missing: list[str] = list(answers["missing"])
    holds_ledger = region in (*cell["voters"], *cell["joining"]) if cell["voters"] else plan.is_voter(region)
    role = "leader" if region == cell["leader"] else "follower" if holds_ledger else "view"
    needed = {name: pid for name, pid in pids.items() if name != "ledger" or holds_ledger}
    missing += [f"{name}: not running" for name, pid in needed.items() if pid is None]
    return {
        "region": region,
        "role": role,
        "edge": f"http://{address(plan.port(region, 'edge'))}",
        "addresses": region_addresses(plan, region),
        "state": state,
        "pids": dict(pids),
        "restarts": dict(restarts),
        "applied_position": replicator.get("applied_position"),
        "lag_ms": replicator.get("lag_ms"),
        "dead_letters": replicator.get("dead_letters"),
        "failover": agent.get("failover"),
        "member": agent.get("member"),
        "edge_config": agent.get("edge"),
        "healthy": state == "running" and not missing,
        "missing": missing,
        "warnings": [*agent.get("warnings", []), *_letter_warnings(region, replicator)],
    }


def _letter_warnings(region: str, replicator: Document) -> list[str]:
    """Return the warning of a view with dead letters, with their number by reason."""
    kinds: dict[str, int] = replicator.get("dead_letters_by_reason") or {}
    if not kinds:
        return []
    texts = ", ".join(f"{number} {kind}" for kind, number in kinds.items())
    return [f"dead letters: {texts}: `palaver deadletters list --region {region}`"]


def cell_document(plan: Plan, answers: Mapping[str, Document]) -> Document:
    """Return the entry of `cells`, from the newest epoch that any agent knows."""
    known = [answer["agent"] for answer in answers.values() if answer["agent"]]
    known = [agent for agent in known if agent.get("epoch") is not None]
    newest: Document = max(known, key=_newness) if known else {}
    return {
        "cell": plan.cell,
        "epoch": newest.get("epoch"),
        "leader": newest.get("leader"),
        "phase": newest.get("phase") or "unknown",
        "reason": newest.get("reason"),
        "automatic": failover_of(newest).get("automatic", True),
        "voters": failover_of(newest).get("voters", []),
        "joining": failover_of(newest).get("joining", []),
        "drained": failover_of(newest).get("drained", []),
        "writes_refused": _refused(newest, known),
    }


def _newness(agent: Document) -> tuple[int, int]:
    """Order by epoch; within an epoch prefer the leader's agent, which writes the record or reads it first."""
    return int(agent["epoch"]), int(agent["region"] == agent["leader"])


def failover_of(agent: Mapping[str, Any]) -> Document:
    """Return the state of an agent's failover core; empty if its answer has none."""
    failover: Document = agent.get("failover") or {}
    return failover


def _refused(newest: Document, known: list[Document]) -> str | None:
    """Return why no region accepts writes now and what would end this; None if a region accepts writes."""
    if any(failover_of(agent).get("takes_writes") for agent in known if agent["epoch"] == newest["epoch"]):
        return None
    refusals = [f"{agent['region']}: {agent['refusal']}" for agent in known if agent.get("refusal")]
    if refusals:
        return "; ".join(refusals)
    if not newest:
        return "no agent knows a leadership yet"
    if newest.get("phase") == "serving":
        return (
            f"{newest['leader']} leads and accepts no writes: the other regions fail over when two of them suspect it"
        )
    return f"epoch {newest['epoch']} is {newest.get('phase')}: it serves within seconds if a quorum is reachable"

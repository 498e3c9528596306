"""What a deployment looks like now, asked of the agents, replicators and services themselves.

Decides when a region counts as healthy. Opens no file and starts nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

import httpx

from infra.supervisor.environment import address
from infra.supervisor.plan import Plan

ASK_TIMEOUT_S = 1.0  # a paused process must not hold the whole status up
READY_SERVICES = {
    "region_agent": "agent_internal",
    "read_api": "read_api_internal",
    "replicator": "replicator_internal",
}

Document = dict[str, Any]


async def ask_region(client: httpx.AsyncClient, plan: Plan, region: str) -> Document:
    """Ask the services of one region for their status and what they still miss.

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
    """Return what one service answers, with its status as `http_status`; None when it does not answer."""
    try:
        answer = await client.get(f"http://{address(plan.port(region, listener))}/{path}", timeout=ASK_TIMEOUT_S)
        document: Document = answer.json() if answer.content else {}
    except (httpx.HTTPError, ValueError):
        return None
    return document | {"http_status": answer.status_code}


async def ask_faults(client: httpx.AsyncClient, plan: Plan, token: str) -> list[Document] | None:
    """Return each direction between two regions whose network is not as the plan has it; None without an answer.

    An entry is as the relay writes it: `source`, `target`, `delay_ms`, `jitter_ms`, `loss`, `cut`.
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
    """One entry of `regions` in `palaver status --json`.

    The role follows from the cell's record: an agent that is cut off may still take itself for the leader. A region
    that was removed from the voters only reads, and its ledger does not have to run.
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
        "state": state,
        "pids": dict(pids),
        "restarts": dict(restarts),
        "applied_position": replicator.get("applied_position"),
        "lag_ms": replicator.get("lag_ms"),
        "failover": agent.get("failover"),
        "member": agent.get("member"),
        "edge_config": agent.get("edge"),
        "healthy": state == "running" and not missing,
        "missing": missing,
        "warnings": list(agent.get("warnings", [])),
    }


def cell_document(plan: Plan, answers: Mapping[str, Document]) -> Document:
    """The entry of `cells`: the newest epoch that any agent knows."""
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
    """By epoch; within one it is the leader that writes the record, or reads it first."""
    return int(agent["epoch"]), int(agent["region"] == agent["leader"])


def failover_of(agent: Mapping[str, Any]) -> Document:
    """What an agent says of its failover core; empty when it says nothing."""
    failover: Document = agent.get("failover") or {}
    return failover


def _refused(newest: Document, known: list[Document]) -> str | None:
    """Why no region takes writes now, and what would end it; None when one does."""
    if any(failover_of(agent).get("takes_writes") for agent in known if agent["epoch"] == newest["epoch"]):
        return None
    refusals = [f"{agent['region']}: {agent['refusal']}" for agent in known if agent.get("refusal")]
    if refusals:
        return "; ".join(refusals)
    if not newest:
        return "no agent knows a leadership yet"
    if newest.get("phase") == "serving":
        return f"{newest['leader']} leads and does not take writes: it is lost, and the others agree about that first"
    return f"epoch {newest['epoch']} is {newest.get('phase')}: it serves within seconds when a quorum can be had"

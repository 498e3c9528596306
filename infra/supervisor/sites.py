"""Creates and reads sites, as every holder of the key can do at any edge."""

from __future__ import annotations

import uuid
from typing import Any

import httpx

from infra.supervisor.environment import address
from infra.supervisor.errors import DeploymentError, InvalidPlan
from infra.supervisor.layout import Layout
from infra.supervisor.plan import Plan
from infra.supervisor.secrets import load_or_create_secrets

TIMEOUT_S = 15.0  # longer than an edge keeps retrying a keyed write


def create_site(layout: Layout, plan: Plan, *, name: str, origins: list[str]) -> dict[str, Any]:
    """Create a site through the first edge that answers.

    Raises:
        InvalidPlan: The API refused the name or an origin.
        DeploymentError: No edge could do it.
    """
    secrets = load_or_create_secrets(layout.secrets)
    # One key for all edges: whichever answers, one site is made.
    headers = {"authorization": f"Bearer {secrets.admin_key}", "idempotency-key": uuid.uuid4().hex}
    return _ask(plan, "POST", "/v1/sites", headers, {"name": name, "origins": origins})


def read_site(plan: Plan, site: uuid.UUID, api_key: str) -> dict[str, Any]:
    """Read a site through the first edge that answers.

    Raises:
        InvalidPlan: There is no such site, or the key is not its API key.
        DeploymentError: No edge could do it.
    """
    return _ask(plan, "GET", f"/v1/sites/{site}", {"authorization": f"Bearer {api_key}"}, None)


def _ask(plan: Plan, method: str, path: str, headers: dict[str, str], body: dict[str, Any] | None) -> dict[str, Any]:
    reasons: list[str] = []
    for region in plan.all_regions:
        try:
            answer = httpx.request(
                method,
                f"http://{address(plan.port(region, 'edge'))}{path}",
                json=body,
                headers=headers,
                timeout=TIMEOUT_S,
                trust_env=False,  # loopback is reached by no proxy
            )
        except httpx.HTTPError as error:
            reasons.append(f"{region}: {type(error).__name__}")
            continue
        document: dict[str, Any] = answer.json()
        if answer.is_success:
            return document
        if answer.is_client_error:
            origins: list[str] = [] if body is None else body["origins"]
            fields = "; ".join(
                f"{_option(entry['field'], origins)}: {entry['message']}" for entry in document.get("errors", [])
            )
            raise InvalidPlan(fields or str(document.get("detail") or document.get("title")))
        reasons.append(f"{region}: {document.get('title')}")
    raise DeploymentError(f"no edge answered ({'; '.join(reasons)}); see `palaver status`")


def _option(field: str, origins: list[str]) -> str:
    """Return the argument of the command line that a field of the request came from."""
    name, _, number = field.partition(".")
    if name == "origins":
        return f"--origin {origins[int(number)]!r}" if number.isdigit() and int(number) < len(origins) else "--origin"
    return "NAME" if name == "name" else field

"""Creates, lists, reads and edits sites through the edges, with requests that any holder of the key can send."""

from __future__ import annotations

import uuid
from typing import Any
from urllib.parse import urlencode

import httpx

from infra.supervisor.environment import address
from infra.supervisor.errors import DeploymentError, InvalidPlan
from infra.supervisor.layout import Layout
from infra.supervisor.plan import Plan
from infra.supervisor.secrets import load_or_create_secrets

TIMEOUT_S = 15.0  # longer than an edge retries a keyed write
PAGE_SITES = 200  # the most that the API returns at once


def create_site(layout: Layout, plan: Plan, *, name: str, origins: list[str]) -> dict[str, Any]:
    """Create a site through the first edge that answers.

    Raises:
        InvalidPlan: The API refused the name or an origin.
        DeploymentError: No edge carried out the request.
    """
    # All edges get the same idempotency key, so that only one site is created.
    headers = _admin(layout) | {"idempotency-key": uuid.uuid4().hex}
    return _ask(plan, "POST", "/v1/sites", headers, {"name": name, "origins": origins}, name_option="NAME")


def list_sites(layout: Layout, plan: Plan) -> list[dict[str, Any]]:
    """Return all sites, the oldest first.

    Raises:
        DeploymentError: No edge carried out the request.
    """
    headers = _admin(layout)
    sites: list[dict[str, Any]] = []
    query: dict[str, str | int] = {"limit": PAGE_SITES}
    while True:
        page = _ask(plan, "GET", f"/v1/sites?{urlencode(query)}", headers, None)
        sites += page["sites"]
        if page["next"] is None:
            return sites
        query["cursor"] = page["next"]


def find_site(layout: Layout, plan: Plan, id_or_name: str) -> uuid.UUID:
    """Return the id of the site with this id or name; an id is not looked up.

    Raises:
        InvalidPlan: No site has this name, or several have it.
        DeploymentError: No edge carried out the request.
    """
    try:
        return uuid.UUID(id_or_name)
    except ValueError:
        found = [site["id"] for site in list_sites(layout, plan) if site["name"] == id_or_name]
    if not found:
        raise InvalidPlan(f"no site is named {id_or_name!r}: `palaver site list` prints the sites")
    if len(found) > 1:
        raise InvalidPlan(f"{len(found)} sites are named {id_or_name!r}: use an id, {', '.join(found)}")
    return uuid.UUID(found[0])


def edit_site(layout: Layout, plan: Plan, site: uuid.UUID, changes: dict[str, Any]) -> dict[str, Any]:
    """Replace `name`, `origins` or both of a site through the first edge that answers; return the site.

    Raises:
        InvalidPlan: There is no such site, or the API refused the name or an origin.
        DeploymentError: No edge carried out the request. An edge may have sent the change to the ledger.
    """
    return _ask(plan, "PATCH", f"/v1/sites/{site}", _admin(layout), changes, name_option="--name")


def read_site(plan: Plan, site: uuid.UUID, api_key: str) -> dict[str, Any]:
    """Read a site through the first edge that answers.

    Raises:
        InvalidPlan: There is no such site, or the key is not its API key.
        DeploymentError: No edge carried out the request.
    """
    return _ask(plan, "GET", f"/v1/sites/{site}", {"authorization": f"Bearer {api_key}"}, None)


def _admin(layout: Layout) -> dict[str, str]:
    return {"authorization": f"Bearer {load_or_create_secrets(layout.secrets).admin_key}"}


def _ask(  # noqa: PLR0913 - the parts of a request, and what the command line calls one of them
    plan: Plan,
    method: str,
    path: str,
    headers: dict[str, str],
    body: dict[str, Any] | None,
    *,
    name_option: str = "name",
) -> dict[str, Any]:
    reasons: list[str] = []
    for region in plan.all_regions:
        try:
            answer = httpx.request(
                method,
                f"http://{address(plan.port(region, 'edge'))}{path}",
                json=body,
                headers=headers,
                timeout=TIMEOUT_S,
                trust_env=False,  # no proxy for loopback
            )
        except httpx.HTTPError as error:
            reasons.append(f"{region}: {type(error).__name__}")
            continue
        document: dict[str, Any] = answer.json()
        if answer.is_success:
            return document
        if answer.is_client_error:
            origins: list[str] = (body or {}).get("origins", [])
            fields = "; ".join(
                f"{_option(entry['field'], origins, name_option)}: {entry['message']}"
                for entry in document.get("errors", [])
            )
            raise InvalidPlan(fields or str(document.get("detail") or document.get("title")))
        reasons.append(f"{region}: {document.get('title')}")
    raise DeploymentError(f"no edge answered ({'; '.join(reasons)}); see `palaver status`")


def _option(field: str, origins: list[str], name_option: str) -> str:
    """Return the command line argument of a field of the request."""
    name, _, number = field.partition(".")
    if name == "origins":
        return f"--origin {origins[int(number)]!r}" if number.isdigit() and int(number) < len(origins) else "--origin"
    return name_option if name == "name" else field

"""Orders comparisons of views with the ledger from the replicators, and reads their results."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

import httpx

from infra.supervisor.environment import address
from infra.supervisor.errors import DeploymentError, OrderRefused, UnknownTarget
from infra.supervisor.layout import Layout
from infra.supervisor.plan import Plan
from infra.supervisor.secrets import load_or_create_secrets

ORDER_TIMEOUT_S = 600.0  # a scrub reads all rows, and the repair of many rows takes minutes
STATUS_TIMEOUT_S = 3.0


def chosen_regions(plan: Plan, region: str | None) -> tuple[str, ...]:
    """Return the region of this name, or all regions.

    Raises:
        UnknownTarget: There is no such region.
    """
    if region is not None and region not in plan.regions:
        raise UnknownTarget(f"unknown region {region!r}: the regions are {', '.join(plan.regions)}")
    return tuple(plan.regions) if region is None else (region,)


def order_repair(  # noqa: PLR0913 - the parts of an order, all named
    layout: Layout, plan: Plan, region: str, *, scrub: bool, dry_run: bool, by: str
) -> dict[str, Any]:
    """Compare the view of a region with the ledger, and mend it; return the result.

    Raises:
        OrderRefused: The replicator refuses, for example because a comparison runs already.
        DeploymentError: The replicator does not answer.
    """
    answer = _ask(
        plan,
        region,
        "POST",
        "repair",
        timeout_s=ORDER_TIMEOUT_S,
        headers={"authorization": f"Bearer {load_or_create_secrets(layout.secrets).changes_token}"},
        json={"scrub": scrub, "dry_run": dry_run, "by": by},
    )
    document: dict[str, Any] = answer.json()
    if answer.status_code != HTTPStatus.OK:
        raise OrderRefused(f"{region}: {document.get('detail', answer.status_code)}")
    return document


def read_repair(plan: Plan, region: str) -> dict[str, Any]:
    """Return the state of repair in a region.

    Raises:
        DeploymentError: The replicator does not answer.
    """
    answer = _ask(plan, region, "GET", "status", timeout_s=STATUS_TIMEOUT_S)
    document: dict[str, Any] = answer.json()["repair"]
    return document


def _ask(plan: Plan, region: str, method: str, path: str, *, timeout_s: float, **request: Any) -> httpx.Response:  # noqa: ANN401
    url = f"http://{address(plan.port(region, 'replicator_internal'))}/{path}"
    try:
        return httpx.request(method, url, timeout=httpx.Timeout(timeout_s, connect=STATUS_TIMEOUT_S), **request)
    except httpx.HTTPError as error:
        raise DeploymentError(
            f"the replicator of {region} does not answer ({type(error).__name__}): look at `palaver status`"
        ) from error

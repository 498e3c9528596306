"""Lists, shows, retries and discards the dead letters of a region's view, through the region's replicator."""

from __future__ import annotations

import getpass
from collections.abc import Iterator, Sequence
from http import HTTPStatus
from typing import Any

import httpx

from infra.supervisor.environment import address
from infra.supervisor.errors import DeploymentError, UnknownTarget
from infra.supervisor.layout import Layout
from infra.supervisor.plan import Plan
from infra.supervisor.secrets import load_or_create_secrets

TIMEOUT_S = 60.0  # a retry waits for the batch that apply is at
IDS_PER_ORDER = 100  # the replicator's own limit


def list_letters(layout: Layout, plan: Plan, region: str) -> list[dict[str, Any]]:
    """Return all dead letters of a region, the oldest first, without the rows' images.

    Raises:
        UnknownTarget: The deployment has no such region.
        DeploymentError: The replicator of the region does not answer.
    """
    letters: list[dict[str, Any]] = []
    while page := _order(layout, plan, region, kind="list", after=letters[-1]["id"] if letters else 0)["letters"]:
        letters += page
    return letters


def show_letter(layout: Layout, plan: Plan, region: str, letter: int) -> dict[str, Any]:
    """Return one dead letter with the image of the row.

    Raises:
        UnknownTarget: The deployment has no such region, or the region no such letter.
        DeploymentError: The replicator of the region does not answer.
    """
    found: dict[str, Any] = _order(layout, plan, region, kind="show", id=letter)["letter"]
    return found


def retry_letters(layout: Layout, plan: Plan, region: str, ids: Sequence[int]) -> Iterator[dict[str, Any]]:
    """Retry letters; yield `id` and `reason` of each, with None as the reason of a success.

    Raises:
        UnknownTarget: The deployment has no such region, or the region no such letter.
        DeploymentError: The replicator of the region does not answer; earlier letters were retried.
    """
    for some in _parts(ids):
        yield from _order(layout, plan, region, kind="retry", ids=some)["letters"]


def discard_letters(layout: Layout, plan: Plan, region: str, ids: Sequence[int]) -> int:
    """Delete letters; return their number.

    Raises:
        UnknownTarget: The deployment has no such region, or the region no such letter.
        DeploymentError: The replicator of the region does not answer; earlier letters were deleted.
    """
    by = getpass.getuser()
    return sum(int(_order(layout, plan, region, kind="discard", ids=some, by=by)["discarded"]) for some in _parts(ids))


def _parts(ids: Sequence[int]) -> Iterator[list[int]]:
    for start in range(0, len(ids), IDS_PER_ORDER):
        yield list(ids[start : start + IDS_PER_ORDER])


def _order(layout: Layout, plan: Plan, region: str, **fields: object) -> dict[str, Any]:
    if region not in plan.all_regions:
        raise UnknownTarget(f"there is no region {region!r}: this deployment has {', '.join(plan.all_regions)}")
    try:
        answer = httpx.post(
            f"http://{address(plan.port(region, 'replicator_internal'))}/deadletters",
            json=fields,
            headers={"authorization": f"Bearer {load_or_create_secrets(layout.secrets).changes_token}"},
            timeout=TIMEOUT_S,
            trust_env=False,  # no proxy for loopback
        )
        document: dict[str, Any] = answer.json()
    except (httpx.HTTPError, ValueError) as error:
        raise DeploymentError(
            f"the replicator of {region} does not answer ({type(error).__name__}): `palaver status` shows whether the "
            "region runs"
        ) from error
    if answer.status_code == HTTPStatus.NOT_FOUND and "detail" in document:
        raise UnknownTarget(f"{region}: {document['detail']}: `palaver deadletters list --region {region}` lists them")
    if answer.is_error:
        raise DeploymentError(f"the replicator of {region} refuses: {document.get('detail', answer.status_code)}")
    return document

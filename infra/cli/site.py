"""`palaver site create | show`: requests that a holder of the key can also send to any edge."""

from __future__ import annotations

import uuid
from typing import Annotated, Any, cast

import httpx
import typer

from infra.cli import output
from infra.cli.options import DEFAULT_DATA, Data, Json, known_plan
from infra.supervisor.control_client import ControlClient
from infra.supervisor.environment import address
from infra.supervisor.errors import DeploymentError, InvalidPlan
from infra.supervisor.layout import Layout, open_layout
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


def create(
    name: Annotated[str, typer.Argument(help="Name of the site.")],
    origin: Annotated[list[str], typer.Option(help="Origin of its pages, such as https://example.com; repeatable.")],
    data: Data = DEFAULT_DATA,
    as_json: Json = False,
) -> None:
    """Create a site and print its id and secrets (shown once)."""
    layout = open_layout(data)
    ControlClient(layout).close()
    made = create_site(layout, known_plan(layout), name=name, origins=origin)
    _print(made, as_json=as_json)


def show(
    site: Annotated[str, typer.Argument(help="Id of the site.")],
    api_key: Annotated[
        str, typer.Option("--api-key", prompt="API key of the site", hide_input=True, help="Asked for if left out.")
    ],
    data: Data = DEFAULT_DATA,
    as_json: Json = False,
) -> None:
    """Print the name and the origins of a site."""
    layout = open_layout(data)
    ControlClient(layout).close()
    try:
        wanted = uuid.UUID(site)
    except ValueError as error:
        raise InvalidPlan(f"{site!r} is not the id of a site: use the id that `palaver site create` printed") from error
    _print(read_site(known_plan(layout), wanted, api_key), as_json=as_json)


def _print(document: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        output.print_json(document)
        return
    for key, value in document.items():
        texts = cast("list[str]", value) if isinstance(value, list) else [str(value)]
        typer.echo(f"{key}: {', '.join(texts)}")

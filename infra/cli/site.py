"""`palaver site create`: the same POST that anybody with the admin key can send to any edge."""

from __future__ import annotations

import uuid
from typing import Annotated, Any

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

CREATE_TIMEOUT_S = 15.0  # longer than an edge keeps retrying a keyed write


def create_site(layout: Layout, plan: Plan, *, name: str, origins: list[str]) -> dict[str, Any]:
    """Create a site through the first edge that answers.

    Raises:
        InvalidPlan: The API refused the name or an origin.
        DeploymentError: No edge could do it.
    """
    secrets = load_or_create_secrets(layout.secrets)
    # One key for all edges: whichever answers, one site is made.
    headers = {"authorization": f"Bearer {secrets.admin_key}", "idempotency-key": uuid.uuid4().hex}
    reasons: list[str] = []
    for region in plan.all_regions:
        edge = f"http://{address(plan.port(region, 'edge'))}"
        try:
            answer = httpx.post(
                f"{edge}/v1/sites",
                json={"name": name, "origins": origins},
                headers=headers,
                timeout=CREATE_TIMEOUT_S,
                trust_env=False,  # loopback is reached by no proxy
            )
        except httpx.HTTPError as error:
            reasons.append(f"{region}: {type(error).__name__}")
            continue
        if answer.is_success:
            made: dict[str, Any] = answer.json()
            return made
        problem = answer.json()
        if answer.is_client_error:
            fields = "; ".join(
                f"{_option(entry['field'], origins)}: {entry['message']}" for entry in problem.get("errors", [])
            )
            raise InvalidPlan(fields or str(problem.get("detail") or problem.get("title")))
        reasons.append(f"{region}: {problem.get('title')}")
    raise DeploymentError(f"no edge created the site ({'; '.join(reasons)}); see `palaver status`")


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
    if as_json:
        output.print_json(made)
    else:
        for key, value in made.items():
            typer.echo(f"{key}: {value}")

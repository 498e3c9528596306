"""`palaver site create | list | show | set`: requests that a holder of the key can also send to any edge."""

from __future__ import annotations

import uuid
from typing import Annotated, Any, cast

import typer

from infra.cli.options import DEFAULT_DATA, Data, Json, known_plan
from infra.printing import print_json
from infra.supervisor import sites as site_requests
from infra.supervisor.control_client import ControlClient
from infra.supervisor.errors import InvalidPlan
from infra.supervisor.layout import open_layout


def create(
    name: Annotated[str, typer.Argument(help="Name of the site.")],
    origin: Annotated[list[str], typer.Option(help="Origin of its pages, such as https://example.com; repeatable.")],
    data: Data = DEFAULT_DATA,
    as_json: Json = False,
) -> None:
    """Create a site and print its id and secrets (shown once)."""
    layout = open_layout(data)
    ControlClient(layout).close()
    made = site_requests.create_site(layout, known_plan(layout), name=name, origins=origin)
    _print(made, as_json=as_json)


def list_sites(
    data: Data = DEFAULT_DATA,
    as_json: Json = False,
) -> None:
    """Print the id, the name and the origins of each site, the oldest first."""
    layout = open_layout(data)
    ControlClient(layout).close()
    sites = site_requests.list_sites(layout, known_plan(layout))
    if as_json:
        print_json(sites)
        return
    # Plain lines: a table breaks ids into two lines on a narrow terminal, and takes brackets in a name for markup.
    for one in sites:
        typer.echo(f"{one['id']}  {one['name']}  {', '.join(one['origins'])}")


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
    _print(site_requests.read_site(known_plan(layout), wanted, api_key), as_json=as_json)


def set_site(
    site: Annotated[str, typer.Argument(help="Id of the site, or its name if no other site has it.")],
    origin: Annotated[
        list[str] | None,
        typer.Option(help="Origin of its pages; repeatable. The given origins replace those that the site has."),
    ] = None,
    name: Annotated[str | None, typer.Option(help="New name.")] = None,
    data: Data = DEFAULT_DATA,
    as_json: Json = False,
) -> None:
    """Change the origins or the name of a site, and print it. Every region uses new origins within about 10 s."""
    changes: dict[str, Any] = ({"origins": origin} if origin else {}) | ({} if name is None else {"name": name})
    if not changes:
        raise InvalidPlan("nothing to change: give --origin or --name")
    layout = open_layout(data)
    ControlClient(layout).close()
    plan = known_plan(layout)
    wanted = site_requests.find_site(layout, plan, site)
    _print(site_requests.edit_site(layout, plan, wanted, changes), as_json=as_json)


def _print(document: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        print_json(document)
        return
    for key, value in document.items():
        texts = cast("list[str]", value) if isinstance(value, list) else [str(value)]
        typer.echo(f"{key}: {', '.join(texts)}")

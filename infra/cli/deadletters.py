"""`palaver deadletters list | show | retry | discard`: the changes that a region's view rejected."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from infra.cli.options import DEFAULT_DATA, EXIT_FAILED, Data, Json, known_plan
from infra.printing import print_json
from infra.supervisor import dead_letters
from infra.supervisor.control_client import ControlClient
from infra.supervisor.errors import DeploymentError, InvalidPlan
from infra.supervisor.layout import Layout, open_layout

REGION = Annotated[str, typer.Option("--region", help="The region whose view rejected the changes.")]
IDS = Annotated[list[int] | None, typer.Argument(help="Ids, as `palaver deadletters list` prints them.", min=1)]
ALL = Annotated[bool, typer.Option("--all", help="All dead letters of the region.")]


def list_letters(
    region: Annotated[str | None, typer.Option("--region", help="A region; without it, all regions.")] = None,
    data: Data = DEFAULT_DATA,
    as_json: Json = False,
) -> None:
    """Print the dead letters of a region or of all regions, the oldest first."""
    layout = _running(data)
    plan = known_plan(layout)
    regions = plan.all_regions if region is None else (region,)
    found: dict[str, list[dict[str, Any]]] = {}
    failure: DeploymentError | None = None
    for name in regions:
        try:
            found[name] = dead_letters.list_letters(layout, plan, name)
        except DeploymentError as error:
            failure = failure or error
    if as_json and found:
        print_json([{"region": name, **one} for name, letters in found.items() for one in letters])
    elif found:
        _print_list(found)
    if failure is not None:
        raise failure


def _print_list(found: dict[str, list[dict[str, Any]]]) -> None:
    for name, letters in found.items():
        for one in letters:
            erased = "  (content erased)" if one["erased"] else ""
            typer.echo(f"{name}  {one['id']}  {_row(one)}  attempts {one['attempts']}  {_text(one['reason'])}{erased}")
    empty = [name for name, letters in found.items() if not letters]
    if empty:
        typer.echo(f"no dead letters in {', '.join(empty)}")


def show(
    letter: Annotated[int, typer.Argument(help="Id, as `palaver deadletters list` prints it.", min=1)],
    region: REGION,
    data: Data = DEFAULT_DATA,
    as_json: Json = False,
) -> None:
    """Print one dead letter with the image of its row."""
    layout = _running(data)
    found = dead_letters.show_letter(layout, known_plan(layout), region, letter)
    if as_json:
        print_json(found)
        return
    for name, value in found.items():
        if name not in {"key", "row"}:
            typer.echo(f"{name}: {_text(value)}")
    for part in ("key", "row"):
        for name, value in found[part].items():
            typer.echo(f"{part}.{name}: {_text(value)}")


def retry(
    region: REGION,
    ids: IDS = None,
    everything: ALL = False,
    data: Data = DEFAULT_DATA,
    as_json: Json = False,
) -> None:
    """Apply the changes of dead letters again. A letter stays, with the new reason, if the view rejects it again."""
    layout = _running(data)
    wanted = _ids(layout, region, ids, everything=everything)
    done = list(dead_letters.retry_letters(layout, known_plan(layout), region, wanted)) if wanted else []
    failed = [one for one in done if one["reason"] is not None]
    if as_json:
        print_json(done)
    elif not done:
        typer.echo(f"no dead letters in {region}")
    else:
        for one in failed:
            typer.echo(f"{one['id']}: rejected again: {_text(one['reason'])}")
        typer.echo(f"{region}: {len(done) - len(failed)} applied, {len(failed)} rejected again")
    if failed:
        raise typer.Exit(EXIT_FAILED)


def discard(  # noqa: PLR0913, PLR0917 - the options of the command
    region: REGION,
    ids: IDS = None,
    everything: ALL = False,
    yes: Annotated[bool, typer.Option("--yes", help="Needed with --all.")] = False,
    data: Data = DEFAULT_DATA,
    as_json: Json = False,
) -> None:
    """Delete dead letters without applying them. The view may stay different from the ledger in these rows."""
    if everything and not yes:
        raise InvalidPlan("discard --all deletes all dead letters of the region: confirm it with --yes")
    layout = _running(data)
    wanted = _ids(layout, region, ids, everything=everything)
    count = dead_letters.discard_letters(layout, known_plan(layout), region, wanted) if wanted else 0
    if as_json:
        print_json({"region": region, "discarded": count})
    else:
        typer.echo(f"{region}: {count} discarded" if count else f"no dead letters in {region}")


def _ids(layout: Layout, region: str, ids: list[int] | None, *, everything: bool) -> list[int]:
    if everything == bool(ids):
        raise InvalidPlan("name the ids of dead letters, or --all")
    if ids:
        return sorted(set(ids))
    return [one["id"] for one in dead_letters.list_letters(layout, known_plan(layout), region)]


def _row(letter: dict[str, Any]) -> str:
    key = ", ".join(_text(value) for value in letter["key"].values()) or "no key"
    return f"{letter['op']} {letter['table']} ({key})"


def _text(value: object) -> str:
    """Return a value of a row as text that cannot control the terminal."""
    text = "NULL" if value is None else str(value)
    return text if text.isprintable() else repr(text)


def _running(data: Data) -> Layout:
    layout = open_layout(data)
    ControlClient(layout).close()
    return layout

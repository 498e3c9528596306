"""`palaver repair run | status`: compare the views of a running deployment with the ledger, and mend them."""

from __future__ import annotations

import getpass
import time
from collections.abc import Mapping
from typing import Annotated, Any

import typer

from infra.cli.options import DEFAULT_DATA, EXIT_FAILED, Data, Json, known_plan
from infra.printing import print_json
from infra.supervisor.control_client import ControlClient
from infra.supervisor.errors import DeploymentError
from infra.supervisor.layout import open_layout
from infra.supervisor.repairs import chosen_regions, order_repair, read_repair

BAD_VERDICTS = ("failed", "too different")

Region = Annotated[str | None, typer.Option("--region", help="The region of the view; all regions if left out.")]


def run(
    region: Region = None,
    scrub: Annotated[
        bool, typer.Option("--scrub", help="Read all rows of both sides, and check the counters.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Report what differs, and change nothing.")] = False,
    data: Data = DEFAULT_DATA,
    as_json: Json = False,
) -> None:
    """Compare views with the ledger and mend the rows that differ; exit status 1 if a comparison fails."""
    layout = open_layout(data)
    ControlClient(layout).close()
    plan = known_plan(layout)
    results: dict[str, dict[str, Any]] = {}
    for one in chosen_regions(plan, region):
        try:
            results[one] = order_repair(layout, plan, one, scrub=scrub, dry_run=dry_run, by=getpass.getuser())
        except DeploymentError as error:
            results[one] = {"verdict": "failed", "detail": str(error)}
        if not as_json:
            typer.echo(f"{one}: {result_line(results[one])}")
    if as_json:
        print_json(results)
    if any(result["verdict"] in BAD_VERDICTS for result in results.values()):
        raise typer.Exit(EXIT_FAILED)


def status(region: Region = None, data: Data = DEFAULT_DATA, as_json: Json = False) -> None:
    """Print the last comparison of each view, when it was equal to the ledger, and what was mended."""
    layout = open_layout(data)
    ControlClient(layout).close()
    plan = known_plan(layout)
    states: dict[str, dict[str, Any] | None] = {}
    for one in chosen_regions(plan, region):
        try:
            states[one] = read_repair(plan, one)
        except DeploymentError:
            states[one] = None
    if as_json:
        print_json(states)
        return
    for one, state in states.items():
        for line in ["the replicator does not answer"] if state is None else state_lines(state, time.time()):
            typer.echo(f"{one}: {line}")


def result_line(result: Mapping[str, Any]) -> str:
    """Return a comparison in one line."""
    if result["verdict"] in BAD_VERDICTS:
        return f"{result['verdict']}: {result['detail']}"
    parts = [
        f"{result['verdict']}, {result['rows']} rows compared in {result['seconds']:.2f} s, {result['bytes']} bytes"
    ]
    for name in ("found", "mended"):
        counts = [f"{count} {kind}" for kind, count in result[name].items() if count]
        if counts:
            parts.append(f"{name}: {', '.join(counts)}")
    if result["counters"]:
        parts.append(f"wrong counters: {result['counters']}")
    if result["wrong_leaves"]:
        parts.append(f"leaves computed again: {result['wrong_leaves']}")
    if result["skipped"]:
        parts.append(f"changed meanwhile, compared next time: {result['skipped']}")
    return "; ".join(parts)


def state_lines(state: Mapping[str, Any], now: float) -> list[str]:
    """Return the state of repair of one region, in lines."""
    if not state["ready"]:
        return ["the tree of the view is being computed"]
    last, clean = state["last"], state["last_clean"]
    lines = ["not compared yet" if last is None else f"{_age(last['at'], now)} ago: {result_line(last)}"]
    if clean is not None:
        lines.append(f"equal to the ledger {_age(clean['at'], now)} ago, at {clean['position']}")
    scrub = state["last_scrub_at"]
    lines.append("not scrubbed yet" if scrub is None else f"scrubbed {_age(scrub, now)} ago")
    mended = ", ".join(f"{count} {kind}" for kind, count in state["mended"].items() if count)
    lines.append(f"mended since the start: {mended or 'nothing'}")
    return lines


def _age(at: float, now: float) -> str:
    seconds = max(0, int(now - at))
    return f"{seconds} s" if seconds < 600 else f"{seconds // 60} min"  # noqa: PLR2004 - ten minutes

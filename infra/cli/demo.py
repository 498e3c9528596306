"""`palaver demo`: start three regions, run the tour, print its figures, and run until Ctrl-C."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Annotated, Any

import httpx
import typer

from infra.cli.lifecycle import stopped_text
from infra.cli.options import DEFAULT_DATA, EXIT_FAILED, Data, Json
from infra.cli.output import where_logs_are
from infra.cli.progress import ProgressDisplay
from infra.demo.tour import Say, facts_of, run_tour
from infra.demo.visitor import VisitFailed, Visitor
from infra.printing import print_json, table
from infra.supervisor.deployment import DeploymentOptions, run_deployment
from infra.supervisor.errors import DeploymentError
from infra.supervisor.layout import Layout, open_layout
from infra.supervisor.sites import create_site
from infra.supervisor.supervisor import Supervisor

DEMO_RTT_MS = 80.0


def demo(
    leave: Annotated[
        bool, typer.Option("--exit", help="Stop after the tour. The exit code is 0 if every check passed, else 1.")
    ] = False,
    rtt_ms: Annotated[float, typer.Option(help="Round trip between regions in milliseconds.")] = DEMO_RTT_MS,
    data: Data = DEFAULT_DATA,
    as_json: Json = False,
) -> None:
    """Start three regions, post and read comments in all of them, kill one of them, and run until Ctrl-C."""
    layout = open_layout(data)
    outcome: dict[str, Any] = {"passed": False, "failed": False}
    # With --json standard output is one document, and the text goes to standard error.
    say = partial(typer.echo, err=as_json)

    async def accompany(supervisor: Supervisor) -> None:
        await supervisor.all_ready.wait()
        try:
            seen = await _tour(supervisor, layout, say)
            outcome["passed"] = not seen["failures"]
            outcome["failed"] = bool(seen["failures"])
            if as_json:
                print_json(seen)
            if outcome["passed"] and not leave:
                for line in next_steps(seen["edges"], seen["site"]):
                    say(line)
        except (VisitFailed, DeploymentError, httpx.HTTPError) as error:
            outcome["failed"] = True
            typer.echo(f"the tour failed: {error or type(error).__name__}", err=True)
        finally:
            # Also after an unexpected error: with `--exit` the command must end.
            if leave or not outcome["passed"]:
                supervisor.stop_asked.set()

    with ProgressDisplay(to_stderr=as_json) as display:
        asyncio.run(
            run_deployment(
                layout,
                DeploymentOptions(rtt_ms=rtt_ms),
                on_progress=display.update,
                alongside=lambda supervisor: asyncio.ensure_future(accompany(supervisor)),
            )
        )
    if outcome["failed"]:
        typer.echo(where_logs_are(layout), err=True)
    else:
        say(stopped_text(layout))
    if not outcome["passed"]:
        raise typer.Exit(EXIT_FAILED)


async def _tour(supervisor: Supervisor, layout: Layout, say: Say) -> dict[str, Any]:
    """Run the tour, print its figures, and return them."""
    plan = supervisor.plan
    edges = {region["region"]: region["edge"] for region in (await supervisor.status())["regions"]}
    site = await asyncio.to_thread(
        create_site,
        layout,
        plan,
        name="Palaver demo",
        origins=["https://demo.example", "http://localhost:8000"],
    )
    say(f"site {site['id']} with a round trip of {plan.rtt_ms:g} ms between regions")
    visitor = Visitor(edges, site["id"])
    try:
        result = await run_tour(visitor, list(edges), supervisor, say)
    finally:
        await visitor.close()
    status = await supervisor.status()
    _print_processes(status, say)
    for failure in result.failures:
        typer.echo(f"FAILED: {failure}", err=True)
    if not result.failures:
        say("every claim above was checked")
    pids = {region["region"]: region["pids"] for region in status["regions"]}
    return {"site": site["id"], "rtt_ms": plan.rtt_ms, "edges": edges, "pids": pids, **facts_of(result, list(edges))}


def _print_processes(status: dict[str, Any], say: Say) -> None:
    cell = status["cells"][0]
    say(f"cell {cell['cell']} is led by {cell['leader']} under epoch {cell['epoch']}; processes by pid:")
    regions = status["regions"]
    rows = [(name, *(region["pids"].get(name) for region in regions)) for name in regions[0]["pids"]]
    say(table("", ("process", *(region["region"] for region in regions)), rows))


def next_steps(edges: dict[str, str], site: str) -> list[str]:
    """Return what a user can do while the demo's deployment runs."""
    regions = list(edges)
    first, last = edges[regions[0]], edges[regions[-1]]
    comments = f"/v1/sites/{site}/comments"
    body = '{"thread":"hello","body":"Hello from **far away**","author":{"name":"You"}}'
    return [
        "edges: " + "  ".join(f"{region} {edge}" for region, edge in edges.items()),
        f"API: {first}/docs    stop: Ctrl-C    more: palaver status, palaver logs -f, palaver fault --help",
        "post in one region, read in another:",
        f"  curl -si {last}{comments} -H 'content-type: application/json' -d '{body}'",
        f"  curl -s '{first}{comments}?thread=hello'",
    ]

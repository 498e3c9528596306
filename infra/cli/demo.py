"""`palaver demo`: start three regions, tour them, print what was seen, stay until Ctrl-C."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Annotated, Any

import httpx
import typer

from infra.cli.options import DEFAULT_DATA, EXIT_FAILED, Data, Json
from infra.cli.output import print_json, table
from infra.cli.progress import ProgressDisplay
from infra.cli.site import create_site
from infra.demo.tour import Say, TourResult, facts_of, run_tour
from infra.demo.visitor import VisitFailed, Visitor
from infra.supervisor.deployment import Wish, run_deployment
from infra.supervisor.errors import DeploymentError
from infra.supervisor.layout import Layout, open_layout
from infra.supervisor.supervisor import Supervisor

DEMO_RTT_MS = 80.0


def demo(
    leave: Annotated[
        bool, typer.Option("--exit", help="Stop after the tour; 0 only if every claim was checked.")
    ] = False,
    rtt_ms: Annotated[float, typer.Option(help="Round trip between regions in milliseconds.")] = DEMO_RTT_MS,
    data: Data = DEFAULT_DATA,
    as_json: Json = False,
) -> None:
    """Start three regions, post and read comments in all of them, and stay until Ctrl-C."""
    layout = open_layout(data)
    outcome: dict[str, Any] = {"passed": False}
    # With --json standard output is one document, and the words for people go to standard error.
    say = partial(typer.echo, err=as_json)

    async def accompany(supervisor: Supervisor) -> None:
        await supervisor.all_ready.wait()
        try:
            seen = await _tour(supervisor, layout, say)
            outcome["passed"] = not seen["failures"]
            if as_json:
                print_json(seen)
        except (VisitFailed, DeploymentError, httpx.HTTPError) as error:
            typer.echo(f"the tour failed: {error or type(error).__name__}", err=True)
        finally:
            # Also after an error that nobody expected: `--exit` must come to an end.
            if leave or not outcome["passed"]:
                supervisor.stop_asked.set()

    with ProgressDisplay(to_stderr=as_json) as display:
        asyncio.run(
            run_deployment(
                layout,
                Wish(rtt_ms=rtt_ms),
                on_progress=display.update,
                alongside=lambda supervisor: asyncio.ensure_future(accompany(supervisor)),
            )
        )
    if not outcome["passed"]:
        raise typer.Exit(EXIT_FAILED)


async def _tour(supervisor: Supervisor, layout: Layout, say: Say) -> dict[str, Any]:
    """Take the tour, tell what was seen, and return it."""
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
    _tell_processes(status, say)
    _conclude(result, edges, site, say)
    pids = {region["region"]: region["pids"] for region in status["regions"]}
    return {"site": site["id"], "rtt_ms": plan.rtt_ms, "edges": edges, "pids": pids, **facts_of(result, list(edges))}


def _tell_processes(status: dict[str, Any], say: Say) -> None:
    cell = status["cells"][0]
    say(f"cell {cell['cell']} is led by {cell['leader']} under epoch {cell['epoch']}; processes by pid:")
    regions = status["regions"]
    rows = [(name, *(region["pids"].get(name) for region in regions)) for name in regions[0]["pids"]]
    say(table("", ("process", *(region["region"] for region in regions)), rows))


def _conclude(result: TourResult, edges: dict[str, str], site: dict[str, Any], say: Say) -> None:
    for failure in result.failures:
        typer.echo(f"FAILED: {failure}", err=True)
    if result.failures:
        return
    say("every claim above was checked")
    regions = list(edges)
    first, last = regions[0], regions[-1]
    comments = f"/v1/sites/{site['id']}/comments"
    say("edges: " + "  ".join(f"{region} {edge}" for region, edge in edges.items()))
    say(f"API: {edges[first]}/docs    stop: Ctrl-C    more: palaver status, palaver logs -f, palaver fault --help")
    say("try it: post in one region, read in another")
    say(
        f"  curl -si {edges[last]}{comments} -H 'content-type: application/json' "
        """-d '{"thread":"hello","body":"Hello from **far away**","author":{"name":"You"}}'"""
    )
    say(f"  curl -s '{edges[first]}{comments}?thread=hello'")

"""`palaver explore`: check the failover core state by state, up to a bound."""

from __future__ import annotations

import resource
import time
from typing import Annotated

import typer

from infra.cli import output
from infra.cli.options import EXIT_FAILED, Json
from infra.exploration.bounds import Bounds, Budget
from infra.exploration.search import Search
from infra.exploration.start import serving
from infra.exploration.transcript import transcript
from infra.exploration.world import World
from infra.supervisor.errors import InvalidPlan

STATES = 100_000
STATES_MAX = 16_000_000
"""What fits into 16 GB of memory."""

DEPTH_MAX = 1000
FAULTS_MAX = 8
ORDERS_MAX = 4
EPOCHS = (2, 8)


def explore(  # noqa: PLR0913, PLR0917 - each is an option of the command
    depth: Annotated[int | None, typer.Option("--depth", help="Steps from the start at most.")] = None,
    states: Annotated[int, typer.Option("--states", help="Distinct states at most.")] = STATES,
    faults: Annotated[int, typer.Option("--faults", help="Faults in a run at most.")] = 2,
    orders: Annotated[int, typer.Option("--orders", help="Orders of each kind in a run: switch, drain, resize.")] = 0,
    epochs: Annotated[int, typer.Option("--epochs", help="Epochs in a run at most.")] = 3,
    as_json: Json = False,
) -> None:
    """Try every interleaving of three regions up to a bound, and show the shortest way to whatever goes wrong."""
    _check("--states", states, 1, STATES_MAX)
    _check("--depth", DEPTH_MAX if depth is None else depth, 1, DEPTH_MAX)
    _check("--faults", faults, 0, FAULTS_MAX)
    _check("--orders", orders, 0, ORDERS_MAX)
    _check("--epochs", epochs, *EPOCHS)
    budget = Budget(faults=faults, switches=orders, drains=orders, resizes=orders)
    world = World(Bounds(budget=budget, epochs_max=epochs, depth_max=depth, states_max=states))
    begun, elapsed = time.process_time(), time.monotonic()
    explored = Search(world, serving(world)).run()
    cpu_s, elapsed_s = time.process_time() - begun, time.monotonic() - elapsed
    found = explored.counterexample
    facts = {
        "states": explored.states,
        "moves": explored.moves,
        "depth": explored.depth,
        "complete": explored.complete,
        "cores": len(world.nodes),
        "cpu_s": round(cpu_s, 1),
        "elapsed_s": round(elapsed_s, 1),
        "states_per_cpu_second": round(explored.states / max(cpu_s, 1e-9)),
        "memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "bounds": {"epochs": epochs, **budget._asdict()},
        "violation": None if found is None else found.what,
    }
    if as_json:
        output.print_json(facts)
    else:
        typer.echo(
            f"{explored.states} states, {explored.moves} moves, depth {explored.depth}, "
            f"{'all within the bounds' if explored.complete else 'more lie beyond'}; {cpu_s:.1f} s of a processor, "
            f"{facts['states_per_cpu_second']} states a second, {facts['memory_mb']} MB"
        )
        typer.echo(
            "bounds: " + ", ".join(f"{name} {count}" for name, count in {"epochs": epochs, **budget._asdict()}.items())
        )
    if found is not None:
        typer.echo("\n".join(transcript(world, found)), err=as_json)
        raise typer.Exit(EXIT_FAILED)


def _check(name: str, number: int, least: int, most: int) -> None:
    if not least <= number <= most:
        raise InvalidPlan(f"use {least} to {most} for {name}")

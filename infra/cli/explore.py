"""`palaver explore`: check the failover core state by state, up to a bound."""

from __future__ import annotations

import resource
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Annotated, Any

import typer

from infra.cli.options import EXIT_FAILED, Json
from infra.exploration.bounds import Bounds, Budget
from infra.exploration.initial_state import serving_state
from infra.exploration.legs import FAILOVER, Leg, explore_legs
from infra.exploration.search import Search, SearchResult
from infra.exploration.state_space import INVARIANTS, StateSpace, idle_invariants
from infra.exploration.transcript import transcript
from infra.printing import print_json, print_table
from infra.supervisor.errors import InvalidPlan

STATES = 100_000
STATES_MAX = 16_000_000
"""The number of states that fit into 16 GB of memory."""

STATES_MIN = 2
DEPTH_MAX = 1000
FAULTS_MAX = 8
ORDERS_MAX = 4
EPOCHS = (2, 8)


def explore(  # noqa: PLR0913, PLR0917 - each is an option of the command
    depth: Annotated[int | None, typer.Option("--depth", help="Steps from the start at most.")] = None,
    states: Annotated[int, typer.Option("--states", help="Distinct states of each search at most.")] = STATES,
    faults: Annotated[int, typer.Option("--faults", help="Faults in a run at most.")] = 2,
    orders: Annotated[int, typer.Option("--orders", help="Orders of each kind in a run: switch, drain, resize.")] = 0,
    epochs: Annotated[int, typer.Option("--epochs", help="Epochs in a run at most.")] = 3,
    as_json: Json = False,
) -> None:
    """Check every interleaving of three regions up to a bound, and print the shortest path to a violation."""
    _check("--states", states, 1, STATES_MAX)
    _check("--depth", DEPTH_MAX if depth is None else depth, 1, DEPTH_MAX)
    _check("--faults", faults, 0, FAULTS_MAX)
    _check("--orders", orders, 0, ORDERS_MAX)
    _check("--epochs", epochs, *EPOCHS)
    budget = Budget(faults=faults, switches=orders, drains=orders, resizes=orders)
    begun, elapsed = time.process_time(), time.monotonic()
    facts: Counter[str] = Counter()
    parts: dict[str, dict[str, Any]] = {}
    cores, found, space = 0, None, None
    for name, explored_part in _parts(budget, epochs, depth, states):
        space, explored = explored_part()
        facts.update(space.facts)
        cores += len(space.nodes)
        found = explored.counterexample
        parts[name] = {
            "states": explored.states,
            "moves": explored.moves,
            "depth": explored.depth,
            "complete": explored.complete,
        }
        if found is not None:
            break
    idle = [] if found is not None else idle_invariants(facts, budget)
    if any(part["states"] < STATES_MIN for part in parts.values()):
        idle.append("a search saw nothing but its start")
    cpu_s, elapsed_s = time.process_time() - begun, time.monotonic() - elapsed
    seen = sum(part["states"] for part in parts.values())
    summary = {
        "states": seen,
        "moves": sum(part["moves"] for part in parts.values()),
        "depth": max(part["depth"] for part in parts.values()),
        "complete": all(part["complete"] for part in parts.values()),
        "parts": parts,
        "cores": cores,
        "cpu_s": round(cpu_s, 1),
        "elapsed_s": round(elapsed_s, 1),
        "states_per_cpu_second": round(seen / max(cpu_s, 1e-9)),
        "memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "bounds": {"epochs": epochs, **budget._asdict()},
        "facts": {name: facts[name] for name in INVARIANTS},
        "judged_nothing": idle,
        "violation": None if found is None else found.what,
    }
    _show(summary, as_json=as_json)
    if found is not None and space is not None:
        typer.echo("\n".join(transcript(space, found)), err=as_json)
    if found is not None or idle:
        raise typer.Exit(EXIT_FAILED)


def _parts(
    budget: Budget, epochs: int, depth: int | None, states: int
) -> Iterator[tuple[str, Callable[[], tuple[StateSpace, SearchResult]]]]:
    """Yield the two searches by name: from a cell that serves its first epoch, and from one after a failover."""

    def from_the_start() -> tuple[StateSpace, SearchResult]:
        space = StateSpace(Bounds(budget=budget, epochs_max=epochs, depth_max=depth, states_max=states))
        return space, Search(space, serving_state(space)).run()

    def after_a_failover() -> tuple[StateSpace, SearchResult]:
        legs = [*FAILOVER, Leg(budget=budget)]
        return explore_legs(legs, epochs_max=epochs, states_max=states, depth_max=depth)

    yield "from the start", from_the_start
    yield "after a failover", after_a_failover


def _show(summary: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        print_json(summary)
        return
    for name, part in summary["parts"].items():
        typer.echo(
            f"{name}: {part['states']} states, {part['moves']} moves, depth {part['depth']}, "
            f"{'all within the bounds' if part['complete'] else 'more lie beyond'}"
        )
    typer.echo(
        f"{summary['cpu_s']:.1f} s of a processor, {summary['states_per_cpu_second']} states a second, "
        f"{summary['memory_mb']} MB"
    )
    typer.echo("bounds: " + ", ".join(f"{name} {count}" for name, count in summary["bounds"].items()))
    print_table("facts compared", ("invariant", "facts"), list(summary["facts"].items()))
    for line in summary["judged_nothing"]:
        typer.echo(line)


def _check(name: str, number: int, least: int, most: int) -> None:
    if not least <= number <= most:
        raise InvalidPlan(f"use {least} to {most} for {name}")

"""`palaver simulate`: run the failover core in virtual time with faults, and print the results of its checkers."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from infra.cli.options import EXIT_FAILED, Json
from infra.printing import print_json, print_table
from infra.simulation import regressions
from infra.simulation.campaign import Summary, replay_command, run_seeds
from infra.simulation.plans import FIRST_S, QUIET_S, WAIT_S_MAX
from infra.simulation.runner import MINUTES, Report, run_seed
from infra.simulation.shrink import Shrinker
from infra.supervisor.errors import InvalidPlan

SEEDS_MAX = 10_000_000
MINUTES_MIN = (FIRST_S + QUIET_S + WAIT_S_MAX + 5) / 60
MINUTES_MAX = 24 * 60
FINDINGS_SHRUNK_MAX = 3
"""Many findings mostly have one cause, so only the first few are shrunk."""


def simulate(  # noqa: PLR0913, PLR0917 - each is an option of the command
    seeds: Annotated[str | None, typer.Option("--seeds", help="From A to B, both included: A..B.")] = None,
    seed: Annotated[int | None, typer.Option("--seed", help="Run one seed.")] = None,
    minutes: Annotated[float, typer.Option("--minutes", help="Simulated minutes of each seed.")] = MINUTES,
    keep: Annotated[
        Path | None, typer.Option("--keep", help="Folder for the shrunk fault plans of failed seeds.")
    ] = None,
    trace: Annotated[bool, typer.Option("--trace", help="With --seed: print every event.")] = False,
    as_json: Json = False,
) -> None:
    """Run the failover core under virtual time with crashes, partitions, pauses and false answers, and check it."""
    if (seeds is None) == (seed is None):
        raise InvalidPlan("name either --seeds A..B or --seed N")
    if not MINUTES_MIN <= minutes <= MINUTES_MAX:
        raise InvalidPlan(f"use {MINUTES_MIN:.2g} to {MINUTES_MAX} simulated minutes")
    if seed is not None:
        if not 0 <= seed <= SEEDS_MAX:
            raise InvalidPlan(f"use a seed from 0 to {SEEDS_MAX}")
        _one(seed, minutes, keep, trace=trace, as_json=as_json)
    elif seeds is not None:
        _many(_parse_seeds(seeds), minutes, keep, as_json=as_json)


def _parse_seeds(text: str) -> range:
    match = re.fullmatch(r"(\d{1,8})\.\.(\d{1,8})", text)
    if match is None or not int(match[1]) <= int(match[2]) <= SEEDS_MAX:
        raise InvalidPlan(f"{text!r} is no range of seeds: use A..B with 0 ≤ A ≤ B ≤ {SEEDS_MAX}")
    return range(int(match[1]), int(match[2]) + 1)


def _one(seed: int, minutes: float, keep: Path | None, *, trace: bool, as_json: bool) -> None:
    report = run_seed(seed, minutes=minutes, traced=trace)
    if trace:
        typer.echo("\n".join(report.trace or []))
    summary = Summary(minutes=minutes)
    summary.add(report)
    _show(summary, as_json=as_json)
    # A checker without facts is no failure here: one seed may have no fault, or none that moves the leadership.
    _end(summary, [report] if report.violation is not None else [], keep, as_json=as_json)


def _many(seeds: range, minutes: float, keep: Path | None, *, as_json: bool) -> None:
    summary = run_seeds(seeds, minutes=minutes)
    _show(summary, as_json=as_json)
    failing = [run_seed(one.seed, minutes=minutes) for one in summary.findings[:FINDINGS_SHRUNK_MAX]]
    _end(summary, failing, keep, as_json=as_json)
    if summary.judged_nothing:
        raise typer.Exit(EXIT_FAILED)


def _show(summary: Summary, *, as_json: bool) -> None:
    facts = summary.to_json()
    if as_json:
        print_json(facts)
        return
    recovery = facts["recovery_s"]
    typer.echo(f"{summary.seeds} seeds, {summary.seconds / 3600:.2f} simulated hours, {len(summary.findings)} findings")
    typer.echo(f"speed: {facts['simulated_seconds_per_cpu_second']} simulated seconds a second of a core")
    typer.echo(f"writes: {summary.commits} committed of {summary.begun}; strong reads: {summary.reads}")
    if recovery["count"]:
        typer.echo(
            f"recovery: {recovery['count']} times, median {recovery['median']:.2f} s, p99 {recovery['p99']:.2f} s,"
            f" max {recovery['max']:.2f} s"
        )
    print_table("facts compared", ("checker", "facts"), list(facts["facts"].items()))
    rows = [(name, count) for name, count in facts["transitions"].items()]
    print_table("transitions taken", ("transition", "times"), rows)
    for name in summary.not_taken:
        typer.echo(f"not taken: {name}")
    for line in summary.judged_nothing:
        typer.echo(line)
    for finding in summary.findings:
        typer.echo(f"seed {finding.seed}: {finding.violation}")


def _end(summary: Summary, failing: list[Report], keep: Path | None, *, as_json: bool) -> None:
    """Shrink the failed runs, print how to replay them, and exit with EXIT_FAILED if there are findings."""
    for report in failing:
        shrinker = Shrinker(report)
        small = shrinker.shrink()
        lines = [
            f"seed {report.plan.seed} fails: {report.violation}",
            f"  replay: {replay_command(report.plan.seed, summary.minutes)}",
            f"  shrunk from {len(report.plan.faults)} to {len(small.plan.faults)} faults in {shrinker.runs} runs:",
            *(f"    {fault}" for fault in small.plan.faults),
        ]
        if keep is not None:
            lines.append(f"  kept in {regressions.store(small, keep, found_as=report.plan.seed)}")
        typer.echo("\n".join(lines), err=as_json)
    if summary.findings:
        raise typer.Exit(EXIT_FAILED)

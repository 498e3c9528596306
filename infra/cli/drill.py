"""`palaver drill list|run`: inject faults into a real deployment under load, and check the results."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Generator
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import typer
import uvloop

from infra.bench.deployment import no_preparation, running_deployment
from infra.cli.options import EXIT_FAILED, Json, known_plan
from infra.drills.disks import ledger_disks
from infra.drills.drill import PHASES, Drill, InvalidDrill, catalogue, find_drill
from infra.drills.judges import PHASE_WORDS
from infra.drills.runner import STEADY_WITHIN_S, FaultUnavailable, Patience, run_drill
from infra.drills.target import Target
from infra.printing import print_json, print_table
from infra.supervisor.clocks import clocks_can_be_had
from infra.supervisor.errors import DeploymentError, InvalidPlan
from infra.supervisor.layout import Layout, open_layout
from infra.supervisor.plan import DEFAULT_REGIONS
from infra.supervisor.secrets import load_or_create_secrets

ROUNDS_MAX = 1000
RTT_MS = 80.0
DEFAULT_REPORT = Path("drill-reports")


def list_drills(as_json: Json = False) -> None:
    """List the drills that come with Palaver."""
    drills = catalogue()
    if as_json:
        print_json([{"name": one.name, "title": one.title, "hypothesis": one.hypothesis} for one in drills.values()])
        return
    print_table("", ("drill", "fault"), [(one.name, one.title) for one in drills.values()])


def run(  # noqa: PLR0913, PLR0917 - each is an option of the command
    wanted: Annotated[str, typer.Argument(metavar="NAME|FILE|all", help="A drill's name, its file, or all.")],
    rounds: Annotated[int, typer.Option(help="How many times to run each drill.")] = 1,
    seed: Annotated[int, typer.Option(help="Seed of the random pauses between requests.")] = 1,
    rtt_ms: Annotated[float, typer.Option(help="Round trip between regions, in milliseconds.")] = RTT_MS,
    report: Annotated[Path, typer.Option(help="Folder for journals and reports.")] = DEFAULT_REPORT,
    data: Annotated[
        Path | None, typer.Option(help="A running deployment; without one, a deployment of its own is started.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Start even if the deployment is not healthy.")] = False,
    steady_within_s: Annotated[
        float,
        typer.Option(min=0.0, help="Seconds to wait until the deployment is healthy; then the drill is refused."),
    ] = STEADY_WITHIN_S,
    as_json: Json = False,
) -> None:
    """Run drills and check the results. The exit code is 1 if a check fails or no drill could run."""
    try:
        drills = list(catalogue().values()) if wanted == "all" else [find_drill(wanted)]
    except InvalidDrill as error:
        raise InvalidPlan(str(error)) from error
    if not 1 <= rounds <= ROUNDS_MAX:
        raise InvalidPlan(f"use 1 to {ROUNDS_MAX} rounds")
    facts: list[dict[str, Any]] = []
    for some in _by_deployment(drills, data):
        with _deployment(data, rtt_ms, some[0]) as folder:
            patience = Patience(steady_within_s=steady_within_s, force=force)
            facts += uvloop.run(
                _run_all(some, folder, report, rounds=rounds, seed=seed, patience=patience, quiet=as_json)
            )
    if as_json:
        print_json(facts)
    else:
        _show(facts)
    if not all(one["passed"] for one in facts if one["skipped"] is None) or all(one["skipped"] for one in facts):
        raise typer.Exit(EXIT_FAILED)


def _by_deployment(drills: list[Drill], data: Path | None) -> list[list[Drill]]:
    """Group the drills that share a deployment: all with `--data`, else those that need the same clocks and disks."""
    if data is not None:
        return [drills]
    some: dict[tuple[bool, bool], list[Drill]] = {}
    for drill in drills:
        some.setdefault((drill.needs_clocks, drill.needs_disks), []).append(drill)
    return [those for _, those in sorted(some.items())]


@contextlib.contextmanager
def _deployment(data: Path | None, rtt_ms: float, drill: Drill) -> Generator[Path]:
    """Yield the data folder of `--data`, or of a deployment that is started for the drills and stopped after them."""
    if data is not None:
        yield data
        return
    try:
        clocks = drill.needs_clocks and clocks_can_be_had()
        around = _on_disks if drill.needs_disks else no_preparation
        with running_deployment(rtt_ms=rtt_ms, clocks=clocks, around=around) as deployment:
            yield deployment.layout.data
    except subprocess.CalledProcessError as error:
        raise DeploymentError("no deployment could be started for the drill; see above") from error


def _on_disks(layout: Layout, folder: Path) -> contextlib.AbstractContextManager[object]:
    return ledger_disks(layout, DEFAULT_REGIONS, folder)


async def _run_all(  # noqa: PLR0913 - the options of the command
    drills: list[Drill], data: Path, report: Path, *, rounds: int, seed: int, patience: Patience, quiet: bool
) -> list[dict[str, Any]]:
    # Imported here, because the other commands of this module start faster without it.
    from infra.drills.report import facts_of, write_report

    layout = open_layout(data)
    plan = known_plan(layout)
    target = Target(layout, plan, load_or_create_secrets(layout.secrets))
    report.mkdir(parents=True, exist_ok=True)
    facts: list[dict[str, Any]] = []
    try:
        for drill in drills:
            for number in range(rounds):
                name = f"{drill.name}-{datetime.now(UTC):%Y%m%dT%H%M%S}-{seed + number}"
                if not quiet:
                    typer.echo(f"{drill.name}, round {number + 1} of {rounds}: {drill.title}")
                try:
                    outcome = await run_drill(
                        target,
                        drill,
                        report / f"{name}.journal.jsonl",
                        seed=seed + number,
                        patience=patience,
                        say=_nothing if quiet else typer.echo,
                    )
                except FaultUnavailable as error:
                    facts.append({"drill": drill.name, "title": drill.title, "skipped": str(error)})
                    break
                page, _ = write_report(outcome, report, name)
                facts.append(facts_of(outcome) | {"skipped": None, "report": str(page)})
                if not quiet:
                    _print_result(facts[-1])
    finally:
        await target.close()
    return facts


def _nothing(line: str) -> None:
    del line


def _print_result(facts: dict[str, Any]) -> None:
    for check in facts["checks"]:
        for line in check["failed"][:5]:
            typer.echo(f"  FAILED {check['name']}: {line}")
    verdict = "passed" if facts["passed"] else "FAILED"
    for phase in PHASES:
        rows = [row for row in facts["writes"] if row["phase"] == phase]
        counts = ", ".join(f"{row['region']} {row['acknowledged']} (at least {row['least']})" for row in rows)
        typer.echo(f"  keyed writes {PHASE_WORDS[phase]}, {rows[0]['seconds']:.1f} s: {counts}")
    outage, slowest = _seconds(facts["longest_stall_s"]), _seconds(facts["slowest_write_s"])
    typer.echo(f"  {verdict}; longest write outage {outage} s, slowest write {slowest} s; {facts['report']}")


def _seconds(value: float | None) -> str:
    """Return seconds as text, or "-" if nothing was written."""
    return "-" if value is None else f"{value:.2f}"


def _show(facts: list[dict[str, Any]]) -> None:
    rows: list[tuple[object, ...]] = []
    carried_out = [one for one in facts if one["skipped"] is None]
    for name in dict.fromkeys(one["drill"] for one in carried_out):
        some = [one for one in carried_out if one["drill"] == name]
        outages = sorted(one["longest_stall_s"] for one in some if one["longest_stall_s"] is not None)
        slowest = [one["slowest_write_s"] for one in some if one["slowest_write_s"] is not None]
        passed = sum(one["passed"] for one in some)
        writes = sum(one["acknowledged"] for one in some)
        seconds = (median(outages) if outages else None, max(outages, default=None), max(slowest, default=None))
        rows.append((name, f"{passed} of {len(some)}", writes, *map(_seconds, seconds)))
    if rows:
        heads = ("drill", "passed", "acknowledged", "median outage s", "worst s", "slowest write s")
        print_table("drills", heads, rows)
    for one in facts:
        if one["skipped"] is not None:
            typer.echo(f"{one['drill']} skipped: {one['skipped']}")

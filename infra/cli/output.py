"""The text output of `palaver status`, and the line that names the logs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import typer

from infra.printing import print_table
from infra.supervisor.layout import Layout


def where_logs_are(layout: Layout) -> str:
    """Return the line that says where the logs of a deployment are, also after it has stopped."""
    return (
        f"logs: {layout.deployment_logs} and {layout.region('REGION')}/logs; "
        f"`palaver logs --data {layout.data}` prints all of them in order of time"
    )


def fault_lines(faults: Sequence[Mapping[str, Any]] | None) -> list[str]:
    """Return a line for each fault between two regions; one line if both directions have the same fault.

    `faults` is None if the relay does not answer; the faults are then unknown.
    """
    if faults is None:
        return ["faults: unknown, because the relay does not answer"]
    known = {(one["source"], one["target"]): _fault_text(one) for one in faults}
    lines: list[str] = []
    for (source, target), text in known.items():
        both = known.get((target, source)) == text
        if not both or source < target:
            lines.append(f"fault: {source} {'↔' if both else '→'} {target}: {text}")
    return lines


def _fault_text(fault: Mapping[str, Any]) -> str:
    if fault["cut"]:
        return "cut"
    jitter = f" ± {fault['jitter_ms']:g}" if fault["jitter_ms"] else ""
    loss = f", loss {fault['loss']:g}" if fault["loss"] else ""
    return f"delay {fault['delay_ms']:g} ms{jitter}{loss}"


def print_status(document: Mapping[str, Any]) -> None:
    """Print the status document as text."""
    for cell in document["cells"]:
        leader = cell["leader"] or "nobody"
        paused = "" if cell["automatic"] else "; failover is paused"
        typer.echo(f"cell {cell['cell']}: {cell['phase']}, led by {leader} under epoch {cell['epoch']}{paused}")
        for name in ("joining", "drained"):
            if cell[name]:
                typer.echo(f"{name}: {', '.join(cell[name])}")
        if cell["writes_refused"] is not None:
            typer.echo(f"no writes: {cell['writes_refused']}")
    rows = [
        (
            region["region"],
            region["role"] if region["state"] == "running" else f"{region['role']} ({region['state']})",
            "yes" if region["healthy"] else "no",
            "-" if region["lag_ms"] is None else region["lag_ms"],
            region["edge"],
            sum(region["restarts"].values()),
        )
        for region in document["regions"]
    ]
    print_table("", ("region", "role", "healthy", "lag ms", "edge", "restarts"), rows)
    for line in fault_lines(document.get("faults", ())):
        typer.echo(line)
    for region in document["regions"]:
        if region["state"] == "killed":
            typer.echo(f"{region['region']}: killed; `palaver region restart {region['region']}` starts it")
            continue
        for text in region["missing"]:
            typer.echo(f"{region['region']}: {text}")
        for text in region["warnings"]:
            typer.echo(f"{region['region']}: warning: {text}")

"""`palaver switch`, `palaver failover …`, `palaver history`: steer the leadership, and see what became of it."""

from __future__ import annotations

import getpass
from pathlib import Path
from typing import Annotated, Any

import typer

from infra.cli import output
from infra.cli.options import DEFAULT_DATA, Data, Json
from infra.supervisor.control_client import ControlClient
from infra.supervisor.layout import open_layout

REASON_CHARS_MAX = 120

Reason = Annotated[str, typer.Option("--reason", help="Why, for the history.")]


def switch(
    to: Annotated[str, typer.Option("--to", help="The region that is to lead.")],
    reason: Reason = "planned",
    data: Data = DEFAULT_DATA,
    as_json: Json = False,
) -> None:
    """Move the leadership to a region whose ledger follows closely; writes wait meanwhile, and none fails."""
    _order("switch", to, reason, data, as_json)


def pause(reason: Reason = "maintenance", data: Data = DEFAULT_DATA, as_json: Json = False) -> None:
    """Move the leadership for no suspicion until `palaver failover resume`; a switch still does."""
    _order("pause", None, reason, data, as_json)


def resume(reason: Reason = "maintenance is over", data: Data = DEFAULT_DATA, as_json: Json = False) -> None:
    """Let a lost leader be replaced again."""
    _order("resume", None, reason, data, as_json)


def history(data: Data = DEFAULT_DATA, as_json: Json = False) -> None:
    """Print what became of each epoch: who led it, since when, why, and how long each step took."""
    with ControlClient(open_layout(data)) as control:
        document = control.get("/history")
    if as_json:
        output.print_json(document)
        return
    rows = [
        (
            entry["epoch"],
            entry["leader"],
            entry["began"],
            entry["reason"],
            _milliseconds(entry["phases_ms"]) if entry["served"] else "never served",
            _milliseconds(entry["steps_ms"]),
        )
        for entry in document["epochs"]
    ]
    output.print_table("", ("epoch", "leader", "began", "why", "phases, ms", "steps, ms"), rows)


def _milliseconds(steps: dict[str, float]) -> str:
    return ", ".join(f"{name} {ms:.0f}" for name, ms in steps.items())


def _order(kind: str, region: str | None, reason: str, data: Path, as_json: bool) -> None:
    by = f"{getpass.getuser()}: {reason[:REASON_CHARS_MAX]}"
    with ControlClient(open_layout(data)) as control:
        cell: dict[str, Any] = control.post("/order", kind=kind, region=region, by=by)
    if as_json:
        output.print_json(cell)
        return
    automatic = "" if cell["automatic"] else "; failover is paused"
    typer.echo(f"cell {cell['cell']}: led by {cell['leader']} under epoch {cell['epoch']}{automatic}")

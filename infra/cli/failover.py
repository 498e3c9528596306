"""`palaver switch`, `palaver failover …`, `palaver history`: control the leadership, and list its epochs."""

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

Reason = Annotated[str, typer.Option("--reason", help="Reason, for the logs and the history.")]


def switch(
    to: Annotated[str, typer.Option("--to", help="The new leader region.")],
    reason: Reason = "planned",
    data: Data = DEFAULT_DATA,
    as_json: Json = False,
) -> None:
    """Move the leadership to a region whose ledger follows closely; writes wait during the switch and do not fail."""
    _order("switch", to, reason, data, as_json)


def pause(reason: Reason = "maintenance", data: Data = DEFAULT_DATA, as_json: Json = False) -> None:
    """Stop automatic failover until `palaver failover resume`; `palaver switch` still works."""
    _order("pause", None, reason, data, as_json)


def resume(reason: Reason = "maintenance is over", data: Data = DEFAULT_DATA, as_json: Json = False) -> None:
    """Let another region replace a lost leader again."""
    _order("resume", None, reason, data, as_json)


def history(data: Data = DEFAULT_DATA, as_json: Json = False) -> None:
    """List the epochs: leader, start, reason, and how long each step took."""
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

"""`palaver switch`, `palaver failover …`, `palaver history`: control the leadership, and list its epochs."""

from __future__ import annotations

import getpass
import textwrap
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from infra.cli.options import DEFAULT_DATA, Data, Json
from infra.printing import print_json
from infra.supervisor.control_client import ControlClient
from infra.supervisor.layout import open_layout

REASON_CHARS_MAX = 120
COLUMNS = 80
INDENT = " " * 21  # the column of the text after a time
NEVER = datetime.min.replace(tzinfo=UTC)

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
    """List epochs and orders: leader, start (local time), reason, and how long each step took."""
    with ControlClient(open_layout(data)) as control:
        document = control.get("/history")
    if as_json:
        print_json(document)
        return
    for line in history_lines(document["epochs"], document.get("orders", [])):
        typer.echo(line)


def history_lines(epochs: Sequence[Mapping[str, Any]], orders: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return epochs and orders in order of time, within 80 columns; times are local.

    A completed switchover is listed only as an epoch, which has the same reason; a refused one is listed as an order.
    """
    entries = [(_moment(one["began"]), _epoch_lines(one)) for one in epochs]
    shown = [one for one in orders if one["order"] != "switch" or one["refused"] is not None]
    entries += [(_moment(one["at"]), _order_lines(one)) for one in shown]
    lines: list[str] = []
    for at, (head, *details) in sorted(entries, key=lambda entry: entry[0]):
        when = "time unknown" if at == NEVER else f"{at.astimezone():%Y-%m-%d %H:%M:%S}"
        lines.append(f"{when:19}  {head}")
        for text in details:
            lines += textwrap.wrap(text, COLUMNS, initial_indent=INDENT, subsequent_indent=INDENT + "  ")
    return lines


def _moment(text: str) -> datetime:
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        return NEVER  # The epoch's record has no time.


def _epoch_lines(entry: Mapping[str, Any]) -> list[str]:
    how = f"served after {sum(entry['phases_ms'].values()) / 1000:.2f} s" if entry["served"] else "never served"
    lines = [f"epoch {entry['epoch']}: {entry['leader']}, {how}", f"reason: {entry['reason']}"]
    lines += [f"{name}, ms: {_milliseconds(ms)}" for name in ("phases", "steps") if (ms := entry[f"{name}_ms"])]
    return lines


def _order_lines(entry: Mapping[str, Any]) -> list[str]:
    what = f"{entry['order']} {entry['region'] or ''}".rstrip()
    what = f"failover {what}" if entry["region"] is None else what
    lines = [f"order: {what}{'' if entry['refused'] is None else ' (refused)'}", f"by {entry['by']}"]
    return lines if entry["refused"] is None else [*lines, f"refused: {entry['refused']}"]


def _milliseconds(steps: dict[str, float]) -> str:
    return ", ".join(f"{name} {ms:.0f}" for name, ms in steps.items())


def _order(kind: str, region: str | None, reason: str, data: Path, as_json: bool) -> None:
    by = f"{getpass.getuser()}: {reason[:REASON_CHARS_MAX]}"
    with ControlClient(open_layout(data)) as control:
        cell: dict[str, Any] = control.post("/order", kind=kind, region=region, by=by)
    if as_json:
        print_json(cell)
        return
    automatic = "" if cell["automatic"] else "; failover is paused"
    typer.echo(f"cell {cell['cell']}: led by {cell['leader']} under epoch {cell['epoch']}{automatic}")

"""`palaver region drain | undrain | add | remove`: which regions may lead, and which ledgers the commit quorum has.

Each waits until the order is carried out. A repeated order prints that nothing had to change.
"""

from __future__ import annotations

import getpass
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

import typer

from infra.cli.failover import REASON_CHARS_MAX, Reason
from infra.cli.options import DEFAULT_DATA, Data, Json
from infra.printing import print_json
from infra.supervisor.control_client import ControlClient
from infra.supervisor.errors import OrderRefused
from infra.supervisor.layout import open_layout

SEEN_S_MAX = 10.0  # a change of the record reaches the agents with etcd's watch, within milliseconds
JOINED_S_MAX = 600.0  # a copy of 30 GB at 50 MB/s; the same command again continues to wait
POLL_S = 0.2

Region = Annotated[str, typer.Argument(help="A region that can hold a ledger.")]
Cell = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """A change of a region's role that a command orders.

    Attributes:
        kind: The order for the failover core.
        holds: Whether the change is complete for a region, given the cell of the status document.
        says: The state of the region after the change, for the output.
    """

    kind: str
    holds: Callable[[Cell, str], bool]
    says: str


def _is_drained(cell: Cell, region: str) -> bool:
    return region in cell["drained"] and cell["leader"] != region


def _is_removed(cell: Cell, region: str) -> bool:
    # An empty list means that no agent knows the record, so the voters are unknown.
    return bool(cell["voters"]) and region not in (*cell["voters"], *cell["joining"])


DRAIN = Change(kind="drain", holds=_is_drained, says="drained: it leads only if no other region can")
UNDRAIN = Change(
    kind="undrain",
    holds=lambda cell, region: region in cell["voters"] and region not in cell["drained"],
    says="free to lead",
)
ADD = Change(
    kind="add",
    holds=lambda cell, region: region in cell["voters"],
    says="a voter: its ledger counts in the commit quorum",
)
REMOVE = Change(
    kind="remove", holds=_is_removed, says="removed from the voters: its ledger does not count in the commit quorum"
)


def drain(region: Region, reason: Reason = "maintenance", data: Data = DEFAULT_DATA, as_json: Json = False) -> None:
    """Move the leadership away from a region, which then leads only if no other region can; it still votes."""
    _carry_out(DRAIN, region, reason, data, as_json)


def undrain(
    region: Region, reason: Reason = "maintenance is over", data: Data = DEFAULT_DATA, as_json: Json = False
) -> None:
    """Let a drained region lead again; the leadership does not move."""
    _carry_out(UNDRAIN, region, reason, data, as_json)


def add(region: Region, reason: Reason = "planned", data: Data = DEFAULT_DATA, as_json: Json = False) -> None:
    """Make a region a voter: its ledger is copied, follows the leader, and then joins the commit quorum."""
    _carry_out(ADD, region, reason, data, as_json)


def remove(region: Region, reason: Reason = "planned", data: Data = DEFAULT_DATA, as_json: Json = False) -> None:
    """Take a region out of the commit quorum; its ledger stops and its data is kept."""
    _carry_out(REMOVE, region, reason, data, as_json)


def _carry_out(change: Change, region: str, reason: str, data: Data, as_json: bool) -> None:
    by = f"{getpass.getuser()}: {reason[:REASON_CHARS_MAX]}"
    with ControlClient(open_layout(data)) as control:
        already = change.holds(_cell(control), region)
        control.post("/order", kind=change.kind, region=region, by=by)
        cell = _until(control, change, region)
    if as_json:
        print_json({"order": change.kind, "region": region, "already": already, "cell": cell})
        return
    voters = ", ".join(cell["voters"])
    led = f"cell {cell['cell']}: led by {cell['leader']} under epoch {cell['epoch']}, voters {voters}"
    typer.echo(f"{region} is {'already ' if already else ''}{change.says}; {led}")


def _cell(control: ControlClient) -> Cell:
    cell: Cell = control.get("/status")["cells"][0]
    return cell


def _until(control: ControlClient, change: Change, region: str) -> Cell:
    """Wait until the change is complete: up to SEEN_S_MAX, or JOINED_S_MAX while the ledger is copied.

    Raises:
        OrderRefused: The change did not complete in time, or another operator ordered the opposite.
    """
    began = under_way_at = time.monotonic()
    while not change.holds(cell := _cell(control), region):
        now = time.monotonic()
        if region in cell["joining"] and change is ADD:
            under_way_at = now
        if now - under_way_at > SEEN_S_MAX:
            raise OrderRefused(f"{change.kind} {region} was ordered and is undone again: look at `palaver status`")
        if now - began > JOINED_S_MAX:
            raise OrderRefused(f"{region} still copies after {JOINED_S_MAX:.0f} s: ask again to wait on")
        time.sleep(POLL_S)
    return cell

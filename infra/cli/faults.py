"""`palaver fault …` and `palaver region restart`: inject faults into a running deployment, and undo them."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import typer

from infra.cli.options import DEFAULT_DATA, Data, Json, known_plan
from infra.printing import print_json
from infra.relay.client import RelayClient
from infra.supervisor.control_client import ControlClient
from infra.supervisor.environment import address
from infra.supervisor.errors import DeploymentError, InvalidPlan, UnknownTarget
from infra.supervisor.layout import open_layout
from infra.supervisor.secrets import load_or_create_secrets

DELAY_MS_MAX = 10_000  # the relay's own limit
HEALTHY_WITHIN_S = 120.0  # the bound of a start; a copy of a large ledger takes longer
POLL_S = 0.2

REGION = Annotated[str, typer.Argument(help="A region.")]
PROCESS = Annotated[
    str | None, typer.Argument(help="A process of the region, as `palaver status --json` names it; without it, all.")
]


def kill(
    region: REGION,
    process: PROCESS = None,
    data: Data = DEFAULT_DATA,
    as_json: Json = False,
) -> None:
    """Kill (-9) one process, which is restarted, or a whole region, which needs `palaver region restart`."""
    _fault("/fault/kill", "killed", region, process, data, as_json)


def pause(
    region: REGION,
    process: PROCESS = None,
    data: Data = DEFAULT_DATA,
    as_json: Json = False,
) -> None:
    """Suspend one process or a whole region (SIGSTOP)."""
    _fault("/fault/pause", "paused", region, process, data, as_json)


def resume(
    region: REGION,
    process: PROCESS = None,
    data: Data = DEFAULT_DATA,
    as_json: Json = False,
) -> None:
    """Resume suspended processes (SIGCONT)."""
    _fault("/fault/resume", "resumed", region, process, data, as_json)


def _fault(  # noqa: PLR0913, PLR0917 - the arguments of three commands
    path: str, done: str, region: str, process: str | None, data: Path, as_json: bool
) -> None:
    with ControlClient(open_layout(data)) as control:
        answer = control.post(path, region=region, process=process)
    if as_json:
        print_json({"region": region, "process": process, **answer})
    else:
        count = len(answer["pids"])
        name = region if process is None else f"{region}/{process}"
        typer.echo(f"{done} {name} ({count} {'process' if count == 1 else 'processes'})")


def restart(
    region: REGION,
    healthy_within_s: Annotated[
        float, typer.Option(min=0.0, help="How long to wait until the region is healthy, in seconds; 0 does not wait.")
    ] = HEALTHY_WITHIN_S,
    data: Data = DEFAULT_DATA,
    as_json: Json = False,
) -> None:
    """Start a killed region again, or stop and start a running one; wait until it is healthy."""
    began = time.monotonic()
    with ControlClient(open_layout(data)) as control:
        control.post("/region/restart", region=region)
        while not (found := _region(control, region))["healthy"] and healthy_within_s:
            if time.monotonic() - began > healthy_within_s:
                missing = "; ".join(found["missing"]) or found["state"]
                raise DeploymentError(
                    f"{region} was started and is not healthy after {healthy_within_s:g} s: {missing}; see "
                    f"`palaver logs {region}`"
                )
            time.sleep(POLL_S)
    took_s = time.monotonic() - began
    if as_json:
        print_json({"region": region, "seconds": round(took_s, 1), "role": found["role"], "pids": found["pids"]})
    else:
        state = f"healthy after {took_s:.1f} s" if found["healthy"] else "starting"
        typer.echo(f"{region} is {state} ({found['role']})")


def _region(control: ControlClient, region: str) -> dict[str, Any]:
    """Return the entry of a region in the status document."""
    regions: list[dict[str, Any]] = control.get("/status")["regions"]
    return next(entry for entry in regions if entry["region"] == region)


def clock(
    region: REGION,
    offset_s: Annotated[float, typer.Argument(help="Offset in seconds, negative for the past; 0 removes it.")],
    data: Data = DEFAULT_DATA,
) -> None:
    """Shift the wall clock of a region; the deployment must have been started with `palaver up --clocks`."""
    with ControlClient(open_layout(data)) as control:
        control.post("/fault/clock", region=region, offset_s=offset_s)
    typer.echo(f"{region}: wall clock shifted by {offset_s:+g} s" if offset_s else f"{region}: wall clock not shifted")


FIRST = Annotated[str, typer.Argument(help="A region.")]
SECOND = Annotated[str, typer.Argument(help="Another region.")]
ONE_WAY = Annotated[bool, typer.Option("--one-way", help="Only from the first region to the second.")]


def partition(first: FIRST, second: SECOND, one_way: ONE_WAY = False, data: Data = DEFAULT_DATA) -> None:
    """Cut the network between two regions."""
    with _relay(data, first, second) as relay:
        relay.cut(first, second, both_ways=not one_way)
    typer.echo(f"cut {first} {'→' if one_way else '↔'} {second}")


def heal(
    first: Annotated[str | None, typer.Argument(help="A region; without one, all links are healed.")] = None,
    second: Annotated[str | None, typer.Argument(help="Another region.")] = None,
    data: Data = DEFAULT_DATA,
) -> None:
    """Undo cuts, delays and loss between two regions, or between all of them."""
    if (first is None) != (second is None):
        raise UnknownTarget("name two regions, or none to heal everything")
    with _relay(data, *(name for name in (first, second) if name is not None)) as relay:
        relay.heal(None if first is None or second is None else [(first, second), (second, first)])
    typer.echo("healed everything" if first is None else f"healed {first} ↔ {second}")


def delay(  # noqa: PLR0913, PLR0917 - each is an option of the command
    first: FIRST,
    second: SECOND,
    delay_ms: Annotated[float, typer.Argument(help="Delay of one direction, in milliseconds.")],
    jitter_ms: Annotated[float, typer.Option(help="Random variation of the delay, more or less.")] = 0.0,
    loss: Annotated[float, typer.Option(help="Share of packets lost, 0 to 1 (a retransmission delay on TCP).")] = 0.0,
    one_way: ONE_WAY = False,
    data: Data = DEFAULT_DATA,
) -> None:
    """Set delay, jitter and loss between two regions."""
    if not (0 <= delay_ms <= DELAY_MS_MAX and 0 <= jitter_ms <= DELAY_MS_MAX and 0 <= loss < 1):
        raise InvalidPlan(
            f"delay {delay_ms:g} ms, jitter {jitter_ms:g} ms, loss {loss:g}: use a delay and a jitter of 0 to "
            f"{DELAY_MS_MAX} ms, and a loss from 0 to below 1"
        )
    with _relay(data, first, second) as relay:
        relay.set_fault(first, second, delay_ms=delay_ms, jitter_ms=jitter_ms, loss=loss, both_ways=not one_way)
    typer.echo(f"{first} {'→' if one_way else '↔'} {second}: {delay_ms:g} ms ± {jitter_ms:g}, loss {loss:g}")


def _relay(data: Path, *regions: str) -> RelayClient:
    """Check the region names; return a client of the relay of a running deployment.

    Raises:
        UnknownTarget: A region is unknown, or named twice.
        NotRunning: No deployment runs.
    """
    layout = open_layout(data)
    plan = known_plan(layout)
    for region in regions:
        if region not in plan.all_regions:
            raise UnknownTarget(f"unknown region {region!r}; there are {', '.join(plan.all_regions)}")
    if len(set(regions)) != len(regions):
        raise UnknownTarget("name two different regions")
    ControlClient(layout).close()  # Raises NotRunning with a clear message.
    token = load_or_create_secrets(layout.secrets).relay_token
    return RelayClient(address(plan.deployment_port("relay_control")), token)

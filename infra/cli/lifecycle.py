"""`palaver up | down | status | servers | logs`: start, stop and inspect a deployment."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from infra.cli import logs as log_reader
from infra.cli import output
from infra.cli.options import DEFAULT_DATA, Data, Json, known_plan
from infra.cli.progress import ProgressDisplay
from infra.printing import print_json, print_table
from infra.supervisor.control_client import ControlClient
from infra.supervisor.deployment import DeploymentOptions, find_servers, run_deployment, settle_plan
from infra.supervisor.environment import address
from infra.supervisor.errors import DeploymentError, NotRunning, StartFailed
from infra.supervisor.layout import Layout, open_layout
from infra.supervisor.plan import Plan
from infra.supervisor.supervisor import Supervisor

DETACHED_READY_TIMEOUT_S = 180.0
STOP_TIMEOUT_S = 60.0
POLL_S = 0.1


def _names(text: str | None) -> tuple[str, ...] | None:
    return None if text is None else tuple(name.strip() for name in text.split(",") if name.strip())


def up(  # noqa: PLR0913, PLR0917 - each is an option of the command
    regions: Annotated[
        str | None, typer.Option(help="Voter regions, comma-separated (3 or 5); the first is the first leader.")
    ] = None,
    view_regions: Annotated[str | None, typer.Option(help="Regions without a ledger, comma-separated.")] = None,
    rtt_ms: Annotated[float | None, typer.Option(help="Round trip between regions in milliseconds.")] = None,
    port_base: Annotated[
        int | None, typer.Option(help="First port of a block; without it, free ports are chosen.")
    ] = None,
    detach: Annotated[
        bool, typer.Option("--detach", help="Return when the deployment is ready; `palaver down` stops it.")
    ] = False,
    clocks: Annotated[
        bool,
        typer.Option("--clocks", help="Make wall clocks shiftable, for drills (needs libfaketime)."),
    ] = False,
    limit_clients: Annotated[
        bool | None,
        typer.Option(help="Limit the request rate of each client address (default); off for load tests."),
    ] = None,
    data: Data = DEFAULT_DATA,
    as_json: Json = False,
) -> None:
    """Start a deployment, or the one that the data folder holds; without --detach, run it until Ctrl-C."""
    layout = open_layout(data)
    options = DeploymentOptions(
        regions=_names(regions),
        view_regions=_names(view_regions),
        rtt_ms=rtt_ms,
        port_base=port_base,
        clocks=clocks,
        limit_clients=limit_clients,
    )
    if detach:
        _up_detached(layout, options)
        with ControlClient(layout) as control:
            _print_status(control.get("/status"), as_json=as_json)
        return

    async def accompany(supervisor: Supervisor) -> None:
        await supervisor.all_ready.wait()
        if as_json:
            print_json(await supervisor.status())
        else:
            for line in ready_lines(supervisor.plan):
                typer.echo(line)

    with ProgressDisplay(to_stderr=as_json) as display:
        asyncio.run(
            run_deployment(
                layout,
                options,
                on_progress=display.update,
                alongside=lambda supervisor: asyncio.ensure_future(accompany(supervisor)),
            )
        )
    typer.echo(stopped_text(layout), err=as_json)


def ready_lines(plan: Plan) -> list[str]:
    """Return the lines that a foreground start prints at its end: all edges, and the next commands."""
    return [
        *(f"{region}: http://{address(plan.port(region, 'edge'))}" for region in plan.all_regions),
        "stop: Ctrl-C    more, in another terminal: palaver status, palaver logs -f",
    ]


def stopped_text(layout: Layout) -> str:
    """Return the line for a stopped deployment: its data is kept."""
    return f"stopped; the data is kept in {layout.data}"


def _up_detached(layout: Layout, options: DeploymentOptions) -> None:
    """Start a supervisor in its own session, and wait until the deployment is ready."""
    find_servers()
    settle_plan(layout, options)
    started = subprocess.Popen(
        [sys.executable, "-P", "-m", "infra.supervisor", str(layout.data)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
        cwd="/",
    )
    deadline = time.monotonic() + DETACHED_READY_TIMEOUT_S
    while time.monotonic() < deadline:
        if started.poll() is not None:
            assert started.stderr is not None
            lines = started.stderr.read().decode(errors="replace").strip().splitlines()
            raise StartFailed(lines[-1] if lines else f"the supervisor ended with {started.returncode}; see its log")
        try:
            with ControlClient(layout) as control:
                if control.pid == started.pid and control.get("/progress")["ready"]:
                    return
        except NotRunning:
            pass  # The supervisor has not opened its control interface yet.
        time.sleep(POLL_S)
    started.terminate()
    raise StartFailed(f"not ready after {DETACHED_READY_TIMEOUT_S:.0f} s; see `palaver logs`")


def down(data: Data = DEFAULT_DATA) -> None:
    """Stop a deployment in order; its data is kept."""
    layout = open_layout(data)
    with ControlClient(layout) as control:
        control.post("/stop")
        deadline = time.monotonic() + STOP_TIMEOUT_S
        while _is_running(layout, control.pid):
            if time.monotonic() > deadline:
                raise DeploymentError(f"still stopping after {STOP_TIMEOUT_S:.0f} s; see `palaver logs`")
            time.sleep(POLL_S)
    typer.echo(stopped_text(layout))


def _is_running(layout: Layout, pid: int) -> bool:
    try:
        with ControlClient(layout) as control:
            return control.pid == pid
    except NotRunning:
        # The supervisor removes its control file last; after that only its process has to end.
        return _alive(pid)


def _alive(pid: int) -> bool:
    """Whether a process runs; a zombie has no command line."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes() != b""
    except OSError:
        return False


def status(data: Data = DEFAULT_DATA, as_json: Json = False) -> None:
    """Show cells, leader, epoch, regions, faults in force and what is missing."""
    with ControlClient(open_layout(data)) as control:
        _print_status(control.get("/status"), as_json=as_json)


def _print_status(document: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        print_json(document)
    else:
        output.print_status(document)


def servers(data: Data = DEFAULT_DATA, as_json: Json = False) -> None:
    """Show the server binaries in use: path, version, source and why each was chosen."""
    del data  # Every command has `--data`; the binaries are the same for all data folders.
    found = find_servers().values()
    if as_json:
        print_json(
            [
                {
                    "name": server.name, "path": str(server.path), "version": server.version,
                    "source": server.source, "why": server.why, "warning": server.warning,
                }
                for server in found
            ]
        )  # fmt: skip
        return
    rows = [(server.name, server.version, server.source, server.path, server.why) for server in found]
    print_table("", ("server", "version", "from", "path", "why"), rows)
    for server in found:
        if server.warning:
            typer.echo(f"warning: {server.warning}", err=True)


def logs(
    region: Annotated[str | None, typer.Argument(help="Only this region.")] = None,
    process: Annotated[str | None, typer.Argument(help="Only this process.")] = None,
    follow: Annotated[bool, typer.Option("-f", "--follow", help="Keep printing what is appended.")] = False,
    data: Data = DEFAULT_DATA,
    as_json: Annotated[bool, typer.Option("--json", help="Print each line as a JSON object.")] = False,
) -> None:
    """Print the logs of all processes, in order of time."""
    layout = open_layout(data)
    files = log_reader.find_logs(layout, known_plan(layout), region, process)
    for line in log_reader.merged(files, as_json=as_json):
        typer.echo(line)
    if follow:
        log_reader.follow(files, as_json=as_json, emit=typer.echo)

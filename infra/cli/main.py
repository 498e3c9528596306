"""The `palaver` command: composition root of everything that an engineer does with a deployment.

Wrong input ends with exit code 2 and one line on standard error; a deployment that cannot do what was asked
ends with exit code 1 and one line.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import click
import typer

from infra.cli import output
from infra.supervisor.control import ControlClient
from infra.supervisor.deployment import Wish, find_servers, run_deployment, settle_plan
from infra.supervisor.errors import (
    DeploymentError,
    InvalidPlan,
    NotRunning,
    PlanMismatch,
    StartFailed,
    UnknownTarget,
)
from infra.supervisor.layout import Layout, open_layout
from infra.supervisor.plan import Plan, load_plan

EXIT_FAILED = 1
EXIT_WRONG_INPUT = 2
WRONG_INPUT = (InvalidPlan, UnknownTarget, PlanMismatch)
DETACHED_READY_TIMEOUT_S = 180.0
STOP_TIMEOUT_S = 60.0
POLL_S = 0.1

app = typer.Typer(
    name="palaver", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False,
    help="A comment service that keeps its promises when a whole region dies.",
)  # fmt: skip
site_app = typer.Typer(no_args_is_help=True, help="Sites of a running deployment.")
fault_app = typer.Typer(no_args_is_help=True, help="Hurt a running deployment on purpose.")
region_app = typer.Typer(no_args_is_help=True, help="Regions of a running deployment.")
app.add_typer(site_app, name="site")
app.add_typer(fault_app, name="fault")
app.add_typer(region_app, name="region")

Data = Annotated[Path, typer.Option("--data", help="Data folder of the deployment.", show_default=True)]
Json = Annotated[bool, typer.Option("--json", help="Print facts as JSON.")]
DEFAULT_DATA = Path(".palaver")


def _names(text: str | None) -> tuple[str, ...] | None:
    return None if text is None else tuple(name.strip() for name in text.split(",") if name.strip())


def known_plan(layout: Layout) -> Plan:
    """The plan of a folder that must hold a deployment.

    Raises:
        NotRunning: There is none.
    """
    plan = load_plan(layout.plan)
    if plan is None:
        raise NotRunning(f"{layout.data} holds no deployment; start one with `palaver up`")
    return plan


@app.command()
def up(
    regions: Annotated[
        str | None, typer.Option(help="Voter regions, comma-separated (3 or 5); the first leads.")
    ] = None,
    view_regions: Annotated[str | None, typer.Option(help="Regions that only read, comma-separated.")] = None,
    rtt_ms: Annotated[float | None, typer.Option(help="Round trip between regions in milliseconds.")] = None,
    port_base: Annotated[
        int | None, typer.Option(help="First of a block of ports; free ones are found otherwise.")
    ] = None,
    detach: Annotated[
        bool, typer.Option("--detach", help="Return when all is ready; stop with `palaver down`.")
    ] = False,
    data: Data = DEFAULT_DATA,
    as_json: Json = False,
) -> None:
    """Start a deployment, or go on with the one in the data folder."""
    layout = open_layout(data)
    wish = Wish(
        regions=_names(regions), view_regions=_names(view_regions), rtt_ms=rtt_ms, port_base=port_base
    )
    if detach:
        _up_detached(layout, wish)
        with ControlClient(layout) as control:
            _print_status(control.get("/status"), as_json=as_json)
        return
    from infra.cli.progress import ProgressDisplay

    with ProgressDisplay() as display:
        asyncio.run(run_deployment(layout, wish, on_progress=display.update))


def _up_detached(layout: Layout, wish: Wish) -> None:
    """Start a supervisor of its own session and wait until everything is ready."""
    find_servers()
    settle_plan(layout, wish)
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
            raise StartFailed(
                lines[-1] if lines else f"the supervisor ended with {started.returncode}; see its log"
            )
        try:
            with ControlClient(layout) as control:
                if control.pid == started.pid and control.get("/progress")["ready"]:
                    return
        except NotRunning:
            pass  # It is not that far yet.
        time.sleep(POLL_S)
    started.terminate()
    raise StartFailed(f"not ready after {DETACHED_READY_TIMEOUT_S:.0f} s; see `palaver logs`")


@app.command()
def down(data: Data = DEFAULT_DATA) -> None:
    """Stop a deployment in order; its data stays."""
    layout = open_layout(data)
    with ControlClient(layout) as control:
        control.post("/stop")
        deadline = time.monotonic() + STOP_TIMEOUT_S
        while _is_running(layout, control.pid):
            if time.monotonic() > deadline:
                raise DeploymentError(f"still stopping after {STOP_TIMEOUT_S:.0f} s; see `palaver logs`")
            time.sleep(POLL_S)


def _is_running(layout: Layout, pid: int) -> bool:
    try:
        with ControlClient(layout) as control:
            return control.pid == pid
    except NotRunning:
        # The control file goes last; after it only the process itself has to end.
        return _alive(pid)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/cmdline").read_bytes() != b"" if Path(f"/proc/{pid}").exists() else False


@app.command()
def status(data: Data = DEFAULT_DATA, as_json: Json = False) -> None:
    """Show cells, leader, epoch, regions and what is missing."""
    with ControlClient(open_layout(data)) as control:
        _print_status(control.get("/status"), as_json=as_json)


def _print_status(document: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        output.print_json(document)
    else:
        output.print_status(document)


@app.command()
def servers(data: Data = DEFAULT_DATA, as_json: Json = False) -> None:
    """Show which server binaries are used, where they lie, which version and why."""
    del data  # Every command takes it; the binaries are the same for all folders.
    found = find_servers().values()
    if as_json:
        output.print_json(
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
    output.print_table("", ("server", "version", "from", "path", "why"), rows)
    for server in found:
        if server.warning:
            typer.echo(f"warning: {server.warning}", err=True)


@app.command()
def logs(
    region: Annotated[str | None, typer.Argument(help="Only this region.")] = None,
    process: Annotated[str | None, typer.Argument(help="Only this process.")] = None,
    follow: Annotated[bool, typer.Option("-f", "--follow", help="Go on with what is appended.")] = False,
    data: Data = DEFAULT_DATA,
    as_json: Annotated[bool, typer.Option("--json", help="Print the lines as they were written.")] = False,
) -> None:
    """Print the logs of all processes in the order of time."""
    from infra.cli import logs as reader

    layout = open_layout(data)
    files = reader.find_logs(layout, known_plan(layout), region, process)
    for line in reader.merged(files, raw=as_json):
        typer.echo(line)
    if follow:
        reader.follow(files, raw=as_json, emit=typer.echo)


@site_app.command("create")
def site_create(
    name: Annotated[str, typer.Argument(help="Name of the site.")],
    origin: Annotated[
        list[str], typer.Option(help="Origin of its pages, such as https://example.com; repeatable.")
    ],
    data: Data = DEFAULT_DATA,
    as_json: Json = False,
) -> None:
    """Create a site and print its id and secrets (shown once)."""
    from infra.cli.site import create_site

    layout = open_layout(data)
    ControlClient(layout).__exit__()
    made = create_site(layout, known_plan(layout), name=name, origins=origin)
    if as_json:
        output.print_json(made)
    else:
        for key, value in made.items():
            typer.echo(f"{key}: {value}")


@fault_app.command("kill")
def fault_kill(
    region: str,
    process: Annotated[str | None, typer.Argument()] = None,
    data: Data = DEFAULT_DATA,
    as_json: Json = False,
) -> None:
    """Kill -9 one process (it comes back) or a whole region (it stays dead until `region restart`)."""
    _fault("/fault/kill", "killed", region, process, data, as_json)


@fault_app.command("pause")
def fault_pause(
    region: str,
    process: Annotated[str | None, typer.Argument()] = None,
    data: Data = DEFAULT_DATA,
    as_json: Json = False,
) -> None:
    """Stop (SIGSTOP) one process or a whole region without its noticing."""
    _fault("/fault/pause", "paused", region, process, data, as_json)


@fault_app.command("resume")
def fault_resume(
    region: str,
    process: Annotated[str | None, typer.Argument()] = None,
    data: Data = DEFAULT_DATA,
    as_json: Json = False,
) -> None:
    """Let paused processes go on."""
    _fault("/fault/resume", "resumed", region, process, data, as_json)


def _fault(path: str, done: str, region: str, process: str | None, data: Path, as_json: bool) -> None:
    with ControlClient(open_layout(data)) as control:
        answer = control.post(path, region=region, process=process)
    if as_json:
        output.print_json({"region": region, "process": process, **answer})
    else:
        typer.echo(
            f"{done} {region if process is None else f'{region}/{process}'}: {len(answer['pids'])} processes"
        )


@region_app.command("restart")
def region_restart(region: str, data: Data = DEFAULT_DATA) -> None:
    """Start a killed region again (a running one is stopped in order first)."""
    with ControlClient(open_layout(data)) as control:
        control.post("/region/restart", region=region)


def run() -> None:
    """Entry point of the console script."""
    from infra.cli import (
        demo,  # noqa: F401 - registers `demo`
        network,  # noqa: F401 - registers `fault partition|heal|delay`
    )

    try:
        code = app(standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        code = EXIT_WRONG_INPUT
    except click.ClickException as error:
        typer.echo(f"palaver: {error.format_message()}", err=True)
        code = EXIT_WRONG_INPUT
    except (KeyboardInterrupt, click.Abort):
        code = 130
    except DeploymentError as error:
        typer.echo(f"palaver: {error}", err=True)
        code = EXIT_WRONG_INPUT if isinstance(error, WRONG_INPUT) else EXIT_FAILED
    sys.exit(code if isinstance(code, int) else 0)


if __name__ == "__main__":
    run()

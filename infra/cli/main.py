"""The `palaver` command: composition root of everything that an engineer does with a deployment.

Wrong input ends with exit code 2 and one line on standard error; a deployment that cannot do what was asked
ends with exit code 1 and one line.
"""

from __future__ import annotations

import sys

import typer
from typer._click import exceptions as usage  # Typer carries its own copy of click and exports no base of its errors

from infra.cli import demo, drill, explore, failover, faults, lifecycle, simulate, site, voters
from infra.cli.options import EXIT_FAILED, EXIT_WRONG_INPUT
from infra.relay.client import RelayFailed
from infra.supervisor.errors import DeploymentError, InvalidPlan, PlanMismatch, UnknownTarget

WRONG_INPUT = (InvalidPlan, UnknownTarget, PlanMismatch)
EXIT_INTERRUPTED = 130  # 128 + SIGINT, as shells have it


def make_app() -> typer.Typer:
    """Put the commands together."""
    app = _group("A comment service that keeps its promises when a whole region dies.")
    for command in (lifecycle.up, lifecycle.down, lifecycle.status, lifecycle.servers, lifecycle.logs, demo.demo):
        app.command()(command)
    app.command()(simulate.simulate)
    app.command()(explore.explore)
    app.command()(failover.switch)
    app.command()(failover.history)
    failover_app = _group("Whether a lost leader is replaced by itself.")
    failover_app.command()(failover.pause)
    failover_app.command()(failover.resume)
    site_app = _group("Sites of a running deployment.")
    site_app.command()(site.create)
    fault_app = _group("Hurt a running deployment on purpose.")
    for command in (
        faults.kill,
        faults.pause,
        faults.resume,
        faults.partition,
        faults.heal,
        faults.delay,
        faults.clock,
    ):
        fault_app.command()(command)
    region_app = _group("Regions of a running deployment.")
    for command in (voters.drain, voters.undrain, voters.add, voters.remove, faults.restart):
        region_app.command()(command)
    drill_app = _group("Rehearse failures on a running deployment, under load.")
    drill_app.command("list")(drill.list_drills)
    drill_app.command()(drill.run)
    app.add_typer(site_app, name="site")
    app.add_typer(drill_app, name="drill")
    app.add_typer(fault_app, name="fault")
    app.add_typer(failover_app, name="failover")
    app.add_typer(region_app, name="region")
    return app


def _group(text: str) -> typer.Typer:
    return typer.Typer(help=text, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


def run() -> None:
    """Entry point of the console script."""
    try:
        code = make_app()(standalone_mode=False)
    except usage.NoArgsIsHelpError as error:
        error.show()
        code = EXIT_WRONG_INPUT
    except usage.ClickException as error:
        typer.echo(f"palaver: {error.format_message()}", err=True)
        code = EXIT_WRONG_INPUT
    except (KeyboardInterrupt, typer.Abort):
        code = EXIT_INTERRUPTED
    except (DeploymentError, RelayFailed) as error:
        typer.echo(f"palaver: {error}", err=True)
        code = EXIT_WRONG_INPUT if isinstance(error, WRONG_INPUT) else EXIT_FAILED
    sys.exit(code if isinstance(code, int) else 0)

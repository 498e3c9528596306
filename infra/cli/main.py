"""The `palaver` command: composition root of everything that an engineer does with a deployment.

Wrong input ends with exit code 2 and one line on standard error; a deployment that cannot do what was asked
ends with exit code 1 and one line.
"""

from __future__ import annotations

import sys
from importlib import import_module

import typer
from typer._click import exceptions as usage  # Typer carries its own copy of click and exports no base of its errors

from infra.cli.options import EXIT_FAILED, EXIT_WRONG_INPUT
from infra.relay.client import RelayFailed
from infra.supervisor.errors import DeploymentError, InvalidPlan, PlanMismatch, UnknownTarget

WRONG_INPUT = (InvalidPlan, UnknownTarget, PlanMismatch)
EXIT_INTERRUPTED = 130  # 128 + SIGINT, as shells have it

COMMANDS = (
    "lifecycle:up",
    "lifecycle:down",
    "lifecycle:status",
    "lifecycle:servers",
    "lifecycle:logs",
    "demo:demo",
    "simulate:simulate",
    "explore:explore",
    "failover:switch",
    "failover:history",
)
"""Module and function of each command; the function has the command's name."""

GROUPS = {
    "site": ("Sites of a running deployment.", ("site:create",)),
    "drill": ("Rehearse failures on a running deployment, under load.", ("drill:list_drills", "drill:run")),
    "fault": (
        "Hurt a running deployment on purpose.",
        tuple(f"faults:{name}" for name in ("kill", "pause", "resume", "partition", "heal", "delay", "clock")),
    ),
    "failover": ("Whether a lost leader is replaced by itself.", ("failover:pause", "failover:resume")),
    "region": (
        "Regions of a running deployment.",
        ("voters:drain", "voters:undrain", "voters:add", "voters:remove", "faults:restart"),
    ),
}
NAMES = {"drill:list_drills": "list"}  # a function of that name would hide the builtin


def make_app(word: str = "") -> typer.Typer:
    """Put the commands together.

    Args:
        word: The first word of the command line. Only what it names is imported: the modules of all commands take
            three times as long as most commands themselves. All are there when it names none.
    """
    app = _group("A comment service that keeps its promises when a whole region dies.")
    # With a callback an application of one command still takes that command's name.
    app.callback()(lambda: None)
    known = {_name(command) for command in COMMANDS} | set(GROUPS)
    for command in COMMANDS:
        if word not in known or word == _name(command):
            _add(app, command)
    for name, (text, commands) in GROUPS.items():
        if word not in known or word == name:
            group = _group(text)
            for command in commands:
                _add(group, command)
            app.add_typer(group, name=name)
    return app


def _name(command: str) -> str:
    return NAMES.get(command, command.partition(":")[2])


def _add(app: typer.Typer, command: str) -> None:
    module, _, function = command.partition(":")
    app.command(_name(command))(getattr(import_module(f"infra.cli.{module}"), function))


def _group(text: str) -> typer.Typer:
    return typer.Typer(help=text, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


def run() -> None:
    """Entry point of the console script."""
    try:
        code = make_app(sys.argv[1] if len(sys.argv) > 1 else "")(standalone_mode=False)
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

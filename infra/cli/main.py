"""The `palaver` command: the composition root of all commands.

Exit codes: 2 after wrong input, 1 if a deployment cannot carry out the command; both with one line on standard error.
"""

from __future__ import annotations

import re
import sys
from importlib import import_module
from typing import Annotated

import typer
from typer._click import Context
from typer._click import exceptions as usage  # Typer carries its own copy of click and exports no base of its errors
from typer.core import TyperCommand

from infra.cli.options import EXIT_FAILED, EXIT_WRONG_INPUT
from infra.relay.client import RelayFailed
from infra.supervisor.errors import DeploymentError, InvalidPlan, PlanMismatch, UnknownTarget
from regions.version import VERSION

WRONG_INPUT = (InvalidPlan, UnknownTarget, PlanMismatch)
NEGATIVE_NUMBER = re.compile(r"-[0-9]*\.?[0-9]+")
EXIT_INTERRUPTED = 130  # 128 + SIGINT, as in shells

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
    "site": ("Sites of a running deployment.", ("site:create", "site:list_sites", "site:show", "site:set_site")),
    "drill": (
        "Inject faults under load and check what clients saw, on a deployment of its own or (--data) a running one.",
        ("drill:list_drills", "drill:run"),
    ),
    "fault": (
        "Inject faults into a running deployment.",
        tuple(f"faults:{name}" for name in ("kill", "pause", "resume", "partition", "heal", "delay", "clock")),
    ),
    "deadletters": (
        "Changes that a region's view rejected.",
        tuple(f"deadletters:{name}" for name in ("list_letters", "show", "retry", "discard")),
    ),
    "failover": ("Turn automatic failover off and on.", ("failover:pause", "failover:resume")),
    "repair": ("Compare the views with the ledger, and mend them.", ("repair:run", "repair:status")),
    "region": (
        "Regions of a running deployment: drain, remove, add and restart them.",
        ("voters:drain", "voters:undrain", "voters:add", "voters:remove", "faults:restart"),
    ),
}
WITH_NUMBERS = {"faults:delay", "faults:clock"}
"""Commands with number arguments, which may be negative."""

NAMES = {
    "deadletters:list_letters": "list",
    "drill:list_drills": "list",
    "site:list_sites": "list",
    "site:set_site": "set",
}
"""Commands whose function has another name, because a function of that name would hide a builtin."""


class NumberCommand(TyperCommand):
    """A command that accepts `-5` as a number; the parser treats every other text with a dash as an option."""

    def parse_args(self, ctx: Context, args: list[str]) -> list[str]:
        """Parse the arguments; an unknown option is refused as in every other command."""
        if "--" in args:
            return super().parse_args(ctx, args)
        options = {option for parameter in self.get_params(ctx) for option in parameter.opts}
        unknown = [one for one in args if one.startswith("-") and one.partition("=")[0] not in options]
        numbers = [one for one in unknown if NEGATIVE_NUMBER.fullmatch(one)]
        ctx.ignore_unknown_options = len(numbers) == len(unknown)
        return super().parse_args(
            ctx, args if ctx.ignore_unknown_options else [one for one in args if one not in numbers]
        )


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"palaver {VERSION}")
        raise typer.Exit


def make_app(word: str = "") -> typer.Typer:
    """Return the application with its commands.

    Args:
        word: The first word of the command line. Only the module of this command is imported, because importing all
            modules takes three times as long as most commands. If it is no command, all are imported.
    """
    app = _group("A comment service for websites that survives the loss of a region.")
    # Without a callback, Typer would not expect the command's name if there is only one command.
    app.callback()(_options)
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


def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", is_eager=True, callback=_print_version)
    ] = False,
) -> None:
    pass


def _name(command: str) -> str:
    return NAMES.get(command, command.partition(":")[2])


def _add(app: typer.Typer, command: str) -> None:
    module, _, function = command.partition(":")
    kind = NumberCommand if command in WITH_NUMBERS else None
    app.command(_name(command), cls=kind)(getattr(import_module(f"infra.cli.{module}"), function))


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

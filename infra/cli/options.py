"""Options, defaults and exit codes that all commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from infra.supervisor.errors import NotRunning
from infra.supervisor.layout import Layout
from infra.supervisor.plan import Plan, load_plan

EXIT_FAILED = 1
EXIT_WRONG_INPUT = 2

Data = Annotated[Path, typer.Option("--data", help="Data folder of the deployment.")]
Json = Annotated[bool, typer.Option("--json", help="Print facts as JSON.")]
DEFAULT_DATA = Path(".palaver")


def known_plan(layout: Layout) -> Plan:
    """Return the plan of a data folder.

    Raises:
        NotRunning: The folder holds no deployment.
    """
    plan = load_plan(layout.plan)
    if plan is None:
        raise NotRunning(f"{layout.data} holds no deployment; start one with `palaver up`")
    return plan

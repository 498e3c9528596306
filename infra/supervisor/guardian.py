"""Ends the processes of a deployment whose supervisor died before it could (kill -9, out of memory).

Run as `python -m infra.supervisor.guardian DATA`, with the read end of a pipe as standard input. Only the
supervisor holds the write end, so end-of-file means that the supervisor has died. A supervisor that stops
normally writes one byte first.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
from pathlib import Path

from infra.supervisor.errors import AlreadyRunning
from infra.supervisor.layout import Layout, open_layout
from infra.supervisor.lock import GUARDIAN, owned_lock
from infra.supervisor.logs import log_to
from infra.supervisor.plan import Plan, load_plan
from infra.supervisor.records import end_living

log = logging.getLogger("infra.supervisor.guardian")


def main() -> int:
    """Wait until the supervisor ends; if it died, end its processes."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(
            number, signal.SIG_IGN
        )  # Ctrl-C signals every process of the terminal; only the pipe ends this one.
    if os.read(sys.stdin.fileno(), 1):
        return 0
    layout = open_layout(Path(sys.argv[1]))
    plan = load_plan(layout.plan)
    if plan is None:
        return 0
    try:
        with owned_lock(layout, GUARDIAN):
            _end(layout, plan)
    except AlreadyRunning:
        pass  # A new supervisor owns the folder; it ends the processes of the dead one before it starts its own.
    return 0


def _end(layout: Layout, plan: Plan) -> None:
    log_to(layout.log(None, "guardian"), "guardian")
    log.warning("the supervisor died; ending its processes")
    ended = end_living(layout, plan.deployment, plan.all_regions)
    log.warning("ended %d processes: %s", len(ended), ", ".join(ended))


if __name__ == "__main__":
    sys.exit(main())

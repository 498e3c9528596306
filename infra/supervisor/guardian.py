"""Ends a deployment whose supervisor died without doing so itself (kill -9, out of memory).

Run as `python -m infra.supervisor.guardian DATA`, with the read end of a pipe as standard input. Only the
supervisor holds the other end, so end-of-file means that it is gone, whatever the way. A supervisor that
stops in order writes one byte first.
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
    """Wait for the supervisor's end, then act on it."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # Ctrl-C reaches the whole terminal; our end is the pipe's.
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
        pass  # A new supervisor is here already; it ends what was left before it starts its own.
    return 0


def _end(layout: Layout, plan: Plan) -> None:
    log_to(layout.log(None, "guardian"), "guardian")
    log.warning("the supervisor died; ending its processes")
    ended = end_living(layout, plan.deployment, plan.all_regions)
    log.warning("ended %d processes: %s", len(ended), ", ".join(ended))


if __name__ == "__main__":
    sys.exit(main())

"""Who owns a data folder: one supervisor, or the guardian that ends what a dead one left.

A file lock (flock(2)), which the kernel frees with its process. The file says which of the two holds it, so
that a start which comes while a guardian is still at work waits for it instead of giving up. A guardian waits as
well: when it hears of the supervisor's death, that one may still hold the lock for a moment.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

from infra.file_lock import locked_within
from infra.supervisor.errors import AlreadyRunning
from infra.supervisor.layout import Layout

SUPERVISOR = "supervisor"
GUARDIAN = "guardian"
GUARDIAN_WAIT_S = 40.0  # its grace period twice and its own start, on a machine with other things to do
SUPERVISOR_WAIT_S = 1.0  # a guardian that has just taken the lock has not said so yet
DYING_WAIT_S = 10.0  # the kernel closes the guardian's pipe before it frees the lock of the same dead supervisor
PATIENCE_S = {SUPERVISOR: SUPERVISOR_WAIT_S, GUARDIAN: DYING_WAIT_S}  # with a lock that a supervisor holds


@contextmanager
def owned_lock(layout: Layout, owner: str) -> Generator[None]:
    """Hold the lock of a data folder.

    Raises:
        AlreadyRunning: A supervisor holds it, or a guardian does not come to an end.
    """
    with layout.lock.open("a+") as lock:

        def patience_s() -> float:
            lock.seek(0)
            return GUARDIAN_WAIT_S if lock.read() == GUARDIAN else PATIENCE_S[owner]

        if not locked_within(lock, patience_s):
            raise AlreadyRunning(f"{layout.data} is running already; see `palaver status`, or use another --data")
        lock.seek(0)
        lock.truncate()
        lock.write(owner)
        lock.flush()
        yield

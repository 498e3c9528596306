"""The lock of a data folder. Its owner is one supervisor, or the guardian that ends the processes of a dead one.

It is a file lock (flock(2)), which the kernel releases when its process ends. The file contains which of the two holds
it, so that a start waits while a guardian is at work. A guardian waits as well, because a supervisor that has just died
may hold the lock for another moment.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

from infra.file_lock import locked_within
from infra.supervisor.errors import AlreadyRunning
from infra.supervisor.layout import Layout

SUPERVISOR = "supervisor"
GUARDIAN = "guardian"
GUARDIAN_WAIT_S = 40.0  # twice the grace period (`records.GRACE_S`) and its own start, on a busy machine
SUPERVISOR_WAIT_S = 1.0  # a guardian that has just taken the lock has not written its name yet
DYING_WAIT_S = 10.0  # the kernel closes the guardian's pipe before it releases the lock of the dead supervisor
PATIENCE_S = {
    SUPERVISOR: SUPERVISOR_WAIT_S,
    GUARDIAN: DYING_WAIT_S,
}  # by waiting process, while a supervisor holds the lock


@contextmanager
def owned_lock(layout: Layout, owner: str) -> Generator[None]:
    """Hold the lock of a data folder.

    Raises:
        AlreadyRunning: A supervisor holds it, or a guardian does not end within GUARDIAN_WAIT_S.
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

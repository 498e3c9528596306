"""Takes a file lock (flock(2)). Decides how a process waits for it; the kernel releases it when its process ends."""

import fcntl
import time
from collections.abc import Callable
from typing import IO, Any

POLL_S = 0.05


def locked_within(file: IO[Any], patience_s: Callable[[], float]) -> bool:
    """Take the lock; return False if another process holds it for longer than `patience_s()`.

    Args:
        file: The open file.
        patience_s: Returns the time limit in seconds; called at each failed attempt, because it may change meanwhile.
    """
    began = time.monotonic()
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() - began > patience_s():
                return False
            time.sleep(POLL_S)
        else:
            return True

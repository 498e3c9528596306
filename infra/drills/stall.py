"""Freezes a file system again and again, or once, until its standard input ends, and thaws it then.

Run as `python -m infra.drills.stall FOLDER SECONDS`: 0 seconds is one freeze without end. It is a process of its own
so that the file system goes on when whoever wanted it frozen dies. Says `stalled` when the first freeze is in force.

Between two freezes whoever waited goes on, and what is written again meets the next freeze, within microseconds on a
machine that has time for both: nearly all of the time that is spent writing is spent waiting.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import signal
import sys
from pathlib import Path

FIFREEZE = 0xC0045877
FITHAW = 0xC0045878
"""From linux/fs.h; the standard library does not name them."""


def main() -> int:
    """Stall until standard input ends."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # The end of the pipe is the end.
    folder, stall_s = Path(sys.argv[1]), float(sys.argv[2])
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    said = False
    try:
        while True:
            fcntl.ioctl(descriptor, FIFREEZE, 0)
            if not said:
                print("stalled", flush=True)
                said = True
            ended, _, _ = select.select([sys.stdin], [], [], stall_s or None)
            fcntl.ioctl(descriptor, FITHAW, 0)
            if ended:
                return 0
    except OSError as error:
        print(error.strerror, flush=True)
        return 1
    finally:
        # Also when nobody reads what is printed any more: closing the folder thaws nothing.
        with contextlib.suppress(OSError):
            fcntl.ioctl(descriptor, FITHAW, 0)
        os.close(descriptor)


def thaw(folder: Path) -> None:
    """Thaw a file system; nothing happens when it is not frozen."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with contextlib.suppress(OSError):
            fcntl.ioctl(descriptor, FITHAW, 0)
    finally:
        os.close(descriptor)


if __name__ == "__main__":
    sys.exit(main())

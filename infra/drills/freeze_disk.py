"""Freezes a file system, once or repeatedly, until standard input ends; then thaws it.

Usage: `python -m infra.drills.freeze_disk FOLDER SECONDS`. Each freeze lasts SECONDS; 0 means one freeze without end.
Prints `stalled` when the first freeze is in force. This is a process of its own, so that the file system is thawed even
if the process that started it dies.

Between two freezes the waiting writes complete. New writes meet the next freeze, within microseconds if a processor is
free, so a process that writes spends nearly all of its time waiting.
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
    """Freeze and thaw until standard input ends."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # Only the end of standard input ends this process.
    folder, stall_s = Path(sys.argv[1]), float(sys.argv[2])
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    reported = False
    try:
        while True:
            fcntl.ioctl(descriptor, FIFREEZE, 0)
            if not reported:
                print("stalled", flush=True)
                reported = True
            ended, _, _ = select.select([sys.stdin], [], [], stall_s or None)
            fcntl.ioctl(descriptor, FITHAW, 0)
            if ended:
                return 0
    except OSError as error:
        print(error.strerror, flush=True)
        return 1
    finally:
        # Also if the parent died and `print` failed: closing the descriptor does not thaw.
        with contextlib.suppress(OSError):
            fcntl.ioctl(descriptor, FITHAW, 0)
        os.close(descriptor)


def thaw(folder: Path) -> None:
    """Thaw a file system; do nothing if it is not frozen."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with contextlib.suppress(OSError):
            fcntl.ioctl(descriptor, FITHAW, 0)
    finally:
        os.close(descriptor)


if __name__ == "__main__":
    sys.exit(main())

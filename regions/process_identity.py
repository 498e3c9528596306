"""Identifies a process by its pid, its start time and the boot of the machine.

The kernel reuses pids, so a pid alone does not identify a process after its owner has crashed. The start time counts
clock ticks since boot (proc(5)), because the wall clock can be set.
Decides whether two observations are of one process.
Does not signal processes and does not wait for them: ``regions.member.process`` and ``infra.supervisor`` do.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Self

_START_TIME_FIELD = 19
"""Field 22 of /proc/PID/stat, counted from the one after the command name (proc(5))."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessIdentity:
    """Identity of one process, which no other process ever has.

    Attributes:
        pid: Process id, which the kernel reuses.
        started_ticks: Start time in clock ticks since boot.
        boot_id: Id of that boot.
    """

    pid: int
    started_ticks: int
    boot_id: str

    @classmethod
    def of(cls, pid: int, *, ended: bool = False) -> Self | None:
        """Return the identity of the process that has this pid now, or None if no living process has it.

        Args:
            pid: Process id.
            ended: Whether to also return a process that has ended and was not reaped yet.
        """
        try:
            stat = Path(f"/proc/{pid}/stat").read_text()
            boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        except OSError:
            return None
        fields = stat.rpartition(")")[2].split()
        if fields[0] in ("Z", "X") and not ended:
            return None
        return cls(pid=pid, started_ticks=int(fields[_START_TIME_FIELD]), boot_id=boot_id)


def works_in(pid: int, folder: Path) -> bool:
    """Return whether ``folder``, a resolved path, is the working folder of a process; False if that cannot be read."""
    try:
        return Path(f"/proc/{pid}/cwd").readlink() == folder
    except OSError:
        return False

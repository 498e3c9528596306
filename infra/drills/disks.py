"""Gives the ledger of each region a small disk of its own, which a drill can fill, slow down or freeze.

Decides how such a disk is made (ext4 in a sparse file, on a loop device), filled and stalled. The disks are mounted in
a mount namespace of their own (mount_namespaces(7)), which ends with its last process; no other deployment sees them.
Does not know PostgreSQL.

A stall freezes the file system, as `fsfreeze` does (FIFREEZE, ioctl_fs(2)). A process that writes to it then sleeps in
a state in which no signal wakes it, not even SIGKILL, as it would on a disk that does not respond. Reads of cached data
continue. The process that holds the freeze (`freeze_disk.py`) thaws the file system if the drill dies.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import subprocess
import sys
from collections.abc import Generator, Sequence
from pathlib import Path

from infra.drills.freeze_disk import thaw
from infra.supervisor.errors import DeploymentError
from infra.supervisor.layout import Layout

SIZE_BYTES = 1 << 30
"""Space for the ledger, its WAL and a second copy of both. The file is sparse; `fill` only reserves blocks."""

BALLAST = "ballast"
BLOCK_BYTES = 4096

ELSEWHERE = ("agent", "envoy", "etcd", "logs", "redis", "view")
"""Folders of a region that are not on the ledger's disk."""

MOUNT_TIMEOUT_S = 20.0
STALL_TIMEOUT_S = 20.0
CLONE_NEWNS = 0x00020000


class DiskTrouble(DeploymentError):
    """A disk could not be made, filled, stalled or repaired."""


@contextlib.contextmanager
def ledger_disks(layout: Layout, regions: Sequence[str], images: Path) -> Generator[bool]:
    """Give the ledger of each region a disk of its own, before the deployment's first start.

    From here on, this process and the processes that it starts are in a mount namespace of their own.

    Args:
        layout: The data folder.
        regions: The regions that get a disk.
        images: Folder for the disks' image files, and for the other folders of the regions.

    Yields:
        Whether the disks exist: False if this machine does not allow them.
    """
    mounted: list[Path] = []
    try:
        try:
            _leave_mount_namespace()
            for region in regions:
                mounted += _make_disk(layout.region(region), images / region)
        except (DiskTrouble, OSError):
            _unmount(mounted)
            mounted.clear()
        yield bool(mounted)
    finally:
        _unmount(mounted)


def _leave_mount_namespace() -> None:
    """Move this process to a mount namespace of its own, whose mounts are not visible outside."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWNS) != 0:
        raise DiskTrouble(f"a mount namespace cannot be made: {os.strerror(ctypes.get_errno())}")
    _run("mount", "--make-rprivate", "/")


def _make_disk(home: Path, images: Path) -> list[Path]:
    """Mount a new disk on a region's folder, and the `ELSEWHERE` folders from outside; return the mount points."""
    images.mkdir(parents=True, mode=0o711)
    home.mkdir(parents=True, exist_ok=True)
    for folder in (home.parent.parent, home.parent):
        folder.chmod(0o711)  # PostgreSQL, under another account, passes through.
    image = images / "disk"
    with image.open("wb") as file:
        file.truncate(SIZE_BYTES)
    # No blocks are reserved for root; otherwise PostgreSQL would find the disk full before `fill` does.
    _run("mkfs.ext4", "-q", "-F", "-m", "0", str(image))
    _run("mount", "-o", "loop,noatime", str(image), str(home))
    mounted = [home]
    try:
        home.chmod(0o711)
        for name in ELSEWHERE:
            for folder in (images / name, home / name):
                folder.mkdir(mode=0o711)
            _run("mount", "--bind", str(images / name), str(home / name))
            mounted.append(home / name)
    except (DiskTrouble, OSError):
        _unmount(mounted)
        raise
    return mounted


def _unmount(mounted: Sequence[Path]) -> None:
    """Unmount in reverse order; a mount that is in use is detached, and released after its last use."""
    for path in reversed(mounted):
        with contextlib.suppress(DiskTrouble):
            _run("umount", "--lazy", str(path))


def _run(*command: str) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=MOUNT_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise DiskTrouble(f"{command[0]} cannot be run: {error}") from error
    if done.returncode != 0:
        raise DiskTrouble(f"{command[0]} failed: {done.stderr.strip()}")


class Disk:
    """The disk of one region's ledger.

    Args:
        folder: Its mount point.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._stalling: subprocess.Popen[bytes] | None = None

    @property
    def is_own(self) -> bool:
        """Whether the folder is a disk of its own; only such a disk may be filled or stalled."""
        return self.folder.is_mount()

    def fill(self) -> int:
        """Fill the disk to the last block; return the number of bytes that were reserved.

        Raises:
            DiskTrouble: A reservation fails for another reason than a full disk.
        """
        assert self.is_own, "only a disk of the drill's own may be filled"
        size, step = 0, SIZE_BYTES
        with (self.folder / BALLAST).open("wb") as file:
            while step >= BLOCK_BYTES:
                try:
                    os.posix_fallocate(file.fileno(), size, step)
                    size += step
                except OSError as error:
                    if error.errno != errno.ENOSPC:
                        raise DiskTrouble(f"{self.folder} cannot be filled: {error.strerror}") from error
                    step //= 2
        return size

    def stall(self, stall_ms: float) -> None:
        """Delay every write to the disk, from the return of this call until `mend`.

        Args:
            stall_ms: How long each write waits, and so each fsync of WAL; 0: until `mend`.

        Raises:
            DiskTrouble: The file system cannot be frozen.
        """
        assert self.is_own, "only a disk of the drill's own may be stalled"
        self._end_stall()
        self._stalling = subprocess.Popen(
            [sys.executable, "-P", "-m", "infra.drills.freeze_disk", str(self.folder), f"{stall_ms / 1000:g}"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True,
        )  # fmt: skip
        assert self._stalling.stdout is not None, "its output is a pipe"
        if self._stalling.stdout.readline() != b"stalled\n":
            self._end_stall()
            raise DiskTrouble(f"{self.folder} cannot be frozen")

    def mend(self) -> None:
        """Undo `fill` and `stall`: free the space, and let writes continue.

        Raises:
            DiskTrouble: The space cannot be freed.
        """
        self._end_stall()
        try:
            (self.folder / BALLAST).unlink(missing_ok=True)
        except OSError as error:
            raise DiskTrouble(f"{self.folder} cannot be repaired: {error.strerror}") from error

    def _end_stall(self) -> None:
        stalling, self._stalling = self._stalling, None
        if stalling is None:
            return
        try:
            stalling.communicate(timeout=STALL_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            stalling.kill()
            stalling.wait()
        # The process thaws the file system at its end, but not if it was killed.
        thaw(self.folder)

"""Disks that a drill can hurt: one for the ledger of each region, small, and of the drill's own deployment only.

Decides how such a disk is made (ext4 in a file, on a loop device) and how it is filled and stalled. The mounts are in a
namespace of their own (mount_namespaces(7)) and end with the last process in it, and a stalled disk goes on when
whoever stalled it is gone. Refuses to know PostgreSQL.

A stall freezes the file system, as `fsfreeze` does (FIFREEZE, ioctl_fs(2)): who writes to it sleeps where nothing wakes
him, no SIGKILL either, just as on a disk that does not answer. Who reads what is cached reads on.
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
"""Room for the ledger, its WAL and a second copy of both; the file is sparse, and what fills it writes nothing."""

BALLAST = "ballast"
BLOCK_BYTES = 4096

ELSEWHERE = ("agent", "envoy", "etcd", "logs", "redis", "view")
"""What of a region is not on the ledger's disk."""

MOUNT_TIMEOUT_S = 20.0
STALL_TIMEOUT_S = 20.0
CLONE_NEWNS = 0x00020000


class DiskTrouble(DeploymentError):
    """A disk could not be made, hurt or mended."""


@contextlib.contextmanager
def ledger_disks(layout: Layout, regions: Sequence[str], images: Path) -> Generator[bool]:
    """Give the ledger of each region a disk of its own, before the deployment's first start.

    From here on this process, and whom it starts, has mounts of its own.

    Args:
        layout: The data folder.
        regions: Who gets one.
        images: Takes the files behind the disks, and what of the regions is not on them.

    Yields:
        Whether there are any: False where this machine does not allow them.
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
    """Take a namespace of mounts of its own, from which nothing gets out."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWNS) != 0:
        raise DiskTrouble(f"no mounts of its own: {os.strerror(ctypes.get_errno())}")
    _run("mount", "--make-rprivate", "/")


def _make_disk(home: Path, images: Path) -> list[Path]:
    """Put a region's home on a disk of its own and everything but the ledger beside it; return what is mounted."""
    images.mkdir(parents=True, mode=0o711)
    home.mkdir(parents=True, exist_ok=True)
    for folder in (home.parent.parent, home.parent):
        folder.chmod(0o711)  # PostgreSQL passes as another account.
    image = images / "disk"
    with image.open("wb") as file:
        file.truncate(SIZE_BYTES)
    # Nothing is held back for root, or PostgreSQL would find the disk full before who fills it does.
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
    """Unmount in reverse order; what is in use still goes when it is not."""
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
        folder: Where it is mounted.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._stalling: subprocess.Popen[bytes] | None = None

    @property
    def is_own(self) -> bool:
        """Whether nothing but the ledger is on it, so that it may be hurt."""
        return self.folder.is_mount()

    def fill(self) -> int:
        """Fill it to the last block; return how many bytes that took.

        Raises:
            DiskTrouble: For another reason than that it is full.
        """
        assert self.is_own, "nobody else's disk is filled"
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
        """Let every write to it wait, from when this returns until it is mended.

        Args:
            stall_ms: For how long each waits, and so each fsync of WAL; 0: none ends.

        Raises:
            DiskTrouble: Its file system cannot be frozen.
        """
        assert self.is_own, "nobody else's disk is stalled"
        self._end_stall()
        self._stalling = subprocess.Popen(
            [sys.executable, "-P", "-m", "infra.drills.freeze_disk", str(self.folder), f"{stall_ms / 1000:g}"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True,
        )  # fmt: skip
        assert self._stalling.stdout is not None, "it has a pipe"
        if self._stalling.stdout.readline() != b"stalled\n":
            self._end_stall()
            raise DiskTrouble(f"{self.folder} cannot be frozen")

    def mend(self) -> None:
        """Undo both: nothing waits any more, and the room is free again.

        Raises:
            DiskTrouble: It cannot be done.
        """
        self._end_stall()
        try:
            (self.folder / BALLAST).unlink(missing_ok=True)
        except OSError as error:
            raise DiskTrouble(f"{self.folder} cannot be mended: {error.strerror}") from error

    def _end_stall(self) -> None:
        stalling, self._stalling = self._stalling, None
        if stalling is None:
            return
        try:
            stalling.communicate(timeout=STALL_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            stalling.kill()
            stalling.wait()
        # It thaws at its end; one that was killed did not.
        thaw(self.folder)

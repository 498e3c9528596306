"""The store: a folder of root that every account can enter, for files that PostgreSQL's account must reach.

Decides where it is, and refuses a folder that another account could have prepared. It does not know its content.
"""

import contextlib
import os
import stat
from collections.abc import Generator, Sequence
from pathlib import Path

from infra.file_lock import locked_within

# The state folder of the Filesystem Hierarchy Standard, then the temporary folder that a reboot does not empty.
STORE_PATHS = (Path("/var/lib/palaver"), Path("/var/tmp/palaver-root"))  # noqa: S108 - see `_is_ours`

# A copy of a PostgreSQL installation (40 MB) takes seconds; a process that holds the lock longer than this hangs.
LOCK_TIMEOUT_S = 120.0

WRITABLE_BY_OTHERS = stat.S_IWGRP | stat.S_IWOTH


class BinaryStoreUnusable(Exception):
    """No folder can be the store; the message names each one and the reason."""


def open_store(paths: Sequence[Path]) -> Path:
    """Return the first usable store; create it if it is missing.

    Raises:
        BinaryStoreUnusable: none can be created, or the existing ones belong to other accounts.
    """
    refused: list[str] = []
    for path in paths:
        try:
            path.mkdir(mode=0o755, exist_ok=True)
            if not _is_ours(path):
                refused.append(f"{path} belongs to somebody else")
                continue
            # The caller's umask must not keep PostgreSQL's account out.
            path.chmod(0o755)
        except OSError as error:
            refused.append(f"{path}: {error.strerror}")
            continue
        return path
    raise BinaryStoreUnusable(f"no folder for what PostgreSQL must reach: {'; '.join(refused)}")


def _is_ours(path: Path) -> bool:
    """Whether only this account can have made or changed the folder; in /var/tmp every account can create one."""
    found = path.lstat()
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid() and not found.st_mode & WRITABLE_BY_OTHERS


@contextlib.contextmanager
def locked(store: Path) -> Generator[None]:
    """Hold the lock of the store; the kernel releases it however the process ends.

    Raises:
        BinaryStoreUnusable: another process holds it for longer than LOCK_TIMEOUT_S.
    """
    with (store / "lock").open("a") as file:
        if not locked_within(file, lambda: LOCK_TIMEOUT_S):
            raise BinaryStoreUnusable(f"another process holds {store} for {LOCK_TIMEOUT_S:.0f} s")
        yield

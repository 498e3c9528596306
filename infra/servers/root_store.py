"""A folder that every account can enter, owned by root, for what PostgreSQL must reach.

Decides where it is and that nobody else can have prepared it; refuses to know what is kept in it.
"""

import contextlib
import os
import stat
from collections.abc import Generator, Sequence
from pathlib import Path

from infra.file_lock import locked_within

# The state folder of the file system hierarchy standard, then the one that survives a restart of the machine.
STORE_PATHS = (Path("/var/lib/palaver"), Path("/var/tmp/palaver-root"))  # noqa: S108 - see `_is_ours`

# Copying an install of 40 MB takes seconds; whoever holds the lock longer than this is stuck.
LOCK_TIMEOUT_S = 120.0

WRITABLE_BY_OTHERS = stat.S_IWGRP | stat.S_IWOTH


class StoreUnusable(Exception):
    """No folder is left to keep things in; the message says which were tried and why not."""


def open_store(paths: Sequence[Path]) -> Path:
    """Return the first store that can be used, made when missing.

    Raises:
        StoreUnusable: when none can be made, or what is there belongs to somebody else.
    """
    refused: list[str] = []
    for path in paths:
        try:
            path.mkdir(mode=0o755, exist_ok=True)
            if not _is_ours(path):
                refused.append(f"{path} belongs to somebody else")
                continue
            # The umask of the caller must not close the store to the account it is for.
            path.chmod(0o755)
        except OSError as error:
            refused.append(f"{path}: {error.strerror}")
            continue
        return path
    raise StoreUnusable(f"no folder for what PostgreSQL must reach: {'; '.join(refused)}")


def _is_ours(path: Path) -> bool:
    """Refuse a folder that somebody else prepared: in a folder like /var/tmp everybody can."""
    found = path.lstat()
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid() and not found.st_mode & WRITABLE_BY_OTHERS


@contextlib.contextmanager
def locked(store: Path) -> Generator[None]:
    """Hold the store alone; the lock goes with its process, however that ends.

    Raises:
        StoreUnusable: when another process holds it for longer than LOCK_TIMEOUT_S.
    """
    with (store / "lock").open("a") as file:
        if not locked_within(file, lambda: LOCK_TIMEOUT_S):
            raise StoreUnusable(f"another process holds {store} for {LOCK_TIMEOUT_S:.0f} s")
        yield

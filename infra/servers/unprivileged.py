"""Which account PostgreSQL runs as when everything is started as root.

Source: PostgreSQL refuses to run as root (`postgres` in its server documentation).
"""

import os
import pwd
from dataclasses import dataclass
from pathlib import Path

# `palaver` is the account a package or image would create; `nobody` exists on every system.
ACCOUNT_NAMES = ("palaver", "nobody")


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """An operating system account."""

    name: str
    uid: int
    gid: int


def account() -> Account | None:
    """Choose the account that PostgreSQL runs as; None when this process is not root already."""
    if os.geteuid() != 0:
        return None
    for name in ACCOUNT_NAMES:
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        return Account(name=name, uid=entry.pw_uid, gid=entry.pw_gid)
    raise LookupError(f"no account to run PostgreSQL as: create one of {', '.join(ACCOUNT_NAMES)}")


def reachable_install(bin_dir: Path, _account: Account | None) -> Path:
    """Return the folder of PostgreSQL's programs that the account can enter."""
    return bin_dir

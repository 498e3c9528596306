"""Stores on disk what an agent must know about its ledger member after a crash.

Decides the three files, and that each is durable before the action that it announces. Does not know the reason of an
action.

``member.json`` has the role, the epoch and the process of the last start of the member. It is written before the start,
so a later agent knows of a start whose end no agent saw (rule 8). ``building`` exists while a data folder is created,
so an incomplete folder is never used as a ledger. ``rewound`` names the leader from which a member was rewound, until
the member has received that leader's WAL; before that its data are inconsistent.
"""

import contextlib
import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Self, cast

from regions.identity import Epoch
from regions.member.errors import MemberUnusable
from regions.member.process import Account
from regions.process_identity import ProcessIdentity

Role = Literal["primary", "standby"]


@dataclass(frozen=True, slots=True, kw_only=True)
class MemberRecord:
    """The last start of the member.

    Attributes:
        role: Role at the start.
        epoch: Epoch at the start.
        process: The postmaster; None between the intent to start and the start.
    """

    role: Role
    epoch: Epoch
    process: ProcessIdentity | None

    @classmethod
    def load(cls, state: Path) -> Self | None:
        """Return the record in the folder, or None if the member was never started.

        Raises:
            MemberUnusable: The file cannot be read or parsed.
        """
        path = state / "member.json"
        try:
            fields = cast("dict[str, Any]", json.loads(path.read_bytes()))
            process = fields["process"]
            return cls(
                role=fields["role"],
                epoch=int(fields["epoch"]),
                process=None if process is None else ProcessIdentity(**process),
            )
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise MemberUnusable(f"{path} cannot be read: {error!r}") from error

    def store(self, state: Path) -> None:
        """Store the record durably."""
        write_durably(state / "member.json", json.dumps(asdict(self)))


def building(state: Path) -> bool:
    """Return whether the data folder is incomplete."""
    return (state / "building").exists()


def begin_building(state: Path, what: str) -> None:
    """Store durably that the data folder is about to be created."""
    write_durably(state / "building", what + "\n")


def end_building(state: Path) -> None:
    """Store durably that the data folder is complete."""
    (state / "building").unlink()
    sync_folder(state)


def rewound_from(state: Path) -> str | None:
    """Return the leader whose WAL a rewound member needs before it is consistent; None if it needs none."""
    try:
        return (state / "rewound").read_text().strip()
    except FileNotFoundError:
        return None


def note_rewound(state: Path, leader: str) -> None:
    """Store durably that the member needs WAL of ``leader`` to be consistent."""
    write_durably(state / "rewound", leader + "\n")


def forget_rewound(state: Path) -> None:
    """Remove the note of `note_rewound`: the member is consistent, or a copy has replaced it."""
    (state / "rewound").unlink(missing_ok=True)


def write_durably(path: Path, text: str, account: Account | None = None) -> None:
    """Replace a file atomically and durably, readable by its owner only."""
    _beside(path, text, account, flush=os.fsync).replace(path)
    sync_folder(path.parent)


def write_atomically(path: Path, text: str, account: Account | None = None) -> None:
    """Replace a file atomically, readable by its owner only; a power failure may undo it."""
    _beside(path, text, account, flush=lambda _: None).replace(path)


def _beside(path: Path, text: str, account: Account | None, *, flush: Callable[[int], None]) -> Path:
    temporary = path.with_name(path.name + ".new")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        if account is not None:
            os.fchown(file.fileno(), account.uid, account.gid)
        file.write(text)
        file.flush()
        flush(file.fileno())
    return temporary


def flush(path: Path) -> None:
    """Flush a file that `write_atomically` has written. Blocking.

    Raises:
        OSError: The file could not be flushed.
    """
    _sync(path, os.O_RDONLY)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make renames, creations and removals in ``folder`` durable."""
    _sync(folder, os.O_RDONLY | os.O_DIRECTORY)


def _sync(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        with contextlib.suppress(OSError):
            os.close(descriptor)

"""What an agent must remember about its ledger member when it crashes, on its own disk.

Decides the three files and that each is durable before what it announces happens. Refuses to know why.

``member.json`` says as what, under which epoch and as which process the member was last started; the
intent is written before the start, so a start that nobody saw end is known (rule 8). ``building`` exists
while a data folder is being made, so that a half-made one is never taken for a ledger. ``rewound`` names the leader
from which a member was rewound until it has received that leader's WAL: before, its data are not whole by themselves.
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
    """How the member was last started.

    Attributes:
        role: As what.
        epoch: Under which epoch.
        process: As which process; None while a start is intended and after a stop.
    """

    role: Role
    epoch: Epoch
    process: ProcessIdentity | None

    @classmethod
    def load(cls, state: Path) -> Self | None:
        """Return the record in the folder, or None when the member was never started.

        Raises:
            MemberUnusable: The file cannot be understood.
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
        """Make the record durable."""
        write_durably(state / "member.json", json.dumps(asdict(self)))


def building(state: Path) -> bool:
    """Whether a data folder was begun and not finished."""
    return (state / "building").exists()


def begin_building(state: Path, what: str) -> None:
    """Remember durably that the data folder is about to be made."""
    write_durably(state / "building", what + "\n")


def end_building(state: Path) -> None:
    """Remember durably that the data folder is complete."""
    (state / "building").unlink()
    sync_folder(state)


def rewound_from(state: Path) -> str | None:
    """Return the leader whose WAL a rewound member needs before it can be asked anything; None for none."""
    try:
        return (state / "rewound").read_text().strip()
    except FileNotFoundError:
        return None


def note_rewound(state: Path, leader: str) -> None:
    """Remember durably that the member needs WAL of ``leader`` to be whole."""
    write_durably(state / "rewound", leader + "\n")


def forget_rewound(state: Path) -> None:
    """Forget it: the member is whole, or another copy has taken its place."""
    (state / "rewound").unlink(missing_ok=True)


def write_durably(path: Path, text: str, account: Account | None = None) -> None:
    """Replace a file at once and for good, readable by its owner only."""
    _beside(path, text, account, flush=os.fsync).replace(path)
    sync_folder(path.parent)


def write_atomically(path: Path, text: str, account: Account | None = None) -> None:
    """Replace a file at once, readable by its owner only; a loss of power may lose it."""
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
    """Make a file that `write_atomically` has written durable. Blocking.

    Raises:
        OSError: It could not be flushed.
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

"""Stores the promise of an agent on its own disk, and the number of times that the agent has started.

Decides the file, and that a promise is flushed before it is published (rule 2). Does not know the meaning of a promise.
An unreadable file is an error and not an empty promise: the member of that agent must not vote.
"""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

from regions.failover.events import Promise
from regions.member.record import write_durably

NAME = "promise.json"
STARTS = "starts"


class PromiseLost(Exception):
    """A promise file exists, but it cannot be read."""


def load_promise(state: Path) -> Promise | None:
    """Return the promise in the folder, or None if there is no file.

    Raises:
        PromiseLost: The file cannot be read or parsed.
    """
    path = state / NAME
    try:
        fields = cast("dict[str, Any]", json.loads(path.read_bytes()))
        promise = Promise(**{name: int(fields[name]) for name in ("epoch", "lineage", "floor", "copying")})
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise PromiseLost(f"{path} cannot be read: {error!r}") from error
    if min(promise.epoch, promise.lineage, promise.floor, promise.copying) < 0:
        raise PromiseLost(f"{path} promises a negative epoch")
    return promise


def store_promise(state: Path, promise: Promise) -> None:
    """Replace the promise and flush it. Blocking, for as long as the disk hangs.

    Raises:
        OSError: The promise could not be written; the old one remains.
    """
    write_durably(state / NAME, json.dumps(asdict(promise)))


def load_starts(state: Path) -> int | None:
    """Return the number of starts of the agent of this folder; None if there is no file.

    Raises:
        PromiseLost: The file cannot be read or parsed.
    """
    path = state / STARTS
    try:
        return int(path.read_text())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise PromiseLost(f"{path} cannot be read: {error!r}") from error


def store_starts(state: Path, count: int) -> None:
    """Store the number of starts durably. Blocking."""
    write_durably(state / STARTS, f"{count}\n")

"""The promise of an agent on its own disk, and how often that agent has started.

Decides the file and that it is flushed before anybody hears of it (rule 2). Refuses to know what is promised.
A file that cannot be understood is no promise of nothing: who reads it is told so, and its member may not vote.
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
    """There is a promise file, and nobody can say what it promised."""


def load_promise(state: Path) -> Promise | None:
    """Return the promise in the folder, or None when none was ever made there.

    Raises:
        PromiseLost: The file cannot be understood.
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
    """Replace the promise and flush it. Blocking: a disk that hangs holds it up.

    Raises:
        OSError: It could not be written; the old one holds.
    """
    write_durably(state / NAME, json.dumps(asdict(promise)))


def load_starts(state: Path) -> int | None:
    """Return how often the agent of this folder has started; None when that is not known here.

    Raises:
        PromiseLost: The file cannot be understood.
    """
    path = state / STARTS
    try:
        return int(path.read_text())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise PromiseLost(f"{path} cannot be read: {error!r}") from error


def store_starts(state: Path, count: int) -> None:
    """Remember durably how often the agent has started. Blocking."""
    write_durably(state / STARTS, f"{count}\n")

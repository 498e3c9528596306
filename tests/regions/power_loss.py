"""Computes the states in which a loss of power may leave a folder.

The files are real; the calls that make names and contents durable are observed. The model: a new name becomes durable
when its folder is flushed, or at any earlier time. A file's content is durable only after that file was flushed, even
if its name is durable. Source: fsync(2), rename(2), and the behaviour of ext4 and XFS.
"""

import os
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

Files = dict[str, bytes]
"""The names in the folder, and the content of each file."""


class PowerLoss:
    """Observes a folder, and computes the states that a loss of power may leave.

    Attributes:
        states: The possible states after each observed call, in the order of the calls.
    """

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch, held: ExitStack) -> None:
        self.states: list[Files] = []
        self._folder = folder
        self._held = held
        self._content: dict[int, bytes] = {path.stat().st_ino: path.read_bytes() for path in folder.iterdir()}
        self._names = self._now()
        self._watch(patch, "fsync", self._flushed)
        for name in ("replace", "rename", "unlink"):
            self._watch(patch, name, lambda *_: None)

    def possible_states(self) -> list[Files]:
        """Return the states that a loss of power could leave now: without and with the names that are not flushed."""
        return [self._after(names) for names in (self._names, self._now())]

    def _after(self, names: dict[str, int]) -> Files:
        return {name: self._content.get(inode, b"") for name, inode in names.items()}

    def _now(self) -> dict[str, int]:
        found: dict[str, int] = {}
        for path in self._folder.iterdir():
            # The file stays open, so that the file system does not give its inode number to another file.
            file = self._held.enter_context(path.open("rb"))
            found[path.name] = os.fstat(file.fileno()).st_ino
        return found

    def _watch(self, patch: pytest.MonkeyPatch, name: str, then: Callable[..., None]) -> None:
        does = getattr(os, name)

        def watched(*arguments: object, **options: object) -> object:
            done = does(*arguments, **options)
            then(*arguments)
            self.states += self.possible_states()
            return done

        patch.setattr(os, name, watched)

    def _flushed(self, descriptor: int) -> None:
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        if path == self._folder:
            self._names = self._now()
        elif path.parent == self._folder:
            self._content[path.stat().st_ino] = path.read_bytes()


@contextmanager
def power_loss(folder: Path) -> Generator[PowerLoss]:
    """Observe a folder; the files that it has at the beginning are durable."""
    with ExitStack() as held, pytest.MonkeyPatch.context() as patch:
        yield PowerLoss(folder, patch, held)

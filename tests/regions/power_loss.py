"""What a loss of power leaves of a folder: what was flushed, and whatever else the file system wrote by itself.

The files are real; the calls that make things durable are watched. Source: fsync(2), rename(2), and what ext4 and XFS
do: a name may become durable at any time, or only when its folder is flushed; the content of a file may be gone unless
that file was flushed, also when its new name is there.
"""

import os
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

Files = dict[str, bytes]
"""Names in the folder, and what is in them."""


class PowerLoss:
    """Watches a folder, and says what a loss of power at some moment may leave of it.

    Attributes:
        moments: What a loss of power could leave after each call that changes what is durable.
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
        """What a loss of power could leave now."""
        return [self._after(names) for names in (self._names, self._now())]

    def _after(self, names: dict[str, int]) -> Files:
        return {name: self._content.get(inode, b"") for name, inode in names.items()}

    def _now(self) -> dict[str, int]:
        found: dict[str, int] = {}
        for path in self._folder.iterdir():
            # The number of a file that is open is not given to another.
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
    """Watch a folder; what is in it already is durable."""
    with ExitStack() as held, pytest.MonkeyPatch.context() as patch:
        yield PowerLoss(folder, patch, held)

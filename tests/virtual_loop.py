"""An event loop whose clock a test moves, so that timeouts are steps like all others."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")

IDLE_TURNS: int = 40
"""More turns of the loop than any chain of callbacks of the code under test is long."""


class VirtualLoop(asyncio.SelectorEventLoop):
    """Time stands still but for `advance`."""

    def __init__(self) -> None:
        super().__init__()
        self._now_s = 1000.0

    def time(self) -> float:
        """The clock of the loop, in seconds."""
        return self._now_s

    def advance(self, seconds: float) -> None:
        """Let time pass, and run what is due."""
        self._now_s += seconds
        self.settle()

    def settle(self) -> None:
        """Run until nothing is ready."""
        self.run_until_complete(_turns())

    def start(self, coroutine: Coroutine[Any, Any, T]) -> "asyncio.Task[T]":
        """Begin a task and run until it waits."""
        task = self.create_task(coroutine)
        self.settle()
        return task


async def _turns() -> None:
    for _ in range(IDLE_TURNS):
        await asyncio.sleep(0)

"""Provides an event loop whose clock a test sets, so that a test triggers timeouts as it does other events."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")

IDLE_TURNS: int = 40
"""Iterations of the loop; more than the longest chain of callbacks in the code under test."""


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop whose time changes only by `advance`."""

    def __init__(self) -> None:
        super().__init__()
        self._now_s = 1000.0

    def time(self) -> float:
        """Return the time of the loop, in seconds."""
        return self._now_s

    def advance(self, seconds: float) -> None:
        """Advance the clock, and run the callbacks that are due."""
        self._now_s += seconds
        self.settle()

    def settle(self) -> None:
        """Run until no callback is ready."""
        self.run_until_complete(_turns())

    def start(self, coroutine: Coroutine[Any, Any, T]) -> "asyncio.Task[T]":
        """Start a task and run it until it waits."""
        task = self.create_task(coroutine)
        self.settle()
        return task


async def _turns() -> None:
    for _ in range(IDLE_TURNS):
        await asyncio.sleep(0)

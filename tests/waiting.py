"""Wait until a condition is true; a failure says what was awaited and what was last seen.

`until` is for asynchronous tests, `eventually` for synchronous ones. Both ask again at short intervals, because the
state of another process, thread or database has no event to wait for.
"""

import asyncio
import inspect
import reprlib
import time
from collections.abc import Callable
from typing import Any, TypeVar

TIMEOUT_S = 30.0
PAUSE_S = 0.01
_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 300

Answer = TypeVar("Answer")


async def until(condition: Callable[[], Any], timeout_s: float = TIMEOUT_S) -> Any:
    """Wait until a condition, synchronous or asynchronous, gives a true value.

    Returns:
        That value.

    Raises:
        TimeoutError: the condition was not true within `timeout_s`; also if an asynchronous condition did not answer.
    """
    last: Any = "no answer"
    bound = asyncio.timeout(timeout_s)
    try:
        async with bound:
            while True:
                last = answer if not inspect.isawaitable(answer := condition()) else await answer
                if last:
                    return last
                await asyncio.sleep(PAUSE_S)
    except TimeoutError as error:
        if not bound.expired():
            raise
        raise TimeoutError(_failure(describe(condition), timeout_s, last)) from error


def eventually(
    ask: Callable[[], Answer],
    holds: Callable[[Answer], bool] = bool,
    *,
    what: str = "",
    within_s: float = TIMEOUT_S,
    pause_s: float = 0.1,
) -> Answer:
    """Ask until an answer holds, and return that answer.

    Args:
        ask: what is called at each try.
        holds: whether an answer ends the wait.
        what: the awaited condition for the failure message; without it, the source of `ask`.
        within_s: an answer after this time that does not hold is an assertion error.
        pause_s: the pause between two tries; by default long, because a status asks every process of every region.
    """
    deadline_s = time.monotonic() + within_s
    while not holds(answer := ask()):
        assert time.monotonic() < deadline_s, _failure(what or describe(ask), within_s, answer)
        time.sleep(pause_s)
    return answer


def describe(condition: Callable[[], Any]) -> str:
    """The source of a condition and the values of the local variables that it uses."""
    try:
        source = " ".join(inspect.getsource(condition).split())
        values = inspect.getclosurevars(condition).nonlocals
    except (OSError, TypeError, ValueError):  # a method of a C type has no source
        return repr(condition)
    return source + "".join(f"; {name} = {_SHORT.repr(value)}" for name, value in values.items())


def _failure(what: str, seconds: float, last: object) -> str:
    return f"not true within {seconds:g} s: {what}; last seen: {_SHORT.repr(last)}"

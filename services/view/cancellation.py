"""Raises cancellations that a library has swallowed.

Before Python 3.12 `asyncio.wait_for`, which redis-py uses, loses a cancellation that arrives together with a result;
also, an error during the cleanup replaces a cancellation. A loop over such calls must therefore call
`raise_if_cancelled`, or it never stops.
"""

import asyncio


def raise_if_cancelled(cause: Exception | None = None) -> None:
    """Raise `CancelledError` if the running task was cancelled and still runs."""
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError from cause

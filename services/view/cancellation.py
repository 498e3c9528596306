"""Cancellations that a library has swallowed.

Before Python 3.12 `asyncio.wait_for`, which redis-py sends with, returns a result that arrives together with a
cancellation and forgets the latter; and an error on the way out replaces it. Whatever loops for ever over such calls
asks here, or it is never stopped.
"""

import asyncio


def heed_cancellation(cause: Exception | None = None) -> None:
    """Raise `CancelledError` when the running task was told to end and has not ended."""
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError from cause

"""A load on a rig's ledger: clients that post, edit, delete and vote."""

import asyncio
import contextlib
import random
import uuid
from collections.abc import AsyncGenerator

import asyncpg

from tests.sync.rig import Rig, Writer

PAUSE_S = 0.03
"""Without a pause the ledger, which does not flush here, is faster than any apply."""


@contextlib.asynccontextmanager
async def load(rig: Rig, site: uuid.UUID, thread: uuid.UUID, *, clients: int) -> AsyncGenerator[list[uuid.UUID]]:
    """Write until the block ends; the list has the comments that were committed."""
    written: list[uuid.UUID] = []

    async def run() -> None:
        connection = await asyncpg.connect(rig.ledger_url)
        writer = Writer(connection=connection, site=site)
        try:
            while True:
                mine = await writer.post(thread, "under load", random.choice([None, *written[-5:]]))  # noqa: S311
                written.append(mine)
                other = random.choice(written)  # noqa: S311 - a choice of rows
                await connection.execute(
                    "UPDATE palaver.comments SET body = body || 'x', version = version + 1 WHERE id = $1", other
                )
                await writer.vote(other, "voter", random.choice([-1, 0, 1]))  # noqa: S311
                # Nobody votes for a comment that is deleted, so it is not in the list.
                deleted = await writer.post(thread, "deleted soon", mine)
                await connection.execute(
                    "UPDATE palaver.comments SET body = NULL, state = 'deleted', version = version + 1 WHERE id = $1",
                    deleted,
                )
                await asyncio.sleep(PAUSE_S)
        finally:
            connection.terminate()

    tasks = [asyncio.create_task(run()) for _ in range(clients)]
    try:
        yield written
    finally:
        for task in tasks:
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(isinstance(one, asyncio.CancelledError) for one in results), results

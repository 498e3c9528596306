"""The high-water mark: how far the leader's WAL is on a quorum of regions, so that it can no longer be lost.

Decides what may leave the leader. A walsender decodes what is flushed on the leader alone, which a failover may give
up: without this mark a view would show a comment that never was. **What `wait_for` has returned for is in the WAL of
every later leader.** The mark is of one history: each epoch has a mark of its own.

It is asked of the ledger, which counts its standbys as its commits do, and not of the agent: one truth, and one process
less that must be there. Asked only while somebody waits, by one of those who wait.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Final

import psycopg

from regions.position import parse_lsn
from sync.statements import load_sql
from sync.walsender import SourceUnavailable, connect, one_line

POLL_PAUSE_S_MIN: Final = 0.001
POLL_PAUSE_S_MAX: Final = 0.005
POLLS_PER_WAIT: Final = 16
"""The pause between two looks is a sixteenth of how long the last wait took, or this one has taken so far if that is
longer, within these bounds: between regions a quorum takes 80 ms, and a look costs the ledger 0.1 ms. A quorum that is
gone is not asked for each millisecond."""

MARK_AGE_S_MAX: Final = 0.2
"""How old the mark may be when nothing waits for it: what an idle ledger's progress is told with."""

RETRY_PAUSE_S: Final = 0.2
"""Until a ledger that did not answer is asked again; the stream itself will end as well."""

_log = logging.getLogger(__name__)


def poll_pause_s(waited_s: float) -> float:
    """Return the pause between two looks, seconds, when a wait for a quorum takes so long."""
    return min(POLL_PAUSE_S_MAX, max(POLL_PAUSE_S_MIN, waited_s / POLLS_PER_WAIT))


class HighWaterMark:
    """The mark of one epoch.

    Attributes:
        lsn: The highest LSN known to be on a quorum; only grows.
    """

    def __init__(self, conninfo: str) -> None:
        """Prepare; ``conninfo`` is of the ledger's primary, a role that may see its standbys (pg_read_all_stats)."""
        self.lsn = 0
        self._conninfo = conninfo
        self._connection: psycopg.AsyncConnection | None = None
        self._polling = asyncio.Lock()
        self._polled_at = 0.0
        self._pause_s = POLL_PAUSE_S_MIN
        self._users = 0

    @asynccontextmanager
    async def in_use(self) -> AsyncGenerator[None]:
        """Keep the connection for as long as one of the contexts lasts."""
        self._users += 1
        try:
            yield
        finally:
            self._users -= 1
            if not self._users:
                await self._drop()

    async def wait_for(self, lsn: int) -> None:
        """Wait until everything up to ``lsn`` is on a quorum, however long that takes."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        while self.lsn < lsn:
            async with self._polling:
                if self.lsn < lsn:
                    await self._poll()
                    if self.lsn < lsn:
                        await asyncio.sleep(max(self._pause_s, poll_pause_s(loop.time() - began)))
                    else:
                        self._pause_s = poll_pause_s(loop.time() - began)

    async def wait_for_all(self) -> None:
        """Wait until everything that is flushed on the leader now is on a quorum."""
        async with self._polling:
            flushed = await self._poll()
            while flushed is None:
                await asyncio.sleep(POLL_PAUSE_S_MAX)
                flushed = await self._poll()
        await self.wait_for(flushed)

    async def refresh(self) -> None:
        """Ask once, unless somebody just did."""
        loop = asyncio.get_running_loop()
        if loop.time() - self._polled_at > MARK_AGE_S_MAX:
            async with self._polling:
                if loop.time() - self._polled_at > MARK_AGE_S_MAX:
                    await self._poll()

    async def _poll(self) -> int | None:
        """Ask the ledger; return what it has flushed itself, None when it does not say."""
        try:
            if self._connection is None:
                self._connection = await connect(self._conninfo, replication=False)
            cursor = await self._connection.execute(load_sql("quorum"))
            row = await cursor.fetchone()
        except (psycopg.Error, OSError, SourceUnavailable) as error:
            await self._drop()
            _log.warning("the quorum of the ledger is not known: %s", one_line(error))
            await asyncio.sleep(RETRY_PAUSE_S)
            return None
        except BaseException:
            # What was asked may still be answered: nobody else must be taken for the one who asked.
            await self._drop()
            raise
        self._polled_at = asyncio.get_running_loop().time()
        quorum, flushed = row or (None, None)
        if quorum is not None:
            self.lsn = max(self.lsn, parse_lsn(quorum))
        return None if flushed is None else parse_lsn(flushed)

    async def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.close()

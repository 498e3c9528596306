"""Tracks the high-water mark: the LSN up to which a quorum has the leader's WAL, so that a failover cannot discard it.

Decides which changes may leave the leader. A walsender decodes WAL that only the leader has flushed, and a failover may
discard such WAL; without the mark, a view could show a comment that no later leader has. **When `wait_for` has returned
for an LSN, every later leader has the WAL up to it.** Each epoch has a mark of its own, because an LSN is valid in one
history only.

The ledger is polled and not the agent: it counts its standbys as its commits do, and no further process has to be
available. It is polled only while a caller waits or sends progress, by one of these callers.
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
"""The pause between two polls is a sixteenth of the duration of the last wait, or of the current wait so far if that is
longer, within these bounds. Between regions a quorum takes 80 ms, and a poll costs the ledger 0.1 ms. If there is no
quorum, the ledger is not polled each millisecond."""

MARK_AGE_S_MAX: Final = 0.2
"""How old the mark may be when it is used for progress, which nothing waits for."""

RETRY_PAUSE_S: Final = 0.2
"""Pause after a failed poll. If the ledger is unavailable, the stream ends as well."""

_log = logging.getLogger(__name__)


def poll_pause_s(waited_s: float) -> float:
    """Return the pause between two polls, seconds, if a wait for a quorum takes ``waited_s``."""
    return min(POLL_PAUSE_S_MAX, max(POLL_PAUSE_S_MIN, waited_s / POLLS_PER_WAIT))


class HighWaterMark:
    """The mark of one epoch.

    Attributes:
        lsn: The highest LSN that a quorum is known to have; it only increases.
    """

    def __init__(self, conninfo: str) -> None:
        """Prepare. ``conninfo`` names the ledger's primary and a role with pg_read_all_stats, to see its standbys."""
        self.lsn = 0
        self._conninfo = conninfo
        self._connection: psycopg.AsyncConnection | None = None
        self._polling = asyncio.Lock()
        self._polled_at = 0.0
        self._pause_s = POLL_PAUSE_S_MIN
        self._users = 0

    @asynccontextmanager
    async def in_use(self) -> AsyncGenerator[None]:
        """Keep the connection open while at least one of these contexts is open."""
        self._users += 1
        try:
            yield
        finally:
            self._users -= 1
            if not self._users:
                await self._drop()

    async def wait_for_quorum(self, lsn: int) -> None:
        """Wait until a quorum has everything up to ``lsn``, without a time limit."""
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
        """Wait until a quorum has everything that the leader has flushed now, without a time limit."""
        async with self._polling:
            flushed = await self._poll()
            while flushed is None:
                await asyncio.sleep(POLL_PAUSE_S_MAX)
                flushed = await self._poll()
        await self.wait_for_quorum(flushed)

    async def refresh(self) -> None:
        """Poll once, unless the mark is younger than `MARK_AGE_S_MAX`."""
        loop = asyncio.get_running_loop()
        if loop.time() - self._polled_at > MARK_AGE_S_MAX:
            async with self._polling:
                if loop.time() - self._polled_at > MARK_AGE_S_MAX:
                    await self._poll()

    async def _poll(self) -> int | None:
        """Poll the ledger; return its own flushed LSN, None if it is unknown."""
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
            # The answer may still arrive. The next poll must not take it for its own.
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

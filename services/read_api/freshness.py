"""How far this region's view is: the position and staleness that every answer carries, and waiting for more.

Decides which position an answer may claim. `applied` is what the view has; `announced` is what kept pages reflect
as well: it moves when the replicator says on the channel that every invalidation up to it was published, or one
poll later than `applied`, by when they have arrived. The view is asked by one background task, never by a request.
"""

import asyncio
import logging
import time
from typing import Final

from regions.identity import CellId
from regions.position import ZERO, InvalidPosition, Position, decode_token, encode_token
from services.api.consistency import CONSISTENCY_HEADER, POSITION_HEADER, served_header
from services.read_api.view_reader import ViewReader, ViewUnavailable
from services.view.cache import Applied

POLL_INTERVAL_S: Final = 0.25
# While somebody waits for a position, the view is asked this often.
WAITED_POLL_INTERVAL_S: Final = 0.01
# How long a session read waits for its position before it is answered with how far behind the view is.
SESSION_WAIT_S: Final = 1.0
# The prepared headers are this old at most.
HEADER_AGE_S: Final = 0.1

_log = logging.getLogger("palaver.read_api.freshness")


class Freshness:
    """What is known of the view's progress. Run `run` in a task."""

    def __init__(self, cell: CellId) -> None:
        self._cell = cell
        self.applied = ZERO
        self.announced = ZERO
        self.schema_ready = False
        self.reachable = False
        self._staleness_ms: float | None = None
        self._measured_s = 0.0
        self._waiters: list[tuple[Position, asyncio.Future[None]]] = []
        self._wanted = asyncio.Event()
        self._headers: tuple[tuple[bytes, bytes], ...] = ()
        self._headers_s = -1.0

    @property
    def staleness_ms(self) -> float | None:
        """How long ago the view had everything; None before anything is known."""
        if self._staleness_ms is None:
            return None
        return self._staleness_ms + (time.monotonic() - self._measured_s) * 1000

    def headers(self) -> tuple[tuple[bytes, bytes], ...]:
        """The two headers of an eventual read, prepared a moment ago."""
        now_s = time.monotonic()
        if now_s - self._headers_s > HEADER_AGE_S:
            self._headers_s = now_s
            self._headers = self.headers_of("eventual", "eventual", self.announced)
        return self._headers

    def headers_of(self, served: str, asked: str, position: Position) -> tuple[tuple[bytes, bytes], ...]:
        """The two headers of an answer that reflects this position."""
        return (
            (POSITION_HEADER, encode_token(self._cell, position).encode()),
            (CONSISTENCY_HEADER, served_header(served, asked, self.staleness_ms)),
        )

    async def wait_for(self, position: Position, timeout_s: float = SESSION_WAIT_S) -> bool:
        """Wait, bounded, until the view has a position; return whether it has."""
        if self.applied >= position:
            return True
        waiter = (position, asyncio.get_running_loop().create_future())
        self._waiters.append(waiter)
        self._wanted.set()
        try:
            async with asyncio.timeout(timeout_s):
                await waiter[1]
        except TimeoutError:
            return self.applied >= position
        finally:
            self._waiters.remove(waiter)
        return True

    def hear(self, message: Applied) -> None:
        """Take what the replicator says on the channel, after the invalidations up to it."""
        try:
            cell, position = decode_token(message.position)
        except InvalidPosition:
            _log.warning("a malformed position was announced", extra={"position": message.position})
            return
        if cell == self._cell:
            self.announced = max(self.announced, position)
            self._move(position, max(0.0, time.time() * 1000 - message.fresh_at_us / 1000))

    async def run(self, view: ViewReader) -> None:
        """Ask the view for its checkpoint until cancelled, more often while somebody waits."""
        while True:
            before = self.applied
            try:
                await self._poll(view)
                self.reachable = True
            except ViewUnavailable as error:
                if self.reachable:
                    _log.warning("the view does not answer", extra={"reason": str(error)})
                self.reachable = False
            self._wanted.clear()
            if self._waiters and self.reachable:
                await asyncio.sleep(WAITED_POLL_INTERVAL_S)
                continue
            self.announced = max(self.announced, before)
            try:
                async with asyncio.timeout(POLL_INTERVAL_S):
                    await self._wanted.wait()
            except TimeoutError:
                continue

    async def _poll(self, view: ViewReader) -> None:
        if not self.schema_ready:
            self.schema_ready = await view.schema_ready()
            if not self.schema_ready:
                return
        row = await view.checkpoint(self._cell)
        if row is not None:
            self._move(Position(row["epoch"], row["lsn"]), row["staleness_ms"])

    def _move(self, position: Position, staleness_ms: float | None) -> None:
        self.applied = max(self.applied, position)
        if staleness_ms is not None:
            self._staleness_ms, self._measured_s = staleness_ms, time.monotonic()
        for wanted, future in self._waiters:
            if self.applied >= wanted and not future.done():
                future.set_result(None)

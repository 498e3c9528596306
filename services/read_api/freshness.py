"""Tracks how current this region's view and the cached pages are, and lets reads wait for a position.

Decides two claims (`claim.py`). `viewed` is what the view is known to include: it comes from the view's checkpoint,
which one background task reads, and from the invalidation channel. `announced` is what cached pages include: it comes
only from the positions that the replicator publishes on the channel, each after the invalidations up to it. While no
positions arrive, there is no `announced`, no page is cached, and reads go to the view. The age of a claim counts from
the time in the announcement or in the checkpoint; receiving the same announcement again does not reset it.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Iterable
from typing import Final

from regions.identity import CellId
from regions.position import ZERO, InvalidPosition, Position, decode_token, encode_token
from services.api.consistency import CONSISTENCY_HEADER, POSITION_HEADER, Level, served_header
from services.read_api.claim import NOTHING, Claim
from services.read_api.view_reader import ViewReader, ViewUnavailable
from services.view.cache import Applied

POLL_INTERVAL_S: Final = 0.25
# Interval of the polls while a read waits for a position and no announcements arrive.
WAITED_POLL_INTERVAL_S: Final = 0.01
# The view has a position a round trip to Redis before the channel announces it. With the announcement a cached page can
# answer. A query of the view takes a few milliseconds; after several times that, the read stops waiting and queries it.
ANNOUNCEMENT_WAIT_S: Final = 0.05
# How long a session read waits for its position. Afterwards it is answered as `eventual`, with the view's position.
SESSION_WAIT_S: Final = 1.0
# Prepared headers are used for this long. They state the age at the end of that time.
HEADER_AGE_S: Final = 0.02

_log = logging.getLogger("palaver.read_api.freshness")


class Freshness:
    """The known progress of the view and of the cached pages. Run `run` in a task.

    Attributes:
        viewed: Claim of a read of the view that begins now.
        announced: Claim of the cached pages; None while no announcements arrive.
    """

    def __init__(self, cell: CellId) -> None:
        self._cell = cell
        self.viewed = NOTHING
        self.announced: Claim | None = None
        self.schema_ready = False
        self.reachable = False
        self._polled: tuple[object, ...] | None = None
        self._announcement: Applied | None = None
        self._announcement_fresh_s: float | None = None
        self._announcement_refuted = False
        self._waiters: list[tuple[Position, asyncio.Future[None]]] = []
        self._listeners: list[tuple[Position, asyncio.Future[None]]] = []
        self._wanted = asyncio.Event()
        self._headers: dict[str, tuple[tuple[bytes, bytes], ...]] = {}
        self._headers_s = -1.0

    @property
    def applied(self) -> Position:
        """The position up to which the view includes every change."""
        return self.viewed.position

    @property
    def staleness_ms(self) -> float | None:
        """Milliseconds since the view included every change of the ledger; None while this is not known."""
        return _age_ms(self.viewed, time.monotonic())

    def headers(self, level: Level = "eventual") -> tuple[tuple[bytes, bytes], ...]:
        """Return the two headers of an answer from a cached page that has the requested level; they are cached briefly.

        The headers of a session are renewed with each announcement, so that they never claim less than a position that
        a read asked for and the channel has announced.
        """
        now_s = time.monotonic()
        if now_s - self._headers_s > HEADER_AGE_S:
            self._headers_s = now_s
            self._headers.clear()
        prepared = self._headers.get(level)
        if prepared is None:
            prepared = self.headers_of(level, level, self.announced or NOTHING, self._headers_s + HEADER_AGE_S)
            self._headers[level] = prepared
        return prepared

    def headers_of(
        self, served: str, asked: str, claim: Claim, now_s: float | None = None
    ) -> tuple[tuple[bytes, bytes], ...]:
        """Return the position and consistency headers of an answer with this claim."""
        now_s = time.monotonic() if now_s is None else now_s
        return (
            (POSITION_HEADER, encode_token(self._cell, claim.position).encode()),
            (CONSISTENCY_HEADER, served_header(served, asked, _age_ms(claim, now_s))),
        )

    async def wait_for(self, position: Position, timeout_s: float = SESSION_WAIT_S) -> bool:
        """Wait, up to a limit, until the view has a position; return whether it has.

        While announcements arrive, the read waits for one, besides the regular poll of the view. The replicator
        announces a position right after its commit, and frequent polls would take time from apply.
        """
        if self.applied >= position:
            return True
        waiter = (position, asyncio.get_running_loop().create_future())
        self._waiters.append(waiter)
        if self.announced is None:
            self._wanted.set()
        try:
            async with asyncio.timeout(timeout_s):
                await waiter[1]
        except TimeoutError:
            return self.applied >= position
        finally:
            self._waiters.remove(waiter)
        return True

    async def wait_for_announcement(self, position: Position) -> None:
        """Wait briefly until the channel announces a position that the view has. Return at once if none arrive."""
        if self.announced is None or self.announced.position >= position:
            return
        listener = (position, asyncio.get_running_loop().create_future())
        self._listeners.append(listener)
        try:
            async with asyncio.timeout(ANNOUNCEMENT_WAIT_S):
                await listener[1]
        except TimeoutError:
            return
        finally:
            self._listeners.remove(listener)

    def receive(self, message: Applied) -> None:
        """Process an announcement of the replicator. The invalidations up to its position came before it."""
        try:
            cell, position = decode_token(message.position)
        except InvalidPosition:
            _log.warning("the channel announced a malformed position", extra={"position": message.position})
            return
        if cell != self._cell:
            return
        if message != self._announcement:
            self._announcement, self._announcement_refuted = message, False
            age_s = max(0.0, time.time() - message.fresh_at_us / 1_000_000)
            self._announcement_fresh_s = time.monotonic() - age_s if message.fresh_at_us else None
        if self._announcement_refuted:
            return
        claim = Claim(position=position, fresh_s=self._announcement_fresh_s)
        self.announced = claim.or_later(self.announced)
        self._headers.pop("session", None)
        _wake(self._listeners, self.announced.position)
        self._see(claim)

    def channel_lost(self) -> None:
        """Drop the claim of cached pages until the next announcement, because invalidations may be lost from now on."""
        self.announced = None
        self._headers_s = -1.0
        _wake(self._listeners, None)
        if self._waiters:
            self._wanted.set()

    async def run(self, view: ViewReader, went_back: Callable[[], None]) -> None:
        """Poll the view's checkpoint until cancelled, more often while a read waits.

        Args:
            view: The view.
            went_back: Called if the checkpoint is lower than before. The view was replaced, so cached pages are void.
        """
        while True:
            try:
                await self._poll(view, went_back)
                self.reachable = True
            except ViewUnavailable as error:
                if self.reachable:
                    _log.warning("the view does not answer", extra={"reason": str(error)})
                self.reachable = False
            self._wanted.clear()
            if self._waiters and self.reachable and self.announced is None:
                await asyncio.sleep(WAITED_POLL_INTERVAL_S)
                continue
            try:
                async with asyncio.timeout(POLL_INTERVAL_S):
                    await self._wanted.wait()
            except TimeoutError:
                continue

    async def _poll(self, view: ViewReader, went_back: Callable[[], None]) -> None:
        if not self.schema_ready:
            self.schema_ready = await view.schema_ready()
            if not self.schema_ready:
                return
        before, before_s = self.viewed.position, time.monotonic()
        row = await view.checkpoint(self._cell)
        position = ZERO if row is None else Position(row["epoch"], row["lsn"])
        if position < before:
            # The view had `before` when this poll began.
            _log.warning("the view's checkpoint went back", extra={"position": str(position), "before": str(before)})
            self.viewed, self._announcement_refuted = NOTHING, True
            self.channel_lost()
            went_back()
        polled = None if row is None else (position, row["fresh_at"])
        if row is None or polled == self._polled:
            return
        self._polled = polled
        staleness_ms = row["staleness_ms"]
        fresh_s = None if staleness_ms is None else before_s - max(0.0, staleness_ms) / 1000
        self._see(Claim(position=position, fresh_s=fresh_s))

    def _see(self, claim: Claim) -> None:
        self.viewed = self.viewed.or_later(claim)
        _wake(self._waiters, self.applied)


def _wake(waiters: Iterable[tuple[Position, asyncio.Future[None]]], reached: Position | None) -> None:
    """Wake the waiters whose position is reached; with None wake all of them."""
    for wanted, future in waiters:
        if (reached is None or reached >= wanted) and not future.done():
            future.set_result(None)


def _age_ms(claim: Claim, now_s: float) -> float | None:
    return None if claim.fresh_s is None else (now_s - claim.fresh_s) * 1000

"""How far this region's view is, and how far what is kept of it is: what every answer may claim, and waiting for more.

Decides two claims (`claim.py`). `viewed` is what the view is known to have: from its checkpoint, which one background
task reads, and from the channel. `heard` is what kept pages reflect: only what the replicator said on the channel,
after the invalidations up to it. While nothing is heard there is no such claim, nothing is kept, and reads go to the
view. The age of a claim grows from the moment of the news behind it; the same news repeated does not make it younger.
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
# While somebody waits for a position and the channel is not heard, the view is asked this often.
WAITED_POLL_INTERVAL_S: Final = 0.01
# The view had a position before the channel said it: the word is a round trip to Redis away, and with it a kept page
# will do. A page of the view takes a few milliseconds; after several times that the word is late, and it is read.
WORD_WAIT_S: Final = 0.05
# How long a session read waits for its position before it is answered with how far behind the view is.
SESSION_WAIT_S: Final = 1.0
# Prepared headers are used for this long, and say the age that they have at the end of it.
HEADER_AGE_S: Final = 0.02

_log = logging.getLogger("palaver.read_api.freshness")


class Freshness:
    """What is known of the view's progress. Run `run` in a task.

    Attributes:
        viewed: What a read of the view that begins now has at least.
        heard: What kept pages reflect at least; None while the channel is not heard.
    """

    def __init__(self, cell: CellId) -> None:
        self._cell = cell
        self.viewed = NOTHING
        self.heard: Claim | None = None
        self.schema_ready = False
        self.reachable = False
        self._polled: tuple[object, ...] | None = None
        self._word: Applied | None = None
        self._word_fresh_s: float | None = None
        self._word_refuted = False
        self._waiters: list[tuple[Position, asyncio.Future[None]]] = []
        self._listeners: list[tuple[Position, asyncio.Future[None]]] = []
        self._wanted = asyncio.Event()
        self._headers: dict[str, tuple[tuple[bytes, bytes], ...]] = {}
        self._headers_s = -1.0

    @property
    def applied(self) -> Position:
        """What the view has."""
        return self.viewed.position

    @property
    def staleness_ms(self) -> float | None:
        """How long ago the view had everything; None before anything is known."""
        return _age_ms(self.viewed, time.monotonic())

    def headers(self, level: Level = "eventual") -> tuple[tuple[bytes, bytes], ...]:
        """The two headers of a read of a kept page that is answered as it asked, prepared a moment ago.

        Those of a session claim what was heard last: never less than a position that was asked for and heard.
        """
        now_s = time.monotonic()
        if now_s - self._headers_s > HEADER_AGE_S:
            self._headers_s = now_s
            self._headers.clear()
        prepared = self._headers.get(level)
        if prepared is None:
            prepared = self.headers_of(level, level, self.heard or NOTHING, self._headers_s + HEADER_AGE_S)
            self._headers[level] = prepared
        return prepared

    def headers_of(
        self, served: str, asked: str, claim: Claim, now_s: float | None = None
    ) -> tuple[tuple[bytes, bytes], ...]:
        """The two headers of an answer for which this claim holds."""
        now_s = time.monotonic() if now_s is None else now_s
        return (
            (POSITION_HEADER, encode_token(self._cell, claim.position).encode()),
            (CONSISTENCY_HEADER, served_header(served, asked, _age_ms(claim, now_s))),
        )

    async def wait_for(self, position: Position, timeout_s: float = SESSION_WAIT_S) -> bool:
        """Wait, bounded, until the view has a position; return whether it has.

        While the channel is heard, its word is waited for, beside the regular look at the view: it comes with the
        commit, and a view that is asked all the time has less time to apply.
        """
        if self.applied >= position:
            return True
        waiter = (position, asyncio.get_running_loop().create_future())
        self._waiters.append(waiter)
        if self.heard is None:
            self._wanted.set()
        try:
            async with asyncio.timeout(timeout_s):
                await waiter[1]
        except TimeoutError:
            return self.applied >= position
        finally:
            self._waiters.remove(waiter)
        return True

    async def wait_for_word(self, position: Position) -> None:
        """Wait, briefly, until the channel has said a position that the view has; not at all while it is not heard."""
        if self.heard is None or self.heard.position >= position:
            return
        listener = (position, asyncio.get_running_loop().create_future())
        self._listeners.append(listener)
        try:
            async with asyncio.timeout(WORD_WAIT_S):
                await listener[1]
        except TimeoutError:
            return
        finally:
            self._listeners.remove(listener)

    def hear(self, message: Applied) -> None:
        """Take what the replicator says on the channel, after the invalidations up to it."""
        try:
            cell, position = decode_token(message.position)
        except InvalidPosition:
            _log.warning("a malformed position was announced", extra={"position": message.position})
            return
        if cell != self._cell:
            return
        if message != self._word:
            self._word, self._word_refuted = message, False
            age_s = max(0.0, time.time() - message.fresh_at_us / 1_000_000)
            self._word_fresh_s = time.monotonic() - age_s if message.fresh_at_us else None
        if self._word_refuted:
            return
        claim = Claim(position=position, fresh_s=self._word_fresh_s)
        self.heard = claim.or_later(self.heard)
        self._headers.pop("session", None)
        _wake(self._listeners, self.heard.position)
        self._see(claim)

    def go_deaf(self) -> None:
        """Invalidations may be missed from now on: kept pages have no claim until the next word."""
        self.heard = None
        self._headers_s = -1.0
        _wake(self._listeners, None)
        if self._waiters:
            self._wanted.set()

    async def run(self, view: ViewReader, went_back: Callable[[], None]) -> None:
        """Ask the view for its checkpoint until cancelled, more often while somebody waits.

        Args:
            view: Is asked.
            went_back: Called when the view has less than it had: it was replaced, and nothing kept of it counts.
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
            if self._waiters and self.reachable and self.heard is None:
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
            # The view had `before` when it was asked.
            _log.warning("the view has less than it had", extra={"position": str(position), "before": str(before)})
            self.viewed, self._word_refuted = NOTHING, True
            self.go_deaf()
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
    """Wake those who wait for a position that is reached; with None all of them."""
    for wanted, future in waiters:
        if (reached is None or reached >= wanted) and not future.done():
            future.set_result(None)


def _age_ms(claim: Claim, now_s: float) -> float | None:
    return None if claim.fresh_s is None else (now_s - claim.fresh_s) * 1000

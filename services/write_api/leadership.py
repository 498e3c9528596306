"""Whether this region may write now, and under which epoch: the first of two checks, the fence row is the second.

A fence row in the chosen region's ledger opens the region (failover.md, step 4): each commit after it waits for a
quorum, and where a quorum has that it has the row. That the record says so as well comes commits of etcd later. So the
region that was chosen looks for the row itself, and what arrives meanwhile waits.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Final

import asyncpg

from regions.coordination import Leadership, LeadershipView
from regions.identity import Epoch, RegionName
from regions.promotion import await_promotion
from services import ledger
from services.api.problems import Problem, unavailable
from services.api.requests import INTEGER_DIGITS_MAX
from services.write_api.pool import LedgerError, LedgerPool

EPOCH_HEADER: Final = b"palaver-epoch"
ATTEMPT_HEADER: Final = b"x-envoy-attempt-count"
# How long a request waits for a region that is about to serve; the edge asks a keyed write again after 2 s.
OPENING_S_MAX: Final = 0.8
# How often the chosen region looks for its fence row once its ledger is primary, seconds. It is a read of one row, by
# one task.
FENCE_POLL_S: Final = 0.01

_EPOCH: Final = ledger.statement("newest_epoch")
_AWAIT_PROMOTION: Final = await_promotion("250 ms")
_log = logging.getLogger("palaver.write_api.leadership")


class LeadershipGuard:
    """Compares what the edge was told, what this process was told, and where it runs."""

    def __init__(self, current: Callable[[], Leadership | None], region: RegionName) -> None:
        self._current = current
        self._region = region
        self._opened: Epoch | None = None
        self._given_up: Leadership | None = None
        self._changed = asyncio.Event()

    def note_change(self) -> None:
        """Wake whoever waits: there is another leadership, or the region has opened."""
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    def open(self, epoch: Epoch) -> None:
        """Take writes under an epoch whose fence row was seen."""
        self._opened = epoch
        self.note_change()

    def note_broken(self) -> None:
        """The ledger ended a call: where the next epoch is promised to another region, it was stopped for that."""
        known = self._current()
        if known is not None and known.succession is not None and known.succession.region != self._region:
            self._given_up = known

    @property
    def leadership(self) -> Leadership | None:
        """What the record means here: with the fence row of the epoch that it promises to this region, that epoch."""
        known = self._current()
        if known is None or self.promised is None or self._opened != self.promised:
            return known
        return replace(known, epoch=self.promised, leader=self._region, phase="promoting", succession=None)

    @property
    def promised(self) -> Epoch | None:
        """The epoch that the record promises to this region, which may begin at any moment (rule 20)."""
        known = self._current()
        promises = known is not None and known.succession is not None and known.succession.region == self._region
        return known.epoch + 1 if known is not None and promises else None

    @property
    def epoch(self) -> Epoch | None:
        """The epoch this process knows of, or None before the first."""
        leadership = self.leadership
        return None if leadership is None else leadership.epoch

    @property
    def serves(self) -> bool:
        """Whether this region leads and accepts writes."""
        leadership = self.leadership
        if leadership is None or leadership.leader != self._region:
            return False
        if leadership is self._given_up:
            return False
        return leadership.phase == "serving" or self._opened == leadership.epoch

    @property
    def opens(self) -> bool:
        """Whether this region was named and does not accept writes yet."""
        leadership = self.leadership
        if leadership is None or leadership is self._given_up:
            return False
        return leadership.leader == self._region and not self.serves

    def awaits(self, claimed: bytes | None, attempt: bytes | None) -> bool:
        """Whether a request may be one for an epoch under which this region does not accept writes yet.

        An edge may have heard before this process that the promised epoch has begun, and sends for that, or repeats.
        """
        if self.opens:
            return True
        return self.promised is not None and not self.serves and (claimed == b"%d" % self.promised or _repeats(attempt))

    async def admit(self, claimed: bytes | None, attempt: bytes | None) -> Epoch:
        """Do what ``require`` does, after a bounded wait for a region that is about to serve."""
        if self.awaits(claimed, attempt):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(OPENING_S_MAX):
                    while self.awaits(claimed, attempt):
                        await self._changed.wait()
        return self.require(claimed, attempt)

    def require(self, claimed: bytes | None, attempt: bytes | None) -> Epoch:
        """Return the epoch to write under.

        An edge chooses the route, and with it the epoch, once a request: its repetitions carry the epoch of
        the first attempt. A repetition that was sent under an earlier epoch and finds the leader of a later
        one is what the repetition is for, and only posts with an Idempotency-Key, and reads of a site, are repeated.

        Args:
            claimed: The `palaver-epoch` header; None for a call that did not come through the edge.
            attempt: The `x-envoy-attempt-count` header, which the edge sets itself; None is the first.

        Raises:
            Problem: `stale-epoch`: this region does not lead, or the edge sent it for another epoch.
        """
        leadership = self.leadership
        if leadership is None:
            raise stale_epoch("This region has not heard yet who leads.")
        if not self.serves:
            ends = ", which gives it up" if leadership is self._given_up else ""
            raise stale_epoch(
                f"Epoch {leadership.epoch} is led by {leadership.leader} (phase {leadership.phase}){ends}."
            )
        if claimed is None or claimed == b"%d" % leadership.epoch:
            return leadership.epoch
        if not (_repeats(attempt) and _is_epoch(claimed) and int(claimed) < leadership.epoch):
            raise stale_epoch(f"The request was routed for another epoch than {leadership.epoch}.")
        return leadership.epoch


def _is_epoch(claimed: bytes) -> bool:
    return len(claimed) <= INTEGER_DIGITS_MAX and claimed.isdigit()


def _repeats(attempt: bytes | None) -> bool:
    return attempt not in (None, b"1")


def stale_epoch(detail: str) -> Problem:
    """Return the problem that makes the edge and keyed clients try again."""
    return unavailable("stale-epoch", detail, repeat=b"now")


async def follow_openings(view: LeadershipView, guard: LeadershipGuard, pool: LedgerPool) -> None:
    """Open the guard when the fence row of an epoch that this region leads can be seen, until cancelled.

    It can be seen before a quorum has it. The quorum of each later commit holds it, because it comes first.
    """
    known: Leadership | None = None
    while True:
        known = await view.next_after(known)
        guard.note_change()
        while view.current == known and (epoch := _awaited(guard, known)) is not None:
            if await _is_fenced(pool, epoch):
                guard.open(epoch)
                _log.info("epoch %d: its fence row is there, writes are taken", epoch)
                break
            await _until_promoted(pool)
            await asyncio.sleep(FENCE_POLL_S)


def _awaited(guard: LeadershipGuard, known: Leadership) -> Epoch | None:
    """Return the epoch whose fence row may appear in this region's ledger at any moment."""
    if guard.promised is not None:
        return guard.promised
    return known.epoch if guard.opens and known.phase in {"promoting", "establishing"} else None


async def _until_promoted(pool: LedgerPool) -> None:
    """Have the ledger wait, for a while: there a look costs nothing."""
    with contextlib.suppress(LedgerError, asyncpg.PostgresError):
        await pool.fetch(_AWAIT_PROMOTION)


async def _is_fenced(pool: LedgerPool, epoch: Epoch) -> bool:
    try:
        return (await pool.fetch(_EPOCH))[0]["epoch"] == epoch
    except (LedgerError, asyncpg.PostgresError):
        return False

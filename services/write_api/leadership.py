"""Checks whether this region may write now, and in which epoch. The ledger then checks the epoch by its fence row.

A region accepts writes as soon as its ledger has the fence row of its epoch (failover.md, step 4): each later commit
waits for a quorum, and a quorum that has the commit has the fence row. The leadership record says `serving` only after
further commits of etcd. The write API of the new leader therefore polls its ledger for the fence row, and requests that
arrive meanwhile wait.
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
# How long a request waits for a region that is about to serve. The edge retries a keyed write after 2 s.
OPENING_S_MAX: Final = 0.8
# Interval in seconds at which one task polls for the fence row after its ledger became primary. A poll reads one row.
FENCE_POLL_S: Final = 0.01

_EPOCH: Final = ledger.statement("newest_epoch")
_AWAIT_PROMOTION: Final = await_promotion("250 ms")
_log = logging.getLogger("palaver.write_api.leadership")


class LeadershipGuard:
    """Compares the epoch of a request with the leadership that this process watches, and with its own region."""

    def __init__(self, current: Callable[[], Leadership | None], region: RegionName) -> None:
        self._current = current
        self._region = region
        self._opened: Epoch | None = None
        self._given_up: Leadership | None = None
        self._changed = asyncio.Event()

    def note_change(self) -> None:
        """Wake the waiting requests, because the leadership changed or the region accepts writes."""
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    def open(self, epoch: Epoch) -> None:
        """Accept writes in an epoch whose fence row the ledger has."""
        self._opened = epoch
        self.note_change()

    def note_broken(self) -> None:
        """Record that the connection of a call broke. If the next epoch is promised to another region, refuse writes.

        The agent has then stopped the ledger for the switchover.
        """
        known = self._current()
        if known is not None and known.succession is not None and known.succession.region != self._region:
            self._given_up = known

    @property
    def leadership(self) -> Leadership | None:
        """The leadership in this region. It is that of the promised epoch if the ledger has the epoch's fence row."""
        known = self._current()
        if known is None or self.promised is None or self._opened != self.promised:
            return known
        return replace(known, epoch=self.promised, leader=self._region, phase="promoting", succession=None)

    @property
    def promised(self) -> Epoch | None:
        """The epoch that the record promises to this region (rule 20), or None. It may begin at any moment."""
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
        """Whether this region is the leader in the record but does not accept writes yet."""
        leadership = self.leadership
        if leadership is None or leadership is self._given_up:
            return False
        return leadership.leader == self._region and not self.serves

    def awaits(self, claimed: bytes | None, attempt: bytes | None) -> bool:
        """Whether a request may be for an epoch in which this region does not accept writes yet.

        An edge may learn before this process that the promised epoch has begun. It then sends new requests or retries
        for that epoch.
        """
        if self.opens:
            return True
        return self.promised is not None and not self.serves and (claimed == b"%d" % self.promised or _repeats(attempt))

    async def admit(self, claimed: bytes | None, attempt: bytes | None) -> Epoch:
        """Do what `require` does, after a limited wait if the region is about to serve."""
        if self.awaits(claimed, attempt):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(OPENING_S_MAX):
                    while self.awaits(claimed, attempt):
                        await self._changed.wait()
        return self.require(claimed, attempt)

    def require(self, claimed: bytes | None, attempt: bytes | None) -> Epoch:
        """Return the epoch in which a request writes.

        An edge selects the route, and with it the epoch, once for each request, so its retries carry the epoch of the
        first attempt. A retry with an earlier epoch is therefore accepted by the leader of a later one. The edge
        retries only posts with an Idempotency-Key, and reads of a site.

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
    """Return the problem for which the edge and clients with a key retry."""
    return unavailable("stale-epoch", detail, repeat=b"now")


async def watch_fence_row(view: LeadershipView, guard: LeadershipGuard, pool: LedgerPool) -> None:
    """Open the guard when the ledger has the fence row of an epoch that this region leads; run until cancelled.

    The row is visible before a quorum has it. A quorum that has a later commit also has the row, which precedes it.
    """
    known: Leadership | None = None
    while True:
        known = await view.next_after(known)
        guard.note_change()
        while view.current == known and (epoch := _awaited(guard, known)) is not None:
            if await _is_fenced(pool, epoch):
                guard.open(epoch)
                _log.info("epoch %d: the ledger has its fence row, writes are accepted", epoch)
                break
            await _until_promoted(pool)
            await asyncio.sleep(FENCE_POLL_S)


def _awaited(guard: LeadershipGuard, known: Leadership) -> Epoch | None:
    """Return the epoch whose fence row may appear in this region's ledger at any moment, or None."""
    if guard.promised is not None:
        return guard.promised
    return known.epoch if guard.opens and known.phase in {"promoting", "establishing"} else None


async def _until_promoted(pool: LedgerPool) -> None:
    """Wait in the ledger until it is promoted, for a limited time; this costs less than polling over the network."""
    with contextlib.suppress(LedgerError, asyncpg.PostgresError):
        await pool.fetch(_AWAIT_PROMOTION)


async def _is_fenced(pool: LedgerPool, epoch: Epoch) -> bool:
    try:
        return (await pool.fetch(_EPOCH))[0]["epoch"] == epoch
    except (LedgerError, asyncpg.PostgresError):
        return False

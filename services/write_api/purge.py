"""Deletes Idempotency-Keys after a day of service time, in small batches, on the leader only.

Decides how the age of a key is measured: in service time, which the leader adds up from its monotonic clock and stores
in the ledger (`palaver.service_time`), so that a wrong wall clock deletes no key (ADR 0039). A step whose result is
unknown is not added again, so keys can only live longer. A key has the service time that was stored when it was
created, which is up to one step behind; keys are therefore kept for a day and one step.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Final

import asyncpg
from prometheus_client import Counter, Gauge

from regions.identity import Epoch
from services import ledger
from services.write_api.leadership import LeadershipGuard
from services.write_api.pool import LedgerError, LedgerPool

INTERVAL_S: Final = 60.0
# A step that is longer than this was no service: the process was stopped, and no client could repeat a write.
STEP_S_MAX: Final = 120
# Every key is kept for at least a day, at whatever time within a step it was created.
KEPT_S: Final = 24 * 3600 + STEP_S_MAX
# One batch is one short transaction; sixty of them a minute outrun a thousand keyed writes a second.
BATCH_ROWS: Final = 1000
BATCHES_MAX: Final = 60

_ADD = ledger.statement("add_service_time")
_PURGE = ledger.statement("purge_idempotency_keys")
_SERVED = Gauge("palaver_service_time_seconds", "Service time of the cell's leaders, as the ledger keeps it")
_PURGED = Counter(
    "palaver_idempotency_keys_purged_total", "Idempotency keys that were purged after 24 hours of service time"
)
_log = logging.getLogger("palaver.write_api.purge")


def boot_time_s() -> float:
    """Return seconds of a clock that cannot be set, and that also runs while the machine sleeps."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class ServiceClock:
    """How long this process has served an epoch since the last call, in whole seconds."""

    def __init__(self, now: Callable[[], float] = boot_time_s) -> None:
        self._now = now
        self._epoch: Epoch | None = None
        self._counted_s = 0.0

    def step(self, epoch: Epoch | None) -> int:
        """Return what is to be added; 0 for an epoch that begins, and while none is served (None)."""
        now_s = self._now()
        if epoch is None or epoch != self._epoch:
            self._epoch, self._counted_s = epoch, now_s
            return 0
        elapsed_s = now_s - self._counted_s
        seconds = min(int(elapsed_s), STEP_S_MAX)
        # The fraction is left for the next step; what exceeds a step is not service.
        self._counted_s = now_s - elapsed_s % 1
        return seconds


class Purge:
    """Rounds that add service time and purge expired keys."""

    def __init__(self, pool: LedgerPool, clock: ServiceClock) -> None:
        self._pool = pool
        self._clock = clock
        self._purged_s = -1

    async def round(self, epoch: Epoch | None) -> int:
        """Add the time since the last round, and purge expired keys up to the bound of a round; return their number.

        Args:
            epoch: The served epoch; None if the region does not serve, and the time is not counted.
        """
        seconds = self._clock.step(epoch)
        if epoch is None:
            return 0
        purged = 0
        try:
            rows = await self._pool.fetch(_ADD, epoch, seconds, self._purged_s, under=epoch)
            if rows:
                purged = await self._purge(epoch, after_s=rows[0]["purged_s"], due_s=rows[0]["seconds"] - KEPT_S)
                _SERVED.set(rows[0]["seconds"])
        except LedgerError as error:
            _log.info("the purge waits for the ledger", extra={"reason": str(error)})
        except asyncpg.PostgresError as error:
            _log.error("the ledger refuses the purge", extra={"reason": f"{type(error).__name__}: {error}"})
        if purged:
            _PURGED.inc(purged)
            _log.info("idempotency keys purged", extra={"keys": purged})
        return purged

    async def _purge(self, epoch: Epoch, *, after_s: int, due_s: int) -> int:
        purged = 0
        for _ in range(BATCHES_MAX):
            rows = await self._pool.fetch(_PURGE, after_s, due_s, BATCH_ROWS, under=epoch)
            purged += len(rows)
            if len(rows) < BATCH_ROWS:
                self._purged_s = max(self._purged_s, due_s)
                break
        return purged


async def purge_forever(pool: LedgerPool, guard: LeadershipGuard, *, interval_s: float = INTERVAL_S) -> None:
    """Run a round at each interval until cancelled; time counts while this region leads."""
    purge = Purge(pool, ServiceClock())
    while True:
        await asyncio.sleep(interval_s)
        await purge.round(guard.epoch if guard.serves else None)

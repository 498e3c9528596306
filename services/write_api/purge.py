"""Forgets Idempotency-Keys after their day, in small batches, from the leader only."""

import asyncio
import logging
from typing import Final

from regions.identity import Epoch
from services import ledger
from services.write_api.leadership import LeadershipGuard
from services.write_api.pool import LedgerError, LedgerPool

KEPT_HOURS: Final = 24
INTERVAL_S: Final = 60.0
# One batch is one short transaction; sixty of them a minute outrun a thousand keyed writes a second.
BATCH_ROWS: Final = 1000
BATCHES_MAX: Final = 60

_PURGE = ledger.statement("purge_idempotency_keys")
_log = logging.getLogger("palaver.write_api.purge")


async def purge_forever(pool: LedgerPool, guard: LeadershipGuard, *, interval_s: float = INTERVAL_S) -> None:
    """Purge every interval while this region leads, until cancelled."""
    while True:
        await asyncio.sleep(interval_s)
        if guard.serves:
            await purge_once(pool, guard.epoch)


async def purge_once(pool: LedgerPool, epoch: Epoch | None) -> int:
    """Delete what is older than a day, up to the bound of one round, and return how many keys went."""
    purged = 0
    try:
        for _ in range(BATCHES_MAX):
            rows = await pool.fetch(_PURGE, KEPT_HOURS, BATCH_ROWS, under=epoch)
            purged += len(rows)
            if len(rows) < BATCH_ROWS:
                break
    except LedgerError as error:
        _log.info("the purge waits for the ledger", extra={"reason": str(error)})
    if purged:
        _log.info("idempotency keys purged", extra={"keys": purged})
    return purged

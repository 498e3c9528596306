"""Sends a snapshot of the ledger in place of changes that the slot no longer has.

Decides that one snapshot is taken at a time, and how long a subscriber may take to read a part. A snapshot that fails
ends early; the subscriber then subscribes again and gets a new one.
"""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Final

from regions.identity import Epoch, RegionName, slot_name
from regions.position import Position
from sync.change import Item, Progress, SyncError
from sync.channel.direct.keepalive import ends_before_keepalive, keepalive, running
from sync.channel.direct.responses import Send, body_of
from sync.channel.direct.source import LedgerSource
from sync.snapshot import open_snapshot

PART_SEND_S_MAX: Final = 60.0
"""A region applies a part of a snapshot in well under a second. A subscriber that does not read must not hold the
snapshot open, because PostgreSQL keeps dead rows for it."""

_log = logging.getLogger(__name__)


async def send_snapshot(source: LedgerSource, send: Send, *, region: RegionName, start: Position, epoch: Epoch) -> None:
    """Send a snapshot; return at its end, or earlier if it fails.

    Args:
        source: The ledger.
        send: Of the response, whose start was sent.
        region: The subscriber.
        start: The position of the subscriber, which keepalives repeat.
        epoch: Under which this region leads.
    """
    # A snapshot waits for other snapshots, for connections and for commits; keepalives are sent meanwhile.
    alive = keepalive(start)
    try:
        async with aclosing(_parts(source, region, epoch)) as parts:
            while (part := await _next_part(parts, alive, send)) is not None:
                async with asyncio.timeout(PART_SEND_S_MAX):
                    await send(body_of([part]))
    except (SyncError, TimeoutError) as error:
        _log.warning("the snapshot of %s ended early: %s", region, str(error) or "the subscriber does not read")


async def _next_part(parts: AsyncGenerator[Item], alive: Progress, send: Send) -> Item | None:
    async with running(anext(parts, None)) as working:
        while not await ends_before_keepalive(working):
            await send(body_of([alive]))
    return working.result()


async def _parts(source: LedgerSource, region: RegionName, epoch: Epoch) -> AsyncGenerator[Item]:
    """Yield the parts of a snapshot. One snapshot at a time: each reads every table, and all regions may want one."""
    assert source.conninfo is not None, "a region without a ledger serves no stream"
    began = time.monotonic()
    mark = source.mark_of(epoch)
    async with (
        source.snapshot_lock,
        mark.in_use(),
        open_snapshot(
            source.conninfo, registry=source.registry, slot=slot_name(region), epoch=epoch, mark=mark
        ) as snapshot,
        aclosing(snapshot.parts()) as parts,
    ):
        async for part in parts:
            yield part
        _log.info("snapshot of %s: %d rows in %.1f s", region, snapshot.rows, time.monotonic() - began)

"""The state that all streams of a change server share: ledger address, high-water mark, counts, snapshot lock."""

import asyncio

from regions.coordination import Leadership
from regions.identity import Epoch, RegionName
from sync.capture import CaptureCounts
from sync.channel.direct import LeadershipSource, wait_for_new_leadership
from sync.high_water import HighWaterMark
from sync.registry import Registry


class LedgerSource:
    """The own region's ledger as the source of change streams.

    Attributes:
        conninfo: libpq conninfo of the own ledger member; None in a region without one.
        registry: The tables that a snapshot reads.
        totals: Counts of all streams since the start of the process, by region.
        snapshot_lock: Held while a snapshot is taken.
    """

    def __init__(self, *, conninfo: str | None, registry: Registry, leaders: LeadershipSource) -> None:
        """Prepare; no connection is opened."""
        self.conninfo = conninfo
        self.registry = registry
        self.totals: dict[RegionName, CaptureCounts] = {}
        self.snapshot_lock = asyncio.Lock()
        self._leaders = leaders
        self._mark: tuple[Epoch, HighWaterMark] | None = None

    def counts_of(self, region: RegionName) -> CaptureCounts:
        """Return the counts of a region, which continue over its streams."""
        return self.totals.setdefault(region, CaptureCounts())

    def mark_of(self, epoch: Epoch) -> HighWaterMark:
        """Return the high-water mark of an epoch, the same one for all streams."""
        assert self.conninfo is not None, "a region without a ledger serves no stream"
        if self._mark is None or self._mark[0] != epoch:
            self._mark = epoch, HighWaterMark(self.conninfo)
        return self._mark[1]

    async def until_replaced(self, leadership: Leadership) -> None:
        """Return when ``leadership``, which serves, is no longer the one in force."""
        await wait_for_new_leadership(self._leaders, leadership)

"""Caches the allowed origins of sites for a few seconds, so that CORS does not need a query per request."""

import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from typing import Final
from uuid import UUID

# A change of a site's origins takes effect within this time. It is short, because its owner reloads the page.
FRESH_S: Final = 10.0
# Sites in the cache of a process; a few hundred bytes each.
SITES_MAX: Final = 10_000


class SiteOrigins:
    """The `OriginsOf` of a process. If the database does not answer, the last known origins stay valid."""

    def __init__(self, load: Callable[[UUID], Awaitable[Sequence[str] | None]]) -> None:
        self._load = load
        self._kept: OrderedDict[UUID, tuple[float, frozenset[str] | None]] = OrderedDict()

    async def __call__(self, site: UUID) -> frozenset[str] | None:
        """Return the origins of a site; None if it does not exist or its origins cannot be read. Never raises."""
        fresh = self.remembered(site)
        if fresh is not None:
            return fresh
        kept = self._kept.get(site)
        now_s = time.monotonic()
        try:
            loaded = await self._load(site)
        except Exception:  # noqa: BLE001 - the request itself meets the same error and reports it
            return kept[1] if kept is not None else None
        origins = None if loaded is None else frozenset(loaded)
        self._kept[site] = (now_s, origins)
        self._kept.move_to_end(site)
        if len(self._kept) > SITES_MAX:
            self._kept.popitem(last=False)
        return origins

    def remembered(self, site: UUID) -> frozenset[str] | None:
        """Return the cached origins of a site; None if they are not cached or are older than FRESH_S."""
        kept = self._kept.get(site)
        return kept[1] if kept is not None and time.monotonic() - kept[0] < FRESH_S else None

"""Remembers for a few seconds which origins a site allows, so that CORS does not cost a query per request."""

import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from typing import Final
from uuid import UUID

# A new origin works after this long; short enough for somebody who just changed a setting and reloads.
FRESH_S: Final = 10.0
# Sites a process remembers; a few hundred bytes each.
SITES_MAX: Final = 10_000


class SiteOrigins:
    """The `OriginsOf` of a process. When the database cannot be asked, the last answer counts."""

    def __init__(self, load: Callable[[UUID], Awaitable[Sequence[str] | None]]) -> None:
        self._load = load
        self._kept: OrderedDict[UUID, tuple[float, frozenset[str] | None]] = OrderedDict()

    async def __call__(self, site: UUID) -> frozenset[str] | None:
        """Return the origins of a site; None when there is no such site or nobody can be asked. Never raises."""
        fresh = self.remembered(site)
        if fresh is not None:
            return fresh
        kept = self._kept.get(site)
        now_s = time.monotonic()
        try:
            loaded = await self._load(site)
        except Exception:  # noqa: BLE001 - the request itself meets the same fault and reports it
            return kept[1] if kept is not None else None
        origins = None if loaded is None else frozenset(loaded)
        self._kept[site] = (now_s, origins)
        self._kept.move_to_end(site)
        if len(self._kept) > SITES_MAX:
            self._kept.popitem(last=False)
        return origins

    def remembered(self, site: UUID) -> frozenset[str] | None:
        """Return the origins of a site without asking anybody; None when that is not known freshly."""
        kept = self._kept.get(site)
        return kept[1] if kept is not None and time.monotonic() - kept[0] < FRESH_S else None

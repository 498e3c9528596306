"""Watches a ledger for settings that let commits return before the quorum has them, and logs them (rule 18).

Decides when to look, and which overrides are new. Does not know the leader. Does not remove overrides, because an
operator set them on purpose.
"""

import asyncio
import logging
from collections.abc import Callable, Collection

from regions.member.errors import MemberError
from regions.member.ledger import Ledger, SettingOverride

CHECK_INTERVAL_S = 30.0
"""Interval between checks. A check needs a connection and a scan of pg_proc, about 7 ms; overrides change by hand
only."""

RETRY_S = 1.0
"""Interval while the overrides are unknown, the same as that of the agent's other observations of the member."""

NAMED_MAX = 20
"""Bound on the overrides named in one log line; the line counts the others."""

_log = logging.getLogger(__name__)


class OverrideWatch:
    """Watches the overrides of one ledger.

    Attributes:
        found: Overrides that the last look found; None if there was no look, or PostgreSQL did not answer.
    """

    def __init__(self, ledger: Ledger) -> None:
        """Initialise; `run` starts to watch."""
        self.found: tuple[SettingOverride, ...] | None = None
        self._ledger = ledger
        self._logged: frozenset[SettingOverride] = frozenset()

    async def run(self, leads: Callable[[], bool]) -> None:
        """Look at intervals while ``leads`` returns True, until cancelled."""
        while True:
            if leads():
                await self.look()
            else:
                self.found = None
            await asyncio.sleep(RETRY_S if self.found is None else CHECK_INTERVAL_S)

    async def look(self) -> None:
        """Look once, and log overrides that appeared or disappeared since the last look."""
        try:
            self.found = await self._ledger.read_overrides()
        except MemberError as error:
            _log.debug("ledger: overrides are not known: %s", error)
            self.found = None
            return
        found = frozenset(self.found)
        if added := found - self._logged:
            _log.warning("ledger: synchronous_commit is overridden: %s", describe(added))
        if removed := self._logged - found:
            _log.info("ledger: synchronous_commit is no longer overridden: %s", describe(removed))
        self._logged = found


def describe(overrides: Collection[SettingOverride]) -> str:
    """Return the overrides as text of one line, with at most `NAMED_MAX` of them."""
    named = sorted(f"{one.scope} {one.name} = {one.value}" for one in overrides)
    more = len(named) - NAMED_MAX
    return "; ".join(named[:NAMED_MAX]) + (f"; and {more} more" if more > 0 else "")

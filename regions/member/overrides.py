"""Watches a ledger for settings that let its commits return before their quorum, and says so (rule 18).

Decides when to look and what is news. Refuses to know who leads, and to undo what it finds: somebody set it on purpose.
"""

import asyncio
import logging
from collections.abc import Callable, Collection

from regions.member.errors import MemberError
from regions.member.ledger import Ledger, Override

LOOK_S = 30.0
"""A look is a connection and a scan of pg_proc, about 7 ms; what it finds was set by hand and stays."""

AGAIN_S = 1.0
"""Until the next look while nothing is known: as often as the agent looks at the rest of the member."""

NAMED_MAX = 20
"""How many are named in one line; all are counted."""

_log = logging.getLogger(__name__)


class OverrideWatch:
    """Looks at one ledger.

    Attributes:
        found: What the last look found; None when there was none, or nobody answered.
    """

    def __init__(self, ledger: Ledger) -> None:
        """Prepare to watch; `run` begins."""
        self.found: tuple[Override, ...] | None = None
        self._ledger = ledger
        self._told: frozenset[Override] = frozenset()

    async def run(self, leads: Callable[[], bool]) -> None:
        """Look for as long as ``leads`` says that the ledger is the leader's; until cancelled."""
        while True:
            if leads():
                await self.look()
            else:
                self.found = None
            await asyncio.sleep(AGAIN_S if self.found is None else LOOK_S)

    async def look(self) -> None:
        """Look once, and say what has come and what is gone since it was last known."""
        try:
            self.found = await self._ledger.read_overrides()
        except MemberError as error:
            _log.debug("ledger: overrides are not known: %s", error)
            self.found = None
            return
        found = frozenset(self.found)
        if come := found - self._told:
            _log.warning("ledger: synchronous_commit is overridden: %s", describe(come))
        if gone := self._told - found:
            _log.info("ledger: synchronous_commit is no longer overridden: %s", describe(gone))
        self._told = found


def describe(overrides: Collection[Override]) -> str:
    """Name overrides for people, in one line that stays short."""
    named = sorted(f"{one.scope} {one.name} = {one.value}" for one in overrides)
    more = len(named) - NAMED_MAX
    return "; ".join(named[:NAMED_MAX]) + (f"; and {more} more" if more > 0 else "")

"""What the slots of the change streams cost the ledger: WAL that is kept because a region lags.

Decides how often to look, and only looks. **What it shows is at most a few seconds old, or empty: facts
of a ledger that this region no longer leads are dropped.**
"""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import psycopg
from psycopg.conninfo import make_conninfo

from sync.statements import load_sql

POLL_INTERVAL_S: Final = 5.0
POLL_TIMEOUT_S: Final = 3.0
"""postgres_exporter is scraped each 15 s as a rule; a slot that fills a disk takes minutes."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class SlotFacts:
    """One logical slot.

    Attributes:
        retained_bytes: WAL that is kept for it.
        active: Whether somebody reads it.
        wal_status: PostgreSQL's word: reserved, extended, unreserved, lost.
    """

    retained_bytes: int
    active: bool
    wal_status: str


class SlotWatch:
    """Looks at the slots while this region leads.

    Attributes:
        slots: The latest facts, by slot.
    """

    def __init__(self, *, conninfo: str, leads: Callable[[], bool]) -> None:
        """Prepare; ``conninfo`` is of the own ledger member."""
        self._conninfo = make_conninfo(
            conninfo, connect_timeout=int(POLL_TIMEOUT_S), application_name="palaver-slot-watch"
        )
        self._leads = leads
        self.slots: dict[str, SlotFacts] = {}

    async def run(self) -> None:
        """Look for ever."""
        while True:
            try:
                self.slots = await self._poll() if self._leads() else {}
            except (psycopg.Error, OSError, TimeoutError) as error:
                self.slots = {}
                _log.warning("slots cannot be seen: %s", " ".join(str(error).split()))
            await asyncio.sleep(POLL_INTERVAL_S)

    async def _poll(self) -> dict[str, SlotFacts]:
        async with asyncio.timeout(POLL_TIMEOUT_S):
            connection = await psycopg.AsyncConnection.connect(self._conninfo, autocommit=True)
            async with connection:
                cursor = await connection.execute(load_sql("slots"))
                return {
                    name: SlotFacts(retained_bytes=retained, active=active, wal_status=wal_status)
                    for name, retained, active, wal_status in await cursor.fetchall()
                }

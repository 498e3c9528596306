"""Monitors the replication slots of the change streams: how much WAL the ledger retains for regions that lag.

Decides how often the ledger is polled, and changes nothing. **The facts are a few seconds old at most. They are empty
if this region does not lead or the ledger does not answer.**
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
"""Prometheus usually scrapes postgres_exporter each 15 s. A slot needs minutes to fill a disk."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class SlotFacts:
    """One logical slot.

    Attributes:
        retained_bytes: WAL that the ledger retains for it.
        active: Whether a walsender reads it.
        wal_status: PostgreSQL's status of that WAL: reserved, extended, unreserved or lost.
    """

    retained_bytes: int
    active: bool
    wal_status: str


class SlotWatch:
    """Polls the slots while this region leads.

    Attributes:
        slots: The latest facts, by slot.
    """

    def __init__(self, *, conninfo: str, leads: Callable[[], bool]) -> None:
        """Prepare.

        Args:
            conninfo: libpq conninfo of the own ledger member.
            leads: Returns whether this region leads and serves.
        """
        self._conninfo = make_conninfo(
            conninfo, connect_timeout=int(POLL_TIMEOUT_S), application_name="palaver-slot-watch"
        )
        self._leads = leads
        self.slots: dict[str, SlotFacts] = {}

    async def run(self) -> None:
        """Poll until cancelled."""
        while True:
            try:
                self.slots = await self._poll() if self._leads() else {}
            except (psycopg.Error, OSError, TimeoutError) as error:
                self.slots = {}
                _log.warning("slots cannot be read: %s", " ".join(str(error).split()))
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

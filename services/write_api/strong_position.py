"""Proves to the read APIs the position that a view must have before it answers a strong read.

**A view that has the position has every write that was acknowledged before the question arrived, and the position is
on a quorum.** The order is the proof (rules 7 and 10, ADR 0020): the agent verifies in etcd, by a read begun now, that
this region leads; then the ledger is asked for its newest fence row, then for what it has flushed; then this waits
until the quorum has that. A leader that takes over between two of these steps has every write that was acknowledged
before the first. Only a position is a proof: without one, a read API answers the read as `eventual`.
"""

import asyncio
from http import HTTPStatus
from typing import Final

import orjson
from fastapi import Request, Response

from regions.identity import CellId
from regions.position import Position, encode_token, parse_lsn
from services import ledger
from services.api.problems import unavailable
from services.write_api.agent_link import Verifier
from services.write_api.leadership import LeadershipGuard, stale_epoch
from services.write_api.outcomes import ledger_problem
from services.write_api.pool import LedgerError, LedgerPool
from sync.statements import load_sql

QUORUM_S_MAX: Final = 0.9
"""Time limit of the whole request. A quorum takes 80 ms between regions; the read API gives up after a second."""

POLL_PAUSE_S: Final = 0.005
"""Poll interval, the longest of `sync/high_water.py`. A poll costs the ledger 0.1 ms."""

_EPOCH: Final = ledger.statement("newest_epoch")
_QUORUM: Final = load_sql("quorum")


class StrongPosition:
    """Answers the requests of the read APIs."""

    def __init__(self, pool: LedgerPool, guard: LeadershipGuard, verifier: Verifier, cell: CellId) -> None:
        self._pool = pool
        self._guard = guard
        self._verifier = verifier
        self._cell = cell

    async def get(self, request: Request) -> Response:
        """`GET /strong-position` → `{"position": TOKEN}`; 503 when there is no proof in time."""
        del request
        try:
            async with asyncio.timeout(QUORUM_S_MAX):
                position = await self._prove()
        except TimeoutError:
            raise unavailable("ledger-unavailable", "No quorum confirmed the ledger's newest state in time.") from None
        except LedgerError as error:
            raise ledger_problem(error) from error
        document = orjson.dumps({"position": encode_token(self._cell, position)})
        return Response(document, HTTPStatus.OK, media_type="application/json", headers={"cache-control": "no-store"})

    async def _prove(self) -> Position:
        """Return what was flushed under the newest epoch, once a quorum has it.

        Raises:
            Problem: `stale-epoch`: this region does not lead, or cannot prove that it does.
            LedgerError: The ledger did not answer.
        """
        if not self._guard.serves or not await self._verifier.is_current():
            raise stale_epoch("This region cannot prove that it leads.")
        epoch: int | None = (await self._pool.fetch(_EPOCH))[0]["epoch"]
        wanted: int | None = None
        while True:
            row = (await self._pool.fetch(_QUORUM))[0]
            if epoch is None or row["flushed_lsn"] is None:
                raise stale_epoch("The ledger of this region is no primary.")
            wanted = parse_lsn(row["flushed_lsn"]) if wanted is None else wanted
            if row["quorum_lsn"] is not None and parse_lsn(row["quorum_lsn"]) >= wanted:
                return Position(epoch, wanted)
            await asyncio.sleep(POLL_PAUSE_S)

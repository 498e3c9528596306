"""Requests the position that this region's view must have before it answers a strong read, once for many reads.

Decides that all voters are asked and the first proof counts. The proof shows which region leads, so this module needs
no leadership. A proof counts for the reads that had arrived before the request for it, not for later ones (rule 10).
Without a proof in time, the read is answered as `eventual`.
"""

import asyncio
import logging
from collections.abc import Sequence
from http import HTTPStatus
from typing import Final, Protocol

import httpx
from prometheus_client import Counter

from regions.identity import CellId
from regions.plain_http import PlainTransport
from regions.position import Position, decode_token
from regions.topology import Address
from services.api.leader_port import STRONG_POSITION_PATH

ATTEMPT_S_MAX: Final = 1.0
"""Limit of one request: three round trips between regions (to the leader, etcd and the quorum), and a margin."""

PROOF_S_MAX: Final = 1.3
"""How long a strong read waits for a proof. With the wait for the view, at most a second, it stays below the 2.5 s that
the edge gives it."""

PAUSE_S: Final = 0.05
"""Pause before all voters are asked again, if none returned a proof."""

WAITERS_MAX: Final = 1000
"""Strong reads that may wait for a proof, as in the core. Further reads are answered as `eventual` at once."""

_READS: Final = Counter("palaver_strong_reads_total", "Strong reads by what they were answered as", ["served"])
_log = logging.getLogger("palaver.read_api.strong")


class Prover(Protocol):
    """Returns the position that a strong read must include."""

    async def position(self) -> Position | None:
        """Return the position, proved after this call; None if there is no proof in time."""
        ...


class LeaderProof:
    """Asks the write APIs of the voters; run `run` in a task."""

    def __init__(self, client: httpx.AsyncClient, voters: Sequence[Address], cell: CellId) -> None:
        """Prepare.

        Args:
            client: Its owner closes it.
            voters: Addresses of the voters' write APIs, as this region reaches them.
            cell: The cell whose positions count.
        """
        self._client = client
        self._urls = [f"http://{address}{STRONG_POSITION_PATH}" for address in voters]
        self._cell = cell
        self._waiting: list[asyncio.Future[Position]] = []
        self._changed = asyncio.Event()

    async def position(self) -> Position | None:
        """See `Prover`."""
        if len(self._waiting) >= WAITERS_MAX:
            return None
        proof: asyncio.Future[Position] = asyncio.get_running_loop().create_future()
        self._waiting.append(proof)
        self._changed.set()
        try:
            async with asyncio.timeout(PROOF_S_MAX):
                return await proof
        except TimeoutError:
            return None

    async def run(self) -> None:
        """Request proofs for the waiting reads, one after the other, until cancelled."""
        while True:
            await self._changed.wait()
            self._changed.clear()
            asking = self._take_waiting()
            if not asking:
                continue
            position = await self._ask_all()
            if position is not None:
                for proof in asking:
                    if not proof.done():
                        proof.set_result(position)
                continue
            await asyncio.sleep(PAUSE_S)
            self._waiting = asking + self._waiting
            self._changed.set()

    def _take_waiting(self) -> list[asyncio.Future[Position]]:
        waiting, self._waiting = self._waiting, []
        return [proof for proof in waiting if not proof.done()]

    async def _ask_all(self) -> Position | None:
        async with asyncio.TaskGroup() as group:
            asked = [group.create_task(self._ask(url)) for url in self._urls]
            for answered in asyncio.as_completed(asked):
                position = await answered
                if position is not None:
                    for other in asked:
                        other.cancel()
                    return position
        return None

    async def _ask(self, url: str) -> Position | None:
        try:
            async with asyncio.timeout(ATTEMPT_S_MAX):
                answer = await self._client.get(url)
                if answer.status_code != HTTPStatus.OK:
                    return None
                cell, position = decode_token(answer.json()["position"])
        except Exception as error:  # noqa: BLE001 - a failed request is no proof, and must not end the process
            _log.debug("no proof", extra={"url": url, "reason": f"{type(error).__name__}: {error}"})
            return None
        return position if cell == self._cell else None


def count_strong_read(served: str) -> None:
    """Count a strong read by the level of its answer."""
    _READS.labels(served).inc()


def leader_client() -> httpx.AsyncClient:
    """Return a client for `LeaderProof`. It ignores proxy settings, because it connects inside the deployment."""
    return httpx.AsyncClient(timeout=ATTEMPT_S_MAX, transport=PlainTransport(), trust_env=False)

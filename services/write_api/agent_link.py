"""Sends the write API's reports and queries to the agent of its own region, on the agent's internal port.

Decides that the report of a cancelled quorum wait is repeated until the agent confirms it, because no other process
detects the cancellation (rule 7, ADR 0020). Does not know how the agent reacts.
"""

import asyncio
import logging
from http import HTTPStatus
from typing import Final, Protocol

import httpx
from prometheus_client import Counter

from regions.identity import Epoch
from regions.plain_http import PlainTransport
from services.api.leader_port import CANCELLED_WAIT_PATH, CURRENT_PATH

ANSWER_S_MAX: Final = 1.0
"""The agent runs on this machine. At most it queries etcd, which takes a round trip between regions."""

REPEAT_S: Final = 0.2
"""Pause before a report is repeated. An agent that was killed runs again within seconds."""

_CANCELLED_WAITS: Final = Counter("palaver_ledger_waits_cut_short_total", "Commits that came back before their quorum")
_log = logging.getLogger("palaver.write_api.agent")


class Verifier(Protocol):
    """Proves that this region leads."""

    async def is_current(self) -> bool:
        """Whether this region leads and accepts writes, by a read of etcd that begins after this call (rule 10)."""
        ...


class AgentLink:
    """Client of the agent. Run `run` in a task."""

    def __init__(self, client: httpx.AsyncClient) -> None:
        """Prepare. `agent_client` creates the client."""
        self._client = client
        self._cancelled_epoch: Epoch = 0
        self._confirmed_epoch: Epoch = 0
        self._pending = asyncio.Event()

    def quorum_wait_cancelled(self, epoch: Epoch) -> None:
        """Report that a quorum wait of this epoch was cancelled. Earlier epochs are over and need no report."""
        _CANCELLED_WAITS.inc()
        if epoch > self._cancelled_epoch:
            self._cancelled_epoch = epoch
            self._pending.set()

    async def run(self) -> None:
        """Send the report of each such epoch until the agent confirms it; run until cancelled."""
        while True:
            await self._pending.wait()
            self._pending.clear()
            while self._confirmed_epoch < self._cancelled_epoch:
                epoch = self._cancelled_epoch
                status = await self._post(CANCELLED_WAIT_PATH, {"epoch": epoch})
                if status is not None and status[0] == HTTPStatus.OK:
                    _log.info("the agent confirmed a cancelled quorum wait", extra={"spent_epoch": epoch})
                    self._confirmed_epoch = epoch
                else:
                    answer = "nothing" if status is None else f"{status[0]}: {status[1].get('detail')}"
                    _log.debug("the agent did not confirm a cancelled quorum wait", extra={"answer": answer})
                    await asyncio.sleep(REPEAT_S)

    async def is_current(self) -> bool:
        """See `Verifier`. Also False if the agent does not answer in time."""
        answer = await self._post(CURRENT_PATH, {})
        return answer is not None and answer[0] == HTTPStatus.OK and answer[1].get("current") is True

    async def _post(self, path: str, document: dict[str, int]) -> tuple[int, dict[str, object]] | None:
        """Return status and document of an answer, or None if none arrives in time."""
        try:
            async with asyncio.timeout(ANSWER_S_MAX):
                answer = await self._client.post(path, json=document)
                return answer.status_code, answer.json()
        except Exception as error:  # noqa: BLE001 - callers treat every failure as no answer
            _log.debug("the agent does not answer", extra={"reason": f"{type(error).__name__}: {error}"})
            return None


def agent_client(address: str, secret: str) -> httpx.AsyncClient:
    """Return a client of the agent's internal port, with the secret of the agents."""
    headers = {"authorization": f"Bearer {secret}"}
    return httpx.AsyncClient(
        base_url=f"http://{address}", headers=headers, timeout=ANSWER_S_MAX, transport=PlainTransport(), trust_env=False
    )

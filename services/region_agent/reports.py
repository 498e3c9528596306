"""Handles reports and queries of the region's write API on the internal port, authorised by the agents' secret.

Decides which reports are well-formed. The failover core decides what follows from a report.
"""

import asyncio
import hmac
import logging
from http import HTTPStatus
from typing import Any, Final

import orjson
from prometheus_client import Counter

from regions.switcher import Switcher

BODY_BYTES_MAX: Final = 256
EPOCH_MAX: Final = 2**63 - 1

CURRENT_S_MAX: Final = 0.9
"""Enough for several round trips to etcd's leader, and less than the client's time limit of one second."""

_CANCELLED_WAITS: Final = Counter(
    "palaver_agent_waits_cut_short_total", "Reports of commits that returned before their quorum"
)
_log = logging.getLogger(__name__)

Answer = tuple[int, dict[str, object]]
_UNAUTHORIZED: Final[Answer] = (HTTPStatus.UNAUTHORIZED, {"detail": "The secret of the agents is missing or wrong."})


class ReportHandler:
    """Handles the requests of the write API."""

    def __init__(self, switcher: Switcher, secret: str) -> None:
        self._switcher = switcher
        self._authorization = f"Bearer {secret}".encode()

    async def quorum_wait_cancelled(self, authorization: bytes, body: bytes) -> Answer:
        """Accept the report `{"epoch": n}`: a commit in this epoch returned before its quorum (rule 7). Idempotent.

        200: the core has the report. 400: the report is invalid. 401: the secret is wrong. 503: the core does not run
        yet; the client repeats the report.
        """
        if not self._is_known(authorization):
            return _UNAUTHORIZED
        try:
            epoch = _parse(body)
        except (ValueError, KeyError, TypeError) as error:
            return HTTPStatus.BAD_REQUEST, {"detail": f"The report is invalid: {error}"}
        if not self._switcher.report_cancelled_wait(epoch):
            return HTTPStatus.SERVICE_UNAVAILABLE, {"detail": "The agent has no ledger, or is still starting."}
        _CANCELLED_WAITS.inc()
        _log.warning("the write API reports that a commit in epoch %d returned before its quorum", epoch)
        return HTTPStatus.OK, {"heard": True}

    async def current(self, authorization: bytes, body: bytes) -> Answer:
        """Return whether this region leads and accepts writes, verified by a read of etcd that begins now (rule 10).

        200: `{"current": …}`, also false if etcd does not answer in time. 401: the secret is wrong.
        """
        del body
        if not self._is_known(authorization):
            return _UNAUTHORIZED
        try:
            async with asyncio.timeout(CURRENT_S_MAX):
                return HTTPStatus.OK, {"current": await self._switcher.is_current()}
        except TimeoutError:
            return HTTPStatus.OK, {"current": False}

    def _is_known(self, authorization: bytes) -> bool:
        return hmac.compare_digest(authorization, self._authorization)


def _parse(body: bytes) -> int:
    if len(body) > BODY_BYTES_MAX:
        raise ValueError(f"more than {BODY_BYTES_MAX} bytes")
    fields: dict[str, Any] = orjson.loads(body)
    epoch = fields["epoch"]
    if isinstance(epoch, bool) or not isinstance(epoch, int) or not 0 < epoch <= EPOCH_MAX:
        raise ValueError("`epoch` is a positive number")
    return epoch

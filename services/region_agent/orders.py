"""Handles operators' orders on the internal port, authorised by the agents' secret.

Decides which orders are well-formed. The failover core decides whether an order can be executed.
"""

import hmac
import logging
from http import HTTPStatus
from typing import Any, Final, get_args

import orjson

from regions.agent import RegionAgent
from regions.failover.events import OrderKind
from regions.identity import InvalidName, RegionName, parse_region_name
from regions.switcher import OrderRefused

PATH: Final = "/order"
BODY_BYTES_MAX: Final = 4096
BY_CHARS_MAX: Final = 200

WITHOUT_REGION: Final = ("pause", "resume")

_log = logging.getLogger(__name__)


class OrderHandler:
    """Handles requests with operators' orders."""

    def __init__(self, agent: RegionAgent, secret: str) -> None:
        self._agent = agent
        self._authorization = f"Bearer {secret}".encode()

    async def answer(self, authorization: bytes, body: bytes) -> tuple[int, dict[str, object]]:
        """Execute an order; return the status and the JSON of the response.

        200: the order is executed, now or earlier. 400: the order is invalid. 401: the secret is wrong. 409: the core
        refuses the order; ``detail`` is the reason.
        """
        if not hmac.compare_digest(authorization, self._authorization):
            return HTTPStatus.UNAUTHORIZED, {"detail": "The secret of the agents is missing or wrong."}
        try:
            kind, region, by = _parse(body)
        except (ValueError, KeyError, TypeError, InvalidName) as error:
            return HTTPStatus.BAD_REQUEST, {"detail": f"The order is invalid: {error}"}
        try:
            await self._agent.switcher.order(kind, region, by)
        except OrderRefused as error:
            _log.warning("order refused: %s %s: %s: %s", kind, region or "", by, error)
            return HTTPStatus.CONFLICT, {"detail": str(error)}
        _log.info("order done: %s %s: %s", kind, region or "", by)
        return HTTPStatus.OK, {"done": True}


def _parse(body: bytes) -> tuple[OrderKind, RegionName | None, str]:
    if len(body) > BODY_BYTES_MAX:
        raise ValueError(f"more than {BODY_BYTES_MAX} bytes")
    fields: dict[str, Any] = orjson.loads(body)
    kind, region, by = fields["kind"], fields.get("region"), fields["by"]
    if kind not in get_args(OrderKind):
        raise ValueError(f"unknown kind {kind!r}")
    if not isinstance(by, str) or not 0 < len(by) <= BY_CHARS_MAX:
        raise ValueError(f"`by` has 1 to {BY_CHARS_MAX} characters")
    if (region is None) != (kind in WITHOUT_REGION):
        raise ValueError(f"{kind} {'takes no' if kind in WITHOUT_REGION else 'needs a'} region")
    return kind, None if region is None else parse_region_name(region), by

"""Handles operators' orders on dead letters on the internal port, authorised by the token of the change streams.

Decides which orders are well-formed. `sync.dead_letter_orders` carries them out.
"""

import hmac
from http import HTTPStatus
from typing import Any, Final, cast

import orjson

from services.view.cache import Invalidation
from sync.apply import VIEW_ERRORS, ViewNotConnected
from sync.dead_letter_orders import IDS_MAX, DeadLetterOrders, UnknownLetters

PATH: Final = "/deadletters"
BY_CHARS_MAX: Final = 200
ID_MAX: Final = 2**63 - 1


class DeadLetterHandler:
    """Handles requests with orders on dead letters."""

    def __init__(self, orders: DeadLetterOrders[Invalidation], token: str) -> None:
        self._orders = orders
        self._authorization = f"Bearer {token}".encode()

    async def answer(self, authorization: bytes, body: bytes) -> tuple[int, dict[str, object]]:
        """Carry out an order; return the status and the JSON of the response.

        200: done. 400: the order is invalid. 401: the token is wrong. 404: a letter does not exist, and nothing was
        done. 503: the view cannot be reached; letters before it may be done.
        """
        if not hmac.compare_digest(authorization, self._authorization):
            return HTTPStatus.UNAUTHORIZED, {"detail": "The token of the change streams is missing or wrong."}
        try:
            fields = cast("dict[str, Any]", orjson.loads(body))
            return HTTPStatus.OK, await self._execute(fields)
        except UnknownLetters as error:
            return HTTPStatus.NOT_FOUND, {"detail": str(error)}
        except (ViewNotConnected, *VIEW_ERRORS) as error:
            return HTTPStatus.SERVICE_UNAVAILABLE, {"detail": f"the view cannot be reached: {error}"}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            return HTTPStatus.BAD_REQUEST, {"detail": f"The order is invalid: {error!r}"}

    async def _execute(self, fields: dict[str, Any]) -> dict[str, object]:
        match fields["kind"]:
            case "list":
                return {"letters": await self._orders.page(_id(fields["after"]))}
            case "show":
                return {"letter": await self._orders.show(_id(fields["id"]))}
            case "retry":
                return {"letters": await self._orders.retry(_ids(fields["ids"]))}
            case "discard":
                return {"discarded": await self._orders.discard(_ids(fields["ids"]), _by(fields["by"]))}
            case kind:
                raise ValueError(f"unknown kind {kind!r}")


def _id(value: object) -> int:
    if type(value) is not int or not 0 <= value <= ID_MAX:
        raise ValueError(f"{value!r} is no id")
    return value


def _ids(value: object) -> list[int]:
    found = [_id(one) for one in cast("list[object]", value)] if isinstance(value, list) else []
    if not 0 < len(found) <= IDS_MAX:
        raise ValueError(f"`ids` has 1 to {IDS_MAX} ids")
    return found


def _by(value: object) -> str:
    if not isinstance(value, str) or not 0 < len(value) <= BY_CHARS_MAX:
        raise ValueError(f"`by` has 1 to {BY_CHARS_MAX} characters")
    return value

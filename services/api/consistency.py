"""Parses and formats the consistency headers of a read: `Palaver-Consistency` and `Palaver-Position`.

Request: `eventual` (the default), `session` (with `Palaver-Position: <token>`; the token alone means session as well),
`bounded=<seconds>`, `strong`. Response: `<served>; asked=<level>; staleness-ms=<n>`. `served` is the level that the
response has, so a client can see whether it got the level that it asked for.
"""

import re
from dataclasses import dataclass
from typing import Final, Literal

from regions.identity import CellId
from regions.position import InvalidPosition, Position, decode_token
from services.api.problems import Problem, invalid

Level = Literal["eventual", "session", "bounded", "strong"]

CONSISTENCY_HEADER: Final = b"palaver-consistency"
POSITION_HEADER: Final = b"palaver-position"
# The longest level and the longest token (a cell of 31 characters, an epoch of 19, an LSN of 16) fit with room.
CONSISTENCY_BYTES_MAX: Final = 32
POSITION_BYTES_MAX: Final = 96
_BOUNDED: Final = re.compile(rb"bounded=([0-9]{1,6}(?:\.[0-9]{1,3})?)")


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestedConsistency:
    """The consistency that a request asks for.

    Attributes:
        level: The requested level.
        position: The position that a session read must include.
        staleness_ms_max: The limit of `bounded`, in milliseconds.
    """

    level: Level = "eventual"
    position: Position | None = None
    staleness_ms_max: float | None = None


EVENTUAL: Final = RequestedConsistency()


def parse_consistency(consistency: bytes | None, token: bytes | None, cell: CellId) -> RequestedConsistency:
    """Parse the two headers of a request.

    Raises:
        Problem: `invalid-request` for an unknown level, `invalid-position` for a token that is malformed or foreign.
    """
    position = None if token is None else _parse_position(token, cell)
    match consistency:
        case None:
            return EVENTUAL if position is None else RequestedConsistency(level="session", position=position)
        case b"eventual":
            return EVENTUAL
        case b"strong":
            return RequestedConsistency(level="strong")
        case b"session":
            if position is None:
                raise invalid("Palaver-Position", "must come with Palaver-Consistency: session")
            return RequestedConsistency(level="session", position=position)
        case _:
            match_ = _BOUNDED.fullmatch(consistency) if len(consistency) <= CONSISTENCY_BYTES_MAX else None
            if match_ is None:
                raise invalid("Palaver-Consistency", "must be eventual, session, strong or bounded=<seconds>")
            return RequestedConsistency(level="bounded", staleness_ms_max=float(match_[1]) * 1000)


def served_header(served: str, asked: str, staleness_ms: float | None) -> bytes:
    """Return the value of `Palaver-Consistency` of an answer."""
    staleness = b"unknown" if staleness_ms is None else b"%d" % max(0, staleness_ms)
    return b"%b; asked=%b; staleness-ms=%b" % (served.encode(), asked.encode(), staleness)


def _parse_position(token: bytes, cell: CellId) -> Position:
    try:
        if len(token) > POSITION_BYTES_MAX:
            raise InvalidPosition("too long")  # noqa: TRY301 - one answer for every malformed token
        token_cell, position = decode_token(token.decode("ascii"))
    except (InvalidPosition, UnicodeDecodeError):
        raise Problem("invalid-position", "Send a Palaver-Position as an answer gave it.") from None
    if token_cell != cell:
        raise Problem("invalid-position", f"The position is of cell {token_cell}, this site is of {cell}.")
    return position

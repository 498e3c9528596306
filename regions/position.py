"""Defines positions in a cell's WAL, and the consistency tokens that carry them to clients and back.

Decides the order of two positions: by epoch first, then by LSN (failover.md, rule 3). Does not use timelines: two
promotions can take the same timeline number with different histories, but an epoch never repeats.
"""

import re
from dataclasses import dataclass

from regions.identity import CellId, Epoch, InvalidName, parse_cell_id

LSN_MAX = 2**64 - 1
"""PostgreSQL's ``pg_lsn`` is an unsigned 64-bit integer."""

EPOCH_MAX = 2**63 - 1
"""Epochs are stored as ``bigint``."""

_LSN = re.compile(r"([0-9A-Fa-f]{1,8})/([0-9A-Fa-f]{1,8})", re.ASCII)
_TOKEN = re.compile(r"([a-z][a-z0-9-]{0,30})\.(0|[1-9][0-9]{0,18})\.([0-9A-F]{16})", re.ASCII)


class InvalidPosition(ValueError):
    """A text is neither a valid token nor a valid LSN."""


@dataclass(frozen=True, slots=True, order=True)
class Position:
    """A position in a cell's WAL.

    Attributes:
        epoch: Epoch under which the WAL was written, 0 before the first.
        lsn: LSN of the end of a commit record, unsigned 64 bits.
    """

    epoch: Epoch
    lsn: int

    def __post_init__(self) -> None:
        assert 0 <= self.epoch <= EPOCH_MAX, f"epoch out of range: {self.epoch}"
        assert 0 <= self.lsn <= LSN_MAX, f"LSN out of range: {self.lsn}"


ZERO = Position(0, 0)
"""The position of a consumer that has received nothing."""


def parse_lsn(text: str) -> int:
    """Return the integer of PostgreSQL's text form, such as ``0/16B3748``.

    Raises:
        InvalidPosition: ``text`` is not two hexadecimal halves.
    """
    match = _LSN.fullmatch(text)
    if match is None:
        raise InvalidPosition(f"{text!r} is no LSN")
    return (int(match[1], 16) << 32) | int(match[2], 16)


def format_lsn(lsn: int) -> str:
    """Return PostgreSQL's text form of ``lsn``."""
    assert 0 <= lsn <= LSN_MAX, f"LSN out of range: {lsn}"
    return f"{lsn >> 32:X}/{lsn & 0xFFFFFFFF:X}"


def encode_token(cell: CellId, position: Position) -> str:
    """Return the consistency token of ``position``, such as ``main.1.00000000016B3748``."""
    return f"{cell}.{position.epoch}.{position.lsn:016X}"


def decode_token(text: str) -> tuple[CellId, Position]:
    """Return the cell and the position of a consistency token.

    It accepts only the form that ``encode_token`` writes, so equal positions have equal tokens.

    Raises:
        InvalidPosition: ``text`` is not a valid token.
    """
    match = _TOKEN.fullmatch(text)
    if match is None or int(match[2]) > EPOCH_MAX:
        raise InvalidPosition("not a position token: expected CELL.EPOCH.LSN")
    try:
        cell = parse_cell_id(match[1])
    except InvalidName as error:
        raise InvalidPosition(str(error)) from error
    return cell, Position(int(match[2]), int(match[3], 16))

"""The record that says who may write in a cell, and its JSON form.

Decides what a valid record is. Refuses to know where it is stored (``coordination.py``) and when it
should change (``failover``).
"""

import json
from dataclasses import asdict, dataclass
from typing import Any, Literal, Protocol, Self, cast, get_args
from uuid import UUID

from regions.identity import Epoch, RegionName, parse_region_name

Phase = Literal["bootstrapping", "establishing", "serving"]


class CorruptRecord(ValueError):
    """What is stored under the leadership key is no leadership."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Leadership:
    """Who may write in a cell.

    Attributes:
        epoch: Generation, from 1; strictly increasing.
        leader: The region that may write under this epoch.
        phase: ``serving`` is the only one in which it does.
        fence_id: Identity of the epoch's fence row in the ledger; set when serving.
        reason: Why this epoch was begun, one line for people.
        since: When the record was written, RFC 3339, for people: nothing is ordered by it.
    """

    epoch: Epoch
    leader: RegionName
    phase: Phase
    fence_id: UUID | None
    reason: str
    since: str

    def __post_init__(self) -> None:
        assert self.epoch >= 1, f"epoch out of range: {self.epoch}"
        assert (self.phase != "serving") or (self.fence_id is not None), "serving without a fence row"

    def to_json(self) -> bytes:
        """Return the record as it is stored."""
        fields = asdict(self)
        fields["fence_id"] = None if self.fence_id is None else str(self.fence_id)
        return json.dumps(fields, separators=(",", ":")).encode()

    @classmethod
    def from_json(cls, stored: bytes) -> Self:
        """Return the record in ``stored``; fields that it does not know are left alone.

        Raises:
            CorruptRecord: It is none.
        """
        try:
            fields = cast("dict[str, Any]", json.loads(stored))
            phase, fence = fields["phase"], fields["fence_id"]
            if phase not in get_args(Phase):
                raise CorruptRecord(f"leadership record has unknown phase {phase!r}")
            return cls(
                epoch=int(fields["epoch"]),
                leader=parse_region_name(fields["leader"]),
                phase=phase,
                fence_id=None if fence is None else UUID(fence),
                reason=str(fields["reason"]),
                since=str(fields["since"]),
            )
        except (ValueError, KeyError, TypeError, AssertionError) as error:
            raise CorruptRecord(f"leadership record cannot be read: {error!r}") from error


class LeadershipSource(Protocol):
    """Whoever knows the latest leadership heard of."""

    @property
    def current(self) -> Leadership | None:
        """The latest leadership; None before the first."""
        ...

    async def next_after(self, known: Leadership | None) -> Leadership:
        """Wait until the latest leadership is another than ``known`` and return it."""
        ...

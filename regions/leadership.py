"""Defines the leadership record of a cell, which states the region that may write, and its JSON form.

Decides which records are valid. Does not know where the record is stored (``coordination.py``) and when it should
change (``failover``).
"""

import json
from dataclasses import asdict, dataclass
from typing import Any, Literal, Protocol, Self, cast, get_args
from uuid import UUID

from regions.identity import Epoch, RegionName, parse_region_name
from regions.position import Position

Phase = Literal["bootstrapping", "recruiting", "promoting", "establishing", "serving"]
"""Progress of an epoch. ``bootstrapping`` is the first epoch of a cell. Every later epoch is ``recruiting`` while the
candidate collects votes, ``promoting`` when a member is chosen, and then ``serving``. This version writes no record in
the phase ``establishing``; it acts on one as on ``promoting``."""


ANCESTRY_MAX = 32
"""Number of epochs in an ancestry. A member that missed more epochs is copied again instead of rewound."""


class CorruptRecord(ValueError):
    """The value of the leadership key cannot be parsed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Succession:
    """The next epoch, reserved for a region: no other region ever leads it.

    Attributes:
        region: The region that leads the next epoch after the leader has released its own.
        reason: Why the next epoch will begin, one line for people.
    """

    region: RegionName
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Leadership:
    """The leadership record: the region that may write in a cell.

    Attributes:
        epoch: Term of the leader, from 1; strictly increasing.
        leader: The region that acts under this epoch: the candidate while it recruits, then the chosen leader.
        phase: Progress of the epoch; the leader is known to write only in ``serving``.
        fence_id: Id of the epoch's fence row in the ledger; set in ``serving``.
        reason: Why this epoch was begun, one line for people.
        since: When the record was written, RFC 3339, for people: nothing is ordered by it.
        voters: The regions whose members form the quorum, in order of preference; empty: those of the topology.
        joining: Regions that copy the ledger to become voters; they do not vote or count in the quorum yet.
        drained: Voters that do not lead while another voter can.
        ancestry: The epochs whose fence rows the leader's ledger had when it was chosen, ascending, the newest
            ``ANCESTRY_MAX``. Two ledgers that share an epoch are identical up to its fence row.
        target: The region that an operator wants as leader of this epoch; it wins ties.
        automatic: Whether a suspicion may begin an epoch; False while an operator has paused automatic failover.
        succession: The region that leads the next epoch; this epoch continues until the leader releases it. None: any
            voter may begin the next epoch.
        handed_over_at: Position at which the previous leader released the leadership; the leader has at least this
            position. None if the leader was chosen by votes.
    """

    epoch: Epoch
    leader: RegionName
    phase: Phase
    fence_id: UUID | None
    reason: str
    since: str
    voters: tuple[RegionName, ...] = ()
    joining: tuple[RegionName, ...] = ()
    drained: tuple[RegionName, ...] = ()
    ancestry: tuple[Epoch, ...] = ()
    target: RegionName | None = None
    automatic: bool = True
    succession: Succession | None = None
    handed_over_at: Position | None = None

    def __post_init__(self) -> None:
        assert self.epoch >= 1, f"epoch out of range: {self.epoch}"
        assert (self.phase != "serving") or (self.fence_id is not None), "serving without a fence row"
        assert len(self.ancestry) <= ANCESTRY_MAX, "ancestry beyond its bound"

    def to_json(self) -> bytes:
        """Return the JSON that is stored in etcd."""
        fields = asdict(self)
        fields["fence_id"] = None if self.fence_id is None else str(self.fence_id)
        at = self.handed_over_at
        fields["handed_over_at"] = None if at is None else [at.epoch, at.lsn]
        return json.dumps(fields, separators=(",", ":")).encode()

    @classmethod
    def from_json(cls, stored: bytes) -> Self:
        """Return the record in ``stored``; unknown fields are ignored.

        Raises:
            CorruptRecord: The value cannot be parsed.
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
                voters=_regions(fields, "voters"),
                joining=_regions(fields, "joining"),
                drained=_regions(fields, "drained"),
                ancestry=tuple(int(epoch) for epoch in fields.get("ancestry", ())),
                target=None if fields.get("target") is None else parse_region_name(fields["target"]),
                automatic=bool(fields.get("automatic", True)),
                succession=_succession(fields.get("succession")),
                handed_over_at=_position(fields.get("handed_over_at")),
            )
        except (ValueError, KeyError, TypeError, AssertionError) as error:
            raise CorruptRecord(f"leadership record cannot be read: {error!r}") from error


def _regions(fields: dict[str, Any], name: str) -> tuple[RegionName, ...]:
    return tuple(parse_region_name(region) for region in fields.get(name, ()))


def _succession(fields: dict[str, Any] | None) -> Succession | None:
    if fields is None:
        return None
    return Succession(region=parse_region_name(fields["region"]), reason=str(fields["reason"]))


def _position(fields: list[int] | None) -> Position | None:
    if fields is None:
        return None
    epoch, lsn = fields
    return Position(int(epoch), int(lsn))


class LeadershipSource(Protocol):
    """A source of the latest known leadership."""

    @property
    def current(self) -> Leadership | None:
        """The latest known leadership; None if there is none yet."""
        ...

    async def next_after(self, known: Leadership | None) -> Leadership:
        """Wait until the latest leadership differs from ``known``, and return it."""
        ...

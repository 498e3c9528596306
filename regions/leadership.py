"""The record that says who may write in a cell, and its JSON form.

Decides what a valid record is. Refuses to know where it is stored (``coordination.py``) and when it
should change (``failover``).
"""

import json
from dataclasses import asdict, dataclass
from typing import Any, Literal, Protocol, Self, cast, get_args
from uuid import UUID

from regions.identity import Epoch, RegionName, parse_region_name
from regions.position import Position

Phase = Literal["bootstrapping", "recruiting", "promoting", "establishing", "serving"]
"""How far an epoch has come: ``bootstrapping`` is the first epoch of a cell; every later one is ``recruiting`` while
positions are collected, ``promoting`` when a member is chosen, and ``serving``. This version writes no record in the
phase ``establishing``; it acts on one as on ``promoting``."""


ANCESTRY_MAX = 32
"""Epochs that a record remembers. A member that has been away for longer is copied anew instead of rewound."""


class CorruptRecord(ValueError):
    """What is stored under the leadership key is no leadership."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Succession:
    """The next epoch, promised to a region: nobody else ever leads it.

    Attributes:
        region: Whose it is, once the leader has given up its own.
        reason: Why it will begin, one line for people.
    """

    region: RegionName
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Leadership:
    """Who may write in a cell.

    Attributes:
        epoch: Generation, from 1; strictly increasing.
        leader: The region that acts under this epoch: the candidate while it recruits, then the chosen one.
        phase: ``serving`` is the only one in which it is known to write.
        fence_id: Identity of the epoch's fence row in the ledger; set when serving.
        reason: Why this epoch was begun, one line for people.
        since: When the record was written, RFC 3339, for people: nothing is ordered by it.
        voters: The regions whose members make up the quorum, in order of preference; empty: those of the topology.
        joining: Regions that copy the ledger to become voters; they count for nothing yet.
        drained: Voters that do not lead when another can.
        ancestry: The epochs whose fence rows the leader's ledger had when it was chosen, ascending, the newest
            ``ANCESTRY_MAX``. Two ledgers that share an epoch here are the same up to its fence row.
        target: The region that an operator wants as leader of this epoch; it wins ties.
        automatic: Whether a suspicion may begin an epoch; False while an operator has paused it.
        succession: Whose the next epoch is; until the leader says that it has given up, this one goes on. None: the
            next is whoever's who begins it.
        handed_over_at: Where the leader of the epoch before has given up: whoever leads has at least that. None when
            it was chosen by votes.
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
        """Return the record as it is stored."""
        fields = asdict(self)
        fields["fence_id"] = None if self.fence_id is None else str(self.fence_id)
        at = self.handed_over_at
        fields["handed_over_at"] = None if at is None else [at.epoch, at.lsn]
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
    """Whoever knows the latest leadership heard of."""

    @property
    def current(self) -> Leadership | None:
        """The latest leadership; None before the first."""
        ...

    async def next_after(self, known: Leadership | None) -> Leadership:
        """Wait until the latest leadership is another than ``known`` and return it."""
        ...

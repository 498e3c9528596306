"""Defines the claim of an answer: the position up to which it includes every change, and the time of that state.

The source of an answer determines its claim. An answer from the view claims what the view was known to include before
the read began (`Freshness.viewed`). A cached page claims what the invalidation channel has announced
(`Freshness.announced`): an invalidation that has not arrived yet may concern the page, however far the view is. Both
claims only increase while they are valid, so a cached page claims the greater of its claim at the read and the
announcements since. No I/O, no clock.
"""

from dataclasses import dataclass
from typing import Final

from regions.position import ZERO, Position


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """How current an answer is.

    Attributes:
        position: The answer includes every change up to this position.
        fresh_s: It includes every change that the ledger had at this time, in monotonic seconds of this process; None
            if the time is not known.
    """

    position: Position
    fresh_s: float | None

    def or_later(self, other: "Claim | None") -> "Claim":
        """Return the greater claim, field by field, for an answer for which both claims hold."""
        if other is None:
            return self
        return Claim(position=max(self.position, other.position), fresh_s=later(self.fresh_s, other.fresh_s))


NOTHING: Final = Claim(position=ZERO, fresh_s=None)


def later(one: float | None, other: float | None) -> float | None:
    """Return the later of two times; None is an unknown time."""
    if one is None or other is None:
        return other if one is None else one
    return max(one, other)

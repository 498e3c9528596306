"""What an answer says of itself: up to which position it has everything, and as of when.

A claim belongs to the source of the answer. What was read from the view claims what the view was known to have before
the read began (`Freshness.viewed`). What was kept claims what the invalidation channel has said (`Freshness.heard`):
an invalidation that did not arrive may be missing, whatever the view has. Both only grow while they hold, so a kept
page may claim the greater of what it was read with and what was heard since. No I/O, no clock.
"""

from dataclasses import dataclass
from typing import Final

from regions.position import ZERO, Position


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """What an answer has.

    Attributes:
        position: Everything up to here.
        fresh_s: Everything that the ledger had at this time, in monotonic seconds of this process; None: not known.
    """

    position: Position
    fresh_s: float | None

    def or_later(self, other: "Claim | None") -> "Claim":
        """Return what can be claimed by an answer for which both hold."""
        if other is None:
            return self
        return Claim(position=max(self.position, other.position), fresh_s=later(self.fresh_s, other.fresh_s))


NOTHING: Final = Claim(position=ZERO, fresh_s=None)


def later(one: float | None, other: float | None) -> float | None:
    """Return the later of two times of which each may be unknown."""
    if one is None or other is None:
        return other if one is None else one
    return max(one, other)

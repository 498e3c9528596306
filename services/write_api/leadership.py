"""Whether this region may write now, and under which epoch: the first of two checks, the fence row is the second."""

from collections.abc import Callable
from typing import Final

from regions.coordination import Leadership
from regions.identity import Epoch, RegionName
from services.api.problems import Problem, unavailable

EPOCH_HEADER: Final = b"palaver-epoch"
ATTEMPT_HEADER: Final = b"x-envoy-attempt-count"


class LeadershipGuard:
    """Compares what the edge was told, what this process was told, and where it runs."""

    def __init__(self, current: Callable[[], Leadership | None], region: RegionName) -> None:
        self._current = current
        self._region = region

    @property
    def epoch(self) -> Epoch | None:
        """The epoch this process knows of, or None before the first."""
        leadership = self._current()
        return None if leadership is None else leadership.epoch

    @property
    def serves(self) -> bool:
        """Whether this region leads and accepts writes."""
        leadership = self._current()
        return leadership is not None and leadership.leader == self._region and leadership.phase == "serving"

    def require(self, claimed: bytes | None, attempt: bytes | None) -> Epoch:
        """Return the epoch to write under.

        An edge chooses the route, and with it the epoch, once a request: its repetitions carry the epoch of
        the first attempt. A repetition that was sent under an earlier epoch and finds the leader of a later
        one is what the repetition is for, and only requests with an Idempotency-Key are repeated.

        Args:
            claimed: The `palaver-epoch` header; None for a call that did not come through the edge.
            attempt: The `x-envoy-attempt-count` header, which the edge sets itself; None is the first.

        Raises:
            Problem: `stale-epoch`: this region does not lead, or the edge sent it for another epoch.
        """
        leadership = self._current()
        if leadership is None:
            raise stale_epoch("This region has not heard yet who leads.")
        if not self.serves:
            raise stale_epoch(f"Epoch {leadership.epoch} is led by {leadership.leader} (phase {leadership.phase}).")
        if claimed is None or claimed == b"%d" % leadership.epoch:
            return leadership.epoch
        is_repetition = attempt not in (None, b"1")
        if not (is_repetition and claimed.isdigit() and int(claimed) < leadership.epoch):
            raise stale_epoch(f"The request was routed for another epoch than {leadership.epoch}.")
        return leadership.epoch


def stale_epoch(detail: str) -> Problem:
    """Return the problem that makes the edge and keyed clients try again."""
    return unavailable("stale-epoch", detail)

"""Waits until a read can be served at the consistency level that it asks for, and decides the level it gets."""

import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from regions.identity import CellId
from regions.position import ZERO, Position
from services.api.answers import Header
from services.api.consistency import EVENTUAL, Level, RequestedConsistency, parse_consistency
from services.api.problems import Problem, unavailable
from services.read_api.claim import Claim
from services.read_api.freshness import Freshness
from services.read_api.strong import Prover, count_strong_read
from services.telemetry.middleware import Scope


@dataclass(frozen=True, slots=True, kw_only=True)
class GrantedConsistency:
    """The level at which a read is served, and what its answer must include.

    Attributes:
        level: The level that the answer has.
        asked: The level that the request asked for.
        at_least: The answer must include this position; ZERO means no requirement.
        fresh_since_s: The answer must include every change that the ledger had at this time, in monotonic seconds; None
            means no requirement.
    """

    level: Level
    asked: Level
    at_least: Position = ZERO
    fresh_since_s: float | None = None

    def allows(self, claim: Claim) -> bool:
        """Whether an answer with this claim meets the requirements."""
        if claim.position < self.at_least:
            return False
        return self.fresh_since_s is None or (claim.fresh_s is not None and claim.fresh_s >= self.fresh_since_s)


def requested_consistency(scope: Scope, cell: CellId) -> RequestedConsistency:
    """Parse the two headers of a request; a request without them is answered without parsing."""
    consistency = token = None
    for name, value in scope["headers"]:
        if name == b"palaver-consistency":
            consistency = value
        elif name == b"palaver-position":
            token = value
    if consistency is None and token is None:
        return EVENTUAL
    return parse_consistency(consistency, token, cell)


async def grant(wanted: RequestedConsistency, freshness: Freshness, prover: Prover) -> GrantedConsistency:
    """Wait, up to a limit, until a read can have its level, and return the level that it gets.

    Raises:
        Problem: `too-stale` if the view is older than `bounded` allows.
    """
    if wanted.level == "bounded":
        assert wanted.staleness_ms_max is not None
        staleness_ms = freshness.staleness_ms
        if staleness_ms is None or staleness_ms > wanted.staleness_ms_max:
            known = "unknown" if staleness_ms is None else f"{staleness_ms:.0f} ms"
            raise unavailable(
                "too-stale", f"The view's age is {known}, at most {wanted.staleness_ms_max:.0f} ms was asked."
            )
        return GrantedConsistency(
            level="bounded", asked="bounded", fresh_since_s=time.monotonic() - wanted.staleness_ms_max / 1000
        )
    if wanted.level == "session":
        assert wanted.position is not None
        reached = await freshness.wait_for(wanted.position)
        return GrantedConsistency(
            level="session" if reached else "eventual",
            asked="session",
            at_least=wanted.position if reached else ZERO,
        )
    if wanted.level == "strong":
        return await _grant_strong(freshness, prover)
    return GrantedConsistency(level="eventual", asked="eventual")


async def _grant_strong(freshness: Freshness, prover: Prover) -> GrantedConsistency:
    """Wait until the view has the position that the leader proved; without it, grant `eventual`.

    A quorum has every change that a view has (`sync/high_water.py`), so no later strong read can see less.
    """
    position = await prover.position()
    reached = position is not None and await freshness.wait_for(position)
    level: Level = "strong" if reached else "eventual"
    count_strong_read(level)
    return GrantedConsistency(
        level=level, asked="strong", at_least=position if reached and position is not None else ZERO
    )


def headers_of(granted: GrantedConsistency, freshness: Freshness, claim: Claim) -> Sequence[Header]:
    """Return the position and consistency headers of an answer with this claim."""
    return freshness.headers_of(granted.level, granted.asked, claim)


@contextmanager
def add_headers_to_problems(granted: GrantedConsistency, freshness: Freshness, claim: Claim) -> Generator[None]:
    """Add the headers of the answer to problems: a view that is behind may lack what the request asks for."""
    try:
        yield
    except Problem as problem:
        raise problem.with_headers(headers_of(granted, freshness, claim)) from problem

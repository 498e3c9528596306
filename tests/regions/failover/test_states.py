"""Tests of ``state_of`` for regions that do not lead; the transcripts in tests/scenarios show the transitions."""

from dataclasses import replace
from uuid import UUID

import pytest

from regions.failover.events import MemberState
from regions.failover.settings import DEFAULTS, CellRegions
from regions.failover.states import State, state_of
from regions.identity import RegionName
from regions.leadership import Leadership
from tests.regions.failover.facts_builder import facts_of

A, B, C, D = (RegionName(name) for name in ("us-east", "eu-west", "ap-south", "sa-east"))
SERVING = Leadership(
    epoch=2,
    leader=A,
    phase="serving",
    fence_id=UUID(int=2),
    reason="first start",
    since="",
    voters=(A, B, C),
    joining=(D,),
)
RECRUITING = replace(SERVING, phase="recruiting", fence_id=None)


@pytest.mark.parametrize(
    ("region", "record", "ledger", "state"),
    [
        (B, SERVING, None, "observing"),
        (D, SERVING, None, "observing"),
        (B, replace(SERVING, voters=(A, C)), MemberState(kind="frozen"), "observing"),
        (B, SERVING, MemberState(kind="following", epoch=2), "following"),
        (B, SERVING, MemberState(kind="following", epoch=1), "rejoining"),
        (B, RECRUITING, MemberState(kind="following", epoch=2), "freezing"),
        (D, SERVING, MemberState(kind="following", epoch=2), "following"),
        (D, RECRUITING, MemberState(kind="following", epoch=2), "following"),
        (D, RECRUITING, MemberState(kind="absent"), "rejoining"),
    ],
)
def test_the_state_of_a_region_that_does_not_lead(
    region: RegionName, record: Leadership, ledger: MemberState | None, state: State
) -> None:
    facts = facts_of(
        region=region,
        cell=CellRegions(voters=(A, B, C), regions=(A, B, C, D)),
        settings=DEFAULTS,
        ledger=ledger,
        record=record,
    )
    assert state_of(facts) == state

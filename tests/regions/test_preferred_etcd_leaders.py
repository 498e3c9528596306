"""The preferred etcd leaders: first the next candidate for the ledger, never the leader of the ledger."""

from uuid import UUID

from regions.agent import preferred_etcd_leaders
from regions.identity import RegionName
from regions.leadership import Leadership

EAST, WEST, SOUTH, VIEW = (RegionName(name) for name in ("us-east", "eu-west", "ap-south", "sa-east"))


def led_by(leader: RegionName, *, drained: tuple[RegionName, ...] = ()) -> Leadership:
    return Leadership(
        epoch=3,
        leader=leader,
        phase="serving",
        fence_id=UUID(int=3),
        reason="test",
        since="",
        voters=(EAST, WEST, SOUTH),
        drained=drained,
    )


def test_the_ledger_leader_prefers_the_other_voters_in_their_order() -> None:
    assert preferred_etcd_leaders(EAST, led_by(EAST)) == (WEST, SOUTH)
    assert preferred_etcd_leaders(SOUTH, led_by(SOUTH)) == (EAST, WEST)


def test_a_candidate_prefers_earlier_candidates_and_never_the_ledger_leader() -> None:
    assert preferred_etcd_leaders(SOUTH, led_by(EAST)) == (WEST,)
    assert preferred_etcd_leaders(WEST, led_by(EAST)) == ()


def test_a_drained_region_is_the_last_candidate() -> None:
    assert preferred_etcd_leaders(WEST, led_by(EAST, drained=(WEST,))) == (SOUTH,)
    assert preferred_etcd_leaders(SOUTH, led_by(EAST, drained=(WEST,))) == ()


def test_a_view_only_region_prefers_every_voter_except_the_ledger_leader() -> None:
    assert preferred_etcd_leaders(VIEW, led_by(EAST)) == (WEST, SOUTH)

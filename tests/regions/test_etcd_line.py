"""Where etcd is best led: with the region that would begin the next epoch, never with the one that leads the ledger."""

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


def test_the_leader_hands_it_to_the_first_candidate() -> None:
    assert preferred_etcd_leaders(EAST, led_by(EAST)) == (WEST, SOUTH)
    assert preferred_etcd_leaders(SOUTH, led_by(SOUTH)) == (EAST, WEST)


def test_a_later_candidate_hands_it_to_an_earlier_one_and_never_to_the_leader() -> None:
    assert preferred_etcd_leaders(SOUTH, led_by(EAST)) == (WEST,)
    assert preferred_etcd_leaders(WEST, led_by(EAST)) == ()


def test_a_drained_region_is_the_last_candidate() -> None:
    assert preferred_etcd_leaders(WEST, led_by(EAST, drained=(WEST,))) == (SOUTH,)
    assert preferred_etcd_leaders(SOUTH, led_by(EAST, drained=(WEST,))) == ()


def test_a_region_without_a_vote_hands_it_to_one_that_has_one() -> None:
    assert preferred_etcd_leaders(VIEW, led_by(EAST)) == (WEST, SOUTH)

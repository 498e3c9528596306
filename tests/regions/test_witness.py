"""Whoever speaks for a silent leader is heard once for each newer commit, and the leader itself is heard again."""

from regions.failover.events import Gossip
from regions.failover.heartbeats import Heartbeat
from regions.identity import CellId, RegionName
from regions.witness import Witness

MAIN, EAST = CellId("main"), RegionName("us-east")


def beat(sequence: int, commit: int, incarnation: int = 1) -> Heartbeat:
    gossip = Gossip(epoch=1, commit=commit)
    return Heartbeat(sender=EAST, incarnation=incarnation, sequence=sequence, cells=((MAIN, gossip),))


def test_a_heartbeat_is_taken_once_and_in_order() -> None:
    witness = Witness(MAIN)
    assert witness.take(beat(5, 10), now=1.0) == beat(5, 10)
    assert witness.take(beat(5, 10), now=2.0) is None
    assert witness.take(beat(4, 99), now=2.0) is None
    assert witness.alive_at[EAST] == 1.0


def test_only_a_newer_commit_is_life_and_is_told() -> None:
    witness = Witness(MAIN)
    assert witness.speak_for(EAST, 11, now=0.0) is None, "nobody speaks for somebody who was never heard"
    witness.take(beat(5, 10), now=1.0)
    witness.take(beat(6, 10), now=2.0)
    assert witness.alive_at[EAST] == 1.0
    assert witness.speak_for(EAST, 10, now=3.0) is None
    assert witness.speak_for(EAST, 11, now=3.0) == beat(7, 11)
    assert witness.speak_for(EAST, 11, now=4.0) is None
    assert witness.alive_at[EAST] == 3.0


def test_an_agent_that_was_paused_is_heard_at_once_and_a_recorded_line_is_not() -> None:
    witness = Witness(MAIN)
    witness.take(beat(5, 10), now=1.0)
    told = [witness.speak_for(EAST, commit, now=2.0) for commit in range(11, 31)]
    assert told[-1] == beat(25, 30)
    assert witness.take(beat(5, 10), now=3.0) is None
    assert witness.take(beat(6, 31), now=3.0) == beat(26, 31)


def test_an_agent_that_starts_again_is_counted_as_it_counts() -> None:
    witness = Witness(MAIN)
    witness.take(beat(5, 10), now=1.0)
    witness.speak_for(EAST, 11, now=2.0)
    assert witness.take(beat(1, 0, incarnation=2), now=3.0) == beat(1, 0, incarnation=2)
    assert witness.take(beat(9, 99), now=4.0) is None

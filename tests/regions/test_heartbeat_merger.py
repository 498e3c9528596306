"""HeartbeatMerger adds one heartbeat for each newer commit of a silent leader, and accepts the leader's later ones."""

from regions.failover.events import Gossip
from regions.failover.heartbeats import Heartbeat
from regions.heartbeat_merger import HeartbeatMerger
from regions.identity import CellId, RegionName

MAIN, EAST = CellId("main"), RegionName("us-east")


def beat(sequence: int, commit: int, incarnation: int = 1) -> Heartbeat:
    gossip = Gossip(epoch=1, commit=commit)
    return Heartbeat(sender=EAST, incarnation=incarnation, sequence=sequence, cells=((MAIN, gossip),))


def test_repeated_and_older_heartbeats_are_dropped() -> None:
    merger = HeartbeatMerger(MAIN)
    assert merger.take(beat(5, 10), now=1.0) == beat(5, 10)
    assert merger.take(beat(5, 10), now=2.0) is None
    assert merger.take(beat(4, 99), now=2.0) is None
    assert merger.alive_at[EAST] == 1.0


def test_only_a_newer_commit_counts_as_life_and_gives_a_heartbeat() -> None:
    merger = HeartbeatMerger(MAIN)
    assert merger.heartbeat_with_commit(EAST, 11, now=0.0) is None, "there is no heartbeat yet that could be extended"
    merger.take(beat(5, 10), now=1.0)
    merger.take(beat(6, 10), now=2.0)
    assert merger.alive_at[EAST] == 1.0
    assert merger.heartbeat_with_commit(EAST, 10, now=3.0) is None
    assert merger.heartbeat_with_commit(EAST, 11, now=3.0) == beat(7, 11)
    assert merger.heartbeat_with_commit(EAST, 11, now=4.0) is None
    assert merger.alive_at[EAST] == 3.0


def test_a_heartbeat_after_a_pause_is_accepted_and_a_replayed_one_is_dropped() -> None:
    merger = HeartbeatMerger(MAIN)
    merger.take(beat(5, 10), now=1.0)
    added = [merger.heartbeat_with_commit(EAST, commit, now=2.0) for commit in range(11, 31)]
    assert added[-1] == beat(25, 30)
    assert merger.take(beat(5, 10), now=3.0) is None
    assert merger.take(beat(6, 31), now=3.0) == beat(26, 31)


def test_a_restarted_agent_starts_a_new_numbering() -> None:
    merger = HeartbeatMerger(MAIN)
    merger.take(beat(5, 10), now=1.0)
    merger.heartbeat_with_commit(EAST, 11, now=2.0)
    assert merger.take(beat(1, 0, incarnation=2), now=3.0) == beat(1, 0, incarnation=2)
    assert merger.take(beat(9, 99), now=4.0) is None

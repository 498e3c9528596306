"""Specifies the simulation's model of PostgreSQL: each guarantee and each trap of failover.md is a test."""

import pytest

from tests.simulation.member_cluster import AP, EU, US, MemberCluster, keys

pytestmark = pytest.mark.simulation


def test_a_commit_is_acknowledged_when_one_of_two_standbys_has_it_on_disk() -> None:
    cluster = MemberCluster()
    outcome = cluster.write(cluster.eu, 1)
    cluster.run(0.07)
    assert outcome == []
    cluster.run(0.05)
    assert outcome == [True]
    assert keys(cluster.us) == keys(cluster.ap) == {1}


def test_a_primary_without_its_standbys_acknowledges_nothing() -> None:
    cluster = MemberCluster()
    cluster.isolate(EU)
    outcome = cluster.write(cluster.eu, 1)
    cluster.run(30)
    assert outcome == []
    assert keys(cluster.eu) == {1}


def test_a_commit_is_acknowledged_after_a_partition_heals() -> None:
    cluster = MemberCluster()
    cluster.network.cut(EU, US)
    cluster.network.cut(EU, AP)
    outcome = cluster.write(cluster.eu, 1)
    cluster.run(5)
    cluster.network.heal(EU, US)
    cluster.eu.resume_io()
    cluster.run(2)
    assert outcome == [True]


def test_a_member_acknowledges_alone_when_it_is_promoted_without_standby_names() -> None:
    # Rule 5.
    cluster = MemberCluster()
    cluster.isolate(US)
    cluster.freeze(cluster.us)
    cluster.us.promote(2)
    outcome = cluster.write(cluster.us, 1)
    assert outcome == [True]


def test_clearing_the_standby_names_releases_waiting_commits_with_success() -> None:
    # Rule 6.
    cluster = MemberCluster()
    cluster.isolate(EU)
    outcome = cluster.write(cluster.eu, 1)
    cluster.run(1)
    cluster.eu.set_standby_names((), 0)
    assert outcome == [True]
    assert keys(cluster.us) == set()


def test_stopping_ends_the_waits_without_success() -> None:
    # Rule 6: the only way to demote.
    cluster = MemberCluster()
    cluster.isolate(EU)
    outcome = cluster.write(cluster.eu, 1)
    cluster.eu.stop()
    assert outcome == [False]


def test_a_cancelled_wait_leaves_the_row_visible_on_the_primary_only() -> None:
    # Rule 7.
    cluster = MemberCluster()
    cluster.isolate(EU)
    outcome = cluster.write(cluster.eu, 1)
    before = cluster.eu.visible
    cluster.eu.cancel_waits()
    assert outcome == [False]
    assert cluster.eu.visible > before
    assert keys(cluster.us) == set()


def test_a_crash_makes_rows_visible_that_no_standby_has() -> None:
    # Rule 8.
    cluster = MemberCluster()
    cluster.isolate(EU)
    outcome = cluster.write(cluster.eu, 1)
    assert cluster.eu.visible < cluster.eu.wal.keys[1]
    cluster.eu.crash()
    cluster.eu.start_standby()
    assert outcome == [False]
    assert cluster.eu.visible >= cluster.eu.wal.keys[1]


def test_a_crash_loses_wal_that_was_not_flushed() -> None:
    cluster = MemberCluster()
    cluster.eu.hung = True
    cluster.write(cluster.eu, 1)
    cluster.run(5)
    assert keys(cluster.us) == set()  # a primary sends no WAL that it may still lose
    cluster.eu.crash()
    assert keys(cluster.eu) == set()


def test_the_receive_position_is_unknown_after_a_restart() -> None:
    # Rule 4.
    cluster = MemberCluster()
    cluster.write(cluster.eu, 1)
    cluster.run(1)
    assert cluster.us.received == len(cluster.us.wal.entries)
    cluster.us.crash()
    cluster.freeze(cluster.us)
    cluster.us.start_standby()
    assert cluster.us.received is None
    assert cluster.us.replayed == len(cluster.us.wal.entries)


def test_an_incomplete_record_is_received_and_never_replayed() -> None:
    # Rule 4.
    cluster = MemberCluster()
    cluster.eu.write_partial_record()
    cluster.run(1)
    cluster.eu.crash()
    assert not cluster.us.torn  # its WAL receiver may still receive the rest
    cluster.freeze(cluster.us)
    assert cluster.us.torn
    assert cluster.us.received == cluster.us.replayed + 1


def test_an_incomplete_record_is_replayed_once_its_rest_arrives() -> None:
    cluster = MemberCluster()
    cluster.eu.write_partial_record()
    cluster.run(1)
    outcome = cluster.write(cluster.eu, 1)
    cluster.run(1)
    assert outcome == [True]
    assert cluster.us.received == cluster.us.replayed == len(cluster.us.wal.entries)


def test_the_next_leader_overwrites_an_incomplete_record() -> None:
    cluster = MemberCluster()
    cluster.eu.write_partial_record()
    cluster.run(1)
    cluster.eu.crash()
    for standby in (cluster.us, cluster.ap):
        cluster.freeze(standby)
    cluster.us.set_standby_names((AP,), 1)
    cluster.us.promote(2)
    cluster.ap.follow(US)
    outcome = cluster.write(cluster.us, 1)
    cluster.run(1)
    assert outcome == [True]
    assert cluster.ap.wal.entries == cluster.us.wal.entries
    assert all(entry.kind != "part" for entry in cluster.us.wal.entries)


def test_a_walreceiver_receives_wal_until_its_process_ends() -> None:
    # Rule 4.
    cluster = MemberCluster()
    cluster.us.unfollow()
    cluster.write(cluster.eu, 1)
    cluster.run(1)
    assert keys(cluster.us) == {1}
    cluster.us.disconnect()
    cluster.write(cluster.eu, 2)
    cluster.run(5)
    assert keys(cluster.us) == {1}


def promote_two_with_one_number(cluster: MemberCluster) -> None:
    """Promote `us` and `ap` at the same LSN, so that both take the same timeline number."""
    cluster.eu.crash()
    for member, epoch in ((cluster.us, 2), (cluster.ap, 3)):
        cluster.freeze(member)
        member.promote(epoch)
        cluster.write(member, epoch)
    assert cluster.us.wal.timeline == cluster.ap.wal.timeline == 2


def test_two_promotions_take_the_same_timeline_and_following_it_keeps_phantom_rows() -> None:
    # Rule 11.
    cluster = MemberCluster()
    promote_two_with_one_number(cluster)
    cluster.write(cluster.ap, 30)
    cluster.us.stop()
    cluster.us.start_standby()
    cluster.us.follow(AP)
    cluster.run(2)
    assert cluster.us.upstream is not None
    assert 2 in keys(cluster.us)  # only `us` wrote this row
    assert 3 not in keys(cluster.us)  # only `ap` has this row


def test_pg_rewind_does_nothing_on_an_equal_timeline_number() -> None:
    # Rule 11.
    cluster = MemberCluster()
    promote_two_with_one_number(cluster)
    cluster.us.stop()
    cluster.us.rewind(cluster.ap)
    assert 2 in keys(cluster.us)


def test_a_base_backup_has_no_phantom_rows() -> None:
    # Rule 11.
    cluster = MemberCluster()
    promote_two_with_one_number(cluster)
    cluster.us.stop()
    cluster.us.copy(cluster.ap)
    assert keys(cluster.us) == keys(cluster.ap)


def test_a_leader_refuses_a_standby_that_is_ahead_of_the_fork() -> None:
    cluster = MemberCluster()
    cluster.write(cluster.eu, 1)
    cluster.run(1)
    cluster.isolate(EU)
    cluster.write(cluster.eu, 2)
    cluster.freeze(cluster.us)
    cluster.us.promote(2)
    cluster.eu.stop()
    for other in (US, AP):
        cluster.network.heal(EU, other)
        cluster.network.heal(other, EU)
    cluster.eu.start_standby()
    cluster.eu.follow(US)
    cluster.run(2)
    assert cluster.eu.diverged
    assert cluster.eu.upstream is None


def test_pg_rewind_may_go_below_what_was_acknowledged() -> None:
    # Rule 12.
    lost = 0
    for seed in range(10):
        cluster = MemberCluster(seed=seed)
        outcome = cluster.write(cluster.eu, 1)
        cluster.run(1)
        assert outcome == [True]
        cluster.freeze(cluster.us)
        cluster.us.promote(2)
        cluster.eu.stop()
        cluster.eu.rewind(cluster.us)
        lost += 1 not in keys(cluster.eu)
    assert lost > 0


def test_a_rewound_member_is_complete_once_it_streams() -> None:
    cluster = MemberCluster()
    cluster.write(cluster.eu, 1)
    cluster.run(1)
    cluster.isolate(EU)
    cluster.write(cluster.eu, 2)
    cluster.freeze(cluster.us)
    cluster.us.promote(2)
    for other in (US, AP):
        cluster.network.heal(EU, other)
        cluster.network.heal(other, EU)
    cluster.eu.stop()
    cluster.eu.rewind(cluster.us)
    cluster.eu.start_standby()
    cluster.eu.follow(US)
    cluster.run(3)
    assert cluster.eu.wal.entries == cluster.us.wal.entries
    assert 2 not in keys(cluster.eu)


def test_a_promotion_takes_the_timeline_number_after_the_highest_known_one() -> None:
    cluster = MemberCluster()
    cluster.eu.crash()
    cluster.freeze(cluster.us)
    cluster.us.promote(2)
    cluster.ap.follow(US)
    cluster.run(2)
    cluster.freeze(cluster.ap)
    cluster.ap.promote(3)
    assert cluster.ap.wal.timelines[-1][0] == 3


def test_a_standby_with_a_hung_disk_confirms_nothing() -> None:
    cluster = MemberCluster()
    cluster.us.hung = cluster.ap.hung = True
    outcome = cluster.write(cluster.eu, 1)
    cluster.run(5)
    assert outcome == []
    cluster.us.hung = False
    cluster.us.resume_io()
    cluster.run(2)
    assert outcome == [True]


def test_the_quorum_lsn_does_not_advance_without_a_quorum() -> None:
    cluster = MemberCluster()
    cluster.isolate(EU)
    before = cluster.eu.quorum_lsn()
    cluster.write(cluster.eu, 1)
    cluster.run(5)
    assert cluster.eu.quorum_lsn() == before

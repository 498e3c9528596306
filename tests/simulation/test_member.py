"""Specifies the simulation's model of PostgreSQL: each guarantee and each trap of failover.md is a test."""

import pytest

from tests.simulation.stand import AP, EU, US, Stand, keys

pytestmark = pytest.mark.simulation


def test_a_commit_is_acknowledged_when_one_of_two_standbys_has_it_on_disk() -> None:
    stand = Stand()
    outcome = stand.write(stand.eu, 1)
    stand.run(0.07)
    assert outcome == []
    stand.run(0.05)
    assert outcome == [True]
    assert keys(stand.us) == keys(stand.ap) == {1}


def test_a_primary_without_its_standbys_acknowledges_nothing() -> None:
    stand = Stand()
    stand.isolate(EU)
    outcome = stand.write(stand.eu, 1)
    stand.run(30)
    assert outcome == []
    assert keys(stand.eu) == {1}


def test_a_commit_is_acknowledged_after_a_partition_heals() -> None:
    stand = Stand()
    stand.network.cut(EU, US)
    stand.network.cut(EU, AP)
    outcome = stand.write(stand.eu, 1)
    stand.run(5)
    stand.network.heal(EU, US)
    stand.eu.recover()
    stand.run(2)
    assert outcome == [True]


def test_a_member_acknowledges_alone_when_it_is_promoted_without_standby_names() -> None:
    # Rule 5.
    stand = Stand()
    stand.isolate(US)
    stand.freeze(stand.us)
    stand.us.promote(2)
    outcome = stand.write(stand.us, 1)
    assert outcome == [True]


def test_clearing_the_standby_names_releases_waiting_commits_with_success() -> None:
    # Rule 6.
    stand = Stand()
    stand.isolate(EU)
    outcome = stand.write(stand.eu, 1)
    stand.run(1)
    stand.eu.set_names((), 0)
    assert outcome == [True]
    assert keys(stand.us) == set()


def test_stopping_ends_the_waits_without_success() -> None:
    # Rule 6: the only way to demote.
    stand = Stand()
    stand.isolate(EU)
    outcome = stand.write(stand.eu, 1)
    stand.eu.stop()
    assert outcome == [False]


def test_a_cancelled_wait_leaves_the_row_visible_on_the_primary_only() -> None:
    # Rule 7.
    stand = Stand()
    stand.isolate(EU)
    outcome = stand.write(stand.eu, 1)
    before = stand.eu.visible
    stand.eu.cancel_waits()
    assert outcome == [False]
    assert stand.eu.visible > before
    assert keys(stand.us) == set()


def test_a_crash_makes_rows_visible_that_no_standby_has() -> None:
    # Rule 8.
    stand = Stand()
    stand.isolate(EU)
    outcome = stand.write(stand.eu, 1)
    assert stand.eu.visible < stand.eu.wal.keys[1]
    stand.eu.crash()
    stand.eu.start_standby()
    assert outcome == [False]
    assert stand.eu.visible >= stand.eu.wal.keys[1]


def test_a_crash_loses_wal_that_was_not_flushed() -> None:
    stand = Stand()
    stand.eu.hung = True
    stand.write(stand.eu, 1)
    stand.run(5)
    assert keys(stand.us) == set()  # a primary sends no WAL that it may still lose
    stand.eu.crash()
    assert keys(stand.eu) == set()


def test_the_receive_position_is_unknown_after_a_restart() -> None:
    # Rule 4.
    stand = Stand()
    stand.write(stand.eu, 1)
    stand.run(1)
    assert stand.us.received == len(stand.us.wal.entries)
    stand.us.crash()
    stand.freeze(stand.us)
    stand.us.start_standby()
    assert stand.us.received is None
    assert stand.us.replayed == len(stand.us.wal.entries)


def test_an_incomplete_record_is_received_and_never_replayed() -> None:
    # Rule 4.
    stand = Stand()
    stand.eu.write_part()
    stand.run(1)
    stand.eu.crash()
    assert not stand.us.torn  # its WAL receiver may still receive the rest
    stand.freeze(stand.us)
    assert stand.us.torn
    assert stand.us.received == stand.us.replayed + 1


def test_an_incomplete_record_is_replayed_once_its_rest_arrives() -> None:
    stand = Stand()
    stand.eu.write_part()
    stand.run(1)
    outcome = stand.write(stand.eu, 1)
    stand.run(1)
    assert outcome == [True]
    assert stand.us.received == stand.us.replayed == len(stand.us.wal.entries)


def test_the_next_leader_overwrites_an_incomplete_record() -> None:
    stand = Stand()
    stand.eu.write_part()
    stand.run(1)
    stand.eu.crash()
    for standby in (stand.us, stand.ap):
        stand.freeze(standby)
    stand.us.set_names((AP,), 1)
    stand.us.promote(2)
    stand.ap.follow(US)
    outcome = stand.write(stand.us, 1)
    stand.run(1)
    assert outcome == [True]
    assert stand.ap.wal.entries == stand.us.wal.entries
    assert all(entry.kind != "part" for entry in stand.us.wal.entries)


def test_a_walreceiver_receives_wal_until_its_process_ends() -> None:
    # Rule 4.
    stand = Stand()
    stand.us.unfollow()
    stand.write(stand.eu, 1)
    stand.run(1)
    assert keys(stand.us) == {1}
    stand.us.disconnect()
    stand.write(stand.eu, 2)
    stand.run(5)
    assert keys(stand.us) == {1}


def promote_two_with_one_number(stand: Stand) -> None:
    """Promote `us` and `ap` at the same LSN, so that both take the same timeline number."""
    stand.eu.crash()
    for member, epoch in ((stand.us, 2), (stand.ap, 3)):
        stand.freeze(member)
        member.promote(epoch)
        stand.write(member, epoch)
    assert stand.us.wal.timeline == stand.ap.wal.timeline == 2


def test_two_promotions_take_the_same_timeline_and_following_it_keeps_phantom_rows() -> None:
    # Rule 11.
    stand = Stand()
    promote_two_with_one_number(stand)
    stand.write(stand.ap, 30)
    stand.us.stop()
    stand.us.start_standby()
    stand.us.follow(AP)
    stand.run(2)
    assert stand.us.upstream is not None
    assert 2 in keys(stand.us)  # only `us` wrote this row
    assert 3 not in keys(stand.us)  # only `ap` has this row


def test_pg_rewind_does_nothing_on_an_equal_timeline_number() -> None:
    # Rule 11.
    stand = Stand()
    promote_two_with_one_number(stand)
    stand.us.stop()
    stand.us.rewind(stand.ap)
    assert 2 in keys(stand.us)


def test_a_base_backup_has_no_phantom_rows() -> None:
    # Rule 11.
    stand = Stand()
    promote_two_with_one_number(stand)
    stand.us.stop()
    stand.us.copy(stand.ap)
    assert keys(stand.us) == keys(stand.ap)


def test_a_leader_refuses_a_standby_that_is_ahead_of_the_fork() -> None:
    stand = Stand()
    stand.write(stand.eu, 1)
    stand.run(1)
    stand.isolate(EU)
    stand.write(stand.eu, 2)
    stand.freeze(stand.us)
    stand.us.promote(2)
    stand.eu.stop()
    for other in (US, AP):
        stand.network.heal(EU, other)
        stand.network.heal(other, EU)
    stand.eu.start_standby()
    stand.eu.follow(US)
    stand.run(2)
    assert stand.eu.diverged
    assert stand.eu.upstream is None


def test_pg_rewind_may_go_below_what_was_acknowledged() -> None:
    # Rule 12.
    lost = 0
    for seed in range(10):
        stand = Stand(seed=seed)
        outcome = stand.write(stand.eu, 1)
        stand.run(1)
        assert outcome == [True]
        stand.freeze(stand.us)
        stand.us.promote(2)
        stand.eu.stop()
        stand.eu.rewind(stand.us)
        lost += 1 not in keys(stand.eu)
    assert lost > 0


def test_a_rewound_member_is_complete_once_it_streams() -> None:
    stand = Stand()
    stand.write(stand.eu, 1)
    stand.run(1)
    stand.isolate(EU)
    stand.write(stand.eu, 2)
    stand.freeze(stand.us)
    stand.us.promote(2)
    for other in (US, AP):
        stand.network.heal(EU, other)
        stand.network.heal(other, EU)
    stand.eu.stop()
    stand.eu.rewind(stand.us)
    stand.eu.start_standby()
    stand.eu.follow(US)
    stand.run(3)
    assert stand.eu.wal.entries == stand.us.wal.entries
    assert 2 not in keys(stand.eu)


def test_a_promotion_takes_the_timeline_number_after_the_highest_known_one() -> None:
    stand = Stand()
    stand.eu.crash()
    stand.freeze(stand.us)
    stand.us.promote(2)
    stand.ap.follow(US)
    stand.run(2)
    stand.freeze(stand.ap)
    stand.ap.promote(3)
    assert stand.ap.wal.timelines[-1][0] == 3


def test_a_standby_with_a_hung_disk_confirms_nothing() -> None:
    stand = Stand()
    stand.us.hung = stand.ap.hung = True
    outcome = stand.write(stand.eu, 1)
    stand.run(5)
    assert outcome == []
    stand.us.hung = False
    stand.us.recover()
    stand.run(2)
    assert outcome == [True]


def test_the_quorum_lsn_does_not_advance_without_a_quorum() -> None:
    stand = Stand()
    stand.isolate(EU)
    before = stand.eu.quorum_lsn()
    stand.write(stand.eu, 1)
    stand.run(5)
    assert stand.eu.quorum_lsn() == before

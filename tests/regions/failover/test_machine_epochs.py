"""Tests of what a new record changes in the machine of a cell: which facts and requests begin, end, or stay."""

from dataclasses import replace

import pytest

from regions.failover.effects import (
    AnswerOrder,
    CopyLedger,
    FollowLedger,
    FreezeLedger,
    Log,
    ReadRecord,
    SetQuorum,
    StopServing,
    StorePromise,
    SwapRecord,
    WatchLeader,
)
from regions.failover.events import (
    AgentPaused,
    Gossip,
    GossipHeard,
    LedgerDone,
    LedgerEnded,
    LedgerFailed,
    MemberState,
    Promise,
    PromiseStored,
    QuorumCommit,
    ReadFailed,
    RecordRead,
    RecordSeen,
    Release,
    StandbysStreaming,
    Started,
    SuspicionChanged,
    Tick,
)
from regions.failover.settings import DEFAULTS
from regions.identity import RegionName
from regions.leadership import Leadership
from regions.position import Position
from tests.regions.failover.driver import (
    ANNOUNCED,
    CHOSEN,
    HANDED_OVER,
    RECRUITING,
    RELEASE,
    SERVING,
    A,
    B,
    C,
    D,
    Driver,
    announce_switchover,
    following,
    order,
    prepare_successor,
    release_epoch,
)
from tests.regions.failover.facts_builder import announced_at, drained_to, prepares_until, restart_delayed_until


def serving(epoch: int, leader: RegionName = B) -> Leadership:
    return replace(SERVING, epoch=epoch, leader=leader)


# The start of an agent.


def test_a_starting_agent_reads_from_any_etcd_member_and_watches_no_leader() -> None:
    driver = Driver(C)
    driver.handle(Started(promise=Promise(epoch=1, lineage=1), ledger=MemberState(kind="following", epoch=1)))
    assert driver.kinds() == [ReadRecord]
    assert not driver.requested(ReadRecord).linearizable
    assert not driver.machine.facts.outdated


def test_tickets_continue_after_those_of_earlier_runs() -> None:
    driver = Driver(C)
    driver.handle(Started(promise=Promise(epoch=1, lineage=1), ledger=MemberState(kind="following", epoch=1)))
    tickets = [driver.ticket(ReadRecord)]
    for _ in range(2):
        driver.handle(AgentPaused())
        tickets.append(driver.ticket(ReadRecord))
    assert tickets == [101, 102, 103]


def test_an_agent_with_an_empty_promise_makes_a_linearizable_read() -> None:
    # Its disk may have been replaced; only a linearizable read certainly returns the epoch that it had promised.
    driver = Driver(C)
    driver.handle(Started(promise=Promise(), ledger=MemberState(kind="stopped")))
    assert driver.requested(ReadRecord).linearizable
    assert driver.machine.facts.outdated


def test_a_region_without_a_member_needs_no_promise() -> None:
    driver = Driver(D)
    driver.handle(Started(promise=None, ledger=None))
    assert driver.kinds() == [ReadRecord]
    driver.handle(RecordRead(ticket=driver.ticket(ReadRecord), revision=1, record=SERVING))
    assert driver.machine.state == "observing"
    driver.handle(AgentPaused())
    driver.handle(RecordRead(ticket=driver.ticket(ReadRecord), revision=1, record=SERVING))
    assert driver.machine.next_deadline() is None


def test_a_region_that_does_not_begin_the_cell_reads_an_empty_etcd_once() -> None:
    driver = Driver(B)
    driver.handle(Started(promise=Promise(epoch=0, lineage=0, floor=1), ledger=MemberState(kind="absent")))
    driver.handle(RecordRead(ticket=driver.ticket(ReadRecord), revision=0, record=None))
    assert ReadRecord not in driver.kinds()


def test_the_first_read_is_not_repeated_after_the_watch_delivered_a_record() -> None:
    driver = Driver(C)
    driver.handle(Started(promise=Promise(epoch=1, lineage=1), ledger=MemberState(kind="following", epoch=1)))
    driver.handle(ReadFailed(ticket=driver.ticket(ReadRecord)))
    driver.handle(RecordSeen(revision=1, record=SERVING))
    assert ReadRecord not in driver.kinds()
    driver.advance(DEFAULTS.retry_s)
    assert ReadRecord not in driver.kinds()


def test_an_agent_whose_record_is_below_its_promise_makes_a_linearizable_read() -> None:
    driver = Driver(C)
    driver.handle(Started(promise=Promise(epoch=2, lineage=1), ledger=MemberState(kind="following", epoch=1)))
    driver.handle(RecordRead(ticket=driver.ticket(ReadRecord), revision=1, record=SERVING))
    assert driver.requested(ReadRecord).linearizable


@pytest.mark.parametrize("paused", [True, False])
def test_an_agent_with_a_ledger_refuses_to_take_part_if_etcd_has_no_record(*, paused: bool) -> None:
    driver = Driver(C)
    driver.handle(Started(promise=Promise(epoch=1, lineage=1), ledger=MemberState(kind="following", epoch=1)))
    if paused:
        driver.handle(AgentPaused())
    driver.handle(RecordRead(ticket=driver.ticket(ReadRecord), revision=0, record=None))
    assert driver.logged("there is a ledger but etcd knows no leadership")
    assert driver.logged("etcd knows epoch 0, but 1 was promised") is paused
    driver.handle(SuspicionChanged(region=B, suspected=True))
    assert driver.effects == [], "the refusal is logged once"
    driver.handle(RecordSeen(revision=1, record=SERVING))
    assert driver.machine.facts.unable is None
    assert "error" not in [one.level for one in driver.effects if isinstance(one, Log)]


def test_the_gossip_is_empty_before_the_first_record() -> None:
    driver = Driver(C)
    driver.handle(Started(promise=Promise(epoch=1, lineage=1), ledger=MemberState(kind="following", epoch=1)))
    driver.handle(SuspicionChanged(region=A, suspected=True))
    assert driver.machine.gossip == Gossip()


@pytest.mark.parametrize(
    ("record", "acting"),
    [
        (SERVING, WatchLeader(region=A, needs_commits=True)),
        (replace(SERVING, phase="promoting", fence_id=None), WatchLeader(region=A, needs_commits=False)),
        (RECRUITING, WatchLeader(region=B, needs_commits=False)),
        (replace(SERVING, phase="bootstrapping", fence_id=None), None),
        (replace(SERVING, leader=C), None),
    ],
    ids=["serving", "promoting", "recruiting", "bootstrapping", "this region leads"],
)
def test_the_record_determines_the_watched_leader_and_its_sign_of_life(
    record: Leadership, acting: WatchLeader | None
) -> None:
    driver = Driver(C)
    driver.handle(Started(promise=Promise(epoch=1), ledger=MemberState(kind="stopped")))
    driver.handle(RecordRead(ticket=driver.ticket(ReadRecord), revision=1, record=record))
    assert [one for one in driver.effects if isinstance(one, WatchLeader)] == ([] if acting is None else [acting])
    driver.handle(Tick())
    assert WatchLeader not in driver.kinds()


# Serving, votes, quorums and the known state of other members end with the epoch.


def test_a_leader_stops_serving_and_discards_facts_of_its_epoch_when_the_next_begins(leader: Driver) -> None:
    leader.handle(StandbysStreaming(regions=frozenset({B, C})))
    leader.handle(QuorumCommit(lsn=900))
    leader.handle(RecordSeen(revision=2, record=RECRUITING))
    facts = leader.machine.facts
    assert leader.effects[0] == StopServing(epoch=1), "the first effect"
    assert leader.kinds().count(StopServing) == 1
    assert (facts.member.serving_epoch, facts.member.quorum, facts.member.quorum_commit, facts.member.standbys) == (
        0,
        None,
        0,
        frozenset(),
    )


def test_a_follower_does_not_stop_serving_when_an_epoch_begins(follower: Driver) -> None:
    follower.handle(RecordSeen(revision=2, record=RECRUITING))
    assert StopServing not in follower.kinds()


def test_a_fence_row_is_discarded_when_the_next_epoch_begins() -> None:
    driver = Driver(B)
    driver.start(MemberState(kind="primary", epoch=2), Promise(epoch=2, lineage=2), CHOSEN)
    driver.machine.facts.member.fence = object()  # pyright: ignore[reportAttributeAccessIssue]
    driver.handle(RecordSeen(revision=2, record=replace(CHOSEN, epoch=3)))
    assert driver.machine.facts.member.fence is None


def test_divergence_and_rebuild_are_discarded_when_the_next_epoch_begins(follower: Driver) -> None:
    # The leader of epoch 2 lacks WAL of this member; the leader of epoch 3 may have it.
    follower.handle(RecordSeen(revision=2, record=serving(2)))
    follower.handle(PromiseStored(ticket=follower.ticket(StorePromise)))
    follower.handle(LedgerFailed(ticket=follower.ticket(FollowLedger), reason="no", diverged=True))
    facts = follower.machine.facts
    assert facts.member.diverged
    facts.member.rebuilt_epoch = 2
    follower.handle(RecordSeen(revision=3, record=replace(serving(3, A), ancestry=(1, 2, 3))))
    assert (facts.member.diverged, facts.member.rebuilt_epoch) == (False, 0)
    follower.handle(PromiseStored(ticket=follower.ticket(StorePromise)))
    assert follower.requested(FollowLedger).leader == A


def test_a_successor_that_did_not_prepare_freezes_again_for_the_released_epoch() -> None:
    # It did not prepare for a drained leader, so it freezes its member, and reads the position, for this epoch.
    driver = following(B)
    driver.handle(RecordSeen(revision=2, record=replace(RECRUITING, leader=C)))
    driver.answer_freeze(500)
    later = replace(HANDED_OVER, epoch=5, handed_over_at=Position(4, 400))
    driver.handle(RecordSeen(revision=5, record=later))
    assert driver.machine.facts.member.frozen_vote is None
    assert driver.requested(FreezeLedger).epoch == 5


def test_a_successor_that_may_receive_wal_again_freezes_again_for_the_next_epoch(successor: Driver) -> None:
    # The leader continued in between, so the member may have followed it again.
    successor.handle(LedgerDone(ticket=prepare_successor(successor)))
    successor.handle(GossipHeard(sender=A, gossip=Gossip(epoch=1)))
    assert FollowLedger in successor.kinds()
    successor.handle(GossipHeard(sender=A, gossip=Gossip(epoch=1, drained=1)))
    assert successor.effects == []
    successor.handle(GossipHeard(sender=A, gossip=Gossip(epoch=2, drained=1, release=RELEASE)))
    assert successor.requested(FreezeLedger).epoch == 2
    assert successor.machine.facts.member.frozen_vote is None


def test_a_failed_freeze_is_requested_again_when_the_leader_releases(successor: Driver) -> None:
    successor.handle(RecordSeen(revision=2, record=ANNOUNCED))
    successor.handle(GossipHeard(sender=A, gossip=Gossip(epoch=1, drained=1)))
    successor.handle(LedgerFailed(ticket=successor.ticket(FreezeLedger), reason="no"))
    assert prepares_until(successor.machine.facts) is not None
    successor.handle(GossipHeard(sender=A, gossip=Gossip(epoch=2, drained=1, release=RELEASE)))
    assert successor.requested(FreezeLedger).epoch == 2


def test_a_preparation_ends_with_the_epoch(successor: Driver) -> None:
    prepare_successor(successor)
    assert prepares_until(successor.machine.facts) is not None
    successor.handle(RecordSeen(revision=3, record=HANDED_OVER))
    assert prepares_until(successor.machine.facts) is None


# The times that durations count from.


def test_the_time_in_a_phase_counts_from_each_change_of_epoch_phase_or_leader(follower: Driver) -> None:
    times: list[float] = []
    changes = [
        RECRUITING,
        replace(RECRUITING, automatic=False),
        CHOSEN,
        replace(CHOSEN, drained=(A,)),
        replace(CHOSEN, leader=C),
        serving(2),
        replace(serving(2), drained=(C,)),
        serving(3),
    ]
    for at, record in enumerate(changes):
        follower.now = float(at)
        follower.handle(RecordSeen(revision=at + 2, record=record))
        times.append(follower.machine.facts.record_since)
    assert times == [0, 0, 2, 2, 4, 5, 5, 7]


def test_a_record_with_the_same_epoch_phase_and_leader_keeps_pauses_and_agreement(follower: Driver) -> None:
    follower.handle(SuspicionChanged(region=A, suspected=True))
    follower.handle(GossipHeard(sender=B, gossip=Gossip(epoch=1, suspects=1)))
    follower.now = 0.1
    follower.handle(AgentPaused())
    follower.handle(ReadFailed(ticket=follower.ticket(ReadRecord)))
    facts = follower.machine.facts
    facts.requests.ledger_retry = replace(facts.requests.etcd_retry, pause_s=0.4)
    before = (facts.peers.leader_suspected_since, facts.requests.etcd_retry, facts.requests.ledger_retry)
    assert before[0] == 0
    follower.handle(RecordSeen(revision=2, record=replace(SERVING, drained=(C,))))
    assert (facts.peers.leader_suspected_since, facts.requests.etcd_retry, facts.requests.ledger_retry) == before
    follower.handle(RecordSeen(revision=3, record=RECRUITING))
    assert facts.peers.leader_suspected_since is None
    assert facts.requests.etcd_retry.at is None
    assert (facts.requests.etcd_retry.pause_s, facts.requests.ledger_retry.pause_s) == (0, 0)


def test_agreement_on_a_suspicion_counts_again_from_the_next_phase(follower: Driver) -> None:
    follower.handle(RecordSeen(revision=2, record=RECRUITING))
    follower.now = 0.1
    follower.handle(SuspicionChanged(region=B, suspected=True))
    follower.handle(GossipHeard(sender=A, gossip=Gossip(epoch=2, suspects=2)))
    assert follower.machine.facts.peers.leader_suspected_since == 0.1
    follower.now = 0.2
    follower.handle(RecordSeen(revision=3, record=CHOSEN))
    assert follower.machine.facts.peers.leader_suspected_since == 0.2


def test_head_starts_count_from_the_moment_automatic_failover_resumes(follower: Driver) -> None:
    facts = follower.machine.facts
    agreed: list[float | None] = []
    follower.handle(RecordSeen(revision=2, record=replace(SERVING, automatic=False)))
    follower.now = 1.0
    follower.handle(SuspicionChanged(region=A, suspected=True))
    follower.handle(GossipHeard(sender=B, gossip=Gossip(epoch=1, suspects=1)))
    for at, automatic in ((2.0, False), (3.0, True), (4.0, True), (5.0, False)):
        follower.now = at
        drained = (C,) if at in (2.0, 4.0) else ()
        follower.handle(RecordSeen(revision=int(at) + 1, record=replace(SERVING, automatic=automatic, drained=drained)))
        agreed.append(facts.peers.leader_suspected_since)
        if at == 3.0:
            assert follower.machine.next_deadline() == 3.0 + DEFAULTS.claim_stagger_s
    assert agreed == [1.0, 3.0, 3.0, 3.0]


def test_each_change_of_phase_is_logged_once(follower: Driver) -> None:
    logged: list[list[str]] = []
    changes = [CHOSEN, replace(CHOSEN, drained=(A,)), serving(2), replace(serving(2), drained=(C,))]
    for at, record in enumerate([RECRUITING, *changes]):
        follower.handle(RecordSeen(revision=at + 2, record=record))
        logged.append([one.text for one in follower.effects if isinstance(one, Log)])
    assert logged == [
        ["epoch 2: eu-west recruiting: first start"],
        ["epoch 2: eu-west was chosen"],
        [],
        ["epoch 2: eu-west serves"],
        [],
    ]


# Rule 17: the latest failovers by suspicion are counted.


def test_the_latest_three_failovers_are_counted_and_a_switchover_is_not(follower: Driver) -> None:
    facts = follower.machine.facts
    for epoch in range(2, 8):
        follower.now = float(epoch)
        target = B if epoch == 6 else None
        for at, phase in enumerate(("promoting", "serving", "serving")):
            record = replace(serving(epoch), phase=phase, target=target, drained=(C,) if at == 2 else ())
            follower.handle(RecordSeen(revision=3 * epoch + at, record=record))
    assert facts.failovers == (4.0, 5.0, 7.0)


def test_a_failover_whose_promotion_was_missed_is_not_counted(follower: Driver) -> None:
    # The agent did not see the record of the promotion.
    follower.handle(RecordSeen(revision=2, record=RECRUITING))
    follower.handle(RecordSeen(revision=3, record=serving(2)))
    assert follower.machine.facts.failovers == ()


# Orders end with the epoch.


def test_a_resize_continues_after_a_record_with_the_same_voters() -> None:
    driver = Driver(A)
    four = replace(SERVING, voters=(A, B, C, D))
    driver.start(MemberState(kind="primary", epoch=1), Promise(epoch=1, lineage=1), record=four)
    driver.handle(LedgerDone(ticket=driver.ticket(SetQuorum)))
    driver.handle(order("remove", D))
    driver.handle(RecordSeen(revision=2, record=replace(four, drained=(C,))))
    assert AnswerOrder not in driver.kinds()
    assert driver.machine.facts.resize is not None


@pytest.mark.parametrize(
    ("record", "refused"),
    [
        (replace(HANDED_OVER, handed_over_at=None), None),
        (replace(RECRUITING, leader=C), "another epoch began"),
    ],
    ids=["the target leads it", "another region leads it"],
)
def test_a_hand_over_ends_with_the_epoch_and_succeeds_if_its_target_leads_the_next(
    leader: Driver, record: Leadership, refused: str | None
) -> None:
    announce_switchover(leader)
    leader.handle(RecordSeen(revision=3, record=record))
    facts = leader.machine.facts
    assert AnswerOrder(ticket=7, refused=refused) in leader.effects
    assert (facts.switchover, announced_at(facts), drained_to(facts)) == (None, 0, None)


# The restart delay of an old leader lasts only while its successor is being promoted.


@pytest.mark.parametrize(
    "record",
    [
        replace(HANDED_OVER, epoch=4, leader=C, handed_over_at=None),
        replace(HANDED_OVER, phase="serving", fence_id=SERVING.fence_id),
        replace(HANDED_OVER, epoch=3, leader=C, phase="recruiting"),
    ],
    ids=["another region was chosen", "the successor serves", "another region recruits"],
)
def test_the_restart_delay_ends_when_the_successor_is_no_longer_being_promoted(
    leader: Driver, record: Leadership
) -> None:
    release_epoch(leader)
    assert restart_delayed_until(leader.machine.facts) == DEFAULTS.rest_s
    leader.handle(RecordSeen(revision=4, record=record))
    assert restart_delayed_until(leader.machine.facts) is None


def test_the_restart_delay_continues_while_the_successor_is_being_promoted(leader: Driver) -> None:
    release_epoch(leader)
    leader.handle(RecordSeen(revision=4, record=replace(HANDED_OVER, automatic=False)))
    assert restart_delayed_until(leader.machine.facts) == DEFAULTS.rest_s


# Releases.


def test_a_repeated_release_does_not_start_another_read(successor: Driver) -> None:
    release = replace(RELEASE, revision=4)
    successor.handle(GossipHeard(sender=A, gossip=Gossip(epoch=1, release=release)))
    assert successor.requested(ReadRecord).linearizable
    for sender in (A, C):
        successor.handle(GossipHeard(sender=sender, gossip=Gossip(epoch=1, release=release, drained=1)))
        assert successor.effects == []


def test_an_older_release_does_not_replace_a_newer_one(successor: Driver) -> None:
    newer = Release(epoch=3, revision=9, successor=B, lsn=900)
    successor.handle(GossipHeard(sender=A, gossip=Gossip(epoch=3, release=newer)))
    successor.handle(GossipHeard(sender=C, gossip=Gossip(epoch=3, release=RELEASE)))
    assert successor.machine.facts.release == newer
    newest = replace(newer, epoch=4)
    successor.handle(GossipHeard(sender=C, gossip=Gossip(epoch=4, release=newest)))
    assert successor.machine.facts.release == newest


def test_a_release_with_revision_zero_begins_no_epoch_before_the_first_record() -> None:
    driver = Driver(B)
    driver.handle(Started(promise=Promise(epoch=1, lineage=1), ledger=MemberState(kind="following", epoch=1)))
    driver.handle(GossipHeard(sender=A, gossip=Gossip(release=replace(RELEASE, revision=0))))
    assert driver.machine.facts.record is None


# Copies, failed effects, and ends of PostgreSQL.


def test_the_time_in_a_phase_counts_from_the_end_of_a_copy() -> None:
    driver = Driver(C)
    driver.start(MemberState(kind="absent"), Promise(epoch=1, lineage=1))
    driver.handle(PromiseStored(ticket=driver.ticket(StorePromise)))
    driver.now = 100.0
    driver.handle(LedgerDone(ticket=driver.machine.facts.requests.working.ticket))  # pyright: ignore[reportOptionalMemberAccess]
    facts = driver.machine.facts
    assert (facts.record_since, facts.member.rebuilt_epoch, facts.member.diverged) == (100.0, 1, False)
    assert facts.member.ledger == MemberState(kind="stopped")


def test_torn_data_are_copied_again_in_the_same_epoch() -> None:
    driver = Driver(C)
    driver.start(MemberState(kind="absent"), Promise(epoch=1, lineage=1))
    driver.handle(PromiseStored(ticket=driver.ticket(StorePromise)))
    driver.handle(LedgerDone(ticket=driver.ticket(CopyLedger)))
    driver.handle(LedgerFailed(ticket=driver.ticket(FollowLedger), reason="broken page", torn=True))
    assert driver.machine.facts.member.ledger == MemberState(kind="absent")
    assert driver.machine.facts.member.rebuilt_epoch == 0
    driver.advance(DEFAULTS.retry_s)
    assert CopyLedger in driver.kinds()


def test_a_failed_follow_without_divergence_is_requested_again(follower: Driver) -> None:
    follower.handle(RecordSeen(revision=2, record=serving(2)))
    follower.handle(PromiseStored(ticket=follower.ticket(StorePromise)))
    follower.handle(LedgerFailed(ticket=follower.ticket(FollowLedger), reason="no route"))
    facts = follower.machine.facts
    assert not facts.member.diverged
    assert facts.requests.ledger_retry.pause_s == DEFAULTS.retry_s
    follower.advance(DEFAULTS.retry_s)
    follower.handle(LedgerDone(ticket=follower.ticket(FollowLedger)))
    assert facts.requests.ledger_retry.pause_s == 0


def test_only_a_failed_follow_reports_a_divergence(follower: Driver) -> None:
    follower.handle(RecordSeen(revision=2, record=RECRUITING))
    follower.handle(LedgerFailed(ticket=follower.ticket(FreezeLedger), reason="no", diverged=True))
    assert not follower.machine.facts.member.diverged


def test_a_follower_whose_postgresql_ended_follows_again_without_a_rewind(follower: Driver) -> None:
    follower.handle(RecordSeen(revision=2, record=serving(2)))
    follower.handle(PromiseStored(ticket=follower.ticket(StorePromise)))
    follower.handle(LedgerDone(ticket=follower.ticket(FollowLedger)))
    assert follower.machine.state == "following"
    follower.handle(LedgerEnded())
    assert FollowLedger in follower.kinds()


def test_the_end_of_an_absent_or_missing_member_is_ignored() -> None:
    for ledger in (MemberState(kind="absent"), None):
        driver = Driver(D)
        driver.start(ledger, Promise())
        driver.handle(LedgerEnded())
        assert driver.effects == []
        assert driver.machine.facts.member.ledger == ledger


def test_a_follow_is_requested_again_at_once_when_postgresql_ended(follower: Driver) -> None:
    follower.handle(RecordSeen(revision=2, record=serving(2)))
    follower.handle(PromiseStored(ticket=follower.ticket(StorePromise)))
    first = follower.ticket(FollowLedger)
    follower.handle(LedgerEnded())
    assert follower.ticket(FollowLedger) > first


def test_a_follower_requests_no_swap_when_it_sees_an_announcement(follower: Driver) -> None:
    follower.handle(RecordSeen(revision=2, record=ANNOUNCED))
    assert SwapRecord not in follower.kinds()

"""What another record means to the machine of a cell: what begins with it, what ends, and what it leaves alone."""

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
    CHOSEN,
    HANDED_OVER,
    PROMISED,
    RECRUITING,
    RELEASE,
    SERVING,
    A,
    B,
    C,
    D,
    Driver,
    following,
    gets_ready,
    hands_over,
    has_handed_over,
    order,
)
from tests.regions.failover.knowledge import announced_at, drained_to, prepares_until, restart_delayed_until


def serving(epoch: int, leader: RegionName = B) -> Leadership:
    return replace(SERVING, epoch=epoch, leader=leader)


# The start of an agent.


def test_an_agent_that_starts_reads_from_any_member_of_etcd_and_says_nothing_about_who_acts() -> None:
    driver = Driver(C)
    driver.tell(Started(promise=Promise(epoch=1, lineage=1), ledger=MemberState(kind="following", epoch=1)))
    assert driver.kinds() == [ReadRecord]
    assert not driver.asked(ReadRecord).linearizable
    assert not driver.machine.facts.outdated


def test_tickets_count_on_from_those_of_earlier_runs() -> None:
    driver = Driver(C)
    driver.tell(Started(promise=Promise(epoch=1, lineage=1), ledger=MemberState(kind="following", epoch=1)))
    tickets = [driver.ticket(ReadRecord)]
    for _ in range(2):
        driver.tell(AgentPaused())
        tickets.append(driver.ticket(ReadRecord))
    assert tickets == [101, 102, 103]


def test_an_agent_that_promised_nothing_reads_from_all_of_etcd() -> None:
    # Its disk may have been replaced, and etcd may know what it promised.
    driver = Driver(C)
    driver.tell(Started(promise=Promise(), ledger=MemberState(kind="stopped")))
    assert driver.asked(ReadRecord).linearizable
    assert driver.machine.facts.outdated


def test_a_region_without_a_member_needs_no_promise() -> None:
    driver = Driver(D)
    driver.tell(Started(promise=None, ledger=None))
    assert driver.kinds() == [ReadRecord]
    driver.tell(RecordRead(ticket=driver.ticket(ReadRecord), revision=1, record=SERVING))
    assert driver.machine.state == "observing"
    driver.tell(AgentPaused())
    driver.tell(RecordRead(ticket=driver.ticket(ReadRecord), revision=1, record=SERVING))
    assert driver.machine.next_deadline() is None


def test_a_region_that_does_not_begin_the_cell_asks_an_empty_etcd_once() -> None:
    driver = Driver(B)
    driver.tell(Started(promise=Promise(epoch=0, lineage=0, floor=1), ledger=MemberState(kind="absent")))
    driver.tell(RecordRead(ticket=driver.ticket(ReadRecord), revision=0, record=None))
    assert ReadRecord not in driver.kinds()


def test_a_record_that_the_watch_brings_makes_the_first_read_needless() -> None:
    driver = Driver(C)
    driver.tell(Started(promise=Promise(epoch=1, lineage=1), ledger=MemberState(kind="following", epoch=1)))
    driver.tell(ReadFailed(ticket=driver.ticket(ReadRecord)))
    driver.tell(RecordSeen(revision=1, record=SERVING))
    assert ReadRecord not in driver.kinds()
    driver.wait(DEFAULTS.retry_s)
    assert ReadRecord not in driver.kinds()


def test_an_agent_whose_record_is_older_than_its_promise_reads_from_all_of_etcd() -> None:
    driver = Driver(C)
    driver.tell(Started(promise=Promise(epoch=2, lineage=1), ledger=MemberState(kind="following", epoch=1)))
    driver.tell(RecordRead(ticket=driver.ticket(ReadRecord), revision=1, record=SERVING))
    assert driver.asked(ReadRecord).linearizable


@pytest.mark.parametrize("lagged", [True, False])
def test_an_etcd_without_a_record_has_lost_it_when_there_is_a_ledger(*, lagged: bool) -> None:
    driver = Driver(C)
    driver.tell(Started(promise=Promise(epoch=1, lineage=1), ledger=MemberState(kind="following", epoch=1)))
    if lagged:
        driver.tell(AgentPaused())
    driver.tell(RecordRead(ticket=driver.ticket(ReadRecord), revision=0, record=None))
    assert driver.tells("there is a ledger but etcd knows no leadership")
    assert driver.tells("etcd knows epoch 0, but 1 was promised") is lagged
    driver.tell(SuspicionChanged(region=B, suspected=True))
    assert driver.effects == [], "it is said once"
    driver.tell(RecordSeen(revision=1, record=SERVING))
    assert driver.machine.facts.unable is None
    assert "error" not in [one.level for one in driver.effects if isinstance(one, Log)]


def test_before_the_first_record_an_agent_has_nothing_to_say() -> None:
    driver = Driver(C)
    driver.tell(Started(promise=Promise(epoch=1, lineage=1), ledger=MemberState(kind="following", epoch=1)))
    driver.tell(SuspicionChanged(region=A, suspected=True))
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
    ids=["serving", "promoting", "recruiting", "bootstrapping", "itself"],
)
def test_whose_heartbeats_count_and_which(record: Leadership, acting: WatchLeader | None) -> None:
    driver = Driver(C)
    driver.tell(Started(promise=Promise(epoch=1), ledger=MemberState(kind="stopped")))
    driver.tell(RecordRead(ticket=driver.ticket(ReadRecord), revision=1, record=record))
    assert [one for one in driver.effects if isinstance(one, WatchLeader)] == ([] if acting is None else [acting])
    driver.tell(Tick())
    assert WatchLeader not in driver.kinds()


# Writes, votes, quorums and what is known of others are of one epoch.


def test_a_leader_takes_nothing_of_its_epoch_into_the_next(leader: Driver) -> None:
    leader.tell(StandbysStreaming(regions=frozenset({B, C})))
    leader.tell(QuorumCommit(lsn=900))
    leader.tell(RecordSeen(revision=2, record=RECRUITING))
    facts = leader.machine.facts
    assert leader.effects[0] == StopServing(epoch=1), "before anything else"
    assert leader.kinds().count(StopServing) == 1
    assert (facts.member.serving_epoch, facts.member.quorum, facts.member.quorum_commit, facts.member.standbys) == (
        0,
        None,
        0,
        frozenset(),
    )


def test_who_takes_no_writes_has_none_to_close(follower: Driver) -> None:
    follower.tell(RecordSeen(revision=2, record=RECRUITING))
    assert StopServing not in follower.kinds()


def test_a_fence_row_is_of_one_epoch() -> None:
    driver = Driver(B)
    driver.start(MemberState(kind="primary", epoch=2), Promise(epoch=2, lineage=2), CHOSEN)
    driver.machine.facts.member.fence = object()  # pyright: ignore[reportAttributeAccessIssue]
    driver.tell(RecordSeen(revision=2, record=replace(CHOSEN, epoch=3)))
    assert driver.machine.facts.member.fence is None


def test_what_was_found_out_by_following_is_of_one_leader(follower: Driver) -> None:
    # The leader of epoch 2 lacks some of its WAL; that of epoch 3 may have it.
    follower.tell(RecordSeen(revision=2, record=serving(2)))
    follower.tell(PromiseStored(ticket=follower.ticket(StorePromise)))
    follower.tell(LedgerFailed(ticket=follower.ticket(FollowLedger), reason="no", diverged=True))
    facts = follower.machine.facts
    assert facts.member.diverged
    facts.member.rebuilt_epoch = 2
    follower.tell(RecordSeen(revision=3, record=replace(serving(3, A), ancestry=(1, 2, 3))))
    assert (facts.member.diverged, facts.member.rebuilt_epoch) == (False, 0)
    follower.tell(PromiseStored(ticket=follower.ticket(StorePromise)))
    assert follower.asked(FollowLedger).leader == A


def test_a_vote_for_an_earlier_epoch_does_not_freeze_a_member_for_one_that_is_handed_over() -> None:
    # It was not the successor that let go of a drained leader: it is frozen, and looked at, for this epoch.
    driver = following(B)
    driver.tell(RecordSeen(revision=2, record=replace(RECRUITING, leader=C)))
    driver.freezes(500)
    later = replace(HANDED_OVER, epoch=5, handed_over_at=Position(4, 400))
    driver.tell(RecordSeen(revision=5, record=later))
    assert driver.machine.facts.member.frozen_vote is None
    assert driver.asked(FreezeLedger).epoch == 5


def test_a_member_that_may_receive_again_is_frozen_anew_for_the_epoch_that_is_handed_over(successor: Driver) -> None:
    # The leader went on in between: whether the following took place nobody knows.
    successor.tell(LedgerDone(ticket=gets_ready(successor)))
    successor.tell(GossipHeard(sender=A, gossip=Gossip(epoch=1)))
    assert FollowLedger in successor.kinds()
    successor.tell(GossipHeard(sender=A, gossip=Gossip(epoch=1, drained=1)))
    assert successor.effects == []
    successor.tell(GossipHeard(sender=A, gossip=Gossip(epoch=2, drained=1, release=RELEASE)))
    assert successor.asked(FreezeLedger).epoch == 2
    assert successor.machine.facts.member.frozen_vote is None


def test_a_freezing_that_failed_is_asked_for_again_in_the_epoch_that_is_handed_over(successor: Driver) -> None:
    successor.tell(RecordSeen(revision=2, record=PROMISED))
    successor.tell(GossipHeard(sender=A, gossip=Gossip(epoch=1, drained=1)))
    successor.tell(LedgerFailed(ticket=successor.ticket(FreezeLedger), reason="no"))
    assert prepares_until(successor.machine.facts) is not None
    successor.tell(GossipHeard(sender=A, gossip=Gossip(epoch=2, drained=1, release=RELEASE)))
    assert successor.asked(FreezeLedger).epoch == 2


def test_relief_ends_with_the_epoch(successor: Driver) -> None:
    gets_ready(successor)
    assert prepares_until(successor.machine.facts) is not None
    successor.tell(RecordSeen(revision=3, record=HANDED_OVER))
    assert prepares_until(successor.machine.facts) is None


# What counts from when.


def test_the_time_of_an_epoch_counts_from_each_change_of_who_acts_and_how(follower: Driver) -> None:
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
        follower.tell(RecordSeen(revision=at + 2, record=record))
        times.append(follower.machine.facts.record_since)
    assert times == [0, 0, 2, 2, 4, 5, 5, 7]


def test_a_change_that_lets_the_same_region_act_leaves_pauses_and_agreement_alone(follower: Driver) -> None:
    follower.tell(SuspicionChanged(region=A, suspected=True))
    follower.tell(GossipHeard(sender=B, gossip=Gossip(epoch=1, suspects=1)))
    follower.now = 0.1
    follower.tell(AgentPaused())
    follower.tell(ReadFailed(ticket=follower.ticket(ReadRecord)))
    facts = follower.machine.facts
    facts.requests.ledger_retry = replace(facts.requests.etcd_retry, pause_s=0.4)
    before = (facts.peers.leader_suspected_since, facts.requests.etcd_retry, facts.requests.ledger_retry)
    assert before[0] == 0
    follower.tell(RecordSeen(revision=2, record=replace(SERVING, drained=(C,))))
    assert (facts.peers.leader_suspected_since, facts.requests.etcd_retry, facts.requests.ledger_retry) == before
    follower.tell(RecordSeen(revision=3, record=RECRUITING))
    assert facts.peers.leader_suspected_since is None
    assert facts.requests.etcd_retry.at is None
    assert (facts.requests.etcd_retry.pause_s, facts.requests.ledger_retry.pause_s) == (0, 0)


def test_agreement_about_a_candidate_counts_anew_once_it_was_chosen(follower: Driver) -> None:
    follower.tell(RecordSeen(revision=2, record=RECRUITING))
    follower.now = 0.1
    follower.tell(SuspicionChanged(region=B, suspected=True))
    follower.tell(GossipHeard(sender=A, gossip=Gossip(epoch=2, suspects=2)))
    assert follower.machine.facts.peers.leader_suspected_since == 0.1
    follower.now = 0.2
    follower.tell(RecordSeen(revision=3, record=CHOSEN))
    assert follower.machine.facts.peers.leader_suspected_since == 0.2


def test_head_starts_count_from_the_moment_in_which_suspicion_may_begin_an_epoch_again(follower: Driver) -> None:
    facts = follower.machine.facts
    agreed: list[float | None] = []
    follower.tell(RecordSeen(revision=2, record=replace(SERVING, automatic=False)))
    follower.now = 1.0
    follower.tell(SuspicionChanged(region=A, suspected=True))
    follower.tell(GossipHeard(sender=B, gossip=Gossip(epoch=1, suspects=1)))
    for at, automatic in ((2.0, False), (3.0, True), (4.0, True), (5.0, False)):
        follower.now = at
        drained = (C,) if at in (2.0, 4.0) else ()
        follower.tell(RecordSeen(revision=int(at) + 1, record=replace(SERVING, automatic=automatic, drained=drained)))
        agreed.append(facts.peers.leader_suspected_since)
        if at == 3.0:
            assert follower.machine.next_deadline() == 3.0 + DEFAULTS.claim_stagger_s
    assert agreed == [1.0, 3.0, 3.0, 3.0]


def test_what_the_story_tells_of_a_record(follower: Driver) -> None:
    said: list[list[str]] = []
    changes = [CHOSEN, replace(CHOSEN, drained=(A,)), serving(2), replace(serving(2), drained=(C,))]
    for at, record in enumerate([RECRUITING, *changes]):
        follower.tell(RecordSeen(revision=at + 2, record=record))
        said.append([one.text for one in follower.effects if isinstance(one, Log)])
    assert said == [
        ["epoch 2: eu-west recruiting: first start"],
        ["epoch 2: eu-west was chosen"],
        [],
        ["epoch 2: eu-west serves"],
        [],
    ]


# Rule 17: failovers by suspicion are counted, the latest few.


def test_the_latest_failovers_by_suspicion_are_remembered_and_no_switch(follower: Driver) -> None:
    facts = follower.machine.facts
    for epoch in range(2, 8):
        follower.now = float(epoch)
        target = B if epoch == 6 else None
        for at, phase in enumerate(("promoting", "serving", "serving")):
            record = replace(serving(epoch), phase=phase, target=target, drained=(C,) if at == 2 else ())
            follower.tell(RecordSeen(revision=3 * epoch + at, record=record))
    assert facts.failovers == (4.0, 5.0, 7.0)


def test_a_failover_counts_for_who_saw_how_it_ended(follower: Driver) -> None:
    # It was away for the promotion, or found the cell as it is.
    follower.tell(RecordSeen(revision=2, record=RECRUITING))
    follower.tell(RecordSeen(revision=3, record=serving(2)))
    assert follower.machine.facts.failovers == ()


# Orders end with the epoch in which they were given.


def test_an_order_to_resize_outlives_a_change_of_the_record_that_leaves_the_voters_alone() -> None:
    driver = Driver(A)
    four = replace(SERVING, voters=(A, B, C, D))
    driver.start(MemberState(kind="primary", epoch=1), Promise(epoch=1, lineage=1), record=four)
    driver.tell(LedgerDone(ticket=driver.ticket(SetQuorum)))
    driver.tell(order("remove", D))
    driver.tell(RecordSeen(revision=2, record=replace(four, drained=(C,))))
    assert AnswerOrder not in driver.kinds()
    assert driver.machine.facts.resize is not None


@pytest.mark.parametrize(
    ("record", "refused"),
    [
        (replace(HANDED_OVER, handed_over_at=None), None),
        (replace(RECRUITING, leader=C), "another epoch began"),
    ],
    ids=["of the target", "of another"],
)
def test_a_handover_ends_with_the_epoch_and_is_done_when_the_next_is_of_its_target(
    leader: Driver, record: Leadership, refused: str | None
) -> None:
    hands_over(leader)
    leader.tell(RecordSeen(revision=3, record=record))
    facts = leader.machine.facts
    assert AnswerOrder(ticket=7, refused=refused) in leader.effects
    assert (facts.switchover, announced_at(facts), drained_to(facts)) == (None, 0, None)


# Who has handed over rests only for the successor to whom it did.


@pytest.mark.parametrize(
    "record",
    [
        replace(HANDED_OVER, epoch=4, leader=C, handed_over_at=None),
        replace(HANDED_OVER, phase="serving", fence_id=SERVING.fence_id),
        replace(HANDED_OVER, epoch=3, leader=C, phase="recruiting"),
    ],
    ids=["another was chosen", "the successor serves", "another recruits"],
)
def test_who_has_handed_over_comes_back_when_its_successor_is_not_on_its_way_any_more(
    leader: Driver, record: Leadership
) -> None:
    has_handed_over(leader)
    assert restart_delayed_until(leader.machine.facts) == DEFAULTS.rest_s
    leader.tell(RecordSeen(revision=4, record=record))
    assert restart_delayed_until(leader.machine.facts) is None


def test_who_has_handed_over_rests_on_while_its_successor_is_promoted(leader: Driver) -> None:
    has_handed_over(leader)
    leader.tell(RecordSeen(revision=4, record=replace(HANDED_OVER, automatic=False)))
    assert restart_delayed_until(leader.machine.facts) == DEFAULTS.rest_s


# Releases.


def test_a_release_that_is_heard_again_asks_etcd_nothing_again(successor: Driver) -> None:
    release = replace(RELEASE, revision=4)
    successor.tell(GossipHeard(sender=A, gossip=Gossip(epoch=1, release=release)))
    assert successor.asked(ReadRecord).linearizable
    for sender in (A, C):
        successor.tell(GossipHeard(sender=sender, gossip=Gossip(epoch=1, release=release, drained=1)))
        assert successor.effects == []


def test_an_older_release_does_not_replace_a_newer_one(successor: Driver) -> None:
    newer = Release(epoch=3, revision=9, successor=B, lsn=900)
    successor.tell(GossipHeard(sender=A, gossip=Gossip(epoch=3, release=newer)))
    successor.tell(GossipHeard(sender=C, gossip=Gossip(epoch=3, release=RELEASE)))
    assert successor.machine.facts.release == newer
    newest = replace(newer, epoch=4)
    successor.tell(GossipHeard(sender=C, gossip=Gossip(epoch=4, release=newest)))
    assert successor.machine.facts.release == newest


def test_a_release_that_names_no_revision_means_nothing_to_who_knows_no_record() -> None:
    driver = Driver(B)
    driver.tell(Started(promise=Promise(epoch=1, lineage=1), ledger=MemberState(kind="following", epoch=1)))
    driver.tell(GossipHeard(sender=A, gossip=Gossip(release=replace(RELEASE, revision=0))))
    assert driver.machine.facts.record is None


# A member that is copied gets the time that an epoch gives to others.


def test_the_time_of_an_epoch_counts_from_the_end_of_its_copy() -> None:
    driver = Driver(C)
    driver.start(MemberState(kind="absent"), Promise(epoch=1, lineage=1))
    driver.tell(PromiseStored(ticket=driver.ticket(StorePromise)))
    driver.now = 100.0
    driver.tell(LedgerDone(ticket=driver.machine.facts.requests.working.ticket))  # pyright: ignore[reportOptionalMemberAccess]
    facts = driver.machine.facts
    assert (facts.record_since, facts.member.rebuilt_epoch, facts.member.diverged) == (100.0, 1, False)
    assert facts.member.ledger == MemberState(kind="stopped")


def test_data_that_cannot_be_used_any_more_are_copied_anew_in_the_same_epoch() -> None:
    driver = Driver(C)
    driver.start(MemberState(kind="absent"), Promise(epoch=1, lineage=1))
    driver.tell(PromiseStored(ticket=driver.ticket(StorePromise)))
    driver.tell(LedgerDone(ticket=driver.ticket(CopyLedger)))
    driver.tell(LedgerFailed(ticket=driver.ticket(FollowLedger), reason="broken page", torn=True))
    assert driver.machine.facts.member.ledger == MemberState(kind="absent")
    assert driver.machine.facts.member.rebuilt_epoch == 0
    driver.wait(DEFAULTS.retry_s)
    assert CopyLedger in driver.kinds()


def test_a_following_that_failed_for_another_reason_is_tried_again(follower: Driver) -> None:
    follower.tell(RecordSeen(revision=2, record=serving(2)))
    follower.tell(PromiseStored(ticket=follower.ticket(StorePromise)))
    follower.tell(LedgerFailed(ticket=follower.ticket(FollowLedger), reason="no route"))
    facts = follower.machine.facts
    assert not facts.member.diverged
    assert facts.requests.ledger_retry.pause_s == DEFAULTS.retry_s
    follower.wait(DEFAULTS.retry_s)
    follower.tell(LedgerDone(ticket=follower.ticket(FollowLedger)))
    assert facts.requests.ledger_retry.pause_s == 0


def test_only_a_following_that_failed_says_that_histories_part(follower: Driver) -> None:
    follower.tell(RecordSeen(revision=2, record=RECRUITING))
    follower.tell(LedgerFailed(ticket=follower.ticket(FreezeLedger), reason="no", diverged=True))
    assert not follower.machine.facts.member.diverged


def test_a_member_that_followed_and_ended_follows_again_without_a_rewind(follower: Driver) -> None:
    follower.tell(RecordSeen(revision=2, record=serving(2)))
    follower.tell(PromiseStored(ticket=follower.ticket(StorePromise)))
    follower.tell(LedgerDone(ticket=follower.ticket(FollowLedger)))
    assert follower.machine.state == "following"
    follower.tell(LedgerEnded())
    assert FollowLedger in follower.kinds()


def test_a_member_that_is_absent_or_that_nobody_holds_does_not_end() -> None:
    for ledger in (MemberState(kind="absent"), None):
        driver = Driver(D)
        driver.start(ledger, Promise())
        driver.tell(LedgerEnded())
        assert driver.effects == []
        assert driver.machine.facts.member.ledger == ledger


def test_a_member_that_ends_is_asked_for_anew_at_once(follower: Driver) -> None:
    follower.tell(RecordSeen(revision=2, record=serving(2)))
    follower.tell(PromiseStored(ticket=follower.ticket(StorePromise)))
    first = follower.ticket(FollowLedger)
    follower.tell(LedgerEnded())
    assert follower.ticket(FollowLedger) > first


def test_swaps_are_not_made_by_who_does_not_act(follower: Driver) -> None:
    follower.tell(RecordSeen(revision=2, record=PROMISED))
    assert SwapRecord not in follower.kinds()

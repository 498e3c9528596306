"""Tests of the machine of a cell for cases that no transcript in tests/scenarios shows.

They cover answers without a request, bounds, switchovers, changes of voters, restarts and clones.
"""

from dataclasses import replace

import pytest

from regions.failover.effects import (
    AnswerOrder,
    AnswerStrongReads,
    DrainLedger,
    FollowLedger,
    FreezeLedger,
    Log,
    PromoteLedger,
    ReadRecord,
    SetQuorum,
    StopLedger,
    StopServing,
    StorePromise,
    SwapRecord,
    WriteFence,
)
from regions.failover.events import (
    AgentPaused,
    Event,
    Gossip,
    GossipHeard,
    LedgerDone,
    LedgerDrained,
    LedgerEnded,
    LedgerFailed,
    LedgerFrozen,
    MemberState,
    Promise,
    PromiseFailed,
    PromiseStored,
    QuorumCommit,
    ReadFailed,
    RecordRead,
    RecordSeen,
    StandbysStreaming,
    Started,
    StrongReads,
    SuspicionChanged,
    SwapAnswered,
    Tick,
)
from regions.failover.requests import STRONG_READS_MAX
from regions.failover.settings import DEFAULTS
from regions.identity import RegionName
from regions.leadership import ANCESTRY_MAX, Succession
from tests.regions.failover.driver import (
    ANNOUNCED,
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
    order,
    prepare_successor,
    release_epoch,
    restarted,
)
from tests.regions.failover.facts_builder import announced_at


def test_started_comes_first_and_once(follower: Driver) -> None:
    with pytest.raises(AssertionError, match="Started comes first"):
        Driver(B).handle(Tick())
    with pytest.raises(AssertionError, match="Started comes first"):
        follower.handle(Started(promise=Promise(), ledger=None))


def test_a_record_with_a_lower_epoch_is_an_assertion_error(follower: Driver) -> None:
    follower.handle(RecordSeen(revision=2, record=RECRUITING))
    with pytest.raises(AssertionError, match="never goes back"):
        follower.handle(RecordSeen(revision=3, record=SERVING))


@pytest.mark.parametrize(
    "event",
    [
        Tick(),
        PromiseStored(ticket=1),
        PromiseFailed(ticket=1, reason="no space left"),
        ReadFailed(ticket=1),
        RecordRead(ticket=1, revision=9, record=RECRUITING),
        SwapAnswered(ticket=1, outcome="applied", revision=9),
        LedgerDone(ticket=1),
        LedgerFailed(ticket=1, reason="no"),
        LedgerFrozen(ticket=1, receiving=False, received=1, replayed=1, ancestry=(1,)),
        RecordSeen(revision=1, record=RECRUITING),
        SuspicionChanged(region=B, suspected=False),
        QuorumCommit(lsn=0),
    ],
    ids=lambda event: type(event).__name__,
)
def test_an_answer_without_a_request_changes_nothing(follower: Driver, event: Event) -> None:
    before = replace(follower.machine.facts)
    follower.handle(event)
    assert follower.machine.facts == before
    assert follower.effects == []


def test_the_end_of_a_stopped_member_is_ignored() -> None:
    driver = Driver(C)
    driver.start(MemberState(kind="stopped"), Promise(epoch=1, lineage=1))
    driver.handle(LedgerEnded())
    assert driver.effects == []


def test_a_vote_has_at_most_ancestry_max_epochs(follower: Driver) -> None:
    follower.handle(RecordSeen(revision=2, record=RECRUITING))
    epochs = tuple(range(1, ANCESTRY_MAX + 9))
    answer = LedgerFrozen(
        ticket=follower.ticket(FreezeLedger), receiving=False, received=1, replayed=1, ancestry=epochs
    )
    follower.handle(answer)
    assert follower.machine.facts.member.frozen_vote is not None
    assert follower.machine.facts.member.frozen_vote.ancestry == epochs[-ANCESTRY_MAX:]
    assert follower.machine.facts.member.frozen_vote.position.epoch == epochs[-1]


def test_an_absent_member_is_not_frozen_and_does_not_vote() -> None:
    driver = Driver(C)
    driver.start(MemberState(kind="absent"), Promise(epoch=1, lineage=1))
    driver.handle(RecordSeen(revision=2, record=RECRUITING))
    assert FreezeLedger not in driver.kinds()
    assert driver.machine.state == "freezing"
    assert driver.machine.gossip.vote is None


def test_strong_reads_beyond_the_bound_are_answered_as_not_current_at_once(leader: Driver) -> None:
    leader.handle(StrongReads(requests=(1,)))
    leader.handle(StrongReads(requests=tuple(range(2, STRONG_READS_MAX + 4))))
    assert leader.effects == [AnswerStrongReads(requests=(STRONG_READS_MAX + 2, STRONG_READS_MAX + 3), current=False)]


def test_an_unanswered_read_of_etcd_is_repeated_after_growing_pauses(follower: Driver) -> None:
    follower.handle(AgentPaused())
    pauses: list[float] = []
    for _ in range(7):
        assert follower.kinds() == [ReadRecord]
        due = follower.machine.next_deadline()
        assert due == pytest.approx(follower.now + DEFAULTS.request_s_max)
        follower.now += DEFAULTS.request_s_max
        follower.handle(Tick())
        assert follower.logged("etcd does not answer")
        due = follower.machine.next_deadline()
        assert due is not None
        pauses.append(round(due - follower.now, 6))
        follower.now = due
        follower.handle(Tick())
    assert pauses == [0.05, 0.1, 0.2, 0.4, 0.8, 1.0, 1.0]


def test_a_read_that_began_before_a_pause_of_the_agent_does_not_count(follower: Driver) -> None:
    follower.handle(AgentPaused())
    before = follower.ticket(ReadRecord)
    follower.handle(AgentPaused())
    follower.handle(RecordRead(ticket=before, revision=1, record=SERVING))
    assert follower.machine.facts.outdated


def test_a_second_heartbeat_with_the_same_epoch_does_not_restart_the_read(follower: Driver) -> None:
    follower.handle(GossipHeard(sender=A, gossip=Gossip(epoch=2)))
    assert follower.kinds() == [ReadRecord]
    follower.handle(GossipHeard(sender=B, gossip=Gossip(epoch=2)))
    assert follower.effects == []
    follower.handle(GossipHeard(sender=B, gossip=Gossip(epoch=3)))
    assert follower.kinds() == [ReadRecord]


def test_a_primary_stops_serving_before_it_stops_when_the_record_names_another_leader(leader: Driver) -> None:
    leader.handle(RecordSeen(revision=2, record=replace(SERVING, leader=B)))
    assert [kind for kind in leader.kinds() if kind in (StopServing, StopLedger)] == [StopServing, StopLedger]


def test_an_order_whose_swap_is_lost_is_refused(leader: Driver) -> None:
    leader.handle(order("pause"))
    leader.handle(SwapAnswered(ticket=leader.ticket(SwapRecord), outcome="lost"))
    refused = "the record changed meanwhile, or etcd did not answer: ask again"
    assert AnswerOrder(ticket=7, refused=refused) in leader.effects


def test_a_lost_swap_of_another_order_does_not_end_a_hand_over(leader: Driver) -> None:
    leader.handle(StandbysStreaming(regions=frozenset({B, C})))
    leader.handle(order("pause", ticket=7))
    swap = leader.ticket(SwapRecord)
    leader.handle(order("switch", B, ticket=8))
    assert leader.kinds() == [Log]
    leader.handle(SwapAnswered(ticket=swap, outcome="lost"))
    assert leader.machine.state == "handing-over"
    leader.handle(RecordRead(ticket=leader.ticket(ReadRecord), revision=1, record=SERVING))
    leader.handle(SwapAnswered(ticket=leader.ticket(SwapRecord), outcome="applied", revision=2))
    assert leader.kinds()[:2] == [StopServing, DrainLedger]


# A switchover: the leader announces the successor of the next epoch, which begins with its release (rule 20).


def test_a_leader_accepts_writes_until_its_announcement_is_confirmed(leader: Driver) -> None:
    leader.handle(StandbysStreaming(regions=frozenset({B, C})))
    leader.handle(replace(order("switch", B), by="me"))
    assert leader.machine.facts.member.serving_epoch == 1
    assert leader.requested_record() == ANNOUNCED
    leader.handle(SwapAnswered(ticket=leader.ticket(SwapRecord), outcome="applied", revision=2))
    assert leader.machine.facts.member.serving_epoch == 0


def test_a_leader_releases_its_epoch_only_after_its_postgresql_stopped(leader: Driver) -> None:
    announce_switchover(leader)
    leader.handle(LedgerDrained(ticket=leader.ticket(DrainLedger), lsn=500))
    assert leader.machine.gossip.release is None
    leader.handle(LedgerDone(ticket=leader.ticket(StopLedger)))
    assert leader.machine.gossip.release == RELEASE
    assert leader.machine.facts.record == HANDED_OVER
    assert AnswerOrder(ticket=7, refused=None) in leader.effects


def test_a_postgresql_that_ends_by_itself_releases_nothing(leader: Driver) -> None:
    announce_switchover(leader)
    leader.handle(LedgerDrained(ticket=leader.ticket(DrainLedger), lsn=500))
    leader.handle(LedgerEnded())
    assert leader.machine.gossip.release is None
    assert leader.requested_record().epoch == 3


def test_a_leader_announces_again_after_an_unanswered_announcement(leader: Driver) -> None:
    # The first swap succeeded, but its answer was lost; a swap that was given up earlier may still succeed after it.
    leader.handle(StandbysStreaming(regions=frozenset({B, C})))
    leader.handle(replace(order("switch", B), by="me"))
    leader.handle(SwapAnswered(ticket=leader.ticket(SwapRecord), outcome="unknown"))
    read = leader.ticket(ReadRecord)
    leader.handle(order("switch", B, ticket=8))
    leader.handle(RecordRead(ticket=read, revision=2, record=ANNOUNCED))
    assert announced_at(leader.machine.facts) == 0
    leader.handle(SwapAnswered(ticket=leader.ticket(SwapRecord), outcome="applied", revision=3))
    assert announced_at(leader.machine.facts) == 3


def test_a_leader_withdraws_its_announcement_when_the_drain_failed(leader: Driver) -> None:
    announce_switchover(leader)
    leader.handle(LedgerFailed(ticket=leader.ticket(DrainLedger), reason="slow"))
    assert leader.machine.facts.member.serving_epoch == 1
    assert leader.requested_record().succession is None


def test_the_successor_begins_the_next_epoch_when_it_hears_the_release(successor: Driver) -> None:
    successor.handle(RecordSeen(revision=2, record=ANNOUNCED))
    assert successor.machine.state == "following"
    successor.handle(GossipHeard(sender=A, gossip=Gossip(epoch=2, release=RELEASE)))
    assert successor.machine.facts.record == HANDED_OVER
    assert successor.requested_record() == HANDED_OVER
    assert FreezeLedger in successor.kinds()


def test_an_old_leader_leaves_its_postgresql_stopped_until_the_successor_serves(leader: Driver) -> None:
    release_epoch(leader)
    assert StorePromise not in leader.kinds()
    due = leader.machine.next_deadline()
    assert due is not None
    assert due <= leader.now + DEFAULTS.rest_s
    leader.handle(RecordSeen(revision=4, record=replace(HANDED_OVER, phase="serving", fence_id=SERVING.fence_id)))
    assert StorePromise in leader.kinds()


@pytest.mark.parametrize(
    "way", ["the delay is over", "another voter is silent", "the successor is silent", "a later epoch"]
)
def test_an_old_leader_rejoins_when_its_delay_is_over_or_it_may_be_needed(leader: Driver, way: str) -> None:
    release_epoch(leader)
    match way:
        case "the delay is over":
            leader.now += DEFAULTS.rest_s
            leader.handle(Tick())
        case "another voter is silent":
            leader.handle(SuspicionChanged(region=C, suspected=True))
        case "the successor is silent":
            leader.handle(SuspicionChanged(region=B, suspected=True))
        case _:
            leader.handle(RecordSeen(revision=4, record=replace(ANNOUNCED, epoch=3, leader=C, phase="recruiting")))
            assert FreezeLedger in leader.kinds()
            return
    assert StorePromise in leader.kinds()
    leader.handle(PromiseStored(ticket=leader.ticket(StorePromise)))
    assert FollowLedger in leader.kinds()


def test_an_old_leader_rejoins_at_once_in_a_cell_of_two_voters(leader: Driver) -> None:
    leader.handle(RecordSeen(revision=2, record=replace(SERVING, voters=(A, B))))
    leader.machine.facts.member.quorum = (B,)
    leader.handle(StandbysStreaming(regions=frozenset({B})))
    leader.handle(replace(order("switch", B), by="me"))
    leader.handle(SwapAnswered(ticket=leader.ticket(SwapRecord), outcome="applied", revision=3))
    leader.handle(LedgerDrained(ticket=leader.ticket(DrainLedger), lsn=500))
    leader.handle(LedgerDone(ticket=leader.ticket(StopLedger)))
    assert StorePromise in leader.kinds()


def test_the_successor_freezes_once_when_the_leader_has_drained(successor: Driver) -> None:
    successor.handle(RecordSeen(revision=2, record=ANNOUNCED))
    successor.handle(GossipHeard(sender=A, gossip=Gossip(epoch=1, drained=1)))
    frozen = LedgerFrozen(
        ticket=successor.ticket(FreezeLedger), receiving=False, received=500, replayed=500, ancestry=(1,)
    )
    successor.handle(frozen)
    assert successor.kinds() == [Log, SetQuorum], "it prepares to lead, and publishes no vote"
    assert successor.machine.gossip.vote is None
    successor.handle(LedgerDone(ticket=successor.ticket(SetQuorum)))
    assert successor.kinds() == [], "it waits for the release"
    successor.handle(GossipHeard(sender=A, gossip=Gossip(epoch=2, drained=1, release=RELEASE)))
    assert not {FreezeLedger, SetQuorum} & set(successor.kinds())
    (stored,) = (one.promise for one in successor.effects if isinstance(one, StorePromise))
    assert (stored.epoch, stored.lineage) == (2, 2)
    successor.handle(PromiseStored(ticket=successor.ticket(StorePromise)))
    assert PromoteLedger in successor.kinds()


def test_a_freeze_in_progress_continues_when_the_leader_releases(successor: Driver) -> None:
    successor.handle(RecordSeen(revision=2, record=ANNOUNCED))
    successor.handle(GossipHeard(sender=A, gossip=Gossip(epoch=1, drained=1)))
    under_way = successor.ticket(FreezeLedger)
    successor.handle(GossipHeard(sender=A, gossip=Gossip(epoch=2, drained=1, release=RELEASE)))
    assert FreezeLedger not in successor.kinds()
    successor.handle(
        LedgerFrozen(ticket=under_way, receiving=False, received=RELEASE.lsn, replayed=RELEASE.lsn, ancestry=(1,))
    )
    assert successor.machine.facts.member.frozen_vote is not None
    assert successor.machine.facts.member.frozen_vote.epoch == 2
    assert SetQuorum in successor.kinds()


def test_a_quorum_change_in_progress_continues_when_the_leader_releases(successor: Driver) -> None:
    under_way = prepare_successor(successor)
    successor.handle(GossipHeard(sender=A, gossip=Gossip(epoch=2, drained=1, release=RELEASE)))
    assert not {FreezeLedger, SetQuorum, StorePromise} & set(successor.kinds())
    successor.handle(LedgerDone(ticket=under_way))
    assert StorePromise in successor.kinds()


def test_the_quorum_of_a_preparation_is_discarded_when_the_successor_follows_again(successor: Driver) -> None:
    successor.handle(LedgerDone(ticket=prepare_successor(successor)))
    successor.handle(GossipHeard(sender=A, gossip=Gossip(epoch=1)))
    successor.handle(LedgerDone(ticket=successor.ticket(FollowLedger)))
    assert successor.machine.facts.member.quorum is None


def test_the_quorum_of_a_preparation_is_discarded_when_another_epoch_begins(successor: Driver) -> None:
    successor.handle(LedgerDone(ticket=prepare_successor(successor)))
    successor.handle(RecordSeen(revision=3, record=replace(ANNOUNCED, epoch=3, leader=C, phase="recruiting")))
    assert successor.machine.facts.member.quorum is None
    assert FreezeLedger in successor.kinds()


@pytest.mark.parametrize("way", ["the leader continues", "the leader is silent"])
def test_the_successor_follows_again_when_no_release_arrives(successor: Driver, way: str) -> None:
    successor.handle(RecordSeen(revision=2, record=ANNOUNCED))
    successor.handle(GossipHeard(sender=A, gossip=Gossip(epoch=1, drained=1)))
    frozen = LedgerFrozen(
        ticket=successor.ticket(FreezeLedger), receiving=False, received=500, replayed=500, ancestry=(1,)
    )
    successor.handle(frozen)
    if way == "the leader continues":
        successor.handle(GossipHeard(sender=A, gossip=Gossip(epoch=1)))
    else:
        successor.now += DEFAULTS.stall_s
        successor.handle(Tick())
    assert FollowLedger in successor.kinds()


def test_a_successor_that_missed_that_it_votes_again_still_leads(successor: Driver) -> None:
    successor.handle(RecordSeen(revision=2, record=replace(ANNOUNCED, voters=(A, C), succession=None)))
    assert successor.machine.state == "observing"
    successor.handle(GossipHeard(sender=A, gossip=Gossip(epoch=2, release=replace(RELEASE, revision=4))))
    successor.handle(RecordRead(ticket=successor.ticket(ReadRecord), revision=4, record=ANNOUNCED))
    assert successor.machine.facts.record == HANDED_OVER
    assert successor.machine.state == "promoting"


def test_a_follower_that_is_not_the_successor_keeps_following(follower: Driver) -> None:
    follower.handle(RecordSeen(revision=2, record=ANNOUNCED))
    follower.handle(GossipHeard(sender=A, gossip=Gossip(epoch=1, drained=1)))
    assert follower.effects == []


def test_a_release_is_kept_until_its_record_is_known(successor: Driver) -> None:
    # An older record of the same epoch may announce another successor.
    other = replace(ANNOUNCED, succession=Succession(region=C, reason="switch to c"))
    successor.handle(RecordSeen(revision=2, record=other))
    successor.handle(GossipHeard(sender=A, gossip=Gossip(epoch=2, release=replace(RELEASE, revision=4))))
    assert successor.machine.facts.record == other
    successor.handle(RecordRead(ticket=successor.ticket(ReadRecord), revision=4, record=ANNOUNCED))
    assert successor.machine.facts.record == HANDED_OVER


def test_a_later_change_of_the_old_record_does_not_revoke_the_release(successor: Driver) -> None:
    successor.handle(RecordSeen(revision=2, record=ANNOUNCED))
    successor.handle(GossipHeard(sender=A, gossip=Gossip(epoch=2, release=RELEASE)))
    successor.handle(RecordSeen(revision=3, record=replace(ANNOUNCED, automatic=False)))
    assert successor.machine.facts.record == replace(HANDED_OVER, automatic=False)


def test_a_successor_that_lacks_wal_of_the_leader_is_not_promoted(successor: Driver) -> None:
    successor.handle(RecordSeen(revision=2, record=ANNOUNCED))
    successor.handle(GossipHeard(sender=A, gossip=Gossip(epoch=2, release=RELEASE)))
    frozen = LedgerFrozen(
        ticket=successor.ticket(FreezeLedger), receiving=False, received=499, replayed=499, ancestry=(1,)
    )
    successor.handle(frozen)
    successor.handle(LedgerDone(ticket=successor.ticket(SetQuorum)))
    assert successor.effects == []


@pytest.mark.parametrize("region", [B, C])
def test_a_candidate_skips_the_epoch_that_is_promised_to_the_successor(region: RegionName) -> None:
    # The successor skips it as well: without the release no agent knows what the leader has acknowledged.
    driver = Driver(region)
    driver.start(MemberState(kind="following", epoch=1), Promise(epoch=1, lineage=1))
    driver.handle(RecordSeen(revision=2, record=ANNOUNCED))
    driver.handle(SuspicionChanged(region=A, suspected=True))
    driver.handle(GossipHeard(sender=B if region == C else C, gossip=Gossip(epoch=1, suspects=1)))
    driver.now += DEFAULTS.claim_stagger_s
    driver.handle(Tick())
    assert driver.machine.facts.requests.swapping is not None
    assert (
        driver.machine.facts.requests.swapping.record.epoch,
        driver.machine.facts.requests.swapping.record.phase,
    ) == (3, "recruiting")


def test_a_resize_is_refused_when_another_epoch_begins() -> None:
    driver = Driver(A)
    four = replace(SERVING, voters=(A, B, C, D))
    driver.start(MemberState(kind="primary", epoch=1), Promise(epoch=1, lineage=1), record=four)
    driver.handle(LedgerDone(ticket=driver.ticket(SetQuorum)))
    driver.handle(order("remove", D))
    driver.handle(RecordSeen(revision=2, record=replace(four, epoch=2, leader=B, phase="recruiting", fence_id=None)))
    assert AnswerOrder(ticket=7, refused="another epoch began") in driver.effects


# Voters change one at a time, whatever the outcome of earlier swaps.


@pytest.fixture
def leader_of_four() -> Driver:
    """Return the agent of A, which leads four voters and removes D: its swap to the other three is pending."""
    driver = Driver(A)
    driver.start(MemberState(kind="primary", epoch=1), Promise(epoch=1, lineage=1), record=FOUR)
    driver.handle(LedgerDone(ticket=driver.ticket(SetQuorum)))
    driver.handle(order("pause", ticket=6))
    driver.handle(SwapAnswered(ticket=driver.ticket(SwapRecord), outcome="applied", revision=2))
    driver.handle(order("remove", D))
    driver.handle(LedgerDone(ticket=driver.ticket(SetQuorum)))
    return driver


FOUR = replace(SERVING, voters=(A, B, C, D))
WITHOUT_D = replace(FOUR, automatic=False, voters=(A, B, C))


def lose_swap_answer(driver: Driver) -> None:
    """Lose the answer to the swap; a read shows that etcd has not executed it, and the old quorum is set again."""
    driver.handle(SwapAnswered(ticket=driver.ticket(SwapRecord), outcome="unknown"))
    driver.handle(RecordRead(ticket=driver.ticket(ReadRecord), revision=2, record=replace(FOUR, automatic=False)))
    driver.handle(LedgerDone(ticket=driver.machine.facts.requests.last_ticket))


def test_a_leader_removes_a_voter_after_its_own_swap_settled_earlier_ones(leader_of_four: Driver) -> None:
    assert leader_of_four.requested_record() == WITHOUT_D


def test_the_quorum_does_not_change_while_the_swap_is_pending(leader_of_four: Driver) -> None:
    leader_of_four.handle(Tick())
    assert leader_of_four.effects == []


def test_a_leader_overtakes_an_unsettled_swap_before_it_removes_another_voter(leader_of_four: Driver) -> None:
    lose_swap_answer(leader_of_four)
    assert leader_of_four.machine.facts.member.quorum == (B, C, D)
    leader_of_four.handle(order("remove", C, ticket=8))
    assert SetQuorum not in leader_of_four.kinds()
    assert leader_of_four.requested_record() == replace(FOUR, automatic=False)
    leader_of_four.handle(SwapAnswered(ticket=leader_of_four.ticket(SwapRecord), outcome="applied", revision=3))
    leader_of_four.handle(LedgerDone(ticket=leader_of_four.ticket(SetQuorum)))
    assert leader_of_four.requested_record() == replace(FOUR, automatic=False, voters=(A, B, D))


@pytest.mark.parametrize(("region", "answer"), [(D, None), (C, "other voters were recorded meanwhile: ask again")])
def test_an_unsettled_swap_that_succeeds_answers_the_next_order(
    leader_of_four: Driver, region: RegionName, answer: str | None
) -> None:
    lose_swap_answer(leader_of_four)
    leader_of_four.handle(order("remove", region, ticket=8))
    leader_of_four.handle(RecordSeen(revision=3, record=WITHOUT_D))
    assert AnswerOrder(ticket=8, refused=answer) in leader_of_four.effects
    assert leader_of_four.machine.facts.resize is None


def test_a_swap_of_another_agent_settles_an_unsettled_swap(leader_of_four: Driver) -> None:
    lose_swap_answer(leader_of_four)
    leader_of_four.handle(RecordSeen(revision=3, record=FOUR))
    leader_of_four.handle(order("remove", C, ticket=8))
    assert leader_of_four.kinds() == [SetQuorum]


# An agent after a restart: a swap of its previous run may still succeed.


def test_a_restarted_leader_rewrites_the_record_before_it_changes_the_voters() -> None:
    driver = restarted(FOUR)
    driver.handle(RecordRead(ticket=driver.ticket(ReadRecord), revision=8, record=FOUR))
    driver.handle(LedgerDone(ticket=driver.ticket(SetQuorum)))
    driver.handle(order("remove", D))
    assert driver.requested_record() == FOUR


def test_a_restarted_leader_sets_its_quorum_only_after_a_linearizable_read() -> None:
    # That record may be two changes of voters older than the one that the previous run requested.
    driver = restarted(FOUR)
    assert SetQuorum not in driver.kinds()
    assert driver.requested(ReadRecord).linearizable
    newer = RecordSeen(revision=10, record=replace(FOUR, drained=(D,)))
    driver.handle(newer)
    assert SetQuorum not in driver.kinds()
    driver.handle(RecordRead(ticket=driver.machine.facts.requests.last_ticket, revision=10, record=newer.record))
    assert SetQuorum in driver.kinds()


def test_a_record_from_the_watch_does_not_settle_swaps_of_a_previous_run() -> None:
    driver = restarted(FOUR)
    read = driver.ticket(ReadRecord)
    driver.handle(RecordSeen(revision=10, record=FOUR))
    driver.handle(order("remove", C))
    assert SetQuorum not in driver.kinds()
    assert driver.requested_record() == FOUR
    driver.handle(RecordRead(ticket=read, revision=10, record=FOUR))
    driver.handle(LedgerDone(ticket=driver.ticket(SetQuorum)))
    assert driver.machine.facts.member.quorum == (B, C, D)
    driver.handle(SwapAnswered(ticket=driver.machine.facts.requests.swapping.ticket, outcome="applied", revision=11))  # pyright: ignore[reportOptionalMemberAccess]
    (quorum,) = (effect for effect in driver.effects if isinstance(effect, SetQuorum))
    assert quorum.standbys == (B, D)


def test_an_unanswered_swap_does_not_settle_swaps_of_a_previous_run() -> None:
    driver = restarted(FOUR)
    driver.handle(order("pause"))
    driver.handle(SwapAnswered(ticket=driver.ticket(SwapRecord), outcome="unknown"))
    assert driver.machine.facts.etcd.unsettled_revision is None
    driver.handle(RecordRead(ticket=driver.ticket(ReadRecord), revision=10, record=FOUR))
    assert driver.machine.facts.etcd.unsettled_revision == 10


def test_a_primary_of_the_first_epoch_sets_its_quorum_only_after_a_linearizable_read() -> None:
    driver = Driver(A)
    bootstrapping = replace(SERVING, phase="bootstrapping", fence_id=None)
    driver.handle(Started(promise=Promise(epoch=1, lineage=1), ledger=MemberState(kind="primary", epoch=1)))
    driver.handle(RecordRead(ticket=driver.ticket(ReadRecord), revision=1, record=bootstrapping))
    assert driver.kinds().count(SetQuorum) == 0
    driver.handle(RecordRead(ticket=driver.ticket(ReadRecord), revision=9, record=FOUR))
    assert driver.kinds().count(SetQuorum) == 1


def test_a_follower_reads_etcd_once() -> None:
    driver = Driver(C)
    driver.start(MemberState(kind="following", epoch=1), Promise(epoch=1, lineage=1))
    assert ReadRecord not in driver.kinds()


def test_an_unanswered_swap_is_unsettled_at_the_revision_that_it_expects(leader_of_four: Driver) -> None:
    swap = leader_of_four.ticket(SwapRecord)
    leader_of_four.handle(RecordSeen(revision=3, record=replace(FOUR, automatic=False)))
    leader_of_four.handle(SwapAnswered(ticket=swap, outcome="unknown"))
    assert leader_of_four.machine.facts.etcd.unsettled_revision == 2


def test_a_failed_quorum_of_the_old_voters_does_not_end_the_order(leader_of_four: Driver) -> None:
    lose_swap_answer(leader_of_four)
    leader_of_four.machine.facts.member.quorum = None
    leader_of_four.handle(order("remove", C, ticket=8))
    old = leader_of_four.ticket(SetQuorum)
    leader_of_four.handle(LedgerFailed(ticket=old, reason="disk"))
    assert AnswerOrder not in leader_of_four.kinds()
    assert leader_of_four.machine.facts.resize is not None


def test_a_failed_quorum_of_the_new_voters_ends_the_order() -> None:
    driver = Driver(A)
    driver.start(MemberState(kind="primary", epoch=1), Promise(epoch=1, lineage=1), record=FOUR)
    driver.handle(LedgerDone(ticket=driver.ticket(SetQuorum)))
    driver.handle(order("remove", D))
    driver.handle(SwapAnswered(ticket=driver.ticket(SwapRecord), outcome="applied", revision=2))
    driver.handle(LedgerFailed(ticket=driver.ticket(SetQuorum), reason="disk"))
    assert AnswerOrder(ticket=7, refused="the quorum could not be changed: disk") in driver.effects


def test_a_restarted_leader_that_serves_writes_no_second_fence_row(leader: Driver) -> None:
    leader.handle(Tick())
    assert WriteFence not in leader.kinds()
    assert leader.machine.state == "leading"


def test_a_promise_is_stored_again_when_the_disk_does_not_answer(follower: Driver) -> None:
    follower.handle(RecordSeen(revision=2, record=RECRUITING))
    frozen = LedgerFrozen(ticket=follower.ticket(FreezeLedger), receiving=False, received=1, replayed=1, ancestry=(1,))
    follower.handle(frozen)
    first = follower.ticket(StorePromise)
    follower.now += DEFAULTS.request_s_max
    follower.handle(Tick())
    assert follower.ticket(StorePromise) > first
    follower.handle(PromiseStored(ticket=first))
    assert follower.machine.gossip.vote is None


def test_a_clone_changes_independently(follower: Driver) -> None:
    twin = follower.machine.clone()
    assert twin.facts == follower.machine.facts
    twin.handle(RecordSeen(revision=2, record=RECRUITING), now=0.0)
    assert twin.state == "freezing"
    assert follower.machine.state == "following"
    assert follower.machine.facts.etcd.revision == 1


def test_the_same_events_at_the_same_times_give_the_same_effects() -> None:
    one, other = Driver(C), Driver(C)
    for driver in (one, other):
        driver.start(MemberState(kind="following", epoch=1), Promise(epoch=1, lineage=1))
        driver.handle(RecordSeen(revision=2, record=RECRUITING))
    assert one.effects == other.effects
    assert one.machine.facts == other.machine.facts

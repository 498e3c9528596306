"""Tests of the answers to the machine of a cell: each answer counts for its own request, and changes only its facts."""

from dataclasses import replace
from uuid import UUID

import pytest

from regions.failover.effects import (
    AnswerOrder,
    AnswerStrongReads,
    CopyLedger,
    DrainLedger,
    FollowLedger,
    FreezeLedger,
    LedgerEffect,
    PromoteLedger,
    ReadRecord,
    RewindLedger,
    SetQuorum,
    StartServing,
    StopLedger,
    StopServing,
    StorePromise,
    SwapRecord,
    WriteFence,
)
from regions.failover.events import (
    AgentPaused,
    FenceWritten,
    Gossip,
    GossipHeard,
    LedgerDone,
    LedgerDrained,
    LedgerEnded,
    LedgerFailed,
    MemberState,
    Promise,
    PromiseFailed,
    PromiseStored,
    QuorumCommit,
    QuorumWaitCancelled,
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
from regions.failover.handover import RestartDelayed
from regions.failover.requests import STRONG_READS_MAX
from regions.failover.settings import DEFAULTS
from regions.identity import RegionName
from regions.leadership import Succession
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
    leading,
    order,
    prepare_successor,
    release_epoch,
    restarted,
)
from tests.regions.failover.facts_builder import announced_at, drained_to, prepares_until, restart_delayed_until

# Reads of etcd.


def test_a_read_of_the_record_and_a_read_for_strong_reads_have_separate_answers(leader: Driver) -> None:
    leader.handle(AgentPaused())
    plain = leader.ticket(ReadRecord)
    leader.handle(StrongReads(requests=(1,)))
    strong = leader.ticket(ReadRecord)
    assert plain != strong
    facts = leader.machine.facts
    leader.handle(RecordRead(ticket=plain, revision=1, record=SERVING))
    assert AnswerStrongReads not in leader.kinds()
    assert facts.requests.strong_reading is not None
    assert facts.requests.reading is None
    leader.handle(RecordRead(ticket=strong, revision=1, record=SERVING))
    assert leader.effects == [AnswerStrongReads(requests=(1,), current=True)]


def test_the_answer_to_a_read_for_strong_reads_does_not_end_a_read_of_the_record(leader: Driver) -> None:
    leader.handle(StrongReads(requests=(1,)))
    strong = leader.ticket(ReadRecord)
    leader.handle(AgentPaused())
    leader.handle(RecordRead(ticket=strong, revision=1, record=SERVING))
    assert leader.machine.facts.requests.reading is not None
    assert leader.machine.facts.outdated


def test_a_failed_read_ends_only_the_read_with_its_ticket(leader: Driver) -> None:
    leader.handle(AgentPaused())
    plain = leader.ticket(ReadRecord)
    leader.handle(StrongReads(requests=(1, 2)))
    strong = leader.ticket(ReadRecord)
    leader.handle(ReadFailed(ticket=strong + 1))
    assert leader.effects == []
    leader.handle(ReadFailed(ticket=strong))
    assert leader.effects == [AnswerStrongReads(requests=(1, 2), current=False)]
    assert leader.machine.facts.requests.reading is not None
    leader.handle(ReadFailed(ticket=plain))
    assert leader.machine.facts.requests.reading is None


def test_a_read_for_strong_reads_settles_swaps_of_a_previous_run() -> None:
    driver = restarted()
    driver.handle(StrongReads(requests=(1,)))
    assert SetQuorum not in driver.kinds()
    driver.handle(RecordRead(ticket=driver.ticket(ReadRecord), revision=8, record=SERVING))
    assert driver.machine.facts.etcd.unsettled_revision == 8
    assert SetQuorum in driver.kinds()


def test_a_read_does_not_settle_a_swap_of_this_run(leader: Driver) -> None:
    # The swap expects revision 1. A read of a later revision does not change that: the swap can no longer succeed.
    leader.handle(order("pause"))
    leader.handle(SwapAnswered(ticket=leader.ticket(SwapRecord), outcome="unknown"))
    assert leader.machine.facts.etcd.unsettled_revision == 1
    leader.handle(RecordRead(ticket=leader.ticket(ReadRecord), revision=3, record=replace(SERVING, drained=(C,))))
    assert leader.machine.facts.etcd.unsettled_revision == 1


@pytest.mark.parametrize(("promised", "pauses"), [(1, False), (2, False), (3, True)])
def test_etcd_has_lost_data_if_its_record_is_below_the_promise(promised: int, *, pauses: bool) -> None:
    # The record promises epoch 2 to a successor, which may begin it before etcd has it.
    driver = Driver(C)
    driver.handle(Started(promise=Promise(epoch=promised, lineage=1), ledger=MemberState(kind="following", epoch=1)))
    driver.handle(RecordRead(ticket=driver.ticket(ReadRecord), revision=2, record=ANNOUNCED))
    driver.handle(AgentPaused())
    driver.handle(RecordRead(ticket=driver.ticket(ReadRecord), revision=2, record=ANNOUNCED))
    assert (driver.machine.facts.requests.etcd_retry.at is not None) is pauses
    assert driver.logged("restore etcd's data") is pauses


# The bound on waiting strong reads.


def test_strong_reads_wait_up_to_the_bound_and_share_the_next_read(leader: Driver) -> None:
    assert STRONG_READS_MAX == 1000
    leader.handle(StrongReads(requests=(0,)))
    assert len(leader.kinds()) == 1
    leader.handle(StrongReads(requests=tuple(range(1, STRONG_READS_MAX))))
    assert leader.effects == []
    leader.handle(StrongReads(requests=(7001, 7002)))
    assert leader.effects == [AnswerStrongReads(requests=(7002,), current=False)]
    read = leader.machine.facts.requests.strong_reading
    assert read is not None
    leader.handle(RecordRead(ticket=read.ticket, revision=1, record=SERVING))
    assert leader.effects[0] == AnswerStrongReads(requests=(0,), current=True)
    # The next read begins now and serves all strong reads that waited (rule 10).
    asked = leader.requested(ReadRecord)
    assert asked.linearizable
    assert asked.ticket > read.ticket
    following_read = leader.machine.facts.requests.strong_reading
    assert following_read is not None
    assert following_read.strong == (*range(1, STRONG_READS_MAX), 7001)
    assert following_read.linearizable
    leader.handle(StrongReads(requests=(8000,)))
    assert leader.effects == []


# Swaps of the record.


def test_an_answer_to_another_swap_is_ignored(leader: Driver) -> None:
    leader.handle(order("pause"))
    ticket = leader.ticket(SwapRecord)
    leader.handle(SwapAnswered(ticket=ticket + 1, outcome="applied", revision=2))
    assert leader.effects == []
    assert leader.machine.facts.etcd.revision == 1
    leader.handle(SwapAnswered(ticket=ticket, outcome="applied", revision=2))
    facts = leader.machine.facts
    assert leader.effects == [AnswerOrder(ticket=7, refused=None)]
    assert (facts.requests.swapping, facts.etcd.revision, facts.etcd.unsettled_revision) == (None, 2, 0)
    assert facts.record == replace(SERVING, automatic=False)


def test_a_leader_reads_etcd_before_the_next_swap_after_it_lost_one(leader: Driver) -> None:
    leader.handle(StandbysStreaming(regions=frozenset({B, C})))
    leader.handle(order("switch", B))
    leader.handle(SwapAnswered(ticket=leader.ticket(SwapRecord), outcome="lost"))
    assert leader.kinds() == [ReadRecord]
    leader.handle(RecordRead(ticket=leader.ticket(ReadRecord), revision=2, record=replace(SERVING, drained=(C,))))
    assert leader.machine.facts.handover is not None, "the order is still carried out"
    assert leader.requested_record().succession is not None
    assert leader.requested(SwapRecord).expected_revision == 2


@pytest.mark.parametrize("announced", [False, True])
def test_an_unanswered_swap_of_another_order_does_not_end_a_hand_over(leader: Driver, *, announced: bool) -> None:
    if announced:
        announce_switchover(leader)
        leader.handle(order("pause", ticket=8))
        assert leader.requested_record().succession is not None
    else:
        leader.handle(StandbysStreaming(regions=frozenset({B, C})))
        leader.handle(order("pause", ticket=8))
    swap = leader.ticket(SwapRecord)
    if not announced:
        leader.handle(order("switch", B))
    leader.handle(SwapAnswered(ticket=swap, outcome="unknown"))
    assert leader.machine.facts.handover is not None
    assert [one for one in leader.effects if isinstance(one, AnswerOrder)] == [
        AnswerOrder(ticket=8, refused="the record changed meanwhile, or etcd did not answer: ask again")
    ]


def test_an_unanswered_announcement_ends_the_hand_over(leader: Driver) -> None:
    leader.handle(StandbysStreaming(regions=frozenset({B, C})))
    leader.handle(order("switch", B))
    leader.handle(SwapAnswered(ticket=leader.ticket(SwapRecord), outcome="unknown"))
    assert AnswerOrder(ticket=7, refused="etcd did not take the switch: ask again") in leader.effects
    assert leader.machine.facts.handover is None


def test_an_unanswered_announcement_is_ignored_after_the_hand_over_ended(leader: Driver) -> None:
    leader.handle(StandbysStreaming(regions=frozenset({B, C})))
    leader.handle(order("switch", B))
    swap = leader.ticket(SwapRecord)
    leader.handle(RecordSeen(revision=2, record=RECRUITING))
    assert leader.machine.facts.handover is None
    leader.handle(SwapAnswered(ticket=swap, outcome="unknown"))
    assert AnswerOrder not in leader.kinds()


def test_a_lost_swap_is_not_unsettled(leader: Driver) -> None:
    leader.handle(order("pause"))
    leader.handle(SwapAnswered(ticket=leader.ticket(SwapRecord), outcome="applied", revision=2))
    leader.handle(order("resume"))
    leader.handle(SwapAnswered(ticket=leader.ticket(SwapRecord), outcome="lost"))
    assert leader.machine.facts.etcd.unsettled_revision == 0


# Rule 20: only the leader's own, confirmed and newest swap announces a successor.


@pytest.mark.parametrize("again", [True, False])
def test_a_swap_that_keeps_the_succession_of_an_earlier_order_announces_nothing(leader: Driver, *, again: bool) -> None:
    # The switch to B fails while the swap of a pause is pending; then an operator may order a switch to C.
    announce_switchover(leader)
    drain = leader.ticket(DrainLedger)
    leader.handle(order("pause", ticket=8))
    swap = leader.requested(SwapRecord)
    assert swap.record.succession == ANNOUNCED.succession
    leader.handle(LedgerFailed(ticket=drain, reason="slow"))
    if again:
        leader.handle(order("switch", C, ticket=9))
    leader.handle(SwapAnswered(ticket=swap.ticket, outcome="applied", revision=3))
    assert announced_at(leader.machine.facts) == 0
    assert leader.machine.facts.member.serving_epoch == 1
    if not again:
        assert leader.requested_record().succession is None
        return
    assert leader.requested_record().succession == Succession(region=C, reason=f"switch to {C}: an operator")


def test_a_swap_without_a_succession_announces_nothing(leader: Driver) -> None:
    leader.handle(StandbysStreaming(regions=frozenset({B, C})))
    leader.handle(order("pause"))
    swap = leader.ticket(SwapRecord)
    leader.handle(order("switch", B, ticket=8))
    leader.handle(SwapAnswered(ticket=swap, outcome="applied", revision=2))
    assert announced_at(leader.machine.facts) == 0
    assert leader.requested_record().succession is not None


def test_a_hand_over_begins_without_an_announcement_and_without_a_drained_lsn(leader: Driver) -> None:
    # This holds after an earlier hand-over as well: with either, the leader would release its epoch too early.
    leader.machine.facts.handover = RestartDelayed(until=9.0)
    leader.handle(StandbysStreaming(regions=frozenset({B, C})))
    leader.handle(order("switch", B))
    assert (announced_at(leader.machine.facts), drained_to(leader.machine.facts)) == (0, None)
    assert StopLedger not in leader.kinds()


def test_a_swap_that_another_swap_overtook_announces_nothing(leader: Driver) -> None:
    leader.handle(StandbysStreaming(regions=frozenset({B, C})))
    leader.handle(order("switch", B))
    swap = leader.ticket(SwapRecord)
    leader.handle(RecordSeen(revision=3, record=replace(SERVING, drained=(C,))))
    leader.handle(SwapAnswered(ticket=swap, outcome="applied", revision=2))
    assert announced_at(leader.machine.facts) == 0
    assert leader.machine.facts.member.serving_epoch == 1


def test_a_later_swap_keeps_the_revision_of_the_announcement(leader: Driver) -> None:
    # An agent that knows the first announcement need not read etcd before it acts on the release.
    announce_switchover(leader)
    leader.handle(order("pause", ticket=8))
    leader.handle(SwapAnswered(ticket=leader.ticket(SwapRecord), outcome="applied", revision=3))
    assert announced_at(leader.machine.facts) == 2


def test_a_leader_stops_serving_only_once(leader: Driver) -> None:
    leader.handle(StandbysStreaming(regions=frozenset({B, C})))
    leader.handle(order("switch", B))
    swap = leader.ticket(SwapRecord)
    leader.handle(QuorumWaitCancelled(epoch=1))
    assert leader.kinds().count(StopServing) == 1
    leader.handle(SwapAnswered(ticket=swap, outcome="applied", revision=2))
    assert StopServing not in leader.kinds()
    assert announced_at(leader.machine.facts) == 2


# Rule 7: a cancelled quorum wait ends the epoch of the primary that it occurred on.


def test_a_cancelled_quorum_wait_of_this_epoch_stops_serving_once(leader: Driver) -> None:
    leader.handle(QuorumWaitCancelled(epoch=2))
    assert leader.effects == []
    leader.handle(QuorumWaitCancelled(epoch=1))
    assert StopServing(epoch=1) in leader.effects
    assert leader.machine.facts.member.cancelled_wait_epoch == 1
    leader.handle(QuorumWaitCancelled(epoch=1))
    assert leader.effects == []


def test_a_cancelled_quorum_wait_before_the_epoch_serves_does_not_stop_serving() -> None:
    driver = Driver(B)
    driver.start(MemberState(kind="primary", epoch=2), Promise(epoch=2, lineage=2), CHOSEN)
    driver.handle(QuorumWaitCancelled(epoch=2))
    assert StopServing not in driver.kinds()
    assert driver.machine.facts.member.cancelled_wait_epoch == 2


# Promises.


def test_a_promotion_is_under_way_only_after_the_leaders_lineage_is_stored() -> None:
    driver = following(B)
    driver.handle(RecordSeen(revision=2, record=CHOSEN))
    driver.answer_freeze(500)
    promise = driver.requested(StorePromise)
    assert (promise.promise.epoch, promise.promise.lineage) == (2, 1)
    driver.handle(PromiseStored(ticket=promise.ticket))
    assert driver.machine.facts.member.promoting_epoch == 0
    driver.handle(LedgerDone(ticket=driver.ticket(SetQuorum)))
    lineage = driver.requested(StorePromise)
    assert lineage.promise.lineage == 2
    assert driver.machine.facts.member.promoting_epoch == 0
    driver.handle(PromiseStored(ticket=lineage.ticket + 1))
    assert driver.machine.facts.member.promise == promise.promise
    driver.handle(PromiseStored(ticket=lineage.ticket))
    assert driver.machine.facts.member.promoting_epoch == 2
    assert driver.machine.facts.requests.storing is None
    assert PromoteLedger in driver.kinds()


def test_a_follower_that_stores_a_lineage_has_no_promotion_under_way() -> None:
    # It has voted and is frozen, and it stores the epoch of another leader before it follows.
    driver = following(C)
    driver.handle(RecordSeen(revision=2, record=RECRUITING))
    driver.answer_freeze(500)
    driver.handle(PromiseStored(ticket=driver.ticket(StorePromise)))
    driver.handle(RecordSeen(revision=3, record=CHOSEN))
    driver.handle(PromiseStored(ticket=driver.ticket(StorePromise)))
    assert driver.machine.facts.member.promise == Promise(epoch=2, lineage=2)
    assert driver.machine.facts.member.promoting_epoch == 0
    assert FollowLedger in driver.kinds()


def test_the_first_epoch_has_no_promotion_under_way() -> None:
    driver = Driver(A)
    driver.handle(Started(promise=Promise(), ledger=MemberState(kind="absent")))
    driver.handle(RecordRead(ticket=driver.ticket(ReadRecord), revision=0, record=None))
    driver.handle(SwapAnswered(ticket=driver.ticket(SwapRecord), outcome="applied", revision=1))
    driver.handle(PromiseStored(ticket=driver.ticket(StorePromise)))
    assert driver.machine.facts.member.promise == Promise(epoch=1, lineage=1)
    assert driver.machine.facts.member.promoting_epoch == 0


def test_a_new_promise_is_not_below_one_whose_write_was_given_up(follower: Driver) -> None:
    # That write may have reached the disk, or may still reach it.
    follower.handle(RecordSeen(revision=2, record=RECRUITING))
    follower.answer_freeze(500)
    facts = follower.machine.facts
    facts.requests.requested_promise = Promise(epoch=2, lineage=1, floor=3, copying=4)
    facts.requests.storing = None
    follower.handle(Tick())
    stored = follower.requested(StorePromise).promise
    assert stored == Promise(epoch=2, lineage=1, floor=3, copying=4) == facts.requests.requested_promise


# Answers of the member.


def test_an_answer_of_the_member_counts_only_for_the_request_with_its_ticket(leader: Driver) -> None:
    announce_switchover(leader)
    ticket = leader.ticket(DrainLedger)
    leader.handle(LedgerDrained(ticket=ticket - 1, lsn=400))
    assert drained_to(leader.machine.facts) is None
    leader.handle(LedgerDrained(ticket=ticket, lsn=500))
    assert drained_to(leader.machine.facts) == 500
    assert [kind for kind in leader.kinds() if kind in (StopServing, StopLedger)] == [StopLedger]


def test_a_failed_promotion_is_no_longer_under_way() -> None:
    driver = following(B)
    driver.handle(RecordSeen(revision=2, record=CHOSEN))
    driver.answer_freeze(500)
    driver.handle(PromiseStored(ticket=driver.ticket(StorePromise)))
    driver.handle(LedgerDone(ticket=driver.ticket(SetQuorum)))
    driver.handle(PromiseStored(ticket=driver.ticket(StorePromise)))
    driver.handle(LedgerFailed(ticket=driver.ticket(PromoteLedger), reason="no"))
    assert driver.machine.facts.member.promoting_epoch == 0
    assert driver.requested_record().epoch == 3


def test_a_promoted_member_keeps_the_quorum_that_was_set_before() -> None:
    driver = following(B)
    driver.handle(RecordSeen(revision=2, record=CHOSEN))
    driver.answer_freeze(500)
    driver.handle(PromiseStored(ticket=driver.ticket(StorePromise)))
    quorum = driver.requested(SetQuorum)
    assert (quorum.standbys, quorum.required) == ((A, C), 1)
    driver.handle(LedgerDone(ticket=quorum.ticket))
    driver.handle(PromiseStored(ticket=driver.ticket(StorePromise)))
    driver.handle(LedgerDone(ticket=driver.ticket(PromoteLedger)))
    facts = driver.machine.facts
    assert facts.member.ledger == MemberState(kind="primary", epoch=2)
    assert (facts.member.quorum, facts.member.frozen_vote, facts.member.promoting_epoch) == ((A, C), None, 0)
    assert StartServing not in driver.kinds(), "its fence row is not on a quorum yet"
    fence = FenceWritten(ticket=driver.ticket(WriteFence), fence_id=UUID(int=2), lsn=700, confirmed=True)
    driver.handle(QuorumCommit(lsn=800))
    driver.handle(fence)
    assert StartServing(epoch=2) in driver.effects
    assert facts.member.quorum_commit == 800
    driver.handle(QuorumCommit(lsn=750))
    assert facts.member.quorum_commit == 800


def test_a_failed_quorum_change_is_requested_again() -> None:
    driver = Driver(A)
    driver.start(MemberState(kind="primary", epoch=1), Promise(epoch=1, lineage=1))
    driver.handle(LedgerFailed(ticket=driver.ticket(SetQuorum), reason="no"))
    assert AnswerOrder not in driver.kinds()
    driver.advance(DEFAULTS.retry_s)
    assert SetQuorum in driver.kinds()


def test_a_failed_stop_is_requested_again_at_once_and_ends_no_order() -> None:
    driver = Driver(A)
    four = replace(SERVING, voters=(A, B, C, D))
    driver.start(MemberState(kind="primary", epoch=1), Promise(epoch=1, lineage=1), four)
    driver.handle(LedgerDone(ticket=driver.ticket(SetQuorum)))
    driver.handle(order("remove", D))
    driver.handle(RecordSeen(revision=2, record=replace(four, leader=B)))
    assert StartServing not in driver.kinds()
    driver.handle(LedgerFailed(ticket=driver.ticket(StopLedger), reason="no"))
    assert StopLedger in driver.kinds(), "a demotion does not wait for the pause"
    assert AnswerOrder not in driver.kinds()
    driver.handle(Tick())
    assert StopLedger not in driver.kinds(), "it is already requested"


def test_a_failed_drain_ends_the_hand_over(leader: Driver) -> None:
    announce_switchover(leader)
    leader.handle(LedgerFailed(ticket=leader.ticket(DrainLedger), reason="slow"))
    assert leader.machine.facts.handover is None
    assert AnswerOrder(ticket=7, refused="slow") in leader.effects


# When effects on the member are requested.


def test_nothing_is_requested_of_a_member_during_a_pause_until_the_leader_changes(leader: Driver) -> None:
    leader.machine.facts.requests.ledger_retry = replace(
        leader.machine.facts.requests.ledger_retry, at=9.0, pause_s=1.0
    )
    leader.machine.facts.member.quorum = None
    leader.handle(Tick())
    assert leader.effects == []
    # Another region leads the same epoch, which ends the pause: the agent stops serving, then PostgreSQL stops.
    leader.handle(RecordSeen(revision=2, record=replace(SERVING, leader=B)))
    assert [kind for kind in leader.kinds() if kind in (StopServing, StopLedger)] == [StopServing, StopLedger]


def test_a_promise_is_not_stored_twice_or_during_a_pause(follower: Driver) -> None:
    follower.handle(RecordSeen(revision=2, record=RECRUITING))
    follower.answer_freeze(500)
    first = follower.requested(StorePromise)
    assert follower.machine.facts.requests.requested_promise == first.promise
    follower.handle(Tick())
    assert follower.effects == [], "it is being stored"
    follower.handle(PromiseFailed(ticket=first.ticket, reason="no space left"))
    follower.handle(SuspicionChanged(region=B, suspected=True))
    assert StorePromise not in follower.kinds()
    follower.advance(DEFAULTS.retry_s)
    assert StorePromise in follower.kinds()


def test_a_pending_effect_is_not_requested_again(follower: Driver) -> None:
    follower.handle(RecordSeen(revision=2, record=RECRUITING))
    ticket = follower.ticket(FreezeLedger)
    follower.handle(Tick())
    assert follower.effects == []
    assert follower.machine.facts.requests.working is not None
    assert follower.machine.facts.requests.working.ticket == ticket


def test_the_quorum_is_unknown_while_another_is_being_set(leader: Driver) -> None:
    four = replace(SERVING, voters=(A, B, C, D))
    leader.handle(RecordSeen(revision=2, record=four))
    assert leader.requested(SetQuorum).standbys == (B, C, D)
    assert leader.machine.facts.member.quorum is None


def test_the_quorum_of_the_successor_is_unknown_after_a_freeze_is_requested(successor: Driver) -> None:
    successor.handle(RecordSeen(revision=2, record=ANNOUNCED))
    successor.machine.facts.member.quorum = (A, C)
    successor.handle(GossipHeard(sender=A, gossip=Gossip(epoch=1, drained=1)))
    assert FreezeLedger in successor.kinds()
    assert successor.machine.facts.member.quorum is None


# An agent that cannot take part does nothing.


def test_a_primary_without_a_readable_promise_does_not_serve_and_requests_nothing() -> None:
    # It may have promised a later epoch, and no promise replaces one that cannot be read.
    driver = Driver(A)
    driver.handle(Started(promise=None, ledger=MemberState(kind="primary", epoch=1)))
    assert driver.logged("the promise of this member cannot be read")
    driver.handle(RecordRead(ticket=driver.ticket(ReadRecord), revision=1, record=SERVING))
    driver.handle(StrongReads(requests=(1,)))
    driver.handle(RecordSeen(revision=2, record=replace(SERVING, drained=(C,))))
    driver.advance(DEFAULTS.ledger_s_max)
    facts = driver.machine.facts
    assert driver.machine.state == "refusing"
    assert (facts.member.serving_epoch, facts.requests.working, facts.requests.swapping, facts.requests.storing) == (
        0,
        None,
        None,
        None,
    )


# A leader serves when its fence row is on a quorum and its knowledge is not outdated.


def test_a_paused_leader_does_not_serve_before_it_has_read_the_record() -> None:
    driver = Driver(B)
    driver.handle(Started(promise=Promise(epoch=2, lineage=2), ledger=MemberState(kind="primary", epoch=2)))
    driver.handle(RecordRead(ticket=driver.ticket(ReadRecord), revision=1, record=CHOSEN))
    fence = FenceWritten(ticket=driver.ticket(WriteFence), fence_id=UUID(int=2), lsn=700, confirmed=True)
    driver.handle(AgentPaused())
    read = driver.ticket(ReadRecord)
    driver.handle(fence)
    assert StartServing not in driver.kinds()
    driver.handle(RecordRead(ticket=read, revision=1, record=CHOSEN))
    assert driver.effects.count(StartServing(epoch=2)) == 1
    driver.handle(Tick())
    assert StartServing not in driver.kinds()


def test_the_leader_of_the_first_epoch_serves_only_after_its_record_says_so() -> None:
    bootstrapping = replace(SERVING, phase="bootstrapping", fence_id=None, ancestry=())
    driver = Driver(A)
    driver.start(MemberState(kind="primary", epoch=1), Promise(epoch=1, lineage=1), bootstrapping)
    driver.handle(LedgerDone(ticket=driver.ticket(SetQuorum)))
    fence = FenceWritten(ticket=driver.ticket(WriteFence), fence_id=UUID(int=1), lsn=700, confirmed=True)
    driver.handle(fence)
    assert StartServing not in driver.kinds()
    driver.handle(SwapAnswered(ticket=driver.ticket(SwapRecord), outcome="applied", revision=2))
    assert StartServing(epoch=1) in driver.effects


def test_an_epoch_with_a_cancelled_quorum_wait_does_not_serve_again(leader: Driver) -> None:
    leader.handle(QuorumWaitCancelled(epoch=1))
    leader.handle(Tick())
    assert StartServing not in leader.kinds()
    assert leader.machine.facts.member.serving_epoch == 0


# Gossip.


def test_gossip_starts_a_read_only_for_an_epoch_that_no_agent_reported_before(follower: Driver) -> None:
    for sender, epoch, reads in ((B, 1, False), (A, 2, True), (B, 2, False), (B, 3, True), (A, 3, False)):
        follower.handle(GossipHeard(sender=sender, gossip=Gossip(epoch=epoch)))
        assert (ReadRecord in follower.kinds()) is reads, (sender, epoch)


def test_gossip_before_the_first_record_starts_no_second_read() -> None:
    driver = Driver(C)
    driver.handle(Started(promise=Promise(epoch=1, lineage=1), ledger=MemberState(kind="following", epoch=1)))
    driver.handle(GossipHeard(sender=A, gossip=Gossip(epoch=1, drained=1)))
    assert driver.effects == []


@pytest.mark.parametrize(
    ("region", "sender", "drained", "prepares"),
    [(B, A, 1, True), (B, C, 1, False), (B, A, 0, False), (B, A, 2, False), (C, A, 1, False)],
)
def test_only_the_successor_prepares_and_only_for_a_leader_that_has_drained_this_epoch(
    region: RegionName, sender: RegionName, drained: int, *, prepares: bool
) -> None:
    driver = following(region)
    driver.handle(RecordSeen(revision=2, record=ANNOUNCED))
    driver.handle(GossipHeard(sender=sender, gossip=Gossip(epoch=1, drained=drained)))
    assert (prepares_until(driver.machine.facts) is not None) is prepares


def test_gossip_of_another_region_does_not_end_the_preparation(successor: Driver) -> None:
    prepare_successor(successor)
    successor.handle(GossipHeard(sender=C, gossip=Gossip(epoch=1)))
    assert prepares_until(successor.machine.facts) == DEFAULTS.stall_s


def test_a_copy_in_progress_keeps_its_epoch_when_the_leader_releases() -> None:
    driver = Driver(B)
    driver.start(MemberState(kind="absent"), Promise(epoch=1, lineage=1), ANNOUNCED)
    driver.handle(PromiseStored(ticket=driver.ticket(StorePromise)))
    driver.handle(GossipHeard(sender=A, gossip=Gossip(epoch=1, drained=1)))
    driver.handle(GossipHeard(sender=A, gossip=Gossip(epoch=2, release=replace(RELEASE, revision=1))))
    assert driver.machine.facts.record == HANDED_OVER
    working = driver.machine.facts.requests.working
    assert working is not None
    assert isinstance(working.effect, CopyLedger)
    assert working.effect.epoch == 1


# The gossip of this agent.


def test_a_leader_reports_its_commit_then_that_it_has_drained_then_its_release(leader: Driver) -> None:
    leader.handle(QuorumCommit(lsn=900))
    assert leader.effects == [], "the next heartbeat carries the commit"
    assert leader.machine.gossip == Gossip(epoch=1, commit=900)
    leader.handle(QuorumCommit(lsn=800))
    assert leader.machine.gossip.commit == 900
    announce_switchover(leader)
    leader.handle(LedgerDrained(ticket=leader.ticket(DrainLedger), lsn=1000))
    assert leader.machine.gossip == Gossip(epoch=1, commit=900, drained=1)
    leader.handle(LedgerDone(ticket=leader.ticket(StopLedger)))
    assert leader.machine.gossip == Gossip(epoch=2, release=replace(RELEASE, lsn=1000))


def test_a_follower_reports_no_commit_and_only_a_suspicion_of_the_leader(follower: Driver) -> None:
    follower.handle(QuorumCommit(lsn=900))
    follower.handle(SuspicionChanged(region=B, suspected=True))
    assert follower.machine.gossip == Gossip(epoch=1)
    follower.handle(SuspicionChanged(region=A, suspected=True))
    assert follower.machine.gossip == Gossip(epoch=1, suspects=1)
    follower.handle(SuspicionChanged(region=A, suspected=False))
    assert follower.machine.gossip == Gossip(epoch=1)
    assert follower.machine.facts.peers.suspected == {B}


# Rule 1: a voter that hears no majority logs it once.


def test_a_voter_logs_once_that_it_hears_no_majority_and_that_it_hears_one_again(follower: Driver) -> None:
    follower.handle(SuspicionChanged(region=A, suspected=True))
    assert not follower.logged("nobody takes over")
    follower.handle(SuspicionChanged(region=B, suspected=True))
    assert follower.logged("hears only ap-south; no failover until 2 voters are heard")
    assert follower.machine.facts.peers.in_minority
    follower.handle(Tick())
    assert follower.effects == []
    follower.handle(SuspicionChanged(region=B, suspected=False))
    assert follower.logged("hears a majority of the voters again")
    assert not follower.machine.facts.peers.in_minority


def test_a_region_without_a_vote_does_not_log_whether_it_hears_a_majority() -> None:
    driver = Driver(D)
    driver.start(None, Promise())
    driver.handle(SuspicionChanged(region=A, suspected=True))
    driver.handle(SuspicionChanged(region=B, suspected=True))
    assert driver.effects == []


def test_agreement_on_a_suspicion_is_logged_once_and_counts_from_its_start(follower: Driver) -> None:
    follower.now = 5.0
    follower.handle(SuspicionChanged(region=A, suspected=True))
    assert follower.machine.facts.peers.leader_suspected_since is None
    follower.handle(GossipHeard(sender=B, gossip=Gossip(epoch=1, suspects=1)))
    assert follower.logged("is silent, and others agree")
    assert follower.machine.facts.peers.leader_suspected_since == 5.0
    follower.now = 5.1
    follower.handle(Tick())
    assert follower.effects == []
    assert follower.machine.facts.peers.leader_suspected_since == 5.0
    follower.handle(GossipHeard(sender=B, gossip=Gossip(epoch=1)))
    assert follower.machine.facts.peers.leader_suspected_since is None


# The end of a hand-over, and the restart delay after it.


def test_a_stop_outside_a_hand_over_releases_nothing(leader: Driver) -> None:
    leader.handle(RecordSeen(revision=2, record=RECRUITING))
    leader.handle(LedgerDone(ticket=leader.ticket(StopLedger)))
    assert restart_delayed_until(leader.machine.facts) is None
    assert leader.machine.facts.release is None


def test_a_drain_that_is_answered_after_its_switchover_has_ended_releases_nothing(leader: Driver) -> None:
    announce_switchover(leader)
    leader.machine.facts.handover = None
    leader.handle(LedgerDrained(ticket=leader.ticket(DrainLedger), lsn=500))
    assert leader.machine.facts.handover is None
    assert (leader.machine.gossip.drained, leader.machine.facts.release) == (0, None)


def test_a_leader_that_stops_before_it_has_drained_releases_nothing(leader: Driver) -> None:
    announce_switchover(leader)
    leader.handle(RecordSeen(revision=3, record=replace(ANNOUNCED, leader=C)))
    leader.handle(LedgerDone(ticket=leader.ticket(StopLedger)))
    assert leader.machine.facts.handover is not None
    assert leader.machine.facts.release is None
    assert restart_delayed_until(leader.machine.facts) is None


@pytest.mark.parametrize("kind", [DrainLedger, WriteFence, FreezeLedger])
def test_ledger_done_is_an_assertion_error_for_an_effect_with_its_own_answer(kind: type[LedgerEffect]) -> None:
    if kind is DrainLedger:
        driver = leading()
        announce_switchover(driver)
    elif kind is WriteFence:
        driver = Driver(B)
        driver.start(MemberState(kind="primary", epoch=2), Promise(epoch=2, lineage=2), CHOSEN)
    else:
        driver = following(C)
        driver.handle(RecordSeen(revision=2, record=RECRUITING))
    working = driver.machine.facts.requests.working
    assert working is not None
    assert isinstance(working.effect, kind)
    with pytest.raises(AssertionError, match=f"{kind.__name__} has an answer of its own"):
        driver.handle(LedgerDone(ticket=working.ticket))


def test_an_old_leader_acts_by_the_next_epoch_at_once_after_its_release(leader: Driver) -> None:
    release_epoch(leader)
    assert leader.logged("epoch 1: released at 1F4; eu-west leads the next epoch")
    facts = leader.machine.facts
    assert facts.record == HANDED_OVER
    assert facts.member.ledger == MemberState(kind="stopped")
    assert (facts.switchover, announced_at(facts), drained_to(facts)) == (None, 0, None)


def test_the_end_of_a_running_member_is_logged_and_that_of_a_stopped_one_is_not(leader: Driver) -> None:
    leader.handle(LedgerEnded())
    assert leader.logged("PostgreSQL ended, it was primary")
    assert StopServing(epoch=1) in leader.effects
    leader.handle(LedgerEnded())
    assert not leader.logged("PostgreSQL ended")


# Log lines about a member.


def test_each_step_of_a_promotion_is_logged() -> None:
    driver = following(B)
    driver.handle(RecordSeen(revision=2, record=CHOSEN))
    driver.answer_freeze(0x500)
    assert driver.logged("epoch 2: frozen at 1:500")
    driver.handle(PromiseStored(ticket=driver.ticket(StorePromise)))
    driver.handle(LedgerDone(ticket=driver.ticket(SetQuorum)))
    driver.handle(PromiseStored(ticket=driver.ticket(StorePromise)))
    driver.handle(LedgerDone(ticket=driver.ticket(PromoteLedger)))
    assert driver.logged("epoch 2: its ledger is primary here")
    fence = FenceWritten(ticket=driver.ticket(WriteFence), fence_id=UUID(int=2), lsn=700, confirmed=True)
    driver.handle(fence)
    assert driver.logged("epoch 2: its fence row is on a quorum")
    assert driver.logged("epoch 2: takes writes")


@pytest.mark.parametrize(("ancestry", "how"), [((1, 2), "rewound"), ((2,), "copied")])
def test_each_step_of_a_rejoining_member_is_logged(ancestry: tuple[int, ...], how: str) -> None:
    driver = Driver(C)
    record = replace(SERVING, epoch=2, leader=B, ancestry=ancestry)
    driver.start(MemberState(kind="stopped"), Promise(epoch=1, lineage=1), record)
    driver.handle(PromiseStored(ticket=driver.ticket(StorePromise)))
    if how == "rewound":
        driver.handle(LedgerFailed(ticket=driver.ticket(FollowLedger), reason="the histories differ", diverged=True))
        assert driver.logged("the histories differ; again in 0.05 s")
        driver.advance(DEFAULTS.retry_s)
        driver.handle(PromiseStored(ticket=driver.ticket(StorePromise)))
    driver.handle(LedgerDone(ticket=driver.ticket(RewindLedger if how == "rewound" else CopyLedger)))
    assert driver.logged(f"epoch 2: {how} from eu-west")
    assert driver.machine.facts.member.rebuilt_epoch == 2
    assert not driver.machine.facts.member.diverged
    if how == "copied":
        driver.handle(PromiseStored(ticket=driver.ticket(StorePromise)))
    driver.handle(LedgerDone(ticket=driver.ticket(FollowLedger)))
    assert driver.logged("epoch 2: follows eu-west")

"""Answers to the machine of a cell: each is taken by the request that it belongs to, and means what it says."""

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
    leading,
    order,
    restarted,
)
from tests.regions.failover.knowledge import announced_at, drained_to, prepares_until, restart_delayed_until

# Reads of etcd.


def test_a_plain_read_and_a_strong_one_are_answered_each_by_its_own(leader: Driver) -> None:
    leader.tell(AgentPaused())
    plain = leader.ticket(ReadRecord)
    leader.tell(StrongReads(requests=(1,)))
    strong = leader.ticket(ReadRecord)
    assert plain != strong
    facts = leader.machine.facts
    leader.tell(RecordRead(ticket=plain, revision=1, record=SERVING))
    assert AnswerStrongReads not in leader.kinds()
    assert facts.requests.strong_reading is not None
    assert facts.requests.reading is None
    leader.tell(RecordRead(ticket=strong, revision=1, record=SERVING))
    assert leader.effects == [AnswerStrongReads(requests=(1,), current=True)]


def test_the_answer_of_a_strong_read_does_not_end_a_plain_one(leader: Driver) -> None:
    leader.tell(StrongReads(requests=(1,)))
    strong = leader.ticket(ReadRecord)
    leader.tell(AgentPaused())
    leader.tell(RecordRead(ticket=strong, revision=1, record=SERVING))
    assert leader.machine.facts.requests.reading is not None
    assert leader.machine.facts.outdated


def test_a_read_that_failed_ends_the_one_to_which_it_belongs(leader: Driver) -> None:
    leader.tell(AgentPaused())
    plain = leader.ticket(ReadRecord)
    leader.tell(StrongReads(requests=(1, 2)))
    strong = leader.ticket(ReadRecord)
    leader.tell(ReadFailed(ticket=strong + 1))
    assert leader.effects == []
    leader.tell(ReadFailed(ticket=strong))
    assert leader.effects == [AnswerStrongReads(requests=(1, 2), current=False)]
    assert leader.machine.facts.requests.reading is not None
    leader.tell(ReadFailed(ticket=plain))
    assert leader.machine.facts.requests.reading is None


def test_a_strong_read_shows_a_leader_that_has_just_started_that_its_record_is_the_newest() -> None:
    driver = restarted()
    driver.tell(StrongReads(requests=(1,)))
    assert SetQuorum not in driver.kinds()
    driver.tell(RecordRead(ticket=driver.ticket(ReadRecord), revision=8, record=SERVING))
    assert driver.machine.facts.etcd.unsettled_revision == 8
    assert SetQuorum in driver.kinds()


def test_a_read_does_not_settle_a_swap_of_this_run(leader: Driver) -> None:
    # It expected revision 1. What etcd shows later says nothing about it: it was overtaken long ago.
    leader.tell(order("pause"))
    leader.tell(SwapAnswered(ticket=leader.ticket(SwapRecord), outcome="unknown"))
    assert leader.machine.facts.etcd.unsettled_revision == 1
    leader.tell(RecordRead(ticket=leader.ticket(ReadRecord), revision=3, record=replace(SERVING, drained=(C,))))
    assert leader.machine.facts.etcd.unsettled_revision == 1


@pytest.mark.parametrize(("promised", "pauses"), [(1, False), (2, False), (3, True)])
def test_etcd_is_behind_when_it_knows_less_than_was_promised(promised: int, *, pauses: bool) -> None:
    # The record promises epoch 2 to a successor, which begins without etcd.
    driver = Driver(C)
    driver.tell(Started(promise=Promise(epoch=promised, lineage=1), ledger=MemberState(kind="following", epoch=1)))
    driver.tell(RecordRead(ticket=driver.ticket(ReadRecord), revision=2, record=PROMISED))
    driver.tell(AgentPaused())
    driver.tell(RecordRead(ticket=driver.ticket(ReadRecord), revision=2, record=PROMISED))
    assert (driver.machine.facts.requests.etcd_retry.at is not None) is pauses
    assert driver.tells("restore etcd's data") is pauses


# Strong reads wait in a bounded room.


def test_strong_reads_are_taken_up_to_the_bound(leader: Driver) -> None:
    assert STRONG_READS_MAX == 1000
    leader.tell(StrongReads(requests=(0,)))
    assert len(leader.kinds()) == 1
    leader.tell(StrongReads(requests=tuple(range(1, STRONG_READS_MAX))))
    assert leader.effects == []
    leader.tell(StrongReads(requests=(7001, 7002)))
    assert leader.effects == [AnswerStrongReads(requests=(7002,), current=False)]
    read = leader.machine.facts.requests.strong_reading
    assert read is not None
    leader.tell(RecordRead(ticket=read.ticket, revision=1, record=SERVING))
    assert leader.effects[0] == AnswerStrongReads(requests=(0,), current=True)
    # All that waited are asked for by the next read, which begins now (rule 10).
    asked = leader.asked(ReadRecord)
    assert asked.linearizable
    assert asked.ticket > read.ticket
    following_read = leader.machine.facts.requests.strong_reading
    assert following_read is not None
    assert following_read.strong == (*range(1, STRONG_READS_MAX), 7001)
    assert following_read.linearizable
    leader.tell(StrongReads(requests=(8000,)))
    assert leader.effects == []


# Swaps of the record.


def test_the_answer_of_another_swap_is_none(leader: Driver) -> None:
    leader.tell(order("pause"))
    ticket = leader.ticket(SwapRecord)
    leader.tell(SwapAnswered(ticket=ticket + 1, outcome="applied", revision=2))
    assert leader.effects == []
    assert leader.machine.facts.etcd.revision == 1
    leader.tell(SwapAnswered(ticket=ticket, outcome="applied", revision=2))
    facts = leader.machine.facts
    assert leader.effects == [AnswerOrder(ticket=7, refused=None)]
    assert (facts.requests.swapping, facts.etcd.revision, facts.etcd.unsettled_revision) == (None, 2, 0)
    assert facts.record == replace(SERVING, automatic=False)


def test_nothing_is_swapped_before_etcd_was_read_after_a_swap_that_was_lost(leader: Driver) -> None:
    leader.tell(StandbysStreaming(regions=frozenset({B, C})))
    leader.tell(order("switch", B))
    leader.tell(SwapAnswered(ticket=leader.ticket(SwapRecord), outcome="lost"))
    assert leader.kinds() == [ReadRecord]
    leader.tell(RecordRead(ticket=leader.ticket(ReadRecord), revision=2, record=replace(SERVING, drained=(C,))))
    assert leader.machine.facts.handover is not None, "the order stands"
    assert leader.swapped().succession is not None
    assert leader.asked(SwapRecord).expected_revision == 2


@pytest.mark.parametrize("announced", [False, True])
def test_another_swap_without_an_outcome_does_not_end_a_handover(leader: Driver, *, announced: bool) -> None:
    if announced:
        hands_over(leader)
        leader.tell(order("pause", ticket=8))
        assert leader.swapped().succession is not None
    else:
        leader.tell(StandbysStreaming(regions=frozenset({B, C})))
        leader.tell(order("pause", ticket=8))
    swap = leader.ticket(SwapRecord)
    if not announced:
        leader.tell(order("switch", B))
    leader.tell(SwapAnswered(ticket=swap, outcome="unknown"))
    assert leader.machine.facts.handover is not None
    assert [one for one in leader.effects if isinstance(one, AnswerOrder)] == [
        AnswerOrder(ticket=8, refused="the record changed meanwhile, or etcd did not answer: ask again")
    ]


def test_an_announcement_without_an_outcome_ends_the_handover(leader: Driver) -> None:
    leader.tell(StandbysStreaming(regions=frozenset({B, C})))
    leader.tell(order("switch", B))
    leader.tell(SwapAnswered(ticket=leader.ticket(SwapRecord), outcome="unknown"))
    assert AnswerOrder(ticket=7, refused="etcd did not take the switch: ask again") in leader.effects
    assert leader.machine.facts.handover is None


def test_an_announcement_without_an_outcome_means_nothing_after_the_handover(leader: Driver) -> None:
    leader.tell(StandbysStreaming(regions=frozenset({B, C})))
    leader.tell(order("switch", B))
    swap = leader.ticket(SwapRecord)
    leader.tell(RecordSeen(revision=2, record=RECRUITING))
    assert leader.machine.facts.handover is None
    leader.tell(SwapAnswered(ticket=swap, outcome="unknown"))
    assert AnswerOrder not in leader.kinds()


def test_a_swap_that_was_lost_leaves_nothing_in_doubt(leader: Driver) -> None:
    leader.tell(order("pause"))
    leader.tell(SwapAnswered(ticket=leader.ticket(SwapRecord), outcome="applied", revision=2))
    leader.tell(order("resume"))
    leader.tell(SwapAnswered(ticket=leader.ticket(SwapRecord), outcome="lost"))
    assert leader.machine.facts.etcd.unsettled_revision == 0


# Rule 20: what announces a handover is the leader's own swap, confirmed, and the newest.


@pytest.mark.parametrize("again", [True, False])
def test_a_swap_that_keeps_what_an_earlier_order_promised_announces_nothing(leader: Driver, *, again: bool) -> None:
    # The switch to B fails while the swap of a pause is under way; then an operator may want C.
    hands_over(leader)
    drain = leader.ticket(DrainLedger)
    leader.tell(order("pause", ticket=8))
    swap = leader.asked(SwapRecord)
    assert swap.record.succession == PROMISED.succession
    leader.tell(LedgerFailed(ticket=drain, reason="slow"))
    if again:
        leader.tell(order("switch", C, ticket=9))
    leader.tell(SwapAnswered(ticket=swap.ticket, outcome="applied", revision=3))
    assert announced_at(leader.machine.facts) == 0
    assert leader.machine.facts.member.serving_epoch == 1
    if not again:
        assert leader.swapped().succession is None
        return
    assert leader.swapped().succession == Succession(region=C, reason=f"switch to {C}: an operator")


def test_a_swap_that_promises_nothing_announces_nothing(leader: Driver) -> None:
    leader.tell(StandbysStreaming(regions=frozenset({B, C})))
    leader.tell(order("pause"))
    swap = leader.ticket(SwapRecord)
    leader.tell(order("switch", B, ticket=8))
    leader.tell(SwapAnswered(ticket=swap, outcome="applied", revision=2))
    assert announced_at(leader.machine.facts) == 0
    assert leader.swapped().succession is not None


def test_a_handover_begins_with_nothing_announced_and_nothing_drained(leader: Driver) -> None:
    # Also after an earlier hand-over: with either it would release its epoch too early.
    leader.machine.facts.handover = RestartDelayed(until=9.0)
    leader.tell(StandbysStreaming(regions=frozenset({B, C})))
    leader.tell(order("switch", B))
    assert (announced_at(leader.machine.facts), drained_to(leader.machine.facts)) == (0, None)
    assert StopLedger not in leader.kinds()


def test_a_swap_that_another_has_overtaken_announces_nothing(leader: Driver) -> None:
    leader.tell(StandbysStreaming(regions=frozenset({B, C})))
    leader.tell(order("switch", B))
    swap = leader.ticket(SwapRecord)
    leader.tell(RecordSeen(revision=3, record=replace(SERVING, drained=(C,))))
    leader.tell(SwapAnswered(ticket=swap, outcome="applied", revision=2))
    assert announced_at(leader.machine.facts) == 0
    assert leader.machine.facts.member.serving_epoch == 1


def test_a_later_swap_does_not_announce_again_what_is_announced(leader: Driver) -> None:
    # Who knows the first one need not read etcd to understand the release.
    hands_over(leader)
    leader.tell(order("pause", ticket=8))
    leader.tell(SwapAnswered(ticket=leader.ticket(SwapRecord), outcome="applied", revision=3))
    assert announced_at(leader.machine.facts) == 2


def test_writes_that_are_closed_are_not_closed_again(leader: Driver) -> None:
    leader.tell(StandbysStreaming(regions=frozenset({B, C})))
    leader.tell(order("switch", B))
    swap = leader.ticket(SwapRecord)
    leader.tell(QuorumWaitCancelled(epoch=1))
    assert leader.kinds().count(StopServing) == 1
    leader.tell(SwapAnswered(ticket=swap, outcome="applied", revision=2))
    assert StopServing not in leader.kinds()
    assert announced_at(leader.machine.facts) == 2


# Rule 7: a commit's wait that was cut short ends the epoch of the primary under which it was.


def test_a_wait_that_is_cut_short_is_of_this_primary_and_told_once(leader: Driver) -> None:
    leader.tell(QuorumWaitCancelled(epoch=2))
    assert leader.effects == []
    leader.tell(QuorumWaitCancelled(epoch=1))
    assert StopServing(epoch=1) in leader.effects
    assert leader.machine.facts.member.cancelled_wait_epoch == 1
    leader.tell(QuorumWaitCancelled(epoch=1))
    assert leader.effects == []


def test_a_wait_that_is_cut_short_before_writes_were_open_closes_none() -> None:
    driver = Driver(B)
    driver.start(MemberState(kind="primary", epoch=2), Promise(epoch=2, lineage=2), CHOSEN)
    driver.tell(QuorumWaitCancelled(epoch=2))
    assert StopServing not in driver.kinds()
    assert driver.machine.facts.member.cancelled_wait_epoch == 2


# Promises.


def test_a_promotion_is_under_way_when_the_lineage_of_who_leads_is_durable_and_not_before() -> None:
    driver = following(B)
    driver.tell(RecordSeen(revision=2, record=CHOSEN))
    driver.freezes(500)
    promise = driver.asked(StorePromise)
    assert (promise.promise.epoch, promise.promise.lineage) == (2, 1)
    driver.tell(PromiseStored(ticket=promise.ticket))
    assert driver.machine.facts.member.promoting_epoch == 0
    driver.tell(LedgerDone(ticket=driver.ticket(SetQuorum)))
    lineage = driver.asked(StorePromise)
    assert lineage.promise.lineage == 2
    assert driver.machine.facts.member.promoting_epoch == 0
    driver.tell(PromiseStored(ticket=lineage.ticket + 1))
    assert driver.machine.facts.member.promise == promise.promise
    driver.tell(PromiseStored(ticket=lineage.ticket))
    assert driver.machine.facts.member.promoting_epoch == 2
    assert driver.machine.facts.requests.storing is None
    assert PromoteLedger in driver.kinds()


def test_who_follows_has_no_promotion_under_way() -> None:
    # It has voted, is frozen, and makes the epoch of another durable before it follows.
    driver = following(C)
    driver.tell(RecordSeen(revision=2, record=RECRUITING))
    driver.freezes(500)
    driver.tell(PromiseStored(ticket=driver.ticket(StorePromise)))
    driver.tell(RecordSeen(revision=3, record=CHOSEN))
    driver.tell(PromiseStored(ticket=driver.ticket(StorePromise)))
    assert driver.machine.facts.member.promise == Promise(epoch=2, lineage=2)
    assert driver.machine.facts.member.promoting_epoch == 0
    assert FollowLedger in driver.kinds()


def test_the_first_epoch_promotes_nothing() -> None:
    driver = Driver(A)
    driver.tell(Started(promise=Promise(), ledger=MemberState(kind="absent")))
    driver.tell(RecordRead(ticket=driver.ticket(ReadRecord), revision=0, record=None))
    driver.tell(SwapAnswered(ticket=driver.ticket(SwapRecord), outcome="applied", revision=1))
    driver.tell(PromiseStored(ticket=driver.ticket(StorePromise)))
    assert driver.machine.facts.member.promise == Promise(epoch=1, lineage=1)
    assert driver.machine.facts.member.promoting_epoch == 0


def test_a_promise_that_was_given_up_is_not_gone_below(follower: Driver) -> None:
    # Its write may have taken place, or may yet.
    follower.tell(RecordSeen(revision=2, record=RECRUITING))
    follower.freezes(500)
    facts = follower.machine.facts
    facts.requests.requested_promise = Promise(epoch=2, lineage=1, floor=3, copying=4)
    facts.requests.storing = None
    follower.tell(Tick())
    stored = follower.asked(StorePromise).promise
    assert stored == Promise(epoch=2, lineage=1, floor=3, copying=4) == facts.requests.requested_promise


# The member.


def test_an_answer_of_the_member_belongs_to_one_request(leader: Driver) -> None:
    hands_over(leader)
    ticket = leader.ticket(DrainLedger)
    leader.tell(LedgerDrained(ticket=ticket - 1, lsn=400))
    assert drained_to(leader.machine.facts) is None
    leader.tell(LedgerDrained(ticket=ticket, lsn=500))
    assert drained_to(leader.machine.facts) == 500
    assert [kind for kind in leader.kinds() if kind in (StopServing, StopLedger)] == [StopLedger]


def test_a_promotion_that_failed_is_under_way_no_more() -> None:
    driver = following(B)
    driver.tell(RecordSeen(revision=2, record=CHOSEN))
    driver.freezes(500)
    driver.tell(PromiseStored(ticket=driver.ticket(StorePromise)))
    driver.tell(LedgerDone(ticket=driver.ticket(SetQuorum)))
    driver.tell(PromiseStored(ticket=driver.ticket(StorePromise)))
    driver.tell(LedgerFailed(ticket=driver.ticket(PromoteLedger), reason="no"))
    assert driver.machine.facts.member.promoting_epoch == 0
    assert driver.swapped().epoch == 3


def test_a_member_that_was_promoted_keeps_the_quorum_that_was_put_in_force_before() -> None:
    driver = following(B)
    driver.tell(RecordSeen(revision=2, record=CHOSEN))
    driver.freezes(500)
    driver.tell(PromiseStored(ticket=driver.ticket(StorePromise)))
    quorum = driver.asked(SetQuorum)
    assert (quorum.standbys, quorum.required) == ((A, C), 1)
    driver.tell(LedgerDone(ticket=quorum.ticket))
    driver.tell(PromiseStored(ticket=driver.ticket(StorePromise)))
    driver.tell(LedgerDone(ticket=driver.ticket(PromoteLedger)))
    facts = driver.machine.facts
    assert facts.member.ledger == MemberState(kind="primary", epoch=2)
    assert (facts.member.quorum, facts.member.frozen_vote, facts.member.promoting_epoch) == ((A, C), None, 0)
    assert StartServing not in driver.kinds(), "its fence row is on no quorum yet"
    fence = FenceWritten(ticket=driver.ticket(WriteFence), fence_id=UUID(int=2), lsn=700, confirmed=True)
    driver.tell(QuorumCommit(lsn=800))
    driver.tell(fence)
    assert StartServing(epoch=2) in driver.effects
    assert facts.member.quorum_commit == 800
    driver.tell(QuorumCommit(lsn=750))
    assert facts.member.quorum_commit == 800


def test_a_quorum_that_cannot_be_put_in_force_is_asked_for_again() -> None:
    driver = Driver(A)
    driver.start(MemberState(kind="primary", epoch=1), Promise(epoch=1, lineage=1))
    driver.tell(LedgerFailed(ticket=driver.ticket(SetQuorum), reason="no"))
    assert AnswerOrder not in driver.kinds()
    driver.wait(DEFAULTS.retry_s)
    assert SetQuorum in driver.kinds()


def test_a_stop_that_fails_ends_no_order() -> None:
    driver = Driver(A)
    four = replace(SERVING, voters=(A, B, C, D))
    driver.start(MemberState(kind="primary", epoch=1), Promise(epoch=1, lineage=1), four)
    driver.tell(LedgerDone(ticket=driver.ticket(SetQuorum)))
    driver.tell(order("remove", D))
    driver.tell(RecordSeen(revision=2, record=replace(four, leader=B)))
    assert StartServing not in driver.kinds()
    driver.tell(LedgerFailed(ticket=driver.ticket(StopLedger), reason="no"))
    assert StopLedger in driver.kinds(), "a demotion does not pause"
    assert AnswerOrder not in driver.kinds()
    driver.tell(Tick())
    assert StopLedger not in driver.kinds(), "it is asked for already"


def test_a_quorum_that_failed_ends_no_order_but_that_of_its_voters(leader: Driver) -> None:
    hands_over(leader)
    leader.tell(LedgerFailed(ticket=leader.ticket(DrainLedger), reason="slow"))
    assert leader.machine.facts.handover is None
    assert AnswerOrder(ticket=7, refused="slow") in leader.effects


# What is asked of the member, and when.


def test_nothing_is_asked_of_a_member_during_a_pause_but_its_stop(leader: Driver) -> None:
    leader.machine.facts.requests.ledger_retry = replace(
        leader.machine.facts.requests.ledger_retry, at=9.0, pause_s=1.0
    )
    leader.machine.facts.member.quorum = None
    leader.tell(Tick())
    assert leader.effects == []
    # The same epoch, so that nothing is forgiven: writes close, then PostgreSQL stops.
    leader.tell(RecordSeen(revision=2, record=replace(SERVING, leader=B)))
    assert [kind for kind in leader.kinds() if kind in (StopServing, StopLedger)] == [StopServing, StopLedger]


def test_a_promise_is_not_written_during_a_pause_nor_twice(follower: Driver) -> None:
    follower.tell(RecordSeen(revision=2, record=RECRUITING))
    follower.freezes(500)
    first = follower.asked(StorePromise)
    assert follower.machine.facts.requests.requested_promise == first.promise
    follower.tell(Tick())
    assert follower.effects == [], "it is being written"
    follower.tell(PromiseFailed(ticket=first.ticket, reason="no space left"))
    follower.tell(SuspicionChanged(region=B, suspected=True))
    assert StorePromise not in follower.kinds()
    follower.wait(DEFAULTS.retry_s)
    assert StorePromise in follower.kinds()


def test_what_is_asked_for_already_is_not_asked_for_again(follower: Driver) -> None:
    follower.tell(RecordSeen(revision=2, record=RECRUITING))
    ticket = follower.ticket(FreezeLedger)
    follower.tell(Tick())
    assert follower.effects == []
    assert follower.machine.facts.requests.working is not None
    assert follower.machine.facts.requests.working.ticket == ticket


def test_a_quorum_is_unknown_while_another_is_put_in_force(leader: Driver) -> None:
    four = replace(SERVING, voters=(A, B, C, D))
    leader.tell(RecordSeen(revision=2, record=four))
    assert leader.asked(SetQuorum).standbys == (B, C, D)
    assert leader.machine.facts.member.quorum is None


def test_a_quorum_of_the_successor_is_unknown_once_it_is_frozen_again(successor: Driver) -> None:
    successor.tell(RecordSeen(revision=2, record=PROMISED))
    successor.machine.facts.member.quorum = (A, C)
    successor.tell(GossipHeard(sender=A, gossip=Gossip(epoch=1, drained=1)))
    assert FreezeLedger in successor.kinds()
    assert successor.machine.facts.member.quorum is None


# Who cannot take part does nothing at all.


def test_a_primary_whose_promise_is_lost_takes_no_writes_and_answers_no_reads() -> None:
    # It may have promised a later epoch; and nothing is promised over what cannot be read.
    driver = Driver(A)
    driver.tell(Started(promise=None, ledger=MemberState(kind="primary", epoch=1)))
    assert driver.tells("the promise of this member cannot be read")
    driver.tell(RecordRead(ticket=driver.ticket(ReadRecord), revision=1, record=SERVING))
    driver.tell(StrongReads(requests=(1,)))
    driver.tell(RecordSeen(revision=2, record=replace(SERVING, drained=(C,))))
    driver.wait(DEFAULTS.ledger_s_max)
    facts = driver.machine.facts
    assert driver.machine.state == "refusing"
    assert (facts.member.serving_epoch, facts.requests.working, facts.requests.swapping, facts.requests.storing) == (
        0,
        None,
        None,
        None,
    )


# Writes open when the fence row is on a quorum, for who leads and is sure of it.


def test_a_leader_that_was_away_takes_no_writes_before_it_has_read_the_epoch() -> None:
    driver = Driver(B)
    driver.tell(Started(promise=Promise(epoch=2, lineage=2), ledger=MemberState(kind="primary", epoch=2)))
    driver.tell(RecordRead(ticket=driver.ticket(ReadRecord), revision=1, record=CHOSEN))
    fence = FenceWritten(ticket=driver.ticket(WriteFence), fence_id=UUID(int=2), lsn=700, confirmed=True)
    driver.tell(AgentPaused())
    read = driver.ticket(ReadRecord)
    driver.tell(fence)
    assert StartServing not in driver.kinds()
    driver.tell(RecordRead(ticket=read, revision=1, record=CHOSEN))
    assert driver.effects.count(StartServing(epoch=2)) == 1
    driver.tell(Tick())
    assert StartServing not in driver.kinds()


def test_the_first_epoch_takes_writes_when_the_record_says_that_it_serves() -> None:
    bootstrapping = replace(SERVING, phase="bootstrapping", fence_id=None, ancestry=())
    driver = Driver(A)
    driver.start(MemberState(kind="primary", epoch=1), Promise(epoch=1, lineage=1), bootstrapping)
    driver.tell(LedgerDone(ticket=driver.ticket(SetQuorum)))
    fence = FenceWritten(ticket=driver.ticket(WriteFence), fence_id=UUID(int=1), lsn=700, confirmed=True)
    driver.tell(fence)
    assert StartServing not in driver.kinds()
    driver.tell(SwapAnswered(ticket=driver.ticket(SwapRecord), outcome="applied", revision=2))
    assert StartServing(epoch=1) in driver.effects


def test_a_spent_epoch_takes_no_writes_again(leader: Driver) -> None:
    leader.tell(QuorumWaitCancelled(epoch=1))
    leader.tell(Tick())
    assert StartServing not in leader.kinds()
    assert leader.machine.facts.member.serving_epoch == 0


# Gossip.


def test_only_who_tells_of_an_epoch_that_nobody_told_of_has_etcd_asked(follower: Driver) -> None:
    for sender, epoch, reads in ((B, 1, False), (A, 2, True), (B, 2, False), (B, 3, True), (A, 3, False)):
        follower.tell(GossipHeard(sender=sender, gossip=Gossip(epoch=epoch)))
        assert (ReadRecord in follower.kinds()) is reads, (sender, epoch)


def test_gossip_before_the_first_record_asks_nothing_more() -> None:
    driver = Driver(C)
    driver.tell(Started(promise=Promise(epoch=1, lineage=1), ledger=MemberState(kind="following", epoch=1)))
    driver.tell(GossipHeard(sender=A, gossip=Gossip(epoch=1, drained=1)))
    assert driver.effects == []


@pytest.mark.parametrize(
    ("region", "sender", "drained", "relieved"),
    [(B, A, 1, True), (B, C, 1, False), (B, A, 0, False), (B, A, 2, False), (C, A, 1, False)],
)
def test_only_the_successor_lets_go_and_only_of_a_leader_that_has_drained_this_epoch(
    region: RegionName, sender: RegionName, drained: int, *, relieved: bool
) -> None:
    driver = following(region)
    driver.tell(RecordSeen(revision=2, record=PROMISED))
    driver.tell(GossipHeard(sender=sender, gossip=Gossip(epoch=1, drained=drained)))
    assert (prepares_until(driver.machine.facts) is not None) is relieved


def test_what_another_says_does_not_end_the_relief(successor: Driver) -> None:
    gets_ready(successor)
    successor.tell(GossipHeard(sender=C, gossip=Gossip(epoch=1)))
    assert prepares_until(successor.machine.facts) == DEFAULTS.stall_s


def test_a_copy_that_is_under_way_when_the_leader_gives_up_stays_of_its_epoch() -> None:
    driver = Driver(B)
    driver.start(MemberState(kind="absent"), Promise(epoch=1, lineage=1), PROMISED)
    driver.tell(PromiseStored(ticket=driver.ticket(StorePromise)))
    driver.tell(GossipHeard(sender=A, gossip=Gossip(epoch=1, drained=1)))
    driver.tell(GossipHeard(sender=A, gossip=Gossip(epoch=2, release=replace(RELEASE, revision=1))))
    assert driver.machine.facts.record == HANDED_OVER
    working = driver.machine.facts.requests.working
    assert working is not None
    assert isinstance(working.effect, CopyLedger)
    assert working.effect.epoch == 1


# What others hear.


def test_a_leader_tells_its_commit_and_that_it_has_drained_and_a_follower_neither(leader: Driver) -> None:
    leader.tell(QuorumCommit(lsn=900))
    assert leader.effects == [], "a commit goes with the next heartbeat"
    assert leader.machine.gossip == Gossip(epoch=1, commit=900)
    leader.tell(QuorumCommit(lsn=800))
    assert leader.machine.gossip.commit == 900
    hands_over(leader)
    leader.tell(LedgerDrained(ticket=leader.ticket(DrainLedger), lsn=1000))
    assert leader.machine.gossip == Gossip(epoch=1, commit=900, drained=1)
    leader.tell(LedgerDone(ticket=leader.ticket(StopLedger)))
    assert leader.machine.gossip == Gossip(epoch=2, release=replace(RELEASE, lsn=1000))


def test_who_does_not_lead_tells_no_commit_and_whom_it_suspects(follower: Driver) -> None:
    follower.tell(QuorumCommit(lsn=900))
    follower.tell(SuspicionChanged(region=B, suspected=True))
    assert follower.machine.gossip == Gossip(epoch=1)
    follower.tell(SuspicionChanged(region=A, suspected=True))
    assert follower.machine.gossip == Gossip(epoch=1, suspects=1)
    follower.tell(SuspicionChanged(region=A, suspected=False))
    assert follower.machine.gossip == Gossip(epoch=1)
    assert follower.machine.facts.peers.suspected == {B}


# Rule 1: who is cut off says so, once.


def test_who_hears_no_majority_says_so_once_and_that_it_hears_one_again(follower: Driver) -> None:
    follower.tell(SuspicionChanged(region=A, suspected=True))
    assert not follower.tells("nobody takes over")
    follower.tell(SuspicionChanged(region=B, suspected=True))
    assert follower.tells("hears only ap-south; nobody takes over until 2 can agree")
    assert follower.machine.facts.peers.in_minority
    follower.tell(Tick())
    assert follower.effects == []
    follower.tell(SuspicionChanged(region=B, suspected=False))
    assert follower.tells("hears a majority of the voters again")
    assert not follower.machine.facts.peers.in_minority


def test_who_has_no_vote_does_not_say_whether_it_hears_a_majority() -> None:
    driver = Driver(D)
    driver.start(None, Promise())
    driver.tell(SuspicionChanged(region=A, suspected=True))
    driver.tell(SuspicionChanged(region=B, suspected=True))
    assert driver.effects == []


def test_agreement_about_the_leader_is_told_once_and_counts_from_then(follower: Driver) -> None:
    follower.now = 5.0
    follower.tell(SuspicionChanged(region=A, suspected=True))
    assert follower.machine.facts.peers.leader_suspected_since is None
    follower.tell(GossipHeard(sender=B, gossip=Gossip(epoch=1, suspects=1)))
    assert follower.tells("is silent, and others agree")
    assert follower.machine.facts.peers.leader_suspected_since == 5.0
    follower.now = 5.1
    follower.tell(Tick())
    assert follower.effects == []
    assert follower.machine.facts.peers.leader_suspected_since == 5.0
    follower.tell(GossipHeard(sender=B, gossip=Gossip(epoch=1)))
    assert follower.machine.facts.peers.leader_suspected_since is None


# The end of a handover, and the rest after it.


def test_a_stop_for_another_reason_gives_nothing_up(leader: Driver) -> None:
    leader.tell(RecordSeen(revision=2, record=RECRUITING))
    leader.tell(LedgerDone(ticket=leader.ticket(StopLedger)))
    assert restart_delayed_until(leader.machine.facts) is None
    assert leader.machine.facts.release is None


def test_a_drain_that_is_answered_after_its_switchover_has_ended_releases_nothing(leader: Driver) -> None:
    hands_over(leader)
    leader.machine.facts.handover = None
    leader.tell(LedgerDrained(ticket=leader.ticket(DrainLedger), lsn=500))
    assert leader.machine.facts.handover is None
    assert (leader.machine.gossip.drained, leader.machine.facts.release) == (0, None)


def test_a_leader_that_is_stopped_before_it_has_drained_gives_nothing_up(leader: Driver) -> None:
    hands_over(leader)
    leader.tell(RecordSeen(revision=3, record=replace(PROMISED, leader=C)))
    leader.tell(LedgerDone(ticket=leader.ticket(StopLedger)))
    assert leader.machine.facts.handover is not None
    assert leader.machine.facts.release is None
    assert restart_delayed_until(leader.machine.facts) is None


@pytest.mark.parametrize("kind", [DrainLedger, WriteFence, FreezeLedger])
def test_what_has_an_answer_of_its_own_is_not_answered_by_a_mere_done(kind: type[LedgerEffect]) -> None:
    if kind is DrainLedger:
        driver = leading()
        hands_over(driver)
    elif kind is WriteFence:
        driver = Driver(B)
        driver.start(MemberState(kind="primary", epoch=2), Promise(epoch=2, lineage=2), CHOSEN)
    else:
        driver = following(C)
        driver.tell(RecordSeen(revision=2, record=RECRUITING))
    working = driver.machine.facts.requests.working
    assert working is not None
    assert isinstance(working.effect, kind)
    with pytest.raises(AssertionError, match=f"{kind.__name__} has an answer of its own"):
        driver.tell(LedgerDone(ticket=working.ticket))


def test_who_has_handed_over_is_of_the_next_epoch_at_once(leader: Driver) -> None:
    has_handed_over(leader)
    assert leader.tells("epoch 1: given up at 1F4; the next is eu-west's")
    facts = leader.machine.facts
    assert facts.record == HANDED_OVER
    assert facts.member.ledger == MemberState(kind="stopped")
    assert (facts.switchover, announced_at(facts), drained_to(facts)) == (None, 0, None)


def test_a_member_that_ends_by_itself_is_told_of_and_one_that_does_not_run_is_not(leader: Driver) -> None:
    leader.tell(LedgerEnded())
    assert leader.tells("PostgreSQL ended, it was primary")
    assert StopServing(epoch=1) in leader.effects
    leader.tell(LedgerEnded())
    assert not leader.tells("PostgreSQL ended")


# What people are told of a member.


def test_the_story_of_a_member_that_is_chosen() -> None:
    driver = following(B)
    driver.tell(RecordSeen(revision=2, record=CHOSEN))
    driver.freezes(0x500)
    assert driver.tells("epoch 2: frozen at 1:500")
    driver.tell(PromiseStored(ticket=driver.ticket(StorePromise)))
    driver.tell(LedgerDone(ticket=driver.ticket(SetQuorum)))
    driver.tell(PromiseStored(ticket=driver.ticket(StorePromise)))
    driver.tell(LedgerDone(ticket=driver.ticket(PromoteLedger)))
    assert driver.tells("epoch 2: its ledger is primary here")
    fence = FenceWritten(ticket=driver.ticket(WriteFence), fence_id=UUID(int=2), lsn=700, confirmed=True)
    driver.tell(fence)
    assert driver.tells("epoch 2: its fence row is on a quorum")
    assert driver.tells("epoch 2: takes writes")


@pytest.mark.parametrize(("ancestry", "how"), [((1, 2), "rewound"), ((2,), "copied")])
def test_the_story_of_a_member_that_follows_again(ancestry: tuple[int, ...], how: str) -> None:
    driver = Driver(C)
    record = replace(SERVING, epoch=2, leader=B, ancestry=ancestry)
    driver.start(MemberState(kind="stopped"), Promise(epoch=1, lineage=1), record)
    driver.tell(PromiseStored(ticket=driver.ticket(StorePromise)))
    if how == "rewound":
        driver.tell(LedgerFailed(ticket=driver.ticket(FollowLedger), reason="histories part", diverged=True))
        assert driver.tells("histories part; again in 0.05 s")
        driver.wait(DEFAULTS.retry_s)
        driver.tell(PromiseStored(ticket=driver.ticket(StorePromise)))
    driver.tell(LedgerDone(ticket=driver.ticket(RewindLedger if how == "rewound" else CopyLedger)))
    assert driver.tells(f"epoch 2: {how} from eu-west")
    assert driver.machine.facts.member.rebuilt_epoch == 2
    assert not driver.machine.facts.member.diverged
    if how == "copied":
        driver.tell(PromiseStored(ticket=driver.ticket(StorePromise)))
    driver.tell(LedgerDone(ticket=driver.ticket(FollowLedger)))
    assert driver.tells("epoch 2: follows eu-west")

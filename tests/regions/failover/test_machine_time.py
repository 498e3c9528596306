"""Tests of time in the machine of a cell: the deadlines of requests, what happens then, and pauses after failures."""

from collections.abc import Callable
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
    LedgerFailed,
    LedgerFrozen,
    MemberState,
    Promise,
    PromiseFailed,
    PromiseStored,
    QuorumWaitCancelled,
    ReadFailed,
    RecordRead,
    RecordSeen,
    Started,
    StrongReads,
    SuspicionChanged,
    SwapAnswered,
    Tick,
)
from regions.failover.settings import DEFAULTS
from tests.regions.failover.driver import (
    CHOSEN,
    RECRUITING,
    SERVING,
    A,
    B,
    C,
    Driver,
    announce_switchover,
    following,
    leading,
    order,
    prepare_successor,
    release_epoch,
)
from tests.regions.failover.facts_builder import restart_delayed_until


def suspect_leader(driver: Driver) -> None:
    """Report that this agent and another one suspect A."""
    driver.handle(SuspicionChanged(region=A, suspected=True))
    driver.handle(GossipHeard(sender=C if driver.machine.facts.region == B else B, gossip=Gossip(epoch=1, suspects=1)))


# A request is given up at its deadline and not before, and ``next_deadline`` returns that time.


def request_read(driver: Driver) -> None:
    driver.handle(AgentPaused())


def request_strong_read(driver: Driver) -> None:
    driver.handle(StrongReads(requests=(1,)))


def request_swap(driver: Driver) -> None:
    driver.handle(order("pause"))


REQUESTS = {"a read of etcd": request_read, "a strong read": request_strong_read, "a swap": request_swap}


@pytest.mark.parametrize("begin_request", REQUESTS.values(), ids=REQUESTS)
def test_a_request_to_etcd_is_given_up_at_its_deadline_and_not_before(begin_request: Callable[[Driver], None]) -> None:
    driver = following(C)
    driver.now = 50.0
    begin_request(driver)
    assert driver.machine.next_deadline() == 50.0 + DEFAULTS.request_s_max
    driver.advance(DEFAULTS.request_s_max - 0.001)
    assert driver.effects == []
    driver.now = 50.0 + DEFAULTS.request_s_max
    driver.handle(Tick())
    facts = driver.machine.facts
    match begin_request:
        case _ if begin_request is request_read:
            assert driver.logged("etcd does not answer")
            assert facts.requests.reading is None
        case _ if begin_request is request_strong_read:
            assert driver.effects == [AnswerStrongReads(requests=(1,), current=False)]
            assert facts.requests.strong_reading is None
        case _:
            assert AnswerOrder in driver.kinds()
            assert facts.requests.swapping is None


def test_an_unanswered_promise_is_stored_again_at_its_deadline_and_not_before() -> None:
    driver = following(C)
    driver.handle(RecordSeen(revision=2, record=RECRUITING))
    driver.answer_freeze(500)
    first = driver.requested(StorePromise)
    assert driver.machine.next_deadline() == DEFAULTS.request_s_max
    driver.advance(DEFAULTS.request_s_max - 0.001)
    assert driver.effects == []
    driver.now = DEFAULTS.request_s_max
    driver.handle(Tick())
    assert replace(driver.requested(StorePromise), ticket=first.ticket) == first


def driver_with_pending(effect: type[LedgerEffect]) -> Driver:
    """Return a machine that has just requested this effect on its member."""
    if effect is DrainLedger:
        driver = leading()
        announce_switchover(driver)
    elif effect in (CopyLedger, RewindLedger):
        # The lineage of the member is in the leader's ancestry for a rewind, and not for a copy.
        shares = effect is RewindLedger
        driver = Driver(C)
        record = replace(SERVING, epoch=2, ancestry=(1, 2) if shares else (2,))
        driver.start(MemberState(kind="stopped"), Promise(epoch=1, lineage=1), record)
        if shares:
            driver.handle(PromiseStored(ticket=driver.ticket(StorePromise)))
            driver.handle(LedgerFailed(ticket=driver.ticket(FollowLedger), reason="no", diverged=True))
            driver.advance(DEFAULTS.retry_s)
        driver.handle(PromiseStored(ticket=driver.ticket(StorePromise)))
    elif effect is FreezeLedger:
        driver = following(C)
        driver.handle(RecordSeen(revision=2, record=RECRUITING))
    else:
        driver = Driver(C)
        driver.start(MemberState(kind="stopped"), Promise(epoch=1, lineage=1))
    return driver


@pytest.mark.parametrize(
    ("effect", "patience_s"),
    [
        (DrainLedger, DEFAULTS.target_s_max),
        (CopyLedger, DEFAULTS.rebuild_s_max),
        (RewindLedger, DEFAULTS.rebuild_s_max),
        (FreezeLedger, DEFAULTS.ledger_s_max),
        (FollowLedger, DEFAULTS.ledger_s_max),
    ],
)
def test_an_effect_on_the_member_is_given_up_at_its_deadline_and_not_before(
    effect: type[LedgerEffect], patience_s: float
) -> None:
    driver = driver_with_pending(effect)
    begun, ticket = driver.now, driver.requested(effect).ticket
    driver.now = begun + patience_s - 0.001
    driver.handle(Tick())
    assert driver.machine.facts.requests.working is not None
    assert driver.machine.facts.requests.working.ticket == ticket
    driver.now = begun + patience_s
    driver.handle(Tick())
    working = driver.machine.facts.requests.working
    assert working is None or working.ticket != ticket
    if effect is DrainLedger:
        assert AnswerOrder(ticket=7, refused="the target did not catch up in time") in driver.effects
    else:
        assert working is not None
        assert working.effect == replace(driver.requested(effect), ticket=0)


def test_the_first_initialisation_has_the_deadline_of_a_copy() -> None:
    driver = Driver(A)
    driver.handle(Started(promise=Promise(), ledger=MemberState(kind="absent")))
    driver.handle(RecordRead(ticket=driver.ticket(ReadRecord), revision=0, record=None))
    driver.handle(SwapAnswered(ticket=driver.ticket(SwapRecord), outcome="applied", revision=1))
    driver.handle(PromiseStored(ticket=driver.ticket(StorePromise)))
    assert driver.machine.next_deadline() == DEFAULTS.rebuild_s_max


def test_an_unanswered_promotion_is_given_up_and_the_next_epoch_begins() -> None:
    # The promotion may have taken place, so the epoch is over for this member (rule 8).
    driver = following(B)
    driver.handle(RecordSeen(revision=2, record=CHOSEN))
    driver.answer_freeze(500)
    driver.handle(PromiseStored(ticket=driver.ticket(StorePromise)))
    driver.handle(LedgerDone(ticket=driver.ticket(SetQuorum)))
    driver.handle(PromiseStored(ticket=driver.ticket(StorePromise)))
    assert driver.machine.facts.member.promoting_epoch == 2
    assert PromoteLedger in driver.kinds()
    driver.advance(DEFAULTS.ledger_s_max)
    assert driver.machine.facts.member.promoting_epoch == 0
    assert PromoteLedger not in driver.kinds()
    assert driver.requested_record().epoch == 3


def test_the_successor_waits_for_the_release_up_to_the_stall_time(successor: Driver) -> None:
    successor.now = 10.0
    successor.handle(LedgerDone(ticket=prepare_successor(successor)))
    assert successor.machine.next_deadline() == 10.0 + DEFAULTS.stall_s
    # Repeated gossip does not postpone the deadline.
    successor.now = 11.0
    successor.handle(GossipHeard(sender=A, gossip=Gossip(epoch=1, drained=1)))
    successor.now = 10.0 + DEFAULTS.stall_s - 0.001
    successor.handle(Tick())
    assert successor.effects == []
    successor.now = 10.0 + DEFAULTS.stall_s
    successor.handle(Tick())
    assert FollowLedger in successor.kinds()


def test_the_restart_delay_of_an_old_leader_ends_at_its_deadline(leader: Driver) -> None:
    leader.now = 10.0
    release_epoch(leader)
    leader.handle(SwapAnswered(ticket=leader.machine.facts.requests.last_ticket, outcome="applied", revision=3))
    leader.now = 10.0 + DEFAULTS.rest_s - 0.001
    leader.handle(Tick())
    assert restart_delayed_until(leader.machine.facts) == 10.0 + DEFAULTS.rest_s == leader.machine.next_deadline()
    assert leader.effects == []
    leader.now = 10.0 + DEFAULTS.rest_s
    leader.handle(Tick())
    assert restart_delayed_until(leader.machine.facts) is None
    assert StorePromise in leader.kinds()


# A claim that cannot be made yet sets no deadline: ``Tick`` would be due at once, again and again.


def claiming() -> Driver:
    """Return the agent of B, whose swap of a claim is pending."""
    driver = following(B)
    suspect_leader(driver)
    assert SwapRecord in driver.kinds()
    return driver


def test_a_pending_claim_sets_no_deadline_of_its_own() -> None:
    assert claiming().machine.next_deadline() == DEFAULTS.request_s_max


def test_a_claim_that_waits_for_etcd_sets_no_deadline_of_its_own() -> None:
    driver = claiming()
    driver.now = 1.0
    driver.handle(SwapAnswered(ticket=driver.ticket(SwapRecord), outcome="lost"))
    assert driver.machine.next_deadline() == 1.0 + DEFAULTS.request_s_max
    driver.handle(ReadFailed(ticket=driver.ticket(ReadRecord)))
    assert driver.machine.next_deadline() == 1.0 + DEFAULTS.retry_s


def test_a_leader_with_a_cancelled_quorum_wait_begins_the_next_epoch_after_the_etcd_pause() -> None:
    driver = Driver(A)
    driver.handle(Started(promise=Promise(epoch=1, lineage=1), ledger=MemberState(kind="primary", epoch=1)))
    driver.handle(RecordRead(ticket=driver.ticket(ReadRecord), revision=8, record=SERVING))
    driver.handle(ReadFailed(ticket=driver.ticket(ReadRecord)))
    driver.now = 0.01
    driver.handle(QuorumWaitCancelled(epoch=1))
    assert SwapRecord not in driver.kinds()
    assert driver.machine.next_deadline() == DEFAULTS.retry_s
    driver.now = DEFAULTS.retry_s
    driver.handle(Tick())
    assert driver.requested_record().epoch == 2


# Pauses after failures double up to their bound, and start at their minimum again after a success.


def pauses_after(driver: Driver, failures: int) -> list[float]:
    """Fail the requested freeze, now and after each pause; return the lengths of the pauses in seconds."""
    pauses: list[float] = []
    for _ in range(failures):
        driver.handle(LedgerFailed(ticket=driver.ticket(FreezeLedger), reason="disk"))
        retry = driver.machine.facts.requests.ledger_retry
        assert retry.at is not None
        assert driver.machine.next_deadline() is not None
        assert FreezeLedger not in driver.kinds()
        pauses.append(round(retry.at - driver.now, 6))
        driver.now = retry.at - 0.001
        driver.handle(Tick())
        assert FreezeLedger not in driver.kinds()
        driver.now = retry.at
        driver.handle(Tick())
    return pauses


def test_a_failed_freeze_is_requested_again_after_growing_pauses(follower: Driver) -> None:
    follower.handle(RecordSeen(revision=2, record=RECRUITING))
    assert pauses_after(follower, 7)[:6] == [0.05, 0.1, 0.2, 0.4, 0.8, 1.0]


def test_a_later_epoch_does_not_wait_for_the_pause_of_an_earlier_one(follower: Driver) -> None:
    follower.handle(RecordSeen(revision=2, record=RECRUITING))
    pauses_after(follower, 3)
    follower.handle(LedgerFailed(ticket=follower.ticket(FreezeLedger), reason="disk"))
    follower.handle(RecordSeen(revision=3, record=replace(RECRUITING, epoch=3)))
    assert pauses_after(follower, 1) == [0.05]


@pytest.mark.parametrize("receiving", [True, False])
def test_a_member_that_is_not_frozen_yet_is_checked_again_without_a_log_line(
    follower: Driver, *, receiving: bool
) -> None:
    follower.handle(RecordSeen(revision=2, record=RECRUITING))
    answer = LedgerFrozen(
        ticket=follower.ticket(FreezeLedger), receiving=receiving, received=500, replayed=499, ancestry=(1,)
    )
    follower.handle(answer)
    assert follower.effects == []
    assert follower.machine.facts.member.frozen_vote is None
    assert follower.machine.next_deadline() == DEFAULTS.retry_s
    follower.advance(DEFAULTS.retry_s)
    follower.answer_freeze(500)
    assert follower.machine.facts.requests.ledger_retry == type(follower.machine.facts.requests.ledger_retry)()
    assert StorePromise in follower.kinds()


def test_a_promise_that_cannot_be_stored_is_requested_again_after_a_pause(follower: Driver) -> None:
    follower.handle(RecordSeen(revision=2, record=RECRUITING))
    follower.answer_freeze(500)
    asked = follower.requested(StorePromise)
    follower.handle(PromiseFailed(ticket=asked.ticket - 1, reason="of an earlier one"))
    assert follower.effects == []
    assert follower.machine.facts.requests.storing is not None
    follower.handle(PromiseFailed(ticket=asked.ticket, reason="no space left"))
    assert follower.logged("no space left")
    assert StorePromise not in follower.kinds()
    assert follower.machine.facts.member.promise == Promise(epoch=1, lineage=1)
    assert follower.machine.next_deadline() == DEFAULTS.retry_s
    follower.advance(DEFAULTS.retry_s)
    assert follower.requested(StorePromise).promise == asked.promise
    follower.handle(PromiseStored(ticket=follower.ticket(StorePromise)))
    assert follower.machine.facts.requests.ledger_retry.pause_s == 0
    assert follower.machine.gossip.vote is not None


def test_an_answer_of_etcd_resets_its_pause(follower: Driver) -> None:
    follower.handle(AgentPaused())
    for _ in range(3):
        follower.handle(ReadFailed(ticket=follower.ticket(ReadRecord)))
        retry = follower.machine.facts.requests.etcd_retry
        assert retry.at is not None
        follower.now = retry.at
        follower.handle(Tick())
    follower.handle(RecordRead(ticket=follower.ticket(ReadRecord), revision=1, record=SERVING))
    assert follower.machine.facts.requests.etcd_retry.pause_s == 0


def test_an_answer_of_the_member_resets_its_pause(leader: Driver) -> None:
    announce_switchover(leader)
    leader.machine.facts.requests.ledger_retry = replace(leader.machine.facts.requests.ledger_retry, pause_s=0.4)
    leader.handle(LedgerDrained(ticket=leader.ticket(DrainLedger), lsn=500))
    assert leader.machine.facts.requests.ledger_retry.pause_s == 0
    leader.machine.facts.requests.ledger_retry = replace(leader.machine.facts.requests.ledger_retry, pause_s=0.4)
    leader.handle(LedgerDone(ticket=leader.machine.facts.requests.last_ticket))
    assert leader.machine.facts.requests.ledger_retry.pause_s == 0


def test_a_fence_row_with_a_cancelled_quorum_wait_is_written_again_after_a_pause() -> None:
    driver = Driver(B)
    driver.handle(Started(promise=Promise(epoch=2, lineage=2), ledger=MemberState(kind="primary", epoch=2)))
    driver.handle(RecordRead(ticket=driver.ticket(ReadRecord), revision=1, record=CHOSEN))
    fence = FenceWritten(ticket=driver.ticket(WriteFence), fence_id=UUID(int=2), lsn=700, confirmed=False)
    driver.handle(fence)
    assert driver.machine.facts.member.fence is None
    assert WriteFence not in driver.kinds()
    assert driver.machine.next_deadline() == DEFAULTS.retry_s
    driver.advance(DEFAULTS.retry_s)
    confirmed = replace(fence, ticket=driver.ticket(WriteFence), confirmed=True)
    driver.handle(confirmed)
    facts = driver.machine.facts
    assert (facts.member.fence, facts.member.quorum_commit, facts.requests.ledger_retry.pause_s) == (confirmed, 700, 0)
    assert driver.requested_record().phase == "serving"

"""Changes facts by the results of the member and of the agent's disk: promises, effects, ends of PostgreSQL."""

from typing import assert_never

from regions.failover import handover, rules, steps
from regions.failover.effects import (
    CopyLedger,
    DrainLedger,
    FollowLedger,
    FreezeLedger,
    InitialiseLedger,
    LedgerEffect,
    PromoteLedger,
    RewindLedger,
    SetQuorum,
    StopLedger,
    WriteFence,
)
from regions.failover.events import (
    FenceWritten,
    LedgerAnswer,
    LedgerDone,
    LedgerDrained,
    LedgerFailed,
    LedgerFrozen,
    MemberState,
    Ticket,
    Vote,
)
from regions.failover.facts import Retry
from regions.failover.handover import RestartDelayed
from regions.failover.record_changes import hear_release
from regions.failover.turn import Turn
from regions.identity import Epoch
from regions.leadership import ANCESTRY_MAX


def take_stored(turn: Turn, ticket: Ticket) -> None:
    """Handle a promise that is on disk."""
    facts, storing = turn.facts, turn.facts.requests.storing
    if storing is None or storing.ticket != ticket:
        return
    record, member = facts.record, facts.member
    if (
        facts.leads
        and record is not None
        and storing.promise.lineage == record.epoch
        and member.frozen_vote is not None
    ):
        member.promoting_epoch = record.epoch
    facts.requests.storing, member.promise, facts.requests.ledger_retry = None, storing.promise, Retry()


def take_failed_store(turn: Turn, ticket: Ticket, reason: str) -> None:
    """Handle a promise that could not be written."""
    requests = turn.facts.requests
    if requests.storing is not None and requests.storing.ticket == ticket:
        requests.storing = None
        turn.pause_ledger(f"the promise cannot be stored: {reason}")


def take_process_end(turn: Turn) -> None:
    """Handle the unexpected end of PostgreSQL."""
    ledger = turn.facts.member.ledger
    if ledger is not None and ledger.kind not in ("absent", "stopped"):
        turn.log("warning", f"ledger: PostgreSQL ended, it was {ledger.kind}")
        turn.change_ledger(MemberState(kind="stopped"))
        turn.facts.requests.working = None


def take_cancelled_wait(turn: Turn, epoch: Epoch) -> None:
    """Handle the cancellation of a commit's quorum wait under an epoch (rule 7)."""
    facts = turn.facts
    if not facts.is_primary_of(epoch) or rules.is_epoch_over(facts.member.cancelled_wait_epoch, epoch):
        return
    facts.member.cancelled_wait_epoch = epoch
    turn.log("warning", f"epoch {epoch}: a commit's quorum wait was cancelled, so this leader steps down")
    turn.stop_serving()


def take_answer(turn: Turn, event: LedgerAnswer) -> None:
    """Take the answer to the effect on the member that is under way; any other answer is late and dropped."""
    facts, working = turn.facts, turn.facts.requests.working
    if working is None or working.ticket != event.ticket:
        return
    facts.requests.working = None
    match event:
        case LedgerFailed(reason=reason):
            _take_failure(turn, event, working.effect)
            turn.pause_ledger(f"ledger: {reason}")
        case LedgerFrozen():
            _take_frozen(turn, event, working.effect.epoch)
        case FenceWritten():
            _take_fence(turn, event, working.effect.epoch)
        case LedgerDrained(lsn=lsn):
            facts.requests.ledger_retry = Retry()
            if facts.switchover is not None:
                turn.move_handover(handover.with_drained(facts.switchover, lsn))
        case LedgerDone():
            facts.requests.ledger_retry = Retry()
            _take_done(turn, working.effect)
        case _:
            assert_never(event)


def _take_failure(turn: Turn, event: LedgerFailed, effect: LedgerEffect) -> None:
    member = turn.facts.member
    if event.torn:
        turn.change_ledger(MemberState(kind="absent"))
        member.rebuilt_epoch = 0
    if event.diverged and isinstance(effect, FollowLedger):
        member.diverged = True
    if isinstance(effect, DrainLedger):
        turn.end_switchover(event.reason)
    member.promoting_epoch = 0
    if isinstance(effect, SetQuorum) and _is_of_resize(turn, effect):
        turn.end_resize("the quorum could not be changed: " + event.reason)


def _is_of_resize(turn: Turn, effect: SetQuorum) -> bool:
    facts = turn.facts
    return facts.resize is not None and effect.standbys == steps.standbys_of(facts.region, facts.resize[0])


def _take_frozen(turn: Turn, event: LedgerFrozen, epoch: Epoch) -> None:
    facts = turn.facts
    turn.change_ledger(MemberState(kind="frozen"))
    if not rules.is_frozen(event):
        turn.pause_ledger(None)
        return
    facts.requests.ledger_retry = Retry()
    position = rules.frozen_position(event)
    facts.member.frozen_vote = Vote(epoch=epoch, position=position, ancestry=event.ancestry[-ANCESTRY_MAX:])
    turn.log("info", f"epoch {epoch}: frozen at {position.epoch}:{position.lsn:X}")


def _take_fence(turn: Turn, event: FenceWritten, epoch: Epoch) -> None:
    facts, member, record = turn.facts, turn.facts.member, turn.facts.record
    assert record is not None, "a fence row without a record"
    assert record.epoch == epoch, "a primary of an older epoch is being stopped, which supersedes its fence row"
    if rules.is_on_quorum(event):
        member.fence, member.quorum_commit = event, max(member.quorum_commit, event.lsn)
        facts.requests.ledger_retry = Retry()
        turn.log("info", f"epoch {epoch}: its fence row is on a quorum")
    else:
        turn.pause_ledger("the fence row's quorum wait was cancelled")


def _take_done(turn: Turn, effect: LedgerEffect) -> None:
    facts, member = turn.facts, turn.facts.member
    match effect:
        case InitialiseLedger(epoch=epoch) | PromoteLedger(epoch=epoch):
            quorum = member.quorum if isinstance(effect, PromoteLedger) else None
            turn.change_ledger(MemberState(kind="primary", epoch=epoch))
            member.quorum = quorum
            turn.log("info", f"epoch {epoch}: its ledger is primary here")
        case FollowLedger(epoch=epoch, leader=leader):
            turn.change_ledger(MemberState(kind="following", epoch=epoch))
            turn.log("info", f"epoch {epoch}: follows {leader}")
        case RewindLedger(epoch=epoch, leader=leader) | CopyLedger(epoch=epoch, leader=leader):
            turn.change_ledger(MemberState(kind="stopped"))
            member.rebuilt_epoch, member.diverged = epoch, False
            # The epoch may have waited for this member alone, so its patience begins again.
            facts.record_since = turn.now
            how = "rewound" if isinstance(effect, RewindLedger) else "copied"
            turn.log("info", f"epoch {epoch}: {how} from {leader}")
        case SetQuorum(standbys=standbys):
            member.quorum = standbys
        case StopLedger(epoch=epoch):
            turn.change_ledger(MemberState(kind="stopped"))
            release(turn, epoch)
        case FreezeLedger() | WriteFence() | DrainLedger():
            raise AssertionError(f"{type(effect).__name__} has an answer of its own")
        case _:
            assert_never(effect)


def release(turn: Turn, epoch: Epoch) -> None:
    """Release the epoch to the successor, if PostgreSQL was stopped for a hand-over (rule 20)."""
    facts, record, switchover = turn.facts, turn.facts.record, turn.facts.switchover
    if switchover is None or record is None or record.epoch != epoch:
        return
    announced, drained = handover.announcement(switchover), handover.drained(switchover)
    found = rules.release_of(switchover.order, record, announced=announced, drained=drained)
    if found is None:
        return
    turn.log("info", f"epoch {epoch}: released at {found.lsn:X}; {found.successor} leads the next epoch")
    hear_release(turn, found)
    turn.move_handover(RestartDelayed(until=turn.now + facts.settings.rest_s))

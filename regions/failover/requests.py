"""What the machine asks for after each event, and how it gives up what was never answered.

``steps.py`` says what the member needs next and ``claims.py`` what the record should become; this module sends each of
them once, with a ticket and a deadline.
"""

from dataclasses import replace
from typing import assert_never

from regions.failover import claims, orders, record_changes, rules, steps
from regions.failover.effects import (
    AnswerStrongReads,
    CopyLedger,
    DrainLedger,
    FreezeLedger,
    InitialiseLedger,
    LedgerEffect,
    ReadRecord,
    RewindLedger,
    SetQuorum,
    StartServing,
    StopLedger,
    StorePromise,
    SwapRecord,
)
from regions.failover.events import Order, Promise, SwapAnswered
from regions.failover.facts import Facts, PendingEffect, PendingPromise, PendingRead, PendingSwap
from regions.failover.handover import Announcing, deadline
from regions.failover.turn import Turn
from regions.leadership import Leadership

STRONG_READS_MAX = 1000
"""Strong reads that may wait for one read of etcd; more are answered as not current at once."""


def take_strong_reads(turn: Turn, requests: tuple[int, ...]) -> None:
    """Queue strong reads for the next read of etcd."""
    mine = turn.facts.requests
    room = STRONG_READS_MAX - len(mine.strong_reads)
    if requests[room:]:
        turn.effects.append(AnswerStrongReads(requests=requests[room:], current=False))
    mine.strong_reads += requests[:room]


def take_order(turn: Turn, order: Order) -> None:
    """Begin to carry out an operator's order, or answer it."""
    facts, plan = turn.facts, orders.plan(turn.facts, order)
    match plan:
        case orders.Answer(refused=refused):
            turn.answer(order, refused)
        case orders.Swap(record=record):
            _swap(turn, record, order)
        case orders.HandOver():
            turn.move_handover(Announcing(order=order))
            turn.log("info", f"epoch {facts.member.serving_epoch}: handing over to {order.region}: {order.by}")
        case orders.Resize(voters=voters):
            facts.resize = (voters, order)
        case _:
            assert_never(plan)


def expire(turn: Turn) -> None:
    """Give up requests without an answer and sub-states that are over."""
    facts, requests, now = turn.facts, turn.facts.requests, turn.now
    requests.ledger_retry = requests.ledger_retry.at_time(now)
    requests.etcd_retry = requests.etcd_retry.at_time(now)
    if requests.reading is not None and now >= requests.reading.until:
        record_changes.take_failed_read(turn, requests.reading.ticket)
    if requests.strong_reading is not None and now >= requests.strong_reading.until:
        record_changes.take_failed_read(turn, requests.strong_reading.ticket)
    if requests.swapping is not None and now >= requests.swapping.until:
        record_changes.take_swap(turn, SwapAnswered(ticket=requests.swapping.ticket, outcome="unknown"))
    if requests.storing is not None and now >= requests.storing.until:
        requests.storing = None
    ends_at = deadline(facts.handover)
    if ends_at is not None and now >= ends_at:
        turn.move_handover(None)
    if requests.working is not None and now >= requests.working.until:
        effect, requests.working = requests.working.effect, None
        facts.member.promoting_epoch = 0
        if isinstance(effect, DrainLedger):
            turn.end_switchover("the target did not catch up in time")


def next_deadline(facts: Facts) -> float | None:
    """Return when ``Tick`` is due if nothing happens before; None: not at all."""
    times = list(facts.requests.deadlines())
    ends_at = deadline(facts.handover)
    if ends_at is not None:
        times.append(ends_at)
    if facts.requests.swapping is None and not facts.etcd.must_read and facts.requests.etcd_retry.at is None:
        due = claims.next_deadline(facts)
        if due is not None:
            times.append(due)
    return min(times, default=None)


def advance(turn: Turn) -> None:
    """Ask for what the facts call for now."""
    facts = turn.facts
    _read(turn)
    if facts.member.promise is not None:
        turn.refuse(claims.refusal(facts))
    if facts.unable is not None:
        return
    _read_for_strong_reads(turn)
    step = steps.ledger_step(facts)
    _act_on(turn, step)
    _serve_if_established(turn)
    _change_record(turn)


def _read(turn: Turn) -> None:
    facts, requests = turn.facts, turn.facts.requests
    promise = facts.member.promise
    stale = facts.record is not None and promise is not None and facts.record.epoch < promise.epoch
    missing = not facts.etcd.was_read and facts.record is None
    linearizable = facts.etcd.must_read or stale or steps.needs_newest_record(facts)
    if requests.reading is None and requests.etcd_retry.at is None and (linearizable or missing):
        until = turn.now + facts.settings.request_s_max
        requests.reading = PendingRead(ticket=turn.ticket(), linearizable=linearizable, until=until)
        turn.effects.append(ReadRecord(ticket=requests.reading.ticket, linearizable=linearizable))


def _read_for_strong_reads(turn: Turn) -> None:
    facts, requests = turn.facts, turn.facts.requests
    if requests.strong_reads and requests.strong_reading is None:
        # Rule 10: the read of etcd begins after the reads that wait for it have arrived.
        until, waiting = turn.now + facts.settings.request_s_max, requests.strong_reads
        requests.strong_reading = PendingRead(ticket=turn.ticket(), linearizable=True, until=until, strong=waiting)
        requests.strong_reads = ()
        turn.effects.append(ReadRecord(ticket=requests.strong_reading.ticket, linearizable=True))


def _act_on(turn: Turn, step: steps.Step) -> None:
    facts, requests = turn.facts, turn.facts.requests
    if step is None:
        return
    if isinstance(step, Promise):
        _store(turn, step)
        return
    if requests.working is not None and requests.working.effect == step:
        return
    # A demotion does not wait for the end of a pause; nor does what a later epoch needs, whose record ends the pause.
    if requests.ledger_retry.at is not None and not isinstance(step, StopLedger):
        return
    ticket = turn.ticket()
    requests.working = PendingEffect(ticket=ticket, effect=step, until=turn.now + _patience_s(facts, step))
    if isinstance(step, StopLedger):
        turn.stop_serving()
    if isinstance(step, SetQuorum | FreezeLedger):
        # Until it is answered nobody knows which quorum is in force; a member that is frozen again has none.
        facts.member.quorum = None
    turn.effects.append(replace(step, ticket=ticket))


def _store(turn: Turn, promise: Promise) -> None:
    facts, requests, durable = turn.facts, turn.facts.requests, turn.facts.member.promise
    assert durable is not None, "nothing is promised over a promise that cannot be read"
    assert promise.epoch >= durable.epoch, "a promise only grows"
    assert promise.lineage >= durable.lineage, "a lineage only grows"
    assert promise.floor >= durable.floor, "a floor only grows"
    # A write that was given up may have reached the disk, or still may: the next one must not go below it.
    promise = rules.joined_promise(promise, requests.requested_promise)
    under_way = requests.storing is not None and requests.storing.promise == promise
    if requests.ledger_retry.at is not None or under_way:
        return
    requests.requested_promise = promise
    until = turn.now + facts.settings.request_s_max
    requests.storing = PendingPromise(ticket=turn.ticket(), promise=promise, until=until)
    turn.effects.append(StorePromise(ticket=requests.storing.ticket, promise=promise))


def _patience_s(facts: Facts, effect: LedgerEffect) -> float:
    if isinstance(effect, DrainLedger):
        return facts.settings.target_s_max
    if isinstance(effect, CopyLedger | RewindLedger | InitialiseLedger):
        return facts.settings.rebuild_s_max
    return facts.settings.ledger_s_max


def _serve_if_established(turn: Turn) -> None:
    facts, member, record = turn.facts, turn.facts.member, turn.facts.record
    if record is None or not facts.leads or not facts.is_primary_of(record.epoch) or facts.switchover is not None:
        return
    # The region serves (it proves strong reads) once its fence row is on a quorum. The write API admits writes earlier,
    # by the row (ADR 0028). A cell's first epoch ("bootstrapping") is not admitted before the
    # record says that it serves, because its member may be started again until then.
    established = record.phase == "serving" or (record.phase == "promoting" and member.fence is not None)
    superseded = facts.outdated or rules.is_epoch_over(member.cancelled_wait_epoch, record.epoch)
    if established and member.serving_epoch != record.epoch and not superseded:
        member.serving_epoch = record.epoch
        turn.effects.append(StartServing(epoch=record.epoch))
        turn.log("info", f"epoch {record.epoch}: takes writes")


def _change_record(turn: Turn) -> None:
    facts = turn.facts
    if facts.requests.swapping is not None or facts.etcd.must_read or facts.requests.etcd_retry.at is not None:
        return
    proposal = claims.proposal(facts, turn.now)
    if proposal is None:
        return
    order = None
    if facts.resize is not None and proposal.voters == facts.resize[0]:
        order, facts.resize = facts.resize[1], None
    _swap(turn, proposal, order)


def _swap(turn: Turn, record: Leadership, order: Order | None) -> None:
    facts = turn.facts
    ticket, until = turn.ticket(), turn.now + facts.settings.request_s_max
    expected = rules.expected_revision(facts.etcd.revision)
    facts.requests.swapping = PendingSwap(ticket=ticket, record=record, expected=expected, until=until, order=order)
    turn.effects.append(SwapRecord(ticket=ticket, expected_revision=expected, record=record))

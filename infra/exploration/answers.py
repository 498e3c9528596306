"""Generates the possible answers to an agent's requests: those of etcd, of its disk and of its PostgreSQL.

A request is answered at once with success, or in a way that the budget of ``bounds.py`` limits: late, never, with a
failure, with an unknown outcome, with an older revision than the newest, or with a crash before or after its execution.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any
from uuid import UUID

from infra.exploration import postgres
from infra.exploration.bounds import spend
from infra.exploration.canonical_text import REGIONS
from infra.exploration.crashes import crash_moves
from infra.exploration.node import Request, step
from infra.exploration.state_space import Move, State, StateSpace
from regions.failover.effects import (
    CopyLedger,
    DrainLedger,
    FollowLedger,
    FreezeLedger,
    InitialiseLedger,
    LedgerEffect,
    PromoteLedger,
    ReadRecord,
    RewindLedger,
    SetQuorum,
    StopLedger,
    StorePromise,
    SwapRecord,
    WriteFence,
)
from regions.failover.events import (
    Event,
    FenceWritten,
    LedgerDone,
    LedgerDrained,
    LedgerFailed,
    LedgerFrozen,
    PromiseFailed,
    PromiseStored,
    ReadFailed,
    RecordRead,
    SwapAnswered,
    Tick,
)
from regions.failover.facts import Facts

Execution = tuple[State, Event | None]
"""The state after an effect, and the answer to the effect; None if it is not answered yet."""

EXPIRED = -1e9
"""A deadline that has passed."""


def deliver(space: StateSpace, state: State, region: int, event: Event, label: tuple[Any, ...]) -> Iterator[Move]:
    """Let a node handle an event; the label must determine the event."""
    return space.apply_event(state, region, label, lambda node: step(node, event))


def prompt_answers(space: StateSpace, state: State, region: int, request: Request) -> Iterator[Move]:
    """Generate every way in which a request that was just made can continue."""
    yield from _execute_now(space, state, region, request)
    yield from _crash_around(space, state, region, request)
    delays, failures = spend(state.budget.value, "delays"), spend(state.budget.value, "failures")
    name = type(request.effect).__name__
    if delays is not None and not request.strong:
        slow = request._replace(mode="late", since=len(state.etcd.value.history))
        delayed = state._replace(budget=space.budgets.intern(delays))
        yield ("delays", region, name), space.with_request(delayed, region, request, slow)
    if failures is not None:
        yield from _failed(space, state._replace(budget=space.budgets.intern(failures)), region, request)


def delayed_answers(space: StateSpace, state: State, region: int, request: Request) -> Iterator[Move]:
    """Generate every way in which a request can continue that is late, waiting or done."""
    name = type(request.effect).__name__
    if request.mode == "done":
        assert request.answer is not None
        yield from deliver(space, state, region, request.answer, ("gets a late answer to", region, name))
    elif request.mode == "waiting":
        yield from _finish_waiting(space, state, region, request)
    else:
        yield from _execute_now(space, state, region, request)
        if isinstance(request.effect, StorePromise | SwapRecord) or not isinstance(request.effect, ReadRecord):
            for after, answer in execute(space, state, region, request):
                if answer is not None:
                    done = request._replace(mode="done", answer=answer)
                    yield (
                        ("performs, and has no answer yet:", region, name),
                        space.with_request(after, region, request, done),
                    )
    if not request.strong:
        yield from expire_request(space, state, region, _slot(request))


def expire_request(space: StateSpace, state: State, region: int, slot: str) -> Iterator[Move]:
    """The machine's time limit for a request expires."""

    def past(facts: Facts) -> None:
        setattr(facts.requests, slot, replace(getattr(facts.requests, slot), until=EXPIRED))

    return space.apply_event(state, region, ("gives up", region, slot), lambda node: step(node, Tick(), past))


def _slot(request: Request) -> str:
    match request.effect:
        case ReadRecord():
            return "reading"
        case SwapRecord():
            return "swapping"
        case StorePromise():
            return "storing"
        case _:
            return "working"


def _execute_now(space: StateSpace, state: State, region: int, request: Request) -> Iterator[Move]:
    effect = request.effect
    if isinstance(effect, ReadRecord):
        yield from _read(space, state, region, request, effect)
        return
    for after, answer in execute(space, state, region, request):
        name = (type(effect).__name__, _detail(answer))
        if answer is not None:
            yield from deliver(space, after, region, answer, ("performs", region, *name))
        else:
            kept = request._replace(mode="waiting") if _may_act(state, region, effect) else None
            yield ("begins", region, *name), space.with_request(after, region, request, kept)


def _read(space: StateSpace, state: State, region: int, request: Request, effect: ReadRecord) -> Iterator[Move]:
    newest = len(state.etcd.value.history)
    oldest = request.since if request.mode == "late" else newest
    stale = None if effect.linearizable else spend(state.budget.value, "stale")
    for revision in range(newest, -1, -1):
        if revision >= oldest:
            before = state
        elif stale is not None and revision > 0:
            before = state._replace(budget=space.budgets.intern(stale))
        else:
            break
        number = state.etcd.value.history[revision - 1] if revision else -1
        record = space.record(number) if revision else None
        event = RecordRead(ticket=effect.ticket, revision=revision, record=record)
        label = ("reads for strong reads" if request.strong else "reads", region, revision, number)
        yield from deliver(space, before, region, event, label)


def _failed(space: StateSpace, state: State, region: int, request: Request) -> Iterator[Move]:
    effect, ticket = request.effect, request.effect.ticket
    match effect:
        case ReadRecord():
            yield from deliver(space, state, region, ReadFailed(ticket=ticket), ("cannot read", region, request.strong))
        case StorePromise():
            event = PromiseFailed(ticket=ticket, reason="disk")
            yield from deliver(space, state, region, event, ("cannot store", region))
        case SwapRecord():
            event = SwapAnswered(ticket=ticket, outcome="unknown")
            yield from deliver(space, state, region, event, ("gets no outcome of its swap; not applied yet", region))
            for after, answer in execute(space, state, region, request):
                if isinstance(answer, SwapAnswered) and answer.outcome == "applied":
                    yield from deliver(space, after, region, event, ("gets no outcome of its swap; applied", region))
        case _:
            torn = isinstance(effect, RewindLedger)
            event = LedgerFailed(ticket=ticket, reason="failed", torn=torn)
            after = space.with_member(state, region, postgres.ABSENT) if torn else state
            yield from deliver(space, after, region, event, ("fails at", region, type(effect).__name__))
            if isinstance(effect, WriteFence):
                after, _ = _ledger(space, state, region, effect)[0]
                event = FenceWritten(ticket=ticket, fence_id=UUID(int=0), lsn=0, confirmed=False)
                yield from deliver(space, after, region, event, ("has its wait cancelled at", region, "WriteFence"))


def _crash_around(space: StateSpace, state: State, region: int, request: Request) -> Iterator[Move]:
    """The agent or its region dies just before, or just after, the effect took place."""
    if spend(state.budget.value, "crashes") is None:
        return
    name = type(request.effect).__name__
    yield from crash_moves(space, state, region, f"before {name}")
    if not isinstance(request.effect, ReadRecord):
        for after, _ in execute(space, state, region, request):
            yield from crash_moves(space, after, region, f"after {name}")


# What effects do.


def execute(space: StateSpace, state: State, region: int, request: Request) -> list[Execution]:
    """Return the state after an effect was executed, and its answer, for each possible result."""
    effect = request.effect
    match effect:
        case ReadRecord():
            raise AssertionError("a read changes nothing")
        case StorePromise(ticket=ticket, promise=promise):
            return [(space.with_node(state, region, disk=promise), PromiseStored(ticket=ticket))]
        case SwapRecord(ticket=ticket, expected_revision=expected, record=record):
            after = space.swapped(state, (expected, space.record_number(record)))
            if after is None:
                return [(state, SwapAnswered(ticket=ticket, outcome="lost"))]
            revision = len(after.etcd.value.history)
            return [(after, SwapAnswered(ticket=ticket, outcome="applied", revision=revision))]
        case _:
            # Rule 2: a driver drops an effect whose epoch is below the promise on its disk, and sends no answer.
            return _ledger(space, state, region, effect) if _may_act(state, region, effect) else [(state, None)]


def _may_act(state: State, region: int, effect: SwapRecord | StorePromise | LedgerEffect) -> bool:
    return isinstance(effect, SwapRecord | StorePromise) or state.nodes[region].disk.epoch <= effect.epoch


def _ledger(  # noqa: C901, PLR0911, PLR0912 - one case an effect
    space: StateSpace, state: State, region: int, effect: LedgerEffect
) -> list[Execution]:
    member, ticket = state.members[region].value, effect.ticket
    done, failed = LedgerDone(ticket=ticket), LedgerFailed(ticket=ticket, reason="failed")

    def becomes(after: postgres.Member) -> State:
        return space.with_member(state, region, after)

    match effect:
        case InitialiseLedger(epoch=epoch):
            return [(becomes(postgres.initialise(member, epoch)), done)]
        case FreezeLedger():
            return _freeze(space, state, region, ticket)
        case SetQuorum(standbys=standbys, required=required):
            names = tuple(sorted(REGIONS.index(one) for one in standbys))
            after = becomes(member._replace(standby_names=names, required=required))
            return [_when_ready(space, after, region, effect)]
        case PromoteLedger(epoch=epoch):
            if member.kind == "primary" and member.epoch == epoch:
                return [(state, done)]
            return (
                [(becomes(postgres.promote(member, region, epoch)), done)]
                if member.kind == "standby"
                else [(state, failed)]
            )
        case WriteFence(epoch=epoch):
            if member.kind != "primary":
                return [(state, failed)]
            row = (
                member if postgres.has_row(member, "fence", epoch) else postgres.append(member, region, "fence", epoch)
            )
            return [_when_ready(space, becomes(row), region, effect)]
        case FollowLedger(epoch=epoch, leader=leader):
            if member.kind == "absent":
                return [(state, failed)]
            standby = postgres.run_as_standby(member, source=REGIONS.index(leader), epoch=epoch)
            return [_when_ready(space, becomes(standby), region, effect)]
        case RewindLedger():
            return [_when_ready(space, becomes(postgres.stop(member)), region, effect)]
        case CopyLedger():
            return [_when_ready(space, state, region, effect)]
        case DrainLedger():
            blocked = space.with_node(state, region, writes_blocked=True)
            return [_when_ready(space, blocked, region, effect)] if member.kind == "primary" else [(state, failed)]
        case StopLedger():
            return [(becomes(postgres.stop(member)), done)]


def _freeze(space: StateSpace, state: State, region: int, ticket: int) -> list[Execution]:
    member = state.members[region].value
    if member.kind == "absent":
        return [(state, LedgerFailed(ticket=ticket, reason="no data"))]
    frozen = postgres.run_as_standby(member, source=None, epoch=0)
    answer = LedgerFrozen(
        ticket=ticket, receiving=False, received=None if frozen.restarted else len(frozen.wal),
        replayed=len(frozen.wal), ancestry=postgres.fence_epochs(frozen.wal),
    )  # fmt: skip
    ways: list[Execution] = [(space.with_member(state, region, frozen), answer)]
    delays = spend(state.budget.value, "delays")
    if member.kind == "standby" and member.source is not None and delays is not None:
        # Rule 4: the WAL receiver still runs for a moment, or replay lags behind the received position.
        slow = state._replace(budget=space.budgets.intern(delays))
        ways.append((slow, replace(answer, receiving=True)))
        if member.wal and not frozen.restarted:
            short = frozen.wal[:-1]
            behind = replace(answer, replayed=len(short), ancestry=postgres.fence_epochs(short))
            ways.append((space.with_member(slow, region, frozen), behind))
    return ways


def _when_ready(space: StateSpace, state: State, region: int, effect: LedgerEffect) -> Execution:
    """The answer to an effect that depends on other regions; None while the effect waits for them."""
    member, ticket = state.members[region].value, effect.ticket
    done = LedgerDone(ticket=ticket)
    match effect:
        case SetQuorum():
            return state, done if member.kind != "primary" or member.confirmed >= len(member.wal) else None
        case WriteFence(epoch=epoch):
            at = postgres.row_lsn(member, "fence", epoch)
            if at is None:
                return state, LedgerFailed(ticket=ticket, reason="no row")
            fence = FenceWritten(ticket=ticket, fence_id=UUID(int=epoch), lsn=at, confirmed=True)
            return state, fence if member.confirmed >= at else None
        case DrainLedger(target=target):
            if member.kind != "primary" or not has_drained(member, REGIONS.index(target)):
                return state, None
            return state, LedgerDrained(ticket=ticket, lsn=len(member.wal))
        case FollowLedger(leader=leader) | RewindLedger(leader=leader) | CopyLedger(leader=leader):
            primary = state.members[REGIONS.index(leader)].value
            if primary.kind != "primary":
                return state, None
            if isinstance(effect, FollowLedger):
                diverged = LedgerFailed(ticket=ticket, reason="diverged", diverged=True)
                return state, done if postgres.accepts(member, primary) else diverged
            rebuilt = postgres.rewind(member, primary) if isinstance(effect, RewindLedger) else postgres.copy(primary)
            return space.with_member(state, region, rebuilt), done
        case _:
            raise AssertionError(f"{type(effect).__name__} depends on no other region")


def has_drained(primary: postgres.Member, target: int) -> bool:
    """Whether no commit waits for a quorum, and the standby ``target`` has flushed all WAL."""
    return primary.confirmed == len(primary.wal) == primary.acks[target]


def _finish_waiting(space: StateSpace, state: State, region: int, request: Request) -> Iterator[Move]:
    effect = request.effect
    assert not isinstance(effect, ReadRecord | SwapRecord | StorePromise), (
        "only effects on a member wait for other regions"
    )
    after, answer = _when_ready(space, state, region, effect)
    if answer is not None:
        yield from deliver(space, after, region, answer, ("ends", region, type(effect).__name__, _detail(answer)))


def _detail(answer: Event | None) -> str:
    match answer:
        case None:
            return "waits"
        case SwapAnswered(outcome=outcome, revision=revision):
            return f"{outcome}, revision {revision}" if revision else outcome
        case LedgerFrozen(receiving=receiving, received=received, replayed=replayed, ancestry=ancestry):
            return f"{'still receiving, ' if receiving else ''}received {received}, replayed {replayed} {ancestry}"
        case FenceWritten(lsn=lsn):
            return f"at {lsn}"
        case LedgerFailed(reason=reason):
            return reason
        case _:
            return "done"

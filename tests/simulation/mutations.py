"""Breaks each rule on purpose, and lets the exploration or the simulation detect it: a test of the checkers themselves.

A mutation replaces small functions by broken ones for the duration of one exploration. If a violation needs a long
sequence of events, the mutation has legs that lead to the state from which everything is explored.
``python -m tests.simulation.mutations`` prints the table.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any
from unittest.mock import patch

import typer

from infra.exploration import answers, moves, node
from infra.exploration.bounds import Budget
from infra.exploration.canonical_text import REGIONS
from infra.exploration.legs import Leg, explore_legs, serves
from infra.exploration.search import SearchResult
from infra.exploration.state_space import State, StateSpace
from infra.simulation.plans import Fault, FaultPlan
from infra.simulation.runner import run_plan
from infra.simulation.scheduler import Clock
from regions.failover import handover, member_changes, record_changes, rules, steps
from regions.failover.effects import LedgerEffect, SetQuorum
from regions.failover.events import (
    LedgerAnswer,
    LedgerDrained,
    LedgerFrozen,
    MemberState,
    Promise,
    Release,
    SwapAnswered,
    Ticket,
    Vote,
)
from regions.failover.turn import Turn
from regions.identity import Epoch, RegionName
from regions.leadership import Leadership
from regions.position import ZERO, Position

NO_EVENTS = Budget(*[0] * len(Budget._fields))
A, B, C = 0, 1, 2
_LETTERS = {"fence": "F", "write": "W", "promotion": "P"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Mutation:
    """A broken rule, which the exploration must detect.

    Attributes:
        name: What is broken, in words.
        rule: The number of the rule in failover.md, or a name.
        broken: (owner, attribute, replacement) of each replaced function.
        legs: The legs of the exploration; the last one explores everything.
        caught: A part of the violation's text.
        epochs_max: The highest epoch.
        states_max: Distinct states of each leg at most.
    """

    name: str
    rule: str
    broken: Sequence[tuple[Any, str, Any]]
    legs: Sequence[Leg]
    caught: str
    epochs_max: int = 2
    states_max: int = 100_000


def hunt(mutation: Mutation) -> tuple[StateSpace, SearchResult]:
    """Explore the legs of a mutation with its rule broken."""
    with ExitStack() as stack:
        for owner, name, substitute in mutation.broken:
            stack.enter_context(patch.object(owner, name, substitute))
        return explore_legs(mutation.legs, epochs_max=mutation.epochs_max, states_max=mutation.states_max)


# Legs and goals.


def leg(goal: Callable[[State], bool] | None = None, **budget: int) -> Leg:
    """A leg in which only the given kinds of events may happen."""
    faults = sum(budget.get(kind, 0) for kind in ("crashes", "ends", "delays", "failures", "stale", "lags", "cuts"))
    return Leg(budget=replace_budget(faults, budget), goal=goal)


def replace_budget(faults: int, budget: Mapping[str, int]) -> Budget:
    return NO_EVENTS._replace(**{"faults": faults, **budget})


def wal_text(state: State, region: int) -> str:
    """The WAL of a member as text, such as ``F1W1P2F2``: fence rows, writes and promotions with their numbers."""
    return "".join(_LETTERS[entry.kind] + str(entry.number) for entry in state.members[region].value.wal)


def wals(*wanted: str | None) -> Callable[[State], bool]:
    """A goal: the members have exactly this WAL; None for any."""

    def fits(state: State) -> bool:
        return all(one is None or one == wal_text(state, region) for region, one in enumerate(wanted))

    return fits


def served(region: int, epoch: int, *wanted: str | None) -> Callable[[State], bool]:
    """A goal: a region serves an epoch, and the members have this WAL."""
    fits = wals(*wanted)
    return lambda state: serves(state, region, epoch) and fits(state)


def drained(region: int) -> Callable[[State], bool]:
    """A goal: every agent knows that this region, and no other, is drained."""

    def fits(state: State) -> bool:
        records = [None if node.machine is None else node.machine.facts.record for node in state.nodes]
        return all(record is not None and record.drained == (REGIONS[region],) for record in records)

    return fits


def agrees(*regions: str) -> Callable[[State], bool]:
    """A goal: every agent knows exactly these voters."""

    def fits(state: State) -> bool:
        records = [None if node.machine is None else node.machine.facts.record for node in state.nodes]
        return all(record is not None and set(record.voters) == set(regions) for record in records)

    return fits


def died_in_swap(*names: int) -> Callable[[State], bool]:
    """A goal: the first leader's agent died during its swap of the voters, and its PostgreSQL still runs.

    ``names`` are the regions in the leader's ``synchronous_standby_names`` then; without ``names`` any value fits.
    """

    def fits(state: State) -> bool:
        leader = state.members[A].value
        died = state.nodes[A].machine is None and leader.kind == "primary"
        return bool(state.etcd.value.unanswered_swaps) and died and names in ((), leader.standby_names)

    return fits


def given_up(state: State) -> bool:
    """A goal: the first leader has released its epoch to a successor."""
    machine = state.nodes[A].machine
    return machine is not None and machine.facts.release is not None


# Replacements of the rules.


def enough_with_one(votes: Mapping[RegionName, Vote], record: Leadership) -> bool:
    del record
    return len(votes) >= 1


def publish_before_durable(vote: Vote, durable: Promise) -> bool:
    return rules.position_counts(vote.position, durable)


def rank_by_lsn(vote: Vote) -> Position:
    return Position(0, vote.position.lsn)


def not_the_drained(given: dict[RegionName, Vote], record: Leadership, avoid: frozenset[RegionName]) -> RegionName:
    """``steps.choose``, but a region that is not drained comes before one with a greater position."""

    def preference(region: RegionName) -> tuple[object, ...]:
        at = record.voters.index(region)
        return (
            region not in record.drained,
            rules.rank(given[region]),
            region == record.target,
            region not in avoid,
            -at,
        )

    return max(given, key=preference)


def position_received(answer: LedgerFrozen) -> Position:
    return Position(max(answer.ancestry, default=0), answer.received or 0)


def clear_quorum_first(ticket: Ticket, epoch: Epoch) -> LedgerEffect:
    return SetQuorum(ticket=ticket, epoch=epoch, standbys=(), required=0)


_take_swap = record_changes.take_swap


def unknown_is_applied(turn: Turn, event: SwapAnswered) -> None:
    if event.outcome == "unknown":
        event = replace(event, outcome="applied", revision=turn.facts.etcd.revision + 1)
    _take_swap(turn, event)


def led_by_belief(read: Leadership | None, serving_epoch: Epoch, region: RegionName) -> bool:
    del read, region
    return serving_epoch > 0


def copy_only_when_absent(ledger: MemberState, durable: Promise, record: Leadership) -> bool:
    del durable, record
    return ledger.kind == "absent"


def presume_the_silent(votes: Mapping[RegionName, Vote], record: Leadership) -> dict[RegionName, Vote]:
    given = {region: vote for region, vote in votes.items() if vote.epoch == record.epoch}
    presumed = Vote(epoch=record.epoch, position=ZERO, ancestry=())
    return {RegionName("a"): presumed, **given} if given else {}


def always(**_: Any) -> bool:
    return True


def yes(*_: Any, **__: Any) -> bool:
    return True


def the_next_number(record: Leadership) -> Epoch:
    return record.epoch + 1


_take_answer = member_changes.take_answer


def given_up_when_drained(turn: Turn, event: LedgerAnswer) -> None:
    _take_answer(turn, event)
    record = turn.facts.record
    if isinstance(event, LedgerDrained) and record is not None:
        member_changes.release(turn, record.epoch)


def by_the_record(record: Leadership, target: RegionName | None, *, announced: int) -> bool:
    del announced
    return record.succession is not None and record.succession.region == target


UNANNOUNCED = {**handover.TRANSITIONS, ("announcing", "releasing"): "the broken rule"}
"""With the real table of the hand-over an assertion would reject the broken rule's step before a checker sees it."""


_effective_record = rules.effective_record


def by_any_record(record: Leadership, revision: int, release: Release | None) -> Leadership:
    if record.succession is None or release is None:
        return record
    return _effective_record(
        record, max(revision, release.revision), replace(release, successor=record.succession.region)
    )


def nothing(*_: Any) -> tuple[str, ...]:
    return ()


def nothing_known(*_: Any) -> None:
    """The client retries with another key, so the ledger finds no row of the first attempt."""


def no(*_: Any, **__: Any) -> bool:
    return False


LOST = "was acknowledged, and"
_B_HAS_W1 = leg(lambda state: state.ghost.value.acked == (1,) and wal_text(state, C) == "F1", writes=1)
_FAILOVER = leg(suspicions=2)
_REWOUND = [
    leg(wals("F1W1W2", "F1W1", "F1"), writes=2),
    leg(wals("F1W1W2", "F1W1P2F2", "F1"), suspicions=2),
    leg(wals("F1", "F1W1P2F2", "F1")),
    leg(suspicions=2),
]

AGENT_DIED_IN_RESIZE = [
    leg(died_in_swap(), resizes=1, crashes=1),
    leg(stale=1, resizes=1, writes=1),
]
"""The restarted agent reads an old record first, and gets another order to change the voters."""

AGENT_DIED_IN_SECOND_RESIZE = [
    leg(agrees("a", "c"), resizes=1),
    leg(agrees("a", "b", "c"), resizes=1),
    leg(died_in_swap(B), resizes=1, crashes=1),
    leg(stale=1, writes=1),
]
"""The restarted agent first reads a record that is two changes of the voters older than the one that etcd will have."""

UNSEEN = ((node, "violations", nothing), (node, "is_durable", yes))
"""Disables the checks within one region, which would detect the broken rule at once; another invariant must."""

MUTATIONS = (
    Mutation(
        name="a member is promoted by its own vote alone", rule="1",
        broken=[(rules, "enough_votes", enough_with_one)],
        legs=[_B_HAS_W1, _FAILOVER], caught=LOST,
    ),
    Mutation(
        name="voters change while an earlier swap may still be applied", rule="1",
        broken=[(rules, "may_resize", yes)],
        legs=[leg(resizes=2, failures=1, writes=1)], caught="acknowledges to a majority of a b, and the voters are a c",
    ),
    Mutation(
        name="the first read of an agent is not linearizable", rule="1",
        broken=[(rules, "shows_newest", yes)],
        legs=AGENT_DIED_IN_RESIZE, caught="acknowledges to a majority of a b, and the voters are a c",
    ),
    Mutation(
        name="an agent that has just started sets the quorum of an old record", rule="1",
        broken=[(rules, "may_set_quorum", yes)],
        legs=AGENT_DIED_IN_SECOND_RESIZE, caught="acknowledges to a majority of a c, and the voters are a b",
    ),
    Mutation(
        name="a vote is published before the promise is on disk", rule="2",
        broken=[(rules, "may_publish", publish_before_durable)],
        legs=[_FAILOVER], caught="is promised",
    ),
    Mutation(
        name="the same, without the check of the disk", rule="2",
        broken=[(rules, "may_publish", publish_before_durable), *UNSEEN],
        legs=[leg(suspicions=2, crashes=1, stale=1, writes=1)], caught="and acknowledges for epoch",
    ),
    Mutation(
        name="members are compared by LSN alone", rule="3",
        broken=[(rules, "rank", rank_by_lsn)],
        legs=[
            leg(wals("F1W1W2W3", "F1", "F1"), writes=3),
            leg(served(B, 2, None, None, None), suspicions=2),
            leg(lambda state: 4 in state.ghost.value.acked, writes=1),
            leg(suspicions=2),
        ],
        caught=LOST, epochs_max=3, states_max=300_000,
    ),
    Mutation(
        name="a voter that is not drained is chosen before one with a greater position", rule="3",
        broken=[(steps, "choose", not_the_drained)],
        legs=[leg(drained(B), drains=1), _B_HAS_W1, _FAILOVER], caught=LOST,
    ),
    Mutation(
        name="the position is the received position, even after a restart", rule="4",
        broken=[(rules, "frozen_position", position_received)],
        legs=[_B_HAS_W1, leg(suspicions=2, ends=1)], caught=LOST,
    ),
    Mutation(
        name="a member that still receives counts as frozen", rule="4",
        broken=[(rules, "is_frozen", yes)],
        legs=[leg(writes=1, suspicions=2, delays=1)], caught="and acknowledges for epoch",
    ),
    Mutation(
        name="a member is promoted without its quorum", rule="5",
        broken=[(rules, "may_promote", always)],
        legs=[
            leg(served(B, 2), suspicions=2),
            leg(lambda state: state.ghost.value.acked == (1,), writes=1, delays=1),
            leg(suspicions=2),
        ],
        caught=LOST, epochs_max=3,
    ),
    Mutation(
        name="a primary is demoted by clearing its quorum", rule="6",
        broken=[(rules, "demotion", clear_quorum_first)],
        legs=[leg(wals("F1W1", "F1", "F1"), writes=1), _FAILOVER], caught="acknowledge",
    ),
    Mutation(
        name="a region serves although the wait of its fence row was cancelled", rule="7",
        broken=[(rules, "is_on_quorum", yes)],
        legs=[
            leg(wals("F1W1", "F1", "F1"), writes=1),
            leg(lambda state: state.nodes[A].admitted_epoch == 2, ends=1, failures=1),
            leg(lambda state: state.ghost.value.acked == (1,), retries=1),
            _FAILOVER,
        ],
        caught=LOST, epochs_max=3,
    ),
    Mutation(
        name="a leader continues after the wait of a commit was cancelled", rule="7",
        broken=[(rules, "is_epoch_over", no)],
        legs=[leg(writes=1, cuts=1)], caught="a quorum wait under it was cancelled",
    ),
    Mutation(
        name="a primary that ended starts again under its epoch", rule="8",
        broken=[(rules, "needs_new_epoch", no)],
        legs=[leg(wals("F1W1", "F1", "F1"), writes=1), leg(ends=1, retries=1, suspicions=2)],
        caught="acknowledge",
    ),
    Mutation(
        name="a swap of unknown outcome is taken as applied", rule="9",
        broken=[(record_changes, "take_swap", unknown_is_applied)],
        legs=[leg(suspicions=2, failures=1)], caught="and etcd holds another",
    ),
    Mutation(
        name="a client treats a write of unknown outcome as refused", rule="9",
        broken=[(moves, "find_row", nothing_known)],
        legs=[leg(writes=1, retries=1, suspicions=2)], caught="was applied twice",
    ),
    Mutation(
        name="a strong read is answered without a read of etcd", rule="10",
        broken=[(rules, "proves_leadership", led_by_belief)],
        legs=[leg(served(B, 2), suspicions=2), leg(writes=1, reads=1)], caught="a strong read",
    ),
    Mutation(
        name="only a member without data is copied", rule="11",
        broken=[(rules, "must_copy", copy_only_when_absent)],
        legs=[
            leg(wals("F1", "F1P2F2", "F1"), suspicions=2),
            leg(served(C, 3), suspicions=0),
            leg(lambda state: state.ghost.value.acked == (1,) and wal_text(state, A) == "F1P3F3", writes=1),
            leg(suspicions=2),
        ],
        caught=LOST, epochs_max=4, states_max=300_000,
    ),
    Mutation(
        name="a member that was rewound votes at once", rule="12",
        broken=[(rules, "position_counts", yes)],
        legs=[
            leg(wals("F1W1", "F1", "F1"), writes=1),
            leg(served(B, 2), suspicions=2),
            leg(wals("F1", None, None)),
            _FAILOVER,
        ],
        caught="below the floor", epochs_max=3,
    ),
    Mutation(
        name="the same, rewound for a leader without a quorum, without the check", rule="12",
        broken=[(rules, "position_counts", yes), (rules, "may_rewind", yes), *UNSEEN],
        legs=_REWOUND, caught=LOST, epochs_max=3, states_max=300_000,
    ),
    Mutation(
        name="the silent leader's vote is presumed", rule="14",
        broken=[(rules, "counted_votes", presume_the_silent)],
        legs=[_B_HAS_W1, _FAILOVER], caught=LOST,
    ),
    Mutation(
        name="a candidate takes the promised epoch of another region", rule="20",
        broken=[(rules, "next_epoch", the_next_number)],
        legs=[leg(given_up, switches=1), leg(suspicions=2)], caught="is followed by epoch 2",
    ),
    Mutation(
        name="a leader releases its epoch before its PostgreSQL is stopped", rule="20",
        broken=[(member_changes, "take_answer", given_up_when_drained)],
        legs=[leg(writes=1, switches=1, crashes=1, delays=1)], caught="never goes back",
    ),
    Mutation(
        name="a leader hands over before its own swap of the promise is confirmed", rule="20",
        broken=[(rules, "may_hand_over", by_the_record), (handover, "TRANSITIONS", UNANNOUNCED)],
        legs=[leg(switches=2, failures=1, delays=1)], caught="never goes back", states_max=300_000,
    ),
    Mutation(
        name="a release is accepted with any record of its epoch", rule="20",
        broken=[(rules, "effective_record", by_any_record)],
        legs=[leg(switches=2, failures=1)], caught="is followed by epoch 2",
    ),
    Mutation(
        name="a successor does not compare its position with the leader's", rule="20",
        broken=[(answers, "has_drained", yes), (rules, "has_predecessors_wal", yes)],
        legs=[leg(writes=1, switches=1)], caught=LOST,
    ),
    Mutation(
        name="etcd swaps without comparing", rule="CAS",
        broken=[(StateSpace, "revision_matches", yes)],
        legs=[_FAILOVER], caught="is followed by",
    ),
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class TimedMutation:
    """A broken rule about time; the simulation must detect that no region takes over in time.

    Attributes:
        name: What is broken, in words.
        rule: The number of the rule in failover.md, or a name.
        broken: (owner, attribute, replacement) of each replaced function.
        faults: The faults; the last one takes the leader away.
    """

    name: str
    rule: str
    broken: Sequence[tuple[Any, str, Any]]
    faults: tuple[Fault, ...]


RECOVERY_S_MAX = 5.0
"""Another region accepts writes within this time after the loss of the leader (failover.md, "The goal")."""


def simulate(mutation: TimedMutation | None, faults: tuple[Fault, ...]) -> str | None:
    """Run the faults, with a broken rule if ``mutation`` is given; return the violation, or None."""
    with ExitStack() as stack:
        for owner, name, substitute in () if mutation is None else mutation.broken:
            stack.enter_context(patch.object(owner, name, substitute))
        report = run_plan(FaultPlan(seed=1, seconds=60.0, faults=faults))
    if report.violation is not None:
        return report.violation
    if not report.recoveries_s:
        return "no region took over"
    slowest = max(report.recoveries_s)
    return f"another region took over after {slowest:.1f} s" if slowest > RECOVERY_S_MAX else None


def _wall_time(clock: Clock, reading: float) -> float:
    return reading - 1.8e9 - clock.wall_offset


TIMED_MUTATIONS = (
    TimedMutation(
        name="the core reads a wall clock, which jumps back", rule="16",
        broken=[(Clock, "now", Clock.wall), (Clock, "virtual_time", _wall_time)],
        faults=(
            Fault(at=8.0, kind="clock-jump", target="us", amount=0.0),
            Fault(at=10.0, kind="crash-region", target="eu", seconds=12.0),
        ),
    ),
    TimedMutation(
        name="a heartbeat counts without a newer quorum commit", rule="life",
        broken=[(rules, "is_sign_of_life", always)],
        faults=(Fault(at=8.0, kind="hang-disk", target="leader", seconds=12.0),),
    ),
)  # fmt: skip


def row(rule: str, name: str, checker: str, effort: str, what: str | None) -> str:
    """Format one line of the table."""
    return f"{rule:>4}  {name:66} {checker:12} {effort:26} {what or 'NOT CAUGHT'}"


def rows() -> Iterator[str]:
    """Run all mutations, and yield a line of the table for each."""
    for mutation in MUTATIONS:
        _, explored = hunt(mutation)
        found = explored.counterexample
        effort = f"{explored.states} states, depth {explored.depth}"
        yield row(mutation.rule, mutation.name, "exploration", effort, None if found is None else found.what)
    for timed in TIMED_MUTATIONS:
        what = simulate(timed, timed.faults)
        yield row(timed.rule, timed.name, "simulation", "1 minute", what)


if __name__ == "__main__":
    for line in rows():
        typer.echo(line)

import json
import sys
from unittest.mock import patch

import pytest
import typer
from typer.testing import CliRunner

from infra.cli.main import make_app, run
from infra.exploration import postgres
from infra.exploration.bounds import Bounds, Budget, spend
from infra.exploration.initial_state import serving_state
from infra.exploration.legs import FAILOVER, Leg, explore_legs
from infra.exploration.moves import successors
from infra.exploration.node import Violation, label_violations
from infra.exploration.postgres import Entry, Member
from infra.exploration.search import Counterexample, Search, SearchResult
from infra.exploration.state_space import State, StateSpace, idle_invariants
from infra.exploration.transcript import transcript
from regions.failover import rules
from regions.failover.events import LedgerDone, PromiseStored, ReadFailed, SwapAnswered
from tests.simulation.mutations import (
    AGENT_DIED_IN_RESIZE,
    AGENT_DIED_IN_SECOND_RESIZE,
    B,
    C,
    agrees,
    leg,
    served,
    wals,
)

pytestmark = pytest.mark.simulation

NO_EVENTS = Budget(*[0] * len(Budget._fields))
ONE_FAILOVER = Bounds(budget=NO_EVENTS._replace(faults=1, failures=1, suspicions=2), epochs_max=2)
"""Small enough to explore completely: at every point an answer is a failure, or an outcome is unknown."""

EVERYTHING = Bounds(
    budget=Budget(
        faults=3,
        crashes=2,
        ends=1,
        delays=1,
        failures=1,
        stale=1,
        lags=1,
        cuts=1,
        suspicions=3,
        writes=2,
        retries=1,
        reads=1,
        switches=1,
        drains=1,
        resizes=2,
    ),
    epochs_max=4,
)

ORDERS = Bounds(
    budget=NO_EVENTS._replace(faults=1, crashes=1, ends=1, failures=1, suspicions=2, writes=1, drains=1, resizes=2),
    epochs_max=2,
)
"""An operator drains and resizes while one fault happens."""


def explore(bounds: Bounds) -> tuple[StateSpace, SearchResult]:
    space = StateSpace(bounds)
    return space, Search(space, serving_state(space)).run()


def assert_sound(space: StateSpace, explored: SearchResult) -> None:
    found = explored.counterexample
    assert found is None, "\n" + "\n".join(transcript(space, found))


def opened_in(space: StateSpace) -> set[tuple[int, int]]:
    """(epoch, region) of each region that began to serve in any state."""
    return {one for ghost in space.ghosts.values for one in ghost.opened}


def test_no_interleaving_of_one_failover_with_one_failure_has_a_violation() -> None:
    space, explored = explore(ONE_FAILOVER)
    assert_sound(space, explored)
    assert explored.complete
    assert {epoch for epoch, _ in opened_in(space)} == {1, 2}
    typer.echo(f"{explored.states} states, depth {explored.depth}, all within the bounds")


def test_all_kinds_of_faults_together_have_no_violation_within_60000_states() -> None:
    space, explored = explore(EVERYTHING._replace(states_max=60_000))
    assert_sound(space, explored)
    assert explored.states >= 60_000


def test_drains_and_resizes_with_faults_have_no_violation_within_30000_states() -> None:
    space, explored = explore(ORDERS._replace(states_max=30_000))
    assert_sound(space, explored)
    assert explored.states >= 30_000


def test_faults_after_a_failover_have_no_violation_and_every_invariant_compares_facts() -> None:
    legs = [*FAILOVER, Leg(budget=EVERYTHING.budget)]
    space, explored = explore_legs(legs, epochs_max=EVERYTHING.epochs_max, states_max=20_000)
    assert_sound(space, explored)
    assert explored.states >= 20_000
    assert idle_invariants(space.facts, EVERYTHING.budget) == []


@pytest.mark.soak
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("bounds", [Bounds(), EVERYTHING, ORDERS], ids=["two faults", "everything", "orders"])
def test_a_million_states_have_no_violation(bounds: Bounds) -> None:
    space, explored = explore(bounds._replace(states_max=1_100_000))
    assert_sound(space, explored)
    assert explored.complete or explored.states >= 1_000_000


def _promised_and_open(state: State) -> bool:
    """Whether a switchover was abandoned while the record still promises the next epoch."""
    machine = state.nodes[0].machine
    facts = None if machine is None else machine.facts
    if facts is None or facts.record is None or facts.record.succession is None:
        return False
    return facts.switchover is None and facts.member.serving_epoch == 1


REMOVED_AND_ADDED = [
    leg(agrees("a", "c"), resizes=1),
    leg(lambda state: state.ghost.value.acked == (1,), writes=1),
    leg(agrees("a", "b", "c"), resizes=1),
]


def test_a_region_that_was_removed_and_added_again_leads_with_every_acknowledged_write() -> None:
    _, explored = explore_legs([*REMOVED_AND_ADDED, leg(served(B, 2), suspicions=2)], epochs_max=2, states_max=20_000)
    assert explored.counterexample is None
    assert explored.reached is not None


AGENT_DIED = [*AGENT_DIED_IN_RESIZE[:1], leg(stale=1, resizes=2, writes=1, failures=1, crashes=1, suspicions=2)]
AGENT_DIED_LATER = [*AGENT_DIED_IN_SECOND_RESIZE[:-1], leg(stale=1, resizes=1, writes=1, suspicions=2)]


@pytest.mark.parametrize("way", [AGENT_DIED, AGENT_DIED_LATER], ids=["a first change", "a later change"])
def test_voters_change_one_at_a_time_when_a_restarted_agent_reads_an_old_record(
    way: list[Leg],
) -> None:
    space, explored = explore_legs(way, epochs_max=2, states_max=20_000)
    assert_sound(space, explored)
    assert space.facts["majorities meet"] > 0
    assert explored.complete or explored.states >= 20_000


SECOND_FAULTS: dict[str, list[Leg]] = {
    "epoch 2 serves": [leg(served(B, 2), suspicions=2)],
    "a switch": [leg(wals("F1", "F1P2F2", None), switches=1)],
    "a switch with a write on either side": [
        leg(wals("F1W1", "F1W1", "F1"), writes=1),
        leg(wals(None, "F1W1P2F2", None), switches=1),
        leg(wals(None, "F1W1P2F2W2", None), writes=1),
    ],
    "a promise that is still there": [leg(_promised_and_open, switches=1, failures=1)],
    "a phantom, and a leader without a quorum": [
        leg(wals("F1W1W2", "F1W1", "F1"), writes=2),
        leg(wals("F1W1W2", "F1W1P2F2", "F1"), suspicions=2),
    ],
    "two promotions on one timeline": [leg(wals("F1", "F1P2F2", "F1"), suspicions=2), leg(served(C, 3))],
    "a voter was removed and added again": REMOVED_AND_ADDED,
    "the old leader was rewound": [
        leg(wals("F1W1", "F1", "F1"), writes=1),
        leg(served(B, 2), suspicions=2),
        leg(wals("F1", None, None)),
    ],
}


@pytest.mark.soak
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("way", list(SECOND_FAULTS))
def test_faults_after_a_first_failover_or_change_have_no_violation(way: str) -> None:
    legs = [*SECOND_FAULTS[way], Leg(budget=EVERYTHING.budget)]
    space, explored = explore_legs(legs, epochs_max=5, states_max=300_000)
    assert_sound(space, explored)


def test_an_order_during_a_promotion_is_not_explored_as_another_choice() -> None:
    _, explored = explore_legs([leg(suspicions=2, drains=1)], epochs_max=2, states_max=20_000)
    assert explored.counterexample is None
    assert explored.complete or explored.states >= 20_000


def test_a_violation_without_a_label_is_written_as_well() -> None:
    space = StateSpace(ONE_FAILOVER)
    lines = list(transcript(space, Counterexample(path=(), label=(), what="broken")))
    assert lines == ["  1  the next move", "     VIOLATION: broken"]


def test_an_exploration_is_the_same_each_time() -> None:
    bounds = Bounds(states_max=3_000)
    assert explore(bounds)[1] == explore(bounds)[1]


def test_a_counterexample_is_written_as_a_transcript() -> None:
    budget = Budget(faults=1, crashes=0, ends=0, failures=0, stale=0)
    space = StateSpace(Bounds(budget=budget, epochs_max=2, states_max=5_000))
    with patch.object(rules, "is_frozen", return_value=True):
        explored = Search(space, serving_state(space)).run()
    assert explored.counterexample is not None
    lines = list(transcript(space, explored.counterexample))
    assert lines[0].startswith("  1  ")
    assert "suspects" in "".join(lines)
    assert lines[-1].strip().startswith("VIOLATION: b has voted for epoch 2")


def test_a_state_and_its_mirror_image_have_one_canonical_form() -> None:
    space = StateSpace(Bounds())
    state = serving_state(space)
    moves = {label[:2]: after for label, after in successors(space, state) if label[0] == "suspects"}
    assert space.canonical(moves["suspects", 1]) == space.canonical(moves["suspects", 2])
    assert space.canonical(moves["suspects", 1]) != space.canonical(state)


def test_a_late_answer_to_an_older_request_changes_nothing() -> None:
    # So the exploration may leave such answers out.

    space = StateSpace(Bounds())
    state: State = serving_state(space)
    for _ in range(40):
        machine = state.nodes[1].machine
        assert machine is not None
        before = repr(machine.facts)
        for event in (LedgerDone, PromiseStored, ReadFailed):
            twin = machine.clone()
            twin.handle(event(ticket=-1), now=0.0)
            assert repr(twin.facts) == before
        twin = machine.clone()
        twin.handle(SwapAnswered(ticket=-1, outcome="unknown"), now=0.0)
        assert repr(twin.facts) == before
        state = next(after for label, after in successors(space, state) if label[0] != "trusts")


def test_a_fault_counts_against_its_kind_and_against_the_total() -> None:
    budget = Budget(faults=1, crashes=2)
    after = spend(budget, "crashes")
    assert after is not None
    assert (after.faults, after.crashes) == (0, 1)
    assert spend(after, "crashes") is None
    assert spend(after, "writes") is not None


def test_an_assertion_of_the_core_is_a_violation_and_names_its_move() -> None:
    with pytest.raises(Violation, match="never") as caught, label_violations(("sees", 1)):
        raise AssertionError("never")
    assert caught.value.label == ("sees", 1)


# The traps of PostgreSQL.

_FENCE = Entry(1, "fence", 1, 0)


def primary(*wal: Entry) -> Member:
    return postgres.initialise(Member(kind="stopped", wal=wal), 1)


def test_two_promotions_take_the_same_timeline_and_a_standby_can_follow_either() -> None:
    frozen = Member(kind="standby", wal=(_FENCE,))
    one = postgres.append(postgres.promote(frozen, 1, 2), 1, "fence", 2)
    other = postgres.promote(frozen, 2, 3)
    assert postgres.timeline(one.wal) == postgres.timeline(other.wal) == 2
    assert one.wal != other.wal
    standby = postgres.run_as_standby(postgres.stop(other), source=1, epoch=2)
    assert postgres.accepts(standby, one)
    assert postgres.receive(standby, one).wal == (_FENCE, other.wal[1], one.wal[2])
    assert postgres.rewind(other, one).wal == other.wal


def test_a_rewind_goes_below_what_was_acknowledged() -> None:
    longer = primary(_FENCE, Entry(1, "write", 1, 0), Entry(1, "write", 2, 0))
    leader = postgres.promote(Member(kind="standby", wal=longer.wal[:2]), 1, 2)
    assert not postgres.accepts(postgres.stop(longer), leader)
    assert postgres.rewind(longer, leader).wal == (_FENCE,)


def test_a_primary_waits_only_for_the_standbys_that_it_names() -> None:
    alone = primary(_FENCE)
    assert postgres.quorum_lsn(alone) == 1
    careful = alone._replace(standby_names=(1, 2), required=1)
    assert postgres.quorum_lsn(careful) == 0
    assert postgres.quorum_lsn(postgres.acknowledge(careful, 2, 1)) == 1


# The command.


def test_the_command_reports_the_number_of_states() -> None:
    result = CliRunner().invoke(make_app(), ["explore", "--states", "2000", "--json"])
    facts = json.loads(result.output)
    assert result.exit_code == 0
    assert facts["states"] >= 2000
    assert facts["violation"] is None


def test_the_command_gives_orders() -> None:
    result = CliRunner().invoke(make_app(), ["explore", "--states", "2000", "--orders", "2", "--json"])
    bounds = json.loads(result.output)["bounds"]
    assert (bounds["switches"], bounds["drains"], bounds["resizes"]) == (2, 2, 2)


def test_the_command_prints_a_violation() -> None:
    with patch.object(rules, "may_publish", return_value=True):
        result = CliRunner().invoke(make_app(), ["explore", "--states", "5000"])
    assert result.exit_code == 1
    assert "VIOLATION: a vote for epoch 2 is published" in result.output


@pytest.mark.parametrize(
    "options",
    [
        ["--states", "0"],
        ["--depth", "-1"],
        ["--faults", "99"],
        ["--orders", "9"],
        ["--epochs", "1"],
        ["--states", "many"],
    ],
)
def test_the_command_refuses_wrong_input_with_one_line(
    options: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["palaver", "explore", *options])
    with pytest.raises(SystemExit) as ended:
        run()
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("palaver: ")
    assert error.count("\n") == 1

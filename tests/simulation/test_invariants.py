"""Tests each invariant of the exploration on a state that was broken by hand, and a search that compared no facts.

The texts of violations are read from the source, so a test fails if no broken state causes one of them.
"""

import importlib
import json
import pkgutil
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from types import ModuleType
from typing import Any
from unittest.mock import patch

import pytest
from typer.testing import CliRunner

import infra.exploration
from infra.cli.main import make_app
from infra.exploration import node as node_module
from infra.exploration import postgres
from infra.exploration.bounds import Bounds, Budget
from infra.exploration.initial_state import serving_state
from infra.exploration.legs import FAILOVER, Leg, explore_legs
from infra.exploration.moves import successors
from infra.exploration.node import Node, Outcome, Violation, label_violations, step
from infra.exploration.postgres import Entry
from infra.exploration.search import SearchResult
from infra.exploration.state_space import INVARIANTS, GhostState, State, StateSpace, idle_invariants
from regions.failover.events import Tick
from tests.infra.objections import arguments_of, texts_of, unheard

pytestmark = pytest.mark.simulation

A, B = 0, 1


class Cell:
    """A cell in which ``a`` serves epoch 1; each test breaks it."""

    def __init__(self) -> None:
        self.space = StateSpace(Bounds())
        self.state = serving_state(self.space)

    def apply_event(self, region: int, how: Callable[[Node], Outcome]) -> None:
        list(self.space.apply_event(self.state, region, ("is broken",), how))

    def ghost(self, **changes: Any) -> None:
        changed: GhostState = self.state.ghost.value._replace(**changes)
        self.state = self.state._replace(ghost=self.space.ghosts.intern(changed))


def swap_to_an_epoch_too_far(cell: Cell) -> None:
    record = cell.space.record(cell.state.etcd.value.history[-1])
    number = cell.space.record_number(replace(record, epoch=5, phase="recruiting"))
    cell.space.swapped(cell.state, (len(cell.state.etcd.value.history), number))


def read_without_a_write(cell: Cell) -> None:
    cell.state = cell.space.with_node(cell.state, A, owed_writes=(7,))
    cell.apply_event(A, lambda node: Outcome(node=node, current_reads=True))


def believe_what_etcd_does_not_hold(cell: Cell) -> None:
    def how(node: Node) -> Outcome:
        assert node.machine is not None
        machine = node.machine.clone()
        machine.facts.etcd.revision = 99
        return Outcome(node=replace(node, machine=machine, facts_texts=("broken", "broken")))

    cell.apply_event(B, how)


def open_what_another_opened(cell: Cell) -> None:
    cell.apply_event(B, lambda node: Outcome(node=node, served_epoch=1))


def open_without_a_write(cell: Cell) -> None:
    cell.ghost(acked=(9,))
    cell.apply_event(B, lambda node: Outcome(node=node, served_epoch=2))


def apply_twice(cell: Cell) -> None:
    member = cell.state.members[A].value
    timeline, by = postgres.timeline(member.wal), A
    wal = (*member.wal, Entry(timeline, "write", 1, by), Entry(timeline, "write", 1, by))
    cell.space.with_member(cell.state, A, member._replace(wal=wal, standby_names=(), required=0))


def acknowledge_under_an_old_epoch(cell: Cell) -> None:
    cell.ghost(epoch=5, region=B)
    cell.space.acknowledged(cell.state, A, [1])


def wait_for_others_than_the_voters(cell: Cell) -> None:
    record = cell.space.record(cell.state.etcd.value.history[-1])
    number = cell.space.record_number(replace(record, voters=record.voters[:1]))
    etcd = cell.state.etcd.value
    state = cell.state._replace(etcd=cell.space.etcds.intern(etcd._replace(history=(*etcd.history, number))))
    cell.space.acknowledged(state, A, [1])


def receive_after_a_vote(cell: Cell) -> None:
    member = postgres.append(cell.state.members[A].value, A, "write", 1)
    state = cell.space.with_node(cell.space.with_member(cell.state, A, member), B, voted_epoch=9)
    list(successors(cell.space, state))


def break_a_core(cell: Cell) -> None:
    with patch.object(node_module, "violations", return_value=("this", "that")):
        cell.apply_event(B, lambda node: step(node, Tick()))


def publish_what_is_not_on_disk(cell: Cell) -> None:
    del cell
    with patch.object(node_module, "is_durable", return_value=False):
        _, explored = explore_legs([*FAILOVER, Leg(budget=Budget())], epochs_max=2, states_max=10)
    assert explored.counterexample is not None
    raise Violation(explored.counterexample.what)


def assert_in_a_core(cell: Cell) -> None:
    del cell
    with label_violations(("sees", 1)):
        raise AssertionError("never")


BROKEN: dict[str, Sequence[tuple[Callable[[Cell], None], str]]] = {
    "cores": [(break_a_core, "this; that"), (assert_in_a_core, "assertion: never")],
    "records": [(believe_what_etcd_does_not_hold, "b takes epoch 1 (a serving) for revision 99, and etcd holds")],
    "epochs grow": [(swap_to_an_epoch_too_far, "epoch 1 (a serving) is followed by epoch 5 (a recruiting)")],
    "epochs exclude": [(open_what_another_opened, "b opens writes under epoch 1, and a did")],
    "acknowledged writes survive": [(open_without_a_write, "write 9 was acknowledged, and b opens epoch 2 without it")],
    "applied once": [(apply_twice, "write 1 was applied twice at a")],
    "one epoch acknowledges": [
        (acknowledge_under_an_old_epoch, "a acknowledges under epoch 1, and b has acknowledged")
    ],
    "majorities meet": [(wait_for_others_than_the_voters, "a acknowledges to a majority of a b c, and the voters are")],
    "votes are durable": [(publish_what_is_not_on_disk, "a vote for epoch 2 is published, and epoch")],
    "votes are kept": [(receive_after_a_vote, "b has voted for epoch 9, and acknowledges for epoch 1")],
    "strong reads": [(read_without_a_write, "a strong read at a does not show write 7")],
}


def objection(broken: Callable[[Cell], None]) -> str:
    with pytest.raises(Violation) as caught:
        broken(Cell())
    return str(caught.value)


@pytest.mark.parametrize(
    ("broken", "says"),
    [one for breaks in BROKEN.values() for one in breaks],
    ids=lambda one: getattr(one, "__name__", ""),
)
def test_an_invariant_rejects_a_broken_state(broken: Callable[[Cell], None], says: str) -> None:
    assert says in objection(broken)


def modules() -> list[ModuleType]:
    found = pkgutil.iter_modules(infra.exploration.__path__, "infra.exploration.")
    return [importlib.import_module(one.name) for one in found]


def test_every_invariant_and_every_violation_text_has_a_broken_state() -> None:
    assert BROKEN.keys() == INVARIANTS.keys()
    said = [objection(broken) for breaks in BROKEN.values() for broken, _ in breaks]
    patterns = texts_of(argument for module in modules() for argument in arguments_of(module, "Violation"))
    assert len(patterns) >= 10
    assert unheard(patterns, said) == []


# Facts that were compared.


def test_an_invariant_that_compared_nothing_is_reported() -> None:
    facts = Counter(INVARIANTS.keys())
    assert idle_invariants(facts, Budget(reads=1)) == []
    assert len(idle_invariants(Counter(), Budget(reads=1))) == len(INVARIANTS)
    for idle in INVARIANTS:
        some = Counter(INVARIANTS.keys() - {idle})
        assert idle_invariants(some, Budget(reads=1)) == [f"{idle}: judged on nothing: no {INVARIANTS[idle]}"]
    assert idle_invariants(Counter(INVARIANTS.keys() - {"strong reads"}), Budget(reads=0)) == []


def test_only_the_legs_through_a_failover_give_every_invariant_facts() -> None:
    space, explored = explore_legs([*FAILOVER, Leg(budget=Budget(reads=1))], epochs_max=3, states_max=300)
    assert explored.counterexample is None
    assert idle_invariants(space.facts, Budget()) == []
    start = StateSpace(Bounds())
    serving_state(start)
    assert "acknowledged writes survive: judged on nothing" in str(idle_invariants(start.facts, Budget()))


def test_the_command_reports_the_compared_facts() -> None:
    result = CliRunner().invoke(make_app(), ["explore", "--states", "300", "--json"])
    facts = json.loads(result.output)
    assert result.exit_code == 0
    assert facts["judged_nothing"] == []
    assert facts["parts"].keys() == {"from the start", "after a failover"}
    assert facts["facts"].keys() == INVARIANTS.keys()


def test_the_command_fails_when_a_search_finds_only_its_start() -> None:
    result = CliRunner().invoke(make_app(), ["explore", "--states", "1"])
    assert result.exit_code == 1
    assert "a search saw nothing but its start" in result.output


def test_the_command_fails_when_it_reaches_no_failover(monkeypatch: pytest.MonkeyPatch) -> None:
    def nowhere(*_legs: object, **_bounds: object) -> tuple[StateSpace, SearchResult]:
        return StateSpace(Bounds()), SearchResult(states=9, moves=9, depth=9, complete=False)

    monkeypatch.setattr("infra.cli.explore.explore_legs", nowhere)
    result = CliRunner().invoke(make_app(), ["explore", "--states", "300"])
    assert result.exit_code == 1
    assert "acknowledged writes survive: judged on nothing: no acknowledged writes that a later epoch" in result.output


def test_a_search_begins_when_the_first_region_serves() -> None:
    cell: State = serving_state(StateSpace(Bounds()))
    assert cell.ghost.value.opened == ((1, A),)

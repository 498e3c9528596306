from contextlib import suppress

import pytest
import typer

from infra.exploration.legs import GoalNotReached, explore_legs
from regions.failover import rules
from tests.simulation.mutations import MUTATIONS, TIMED_MUTATIONS, Mutation, TimedMutation, hunt, row, simulate
from tests.simulation.test_broken_rules import BREAKS

pytestmark = [pytest.mark.simulation, pytest.mark.timeout(900)]

RULES = {"1", "2", "3", "4", "5", "6", "7", "8", "9", "10", "11", "12", "14", "16", "20", "life", "CAS"}


BROKEN_BY_MUTANTS_ALONE = {
    "before_copy", "before_rewind", "expected_revision", "extended_ancestry", "joined_promise", "may_act", "release_of",
}  # fmt: skip
"""Functions of rules.py that only tests/mutants breaks, whose unit tests detect every change of them."""


def test_each_rule_that_code_can_break_has_a_mutation() -> None:
    assert {one.rule for one in (*MUTATIONS, *TIMED_MUTATIONS)} == RULES


def test_each_rule_function_is_broken_here_or_by_the_mutants_alone() -> None:
    functions = {name for name, value in vars(rules).items() if getattr(value, "__module__", None) == rules.__name__}
    broken = {name for one in (*MUTATIONS, *TIMED_MUTATIONS) for owner, name, _ in one.broken if owner is rules}
    broken |= {one.name for one in BREAKS if one.where is rules}
    assert broken <= functions
    assert functions - broken == BROKEN_BY_MUTANTS_ALONE


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda one: f"{one.rule}: {one.name}")
def test_the_exploration_detects_a_broken_rule(mutation: Mutation) -> None:
    _, explored = hunt(mutation)
    found = explored.counterexample
    effort = f"{explored.states} states, depth {explored.depth}"
    typer.echo(row(mutation.rule, mutation.name, "exploration", effort, None if found is None else found.what))
    assert found is not None, f"no violation within {effort}"
    assert mutation.caught in found.what


@pytest.mark.soak
@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda one: f"{one.rule}: {one.name}")
def test_the_same_legs_have_no_violation_when_no_rule_is_broken(mutation: Mutation) -> None:
    with suppress(GoalNotReached):  # some goals can be reached only with the broken rule
        _, explored = explore_legs(mutation.legs, epochs_max=mutation.epochs_max, states_max=mutation.states_max)
        assert explored.counterexample is None, explored.counterexample.what


@pytest.mark.parametrize("mutation", TIMED_MUTATIONS, ids=lambda one: f"{one.rule}: {one.name}")
def test_the_simulation_detects_a_broken_rule_about_time(mutation: TimedMutation) -> None:
    assert simulate(None, mutation.faults) is None
    noticed = simulate(mutation, mutation.faults)
    typer.echo(row(mutation.rule, mutation.name, "simulation", "1 minute", noticed))
    assert noticed is not None

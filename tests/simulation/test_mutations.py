from contextlib import suppress

import pytest
import typer

from infra.exploration.legs import GoalNotReached, explore_legs
from tests.simulation.mutations import MUTATIONS, TIMED_MUTATIONS, Mutation, TimedMutation, hunt, row, simulate

pytestmark = [pytest.mark.simulation, pytest.mark.timeout(900)]

RULES = {"1", "2", "3", "4", "5", "6", "7", "8", "9", "10", "11", "12", "14", "16", "20", "life", "CAS"}


def test_each_rule_that_code_can_break_has_a_mutation() -> None:
    assert {one.rule for one in (*MUTATIONS, *TIMED_MUTATIONS)} == RULES


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

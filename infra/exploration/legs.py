"""Explores in legs: finds a state that fits a goal, and continues from that state.

A breadth-first search within feasible bounds does not reach a third failover. So each leg is a breadth-first search
with its own budget, which ends at the first state that fits the leg's goal. The last leg has no goal and explores
everything that its budget allows.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from infra.exploration.bounds import Bounds, Budget
from infra.exploration.initial_state import serving_state
from infra.exploration.search import Search, SearchResult
from infra.exploration.state_space import Move, State, StateSpace


@dataclass(frozen=True, slots=True, kw_only=True)
class Leg:
    """One search of several in sequence.

    Attributes:
        budget: The events that may happen in it.
        goal: The condition of the state at which it ends; None to explore to the bounds.
        states_max: Distinct states at most; None for the limit that `explore_legs` was given.
    """

    budget: Budget
    goal: Callable[[State], bool] | None = None
    states_max: int | None = None


class GoalNotReached(Exception):
    """A leg found no state that fits its goal."""


def explore_legs(
    legs: Sequence[Leg], *, epochs_max: int, states_max: int, depth_max: int | None = None
) -> tuple[StateSpace, SearchResult]:
    """Explore one leg after the other, up to the first violation; its path begins at the start of the first leg.

    Args:
        legs: The legs, in order.
        epochs_max: The highest epoch.
        states_max: Distinct states of each leg at most.
        depth_max: Steps of the last leg at most; None for no limit.

    Returns:
        The state space of all legs, and their results together.

    Raises:
        GoalNotReached: A leg found no state that fits its goal.
    """
    path: tuple[Move, ...] = ()
    total = SearchResult(states=0, moves=0, depth=0, complete=False)
    space = StateSpace(Bounds(budget=legs[0].budget, epochs_max=epochs_max, states_max=states_max))
    state = serving_state(space)
    for number, leg in enumerate(legs, 1):
        space.first_write = max(_writes(state), default=0)
        space.bounds = space.bounds._replace(
            budget=leg.budget,
            states_max=leg.states_max or states_max,
            depth_max=depth_max if leg.goal is None else None,
        )
        state = state._replace(budget=space.budgets.intern(leg.budget))
        explored = Search(space, state, leg.goal).run()
        found = explored.counterexample
        total = replace(
            explored,
            states=total.states + explored.states,
            moves=total.moves + explored.moves,
            depth=len(path) + explored.depth,
            counterexample=None if found is None else replace(found, path=(*path, *found.path)),
        )
        if found is not None or leg.goal is None:
            break
        if explored.reached is None:
            raise GoalNotReached(f"leg {number} did not reach its goal within {explored.states} states")
        path = (*path, *explored.reached)
        state = path[-1][1] if path else state
    return space, total


def _writes(state: State) -> set[int]:
    written = {entry.number for part in state.members for entry in part.value.wal if entry.kind == "write"}
    return written | set(state.ghost.value.acked)


def serves(state: State, region: int, epoch: int) -> bool:
    """Whether a region admits writes in an epoch, and this epoch is the last that acknowledged."""
    return state.nodes[region].admitted_epoch == epoch and state.ghost.value.epoch == epoch


_NO_EVENTS = Budget(*[0] * len(Budget._fields))


def _acknowledged(state: State) -> bool:
    """Whether the first leader has acknowledged a write."""
    return state.ghost.value.acked == (1,)


def _taken_over(state: State) -> bool:
    """Whether region ``b`` serves epoch 2."""
    return serves(state, 1, 2)


_FAILOVER_STATES_MAX = 100_000
"""The two legs need about 5,000 states together."""

FAILOVER = (
    Leg(budget=_NO_EVENTS._replace(writes=1), goal=_acknowledged, states_max=_FAILOVER_STATES_MAX),
    Leg(budget=_NO_EVENTS._replace(suspicions=2), goal=_taken_over, states_max=_FAILOVER_STATES_MAX),
)
"""The legs through a first failover. A single search with the default bounds reaches none within 100,000 states."""

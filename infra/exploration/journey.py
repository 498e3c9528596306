"""A search in legs: from the start to a state that is worth a closer look, and on from there.

A story of three failovers is too long to be found by breadth alone. Each leg is searched breadth first with a budget
of its own until a state fits its goal; the last leg has no goal, it explores what its budget allows.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from infra.exploration.bounds import Bounds, Budget
from infra.exploration.search import Explored, Search
from infra.exploration.start import serving
from infra.exploration.world import Move, State, World

_LETTERS = {"fence": "F", "write": "W", "promotion": "P"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Leg:
    """A part of the way.

    Attributes:
        budget: What may happen on it.
        goal: Where it ends; None: it is explored to its bounds.
        states_max: Its distinct states; None: those of the journey.
    """

    budget: Budget
    goal: Callable[[State], bool] | None = None
    states_max: int | None = None


class Astray(Exception):
    """No state within the bounds fits the goal of a leg."""


def travel(
    legs: Sequence[Leg], *, epochs_max: int, states_max: int, depth_max: int | None = None
) -> tuple[World, Explored]:
    """Explore leg by leg; the first violation ends the journey, with the whole way to it.

    Args:
        legs: The way.
        epochs_max: No epoch above this one is begun.
        states_max: Distinct states of each leg.
        depth_max: Steps of the last leg; None for as many as there are.

    Raises:
        Astray: A goal was not found.
    """
    path: tuple[Move, ...] = ()
    total = Explored(states=0, moves=0, depth=0, complete=False)
    world = World(Bounds(budget=legs[0].budget, epochs_max=epochs_max, states_max=states_max))
    state = serving(world)
    for number, leg in enumerate(legs, 1):
        world.first_write = max(_writes(state), default=0)
        world.bounds = world.bounds._replace(
            budget=leg.budget,
            states_max=leg.states_max or states_max,
            depth_max=depth_max if leg.goal is None else None,
        )
        state = state._replace(budget=world.budgets.one(leg.budget))
        explored = Search(world, state, leg.goal).run()
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
            raise Astray(f"leg {number} did not get where it should within {explored.states} states")
        path = (*path, *explored.reached)
        state = path[-1][1] if path else state
    return world, total


def _writes(state: State) -> set[int]:
    written = {entry.number for part in state.members for entry in part.value.wal if entry.kind == "write"}
    return written | set(state.ghost.value.acked)


def wal(state: State, region: int) -> str:
    """What is on a member's disk, such as ``F1W1P2F2``."""
    return "".join(_LETTERS[entry.kind] + str(entry.number) for entry in state.members[region].value.wal)


def serves(state: State, region: int, epoch: int) -> bool:
    """Whether a region takes writes under an epoch, and etcd says so."""
    return state.nodes[region].gate == epoch and state.ghost.value.epoch == epoch


_CALM = Budget(*[0] * len(Budget._fields))


def _acknowledged(state: State) -> bool:
    """Whether the first leader has acknowledged a write."""
    return state.ghost.value.acked == (1,)


def _taken_over(state: State) -> bool:
    """Whether another region serves the next epoch."""
    return serves(state, 1, 2)


_FAILOVER_STATES_MAX = 100_000
"""Its legs take 5,000 together."""

FAILOVER = (
    Leg(budget=_CALM._replace(writes=1), goal=_acknowledged, states_max=_FAILOVER_STATES_MAX),
    Leg(budget=_CALM._replace(suspicions=2), goal=_taken_over, states_max=_FAILOVER_STATES_MAX),
)
"""The way through a first failover. Breadth alone comes to none within 100,000 states of the usual bounds."""

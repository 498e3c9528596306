"""Creates the state in which explorations begin: region ``a`` serves epoch 1, reached by driving the real machines."""

from infra.exploration.bounds import Budget
from infra.exploration.moves import successors
from infra.exploration.world import State, World

_CALM = frozenset({"agent starts", "sees", "ends", "begins", "performs", "reads", "hears", "receives"})
"""Moves that happen without a fault and without an expired timer."""

_STEPS_MAX = 500


def serving(world: World) -> State:
    """Start a new cell, and make moves without a fault until there is no new state."""
    state = world.empty()._replace(budget=world.budgets.one(Budget(*[0] * len(Budget._fields))))
    seen = {world.canonical(state)}
    for _ in range(_STEPS_MAX):
        calm = (after for (verb, *_), after in successors(world, state) if verb in _CALM)
        following = next((after for after in calm if world.canonical(after) not in seen), None)
        if following is None:
            break
        state = following
        seen.add(world.canonical(state))
    assert state.nodes[0].gate == 1, "the new cell does not serve"
    return state._replace(budget=world.budgets.one(world.bounds.budget))

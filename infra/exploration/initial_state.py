"""Creates the state in which explorations begin: region ``a`` serves epoch 1, reached by driving the real machines."""

from infra.exploration.bounds import Budget
from infra.exploration.moves import successors
from infra.exploration.state_space import State, StateSpace

_WITHOUT_FAULTS = frozenset({"agent starts", "sees", "ends", "begins", "performs", "reads", "hears", "receives"})
"""Moves that happen without a fault and without an expired timer."""

_STEPS_MAX = 500


def serving_state(space: StateSpace) -> State:
    """Start a new cell, and make moves without a fault until there is no new state."""
    state = space.initial()._replace(budget=space.budgets.intern(Budget(*[0] * len(Budget._fields))))
    seen = {space.canonical(state)}
    for _ in range(_STEPS_MAX):
        faultless = (after for (verb, *_), after in successors(space, state) if verb in _WITHOUT_FAULTS)
        following = next((after for after in faultless if space.canonical(after) not in seen), None)
        if following is None:
            break
        state = following
        seen.add(space.canonical(state))
    assert state.nodes[0].admitted_epoch == 1, "the new cell does not serve"
    return state._replace(budget=space.budgets.intern(space.bounds.budget))

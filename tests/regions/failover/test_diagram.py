"""The diagram of states in ARCHITECTURE.md matches the table in ``states.py``.

``pytest tests/regions/failover/test_diagram.py --rewrite-diagram`` rewrites it.
"""

from pathlib import Path

import pytest

from regions.failover.states import MEANINGS, RARE, TRANSITIONS, USUAL, State
from tests.regions.failover.generated import assert_generated

DOCUMENT = Path(__file__).parents[3] / "ARCHITECTURE.md"
BEGIN = "<!-- states: made from regions/failover/states.py by tests/regions/failover/test_diagram.py -->\n"
END = "<!-- states: end -->\n"


def states_as_markdown() -> str:
    """Return Markdown: the usual transitions as a diagram, the meanings of the states as a table."""
    lines = ["```mermaid", "stateDiagram-v2", "    [*] --> starting"]
    lines += [f'    state "{state}" as {_id(state)}' for state in MEANINGS if _id(state) != state]
    lines += [f"    {_id(one)} --> {_id(other)}" for one, other in USUAL]
    lines += ["```", "", "| state | what the agent does |", "|---|---|"]
    lines += [f"| {state} | {meaning} |" for state, meaning in MEANINGS.items()]
    return "\n".join(lines) + "\n"


def _id(state: State) -> str:
    return state.replace("-", "_")


def test_the_diagram_in_architecture_md_matches_the_transition_table(request: pytest.FixtureRequest) -> None:
    assert_generated(request, DOCUMENT, BEGIN, END, states_as_markdown())


def test_each_transition_is_either_usual_or_rare_and_changes_the_state() -> None:
    assert not set(USUAL) & set(RARE)
    assert all(one != other for one, other in TRANSITIONS)


def test_transitions_enter_every_state_except_starting_and_leave_every_state() -> None:
    assert {other for _, other in TRANSITIONS} == set(MEANINGS) - {"starting"}
    assert {one for one, _ in TRANSITIONS} == set(MEANINGS)

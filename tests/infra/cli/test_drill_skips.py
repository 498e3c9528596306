"""A drill that cannot be carried out here is told apart from one that passed."""

from infra.cli.drill import sort_out
from infra.drills.drill import find_drill

DRILLS = [find_drill("kill-region"), find_drill("clock-jump")]


def test_a_drill_whose_fault_cannot_be_injected_is_skipped_and_not_passed() -> None:
    drills, (fact,) = sort_out(DRILLS, "this fault cannot be injected here: no clocks")
    assert [drill.name for drill in drills] == ["kill-region"]
    assert fact["drill"] == "clock-jump"
    assert fact["skipped"] == "this fault cannot be injected here: no clocks"
    assert not fact["passed"]


def test_where_clocks_can_be_set_nothing_is_skipped() -> None:
    assert sort_out(DRILLS, None) == (DRILLS, [])

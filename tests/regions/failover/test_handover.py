"""Tests of the sub-states of a hand-over, their transitions, and the table of these in docs/failover.md.

``pytest tests/regions/failover/test_handover.py --rewrite-diagram`` rewrites the table.
"""

from itertools import product
from pathlib import Path

import pytest

from regions.failover.events import Order
from regions.failover.handover import (
    TRANSITIONS,
    Announcing,
    Draining,
    HandOver,
    Preparing,
    Releasing,
    RestartDelayed,
    announcement,
    deadline,
    drained,
    kind_of,
    moved,
    of_leader,
    with_drained,
)
from regions.identity import RegionName
from tests.regions.failover.generated import assert_generated

ORDER = Order(ticket=1, kind="switch", region=RegionName("eu-west"))
ANNOUNCING = Announcing(order=ORDER)
DRAINING = Draining(order=ORDER, revision=4)
RELEASING = Releasing(order=ORDER, revision=4, lsn=500)
DELAYED = RestartDelayed(until=9.0)
PREPARING = Preparing(until=8.0)
ALL: tuple[HandOver | None, ...] = (None, ANNOUNCING, DRAINING, RELEASING, DELAYED, PREPARING)

DOCUMENT = Path(__file__).parents[3] / "docs" / "failover.md"
BEGIN = "<!-- hand-over: made from regions/failover/handover.py by tests/regions/failover/test_handover.py -->\n"
END = "<!-- hand-over: end -->\n"


@pytest.mark.parametrize(("old", "new"), list(product(ALL, ALL)))
def test_moved_accepts_only_transitions_of_the_table(old: HandOver | None, new: HandOver | None) -> None:
    if (kind_of(old), kind_of(new)) in TRANSITIONS:
        assert moved(old, new) == new
    else:
        with pytest.raises(AssertionError, match=f"from {kind_of(old)} to {kind_of(new)}"):
            moved(old, new)


def test_the_table_enters_and_leaves_every_sub_state() -> None:
    kinds = {kind_of(one) for one in ALL}
    assert len(kinds) == len(ALL)
    assert {old for old, _ in TRANSITIONS} == kinds == {new for _, new in TRANSITIONS}


def test_a_leader_releases_only_after_draining_and_drains_only_after_announcing() -> None:
    ways = (
        {old for old, new in TRANSITIONS if new == "releasing"},
        {old for old, new in TRANSITIONS if new == "draining"},
    )
    assert ways == ({"draining"}, {"announcing"})


def test_of_leader_returns_only_the_leaders_sub_states() -> None:
    assert [of_leader(one) for one in ALL] == [None, ANNOUNCING, DRAINING, RELEASING, None, None]


def test_the_revision_of_the_announcement_is_kept_while_releasing() -> None:
    assert [announcement(one) for one in (ANNOUNCING, DRAINING, RELEASING)] == [0, 4, 4]
    assert with_drained(DRAINING, 500) == RELEASING


def test_only_a_releasing_leader_has_a_drained_lsn() -> None:
    assert [drained(one) for one in ALL] == [None, None, None, 500, None, None]


def test_only_a_restart_delay_and_a_preparation_have_a_deadline() -> None:
    assert [deadline(one) for one in ALL] == [None, None, None, None, 9.0, 8.0]


def test_the_table_in_failover_md_matches_the_transitions(request: pytest.FixtureRequest) -> None:
    rows = [f"| {old} | {new} | {why} |\n" for (old, new), why in TRANSITIONS.items()]
    table = "| from | to | when |\n|---|---|---|\n" + "".join(rows)
    assert_generated(request, DOCUMENT, BEGIN, END, table)

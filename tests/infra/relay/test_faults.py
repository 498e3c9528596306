"""Tests when a segment arrives, and which settings of a fault are valid."""

import itertools
import math
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.relay.faults import (
    CLEAR,
    DELAY_MS_MAX,
    LOSSES_MAX,
    WINDOW_BYTES_MAX,
    WINDOW_BYTES_MIN,
    Fault,
    FaultInvalid,
    FaultTable,
    arrival,
    merge,
)

PAIRS = [("a", "b"), ("b", "a"), ("a", "c"), ("c", "a")]


def draws(*numbers: float) -> Iterator[float]:
    return iter(numbers)


def test_a_direction_without_a_fault_delivers_at_once_and_draws_no_random_number() -> None:
    assert arrival(CLEAR, now=7.0, previous=0.0, draws=draws()) == 7.0


@pytest.mark.parametrize(("draw", "arrives"), [(0.0, 0.03), (0.5, 0.05), (1.0, 0.07)])
def test_jitter_lengthens_and_shortens_the_delay(draw: float, arrives: float) -> None:
    fault = Fault(delay_ms=50, jitter_ms=20)
    assert arrival(fault, now=0.0, previous=0.0, draws=draws(draw)) == pytest.approx(arrives)


def test_jitter_never_makes_a_segment_arrive_before_it_was_sent() -> None:
    assert arrival(Fault(delay_ms=5, jitter_ms=20), now=1.0, previous=0.0, draws=draws(0.0)) == 1.0


@pytest.mark.parametrize(("lost", "waited_ms"), [(0, 0), (1, 200), (2, 600), (3, 1400)])
def test_each_loss_doubles_the_retransmission_timeout(lost: int, waited_ms: int) -> None:
    outcome = arrival(Fault(loss=0.1), now=0.0, previous=0.0, draws=draws(*[0.0] * lost, 0.5))
    assert outcome == pytest.approx(waited_ms / 1000)


def test_the_losses_in_a_row_are_bounded() -> None:
    endless = itertools.repeat(0.0)
    arrives = arrival(Fault(loss=0.5), now=0.0, previous=0.0, draws=endless)
    assert 0 < arrives < LOSSES_MAX * 120


@given(
    delay_ms=st.floats(0, DELAY_MS_MAX),
    jitter_ms=st.floats(0, DELAY_MS_MAX),
    loss=st.floats(0, 0.99),
    numbers=st.lists(st.floats(0, 0.999), min_size=400, max_size=400),
)
def test_segments_never_overtake_each_other(
    delay_ms: float, jitter_ms: float, loss: float, numbers: list[float]
) -> None:
    fault, chance, previous = Fault(delay_ms=delay_ms, jitter_ms=jitter_ms, loss=loss), iter(numbers), 0.0
    for step in range(20):
        now = step / 1000
        arrives = arrival(fault, now=now, previous=previous, draws=chance)
        assert arrives >= previous
        assert arrives >= now
        previous = arrives


def test_the_window_follows_bandwidth_and_delay_between_its_bounds() -> None:
    assert CLEAR.window_bytes == WINDOW_BYTES_MIN
    assert Fault(delay_ms=40).window_bytes == 5_000_000
    assert Fault(delay_ms=9_000).window_bytes == WINDOW_BYTES_MAX


@pytest.mark.parametrize(
    "settings",
    [
        {"delay_ms": -1},
        {"delay_ms": DELAY_MS_MAX + 1},
        {"delay_ms": math.nan},
        {"delay_ms": math.inf},
        {"jitter_ms": "10"},
        {"jitter_ms": True},
        {"loss": 1},
        {"loss": -0.1},
        {"cut": 1},
        {"cut": None},
        {"speed": 3},
    ],
)
def test_invalid_settings_are_refused(settings: dict[str, object]) -> None:
    with pytest.raises(FaultInvalid):
        merge(CLEAR, settings)


def test_a_change_keeps_missing_fields_and_is_all_or_nothing() -> None:
    table = FaultTable(PAIRS, {("a", "b"): Fault(delay_ms=40)})
    table.change([{"source": "a", "target": "b", "cut": True}])
    assert table["a", "b"] == Fault(delay_ms=40, cut=True)
    assert table["b", "a"] == CLEAR
    with pytest.raises(FaultInvalid, match="regions are a, b, c"):
        table.change([{"source": "b", "target": "a", "cut": True}, {"source": "b", "target": "d"}])
    assert table["b", "a"] == CLEAR


def test_two_changes_of_a_direction_in_one_call_add_up() -> None:
    table = FaultTable(PAIRS, {})
    same = {"source": "a", "target": "b"}
    assert table.change([{**same, "delay_ms": 5}, {**same, "cut": True}]) == [(("a", "b"), Fault(delay_ms=5, cut=True))]


def test_heal_restores_the_baseline_of_all_or_some_pairs() -> None:
    table = FaultTable(PAIRS, {("a", "b"): Fault(delay_ms=40)})
    table.change({"source": source, "target": target, "cut": True} for source, target in PAIRS)
    table.heal([("a", "b")])
    assert table["a", "b"] == Fault(delay_ms=40)
    assert table["b", "a"].cut
    table.heal()
    assert [fault for _, fault in table.items()] == [Fault(delay_ms=40), CLEAR, CLEAR, CLEAR]
    with pytest.raises(FaultInvalid):
        table.heal([("b", "c")])

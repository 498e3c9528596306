"""Tests of the phi accrual detector: its formula (docs/failover.md), and which intervals enter its window."""

import math
from dataclasses import replace

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from regions.failover.detector import PhiDetector, deviations_at, phi_of
from regions.failover.settings import DEFAULTS

BEAT_S = DEFAULTS.heartbeat_interval_s
PATIENCE_S = BEAT_S + DEFAULTS.phi_pause_s + deviations_at(8.0) * DEFAULTS.phi_stddev_min_s

intervals = st.lists(st.floats(min_value=0.0, max_value=0.9), max_size=60)


def detector_after(*waits: float) -> PhiDetector:
    """Return a detector that started at 0 and received a heartbeat after each of these intervals."""
    detector, now = PhiDetector(DEFAULTS, now=0.0), 0.0
    for wait in waits:
        now += wait
        detector.heard(now)
    return detector


@pytest.mark.parametrize(
    ("deviations", "phi"), [(0.0, 0.30103), (1.2815516, 1.0), (2.3263479, 2.0), (3.0902323, 3.0), (5.6120012, 8.0)]
)
def test_phi_is_the_negative_logarithm_of_the_probability_of_a_later_heartbeat(deviations: float, phi: float) -> None:
    assert phi_of(deviations) == pytest.approx(phi, abs=1e-5)


def test_phi_stays_finite_after_hours_without_a_heartbeat() -> None:
    assert phi_of(1e6) == pytest.approx(300.0)
    assert detector_after().phi(86_400.0) == pytest.approx(300.0)


def test_phi_of_eight_is_at_five_point_six_one_deviations() -> None:
    assert deviations_at(8.0) == pytest.approx(5.612, abs=1e-3)


@given(st.floats(min_value=1.0, max_value=16.0))
def test_deviations_at_is_the_inverse_of_phi_of(phi: float) -> None:
    assert phi_of(deviations_at(phi)) == pytest.approx(phi, rel=1e-6)


def test_a_steady_peer_is_suspected_after_interval_pause_and_deviations() -> None:
    detector = detector_after(*[BEAT_S] * 200)
    assert detector.trips_at - detector.last_s == pytest.approx(PATIENCE_S)
    assert pytest.approx(1.06, abs=0.001) == PATIENCE_S


def test_a_peer_without_a_heartbeat_is_suspected_as_if_it_had_the_configured_interval() -> None:
    assert detector_after().trips_at == pytest.approx(PATIENCE_S)


@given(intervals)
def test_a_detector_trips_exactly_when_phi_reaches_the_threshold(waits: list[float]) -> None:
    detector = detector_after(*waits)
    assert detector.phi(detector.trips_at) == pytest.approx(DEFAULTS.phi_threshold, rel=1e-6)


@given(intervals, st.floats(min_value=0.0, max_value=5.0), st.floats(min_value=0.001, max_value=5.0))
def test_phi_does_not_decrease_without_heartbeats(waits: list[float], one: float, more: float) -> None:
    detector = detector_after(*waits)
    earlier = detector.last_s + one
    assert detector.phi(earlier) <= detector.phi(earlier + more)


@given(intervals)
def test_a_heartbeat_postpones_the_suspicion(waits: list[float]) -> None:
    detector = detector_after(*waits)
    before = detector.trips_at
    now = before - 0.001
    detector.heard(now)
    assert detector.last_s == now
    assert detector.trips_at > before


@example([0.01 * (number * 7 % 50) for number in range(60)])  # more different intervals than the window holds
@given(intervals)
def test_the_running_sums_agree_with_mean_and_deviation_of_the_window(waits: list[float]) -> None:
    settings = replace(DEFAULTS, phi_window=25, phi_stddev_min_s=1e-3)
    detector, now = PhiDetector(settings, now=0.0), 0.0
    kept = [BEAT_S] * 20
    for wait in waits:
        now += wait
        if now < detector.trips_at:
            kept.append(wait)
        detector.heard(now)
    kept = kept[-25:]
    mean = math.fsum(kept) / len(kept)
    deviation = math.sqrt(math.fsum((one - mean) ** 2 for one in kept) / len(kept))
    patience_s = mean + settings.phi_pause_s + deviations_at(8.0) * max(deviation, 1e-3)
    assert detector.trips_at - now == pytest.approx(patience_s, abs=1e-4)


def test_a_peer_with_irregular_heartbeats_is_suspected_later() -> None:
    assert detector_after(*[0.02, 0.4] * 50).trips_at - 50 * 0.42 > PATIENCE_S + 0.5


def test_the_interval_of_an_outage_does_not_enter_the_window() -> None:
    detector = detector_after(*[BEAT_S] * 100, 60.0)
    assert detector.trips_at - detector.last_s == pytest.approx(PATIENCE_S)


def test_the_interval_of_a_heartbeat_at_the_moment_of_suspicion_does_not_enter_the_window() -> None:
    detector = detector_after()
    detector.heard(detector.trips_at)
    assert detector.trips_at - detector.last_s == pytest.approx(PATIENCE_S)


def test_a_restart_ends_the_silence_and_does_not_add_it_to_the_window() -> None:
    detector = detector_after(*[BEAT_S] * 100)
    detector.restart(detector.last_s + 0.8)
    assert detector.trips_at - detector.last_s == pytest.approx(PATIENCE_S)


def test_forget_discards_the_window_and_keeps_the_time_of_the_last_heartbeat() -> None:
    detector = detector_after(*[0.02, 0.4] * 50)
    last_s = detector.last_s
    detector.forget()
    assert detector.trips_at == pytest.approx(last_s + PATIENCE_S)


def test_hasten_shortens_the_acceptable_pause_until_the_next_heartbeat() -> None:
    detector = detector_after(*[BEAT_S] * 200)
    usual = detector.trips_at
    detector.hasten()
    gained = DEFAULTS.phi_pause_s - DEFAULTS.refused_pause_s
    assert detector.trips_at == pytest.approx(usual - gained)
    assert detector.phi(detector.trips_at) == pytest.approx(8.0, abs=1e-6)
    detector.hasten()
    assert detector.trips_at == pytest.approx(usual - gained), "a second call changes nothing"
    detector.heard(detector.last_s + BEAT_S)
    assert detector.trips_at - detector.last_s == pytest.approx(PATIENCE_S, abs=1e-3)

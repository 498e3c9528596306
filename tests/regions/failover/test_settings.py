"""Tests of the limits of ``Settings`` and ``CellRegions``, and of the defaults, which the measurements used."""

import math
from dataclasses import asdict, replace

import pytest

from regions.failover.settings import DEFAULTS, CellRegions
from regions.identity import RegionName

A, B, C = RegionName("us-east"), RegionName("eu-west"), RegionName("ap-south")


def test_the_defaults_are_the_values_used_for_the_measurements() -> None:
    assert asdict(DEFAULTS) == {
        "heartbeat_interval_s": 0.1,
        "phi_threshold": 8.0,
        "phi_window": 1000,
        "phi_stddev_min_s": 0.05,
        "phi_pause_s": 0.68,
        "refused_pause_s": 0.1,
        "observers_min": 2,
        "lag_s_max": 0.25,
        "claim_stagger_s": 0.25,
        "stall_s": 2.0,
        "rest_s": 0.5,
        "stall_s_max": 16.0,
        "hold_down_s": 45.0,
        "failovers_max": 3,
        "request_s_max": 1.5,
        "ledger_s_max": 5.0,
        "rebuild_s_max": 3600.0,
        "retry_s": 0.05,
        "retry_s_max": 1.0,
        "target_s_max": 2.0,
    }


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [
        ("heartbeat_interval_s", 0.02, 1.0),
        ("phi_threshold", 1.0, 16.0),
        ("phi_window", 20, 10_000),
        ("observers_min", 2, 31),
    ],
)
def test_a_setting_is_accepted_at_its_limits_and_rejected_beyond_them(name: str, low: float, high: float) -> None:
    below, above = (
        (low - 1, high + 1)
        if isinstance(low, int)
        else (math.nextafter(low, -math.inf), math.nextafter(high, math.inf))
    )
    for value in (low, high):
        assert getattr(_with(name, value), name) == value
    for value in (below, above):
        with pytest.raises(AssertionError, match=f"{name} is not between"):
            _with(name, value)


@pytest.mark.parametrize(
    ("name", "bound", "why"),
    [
        ("retry_s", DEFAULTS.retry_s_max, "retry bound below its start"),
        ("refused_pause_s", DEFAULTS.phi_pause_s, "the pause of a refused ledger is the shorter one"),
        ("stall_s", DEFAULTS.stall_s_max, "stall bound below its start"),
    ],
)
def test_a_setting_bounded_by_another_may_equal_it_and_not_exceed_it(name: str, bound: float, why: str) -> None:
    assert getattr(_with(name, bound), name) == bound
    with pytest.raises(AssertionError, match=why):
        _with(name, math.nextafter(bound, math.inf))


def _with(name: str, value: float) -> object:
    return replace(DEFAULTS, **{name: value})  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("voters", "regions", "why"),
    [
        ((), (), "a cell needs a voter"),
        ((A, A), (A,), "a voter is listed twice"),
        ((A, B), (A,), "a voter is no region"),
    ],
)
def test_cell_regions_rejects_no_voters_duplicate_voters_and_unknown_voters(
    voters: tuple[RegionName, ...], regions: tuple[RegionName, ...], why: str
) -> None:
    with pytest.raises(AssertionError, match=why):
        CellRegions(voters=voters, regions=regions)


def test_cell_regions_accepts_view_only_regions_and_an_empty_list_of_regions() -> None:
    assert CellRegions(voters=(A, B), regions=(A, B, C)).regions == (A, B, C)
    assert CellRegions(voters=(A, B), regions=(B, A)).voters == (A, B)
    assert CellRegions(voters=(A,)).regions == ()

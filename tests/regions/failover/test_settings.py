"""Settings refuse what cannot work."""

from dataclasses import replace

import pytest

from regions.failover.settings import DEFAULTS, CellRegions
from regions.identity import RegionName

A, B = RegionName("us-east"), RegionName("eu-west")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("heartbeat_interval_s", 0.01),
        ("heartbeat_interval_s", 2.0),
        ("phi_threshold", 0.5),
        ("phi_window", 19),
        ("observers_min", 1),
        ("retry_s", 2.0),
        ("stall_s", 20.0),
    ],
)
def test_a_number_out_of_its_limits_is_refused(name: str, value: float) -> None:
    with pytest.raises(AssertionError):
        replace(DEFAULTS, **{name: value})  # pyright: ignore[reportArgumentType]


def test_one_observer_would_let_a_bad_link_decide() -> None:
    assert DEFAULTS.observers_min >= 2


@pytest.mark.parametrize(
    ("voters", "regions"),
    [((), ()), ((A, A), (A,)), ((A, B), (A,))],
)
def test_a_cell_has_voters_once_each_that_are_regions(
    voters: tuple[RegionName, ...], regions: tuple[RegionName, ...]
) -> None:
    with pytest.raises(AssertionError):
        CellRegions(voters=voters, regions=regions)

"""Tests the settings of the garbage collector."""

import gc
from collections.abc import Generator

import pytest

from services.telemetry.collector import YOUNG_MAX, configure_garbage_collector


@pytest.fixture(autouse=True)
def collector_as_before() -> Generator[None]:
    before = gc.get_threshold()
    yield
    gc.unfreeze()
    gc.set_threshold(*before)


def test_the_collector_skips_loaded_objects_and_collects_young_ones_less_often() -> None:
    configure_garbage_collector()
    assert gc.get_freeze_count() > 1000
    assert gc.get_threshold()[0] == YOUNG_MAX

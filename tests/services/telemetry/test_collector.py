import gc
from collections.abc import Generator

import pytest

from services.telemetry.collector import YOUNG_MAX, settle_collector


@pytest.fixture(autouse=True)
def collector_as_before() -> Generator[None]:
    before = gc.get_threshold()
    yield
    gc.unfreeze()
    gc.set_threshold(*before)


def test_what_was_loaded_is_left_out_and_the_young_are_looked_at_less_often() -> None:
    settle_collector()
    assert gc.get_freeze_count() > 1000
    assert gc.get_threshold()[0] == YOUNG_MAX

"""Which tests stay together when `make test` runs them in two processes, and what hypothesis may mind."""

import gc
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

ROOT = Path(__file__).parent

# Properties are about results. How long one example takes says only how busy the machine is.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")


@pytest.hookimpl(tryfirst=True)  # xdist reads the groups in the same hook
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Group tests by their folder, because tests of a folder share servers."""
    for item in items:
        folder = item.path.relative_to(ROOT).parts[0]
        item.add_marker(pytest.mark.xdist_group(folder))


@pytest.fixture(scope="session", autouse=True)
def left_open() -> Iterator[None]:
    """Find what tests have left open while a test can still fail for it.

    pytest looks for it after the last test as well, but a worker of xdist has told its results by then.
    """
    yield
    for _ in range(3):  # What one collection frees may have held something itself.
        gc.collect()

"""What hypothesis may mind, what no test may leave open, and two switches.

The switches write anew what tests compare with; read the difference before you commit it.
"""

import gc
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

# Properties are about results. How long one example takes says only how busy the machine is.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--rewrite-scenarios", action="store_true", help="write the traces of tests/scenarios/*.txt as they are now"
    )
    parser.addoption(
        "--rewrite-diagram", action="store_true", help="write the states of the failover core into ARCHITECTURE.md"
    )


@pytest.fixture(scope="session", autouse=True)
def left_open() -> Iterator[None]:
    """Find what tests have left open while a test can still fail for it, and not after the last result was told."""
    yield
    for _ in range(3):  # What one collection frees may have held something itself.
        gc.collect()

"""Which tests stay together when `make test` runs them in two processes, and what hypothesis may mind."""

import gc
from collections.abc import Generator, Iterator

import pytest
from hypothesis import HealthCheck, settings
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

# Properties are about results. How long one example takes says only how busy the machine is.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")


class ByFolder(LoadScopeScheduling):
    """Gives each folder of tests to one worker, in the order of their names."""

    def _split_scope(self, nodeid: str) -> str:
        return nodeid.split("/")[1]


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> ByFolder:
    """Tests of a folder share servers, so they stay together."""
    return ByFolder(config, log)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A worker sends its reports as UTF-8, which has no lone surrogates; tests log some on purpose."""
    report = yield
    report.sections = [(name, text.encode(errors="backslashreplace").decode()) for name, text in report.sections]
    return report


@pytest.fixture(scope="session", autouse=True)
def left_open() -> Iterator[None]:
    """Find what tests have left open while a test can still fail for it.

    pytest looks for it after the last test as well, but a worker of xdist has told its results by then.
    """
    yield
    for _ in range(3):  # What one collection frees may have held something itself.
        gc.collect()

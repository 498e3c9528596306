"""Configures the test run: temporary files, hypothesis, a check for leaked resources, and three options.

The options rewrite the files that tests compare with. Read the difference before you commit it.
"""

import gc
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - mkdtemp makes private folders in it
ROOM_BYTES = 4 << 30
"""Some twenty data folders of 50 MB each exist at once; the rest is reserve."""


def keep_files_in_memory() -> None:
    """Keep the data of test servers in memory if the machine has enough of it.

    Such a test spends most of its time on creating and removing data folders. A killed process loses no more data in
    memory than on a disk, and no test cuts the power. TMPDIR overrides this.
    """
    if "TMPDIR" in os.environ or not os.access(SHARED_MEMORY, os.W_OK):
        return
    runs_programs = not os.statvfs(SHARED_MEMORY).f_flag & os.ST_NOEXEC
    if runs_programs and shutil.disk_usage(SHARED_MEMORY).free > ROOM_BYTES:
        os.environ["TMPDIR"] = str(SHARED_MEMORY)
        tempfile.tempdir = None


keep_files_in_memory()

# Properties are about results. The duration of one example depends on the load of the machine.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--rewrite-scenarios", action="store_true", help="write the traces of tests/scenarios/*.txt as they are now"
    )
    parser.addoption(
        "--rewrite-diagram", action="store_true", help="write the states of the failover core into ARCHITECTURE.md"
    )
    parser.addoption(
        "--counts", metavar="FILE", help="write into this file how many tests passed, failed, were skipped"
    )


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Count results for the summary of `make test`. A test whose setup or teardown fails counts as failed."""
    file = config.getoption("--counts")
    if file is None:
        return
    kinds = {"passed": ["passed"], "failed": ["failed", "error"], "skipped": ["skipped", "xfailed"]}
    counts = {kind: sum(len(terminalreporter.getreports(one)) for one in ones) for kind, ones in kinds.items()}
    Path(file).write_text(", ".join(f"{count} {kind}" for kind, count in counts.items()) + "\n")


HOMES = {"stack": ("integration",), "alone": ("regions",), "simulation": ("simulation", "infra/cli")}
"""The folders in which `make test` looks for tests with each mark."""


LONGEST = (
    "integration/test_deployment.py",
    "regions/test_failover_member.py",
    "regions/test_executor.py",
    "regions/test_replication_proxy.py",
    "services/region_agent/test_process.py",
    "services/read_api/test_pages.py",
    "services/api/test_client_texts.py",
)
"""The slowest files of `make test-servers`, slowest first. A worker runs a file at a time: if the slowest file began
last, the other workers would be idle until it ends."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Order the slowest files first. Fail for a test that no part of `make test` would run."""
    tests = Path(__file__).parent
    longest = {tests / name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: longest.get(item.path, len(longest)))
    for item in items:
        for mark, homes in HOMES.items():
            if item.get_closest_marker(mark) and not any(item.path.is_relative_to(tests / home) for home in homes):
                raise pytest.UsageError(f"{item.nodeid} is marked {mark}: `make test` looks for that in {homes} only")


@pytest.fixture(scope="session", autouse=True)
def left_open() -> Iterator[None]:
    """Find leaked resources while a test can still fail for them, which is not possible after the last result."""
    yield
    for _ in range(3):  # Objects that one collection frees may have held other objects.
        gc.collect()

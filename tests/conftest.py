"""Where tests keep their files, what hypothesis may mind, what no test may leave open, and three options.

The switches write anew what tests compare with; read the difference before you commit it.
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
"""Some twenty data folders at once, each 50 MB, and room."""


def keep_files_in_memory() -> None:
    """Let servers of tests keep their data in memory where the machine has room for it.

    Making and removing data folders is most of what such a test does; a process that is killed loses as little there
    as on a disk, and no test pulls the plug. Who sets TMPDIR decides.
    """
    if "TMPDIR" in os.environ or not os.access(SHARED_MEMORY, os.W_OK):
        return
    runs_programs = not os.statvfs(SHARED_MEMORY).f_flag & os.ST_NOEXEC
    if runs_programs and shutil.disk_usage(SHARED_MEMORY).free > ROOM_BYTES:
        os.environ["TMPDIR"] = str(SHARED_MEMORY)
        tempfile.tempdir = None


keep_files_in_memory()

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
    parser.addoption(
        "--counts", metavar="FILE", help="write into this file how many tests passed, failed, were skipped"
    )


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Count for the summary of `make test`. A test that cannot begin or end has failed."""
    file = config.getoption("--counts")
    if file is None:
        return
    kinds = {"passed": ["passed"], "failed": ["failed", "error"], "skipped": ["skipped", "xfailed"]}
    counts = {kind: sum(len(terminalreporter.getreports(one)) for one in ones) for kind, ones in kinds.items()}
    Path(file).write_text(", ".join(f"{count} {kind}" for kind, count in counts.items()) + "\n")


HOMES = {"stack": ("integration",), "alone": ("regions",), "simulation": ("simulation", "infra/cli")}
"""Where `make test` looks for what has such a mark."""


LONGEST = (
    "integration/test_deployment.py",
    "regions/test_failover_member.py",
    "regions/test_executor.py",
    "regions/test_replication_proxy.py",
    "services/region_agent/test_process.py",
    "services/read_api/test_pages.py",
    "services/api/test_client_texts.py",
)
"""The files of `make test-servers` that take longest, longest first. A worker takes a file at a time: whoever began the
longest one at the end would keep the others waiting."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the longest files; refuse a test that no part of `make test` would run."""
    tests = Path(__file__).parent
    longest = {tests / name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: longest.get(item.path, len(longest)))
    for item in items:
        for mark, homes in HOMES.items():
            if item.get_closest_marker(mark) and not any(item.path.is_relative_to(tests / home) for home in homes):
                raise pytest.UsageError(f"{item.nodeid} is marked {mark}: `make test` looks for that in {homes} only")


@pytest.fixture(scope="session", autouse=True)
def left_open() -> Iterator[None]:
    """Find what tests have left open while a test can still fail for it, and not after the last result was told."""
    yield
    for _ in range(3):  # What one collection frees may have held something itself.
        gc.collect()

"""The deployment that the tests of a session share, and folders for deployments of a test's own."""

import contextlib
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.child_processes import stopped_at_the_end
from tests.integration.stack import Stack, start_stack


@pytest.fixture(scope="session")
def data_folder() -> Iterator[Callable[[], Path]]:
    """Make data folders that are stopped and removed whatever a test does."""
    with contextlib.ExitStack() as made:

        def make() -> Path:
            # Not pytest's tmp_path: that lies in a folder of mode 0700, which sends PostgreSQL's data elsewhere
            # when everything runs as root; one test asks for just that, the others for the usual case.
            folder = Path(tempfile.mkdtemp(prefix="palaver-test-"))
            folder.chmod(0o711)
            made.enter_context(stopped_at_the_end(folder / "data"))
            return folder / "data"

        yield make


@pytest.fixture(scope="session")
def stack(data_folder: Callable[[], Path]) -> Stack:
    """Three regions, shared by all tests of the session."""
    return start_stack(data_folder())

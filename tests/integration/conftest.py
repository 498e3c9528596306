"""Starts the deployment that the tests of a session share, and makes data folders for other deployments."""

import contextlib
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.child_processes import stopped_at_the_end
from tests.integration.stack import Stack, start_stack


@pytest.fixture(scope="session")
def data_folder() -> Iterator[Callable[[], Path]]:
    """Make data folders; their deployments are stopped and the folders removed, also after a failed test."""
    with contextlib.ExitStack() as made:

        def make() -> Path:
            # Not pytest's tmp_path: its parent has mode 0700, so as root PostgreSQL's data would be placed elsewhere.
            # One test does that on purpose; the others use the usual case.
            folder = Path(tempfile.mkdtemp(prefix="palaver-test-"))
            folder.chmod(0o711)
            made.enter_context(stopped_at_the_end(folder / "data"))
            return folder / "data"

        yield make


@pytest.fixture(scope="session")
def stack(data_folder: Callable[[], Path]) -> Stack:
    """Three regions, shared by all tests of the session."""
    return start_stack(data_folder())

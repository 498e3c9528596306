"""Which tests stay together when `make test` runs them in two processes."""

from pathlib import Path

import pytest

ROOT = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Group tests by their folder, because tests of a folder share servers."""
    for item in items:
        folder = item.path.relative_to(ROOT).parts[0]
        item.add_marker(pytest.mark.xdist_group(folder))

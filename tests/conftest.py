"""The switches that write anew what tests compare with; read the difference before you commit it."""

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--rewrite-scenarios", action="store_true", help="write the traces of tests/scenarios/*.txt as they are now"
    )
    parser.addoption(
        "--rewrite-diagram", action="store_true", help="write the states of the failover core into ARCHITECTURE.md"
    )

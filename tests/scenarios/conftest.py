"""The switch that writes the traces of transcripts anew."""

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--rewrite-scenarios",
        action="store_true",
        help="write over tests/scenarios/*.txt the traces that they have now; read the difference before you commit",
    )

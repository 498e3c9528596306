"""Compares the generated part of a document, between two markers, with what the code generates."""

from pathlib import Path

import pytest


def assert_generated(request: pytest.FixtureRequest, document: Path, begin: str, end: str, content: str) -> None:
    """Assert that the document has ``content`` between its markers; with ``--rewrite-diagram`` write it there first."""
    text = document.read_text()
    head, found_begin, rest = text.partition(begin)
    _, found_end, tail = rest.partition(end)
    assert found_begin, f"{document.name}: the marker where the generated part begins is missing"
    assert found_end, f"{document.name}: the marker where the generated part ends is missing"
    wanted = head + begin + content + end + tail
    if request.config.getoption("--rewrite-diagram"):
        document.write_text(wanted)
    assert document.read_text() == wanted

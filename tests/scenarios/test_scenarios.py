"""Runs each transcript in this folder, and compares its trace with the one in the file."""

from pathlib import Path

import pytest

from tests.scenarios.runner import REFUSED, play

TRANSCRIPTS = sorted(Path(__file__).parent.glob("*.txt"))


@pytest.mark.parametrize("path", TRANSCRIPTS, ids=lambda path: path.stem)
def test_a_transcript_has_the_trace_that_it_states(path: Path, request: pytest.FixtureRequest) -> None:
    written = path.read_text()
    played, _ = play(written)
    if request.config.getoption("--rewrite-scenarios"):
        path.write_text(played)
    else:
        assert written.splitlines() == played.splitlines()
    assert REFUSED not in played

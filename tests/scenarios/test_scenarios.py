"""Each transcript in this folder has the trace that it says it has."""

from pathlib import Path

import pytest

from tests.scenarios.runner import REFUSED, play

TRANSCRIPTS = sorted(Path(__file__).parent.glob("*.txt"))


@pytest.mark.parametrize("path", TRANSCRIPTS, ids=lambda path: path.stem)
def test_transcript(path: Path, request: pytest.FixtureRequest) -> None:
    written = path.read_text()
    played, _ = play(written)
    if request.config.getoption("--rewrite-scenarios"):
        path.write_text(played)
    else:
        assert written.splitlines() == played.splitlines()
    assert REFUSED not in played

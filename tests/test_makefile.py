"""What `make test` runs, and how it ends. The programs that it calls are stand-ins that note their command lines."""

import os
import shlex
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TESTS = ("test-servers", "test-deployments", "test-simulation")
PARTS = ("check", *TESTS)


@pytest.fixture
def environment(tmp_path: Path) -> Path:
    """A virtual environment whose programs fail where `failing` has a word of their command line."""
    (tmp_path / "bin").mkdir()
    for name in ("ruff", "lint-imports", "pyright", "pytest"):
        program = tmp_path / "bin" / name
        program.write_text(
            "#!/bin/sh\n"
            f'line="{name} $*"\n'
            f'echo "$line" >> {shlex.quote(str(tmp_path / "calls"))}\n'
            "while read word; do case $line in *$word*) exit 1;; esac; done "
            f"< {shlex.quote(str(tmp_path / 'failing'))}\n"
        )
        program.chmod(0o755)
    (tmp_path / ".setup-done").touch()
    return tmp_path


def make_test(environment: Path, *failing: str) -> "subprocess.CompletedProcess[str]":
    (environment / "failing").write_text("".join(f"{word}\n" for word in failing))
    # This may run under `make test` itself, whose flags are not for another.
    own = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS")}
    command = ["make", "test", f"VENV={environment}", "PYTEST_FLAGS="]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=own, cwd=ROOT)


def calls(environment: Path) -> list[str]:
    return (environment / "calls").read_text().splitlines()


def ends(output: str) -> dict[str, str]:
    """How each part ended by the summary at the end."""
    words = [line.split() for line in output.splitlines()[-len(PARTS) :]]
    return {line[2]: line[3] for line in words}


def test_all_parts_pass_and_each_says_so(environment: Path) -> None:
    done = make_test(environment)
    assert done.returncode == 0, done.stderr
    assert ends(done.stdout) == dict.fromkeys(PARTS, "passed")
    assert sum(call.startswith("pytest") for call in calls(environment)) == len(TESTS)


@pytest.mark.parametrize(
    ("word", "part"),
    [
        ("format", "check"),
        ("pyright", "check"),
        ("lint-imports", "check"),
        ("loadfile", "test-servers"),
        ("tests/integration", "test-deployments"),
        ("tests/simulation", "test-simulation"),
    ],
)
def test_a_part_that_fails_stops_no_other_and_fails_the_whole(environment: Path, word: str, part: str) -> None:
    done = make_test(environment, word)
    assert done.returncode != 0
    assert ends(done.stdout) == {**dict.fromkeys(PARTS, "passed"), part: "FAILED"}
    assert f"failed: {part}\n" in done.stderr
    assert sum(call.startswith("pytest") for call in calls(environment)) == len(TESTS)


def test_all_that_fails_is_named(environment: Path) -> None:
    done = make_test(environment, "ruff", "pytest")
    assert done.returncode != 0
    assert ends(done.stdout) == dict.fromkeys(PARTS, "FAILED")

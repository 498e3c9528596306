"""Tests the parts, the summary and the exit status of `make test`. Stand-ins replace the programs that it calls."""

import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.waiting import eventually

ROOT = Path(__file__).parent.parent
TESTS = ("test-servers", "test-deployments", "test-simulation")
PARTS = ("check", *TESTS)
COUNTS = "7 passed, 0 failed, 2 skipped"
"""The counts that the stand-in of pytest reports."""


@pytest.fixture
def environment(tmp_path: Path) -> Path:
    """A virtual environment whose programs fail if their command line has a word of `failing`.

    Its pytest writes its counts to the file of `--counts` before it fails, unless `crashing` has a word of its command
    line.
    """
    (tmp_path / "bin").mkdir()
    for name in ("ruff", "lint-imports", "vulture", "deptry", "pyright", "pytest"):
        program = tmp_path / "bin" / name
        program.write_text(
            "#!/bin/sh\n"
            f"cd {shlex.quote(str(tmp_path))}\n"
            f'line="{name} $*"\n'
            'echo "$line" >> calls\n'
            "while read word; do case $line in *$word*) exit 2;; esac; done < crashing\n"
            f'for one; do case $one in --counts=*) echo "{COUNTS}" > "${{one#--counts=}}";; esac; done\n'
            "while read word; do case $line in *$word*) exit 1;; esac; done < failing\n"
        )
        program.chmod(0o755)
    (tmp_path / ".setup-done").touch()
    return tmp_path


def make_test(environment: Path, *failing: str, crashing: str = "nothing") -> "subprocess.CompletedProcess[str]":
    (environment / "failing").write_text("".join(f"{word}\n" for word in failing))
    (environment / "crashing").write_text(f"{crashing}\n")
    # This test may run under `make test`, whose flags must not reach the inner make.
    own = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS")}
    command = ["make", "test", f"VENV={environment}", "PYTEST_FLAGS="]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=own, cwd=ROOT)


def calls(environment: Path) -> list[str]:
    return (environment / "calls").read_text().splitlines()


LINE = re.compile(r"make test: (?P<part>\S+) (?P<how>\S+) after \d+ s(: (?P<counts>.+))?")


def last_lines(output: str) -> "list[re.Match[str]]":
    """Return the summary at the end: a line for each part, and one for all parts."""
    found = [LINE.fullmatch(line) for line in output.splitlines()[-len(PARTS) - 1 :]]
    return [line for line in found if line is not None]


def ends(output: str) -> dict[str, str]:
    """Return the result of each part in the summary."""
    return {line["part"]: line["how"] for line in last_lines(output) if line["part"] != "all"}


def counted(output: str) -> dict[str, str | None]:
    """Return the counts of each part in the summary."""
    return {line["part"]: line["counts"] for line in last_lines(output)}


def test_the_summary_reports_each_part_that_passed(environment: Path) -> None:
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
        ("vulture", "check"),
        ("deptry", "check"),
        ("loadfile", "test-servers"),
        ("tests/integration", "test-deployments"),
        ("tests/simulation", "test-simulation"),
    ],
)
def test_a_failed_part_fails_make_test_and_does_not_stop_the_other_parts(
    environment: Path, word: str, part: str
) -> None:
    done = make_test(environment, word)
    assert done.returncode != 0
    assert ends(done.stdout) == {**dict.fromkeys(PARTS, "passed"), part: "FAILED"}
    assert f"failed: {part}\n" in done.stderr
    assert sum(call.startswith("pytest") for call in calls(environment)) == len(TESTS)


def test_the_summary_names_each_failed_part(environment: Path) -> None:
    done = make_test(environment, "ruff", "pytest")
    assert done.returncode != 0
    assert ends(done.stdout) == dict.fromkeys(PARTS, "FAILED")


def test_the_summary_has_the_counts_of_each_part_of_tests(environment: Path) -> None:
    done = make_test(environment, "tests/simulation")
    assert counted(done.stdout) == {"check": None, **dict.fromkeys(TESTS, COUNTS), "all": None}


def test_a_crashed_part_does_not_report_the_counts_of_an_earlier_run(environment: Path) -> None:
    for part in TESTS:
        (environment / f"{part}.counts").write_text("1 passed, 0 failed, 0 skipped\n")
    done = make_test(environment, crashing="loadfile")
    assert counted(done.stdout)["test-servers"] is None
    assert counted(done.stdout)["test-simulation"] == COUNTS
    assert ends(done.stdout) == {**dict.fromkeys(PARTS, "passed"), "test-servers": "FAILED"}


def test_the_part_in_the_background_ends_with_make(environment: Path) -> None:
    program = environment / "bin" / "pytest"
    # Every part of tests stays until it is ended; one of them runs in the background.
    program.write_text(f"#!/bin/sh\necho $$ >> {shlex.quote(str(environment / 'running'))}\nexec sleep 600\n")
    (environment / "failing").write_text("nothing\n")
    (environment / "crashing").write_text("nothing\n")
    own = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS")}
    pairs = "PAIRS=test-servers/test-simulation"
    command = ["make", "test", f"VENV={environment}", "PYTEST_FLAGS=", pairs]
    make = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=own, cwd=ROOT, process_group=0)
    running = environment / "running"
    pids = [
        int(pid) for pid in eventually(lambda: _words(running), lambda words: len(words) == 2, what="both parts run")
    ]
    os.killpg(make.pid, signal.SIGTERM)
    make.wait()
    eventually(lambda: [state for state in map(_state, pids) if state], lambda left: not left, what="no part is left")


def _state(pid: int) -> str:
    """How a process runs, for the failure message; empty for one that has ended, reaped or not."""
    try:
        process = psutil.Process(pid)
        return "" if process.status() == psutil.STATUS_ZOMBIE else f"{pid} {process.status()} {process.cmdline()}"
    except psutil.NoSuchProcess:
        return ""


def _words(path: Path) -> list[str]:
    return path.read_text().split() if path.exists() else []


TESTS_OF_EACH_KIND = """
import pytest

def test_that_passes():
    pass

@pytest.mark.parametrize("number", range(2))
def test_that_fails(number):
    assert number is None

@pytest.fixture
def broken():
    raise RuntimeError

def test_that_cannot_begin(broken):
    pass

def test_that_is_skipped():
    pytest.skip("it lacks something")
"""


def test_pytest_counts_what_passed_failed_and_was_skipped(tmp_path: Path) -> None:
    (tmp_path / "test_kinds.py").write_text(TESTS_OF_EACH_KIND)
    options = ["-c", os.devnull, "--rootdir", str(tmp_path), "-p", "tests.conftest"]
    command = [sys.executable, "-m", "pytest", *options, "--counts=counts", "test_kinds.py"]
    own = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run(command, capture_output=True, check=False, env=own, cwd=tmp_path)
    assert (tmp_path / "counts").read_text() == "1 passed, 3 failed, 1 skipped\n"


def uv_system_certs(folder: Path, stores: str, **environment: str) -> str:
    """Return the UV_SYSTEM_CERTS with which `make setup` runs uv. Stand-ins replace uv and Python."""
    (folder / "bin").mkdir()
    for name in ("python", "uv"):
        found = shlex.quote(str(folder / f"{name}.certs"))
        (folder / "bin" / name).write_text(f'#!/bin/sh\necho "${{UV_SYSTEM_CERTS-unset}}" > {found}\n')
        (folder / "bin" / name).chmod(0o755)
    own = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS", "UV_"))}
    command = ["make", "setup", f"VENV={folder}", f"SYSTEM_CERTS={stores}"]
    subprocess.run(command, capture_output=True, text=True, check=True, env=own | environment, cwd=ROOT)
    return (folder / "uv.certs").read_text().strip()


def test_setup_makes_uv_use_the_certificates_of_the_system_if_there_are_any(tmp_path: Path) -> None:
    store = tmp_path / "certificates.pem"
    store.touch()
    cases: list[tuple[str, dict[str, str], str]] = [
        (str(store), {}, "true"),
        (f"{tmp_path}/none.pem", {}, "unset"),
        (str(store), {"UV_SYSTEM_CERTS": "false"}, "false"),
    ]
    for number, (stores, environment, found) in enumerate(cases):
        folder = tmp_path / str(number)
        folder.mkdir()
        assert uv_system_certs(folder, stores, **environment) == found

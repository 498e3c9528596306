"""Tests the regions' shiftable wall clocks: setting them, the processes that use them, and the errors without them."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from infra.supervisor.clocks import (
    ClocksMissing,
    clock_environment,
    clocked_programs,
    create_clocks,
    find_library,
    have_clocks,
    set_clock,
)
from infra.supervisor.layout import Layout
from infra.supervisor.plan import Plan

PLAN = Plan(deployment="d", regions=("east", "west", "south"))


def is_installed() -> bool:
    try:
        find_library()
    except ClocksMissing:
        return False
    return True


needs_libfaketime = pytest.mark.skipif(not is_installed(), reason="libfaketime is not installed")


def test_a_missing_library_is_an_error_that_names_the_package(tmp_path: Path) -> None:
    with pytest.raises(ClocksMissing, match=r"^wall clocks cannot be shifted: .* install the package libfaketime$"):
        find_library([tmp_path])


def test_the_library_is_found_in_the_folders_of_each_system(tmp_path: Path) -> None:
    path = tmp_path / "x86_64-linux-gnu" / "faketime" / "libfaketime.so.1"
    path.parent.mkdir(parents=True)
    path.touch()
    assert find_library([tmp_path]) == path


def test_a_deployment_started_without_clocks_cannot_shift_them(tmp_path: Path) -> None:
    layout = Layout(data=tmp_path)
    assert not have_clocks(layout)
    assert clock_environment(layout, "east") == {}


@needs_libfaketime
def test_a_process_uses_the_clock_of_its_region(tmp_path: Path) -> None:
    layout = made(tmp_path)
    set_clock(layout, "east", 3600)
    program = [sys.executable, "-c", "import time; print(time.time(), time.monotonic(), time.clock_gettime(7))"]
    for region, off in (("east", 3600), ("west", 0)):
        before = time.time(), time.monotonic(), time.clock_gettime(time.CLOCK_BOOTTIME)
        done = subprocess.run(
            program, env=os.environ | clock_environment(layout, region), check=True, capture_output=True, text=True
        )
        wall, monotonic, boot = (float(text) for text in done.stdout.split())
        assert wall - before[0] == pytest.approx(off, abs=60)
        # Deadlines use the monotonic clocks (rule 16), so these must not be shifted.
        assert monotonic - before[1] == pytest.approx(0, abs=60)
        assert boot - before[2] == pytest.approx(0, abs=60)


@needs_libfaketime
def test_only_postgres_is_wrapped_to_use_the_clock_of_its_region(tmp_path: Path) -> None:
    layout = made(tmp_path)
    set_clock(layout, "south", -3600)
    programs = clocked_programs(layout, "south")
    done = subprocess.run([programs / "postgres", "+%s"], check=True, capture_output=True, text=True)
    assert float(done.stdout) - time.time() == pytest.approx(-3600, abs=60)
    assert (programs / "initdb").resolve() == tmp_path / "bin" / "initdb"


def made(tmp_path: Path) -> Layout:
    """Make clocks for three regions, with `date` in place of PostgreSQL."""
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "postgres").write_text('#!/bin/sh\nexec date "$@"\n')
    (programs / "postgres").chmod(0o755)
    (programs / "initdb").touch()
    layout = Layout(data=tmp_path / "data")
    for _ in range(2):
        create_clocks(layout, PLAN, postgres_bin=programs, runs_as=None)
    return layout


@needs_libfaketime
def test_a_running_process_uses_a_changed_clock_after_the_cache_time(tmp_path: Path) -> None:
    layout = made(tmp_path)
    # The program does not sleep, because libfaketime changes some sleeps too.
    program = """
import time
began = time.time() - time.monotonic()
print(flush=True)
while time.time() - time.monotonic() < began + 1800:
    pass
"""
    environment = os.environ | clock_environment(layout, "east")
    with subprocess.Popen([sys.executable, "-c", program], env=environment, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            process.stdout.readline()
            set_clock(layout, "east", 3600)
            assert process.wait(timeout=20) == 0
        finally:
            process.kill()

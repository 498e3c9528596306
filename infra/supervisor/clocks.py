"""Gives each region a wall clock that drills can shift, if the deployment was started with `palaver up --clocks`.

Decides how a process gets another wall clock: it preloads libfaketime, which adds the offset in a file of the region to
the kernel's time. Monotonic clocks are not shifted, as when an administrator sets the real clock. This works only for
programs that take the time from the C library: our own processes, PostgreSQL and Redis. etcd is written in Go, and
Envoy does not get the library.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from pathlib import Path

from infra.servers.unprivileged import Account, reachable
from infra.supervisor.errors import DeploymentError
from infra.supervisor.layout import Layout
from infra.supervisor.plan import Plan

FOLDERS = tuple(Path(folder) for folder in ("/usr/lib", "/usr/lib64", "/usr/local/lib"))
LIBRARY = "faketime/libfaketime.so.1"

OFFSET_CACHE_S = 1
"""How long a process uses an offset before it reads the file again, in whole seconds."""


class ClocksMissing(DeploymentError):
    """The clocks of regions cannot be shifted; the message names what is missing."""


def find_library(folders: Sequence[Path] = FOLDERS) -> Path:
    """Return libfaketime.

    Raises:
        ClocksMissing: It is not installed.
    """
    for folder in folders:
        for path in (folder / LIBRARY, *sorted(folder.glob(f"*-linux-*/{LIBRARY}"))):
            if path.is_file():
                return path
    raise ClocksMissing("wall clocks cannot be shifted: libfaketime is missing; install the package libfaketime")


def clocks_can_be_had() -> bool:
    """Whether a deployment with shiftable clocks can be started here: libfaketime is installed."""
    try:
        find_library()
    except ClocksMissing:
        return False
    return True


def why_no_clocks() -> str:
    """Return why clocks cannot be shifted in a deployment started without `--clocks`, and what to do."""
    try:
        find_library()
    except ClocksMissing as error:
        return str(error)
    return "wall clocks cannot be shifted: start the deployment with `palaver up --clocks`"


def have_clocks(layout: Layout) -> bool:
    """Whether the regions of a deployment have shiftable clocks."""
    return layout.clocks.is_dir()


def create_clocks(layout: Layout, plan: Plan, *, postgres_bin: Path, runs_as: Account | None) -> None:
    """Give each region a clock with offset 0, and a folder of PostgreSQL programs that use this clock. Idempotent.

    Raises:
        ClocksMissing: libfaketime is not installed, or PostgreSQL's account cannot enter the folder.
    """
    library = find_library()
    for region in plan.all_regions:
        programs = clocked_programs(layout, region)
        programs.mkdir(parents=True, exist_ok=True)
        for folder in (layout.clocks, programs.parent, programs):
            folder.chmod(0o755)
        if not reachable(programs, runs_as):
            assert runs_as is not None, "without an account every folder is reachable"
            raise ClocksMissing(
                f"wall clocks cannot be shifted: account {runs_as.name} cannot enter {layout.clocks}; "
                "use a --data that everybody can enter"
            )
        set_clock(layout, region, 0.0)
        for program in postgres_bin.iterdir():
            link = programs / program.name
            link.unlink(missing_ok=True)
            if program.name == "postgres":
                variables = " ".join(
                    f"{name}={shlex.quote(text)}" for name, text in _variables(library, layout, region)
                )
                link.write_text(f'#!/bin/sh\nexport {variables}\nexec {shlex.quote(str(program))} "$@"\n')
                link.chmod(0o755)
            else:
                link.symlink_to(program)


def clocked_programs(layout: Layout, region: str) -> Path:
    """Return the folder of PostgreSQL programs that use the clock of a region."""
    return layout.clocks / region / "bin"


def clock_environment(layout: Layout, region: str) -> dict[str, str]:
    """Return the environment variables with which a process uses the clock of its region.

    Returns:
        An empty dictionary if the deployment has no shiftable clocks.

    Raises:
        ClocksMissing: libfaketime was removed since the clocks were made.
    """
    return dict(_variables(find_library(), layout, region)) if have_clocks(layout) else {}


def set_clock(layout: Layout, region: str, offset_s: float) -> None:
    """Shift the wall clock of a region by `offset_s` seconds; 0 removes the shift."""
    path = _offset(layout, region)
    temporary = path.with_suffix(".new")
    temporary.write_text(f"{offset_s:+.6f}\n")
    temporary.chmod(0o644)
    temporary.replace(path)


def _offset(layout: Layout, region: str) -> Path:
    return layout.clocks / region / "offset"


def _variables(library: Path, layout: Layout, region: str) -> list[tuple[str, str]]:
    return [
        ("LD_PRELOAD", os.fspath(library)),
        ("FAKETIME_TIMESTAMP_FILE", os.fspath(_offset(layout, region))),
        # libfaketime allocates memory when it reads the file, and PostgreSQL reads the time in its handler of SIGALRM.
        # If every call read the file, backends would abort (measured: within 40 ms if every statement times out).
        ("FAKETIME_CACHE_DURATION", str(OFFSET_CACHE_S)),
        ("FAKETIME_DONT_FAKE_MONOTONIC", "1"),
        # With libfaketime's default, waits for a condition time out too early, and Python threads starve each other.
        ("FAKETIME_FORCE_MONOTONIC_FIX", "0"),
        ("NO_FAKE_STAT", "1"),
    ]

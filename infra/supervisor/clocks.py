"""The wall clocks of regions, where a deployment was started so that they can be set (`palaver up --clocks`).

Decides how a process is given another wall clock: libfaketime is loaded before it and adds the offset in a file of its
region to what the kernel says. Monotonic clocks stay as they are, as when somebody sets the real one. Only what takes
its time from the C library is reached: our own processes, PostgreSQL and Redis; etcd is written in Go and Envoy is left
alone.
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

READ_AGAIN_S = 1
"""How long a process goes by what it has read of its clock, whole seconds."""


class ClocksMissing(DeploymentError):
    """The clocks of regions cannot be set; the line says what is missing."""


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
    """Whether a deployment can be started so that its clocks can be set."""
    try:
        find_library()
    except ClocksMissing:
        return False
    return True


def why_no_clocks() -> str:
    """Return why the clocks of a deployment that has none of its own cannot be set, and what helps."""
    try:
        find_library()
    except ClocksMissing as error:
        return str(error)
    return "wall clocks cannot be shifted: start the deployment with `palaver up --clocks`"


def have_clocks(layout: Layout) -> bool:
    """Whether the regions of a deployment have clocks of their own."""
    return layout.clocks.is_dir()


def create_clocks(layout: Layout, plan: Plan, *, postgres_bin: Path, runs_as: Account | None) -> None:
    """Give each region a clock that is right, and PostgreSQL programs that go by it. Idempotent.

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
            assert runs_as is not None, "what is reachable for nobody is asked for an account"
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
    """Return the folder of PostgreSQL programs that go by the clock of a region."""
    return layout.clocks / region / "bin"


def clock_environment(layout: Layout, region: str) -> dict[str, str]:
    """Return what makes a process go by the clock of its region; nothing where there are no such clocks.

    Raises:
        ClocksMissing: libfaketime is not installed any more.
    """
    return dict(_variables(find_library(), layout, region)) if have_clocks(layout) else {}


def set_clock(layout: Layout, region: str, offset_s: float) -> None:
    """Make the wall clock of a region wrong by so much from now on; 0 sets it right."""
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
        # Reading the file allocates memory, and PostgreSQL asks for the time in its handler of SIGALRM: read each time,
        # that ends a backend now and then (abort within 40 ms where every statement times out).
        ("FAKETIME_CACHE_DURATION", str(READ_AGAIN_S)),
        ("FAKETIME_DONT_FAKE_MONOTONIC", "1"),
        # Its own choice makes waits for a condition time out too early: threads of Python starve each other.
        ("FAKETIME_FORCE_MONOTONIC_FIX", "0"),
        ("NO_FAKE_STAT", "1"),
    ]

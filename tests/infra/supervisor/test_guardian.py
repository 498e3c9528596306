"""Tests that the guardian ends the processes of a dead supervisor, and none of a running one."""

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from infra.supervisor import lock
from infra.supervisor.errors import AlreadyRunning
from infra.supervisor.layout import Layout, create_folders, open_layout
from infra.supervisor.lock import GUARDIAN, SUPERVISOR, owned_lock
from infra.supervisor.plan import Plan, dump_plan
from infra.supervisor.records import DEPLOYMENT_VARIABLE

PLAN = Plan(deployment="guarded", regions=("a", "b", "c"), view_regions=(), port_base=20_000)
WAIT_S = 20.0


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    made = open_layout(tmp_path / "data")
    create_folders(made, PLAN.all_regions)
    made.plan.write_bytes(dump_plan(PLAN))
    return made


@pytest.fixture
def orphan() -> Iterator["subprocess.Popen[bytes]"]:
    process = subprocess.Popen(["sleep", "60"], env=os.environ | {DEPLOYMENT_VARIABLE: PLAN.deployment})
    yield process
    process.kill()
    process.wait()


@pytest.fixture
def guardian(layout: Layout) -> Iterator["subprocess.Popen[bytes]"]:
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "infra.supervisor.guardian", str(layout.data)], stdin=subprocess.PIPE
    )
    yield process
    process.kill()
    process.communicate()


def close_pipe(guardian: "subprocess.Popen[bytes]") -> None:
    assert guardian.stdin is not None
    guardian.stdin.close()


def has_open(pid: int, path: Path) -> bool:
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # The guardian closes other files meanwhile.
            if entry.readlink() == path:
                return True
    return False


def until_it_asks_for(layout: Layout, guardian: "subprocess.Popen[bytes]") -> None:
    """Wait until the guardian has the lock's file open."""
    deadline = time.monotonic() + WAIT_S
    while not has_open(guardian.pid, layout.lock):
        assert time.monotonic() < deadline
        assert guardian.poll() is None, "it has given up"
        time.sleep(0.01)


def test_a_guardian_waits_for_the_lock_of_a_dying_supervisor(
    layout: Layout, orphan: "subprocess.Popen[bytes]", guardian: "subprocess.Popen[bytes]"
) -> None:
    with owned_lock(layout, SUPERVISOR):
        close_pipe(guardian)
        until_it_asks_for(layout, guardian)
        assert orphan.poll() is None, "nothing is ended before the owner is gone"
    assert guardian.wait(WAIT_S) == 0
    assert orphan.wait(WAIT_S) != 0


def test_a_guardian_ends_nothing_after_a_normal_stop(
    orphan: "subprocess.Popen[bytes]", guardian: "subprocess.Popen[bytes]"
) -> None:
    guardian.communicate(b"!", timeout=WAIT_S)
    assert guardian.returncode == 0
    assert orphan.poll() is None


def test_a_guardian_gives_way_to_a_new_supervisor(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(lock.PATIENCE_S, GUARDIAN, 0.0)
    with owned_lock(layout, SUPERVISOR), pytest.raises(AlreadyRunning), owned_lock(layout, GUARDIAN):
        pass

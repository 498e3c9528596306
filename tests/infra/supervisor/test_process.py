"""Tests one supervised process, with real child processes."""

import asyncio
import signal
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from infra.supervisor.errors import StartFailed
from infra.supervisor.process import ManagedProcess, ProcessSpec, base_environment


def spec(tmp_path: Path, code: str, **changes: Any) -> ProcessSpec:
    marker = tmp_path / "ready"

    async def ready() -> str | None:
        return None if marker.exists() else "no marker yet"

    given: dict[str, Any] = {
        "region": "us-east",
        "process": "sample",
        "argv": (sys.executable, "-c", f"marker = {str(marker)!r}\n{code}"),
        "env": base_environment(),
        "log": tmp_path / "sample.log",
        "ready": ready,
    }
    return ProcessSpec(**(given | changes))


RUNS = "open(marker, 'w').close()\nimport time\ntime.sleep(60)"
STUBBORN = "import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n" + RUNS


async def started(managed: ManagedProcess) -> asyncio.Task[None]:
    task = asyncio.create_task(managed.run([]))
    async with asyncio.timeout(20):
        await managed.is_ready.wait()
    return task


async def test_a_killed_process_is_started_again(tmp_path: Path) -> None:
    came_back = asyncio.Event()

    def watch() -> None:
        if managed.restarts and managed.is_ready.is_set():
            came_back.set()

    managed = ManagedProcess(spec=spec(tmp_path, RUNS), on_change=watch)
    task = await started(managed)
    first = managed.pid
    managed.kill_now()
    async with asyncio.timeout(20):
        await came_back.wait()
    assert managed.pid not in (None, first)
    assert managed.last_exit == "signal SIGKILL"
    await managed.stop()
    await task


async def test_a_stopped_process_stays_stopped(tmp_path: Path) -> None:
    managed = ManagedProcess(spec=spec(tmp_path, RUNS), on_change=lambda: None)
    task = await started(managed)
    await managed.stop()
    await task
    assert managed.pid is None
    assert managed.restarts == 0


async def test_a_process_that_ignores_the_stop_signal_is_killed_after_its_timeout(tmp_path: Path) -> None:
    managed = ManagedProcess(spec=spec(tmp_path, STUBBORN, stop_timeout_s=0.2), on_change=lambda: None)
    task = await started(managed)
    process = psutil.Process(managed.pid)
    await managed.stop()
    await task
    assert not process.is_running()


async def test_a_paused_process_can_be_stopped(tmp_path: Path) -> None:
    managed = ManagedProcess(spec=spec(tmp_path, RUNS), on_change=lambda: None)
    task = await started(managed)
    psutil.Process(managed.pid).send_signal(signal.SIGSTOP)
    await managed.stop()
    await task
    assert managed.pid is None


async def test_a_killed_process_is_killed_with_its_descendants(tmp_path: Path) -> None:
    code = "import subprocess, sys\nsubprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n" + RUNS
    managed = ManagedProcess(spec=spec(tmp_path, code), on_change=lambda: None)
    task = await started(managed)
    family = managed.members()
    assert len(family) == 2
    managed.forget()
    managed.kill_now()
    await task
    _, alive = psutil.wait_procs(family, timeout=10)
    assert alive == []


async def test_a_missing_program_fails_the_start_with_a_reason(tmp_path: Path) -> None:
    managed = ManagedProcess(spec=spec(tmp_path, RUNS, argv=("/nowhere/server",)), on_change=lambda: None)
    with pytest.raises(StartFailed, match=r"us-east/sample cannot be started.*nowhere"):
        await managed.run([])


async def test_a_process_starts_after_the_processes_that_it_needs(tmp_path: Path) -> None:
    needed = ManagedProcess(spec=spec(tmp_path, RUNS, process="needed"), on_change=lambda: None)
    managed = ManagedProcess(spec=spec(tmp_path, RUNS), on_change=lambda: None)
    task = asyncio.create_task(managed.run([needed]))
    # A process that needs no other and is started later is ready first.
    other = ManagedProcess(spec=spec(tmp_path, RUNS, process="other"), on_change=lambda: None)
    others = await started(other)
    assert managed.pid is None
    needed.is_ready.set()
    async with asyncio.timeout(20):
        await managed.is_ready.wait()
    for one in (managed, other):
        await one.stop()
    await asyncio.gather(task, others)

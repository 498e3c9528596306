"""Records the processes that a deployment has started, and ends exactly these after a crash of the supervisor.

A record has the pid and the result of `birth_of`, because the kernel reuses pids (``regions.process_identity``).
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import orjson
import psutil

from regions.process_identity import ProcessIdentity, works_in

if TYPE_CHECKING:
    from infra.supervisor.layout import Layout

DEPLOYMENT_VARIABLE = "PALAVER_DEPLOYMENT"  # in the environment of every process that the supervisor starts
GRACE_S = 5.0  # between SIGTERM and SIGKILL for orphans; PostgreSQL's fast shutdown takes about one second


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessRecord:
    """One started process.

    Attributes:
        name: `region/process` or `process`.
        pid: Process id.
        born: The result of `birth_of` for it.
    """

    name: str
    pid: int
    born: str


def birth_of(pid: int) -> str | None:
    """Return boot id and start time of a process, zombies included, as text; None if there is no such process."""
    identity = ProcessIdentity.of(pid, ended=True)
    return None if identity is None else f"{identity.boot_id}:{identity.started_ticks}"


def record_of(name: str, pid: int) -> ProcessRecord | None:
    """Return the record of a running process, or None if it has ended already."""
    born = birth_of(pid)
    return None if born is None else ProcessRecord(name=name, pid=pid, born=born)


def write_records(path: Path, records: list[ProcessRecord]) -> None:
    """Store all records, by an atomic replacement of the file."""
    temporary = path.with_name(f".{path.name}")
    temporary.write_bytes(
        orjson.dumps([{"name": entry.name, "pid": entry.pid, "born": entry.born} for entry in records])
    )
    temporary.replace(path)


def read_records(path: Path) -> list[ProcessRecord]:
    """Return the stored records; empty if the file is missing or incomplete."""
    try:
        return [ProcessRecord(**entry) for entry in orjson.loads(path.read_bytes())]
    except (FileNotFoundError, orjson.JSONDecodeError, TypeError):
        return []


def postmaster(pid_file: Path) -> psutil.Process | None:
    """Return the running postmaster that a `postmaster.pid` names, or None.

    The file remains after a postmaster was killed, so the process must also have this folder as its working directory.
    """
    try:
        pid = int(pid_file.read_text().splitlines()[0])
        process = psutil.Process(pid)
        fits = works_in(pid, pid_file.parent.resolve()) and process.name().startswith("postgres")
        return process if fits and process.status() != psutil.STATUS_ZOMBIE else None
    except (OSError, ValueError, IndexError, psutil.Error):
        return None


def working_in(folder: Path) -> list[psutil.Process]:
    """Return every process whose working directory is `folder`; PostgreSQL's programs run in their data folder.

    This finds processes that no pid file names: a postmaster that has not written its pid file yet, a running base
    backup, and backends that were suspended when their postmaster was killed.
    """
    found: list[psutil.Process] = []
    target = folder.resolve()
    for pid in psutil.pids():
        if works_in(pid, target):
            with contextlib.suppress(psutil.NoSuchProcess):
                found.append(psutil.Process(pid))
    return found


def family(*ancestors: psutil.Process) -> list[psutil.Process]:
    """Return the processes and all their descendants, also those in other sessions, as PostgreSQL's backends are.

    It lists the processes of the machine once, whatever the number of ancestors, because it blocks the caller's event
    loop.
    """
    # A cached entry of an ended process with the same pid would hide the running one.
    psutil.process_iter.cache_clear()
    children: defaultdict[int, list[psutil.Process]] = defaultdict(list)
    for process in psutil.process_iter(["ppid"]):
        children[process.info["ppid"]].append(process)
    found: dict[int, psutil.Process] = {}
    waiting = [process for process in ancestors if process.is_running()]
    while waiting:
        process = waiting.pop(0)
        if process.pid not in found:
            found[process.pid] = process
            waiting += children[process.pid]
    return list(found.values())


def send(process: psutil.Process, number: signal.Signals) -> None:
    """Send a signal; do nothing if the process has ended."""
    with contextlib.suppress(psutil.NoSuchProcess):
        process.send_signal(number)


def living(layout: Layout, deployment: str, regions: tuple[str, ...]) -> list[tuple[str, psutil.Process]]:
    """Return the name and process of every running process of a deployment.

    There are three sources, because each misses some: the records miss a process whose supervisor crashed between its
    start and its record; the environment misses Redis, which overwrites it; the working directory finds the PostgreSQL
    that an agent started.
    """
    found: dict[int, tuple[str, psutil.Process]] = {}
    for record in read_records(layout.records):
        with contextlib.suppress(psutil.Error):
            process = psutil.Process(record.pid)
            if birth_of(record.pid) == record.born and process.status() != psutil.STATUS_ZOMBIE:
                found[record.pid] = (record.name, process)
    marker = f"{DEPLOYMENT_VARIABLE}={deployment}".encode()
    for process in psutil.process_iter():
        if process.pid not in found and process.pid != os.getpid() and _carries(process.pid, marker):
            found[process.pid] = (f"process {process.pid}", process)
    for region in regions:
        for member in ("ledger", "view"):
            for process in working_in(layout.postmaster_pid(region, member).parent):
                found[process.pid] = (f"{region}/{member}", process)
    found.pop(os.getpid(), None)
    return list(found.values())


def _carries(pid: int, marker: bytes) -> bool:
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:  # noqa: PTH123 - a file of the kernel
            return marker in file.read().split(b"\0")
    except OSError:
        return False


def end_living(layout: Layout, deployment: str, regions: tuple[str, ...]) -> list[str]:
    """End every running process of a deployment: by a signal to shut down, after GRACE_S by SIGKILL.

    Returns:
        Their names, for the log.
    """
    targets = living(layout, deployment, regions)
    for name, process in targets:
        # SIGINT is PostgreSQL's fast shutdown; with SIGTERM it would wait until all clients have disconnected.
        is_postgres = name.endswith(("/ledger", "/view"))
        send(process, signal.SIGINT if is_postgres else signal.SIGTERM)
        send(process, signal.SIGCONT)
    processes = [process for _, process in targets]
    _, left = psutil.wait_procs(processes, timeout=GRACE_S)
    for member in family(*left):
        send(member, signal.SIGKILL)
    psutil.wait_procs(left, timeout=GRACE_S)
    return [name for name, _ in targets]

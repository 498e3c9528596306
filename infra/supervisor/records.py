"""Records the processes that a deployment has started, and ends exactly those after a crash of their owner.

A record has the pid and what `birth_of` returns, because the kernel reuses pids (``regions.process_identity``).
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
GRACE_S = 5.0  # between SIGTERM and SIGKILL for orphans; PostgreSQL's fast shutdown takes about one


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessRecord:
    """One started process.

    Attributes:
        name: `region/process` or `process`.
        pid: Process id.
        born: What `birth_of` returned for it.
    """

    name: str
    pid: int
    born: str


def birth_of(pid: int) -> str | None:
    """Return boot id and start time of a process, zombies included, as text; None if there is no such process."""
    identity = ProcessIdentity.of(pid, ended=True)
    return None if identity is None else f"{identity.boot_id}:{identity.started_ticks}"


def record_of(name: str, pid: int) -> ProcessRecord | None:
    """Name a living process, or None when it is gone already."""
    born = birth_of(pid)
    return None if born is None else ProcessRecord(name=name, pid=pid, born=born)


def write_records(path: Path, records: list[ProcessRecord]) -> None:
    """Store the records whole."""
    temporary = path.with_name(f".{path.name}")
    temporary.write_bytes(
        orjson.dumps([{"name": entry.name, "pid": entry.pid, "born": entry.born} for entry in records])
    )
    temporary.replace(path)


def read_records(path: Path) -> list[ProcessRecord]:
    """The stored records; none where there is no file or only half of one."""
    try:
        return [ProcessRecord(**entry) for entry in orjson.loads(path.read_bytes())]
    except (FileNotFoundError, orjson.JSONDecodeError, TypeError):
        return []


def postmaster(pid_file: Path) -> psutil.Process | None:
    """The living postmaster that a `postmaster.pid` names, or None.

    The file outlives a killed postmaster, so the process has to work in that folder as well.
    """
    try:
        pid = int(pid_file.read_text().splitlines()[0])
        process = psutil.Process(pid)
        fits = works_in(pid, pid_file.parent.resolve()) and process.name().startswith("postgres")
        return process if fits and process.status() != psutil.STATUS_ZOMBIE else None
    except (OSError, ValueError, IndexError, psutil.Error):
        return None


def working_in(folder: Path) -> list[psutil.Process]:
    """Every process whose working folder this is: PostgreSQL and its programs work in their data folder.

    It finds what no pid file names: a postmaster that has not written its own yet, a base backup under way,
    and backends that were frozen when their postmaster was killed.
    """
    found: list[psutil.Process] = []
    target = folder.resolve()
    for pid in psutil.pids():
        if works_in(pid, target):
            with contextlib.suppress(psutil.NoSuchProcess):
                found.append(psutil.Process(pid))
    return found


def family(*ancestors: psutil.Process) -> list[psutil.Process]:
    """The processes and all their descendants; backends of PostgreSQL have sessions of their own.

    One pass over the processes of the machine, however many ancestors: it blocks the loop of its caller.
    """
    # A cached entry of another process with the same pid would hide the one that lives.
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
    """Send a signal; a process that is gone has got what it wanted."""
    with contextlib.suppress(psutil.NoSuchProcess):
        process.send_signal(number)


def living(layout: Layout, deployment: str, regions: tuple[str, ...]) -> list[tuple[str, psutil.Process]]:
    """Every living process of a deployment, however it came to be without an owner.

    Three sources, each covering a hole of the others: the records (Redis overwrites its environment), the
    environment (a crash between start and record) and the folders of PostgreSQL (started by an agent).
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
        with open(f"/proc/{pid}/environ", "rb") as file:  # noqa: PTH123 - not a path of the user's
            return marker in file.read().split(b"\0")
    except OSError:
        return False


def end_living(layout: Layout, deployment: str, regions: tuple[str, ...]) -> list[str]:
    """End every living process of a deployment: asked first, killed after a grace period.

    Returns:
        Their names, for the log.
    """
    targets = living(layout, deployment, regions)
    for name, process in targets:
        # SIGINT is PostgreSQL's fast shutdown; its SIGTERM would wait for all clients to leave.
        is_postgres = name.endswith(("/ledger", "/view"))
        send(process, signal.SIGINT if is_postgres else signal.SIGTERM)
        send(process, signal.SIGCONT)
    processes = [process for _, process in targets]
    _, left = psutil.wait_procs(processes, timeout=GRACE_S)
    for member in family(*left):
        send(member, signal.SIGKILL)
    psutil.wait_procs(left, timeout=GRACE_S)
    return [name for name, _ in targets]

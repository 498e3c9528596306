"""Owns every process of a deployment: starts, probes, restarts and stops them, and injects faults into them.

`run` starts each process as a task of one TaskGroup, and stops all processes in order whatever ends it. If the
supervisor is killed (kill -9), `guardian.py` ends the processes that remain; if the guardian is killed as well, the
next start does.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import httpx
import orjson
import psutil

from infra.servers.resolver import ServerBinary, ServerName
from infra.supervisor.clocks import have_clocks, set_clock
from infra.supervisor.environment import DeploymentContext
from infra.supervisor.errors import DeploymentError, OrderRefused, StartFailed, UnknownTarget
from infra.supervisor.network import relay_spec
from infra.supervisor.order_journal import note_order, read_orders
from infra.supervisor.orders import give_order, read_history
from infra.supervisor.process import ManagedProcess, ProcessSpec
from infra.supervisor.records import family, postmaster, send, working_in, write_records
from infra.supervisor.region import PROCESS_NAMES, STOP_ORDER, region_specs
from infra.supervisor.status import ask_faults, ask_region, cell_document, region_document, scrape_targets
from regions.plain_http import PlainTransport

log = logging.getLogger("infra.supervisor")

READY_TIMEOUT_S = 120.0
READY_POLL_S = 0.1
START_DEATHS_MAX = 6  # deaths of one process before the first readiness that make a start fail
KILL_WAIT_S = 5.0


class Supervisor:
    """Runs one deployment.

    Args:
        context: Plan, secrets and folders.
        servers: The binaries to run.
    """

    def __init__(self, context: DeploymentContext, servers: Mapping[ServerName, ServerBinary]) -> None:
        self.context = context
        self.plan = context.plan
        self._servers = servers
        self._on_progress: Callable[[], None] = lambda: None
        self.processes: dict[str, ManagedProcess] = {}
        self.region_states: dict[str, str] = {}
        self.stop_asked = asyncio.Event()
        self.all_ready = asyncio.Event()
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._group: asyncio.TaskGroup | None = None
        # All requests go to loopback, so no proxy is used.
        self._client = httpx.AsyncClient(transport=PlainTransport(), trust_env=False)
        self._stopping = False
        self._paused: set[str] = set()  # regions in which a fault has suspended a process
        self._region_locks = {region: asyncio.Lock() for region in context.plan.all_regions}

    def watch(self, on_progress: Callable[[], None]) -> None:
        """Register a function that is called after every change of a process, such as a progress display."""
        self._on_progress = on_progress

    async def run(self) -> None:
        """Start all processes, supervise them until `stop_asked` is set, and stop them.

        Raises:
            StartFailed: The deployment did not become ready; all its processes have been stopped.
        """
        try:
            async with asyncio.TaskGroup() as group:
                self._group = group
                guardian = await self._start_guardian()
                try:
                    self._launch([relay_spec(self.context)])
                    for region in self.plan.all_regions:
                        self._launch_region(region)
                    await self._wait_until_ready_or_stopped()
                    await self.stop_asked.wait()
                finally:
                    await self._stop_everything()
                    await self._dismiss_guardian(guardian)
        except BaseExceptionGroup as group:
            refusals, others = group.split(DeploymentError)
            if refusals is None:
                raise
            if others is not None:
                log.exception("more went wrong while everything was stopped", exc_info=others)
            raise first_of(refusals) from None
        finally:
            await self._client.aclose()

    async def _start_guardian(self) -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(
            sys.executable, "-P", "-m", "infra.supervisor.guardian", str(self.context.layout.data),
            stdin=asyncio.subprocess.PIPE, start_new_session=True,
        )  # fmt: skip

    @staticmethod
    async def _dismiss_guardian(guardian: asyncio.subprocess.Process) -> None:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            await guardian.communicate(b"!")

    def _launch_region(self, region: str) -> None:
        self.region_states[region] = "running"
        self._launch(region_specs(self.context, self._servers, region))

    def _launch(self, specs: list[ProcessSpec]) -> None:
        assert self._group is not None, "processes are started inside run()"
        for spec in specs:
            self.processes[spec.name] = ManagedProcess(spec=spec, on_change=self._changed)
        for spec in specs:
            needed = [self.processes[f"{spec.region}/{need}"] for need in spec.needs]
            needed += [self.processes["relay"]] if spec.process == "etcd" else []
            run = self.processes[spec.name].run(needed)
            self._tasks[spec.name] = self._group.create_task(run, name=spec.name)

    def _changed(self) -> None:
        records = [process.record for process in self.processes.values() if process.record is not None]
        try:
            write_records(self.context.layout.records, records)
        except OSError as error:
            # The records are one of three sources for orphans (`records.living`), so a full disk must not end
            # processes.
            log.warning("the records of processes cannot be written: %s", error)
        self._on_progress()

    async def _wait_until_ready_or_stopped(self) -> None:
        deadline = time.monotonic() + READY_TIMEOUT_S
        missing: list[str] = []
        while not self.stop_asked.is_set():
            self._fail_on_repeated_deaths()
            missing = await self._missing()
            if not missing:
                self.all_ready.set()
                self._on_progress()
                return
            if time.monotonic() > deadline:
                raise StartFailed(f"not ready after {READY_TIMEOUT_S:.0f} s: {'; '.join(missing[:4])}")
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(READY_POLL_S):
                    await self.stop_asked.wait()

    def _fail_on_repeated_deaths(self) -> None:
        for process in self.processes.values():
            if process.restarts >= START_DEATHS_MAX and not process.is_ready.is_set():
                raise StartFailed(
                    f"{process.spec.name} does not stay up ({process.last_exit}): {last_line(process.spec)}; "
                    f"see {process.spec.log}"
                )

    async def _missing(self) -> list[str]:
        waiting = [
            name
            for name, process in self.processes.items()
            if not process.is_ready.is_set() and not self._is_killed(process.spec.region)
        ]
        if waiting:
            return waiting
        status = await self.status()
        if status["cells"][0]["phase"] != "serving":
            return [f"cell {self.plan.cell} is {status['cells'][0]['phase']}"]
        return [
            f"{entry['region']} {text}"
            for entry in status["regions"]
            for text in entry["missing"]
            if not self._is_killed(entry["region"])
        ]

    def _is_killed(self, region: str | None) -> bool:
        """Whether a fault has killed the region; a start does not wait for it."""
        return region is not None and self.region_states.get(region) == "killed"

    def ledger_process(self, region: str) -> psutil.Process | None:
        """Return the running postmaster of the region's ledger member, or None."""
        return postmaster(self.context.layout.postmaster_pid(region, "ledger"))

    def pids(self, region: str) -> dict[str, int | None]:
        """Return pids by process name: None if a process does not run, no entry if the region does not have it."""
        voter = self.plan.is_voter(region)
        found: dict[str, int | None] = {}
        for name in PROCESS_NAMES:
            if name == "ledger" and voter:
                ledger = self.ledger_process(region)
                found[name] = None if ledger is None else ledger.pid
            elif f"{region}/{name}" in self.processes:
                found[name] = self.processes[f"{region}/{name}"].pid
        return found

    async def status(self) -> dict[str, Any]:
        """Return the document of `palaver status --json`."""
        regions = self.plan.all_regions
        faults, asked = await asyncio.gather(
            ask_faults(self._client, self.plan, self.context.secrets.relay_token),
            asyncio.gather(*(ask_region(self._client, self.plan, region) for region in regions)),
        )
        answers = dict(zip(regions, asked, strict=True))
        cell = cell_document(self.plan, answers)
        return {
            "deployment": self.plan.deployment,
            "cells": [cell],
            "faults": faults,
            "metrics": scrape_targets(self.plan),
            "regions": [
                region_document(
                    self.plan,
                    region,
                    pids=self.pids(region),
                    state=self.region_states.get(region, "stopped"),
                    restarts={
                        process.spec.process: process.restarts
                        for process in self.processes.values()
                        if process.spec.region == region
                    },
                    answers=answers[region],
                    cell=cell,
                )
                for region in regions
            ],
        }

    async def order(self, kind: str, region: str | None, by: str) -> dict[str, Any]:
        """Carry out an operator's order; return the cell of the status document afterwards.

        Raises:
            UnknownTarget: There is no such region, or it is view-only.
            OrderRefused: The order cannot be carried out.
        """
        if region is not None:
            self.check_target(region)
            if not self.plan.is_voter(region):
                raise UnknownTarget(f"{region} only reads; a ledger can be in {', '.join(self.plan.regions)}")
        what = f"{kind} {region or ''}".rstrip()
        log.warning("order: %s: %s", what, by)
        try:
            cell = await give_order(self._client, self.context, self.status, kind=kind, region=region, by=by)
        except OrderRefused as error:
            log.warning("order refused: %s: %s: %s", what, by, error)
            note_order(self.context.layout.orders, kind=kind, region=region, by=by, refused=str(error))
            raise
        log.warning("order done: %s: %s", what, by)
        note_order(self.context.layout.orders, kind=kind, region=region, by=by, refused=None)
        return cell

    async def history(self) -> list[dict[str, Any]]:
        """What became of each epoch, the oldest first.

        Raises:
            OrderRefused: etcd does not answer.
        """
        return await read_history(self.context)

    def orders(self) -> list[dict[str, Any]]:
        """Return the newest orders of operators, the oldest first."""
        return read_orders(self.context.layout.orders)

    def targets(self, region: str, process: str | None) -> list[psutil.Process]:
        """Return the running processes, with descendants, of a region or of one process of it.

        Raises:
            UnknownTarget: The deployment has no such region or process.
        """
        self.check_target(region, process)
        ancestors: list[psutil.Process] = []
        for name in PROCESS_NAMES if process is None else (process,):
            if name == "ledger":
                ledger = self.ledger_process(region) if self.plan.is_voter(region) else None
                ancestors += [] if ledger is None else [ledger]
            elif f"{region}/{name}" in self.processes:
                ancestors += self.processes[f"{region}/{name}"].itself()
        found = family(*ancestors)
        if process is not None and process != "ledger":
            # PostgreSQL is a child process of its agent, but a fault of the agent must not reach it.
            ledger = self.ledger_process(region)
            spared = [] if ledger is None else [member.pid for member in family(ledger)]
            found = [member for member in found if member.pid not in spared]
        return found

    def check_target(self, region: str, process: str | None = None) -> None:
        """Check that the deployment has this region and process.

        Raises:
            UnknownTarget: It does not; the message lists the known names.
        """
        if region not in self.plan.all_regions:
            raise UnknownTarget(f"unknown region {region!r}; there are {', '.join(self.plan.all_regions)}")
        known = set(self.pids(region))
        if process is not None and process not in known:
            raise UnknownTarget(f"unknown process {process!r} in {region}; there are {', '.join(sorted(known))}")

    async def kill(self, region: str, process: str | None) -> list[int]:
        """Kill (-9) one process, which is restarted, or a whole region, which stays down until `restart_region`.

        Returns:
            The pids of the killed processes.

        Raises:
            UnknownTarget: The deployment has no such region or process.
        """
        self.check_target(region, process)
        if process is not None:
            return self._kill(region, process)
        async with self._region_locks[region]:
            self.region_states[region] = "killed"
            for managed in self._region_processes(region):
                managed.forget()
            pids = self._kill(region, None)
            await self._reap_region(region)
        return pids

    def _kill(self, region: str, process: str | None) -> list[int]:
        victims = self.targets(region, process)
        # All processes of a region are suspended before one is killed, so that none can react to the death of another.
        for death in (signal.SIGSTOP, signal.SIGKILL) if process is None else (signal.SIGKILL,):
            for victim in victims:
                send(victim, death)
        log.warning("fault: kill -9 of %s (%d processes)", _named(region, process), len(victims))
        return [victim.pid for victim in victims]

    async def _reap_region(self, region: str) -> None:
        """Wait until all processes of a killed region have ended; kill those that were just starting."""
        tasks = [self._tasks[managed.spec.name] for managed in self._region_processes(region)]
        for process in family(*(one for managed in self._region_processes(region) for one in managed.itself())):
            send(process, signal.SIGKILL)
        for managed in self._region_processes(region):
            if managed.pid is None:
                # It waits for a process that it needs, its preparation or its restart delay.
                self._tasks[managed.spec.name].cancel()
        if tasks:
            await asyncio.wait(tasks)
        for member in ("ledger", "view"):
            folder = self.context.layout.postmaster_pid(region, member).parent
            for process in await asyncio.to_thread(working_in, folder):
                send(process, signal.SIGKILL)

    def pause(self, region: str, process: str | None) -> list[int]:
        """Send SIGSTOP to one process or to a whole region; return the pids."""
        return self._signal(region, process, signal.SIGSTOP)

    def resume(self, region: str, process: str | None) -> list[int]:
        """Send SIGCONT to one process or to a whole region; return the pids."""
        return self._signal(region, process, signal.SIGCONT)

    def _signal(self, region: str, process: str | None, number: signal.Signals) -> list[int]:
        victims = self.targets(region, process)
        for victim in victims:
            send(victim, number)
        if number == signal.SIGSTOP:
            self._paused.add(region)
        if process is None and self.region_states[region] in ("running", "paused"):
            self.region_states[region] = "paused" if number == signal.SIGSTOP else "running"
        log.warning("fault: %s to %s (%d processes)", number.name, _named(region, process), len(victims))
        return [victim.pid for victim in victims]

    def set_clock(self, region: str, offset_s: float) -> None:
        """Shift the wall clock of a region by `offset_s` seconds; 0 removes the shift.

        Raises:
            UnknownTarget: There is no such region.
            OrderRefused: The deployment has no shiftable clocks.
        """
        self.check_target(region)
        if not have_clocks(self.context.layout):
            raise OrderRefused(
                "wall clocks cannot be shifted: start the deployment with `palaver up --clocks` (needs libfaketime)"
            )
        set_clock(self.context.layout, region, offset_s)
        log.debug("fault: the wall clock of %s is shifted by %+.3f s", region, offset_s)

    async def restart_region(self, region: str) -> None:
        """Start a killed region again; a running one is first shut down.

        Raises:
            UnknownTarget: There is no such region.
        """
        self.check_target(region)
        async with self._region_locks[region]:
            await self._stop_region(region)
            if not self._stopping:
                log.info("starting %s again", region)
                self._launch_region(region)

    def _region_processes(self, region: str) -> list[ManagedProcess]:
        return [managed for managed in self.processes.values() if managed.spec.region == region]

    async def _stop_region(self, region: str) -> None:
        self.region_states[region] = "stopping"
        if region in self._paused:
            # `ManagedProcess.stop` resumes the process itself, but not its child processes.
            self._paused.discard(region)
            for process in await asyncio.to_thread(self.targets, region, None):
                send(process, signal.SIGCONT)
        for names in STOP_ORDER:
            present = [f"{region}/{name}" for name in names if f"{region}/{name}" in self.processes]
            await asyncio.gather(*(self._stop_process(name) for name in present))
        await asyncio.to_thread(self._end_ledger, region)
        self.region_states[region] = "stopped"

    async def _stop_for_good(self, region: str) -> None:
        async with self._region_locks[region]:
            await self._stop_region(region)

    async def _stop_process(self, name: str) -> None:
        await self.processes[name].stop()
        task = self._tasks[name]
        task.cancel()  # It may wait for a process that it needs, or for its restart delay.
        await asyncio.wait([task])

    def _end_ledger(self, region: str) -> None:
        ledger = self.ledger_process(region)
        if ledger is None:
            return
        log.warning("%s/ledger outlived its agent; stopping it", region)
        send(ledger, signal.SIGCONT)
        send(ledger, signal.SIGINT)
        _, left = psutil.wait_procs([ledger], timeout=KILL_WAIT_S)
        for member in family(*left):
            send(member, signal.SIGKILL)
        psutil.wait_procs(left, timeout=KILL_WAIT_S)

    async def _stop_everything(self) -> None:
        log.info("stopping")
        self._stopping = True  # A `restart_region` in progress starts no process after this.
        await asyncio.gather(*(self._stop_for_good(region) for region in self.region_states))
        if "relay" in self.processes:
            await self._stop_process("relay")
        log.info("everything is stopped")


def first_of(group: BaseExceptionGroup[DeploymentError]) -> DeploymentError:
    """Return the first error of nested groups; the command prints one line."""
    error = group.exceptions[0]
    return first_of(error) if isinstance(error, BaseExceptionGroup) else error


def last_line(spec: ProcessSpec) -> str:
    """Return the last log line of a process, for an error message."""
    try:
        with spec.log.open("rb") as file:
            file.seek(max(0, spec.log.stat().st_size - 4096))
            lines = [line for line in file.read().decode(errors="replace").splitlines() if line.strip()]
    except OSError:
        return "no log"
    if not lines:
        return "an empty log"
    try:
        return str(orjson.loads(lines[-1])["msg"])
    except (orjson.JSONDecodeError, KeyError, TypeError):
        return lines[-1][:300]


def _named(region: str, process: str | None) -> str:
    return region if process is None else f"{region}/{process}"

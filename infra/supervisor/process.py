"""Supervises one process: starts it, probes it until it is ready, restarts it when it dies, and stops it.

Decides when to restart and how long to wait before. Knows neither regions nor PostgreSQL: a `ProcessSpec` says what to
run.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import pwd
import signal
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from infra.supervisor.errors import DeploymentError, StartFailed
from infra.supervisor.records import ProcessRecord, family, record_of, send

log = logging.getLogger("infra.supervisor")

READY_POLL_S = 0.05
READY_TIMEOUT_S = 60.0  # the slowest is an agent whose leader region is still copying the ledger
# As with systemd's RestartSteps and Kubernetes' CrashLoopBackOff: almost at once, then doubled up to a bound.
RESTART_DELAY_FIRST_S = 0.1
RESTART_DELAY_MAX_S = 5.0
HEALTHY_AFTER_S = 30.0  # after a life of this length, the delay starts again at RESTART_DELAY_FIRST_S
KILL_TIMEOUT_S = 5.0
LOG_BYTES_MAX = 64 * 1024 * 1024  # at a start, a larger log is renamed to `.1`; one old log is kept

Probe = Callable[[], Awaitable[str | None]]
"""Returns None if the process is ready, else what is missing in a few words."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessSpec:
    """What to run, and how to probe and stop it.

    Attributes:
        region: Its region; None for a process of the whole deployment.
        process: Its name inside the region.
        argv: Command line.
        env: Whole environment.
        log: File for standard output and standard error.
        ready: Probe for readiness.
        needs: Names of processes of the same region that must be ready first.
        os_user: Unprivileged account to run as; None keeps the supervisor's account.
        prepare: Runs before each start; must be idempotent.
        stop_signal: The signal for a clean shutdown.
        stop_timeout_s: How long a clean shutdown may take before the process is killed.
    """

    region: str | None
    process: str
    argv: tuple[str, ...]
    env: Mapping[str, str]
    log: Path
    ready: Probe
    needs: tuple[str, ...] = ()
    os_user: str | None = None
    prepare: Callable[[], Awaitable[None]] | None = None
    stop_signal: signal.Signals = signal.SIGTERM
    stop_timeout_s: float = 10.0

    @property
    def name(self) -> str:
        """`region/process`, or the bare name of a process of the deployment."""
        return self.process if self.region is None else f"{self.region}/{self.process}"


@dataclass(slots=True, kw_only=True)
class ManagedProcess:
    """A process under supervision. `run` supervises it until it is stopped; the other methods observe or control it."""

    spec: ProcessSpec
    on_change: Callable[[], None]
    restarts: int = 0  # unexpected deaths, and failed starts after the first success
    started_at: float | None = None
    is_ready: asyncio.Event = field(default_factory=asyncio.Event)
    record: ProcessRecord | None = None
    last_exit: str | None = None
    _process: asyncio.subprocess.Process | None = None
    _stopping: bool = False

    @property
    def pid(self) -> int | None:
        """The process id; None while it does not run."""
        return self._process.pid if self._process is not None and self._process.returncode is None else None

    async def run(self, needed: list[ManagedProcess]) -> None:
        """Start when all needed processes are ready, and restart after every death, until `stop` or `forget`.

        Raises:
            DeploymentError: The first start failed: the program file is missing, or the preparation failed.
        """
        for other in needed:
            await other.is_ready.wait()
        delay_s = RESTART_DELAY_FIRST_S
        while not self._stopping:
            try:
                await self._start()
            except DeploymentError as error:
                if self.started_at is None:
                    raise
                # The process has run before, so the cause may be temporary (full disk, no memory); do not stop the
                # others.
                self.restarts += 1
                log.warning("%s; trying again in %.1f s", error, delay_s, extra={"process_name": self.spec.name})
                await asyncio.sleep(delay_s)
                delay_s = min(delay_s * 2, RESTART_DELAY_MAX_S)
                continue
            process = self._process
            assert process is not None
            watcher = asyncio.create_task(self._watch_readiness(), name=f"ready {self.spec.name}")
            try:
                code = await process.wait()
            finally:
                watcher.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await watcher
            self.is_ready.clear()
            self.record = None
            self.on_change()
            if self._stopping:
                return
            lived_s = time.monotonic() - (self.started_at or 0.0)
            delay_s = RESTART_DELAY_FIRST_S if lived_s > HEALTHY_AFTER_S else delay_s
            self.last_exit = _describe_exit(code)
            self.restarts += 1
            log.warning(
                "%s died (%s); starting it again in %.1f s",
                self.spec.name, self.last_exit, delay_s,
                extra={"process_name": self.spec.name, "exit": self.last_exit, "restarts": self.restarts},
            )  # fmt: skip
            await asyncio.sleep(delay_s)
            delay_s = min(delay_s * 2, RESTART_DELAY_MAX_S)

    async def _start(self) -> None:
        spec = self.spec
        try:
            if spec.prepare is not None:
                await spec.prepare()
            if spec.log.exists() and spec.log.stat().st_size > LOG_BYTES_MAX:
                spec.log.replace(spec.log.with_name(f"{spec.log.name}.1"))
            with spec.log.open("ab") as output:
                self._process = await asyncio.create_subprocess_exec(
                    *spec.argv,
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    env=dict(spec.env),
                    cwd=spec.log.parent if spec.os_user is None else "/",
                    start_new_session=True,
                    **_account_arguments(spec.os_user),
                )
        except OSError as error:
            raise StartFailed(f"{spec.name} cannot be started: {error.strerror} ({error.filename})") from error
        self.started_at = time.monotonic()
        self.record = record_of(spec.name, self._process.pid)
        self.on_change()

    async def _watch_readiness(self) -> None:
        while not self.is_ready.is_set():
            missing = await self.spec.ready()
            if missing is None:
                self.is_ready.set()
                log.info("%s is ready (pid %s)", self.spec.name, self.pid, extra={"process_name": self.spec.name})
                self.on_change()
                return
            await asyncio.sleep(READY_POLL_S)

    async def stop(self) -> None:
        """Shut the process down; kill it after `stop_timeout_s`. Idempotent."""
        self._stopping = True
        if self.pid is None or self._process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(self.spec.stop_signal)
            # A process that a fault has paused must be resumed before it can stop.
            self._process.send_signal(signal.SIGCONT)
        try:
            async with asyncio.timeout(self.spec.stop_timeout_s):
                await self._process.wait()
        except TimeoutError:
            log.warning("%s did not stop within %.0f s; killing it", self.spec.name, self.spec.stop_timeout_s)
            self.kill_now()
            async with asyncio.timeout(KILL_TIMEOUT_S):
                await self._process.wait()

    def forget(self) -> None:
        """Do not restart the process after its death, because a fault kills its region.

        `run` returns after the death. If `pid` is None, the caller has to cancel the task of `run`.
        """
        self._stopping = True

    def kill_now(self) -> None:
        """Kill (-9) the process and all its descendants."""
        for member in self.members():
            send(member, signal.SIGKILL)

    def members(self) -> list[psutil.Process]:
        """The process and its descendants; empty if it does not run."""
        return family(*self.itself())

    def itself(self) -> list[psutil.Process]:
        """The process without its descendants; empty if it does not run."""
        pid = self.pid
        try:
            return [] if pid is None else [psutil.Process(pid)]
        except psutil.NoSuchProcess:
            return []


def _account_arguments(os_user: str | None) -> dict[str, Any]:
    if os_user is None:
        return {}
    account = pwd.getpwnam(os_user)
    return {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}


def _describe_exit(code: int) -> str:
    if code < 0:
        return f"signal {signal.Signals(-code).name}"
    return f"exit {code}"


def base_environment() -> dict[str, str]:
    """Return the part of the supervisor's environment that every process gets: paths, locale, time zone, coverage."""
    kept = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "TZ", "COVERAGE_PROCESS_START")
    return {name: os.environ[name] for name in kept if name in os.environ} | {"PYTHONUNBUFFERED": "1"}

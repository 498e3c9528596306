"""One supervised process: started, watched until it is ready, restarted when it dies, stopped.

Decides when to start again and how long to wait before. Knows neither regions nor PostgreSQL: what is to
run comes as a `ProcessSpec`.
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
# As systemd's RestartSteps and Kubernetes' CrashLoopBackOff do: at once, then doubling up to a bound.
RESTART_DELAY_FIRST_S = 0.1
RESTART_DELAY_MAX_S = 5.0
HEALTHY_AFTER_S = 30.0  # a process that lived this long starts its back-off anew
KILL_TIMEOUT_S = 5.0
LOG_BYTES_MAX = 64 * 1024 * 1024  # at a start, a larger log becomes `.1` (one old one is kept)

Probe = Callable[[], Awaitable[str | None]]
"""Answers None when ready, else what is missing in a few words."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessSpec:
    """What to run and how to see that it runs.

    Attributes:
        region: Its region, None for a process of the deployment.
        process: Its name inside the region.
        argv: Command line.
        env: Whole environment.
        log: Where standard output and error go.
        ready: Probe for readiness.
        needs: Names of processes of the same region that must be ready first.
        os_user: Unprivileged account to run as.
        prepare: Done before each start; must be idempotent.
        stop_signal: What asks it to stop in order.
        stop_timeout_s: When the asking is over and it is killed.
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
    """A process under supervision. `run` is its whole life; everything else observes or steers it."""

    spec: ProcessSpec
    on_change: Callable[[], None]
    restarts: int = 0  # deaths that nobody asked for, and starts that failed after the first
    started_at: float | None = None
    is_ready: asyncio.Event = field(default_factory=asyncio.Event)
    record: ProcessRecord | None = None
    last_exit: str | None = None
    _process: asyncio.subprocess.Process | None = None
    _stopping: bool = False

    @property
    def pid(self) -> int | None:
        """The process id while it lives."""
        return self._process.pid if self._process is not None and self._process.returncode is None else None

    async def run(self, needed: list[ManagedProcess]) -> None:
        """Start when everything needed is ready, restart on every death, until `stop` or `kill`.

        Raises:
            DeploymentError: The first start failed: the program file is missing, or the preparation refused.
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
                # It has run before, so a full disk or a lack of memory may pass, and the others go on.
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
        """Ask it to stop, and kill it when it does not in time. Idempotent."""
        self._stopping = True
        if self.pid is None or self._process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(self.spec.stop_signal)
            # A process that was paused by a fault has to run to be able to stop.
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
        """Never start it again (a fault killed it for good). Whoever runs `run` cancels it when `pid` is None."""
        self._stopping = True

    def kill_now(self) -> None:
        """Kill (-9) the process and all its descendants."""
        for member in self.members():
            send(member, signal.SIGKILL)

    def members(self) -> list[psutil.Process]:
        """The process and its descendants while it lives."""
        return family(*self.itself())

    def itself(self) -> list[psutil.Process]:
        """The process without its descendants; nothing when it does not run."""
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
    """What every process gets of our own environment: enough to find programs and no more."""
    kept = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "TZ", "COVERAGE_PROCESS_START")
    return {name: os.environ[name] for name in kept if name in os.environ} | {"PYTHONUNBUFFERED": "1"}

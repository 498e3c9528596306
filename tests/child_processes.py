"""Starts child processes and allocates ports and folders that do not outlive the test run.

Decides how a temporary process is started, stopped and cleaned up. This also works if the test run is killed: a small
reaper process holds a pipe from the test run, and ends the registered processes when the pipe closes. The module does
not know the kinds of servers.
"""

import atexit
import contextlib
import os
import random
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from pathlib import Path
from signal import SIGCONT, SIGKILL, SIGQUIT, SIGTERM, Signals
from threading import Lock

import orjson
import psutil

from infra.servers.unprivileged import Account, reachable
from infra.supervisor.layout import open_layout
from infra.supervisor.plan import load_plan
from infra.supervisor.records import living

# Below the range that Linux uses for outgoing connections, so that no connection takes the port of a stopped server;
# above the ports that deployments choose.
ALL_PORTS = range(20_000, 32_000)
PORTS_OF_A_WORKER = 3_000

ENDED_S_MAX = 20.0
"""A guardian ends all processes within a fraction of a second; this is the bound."""


def _own_ports() -> range:
    """Return all ports, or the share of a worker process, which does not know the ports of other workers."""
    worker = os.environ.get("PYTEST_XDIST_WORKER")
    if worker is None:
        return ALL_PORTS
    first = int(worker.removeprefix("gw")) % (len(ALL_PORTS) // PORTS_OF_A_WORKER) * PORTS_OF_A_WORKER
    return ALL_PORTS[first : first + PORTS_OF_A_WORKER]


PORTS = _own_ports()
PORT_ATTEMPTS_MAX = 200
START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 30.0

_REAPER = """
import os, shutil, signal, subprocess, sys
pids, folders, deployments = set(), set(), set()
signal.signal(signal.SIGINT, signal.SIG_IGN)
for line in sys.stdin:
    verb, _, value = line.rstrip("\\n").partition(" ")
    if verb == "pid+": pids.add(int(value))
    elif verb == "pid-": pids.discard(int(value))
    elif verb == "folder+": folders.add(value)
    elif verb == "folder-": folders.discard(value)
    elif verb == "deployment+": deployments.add(value)
    elif verb == "deployment-": deployments.discard(value)
for data in deployments:
    subprocess.run([sys.executable, "-P", "-m", "infra.cli", "down", "--data", data], stderr=subprocess.DEVNULL)
    shutil.rmtree(os.path.dirname(data), ignore_errors=True)
for pid in pids:
    try: os.killpg(pid, signal.SIGKILL)
    except ProcessLookupError: pass
for folder in folders:
    shutil.rmtree(folder, ignore_errors=True)
"""


class ServerFailed(Exception):
    """A temporary server did not start or stop. The message ends with its log."""


class _Reaper:
    def __init__(self) -> None:
        self._lock = Lock()
        self._process: subprocess.Popen[str] | None = None

    def tell(self, line: str) -> None:
        with self._lock:
            if self._process is None:
                self._process = subprocess.Popen(
                    [sys.executable, "-I", "-S", "-c", _REAPER],
                    stdin=subprocess.PIPE,
                    text=True,
                    start_new_session=True,
                )
                atexit.register(self._end)
            assert self._process.stdin is not None
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()

    def _end(self) -> None:
        assert self._process is not None
        self._process.communicate()


_reaper = _Reaper()


# The choice must not depend on a seed that a test sets: two concurrent test runs would choose the same ports.
_chance = random.SystemRandom()
_handed_out: set[int] = set()


def free_port() -> int:
    """Return a TCP port of loopback on which nothing listens. No port is returned twice."""
    for _ in range(PORT_ATTEMPTS_MAX):
        port = _chance.choice(PORTS)
        if port in _handed_out:
            continue
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with contextlib.suppress(OSError):
                probe.bind(("127.0.0.1", port))
                _handed_out.add(port)
                return port
    raise ServerFailed(f"no free port in {PORTS} after {PORT_ATTEMPTS_MAX} attempts")


@contextlib.contextmanager
def folder(account: Account | None = None) -> Generator[Path]:
    """Create a temporary folder that the account owns and can reach, and remove it afterwards."""
    parent = Path(tempfile.gettempdir())
    if not reachable(parent, account):
        parent = Path("/var/tmp")  # noqa: S108 - mkdtemp makes a private folder in it
    path = Path(tempfile.mkdtemp(prefix="palaver-test-", dir=parent))
    _reaper.tell(f"folder+ {path}")
    try:
        if account is not None:
            os.chown(path, account.uid, account.gid)
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
        _reaper.tell(f"folder- {path}")


def processes_of(data: Path) -> list[psutil.Process]:
    """Return the live processes of a deployment."""
    layout = open_layout(data)
    plan = load_plan(layout.plan)
    assert plan is not None
    return [process for _, process in living(layout, plan.deployment, plan.all_regions)]


def end_deployment(data: Path) -> None:
    """End a deployment quickly: kill its supervisor, so that the guardian ends the other processes.

    An orderly stop takes eight seconds. Other tests cover it. Runs with coverage need it, because the processes write
    their coverage data when they stop.
    """
    control = data / "control.json"
    if "COVERAGE_PROCESS_START" not in os.environ and control.exists():
        with contextlib.suppress(psutil.NoSuchProcess, ValueError, KeyError):
            supervisor = psutil.Process(orjson.loads(control.read_bytes())["pid"])
            if str(data) in supervisor.cmdline():
                supervisor.suspend()  # It restarts processes that end.
                _end_postgres(data)
                supervisor.kill()
                deadline = time.monotonic() + ENDED_S_MAX
                while processes_of(data) and time.monotonic() < deadline:
                    time.sleep(0.05)
    # The processes that are left, if any.
    subprocess.run([sys.executable, "-P", "-m", "infra.cli", "down", "--data", data], capture_output=True, check=False)


def _end_postgres(data: Path) -> None:
    """Shut each PostgreSQL down in immediate mode. After a kill its shared memory would stay allocated."""
    layout = open_layout(data)
    plan = load_plan(layout.plan)
    assert plan is not None
    ending: list[psutil.Process] = []
    for name, process in living(layout, plan.deployment, plan.all_regions):
        if name.endswith("/region_agent"):
            process.kill()
    for region in plan.all_regions:
        for member in ("ledger", "view"):
            with contextlib.suppress(OSError, ValueError, psutil.NoSuchProcess):
                postmaster = psutil.Process(int(layout.postmaster_pid(region, member).read_text().split()[0]))
                postmaster.send_signal(SIGQUIT)
                postmaster.send_signal(SIGCONT)
                ending.append(postmaster)
    deadline = time.monotonic() + ENDED_S_MAX
    while any(is_alive(postmaster) for postmaster in ending) and time.monotonic() < deadline:
        time.sleep(0.05)


def is_alive(process: psutil.Process) -> bool:
    """Return whether the process runs. A process that ended stays a zombie while its parent is suspended."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@contextlib.contextmanager
def stopped_at_the_end(data: Path) -> Generator[None]:
    """Stop a deployment and remove the parent of its data folder, even if the test run is killed."""
    _reaper.tell(f"deployment+ {data}")
    yield
    end_deployment(data)
    shutil.rmtree(data.parent, ignore_errors=True)
    _reaper.tell(f"deployment- {data}")


class Child:
    """One server process that can be stopped, killed, frozen and started again on the same port."""

    def __init__(
        self,
        command: Sequence[str | Path],
        *,
        log: Path,
        ready: Callable[[], bool],
        account: Account | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._command = command
        self._log = log
        self._ready = ready
        self._account = account
        self._environment = environment
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None, "the server was not started"
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def log_text(self) -> str:
        return self._log.read_text(errors="replace") if self._log.exists() else ""

    def start(self, *, wait: bool = True) -> None:
        """Start the process and wait until it is ready. Does nothing if the process runs."""
        if self.running:
            return
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self._log.parent,
                env=None if self._environment is None else dict(self._environment),
                start_new_session=True,
                user=self._account.uid if self._account else None,
                group=self._account.gid if self._account else None,
                extra_groups=[] if self._account else None,
            )
        _reaper.tell(f"pid+ {self._process.pid}")
        if wait:
            self.wait_ready()

    def wait_ready(self) -> None:
        deadline = time.monotonic() + START_TIMEOUT_S
        while not self._ready():
            if not self.running:
                raise ServerFailed(f"{self._command[0]} ended at its start:\n{self.log_text[-4000:]}")
            if time.monotonic() > deadline:
                self.kill()
                raise ServerFailed(f"{self._command[0]} is not ready:\n{self.log_text[-4000:]}")
            time.sleep(0.02)

    def signal(self, number: Signals) -> None:
        if self.running:
            os.kill(self.pid, number)

    def stop(self, number: Signals = SIGTERM) -> int | None:
        """Ask the process to end and wait for it; return its exit status, or None if it did not run."""
        if not self.running:
            return None
        self.signal(SIGCONT)
        self.signal(number)
        return self._wait()

    def kill(self) -> None:
        """Kill the process, as a crash does."""
        if self.running:
            self.signal(SIGKILL)
            self._wait()

    def _wait(self) -> int:
        assert self._process is not None
        try:
            return self._process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            raise ServerFailed(f"{self._command[0]} did not stop:\n{self.log_text[-4000:]}") from None
        finally:
            _reaper.tell(f"pid- {self._process.pid}")

"""Tests kills, restarts and stops of a region while its processes start or stop, with small sample programs."""

import asyncio
import functools
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from infra.supervisor import supervisor as module
from infra.supervisor.environment import DeploymentContext
from infra.supervisor.layout import create_folders, open_layout
from infra.supervisor.plan import Plan
from infra.supervisor.process import ProcessSpec, base_environment
from infra.supervisor.secrets import Secrets
from infra.supervisor.supervisor import Supervisor
from tests import waiting

EAST, WEST, SOUTH = REGIONS = ("us-east", "eu-west", "ap-south")
PATIENCE_S = 20.0  # half of a program's life here
SLEEPS = "import time; time.sleep(60)"
LINGERS = (
    "import signal, time; signal.signal(signal.SIGTERM, lambda *_: time.sleep(1) or exit());"
    "print('listens to signals', flush=True); time.sleep(60)"
)
STARTS_A_LEDGER = (
    "import subprocess, sys, time\n"
    "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'], cwd={folder!r}, start_new_session=True)\n"
    "time.sleep(60)"
)

ENDS_AFTER_ITS_CHILD = """
import signal, subprocess, sys, time
child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])
def stop(*_):
    child.terminate()
    child.wait()
    sys.exit()
signal.signal(signal.SIGTERM, stop)
print("listens to signals", flush=True)
time.sleep(60)
"""


async def at_once() -> str | None:
    return None


async def never() -> None:
    await asyncio.Event().wait()


def sample(
    context: DeploymentContext, region: str | None, process: str, code: str = SLEEPS, **changes: Any
) -> ProcessSpec:
    given: dict[str, Any] = {
        "region": region,
        "process": process,
        "argv": (sys.executable, "-c", code),
        "env": base_environment(),
        "log": context.layout.log(region, process),
        "ready": at_once,
    }
    return ProcessSpec(**(given | changes))


until = functools.partial(waiting.until, timeout_s=20)


Specs = Callable[[DeploymentContext, str], list[ProcessSpec]]


@asynccontextmanager
async def supervised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, specs: Specs) -> AsyncGenerator[Supervisor]:
    layout = open_layout(tmp_path / "data")
    create_folders(layout, REGIONS)
    plan = Plan(deployment="d", regions=REGIONS, port_base=64_000)
    context = DeploymentContext(
        plan=plan, secrets=Secrets(), layout=layout, postgres_bin=Path("/nowhere"), os_user=None
    )

    def region_specs(context: DeploymentContext, _: object, region: str) -> list[ProcessSpec]:
        return specs(context, region)

    def relay_spec(context: DeploymentContext) -> ProcessSpec:
        return sample(context, None, "relay")

    monkeypatch.setattr(module, "region_specs", region_specs)
    monkeypatch.setattr(module, "relay_spec", relay_spec)
    supervisor = Supervisor(context, {})
    running = asyncio.create_task(supervisor.run())
    try:
        await until(lambda: len(supervisor.region_states) == len(REGIONS))
        yield supervisor
    finally:
        supervisor.stop_asked.set()
        async with asyncio.timeout(30):
            await running
        assert all(process.pid is None for process in supervisor.processes.values())


async def within(seconds: float, work: Awaitable[object]) -> None:
    async with asyncio.timeout(seconds):
        await work


async def started(supervisor: Supervisor, name: str) -> psutil.Process:
    await until(lambda: supervisor.processes[name].pid)
    return psutil.Process(supervisor.processes[name].pid)


async def listens(supervisor: Supervisor, name: str) -> None:
    """Wait until a process reports that it has installed its signal handlers."""
    log = supervisor.processes[name].spec.log
    await until(lambda: "listens to signals" in log.read_text())


async def test_a_region_can_be_killed_while_it_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def specs(context: DeploymentContext, region: str) -> list[ProcessSpec]:
        return [
            sample(context, region, "etcd"),
            sample(context, region, "envoy", prepare=never),
            sample(context, region, "write_api", needs=("envoy",)),
        ]

    async with supervised(tmp_path, monkeypatch, specs) as supervisor:
        etcd = await started(supervisor, f"{EAST}/etcd")
        await within(PATIENCE_S, supervisor.kill(EAST, None))
        assert supervisor.pids(EAST) == {"etcd": None, "ledger": None, "envoy": None, "write_api": None}
        assert not etcd.is_running()
        await within(PATIENCE_S, supervisor.restart_region(EAST))
        await started(supervisor, f"{EAST}/etcd")


async def test_a_stop_during_a_restart_leaves_nothing_running(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def specs(context: DeploymentContext, region: str) -> list[ProcessSpec]:
        return [sample(context, region, "etcd", LINGERS)]

    async with supervised(tmp_path, monkeypatch, specs) as supervisor:
        await started(supervisor, f"{EAST}/etcd")
        await listens(supervisor, f"{EAST}/etcd")
        restarts = [asyncio.create_task(supervisor.restart_region(EAST)) for _ in range(2)]
        await until(lambda: supervisor.region_states[EAST] == "stopping")
    await within(PATIENCE_S, asyncio.wait(restarts))
    assert supervisor.region_states[EAST] == "stopped"


async def test_a_killed_region_is_killed_with_a_postgres_that_its_agent_has_just_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "data" / "regions" / EAST / "ledger"

    def specs(context: DeploymentContext, region: str) -> list[ProcessSpec]:
        folder.mkdir(exist_ok=True)
        return [sample(context, region, "region_agent", STARTS_A_LEDGER.format(folder=str(folder)))]

    async with supervised(tmp_path, monkeypatch, specs) as supervisor:
        agent = await started(supervisor, f"{EAST}/region_agent")
        await until(agent.children)
        (ledger,) = agent.children()
        # No record leads to this PostgreSQL: it has no pid file, and its parent ends before the supervisor looks.
        agent.kill()
        await supervisor.kill(EAST, None)
        _, alive = psutil.wait_procs([ledger], timeout=PATIENCE_S)
        assert alive == []


async def test_a_paused_region_stops_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def specs(context: DeploymentContext, region: str) -> list[ProcessSpec]:
        # With this timeout the supervisor never kills it: the stop succeeds only if the process ends by itself.
        return [sample(context, region, "region_agent", ENDS_AFTER_ITS_CHILD, stop_timeout_s=3600.0)]

    async with supervised(tmp_path, monkeypatch, specs) as supervisor:
        agent = await started(supervisor, f"{EAST}/region_agent")
        await until(agent.children)
        await listens(supervisor, f"{EAST}/region_agent")
        supervisor.pause(EAST, None)
        await within(PATIENCE_S, supervisor.restart_region(EAST))


async def test_a_restart_that_fails_is_retried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failures = iter([None, OSError(28, "No space left on device"), None])

    async def prepare() -> None:
        failure = next(failures, None)
        if failure is not None:
            raise failure

    def specs(context: DeploymentContext, region: str) -> list[ProcessSpec]:
        return [sample(context, region, "view", prepare=prepare)] if region == EAST else []

    async with supervised(tmp_path, monkeypatch, specs) as supervisor:
        first = await started(supervisor, f"{EAST}/view")
        first.kill()
        await until(lambda: supervisor.processes[f"{EAST}/view"].pid not in {None, first.pid})
        assert supervisor.processes[f"{EAST}/view"].restarts == 2

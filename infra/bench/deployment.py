"""Starts a deployment for a measurement in a temporary folder, as a user does, and stops it afterwards."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import orjson
import psutil

from infra.supervisor.control_client import ControlClient
from infra.supervisor.layout import Layout, open_layout
from infra.supervisor.plan import Plan, load_plan
from infra.supervisor.records import living
from infra.supervisor.secrets import Secrets, load_or_create_secrets


@dataclass(frozen=True, slots=True, kw_only=True)
class RunningDeployment:
    """A running deployment.

    Attributes:
        layout: Its folders.
        plan: Its ports.
        secrets: Its passwords.
        up_s: How long `palaver up --detach` took, in seconds.
    """

    layout: Layout
    plan: Plan
    secrets: Secrets
    up_s: float

    def status(self) -> dict[str, Any]:
        """Return the document of `palaver status --json`."""
        with ControlClient(self.layout) as control:
            return control.get("/status")

    def create_site(self) -> str:
        """Create a site; return its id."""
        answer = httpx.post(
            f"http://127.0.0.1:{self.plan.port(self.plan.regions[0], 'edge')}/v1/sites",
            json={"name": "bench", "origins": ["https://bench.example"]},
            headers={"authorization": f"Bearer {self.secrets.admin_key}"},
            timeout=15,
        )
        answer.raise_for_status()
        return str(answer.json()["id"])

    def memory_mb(self) -> tuple[float, float]:
        """Return the resident memory of all processes in MB: proportional (shared pages once), and as a plain sum."""
        processes = {
            process.pid: process for _, process in living(self.layout, self.plan.deployment, self.plan.regions)
        }
        for process in list(processes.values()):
            processes |= {child.pid: child for child in process.children(recursive=True)}
        assert processes, "a running deployment has processes"
        proportional = resident = 0
        for process in processes.values():
            try:
                memory = process.memory_full_info()
            except psutil.Error:
                continue
            proportional += memory.pss
            resident += memory.rss
        return proportional / 1e6, resident / 1e6


def no_preparation(layout: Layout, folder: Path) -> AbstractContextManager[object]:
    """Return a context that does nothing."""
    del layout, folder
    return nullcontext()


@contextmanager
def running_deployment(
    *,
    rtt_ms: float = 0.0,
    clocks: bool = False,
    around: Callable[[Layout, Path], AbstractContextManager[object]] = no_preparation,
) -> Generator[RunningDeployment]:
    """Start three regions, yield, and stop them.

    Args:
        rtt_ms: Round-trip time between regions.
        clocks: Whether the wall clocks of regions can be set.
        around: Makes a context from the layout and a folder for its own use. The context is entered before the
            deployment starts and left after it has stopped.
    """
    with tempfile.TemporaryDirectory(prefix="palaver-bench-") as folder:
        # If this process is root, PostgreSQL runs under another account and passes through. No path is a secret.
        Path(folder).chmod(0o711)
        layout = open_layout(Path(folder) / "data")
        with around(layout, Path(folder) / "around"):
            command = [sys.executable, "-P", "-m", "infra.cli"]
            started = time.perf_counter()
            subprocess.run(
                [
                    *command, "up", "--detach", "--rtt-ms", f"{rtt_ms:g}", "--data", str(layout.data), "--json",
                    "--no-limit-clients", *(["--clocks"] if clocks else []),
                ],
                check=True, stdout=subprocess.DEVNULL,
            )  # fmt: skip
            up_s = time.perf_counter() - started
            plan = load_plan(layout.plan)
            assert plan is not None
            secrets = load_or_create_secrets(layout.secrets)
            try:
                yield RunningDeployment(layout=layout, plan=plan, secrets=secrets, up_s=up_s)
            finally:
                subprocess.run([*command, "down", "--data", str(layout.data)], check=True)


def write_results(path: Path, document: dict[str, Any]) -> None:
    """Write the figures as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(orjson.dumps(document, option=orjson.OPT_INDENT_2))

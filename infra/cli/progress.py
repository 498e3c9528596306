"""The display of a start: on a terminal one live line for each region, elsewhere one line for each event."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from infra.supervisor.supervisor import Supervisor


class ProgressDisplay:
    """Shows which processes are ready; without a terminal it prints plain lines."""

    def __init__(self, *, to_stderr: bool = False) -> None:
        self._console = Console(stderr=to_stderr)
        self._live: Live | None = None
        self._said: set[str] = set()
        self._done = False
        self._started_at = time.monotonic()

    def __enter__(self) -> Self:
        """Start drawing, if there is a terminal."""
        if self._console.is_terminal:
            self._live = Live(console=self._console, refresh_per_second=8, transient=False)
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop drawing."""
        self.close()

    def close(self) -> None:
        """Stop drawing; the last state stays on the screen."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def update(self, supervisor: Supervisor) -> None:
        """Show the state of a supervisor, until everything is ready for the first time."""
        if self._done:
            return
        if self._live is not None:
            self._live.update(_table(supervisor, time.monotonic() - self._started_at))
        else:
            self._report_changes(supervisor)
        if supervisor.all_ready.is_set():
            self._done = True
            self.close()

    def _report_changes(self, supervisor: Supervisor) -> None:
        for region in supervisor.plan.all_regions:
            ready = _ready(supervisor, region)
            if region not in self._said and ready and all(ready.values()):
                self._said.add(region)
                self._console.print(f"{region}: all processes are up", highlight=False)
        if supervisor.all_ready.is_set():
            elapsed_s = time.monotonic() - self._started_at
            self._console.print(f"everything is ready after {elapsed_s:.1f} s", highlight=False)


def _ready(supervisor: Supervisor, region: str) -> dict[str, bool]:
    return {
        process.spec.process: process.is_ready.is_set()
        for process in supervisor.processes.values()
        if process.spec.region == region
    }


def _table(supervisor: Supervisor, elapsed_s: float) -> Table:
    table = Table(show_header=False, box=None, pad_edge=False)
    for region in supervisor.plan.all_regions:
        line = Text()
        for process, is_ready in _ready(supervisor, region).items():
            line.append(f"{process} ", style="green" if is_ready else "dim")
        table.add_row(Text(region, style="bold"), line)
    done = supervisor.all_ready.is_set()
    table.add_row(
        "", Text(f"ready after {elapsed_s:.1f} s" if done else f"starting, {elapsed_s:.0f} s", style="italic")
    )
    return table

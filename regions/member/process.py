"""Starts a process that outlives its agent, finds it again, waits for it and signals it, without races on its pid.

Decides how the end of a process is detected: by pidfd_open(2), which also works for processes of an earlier agent.
``regions.process_identity`` identifies a process. Does not know what the process does.
"""

import asyncio
import contextlib
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from regions.member.errors import MemberFailed
from regions.process_identity import ProcessIdentity, works_in


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """The operating system account that PostgreSQL runs as if this process is root.

    Attributes:
        uid: User id.
        gid: Group id.
    """

    uid: int
    gid: int


class WatchedProcess:
    """A living process of this agent or an earlier one. Signals go to this process only, not to a reused pid."""

    def __init__(self, identity: ProcessIdentity, pidfd: int, child: "subprocess.Popen[bytes] | None") -> None:
        self.identity = identity
        self._pidfd = pidfd
        self._child = child
        self._exited = asyncio.Event()
        asyncio.get_running_loop().add_reader(pidfd, self._on_exit)

    @classmethod
    def adopt(cls, identity: ProcessIdentity, child: "subprocess.Popen[bytes] | None" = None) -> Self | None:
        """Watch the process with this identity; return None if it has ended."""
        try:
            pidfd = os.pidfd_open(identity.pid)
        except ProcessLookupError:
            return None
        # The pid may have been reused before the descriptor was opened; with the open descriptor it cannot be.
        if child is None and ProcessIdentity.of(identity.pid) != identity:
            os.close(pidfd)
            return None
        return cls(identity, pidfd, child)

    @property
    def pid(self) -> int:
        """Process id."""
        return self.identity.pid

    @property
    def status(self) -> int | None:
        """Exit status of an ended process that this agent started; None otherwise."""
        return None if self._child is None or self.alive else self._child.returncode

    @property
    def alive(self) -> bool:
        """Whether the process has not been seen to end."""
        return not self._exited.is_set()

    async def wait(self) -> None:
        """Wait until the process has ended."""
        await self._exited.wait()

    async def ended_within(self, seconds: float) -> bool:
        """Wait until the process has ended, for a bounded time; return whether it has ended."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._exited.wait()
        return not self.alive

    def send(self, number: signal.Signals) -> None:
        """Send a signal; do nothing if the process has ended."""
        if self.alive:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, number)

    def detach(self) -> None:
        """Stop watching, and let the process run on."""
        if self.alive:
            asyncio.get_running_loop().remove_reader(self._pidfd)
            os.close(self._pidfd)
            self._exited.set()
            if self._child is not None:
                # The process outlives this object on purpose; Popen would warn.
                self._child.returncode = 0

    def _on_exit(self) -> None:
        asyncio.get_running_loop().remove_reader(self._pidfd)
        os.close(self._pidfd)
        if self._child is not None:
            # Rule 13: reap the postmaster; a zombie keeps its pid and looks alive.
            self._child.wait()
        self._exited.set()


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """A program to start.

    Attributes:
        arguments: Program and arguments.
        log: File to which its output is appended.
        account: Account that it runs as; None: the account of this process.
        folder: Working folder.
        environment: The complete environment.
        inherited: File descriptors that it inherits.
    """

    arguments: Sequence[str | Path]
    log: Path
    account: Account | None
    folder: Path
    environment: Mapping[str, str]
    inherited: Sequence[int] = ()


def spawn(command: Command) -> WatchedProcess:
    """Start a program in a session of its own, so that it outlives this process.

    It is no coroutine, so that no cancellation can occur between the start and the return of the process.

    Raises:
        MemberFailed: The program cannot be started.
    """
    try:
        child = _start(command)
    except OSError as error:
        raise MemberFailed(f"{command.arguments[0]} cannot be started: {error}") from error
    identity = ProcessIdentity.of(child.pid, ended=True)
    assert identity is not None, "a child keeps its pid until it is reaped"
    watched = WatchedProcess.adopt(identity, child)
    assert watched is not None, "a child keeps its pid until it is reaped"
    return watched


def _start(command: Command) -> "subprocess.Popen[bytes]":
    account = command.account
    with command.log.open("ab") as output:
        return subprocess.Popen(
            command.arguments,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=command.folder,
            env=dict(command.environment),
            start_new_session=True,
            pass_fds=command.inherited,
            user=account.uid if account else None,
            group=account.gid if account else None,
            extra_groups=[] if account else None,
        )


def processes_in(folder: Path) -> list[ProcessIdentity]:
    """Return the processes whose working folder is ``folder``; PostgreSQL and its programs run in their data folder."""
    found: list[ProcessIdentity] = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and works_in(int(entry.name), folder):
            identity = ProcessIdentity.of(int(entry.name))
            if identity is not None:
                found.append(identity)
    return found


def last_line(log: Path) -> str:
    """Return the last error line of a log, or its last line that is not empty, for an error message of one line."""
    try:
        lines = [line for line in log.read_text(errors="replace").splitlines()[-20:] if line.strip()]
    except OSError:
        return f"{log} cannot be read"
    errors = [line for line in lines if any(word in line for word in ("FATAL", "PANIC", "error:"))]
    return (errors or lines or ["its log is empty"])[-1].strip()

"""A process that outlives whoever started it: started, found again, awaited and ended without races.

Decides how a process is named so that a reused pid is never taken for it (pid and kernel start time,
proc(5)), and how its end is noticed (pidfd_open(2), which also works for processes of an earlier agent).
Refuses to know what the process does.
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
    """The operating system account that PostgreSQL runs as, when this process is root.

    Attributes:
        uid: User id.
        gid: Group id.
    """

    uid: int
    gid: int


class WatchedProcess:
    """A living process, ours or inherited; exactly this one is signalled, whatever its pid is reused for."""

    def __init__(self, identity: ProcessIdentity, pidfd: int, child: "subprocess.Popen[bytes] | None") -> None:
        self.identity = identity
        self._pidfd = pidfd
        self._child = child
        self._exited = asyncio.Event()
        asyncio.get_running_loop().add_reader(pidfd, self._on_exit)

    @classmethod
    def adopt(cls, identity: ProcessIdentity, child: "subprocess.Popen[bytes] | None" = None) -> Self | None:
        """Watch the process of this identity; None when it does not live any more."""
        try:
            pidfd = os.pidfd_open(identity.pid)
        except ProcessLookupError:
            return None
        # The pid may have been reused before the descriptor was opened; from here on it cannot.
        if child is None and ProcessIdentity.of(identity.pid) != identity:
            os.close(pidfd)
            return None
        return cls(identity, pidfd, child)

    @property
    def pid(self) -> int:
        """Its process id."""
        return self.identity.pid

    @property
    def status(self) -> int | None:
        """Its exit status once it has ended, when it was started by this process."""
        return None if self._child is None or self.alive else self._child.returncode

    @property
    def alive(self) -> bool:
        """Whether its end has not been noticed yet."""
        return not self._exited.is_set()

    async def wait(self) -> None:
        """Wait until it has ended."""
        await self._exited.wait()

    async def ended_within(self, seconds: float) -> bool:
        """Wait until it has ended, or so long; tell whether it has."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._exited.wait()
        return not self.alive

    def send(self, number: signal.Signals) -> None:
        """Send a signal; nothing happens when it has ended."""
        if self.alive:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, number)

    def detach(self) -> None:
        """Stop watching and leave it running."""
        if self.alive:
            asyncio.get_running_loop().remove_reader(self._pidfd)
            os.close(self._pidfd)
            self._exited.set()
            if self._child is not None:
                # It outlives this object on purpose; Popen would warn about it.
                self._child.returncode = 0

    def _on_exit(self) -> None:
        asyncio.get_running_loop().remove_reader(self._pidfd)
        os.close(self._pidfd)
        if self._child is not None:
            # Rule 13: reap the postmaster, or its pid stays taken and looks alive.
            self._child.wait()
        self._exited.set()


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """A program to start.

    Attributes:
        arguments: Program and arguments.
        log: File that takes its output.
        account: Whom it runs as; None: the same account as this process.
        folder: Its working folder.
        environment: All of its environment.
        inherited: File descriptors that it keeps.
    """

    arguments: Sequence[str | Path]
    log: Path
    account: Account | None
    folder: Path
    environment: Mapping[str, str]
    inherited: Sequence[int] = ()


def spawn(command: Command) -> WatchedProcess:
    """Start a program in a session of its own, so that it outlives this process.

    It does not wait, so that no cancellation falls between the start and the knowledge of it.

    Raises:
        MemberFailed: It cannot be started.
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
    """Return the processes that work in ``folder``: PostgreSQL and its programs work in their data folder."""
    found: list[ProcessIdentity] = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and works_in(int(entry.name), folder):
            identity = ProcessIdentity.of(int(entry.name))
            if identity is not None:
                found.append(identity)
    return found


def last_line(log: Path) -> str:
    """Return the last line of a log that says something, for an error of one line."""
    try:
        lines = [line for line in log.read_text(errors="replace").splitlines()[-20:] if line.strip()]
    except OSError:
        return f"{log} cannot be read"
    telling = [line for line in lines if any(word in line for word in ("FATAL", "PANIC", "error:"))]
    return (telling or lines or ["it said nothing"])[-1].strip()

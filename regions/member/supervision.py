"""Creates, starts, adopts, configures and stops the PostgreSQL of one ledger member.

Decides how each of these steps is done, so that it can be repeated after a crash at any point. Does not decide when:
``regions.failover`` does. It never removes a complete data folder.
"""

import asyncio
import logging
import os
import shutil
import signal
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal

from regions.identity import Epoch
from regions.member import record
from regions.member.errors import MemberFailed, MemberUnusable
from regions.member.ledger import Ledger
from regions.member.process import (
    Account,
    Command,
    WatchedProcess,
    last_line,
    processes_in,
    spawn,
)
from regions.member.record import MemberRecord, Role, write_atomically, write_durably
from regions.member.settings import (
    CONFIGURATION,
    PASSFILE,
    SCRAM_ITERATIONS,
    SEGMENT_MB,
    SUPERUSER,
    MemberSettings,
    backup_conninfo,
    configuration,
    follow_conninfo,
    host_based_authentication,
    main_configuration,
    passfile,
)
from regions.process_identity import ProcessIdentity
from regions.topology import Address

MAJOR_VERSION = "18"

READY_POLL_S = 0.02
READY_S_MAX = 60.0
"""Crash recovery replays at most max_wal_size (256 MB), some 10 s on a slow disk."""

FAST_STOP_S = 5.0
IMMEDIATE_STOP_S = 2.0
"""With a second for the kernel, both together stay within the 10 s that supervisors allow by default."""

LEFTOVER_S = 3.0
"""Children of a killed postmaster exit within milliseconds; another postmaster must not start before that."""

DISK_FREE_BYTES_MIN = 16 << 20
"""A few WAL segments: without space PostgreSQL cannot create the next one. While it still has segments that exist, each
write that needs a new page fails, all other queries are answered, and PostgreSQL looks healthy."""

DISK_FULL = "the disk of its ledger is full; it takes part again when there is space"

DataState = Literal["absent", "primary", "standby"]

_STATUS_LINE = 7
_OPEN_STATES = (["ready"], ["standby"])

_log = logging.getLogger(__name__)


class Member:
    """The ledger member of one region."""

    def __init__(self, settings: MemberSettings) -> None:
        self.settings = settings
        self.ledger = Ledger(settings.listen, settings.superuser_password)
        self.process: WatchedProcess | None = None
        self._synchronous_standby_names = ""
        self._prepared_names = ""
        self._verified: tuple[ProcessIdentity | None, str] = (None, "")
        self._follows: Address | None = None
        self._proxied = False
        self._written: dict[str, str] = {}

    @property
    def running(self) -> bool:
        """Whether its postmaster is alive and watched by this agent."""
        return self.process is not None and self.process.alive

    @property
    def follows(self) -> Address | None:
        """The member whose WAL it is configured to receive; None if it receives none, or from an unknown member."""
        return self._follows

    @property
    def start_record(self) -> MemberRecord | None:
        """The record of its last start; None if it was never started."""
        return MemberRecord.load(self.settings.state)

    def disk_is_full(self) -> bool:
        """Return whether a disk that it writes to has less space than PostgreSQL needs. Blocking."""
        for folder in (self.settings.data, self.settings.data / "pg_wal"):
            try:
                found = os.statvfs(folder)
            except OSError:
                continue  # The folder does not exist yet, or cannot be read; its next user gets the error.
            if found.f_bavail * found.f_frsize < DISK_FREE_BYTES_MIN:
                return True
        return False

    def data_state(self) -> DataState:
        """Return what the data folder holds; ``absent`` also if it is incomplete or was promoted externally.

        Raises:
            MemberUnusable: It holds something else, or data of another major version, or cannot be read.
        """
        data = self.settings.data
        try:
            if record.building(self.settings.state) or not data.exists() or not any(data.iterdir()):
                return "absent"
            version = (data / "PG_VERSION").read_text().strip()
        except FileNotFoundError:
            raise MemberUnusable(f"{data} is not empty and holds no PostgreSQL data; empty it") from None
        except OSError as error:
            raise MemberUnusable(f"{data} cannot be read: {error.strerror}") from error
        if version != MAJOR_VERSION:
            raise MemberUnusable(
                f"{data} holds data of PostgreSQL {version}, this program runs {MAJOR_VERSION}: "
                "upgrade it with pg_upgrade or use another folder"
            )
        if (data / "standby.signal").exists():
            return "standby"
        return "absent" if self.promoted_externally else "primary"

    @property
    def promoted_externally(self) -> bool:
        """Whether the member was promoted by somebody other than the agent.

        The agent writes ``standby.signal`` before it records a standby, and records a promotion before it begins, so a
        recorded standby without that file was promoted externally. The WAL of such a member belongs to no epoch and may
        end after the acknowledged writes, and its timeline may have the same number as another member's (rule 11).
        """
        remembered, data = self.start_record, self.settings.data
        was_standby = remembered is not None and remembered.role == "standby"
        whole = data.exists() and not record.building(self.settings.state)
        return was_standby and whole and not (data / "standby.signal").exists()

    async def adopt(self) -> bool:
        """Adopt the postmaster that an earlier agent started, or stop one that is not in the record.

        Returns:
            Whether the member runs now.
        """
        identity = self._postmaster()
        process = None if identity is None else WatchedProcess.adopt(identity)
        if process is None:
            return False
        self.process = process
        remembered = self.start_record
        if remembered is None or remembered.process != identity:
            # The epoch under which it was started is unknown (rule 8).
            _log.warning("ledger: a postmaster of unknown epoch runs on %s: it is stopped", self.settings.data)
            await self.stop()
            return False
        return True

    async def initialise(self) -> None:
        """Create an empty ledger; an incomplete data folder is emptied first.

        Raises:
            MemberFailed: initdb failed.
            MemberUnusable: The data folder cannot be written.
        """
        await self._begin("initdb")
        password = os.memfd_create("password")
        try:
            os.write(password, self.settings.superuser_password.encode())
            os.lseek(password, 0, os.SEEK_SET)
            await self._run(
                "initdb",
                f"--pgdata={self.settings.data}",
                f"--username={SUPERUSER}",
                f"--pwfile=/proc/self/fd/{password}",
                "--auth=scram-sha-256",
                "--data-checksums",
                "--encoding=UTF8",
                "--locale=C",
                "--locale-provider=builtin",
                "--builtin-locale=C.UTF-8",
                "--no-instructions",
                f"--set=scram_iterations={SCRAM_ITERATIONS}",
                f"--wal-segsize={SEGMENT_MB}",
                inherited=(password,),
            )
        finally:
            os.close(password)
        self._end()

    async def start_primary(self, *, epoch: Epoch, synchronous_standby_names: str) -> None:
        """Start as primary of an epoch, with the quorum in force from the start (rule 5).

        Raises:
            MemberFailed: It did not start.
        """
        (self.settings.data / "standby.signal").unlink(missing_ok=True)
        self._synchronous_standby_names, self._prepared_names, self._follows = synchronous_standby_names, "", None
        await self._start("primary", epoch)

    async def start_standby(self, *, epoch: Epoch, leader: Address) -> None:
        """Start as a follower of ``leader``.

        Raises:
            MemberFailed: It did not start.
        """
        self._write("standby.signal", "")
        self._synchronous_standby_names, self._follows = "", leader
        await self._start("standby", epoch)

    async def set_quorum(self, synchronous_standby_names: str) -> None:
        """Change which standbys a commit waits for, and verify that the value is in force (rule 5).

        Raises:
            MemberFailed: Another value stays in force.
        """
        # Rule 6: an empty value ends all quorum waits with success; a leader is demoted by stopping it.
        assert synchronous_standby_names, "a quorum is never cleared"
        self._synchronous_standby_names = self._prepared_names = synchronous_standby_names
        await self._put_in_force(synchronous_standby_names)

    async def _put_in_force(self, names: str) -> None:
        """Put ``names`` in force, and return when commits wait for them; fast if an earlier call has done so."""
        self._write_configuration()
        identity = self._identity
        known, self._verified = self._verified == (identity, names), (None, "")
        if known:
            await self.ledger.verify_quorum(names)
        else:
            await self.ledger.reload(synchronous_standby_names=names)
        # Another call may have changed the names in the meantime.
        if (self._synchronous_standby_names or self._prepared_names) == names:
            self._verified = (identity, names)

    async def stop(self, *, at_once: bool = False) -> None:
        """Stop it: fast shutdown, then immediate shutdown, then SIGKILL, each of the first two with a time limit.

        A smart shutdown is not tried: it would wait for the write API's connection pools, which never disconnect.
        ``at_once`` also skips the fast shutdown, which writes a checkpoint: only some of a primary's standbys might
        receive that WAL.
        """
        await self.ledger.close()
        process = self.process
        if process is None or not process.alive:
            return
        await _end_process(process, at_once=at_once)
        if self.process is process:
            self.process = None

    def crash(self) -> None:
        """Send an immediate shutdown: no checkpoint, no answer to waiting clients. Its end is noticed as any other."""
        if self.process is not None:
            self.process.send(signal.SIGQUIT)

    def adopt_configuration(self, *, names: str, primary_conninfo: str = "", others: Iterable[Address] = ()) -> None:
        """Take over the configuration of an adopted member, so that its files are written again unchanged.

        Args:
            names: The value of ``synchronous_standby_names`` in force.
            primary_conninfo: The setting of a follower, otherwise ''. If the agent does not generate this value for any
                of ``others``, the followed member is unknown.
            others: The members that it may follow.
        """
        candidates = ((one, proxied) for one in others for proxied in (False, True))
        known = (
            one for one in candidates if follow_conninfo(self.settings, one[0], proxied=one[1]) == primary_conninfo
        )
        self._follows, self._proxied = next(known, (None, False))
        self._synchronous_standby_names, self._prepared_names = ("", names) if primary_conninfo else (names, "")

    def detach(self) -> None:
        """Stop watching PostgreSQL and leave it running, so that a later agent can adopt it."""
        if self.process is not None:
            self.process.detach()
            self.process = None

    async def _start(self, role: Role, epoch: Epoch) -> None:
        assert not self.running, "it runs already"
        await self.end_leftovers()
        self._written.clear()
        self._write_configuration()
        # Durable before the start, so that a later agent knows that a start under this epoch was attempted (rule 8).
        MemberRecord(role=role, epoch=epoch, process=None).store(self.settings.state)
        self._verified = (None, "")
        process = spawn(self._command("postgres", "-D", str(self.settings.data)))
        self.process = process
        MemberRecord(role=role, epoch=epoch, process=process.identity).store(self.settings.state)
        await self._ready(process)

    async def _ready(self, process: WatchedProcess) -> None:
        problem = "it is still starting"
        try:
            async with asyncio.timeout(READY_S_MAX):
                while process.alive:
                    if self._takes_connections(process):
                        try:
                            await self.ledger.ping()
                        except MemberFailed as error:
                            problem = str(error)
                        else:
                            return
                    await process.ended_within(READY_POLL_S)
        except TimeoutError as error:
            raise MemberFailed(f"ledger is not ready after {READY_S_MAX:.0f} s: {problem}") from error
        raise MemberFailed(f"ledger ended at its start: {last_line(self.settings.log)}")

    def _takes_connections(self, process: WatchedProcess) -> bool:
        """Return whether the lock file of the postmaster says that it accepts connections.

        The agent does not try to connect before, because the postmaster starts a process to refuse each connection.
        Source: PostgreSQL 18, utils/pidfile.h.
        """
        lines = self._lock_file()
        return lines[:1] == [str(process.pid)] and [one.strip() for one in lines[_STATUS_LINE:]] in _OPEN_STATES

    async def _begin(self, what: str) -> None:
        settings = self.settings
        assert self.data_state() == "absent", "a complete data folder is never removed"
        record.begin_building(settings.state, what)
        try:
            settings.data.mkdir(parents=True, exist_ok=True)
            await self.end_leftovers()
            await _empty_folder(settings.data)
            self._make_private(settings.data)
        except OSError as error:
            raise MemberUnusable(f"{settings.data} cannot be written: {error.strerror}") from error

    def _end(self) -> None:
        self._written.clear()
        self._write_configuration()
        record.end_building(self.settings.state)

    async def end_leftovers(self) -> None:
        """End the processes that still use the data folder of a stopped member.

        These are children of a killed postmaster, which exit by themselves, or a program that a killed agent left
        running, which is killed after a time.
        """
        for identity in processes_in(self.settings.data.resolve()):
            process = WatchedProcess.adopt(identity)
            if process is not None and not await process.ended_within(LEFTOVER_S):
                process.send(signal.SIGKILL)
                await process.wait()
        await self._wait_until_reaped()

    async def _back_up(self, leader: Address, into: Path, *options: str) -> None:
        """Run pg_basebackup from ``leader`` into an empty folder.

        Raises:
            MemberFailed: pg_basebackup failed.
        """
        await self._run(
            "pg_basebackup",
            f"--pgdata={into}",
            f"--dbname={backup_conninfo(leader)}",
            *options,
            "--wal-method=stream",
            "--checkpoint=fast",
            "--no-password",
            folder=into,
        )

    def _make_private(self, folder: Path) -> None:
        """Create a folder if it is missing, and make it accessible to PostgreSQL's account only."""
        folder.mkdir(parents=True, exist_ok=True)
        if self.settings.account is not None:
            os.chown(folder, self.settings.account.uid, self.settings.account.gid)
        folder.chmod(0o700)

    async def _wait_until_reaped(self) -> None:
        """Wait until init has reaped a dead postmaster, because PostgreSQL takes a zombie for a running postmaster."""
        for _ in range(int(LEFTOVER_S / READY_POLL_S)):
            pid = self._locked_by()
            identity = None if pid is None else ProcessIdentity.of(pid, ended=True)
            if identity is None or ProcessIdentity.of(identity.pid) is not None:
                return
            await asyncio.sleep(READY_POLL_S)

    async def _run(
        self,
        program: str,
        *arguments: str,
        inherited: Sequence[int] = (),
        password: str | None = None,
        folder: Path | None = None,
    ) -> None:
        """Run a program to its end.

        Args:
            program: Its name in the folder of PostgreSQL's programs.
            *arguments: Its arguments.
            inherited: File descriptors that it inherits.
            password: The password with which it connects; None for that of the replication role.
            folder: Its working directory; None for the data folder.

        Raises:
            MemberFailed: Its exit status is not 0.
        """
        secret = {"PGPASSWORD": self.settings.replication_password if password is None else password}
        process = spawn(self._command(program, *arguments, environment=secret, inherited=inherited, folder=folder))
        try:
            await process.wait()
        finally:
            process.send(signal.SIGKILL)
            await process.wait()
        if process.status != 0:
            raise MemberFailed(f"{program} failed: {last_line(self.settings.log)}")

    def _command(
        self,
        program: str,
        *arguments: str,
        environment: Mapping[str, str] | None = None,
        inherited: Sequence[int] = (),
        folder: Path | None = None,
    ) -> Command:
        settings = self.settings
        return Command(
            arguments=[settings.programs / program, *arguments],
            log=settings.log,
            account=settings.account,
            folder=settings.data if folder is None else folder,
            environment={"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC", **(environment or {})},
            inherited=inherited,
        )

    def _postmaster(self) -> ProcessIdentity | None:
        """Return the running postmaster that the lock file names; a process with a reused pid uses another folder."""
        pid = self._locked_by()
        return next((one for one in processes_in(self.settings.data.resolve()) if one.pid == pid), None)

    def _locked_by(self) -> int | None:
        """Return the pid in the lock file, which remains after a postmaster is killed; None if there is none."""
        try:
            return int(self._lock_file()[0])
        except (ValueError, IndexError):
            return None

    def _lock_file(self) -> list[str]:
        """Return the lines of the lock file; none if it cannot be read."""
        try:
            return (self.settings.data / "postmaster.pid").read_text().splitlines()
        except OSError:
            return []

    def _write_configuration(self) -> None:
        """Write those configuration files whose content has changed.

        They are not flushed, because a failover would wait for that; each start of PostgreSQL writes them again first.
        """
        names, follows = self._synchronous_standby_names or self._prepared_names, self._follows
        if names != self._verified[1]:
            self._verified = (None, "")
        self._configure("pg_hba.conf", host_based_authentication())
        self._configure("postgresql.conf", main_configuration())
        # Rule 4: it is not visible when the startup process has read an empty connection string. Without a password, a
        # receiver that it starts before that cannot log in; a receiver that has logged in is a visible process.
        self._configure(PASSFILE, "" if follows is None else passfile(self.settings))
        text = configuration(self.settings, synchronous_standby_names=names, follows=follows, proxied=self._proxied)
        self._configure(CONFIGURATION, text)

    @property
    def _identity(self) -> ProcessIdentity | None:
        return None if self.process is None else self.process.identity

    def _configure(self, name: str, text: str) -> None:
        if self._written.get(name) != text:
            # A write that fails may have replaced the file.
            self._written.pop(name, None)
            self._write(name, text, write_atomically)
            self._written[name] = text

    def _write(self, name: str, text: str, write: Callable[[Path, str, Account | None], None] = write_durably) -> None:
        try:
            write(self.settings.data / name, text, self.settings.account)
        except OSError as error:
            raise MemberFailed(f"{self.settings.data / name} cannot be written: {error.strerror}") from error


async def _end_process(process: WatchedProcess, *, at_once: bool) -> None:
    ways = ((signal.SIGINT, FAST_STOP_S), (signal.SIGQUIT, IMMEDIATE_STOP_S))
    for number, seconds in ways[1:] if at_once else ways:
        process.send(number)
        # A stopped process (SIGSTOP) handles a signal only after it continues.
        process.send(signal.SIGCONT)
        if await process.ended_within(seconds):
            return
    process.send(signal.SIGKILL)
    await process.wait()


async def _empty_folder(folder: Path) -> None:
    """Empty a folder; a cancelled caller waits until the thread has ended.

    A thread cannot be cancelled, and would remove files that the next attempt has created.
    """
    emptying = asyncio.ensure_future(asyncio.to_thread(_empty, folder))
    try:
        await asyncio.shield(emptying)
    except asyncio.CancelledError:
        await asyncio.wait([emptying])
        raise


def _empty(folder: Path) -> None:
    for entry in folder.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()

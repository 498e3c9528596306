"""One PostgreSQL member of the ledger: made, started, found again, configured, stopped.

Decides how each of these is done so that it can be repeated after a crash at any point. Refuses to
decide when: that is ``regions.failover``. It never removes a finished data folder.
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
"""Together with a second for the kernel these keep within the 10 s that supervisors give by default."""

LEFTOVER_S = 3.0
"""Children of a killed postmaster notice within milliseconds; a second one may not start before."""

DISK_FREE_BYTES_MIN = 16 << 20
"""A few segments of WAL: without room the next one cannot be made. While PostgreSQL still has segments that it made
before, it fails each write that needs a page, answers every other question, and looks well."""

DISK_FULL = "the disk of its ledger is full; it takes part again when there is room"

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
        self._by_proxy = False
        self._written: dict[str, str] = {}

    @property
    def running(self) -> bool:
        """Whether its postmaster lives and is watched."""
        return self.process is not None and self.process.alive

    @property
    def follows(self) -> Address | None:
        """Whose WAL it was last told to receive."""
        return self._follows

    @property
    def record(self) -> MemberRecord | None:
        """How it was last started."""
        return MemberRecord.load(self.settings.state)

    def disk_is_full(self) -> bool:
        """Whether a disk that it writes to has less room than PostgreSQL needs to go on. Blocking."""
        for folder in (self.settings.data, self.settings.data / "pg_wal"):
            try:
                found = os.statvfs(folder)
            except OSError:
                continue  # There is none yet, or it cannot be asked: whoever uses it will say so.
            if found.f_bavail * found.f_frsize < DISK_FREE_BYTES_MIN:
                return True
        return False

    def data_state(self) -> DataState:
        """Return what the data folder holds; ``absent`` also when it was begun and never finished, or led astray.

        Raises:
            MemberUnusable: It holds something else.
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
        """Whether somebody else has made a primary of it.

        The agent writes the signal before it remembers a standby, and remembers a promotion before it begins one. What
        such a member has is of no epoch, and may end further on than what was acknowledged; its timeline may have the
        number that another member's got (rule 11).
        """
        remembered, data = self.record, self.settings.data
        was_standby = remembered is not None and remembered.role == "standby"
        whole = data.exists() and not record.building(self.settings.state)
        return was_standby and whole and not (data / "standby.signal").exists()

    async def adopt(self) -> bool:
        """Take over the postmaster that an earlier agent started, or end one that nobody remembers.

        Returns:
            Whether one runs now.
        """
        identity = self._postmaster()
        process = None if identity is None else WatchedProcess.adopt(identity)
        if process is None:
            return False
        self.process = process
        remembered = self.record
        if remembered is None or remembered.process != identity:
            # Nobody knows under which epoch it was started (rule 8).
            _log.warning("ledger: a postmaster of unknown epoch runs on %s: it is stopped", self.settings.data)
            await self.stop()
            return False
        return True

    async def initialise(self) -> None:
        """Make an empty ledger; an unfinished one is thrown away first."""
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
        """Start as primary of an epoch, with the quorum set from the first moment (rule 5).

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
        """Change which standbys a commit waits for and verify that it is in force (rule 5)."""
        # Rule 6: an empty value releases waiters with success; a leader is demoted by stopping it.
        assert synchronous_standby_names, "a quorum is never cleared"
        self._synchronous_standby_names = self._prepared_names = synchronous_standby_names
        await self._put_in_force(synchronous_standby_names)

    async def _put_in_force(self, names: str) -> None:
        """Make commits wait for ``names``, and return when they do; soon when they have since an earlier call."""
        self._write_configuration()
        identity = self._identity
        known, self._verified = self._verified == (identity, names), (None, "")
        if known:
            await self.ledger.verify_quorum(names)
        else:
            await self.ledger.reload(synchronous_standby_names=names)
        # Somebody else may have asked for others meanwhile.
        if (self._synchronous_standby_names or self._prepared_names) == names:
            self._verified = (identity, names)

    async def stop(self, *, at_once: bool = False) -> None:
        """End it: fast, then immediate, then by the kernel, each for a bounded time.

        The smart way is passed over: it waits for the pools of the write API, which never leave. ``at_once`` passes
        over the fast one as well, which writes a checkpoint: WAL that only some of a primary's standbys would get.
        """
        await self.ledger.close()
        process = self.process
        if process is None or not process.alive:
            return
        await _ended(process, at_once=at_once)
        if self.process is process:
            self.process = None

    def crash(self) -> None:
        """Let it end at once, without a checkpoint and without a word to who waits; its end is noticed as any other."""
        if self.process is not None:
            self.process.send(signal.SIGQUIT)

    def adopt_configuration(self, *, names: str, primary_conninfo: str = "", others: Iterable[Address] = ()) -> None:
        """Take over how an adopted member is configured, so that its files are written again as they are.

        Args:
            names: Its quorum in force.
            primary_conninfo: Of a follower, how it is told to follow; one of another make leads to nobody known.
            others: Whom it may follow.
        """
        candidates = ((one, proxied) for one in others for proxied in (False, True))
        known = (
            one for one in candidates if follow_conninfo(self.settings, one[0], proxied=one[1]) == primary_conninfo
        )
        self._follows, self._by_proxy = next(known, (None, False))
        self._synchronous_standby_names, self._prepared_names = ("", names) if primary_conninfo else (names, "")

    def detach(self) -> None:
        """Stop watching and leave it running, to be adopted later."""
        if self.process is not None:
            self.process.detach()
            self.process = None

    async def _start(self, role: Role, epoch: Epoch) -> None:
        assert not self.running, "it runs already"
        await self.end_leftovers()
        self._written.clear()
        self._write_configuration()
        # Durable before it happens: a start under this epoch is never mistaken for none (rule 8).
        MemberRecord(role=role, epoch=epoch, process=None).store(self.settings.state)
        self._verified = (None, "")
        process = spawn(self._command("postgres", "-D", str(self.settings.data)))
        self.process = process
        MemberRecord(role=role, epoch=epoch, process=process.identity).store(self.settings.state)
        await self._ready(process)

    async def _ready(self, process: WatchedProcess) -> None:
        problem = "it still starts"
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
        """Whether the postmaster says so in its lock file: to turn away whoever connects before, it makes a process.

        Source: PostgreSQL 18, utils/pidfile.h.
        """
        lines = self._lock_file()
        return lines[:1] == [str(process.pid)] and [one.strip() for one in lines[_STATUS_LINE:]] in _OPEN_STATES

    async def _begin(self, what: str) -> None:
        settings = self.settings
        assert self.data_state() == "absent", "a finished data folder is never thrown away"
        record.begin_building(settings.state, what)
        try:
            settings.data.mkdir(parents=True, exist_ok=True)
            await self.end_leftovers()
            await _emptied(settings.data)
            self._make_private(settings.data)
        except OSError as error:
            raise MemberUnusable(f"{settings.data} cannot be written: {error.strerror}") from error

    def _end(self) -> None:
        self._written.clear()
        self._write_configuration()
        record.end_building(self.settings.state)

    async def end_leftovers(self) -> None:
        """End what still works in the data folder of a member that does not run.

        These are children of a killed postmaster, which leave by themselves, or a program that a killed
        agent left behind, which does not.
        """
        for identity in processes_in(self.settings.data.resolve()):
            process = WatchedProcess.adopt(identity)
            if process is not None and not await process.ended_within(LEFTOVER_S):
                process.send(signal.SIGKILL)
                await process.wait()
        await self._reaped()

    async def _back_up(self, leader: Address, into: Path, *options: str) -> None:
        """Run pg_basebackup from ``leader`` into an empty folder."""
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
        """Make a folder, where it is missing, that only PostgreSQL's account can enter."""
        folder.mkdir(parents=True, exist_ok=True)
        if self.settings.account is not None:
            os.chown(folder, self.settings.account.uid, self.settings.account.gid)
        folder.chmod(0o700)

    async def _reaped(self) -> None:
        """Wait until init has reaped a dead postmaster: PostgreSQL takes a zombie for one that runs."""
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
        """Run a program to its end in ``folder``, the data folder if None.

        ``password`` is what it connects with, the replication role's if None.
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
        """The living postmaster that the lock file names; a reused pid works in another folder."""
        pid = self._locked_by()
        return next((one for one in processes_in(self.settings.data.resolve()) if one.pid == pid), None)

    def _locked_by(self) -> int | None:
        """The process that the lock file names; the file outlives a killed postmaster."""
        try:
            return int(self._lock_file()[0])
        except (ValueError, IndexError):
            return None

    def _lock_file(self) -> list[str]:
        """The lines of the lock file; none when there is none."""
        try:
            return (self.settings.data / "postmaster.pid").read_text().splitlines()
        except OSError:
            return []

    def _write_configuration(self) -> None:
        """Write the files that configure it, those that are other than they were.

        They are not flushed, for which a failover would wait: whoever starts PostgreSQL writes them again before.
        """
        names, follows = self._synchronous_standby_names or self._prepared_names, self._follows
        if names != self._verified[1]:
            self._verified = (None, "")
        self._configure("pg_hba.conf", host_based_authentication())
        self._configure("postgresql.conf", main_configuration())
        # Rule 4: nobody can see when the startup process has read that it is to receive from nobody. A receiver that it
        # starts before that has no password to go in with; one that has gone in is a process that can be seen.
        self._configure(PASSFILE, "" if follows is None else passfile(self.settings))
        text = configuration(self.settings, synchronous_standby_names=names, follows=follows, proxied=self._by_proxy)
        self._configure(CONFIGURATION, text)

    @property
    def _identity(self) -> ProcessIdentity | None:
        return None if self.process is None else self.process.identity

    def _configure(self, name: str, text: str) -> None:
        if self._written.get(name) != text:
            # A write that fails may have taken place.
            self._written.pop(name, None)
            self._write(name, text, write_atomically)
            self._written[name] = text

    def _write(self, name: str, text: str, write: Callable[[Path, str, Account | None], None] = write_durably) -> None:
        try:
            write(self.settings.data / name, text, self.settings.account)
        except OSError as error:
            raise MemberFailed(f"{self.settings.data / name} cannot be written: {error.strerror}") from error


async def _ended(process: WatchedProcess, *, at_once: bool) -> None:
    ways = ((signal.SIGINT, FAST_STOP_S), (signal.SIGQUIT, IMMEDIATE_STOP_S))
    for number, seconds in ways[1:] if at_once else ways:
        process.send(number)
        # A frozen process takes a signal only when it goes on.
        process.send(signal.SIGCONT)
        if await process.ended_within(seconds):
            return
    process.send(signal.SIGKILL)
    await process.wait()


async def _emptied(folder: Path) -> None:
    """Empty a folder; a caller that is cancelled waits for the end of it.

    A thread cannot be cancelled: left alone it would go on removing what the next attempt has made by then.
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

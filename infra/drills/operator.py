"""Promotes the ledger of a killed region by hand, as a careless operator does.

Decides the steps: start PostgreSQL on the region's data, promote it if it is a standby, and insert a row that no client
sent. Does not know how the region recovers from this; the drill tests that.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import psycopg

from infra.servers.unprivileged import Account
from infra.supervisor.errors import DeploymentError

PG_CTL_S = 60
"""pg_ctl's time limit for a start, which replays WAL, and for a promotion."""

STARTS_MAX = 20
START_RETRY_S = 0.5
"""PostgreSQL takes a zombie for a running postmaster; init reaps it within seconds, also on a busy machine."""

OPERATOR_BODY = "inserted by an operator"
"""The body of the row. No client sends it, so the judges find the row wherever it appears."""

INSERT_COMMENT = """
INSERT INTO palaver.comments (site_id, thread_id, depth, body, epoch)
SELECT threads.site_id, threads.id, 0, %s, threads.epoch FROM palaver.threads WHERE threads.key = %s
"""


class ManualPromotionFailed(DeploymentError):
    """A promotion by hand failed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ManualPromotion:
    """Access to the ledger of one killed region.

    Attributes:
        programs: Folder of PostgreSQL's programs.
        data: The ledger's data folder.
        log: PostgreSQL's log file.
        account: The account that PostgreSQL runs under if this process is root; else None.
        port: The port in PostgreSQL's configuration.
        password: The superuser's password.
    """

    programs: Path
    data: Path
    log: Path
    account: Account | None
    port: int
    password: str

    def promote(self, thread: str, *, leave_running: bool) -> bool:
        """Start the ledger, make it a primary, and insert a row.

        Returns:
            Whether it was a standby; else it was a primary before it was killed.

        Raises:
            ManualPromotionFailed: PostgreSQL does not start, is not promoted, or rejects the row.
        """
        self._start()
        try:
            with self._connected() as connection:
                was_standby = _is_standby(connection)
            if was_standby:
                self._pg_ctl("promote")
            with self._connected() as connection:
                # Do not wait for other regions, so that only this ledger has the row.
                connection.execute("SET synchronous_commit = local")
                made = connection.execute(INSERT_COMMENT, (OPERATOR_BODY, thread)).rowcount
        except (psycopg.Error, ManualPromotionFailed, subprocess.TimeoutExpired) as error:
            with contextlib.suppress(ManualPromotionFailed, subprocess.TimeoutExpired):
                self._pg_ctl("stop", "-m", "immediate")
            raise ManualPromotionFailed(
                f"the ledger that was started by hand failed: {error}".splitlines()[0]
            ) from error
        if not leave_running:
            self._pg_ctl("stop", "-m", "fast")
        if made != 1:
            raise ManualPromotionFailed(f"the ledger that was started by hand has {made} threads with the key {thread}")
        return was_standby

    def _start(self) -> None:
        """Start PostgreSQL; repeat while the kernel keeps the pid of the killed postmaster."""
        for _ in range(STARTS_MAX - 1):
            try:
                self._pg_ctl("start", "-l", str(self.log))
            except ManualPromotionFailed:
                time.sleep(START_RETRY_S)
            else:
                return
        self._pg_ctl("start", "-l", str(self.log))

    def _connected(self) -> psycopg.Connection:
        return psycopg.connect(
            host="127.0.0.1", port=self.port, dbname="palaver", user="palaver", password=self.password,
            connect_timeout=5, autocommit=True,
        )  # fmt: skip

    def _pg_ctl(self, *order: str) -> None:
        account = self.account
        done = subprocess.run(
            [str(self.programs / "pg_ctl"), "-D", str(self.data), "-w", "-t", str(PG_CTL_S), *order],
            stdin=subprocess.DEVNULL,
            # PostgreSQL inherits the output and keeps it open while it runs, so a pipe would not end.
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd=self.data.parent if account is None else "/",
            env={"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC"},
            start_new_session=True,
            user=None if account is None else account.uid,
            group=None if account is None else account.gid,
            extra_groups=None if account is None else [],
            timeout=2 * PG_CTL_S,
            check=False,
        )
        if done.returncode != 0:
            raise ManualPromotionFailed(f"pg_ctl {order[0]} failed with {done.returncode}; see {self.log}")


def _is_standby(connection: psycopg.Connection) -> bool:
    row = connection.execute("SELECT pg_is_in_recovery()").fetchone()
    return row is not None and bool(row[0])

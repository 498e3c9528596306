"""A careless operator, who takes the ledger of a dead region into their own hands.

Decides what they do: start PostgreSQL from the region's data, promote it where it is a standby, and write a row that
nobody sent. Refuses to know how that is made good: that is what the drill is about.
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
"""pg_ctl's own limit for a start, which replays WAL, and for a promotion."""

STARTS_MAX = 20
START_AGAIN_S = 0.5
"""PostgreSQL takes a zombie for one that runs; init reaps it within seconds, also on a starved machine."""

OPERATOR_BODY = "made up by an operator"
"""The body of the row: no client ever sends it, so that the judges find it wherever it gets to."""

INSERT_COMMENT = """
INSERT INTO palaver.comments (site_id, thread_id, depth, body, epoch)
SELECT threads.site_id, threads.id, 0, %s, threads.epoch FROM palaver.threads WHERE threads.key = %s
"""


class ManualPromotionFailed(DeploymentError):
    """What the operator wanted to do by hand cannot be done."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ManualPromotion:
    """What an operator needs to get at one region's ledger.

    Attributes:
        programs: PostgreSQL's programs.
        data: The ledger's data folder.
        log: Where PostgreSQL writes.
        account: Whom it runs as when we are root.
        port: Where it listens, as its own configuration says.
        password: Of the superuser.
    """

    programs: Path
    data: Path
    log: Path
    account: Account | None
    port: int
    password: str

    def promote(self, thread: str, *, leave_running: bool) -> bool:
        """Make a primary of it and a row in it.

        Returns:
            Whether it was a standby; else it was started as the primary that it had been.

        Raises:
            ManualPromotionFailed: PostgreSQL does not start, or is not promoted, or takes no row.
        """
        self._start()
        try:
            with self._connected() as connection:
                was_standby = _is_standby(connection)
            if was_standby:
                self._pg_ctl("promote")
            with self._connected() as connection:
                # An operator who does not wait for other regions: the row is here and nowhere else.
                connection.execute("SET synchronous_commit = local")
                made = connection.execute(INSERT_COMMENT, (OPERATOR_BODY, thread)).rowcount
        except (psycopg.Error, ManualPromotionFailed, subprocess.TimeoutExpired) as error:
            with contextlib.suppress(ManualPromotionFailed, subprocess.TimeoutExpired):
                self._pg_ctl("stop", "-m", "immediate")
            raise ManualPromotionFailed(
                f"the ledger that was started by hand refuses: {error}".splitlines()[0]
            ) from error
        if not leave_running:
            self._pg_ctl("stop", "-m", "fast")
        if made != 1:
            raise ManualPromotionFailed(f"{made} threads are called {thread} in the ledger that was started by hand")
        return was_standby

    def _start(self) -> None:
        """Start it, again for as long as the kernel keeps the pid of the postmaster that was killed."""
        for _ in range(STARTS_MAX - 1):
            try:
                self._pg_ctl("start", "-l", str(self.log))
            except ManualPromotionFailed:
                time.sleep(START_AGAIN_S)
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
            # What it starts keeps its output open for as long as it lives: nobody could read that to its end.
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

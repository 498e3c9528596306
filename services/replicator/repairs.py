"""Runs the repair of the view: builds its parts, decides when a comparison runs, and handles orders.

Decides the schedule: each interval, at once after the leadership changed, and on an operator's order; a scrub once in a
longer interval. The secret of the trees is derived from the token that the regions share. `sync.repair` compares.
"""

import asyncio
import contextlib
import hashlib
import hmac
import logging
import time
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final

import asyncpg
import orjson
import psycopg

from regions.coordination import Leadership, LeadershipView
from regions.topology import Topology
from services.replicator.invalidation import CacheInvalidator
from services.replicator.mending import ViewMender
from services.tables import TABLES
from services.view.cache import Invalidation
from sync.apply import Applied, Applier
from sync.change import SyncError
from sync.channel.direct.comparison_client import ComparisonClient
from sync.channel.direct.comparisons import Comparisons
from sync.channel.direct.server import ChangeServer
from sync.ledger_tree import LedgerTree
from sync.repair import Repair, RepairBusy
from sync.view_tree import ViewTree
from sync.walsender import connect

if TYPE_CHECKING:
    from sync.checkpoint import ViewConnection

ORDER_PATH: Final = "/repair"
BODY_BYTES_MAX: Final = 4096
BY_CHARS_MAX: Final = 200

PREPARE_PAUSE_S: Final = 5.0
RETRY_S: Final = 5.0
"""Pause after a comparison that failed, for example because another region compares."""

CONNECT_TIMEOUT_S: Final = 5.0

WARM_INTERVAL_S: Final = 20.0
"""Between two readings of the marked rows on a standby. At 500 changes/s they are 10,000."""

_VIEW_ERRORS: Final = (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError)

_log = logging.getLogger("palaver.repair")


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """When comparisons run.

    Attributes:
        interval_s: Seconds between two comparisons; 0: only on order.
        scrub_interval_s: Seconds between two scrubs; 0: only on order.
    """

    interval_s: float
    scrub_interval_s: float


class Repairs:
    """The repair of one view, and the comparisons that the region serves while it leads.

    Attributes:
        repair: Compares and mends.
        ledger_tree: The tree of the own ledger; None in a region without one.
        view_tree: The tree of the view.
        comparisons: The sessions that the region serves while it leads; None in a region without a ledger.
        ready: Whether the view's tree is installed and computed.
    """

    def __init__(  # noqa: PLR0913 - the composition root passes what it built, by name
        self,
        *,
        topology: Topology,
        leaders: LeadershipView,
        applier: Applier[Invalidation],
        server: ChangeServer,
        invalidator: CacheInvalidator,
        view_url: str,
        token: str,
        schedule: Schedule,
    ) -> None:
        """Build the parts; `run` opens connections."""
        secret = hmac.digest(token.encode(), b"palaver merkle " + topology.cell.encode(), hashlib.sha256)
        self._authorization = f"Bearer {token}".encode()
        self._leaders = leaders
        self._region = topology.region
        self._view_url = view_url
        self._schedule = schedule
        self._ledger_conninfo = server.source.conninfo
        self._scrubbed_at = time.monotonic()
        self.ready = False
        self.view_tree = ViewTree(cell=topology.cell, tables=TABLES, secret=secret)
        self.ledger_tree: LedgerTree | None = None
        self.comparisons: Comparisons | None = None
        if server.source.conninfo is not None:
            self.ledger_tree = LedgerTree(tables=TABLES, secret=secret)
            self.comparisons = server.comparisons = Comparisons(
                source=server.source, tree=self.ledger_tree, wait_until_applied=applier.wait_until_applied
            )
        self.repair = Repair(
            applier=applier,
            tree=self.view_tree,
            mender=ViewMender(TABLES),
            open_comparison=ComparisonClient(topology=topology, leaders=leaders, token=token).open,
            connect=self._connect,
            on_mended=invalidator.invalidate,
        )

    def note(self, applied: Applied[Invalidation]) -> None:
        """Mark the rows of a committed batch in the tree of the own ledger."""
        if self.ledger_tree is not None:
            for transaction in applied.transactions:
                self.ledger_tree.mark(transaction.changes, transaction.position)
            self.ledger_tree.marked_up_to(applied.position)

    async def run(self) -> None:
        """Prepare the view's tree, then compare on schedule until cancelled."""
        while not self.ready:
            try:
                async with self._connect() as connection:
                    await self.view_tree.prepare(connection)
                self.ready = True
            except _VIEW_ERRORS as error:
                _log.warning("the tree of the view is not ready: %s", " ".join(str(error).split()))
                await asyncio.sleep(PREPARE_PAUSE_S)
        compared_under: Leadership | None = None
        while True:
            leadership = await self._serving()
            reason = "schedule" if _same(leadership, compared_under) else f"epoch {leadership.epoch} serves"
            scrub = 0 < self._schedule.scrub_interval_s < time.monotonic() - self._scrubbed_at
            pause_s = self._schedule.interval_s
            with contextlib.suppress(RepairBusy):
                result = await self.repair.run(reason="scrub" if scrub else reason, scrub=scrub)
                if result.verdict == "failed":
                    pause_s = min(pause_s, RETRY_S)
                    await self._prepare_again()
                else:
                    compared_under = leadership
                    if scrub:
                        self._scrubbed_at = time.monotonic()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause_s):
                    await self._until_another(leadership)

    async def run_warming(self) -> None:
        """Keep the rows of the own member in memory while another region leads, until cancelled.

        After a failover to this region, the first comparison then reads only the rows that changed.
        """
        while True:
            await asyncio.sleep(WARM_INTERVAL_S)
            leadership = self._leaders.current
            if self.ledger_tree is None or self._ledger_conninfo is None or leadership is None:
                continue
            if leadership.phase != "serving" or leadership.leader == self._region:
                continue
            try:
                async with await connect(self._ledger_conninfo, replication=False) as connection:
                    await self.ledger_tree.warm(connection, leadership.epoch)
            except (psycopg.Error, SyncError, OSError) as error:
                _log.info("the rows of the own ledger were not read: %s", " ".join(str(error).split()))

    async def order(self, authorization: bytes, body: bytes) -> tuple[int, dict[str, object]]:
        """Compare on an operator's order; return the status and the JSON of the response.

        200: the comparison ran; the document has its verdict. 400: the order is invalid. 401: the token is wrong.
        409: a comparison runs already.
        """
        if not hmac.compare_digest(authorization, self._authorization):
            return HTTPStatus.UNAUTHORIZED, {"detail": "The token of the regions is missing or wrong."}
        try:
            scrub, dry_run, by = _parse(body)
        except (ValueError, KeyError, TypeError) as error:
            return HTTPStatus.BAD_REQUEST, {"detail": f"The order is invalid: {error}"}
        if not self.ready:
            return HTTPStatus.CONFLICT, {"detail": "The tree of the view is being computed. Try again later."}
        try:
            result = await self.repair.run(reason=f"ordered by {by}", scrub=scrub, dry_run=dry_run)
        except RepairBusy as error:
            return HTTPStatus.CONFLICT, {"detail": str(error)}
        if scrub:
            self._scrubbed_at = time.monotonic()
        return HTTPStatus.OK, result.document()

    def status(self) -> dict[str, object]:
        """Return the facts for /status."""
        repair = self.repair
        return {
            "ready": self.ready,
            "running": repair.running,
            "rows": self.view_tree.rows,
            "comparing": None if self.comparisons is None else self.comparisons.open_for,
            "last": None if repair.last is None else repair.last.document(),
            "last_clean": None if repair.last_clean is None else repair.last_clean.document(),
            "last_scrub_at": repair.last_scrub_at,
            "found": dict(repair.found),
            "mended": dict(repair.mended),
            "events": [
                {"kind": one.kind, "table": one.table, "key": one.key, "columns": one.columns}
                for one in repair.events[-20:]
            ],
        }

    async def _prepare_again(self) -> None:
        """Compute the leaves, if a table was truncated or another process has replaced the tree."""
        try:
            async with self._connect() as connection:
                await self.view_tree.prepare(connection)
        except _VIEW_ERRORS as error:
            _log.warning("the tree of the view is not ready: %s", " ".join(str(error).split()))

    async def _serving(self) -> Leadership:
        """Wait for a leadership that serves, if comparisons are scheduled at all."""
        if not self._schedule.interval_s:
            await asyncio.Event().wait()
        leadership = self._leaders.current
        while leadership is None or leadership.phase != "serving":
            leadership = await self._leaders.next_after(leadership)
        return leadership

    async def _until_another(self, leadership: Leadership) -> None:
        """Wait for another leadership that serves."""
        current = leadership
        while current.phase != "serving" or _same(current, leadership):
            current = await self._leaders.next_after(current)

    @contextlib.asynccontextmanager
    async def _connect(self) -> AsyncGenerator["ViewConnection"]:
        connection = await asyncpg.connect(
            self._view_url, timeout=CONNECT_TIMEOUT_S, server_settings={"application_name": "palaver-repair"}
        )
        try:
            yield connection
        finally:
            connection.terminate()


def _same(one: Leadership, other: Leadership | None) -> bool:
    return other is not None and (one.epoch, one.leader) == (other.epoch, other.leader)


def _parse(body: bytes) -> tuple[bool, bool, str]:
    if len(body) > BODY_BYTES_MAX:
        raise ValueError(f"more than {BODY_BYTES_MAX} bytes")
    fields: dict[str, Any] = orjson.loads(body)
    scrub, dry_run, by = fields.get("scrub", False), fields.get("dry_run", False), fields["by"]
    if not isinstance(scrub, bool) or not isinstance(dry_run, bool):
        raise TypeError("`scrub` and `dry_run` are true or false")
    if not isinstance(by, str) or not 0 < len(by) <= BY_CHARS_MAX:
        raise ValueError(f"`by` has 1 to {BY_CHARS_MAX} characters")
    return scrub, dry_run, by

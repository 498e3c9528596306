"""Runs the process `python -m services.replicator`: reads the settings, runs the tasks, and stops at a signal.

Decides the order in which tasks start and stop. A task that fails ends the process, and the supervisor restarts it. The
view's checkpoint is the only state that a new process needs.
"""

import asyncio
import logging
import signal
import socket
import sys
import threading
import time
from typing import Final

import uvloop
from prometheus_client import REGISTRY
from pydantic import SecretStr

from regions.coordination import Coordination, LeadershipView, etcd_endpoints
from regions.position import Position
from regions.topology import InvalidTopology, Topology, load_topology
from services import view
from services.replicator import dead_letters
from services.replicator.invalidation import CacheInvalidator
from services.replicator.metrics import BatchSizes, ReplicatorMetrics
from services.replicator.parts import Parts
from services.replicator.projection import ViewProjection
from services.replicator.repairs import ORDER_PATH, Repairs, Schedule
from services.replicator.settings import InvalidSettings, Settings
from services.tables import TABLES
from services.telemetry.collector import configure_garbage_collector
from services.telemetry.http_server import ListenFailed, bind, serve_http
from services.telemetry.internal import serve_internal
from services.telemetry.logs import configure_logging, set_epoch_provider
from services.telemetry.tracing import Tracing, configure_tracing
from services.view.cache import Invalidation
from services.view.indexes import IndexBuildFailed, build_indexes
from services.view.tables_check import check_tables
from sync.apply import Applied, Applier
from sync.channel.direct.client import DirectChannel
from sync.channel.direct.server import ChangeServer
from sync.dead_letter_orders import DeadLetterOrders
from sync.lag import LagMeter
from sync.slots import SlotWatch

PROCESS: Final = "replicator"
EXIT_USAGE: Final = 2

MIGRATION_PAUSE_S: Final = 1.0
"""Seconds between two attempts to migrate the view."""

INDEX_PAUSE_S: Final = 5.0
"""Seconds between two attempts to build indexes. No task waits for them.

The pause is long because an attempt that fails may have read a whole table.
"""

STREAM_STOP_S: Final = 1
"""`ChangeServer.close` ends streams at once; this bounds a stream whose subscriber does not read."""

_log = logging.getLogger("palaver.replicator")


def main() -> int:
    """Run until SIGTERM or SIGINT; return the exit status."""
    try:
        settings = Settings.load()
        topology = load_topology(settings.topology)
        listeners = [bind(settings.internal_listen), bind(settings.changes_listen)]
    except (InvalidSettings, InvalidTopology, ListenFailed) as error:
        print(f"replicator: {error}", file=sys.stderr)  # noqa: T201 - the log is not configured yet
        return EXIT_USAGE
    configure_logging(process=PROCESS, region=topology.region, cell=topology.cell, level=settings.log_level)
    configure_garbage_collector()
    try:
        uvloop.run(run(settings, topology, *listeners))
    except Exception:  # noqa: BLE001 - last chance to log a failure
        _log.exception("the replicator ends")
        return 1
    return 0


async def run(settings: Settings, topology: Topology, internal: socket.socket, changes: socket.socket) -> None:
    """Run all tasks until a signal arrives."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    tracing = configure_tracing(process=PROCESS, region=topology.region, ratio=settings.trace_ratio)
    coordination = Coordination(etcd_endpoints(topology), settings.etcd_user, _plain(settings.etcd_password))
    batches = BatchSizes()
    async with coordination:
        leaders = LeadershipView(coordination, topology.cell)
        parts = _build(settings, topology, leaders, batches, tracing)
        REGISTRY.register(ReplicatorMetrics(parts, batches))
        set_epoch_provider(lambda: leaders.current.epoch if leaders.current else None)
        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(
                    serve_internal(
                        internal,
                        missing=parts.missing,
                        status=parts.status,
                        orders={ORDER_PATH: parts.repairs.order, dead_letters.PATH: parts.letter_orders.answer},
                    )
                ),
                group.create_task(serve_http(parts.server.app(), changes, graceful_stop_s=STREAM_STOP_S)),
                group.create_task(leaders.run()),
                group.create_task(parts.invalidator.run()),
                group.create_task(_apply(parts, settings.view_url.get_secret_value())),
            ]
            if parts.slot_watch is not None:
                tasks.append(group.create_task(parts.slot_watch.run()))
            await stop.wait()
            _log.info("stopping")
            parts.server.close()
            for task in tasks:
                task.cancel()
    tracing.close()


def _build(
    settings: Settings, topology: Topology, leaders: LeadershipView, batches: BatchSizes, tracing: Tracing
) -> Parts:
    token = settings.changes_token.get_secret_value()
    conninfo = _plain(settings.ledger_replication)
    meter = LagMeter(now=time.monotonic())
    invalidator = CacheInvalidator(cell=topology.cell, redis_url=settings.redis_url.get_secret_value())

    async def on_applied(applied: Applied[Invalidation]) -> None:
        repairs.note(applied)
        invalidator.note(applied)
        if applied.transactions:
            batches.observe(len(applied.transactions))
        for transaction in applied.transactions:
            if transaction.trace is not None:
                with tracing.linked_span("apply", transaction.trace, region=topology.region):
                    _log.debug("applied %s", transaction.position)

    def on_checkpoint_read(position: Position, fresh_at_us: int) -> None:
        invalidator.void(position, fresh_at_us)
        if repairs.ledger_tree is not None:
            repairs.ledger_tree.resume(position)

    server = ChangeServer(topology=topology, registry=TABLES, leaders=leaders, ledger_conninfo=conninfo, token=token)
    projection = ViewProjection(TABLES)
    applier = Applier(
        cell=topology.cell,
        view_url=settings.view_url.get_secret_value(),
        registry=TABLES,
        projection=projection,
        meter=meter,
        on_checkpoint_read=on_checkpoint_read,
        on_applied=on_applied,
    )
    repairs = Repairs(
        topology=topology,
        leaders=leaders,
        applier=applier,
        server=server,
        invalidator=invalidator,
        view_url=settings.view_url.get_secret_value(),
        token=token,
        schedule=Schedule(interval_s=settings.repair_interval_s, scrub_interval_s=settings.scrub_interval_s),
    )
    orders = DeadLetterOrders(
        cell=topology.cell,
        applier=applier,
        registry=TABLES,
        projection=projection,
        on_retried=invalidator.invalidate,
    )
    return Parts(
        topology=topology,
        leaders=leaders,
        meter=meter,
        server=server,
        channel=DirectChannel(topology=topology, leaders=leaders, token=token, meter=meter),
        applier=applier,
        repairs=repairs,
        letter_orders=dead_letters.DeadLetterHandler(orders, token),
        invalidator=invalidator,
        slot_watch=None
        if conninfo is None
        else SlotWatch(conninfo=conninfo, leads=lambda: server.serving_leadership() is not None),
    )


async def _apply(parts: Parts, view_url: str) -> None:
    """Migrate the view to the schema of this version, then apply changes until cancelled."""
    while not parts.migrated:
        try:
            await _migrate(view_url)
            parts.migrated = True
        except view.MigrationFailed as error:
            _log.warning("the view cannot be migrated yet: %s", error)
            await asyncio.sleep(MIGRATION_PAUSE_S)
    async with asyncio.TaskGroup() as group:
        group.create_task(_build_indexes(parts, view_url))
        group.create_task(parts.applier.run(parts.channel))
        group.create_task(parts.repairs.run())
        group.create_task(parts.repairs.run_warming())


async def _build_indexes(parts: Parts, view_url: str) -> None:
    """Build the indexes of this version on the view while changes are applied."""
    while not parts.indexed:
        try:
            await build_indexes(view_url)
            parts.indexed = True
        except IndexBuildFailed as error:
            _log.warning("the view's indexes cannot be built yet: %s", error)
            await asyncio.sleep(INDEX_PAUSE_S)


async def _migrate(view_url: str) -> None:
    """Migrate in a daemon thread, so that the process can end while the migration waits for a lock."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[None] = loop.create_future()

    def settle(error: Exception | None) -> None:
        if done.done():
            return
        if error is None:
            done.set_result(None)
        else:
            done.set_exception(error)

    def work() -> None:
        error: Exception | None = None
        try:
            view.migrate(view_url)
            check_tables(view_url, TABLES)
        except Exception as failure:  # noqa: BLE001 - raised again at the await
            error = failure
        if not loop.is_closed():
            loop.call_soon_threadsafe(settle, error)

    threading.Thread(target=work, name="migrate", daemon=True).start()
    await done


def _plain(secret: SecretStr | None) -> str | None:
    return None if secret is None else secret.get_secret_value()


if __name__ == "__main__":
    sys.exit(main())

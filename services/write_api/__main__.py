"""Composition root of the write API: reads the settings, binds the sockets, starts and stops all parts in order."""

import asyncio

from prometheus_client import Gauge

from regions.coordination import Coordination, LeadershipView, etcd_endpoints
from regions.topology import InvalidTopology, Topology, load_topology
from services.api.process import give_up, load_settings, run_until_signalled
from services.telemetry.collector import configure_garbage_collector
from services.telemetry.http_server import bind, bind_public, serve_http
from services.telemetry.internal import serve_internal
from services.telemetry.logs import configure_logging, set_epoch_provider
from services.telemetry.tracing import configure_tracing
from services.write_api.agent_link import AgentLink, agent_client
from services.write_api.application import write_application
from services.write_api.leadership import LeadershipGuard, watch_fence_row
from services.write_api.pool import LedgerPool
from services.write_api.purge import purge_forever
from services.write_api.settings import WriteSettings

PROCESS = "write_api"


async def run(settings: WriteSettings, topology: Topology) -> None:
    """Serve until cancelled."""
    public, internal = bind_public(settings.listen, settings.unix_listen), bind(settings.internal_listen)
    tracing = configure_tracing(process=PROCESS, region=topology.region, ratio=settings.trace_ratio)
    password = settings.etcd_password
    coordination = Coordination(
        etcd_endpoints(topology), settings.etcd_user, password.get_secret_value() if password else None
    )
    client = agent_client(settings.agent, settings.agent_secret.get_secret_value())
    agent = AgentLink(client)
    view = LeadershipView(coordination, topology.cell)
    guard = LeadershipGuard(lambda: view.current, topology.region)
    pool = LedgerPool(
        settings.ledger_url,
        size=settings.pool_size,
        write_timeout_s=settings.write_timeout_ms / 1000,
        quorum_wait_cancelled=agent.quorum_wait_cancelled,
        broken=guard.note_broken,
    )
    try:
        async with client, coordination, pool, asyncio.TaskGroup() as group:
            set_epoch_provider(lambda: guard.epoch)
            Gauge("palaver_epoch", "Epoch this process knows of").set_function(lambda: guard.epoch or 0)

            def missing() -> list[str]:
                return [] if guard.epoch is not None else ["no leadership record was received from etcd yet"]

            def status() -> dict[str, object]:
                current = view.current
                return {
                    "epoch": guard.epoch,
                    "leader": current and current.leader,
                    "phase": current and current.phase,
                    "serves": guard.serves,
                    "ledger_connected": pool.reachable,
                }

            app = write_application(
                settings=settings,
                cell=topology.cell,
                pool=pool,
                guard=guard,
                agent=agent,
                tracing=tracing,
                missing=missing,
            )
            group.create_task(view.run(), name="leadership")
            group.create_task(watch_fence_row(view, guard, pool), name="openings")
            group.create_task(pool.keep_idle_connections(), name="connections")
            group.create_task(agent.run(), name="agent")
            group.create_task(purge_forever(pool, guard), name="purge")
            group.create_task(serve_internal(internal, missing=missing, status=status), name="internal")
            group.create_task(serve_http(app, *public), name="public")
    finally:
        await asyncio.to_thread(tracing.close)


def main() -> None:
    """Run the process."""
    settings = load_settings(WriteSettings)
    try:
        topology = load_topology(settings.topology)
    except InvalidTopology as error:
        give_up(f"PALAVER_TOPOLOGY: {error}")
    configure_logging(process=PROCESS, region=topology.region, cell=topology.cell, level=settings.log_level)
    configure_garbage_collector()
    run_until_signalled(lambda: run(settings, topology))


if __name__ == "__main__":
    main()

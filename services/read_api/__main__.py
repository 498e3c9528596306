"""Composition root of the read API: reads the settings, binds the sockets, starts and stops all parts in order."""

import asyncio
import math

from prometheus_client import Gauge

from regions.topology import InvalidTopology, Topology, load_topology
from services.api.process import give_up, load_settings, run_until_signalled
from services.api.site_origins import SiteOrigins
from services.read_api.application import read_application
from services.read_api.freshness import Freshness
from services.read_api.invalidations import follow_invalidations
from services.read_api.memory import PageMemory
from services.read_api.ready_pages import ReadyPages
from services.read_api.settings import ReadSettings
from services.read_api.shared_cache import SharedCache
from services.read_api.strong import LeaderProof, leader_client
from services.read_api.view_reader import ViewReader
from services.telemetry.collector import configure_garbage_collector
from services.telemetry.http_server import bind, bind_public, serve_http
from services.telemetry.internal import serve_internal
from services.telemetry.logs import configure_logging, set_epoch_provider
from services.telemetry.tracing import configure_tracing

PROCESS = "read_api"


async def run(settings: ReadSettings, topology: Topology) -> None:
    """Serve until cancelled."""
    public, internal = bind_public(settings.listen, settings.unix_listen), bind(settings.internal_listen)
    tracing = configure_tracing(process=PROCESS, region=topology.region, ratio=settings.trace_ratio)
    freshness = Freshness(topology.cell)
    memory = PageMemory(bytes_max=settings.memory_bytes_max, life_s=settings.page_life_s)
    shared = SharedCache(settings.redis_url, page_life_s=settings.page_life_s)
    set_epoch_provider(lambda: freshness.applied.epoch or None)
    Gauge("palaver_epoch", "Epoch of the newest applied change").set_function(lambda: freshness.applied.epoch)
    Gauge("palaver_view_staleness_ms", "Age of the view; NaN while it is not known").set_function(
        lambda: math.nan if freshness.staleness_ms is None else freshness.staleness_ms
    )
    Gauge("palaver_invalidations_heard", "Whether invalidations arrive, so that pages are cached").set_function(
        lambda: memory.enabled
    )
    Gauge("palaver_page_memory_bytes", "Bytes of kept pages").set_function(lambda: memory.bytes)

    def missing() -> list[str]:
        if not freshness.schema_ready:
            return ["the view cannot be reached or has no schema yet"]
        return [] if freshness.reachable else ["the view does not answer"]

    def status() -> dict[str, object]:
        return {
            "applied_epoch": freshness.applied.epoch,
            "applied_lsn": freshness.applied.lsn,
            "staleness_ms": freshness.staleness_ms,
            "heard_epoch": None if freshness.announced is None else freshness.announced.position.epoch,
            "heard_lsn": None if freshness.announced is None else freshness.announced.position.lsn,
            "view_reachable": freshness.reachable,
            "invalidations_heard": memory.enabled,
            "memory_bytes": memory.bytes,
        }

    try:
        async with leader_client() as client, ViewReader(settings.view_url, size=settings.view_pool_size) as view:
            origins = SiteOrigins(view.origins)
            ready = ReadyPages(memory=memory, freshness=freshness, origins=origins, cell=topology.cell, tracing=tracing)
            voters = [voter.write_api for voter in topology.voters if voter.write_api is not None]
            proof = LeaderProof(client, voters, topology.cell)
            app = read_application(
                settings=settings,
                cell=topology.cell,
                view=view,
                shared=shared,
                memory=memory,
                freshness=freshness,
                origins=origins,
                prover=proof,
                tracing=tracing,
                missing=missing,
            )
            async with asyncio.TaskGroup() as group:
                group.create_task(freshness.run(view, memory.channel_lost), name="freshness")
                group.create_task(proof.run(), name="proof")
                group.create_task(follow_invalidations(shared, memory, freshness), name="invalidations")
                group.create_task(serve_internal(internal, missing=missing, status=status), name="internal")
                group.create_task(serve_http(app, *public, ready=ready), name="public")
    finally:
        await shared.close()
        await asyncio.to_thread(tracing.close)


def main() -> None:
    """Run the process."""
    settings = load_settings(ReadSettings)
    try:
        topology = load_topology(settings.topology)
    except InvalidTopology as error:
        give_up(f"PALAVER_TOPOLOGY: {error}")
    configure_logging(process=PROCESS, region=topology.region, cell=topology.cell, level=settings.log_level)
    configure_garbage_collector()
    run_until_signalled(lambda: run(settings, topology))


if __name__ == "__main__":
    main()

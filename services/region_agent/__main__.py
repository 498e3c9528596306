"""Runs the region agent: reads the settings, composes the region's parts, and stops the ledger member at a signal.

A signal means that the region is being stopped, so the ledger member stops too, within the 10 s that a supervisor
allows. If the agent is killed, the member keeps running and the next agent adopts it.
"""

import asyncio

from prometheus_client import REGISTRY

from regions.agent import RegionAgent
from regions.coordination import AccessRefused, Coordination, CorruptRecord, etcd_endpoints
from regions.edge import EdgeConfigurator
from regions.member import MemberFailed, MemberSettings, MemberUnusable
from regions.member.failover_member import FailoverMember
from regions.topology import InvalidTopology, Topology, load_topology
from services.api.leader_port import CANCELLED_WAIT_PATH, CURRENT_PATH
from services.api.process import give_up, load_settings, run_until_signalled
from services.ledger import MigrationFailed, migrate
from services.region_agent import orders, reports
from services.region_agent.settings import AgentSettings, WrongSettings
from services.region_agent.status import AgentCollector, missing, observe_step, status
from services.telemetry.collector import configure_garbage_collector
from services.telemetry.http_server import bind
from services.telemetry.internal import serve_internal
from services.telemetry.logs import configure_logging, set_epoch_provider

PROCESS = "region_agent"

_HOPELESS = (AccessRefused, CorruptRecord, MemberUnusable)
"""Errors that no retry can fix: the process prints one line and ends."""


async def prepare_ledger(url: str) -> None:
    """Bring the ledger's schema up to date.

    Raises:
        MemberFailed: The migration failed.
    """
    try:
        await asyncio.to_thread(migrate, url)
    except MigrationFailed as error:
        raise MemberFailed(f"ledger schema: {error}") from error


async def run(settings: AgentSettings, topology: Topology, member: MemberSettings | None) -> None:
    """Run the region until the task is cancelled, then stop the region's member."""
    internal = bind(settings.internal_listen)
    endpoints = etcd_endpoints(topology)
    password = settings.etcd_password.get_secret_value()
    async with Coordination(endpoints, settings.etcd_user, password) as coordination:
        agent = RegionAgent(
            topology,
            coordination,
            member=None if member is None else FailoverMember(member),
            prepare_ledger=prepare_ledger,
            edge=EdgeConfigurator(topology, settings.edge()),
            local=settings.local(),
        )
        set_epoch_provider(lambda: agent.view.current.epoch if agent.view.current else None)
        REGISTRY.register(AgentCollector(agent))
        agent.switcher.on_step = observe_step
        secret = settings.agent_secret.get_secret_value()
        order_handler = orders.OrderHandler(agent, secret)
        report_handler = reports.ReportHandler(agent.switcher, secret)
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(agent.run(), name="agent")
                tasks.create_task(
                    serve_internal(
                        internal,
                        missing=lambda: missing(agent),
                        status=lambda: status(agent),
                        orders={
                            orders.PATH: order_handler.answer,
                            CANCELLED_WAIT_PATH: report_handler.quorum_wait_cancelled,
                            CURRENT_PATH: report_handler.current,
                        },
                    ),
                    name="internal",
                )
        except BaseExceptionGroup as group:
            hopeless, _ = group.split(_HOPELESS)
            if hopeless is None:
                raise
            give_up(_first(hopeless))
        except asyncio.CancelledError:
            # Only a signal stops the member. After an error in the agent the ledger keeps running.
            await agent.stop()
            raise


def _first(group: BaseExceptionGroup[Exception]) -> str:
    error: Exception | BaseExceptionGroup[Exception] = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return str(error)


def main() -> None:
    """Run the process."""
    settings = load_settings(AgentSettings)
    try:
        topology = load_topology(settings.topology)
        member = settings.member(topology)
        settings.state_dir.mkdir(parents=True, exist_ok=True)
    except InvalidTopology as error:
        give_up(f"PALAVER_TOPOLOGY: {error}")
    except WrongSettings as error:
        give_up(str(error))
    except OSError as error:
        give_up(f"PALAVER_STATE_DIR: {settings.state_dir} cannot be created: {error.strerror}")
    configure_logging(process=PROCESS, region=topology.region, cell=topology.cell, level=settings.log_level)
    configure_garbage_collector()
    run_until_signalled(lambda: run(settings, topology, member))


if __name__ == "__main__":
    main()

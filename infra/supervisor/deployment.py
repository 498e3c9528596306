"""Makes a running deployment from options: it checks first, then writes, then starts processes.

All checks come before the first process starts, so that a refusal leaves no process behind.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import uuid
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace

import orjson

from infra.servers.resolver import ServerBinary, ServerMissing, ServerName, resolve_all
from infra.servers.unprivileged import account, prune, reachable_install
from infra.supervisor.clocks import create_clocks, find_library, have_clocks
from infra.supervisor.control import serve_control
from infra.supervisor.environment import DeploymentContext
from infra.supervisor.errors import DeploymentError, PlanMismatch
from infra.supervisor.layout import Layout, create_folders
from infra.supervisor.lock import SUPERVISOR, owned_lock
from infra.supervisor.logs import log_to
from infra.supervisor.plan import (
    DEFAULT_REGIONS,
    Plan,
    check_ports,
    dump_plan,
    load_plan,
    make_plan,
    reserve_block,
    with_rtt,
)
from infra.supervisor.records import birth_of, end_living
from infra.supervisor.secrets import load_or_create_secrets, write_private
from infra.supervisor.supervisor import Supervisor

log = logging.getLogger("infra.supervisor")


class ServersMissing(DeploymentError):
    """A server binary cannot be found; the message names it and what to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeploymentOptions:
    """The options of the command line; None keeps the stored value, or takes the default at the first start.

    A deployment that has shiftable clocks keeps them, whatever `clocks` is: all its processes use the same kind of
    clock.
    """

    regions: tuple[str, ...] | None = None
    view_regions: tuple[str, ...] | None = None
    rtt_ms: float | None = None
    port_base: int | None = None
    rtt_ms_default: float = 0.0
    clocks: bool = False
    limit_clients: bool | None = None


def settle_plan(layout: Layout, options: DeploymentOptions) -> Plan:
    """Return the plan of a data folder. The first start makes it, and each start writes it.

    Raises:
        InvalidPlan: The options contradict each other or are out of range.
        PlanMismatch: The folder holds a deployment of another shape.
        PortTaken: `port_base` is not free.
        AlreadyRunning: The deployment runs.
        DataFolderUnusable: The folder cannot be written.
        ClocksMissing: `clocks` is set and libfaketime is missing.
    """
    before = load_plan(layout.plan)
    made = None
    if before is None:
        made = make_plan(
            regions=options.regions or DEFAULT_REGIONS,
            view_regions=options.view_regions or (),
            rtt_ms=options.rtt_ms_default if options.rtt_ms is None else options.rtt_ms,
            port_base=options.port_base,
            deployment=uuid.uuid4().hex,
        )
        create_folders(layout, made.all_regions)
    else:
        _refuse_another_shape(layout, before, options)
    # The lock protects the plan of a running deployment. If two first starts run at once, the second uses the first's
    # plan.
    with owned_lock(layout, SUPERVISOR):
        found = load_plan(layout.plan) or made
        assert found is not None, "the plan existed before the lock was taken, and nothing removes a plan"
        _refuse_another_shape(layout, found, options)
        plan = found if options.rtt_ms is None else with_rtt(found, options.rtt_ms)
        if options.limit_clients is not None:
            plan = replace(plan, limit_clients=options.limit_clients)
        create_folders(layout, plan.all_regions)
        if options.clocks:
            find_library()
            layout.clocks.mkdir(exist_ok=True)
        write_private(layout.plan, dump_plan(plan))
    return plan


def _refuse_another_shape(layout: Layout, found: Plan, options: DeploymentOptions) -> None:
    asked = {
        "--regions": (options.regions, found.regions),
        "--view-regions": (options.view_regions, found.view_regions),
        "--port-base": (options.port_base, found.port_base),
    }
    for option, (wanted, stored) in asked.items():
        if wanted is not None and wanted != stored:
            shown = ",".join(stored) if isinstance(stored, tuple) else stored
            raise PlanMismatch(
                f"{layout.data} was made with {option} {shown or '(none)'}; leave {option} out, or use another --data"
            )


def find_servers() -> dict[ServerName, ServerBinary]:
    """Return all server binaries.

    Raises:
        ServersMissing: One is missing.
    """
    try:
        return resolve_all()
    except ServerMissing as error:
        raise ServersMissing(str(error)) from error


def make_context(layout: Layout, plan: Plan, servers: Mapping[ServerName, ServerBinary]) -> DeploymentContext:
    """Return what the command lines and environments of processes are made from."""
    runs_as = account()
    for store in prune():
        log.info("removed %s, whose deployment folder is gone", store)
    postgres_bin = reachable_install(servers["postgres"].bin_dir, runs_as)
    if have_clocks(layout):
        create_clocks(layout, plan, postgres_bin=postgres_bin, runs_as=runs_as)
    return DeploymentContext(
        plan=plan,
        secrets=load_or_create_secrets(layout.secrets),
        layout=layout,
        postgres_bin=postgres_bin,
        os_user=None if runs_as is None else runs_as.name,
    )


@contextmanager
def ownership(layout: Layout, plan: Plan) -> Generator[None]:
    """Own a data folder and its ports; end the processes that a dead supervisor left.

    Raises:
        AlreadyRunning: Another supervisor or guardian owns the folder.
        PortTaken: Another program uses a port.
    """
    with owned_lock(layout, SUPERVISOR), reserve_block(plan):
        ended = end_living(layout, plan.deployment, plan.all_regions)
        if ended:
            log.warning("ended %d processes that a dead supervisor left: %s", len(ended), ", ".join(ended))
        layout.records.unlink(missing_ok=True)
        check_ports(plan)
        try:
            yield
        finally:
            layout.control.unlink(missing_ok=True)
            layout.records.unlink(missing_ok=True)


async def run_deployment(
    layout: Layout,
    options: DeploymentOptions,
    *,
    on_progress: Callable[[Supervisor], None] = lambda _: None,
    alongside: Callable[[Supervisor], asyncio.Future[None] | None] = lambda _: None,
) -> None:
    """Run a deployment in this process until it is asked to stop (SIGINT, SIGTERM, `palaver down`).

    Args:
        layout: The data folder.
        options: The options of the command line.
        on_progress: Called after every change of a process.
        alongside: Called once the supervisor exists; may return a future, which is cancelled at the end.

    Raises:
        DeploymentError: The message is one line for the user; no process is left running.
    """
    servers = find_servers()
    plan = settle_plan(layout, options)
    handler = log_to(layout.log(None, "supervisor"), "supervisor")
    try:
        with ownership(layout, plan):
            context = make_context(layout, plan, servers)
            supervisor = Supervisor(context, servers)
            supervisor.watch(lambda: on_progress(supervisor))
            loop = asyncio.get_running_loop()
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.add_signal_handler(number, supervisor.stop_asked.set)
            companion = alongside(supervisor)
            try:
                async with serve_control(supervisor):
                    write_private(layout.control, control_document(context))
                    await supervisor.run()
            finally:
                if companion is not None and not companion.done():
                    companion.cancel()
                for number in (signal.SIGINT, signal.SIGTERM):
                    loop.remove_signal_handler(number)
    finally:
        logging.getLogger().removeHandler(handler)
        handler.close()


def control_document(context: DeploymentContext) -> bytes:
    """Return the content of `control.json`: pid, port and token with which commands reach this supervisor."""
    pid = os.getpid()
    return orjson.dumps(
        {
            "pid": pid,
            "born": birth_of(pid),
            "port": context.plan.deployment_port("control"),
            "token": context.secrets.control_token,
        }
    )

"""The plan of a deployment: its regions and ports, which never change after the first start, and its start options.

Decides which port each listener has, and refuses numbers of voters other than 3 and 5. Knows nothing of processes.
A deployment uses one block of ports, so that two deployments on a machine differ in one number only. An abstract unix
socket (Linux, unix(7)) reserves the block while the supervisor runs; the kernel releases it however the supervisor
ends.
"""

from __future__ import annotations

import random
import re
import socket
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import orjson
import psutil

from infra.supervisor.errors import DataFolderUnusable, InvalidPlan, PlanMismatch, PortTaken

FORMAT_VERSION = 1
REGION_NAME = re.compile(r"[a-z][a-z0-9-]{0,30}")
DEFAULT_REGIONS = ("us-east", "eu-west", "ap-south")
VOTER_COUNTS = (3, 5)  # the quorum spans regions and survives the loss of one or two of them

REGION_PORTS = (
    "edge", "write_api", "read_api", "ledger", "view", "redis", "etcd", "etcd_peer", "changes",
    "agent_internal", "write_api_internal", "read_api_internal", "replicator_internal", "socks",
    "agent",
)  # fmt: skip
LINKED_SERVICES = ("etcd", "ledger", "write_api", "read_api", "changes", "agent")
DEPLOYMENT_PORTS = ("control", "relay_control")
REGION_PORTS_MAX = 16  # one port is spare; more listeners would need plan format 2
# Below the usual ephemeral range (ip_local_port_range starts at 32768), above most registered ports.
BLOCK_RANGE = range(12_000, 20_000)  # room for about ninety deployments of three regions
BLOCK_TRIES_MAX = 200
RTT_MS_MAX = 2000  # several times the round trip between any two places on earth
PORT_MIN = 1024  # below it only root may listen


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a deployment consists of; stored in `deployment.json` and read at every start.

    Attributes:
        deployment: Random id; every process has it in its environment.
        regions: Voter regions in order of preference for leadership; the first is the first leader.
        view_regions: View-only regions.
        cell: The one cell of this deployment.
        port_base: First port of the block.
        rtt_ms: Round trip between any two regions at start, in milliseconds.
        limit_clients: Whether edges limit the requests of each client address. Off for load tests, whose clients share
        one
            address.
        format_version: Version of the file's format.
    """

    deployment: str
    regions: tuple[str, ...]
    view_regions: tuple[str, ...] = ()
    cell: str = "main"
    port_base: int = 0
    rtt_ms: float = 0.0
    limit_clients: bool = True
    format_version: int = field(default=FORMAT_VERSION)

    @property
    def all_regions(self) -> tuple[str, ...]:
        """Voters first, then the view-only regions."""
        return self.regions + self.view_regions

    @property
    def port_count(self) -> int:
        """The size of the port block."""
        pairs = len(self.all_regions) * (len(self.all_regions) - 1)
        return len(DEPLOYMENT_PORTS) + REGION_PORTS_MAX * len(self.all_regions) + pairs * len(LINKED_SERVICES)

    def is_voter(self, region: str) -> bool:
        """Whether the plan gives the region a member of the ledger and of etcd."""
        return region in self.regions

    def deployment_port(self, name: str) -> int:
        """The port of a listener that belongs to no region (`control`, `relay_control`)."""
        return self.port_base + DEPLOYMENT_PORTS.index(name)

    def port(self, region: str, listener: str) -> int:
        """The port on which a process of the region itself listens."""
        offset = self.all_regions.index(region) * REGION_PORTS_MAX + REGION_PORTS.index(listener)
        return self.port_base + len(DEPLOYMENT_PORTS) + offset

    def link_port(self, source: str, target: str, service: str) -> int:
        """The port on which the relay accepts connections of `source` to a service of `target`."""
        assert source != target, "a region reaches its own services without the relay"
        regions = self.all_regions
        first = self.port_base + len(DEPLOYMENT_PORTS) + REGION_PORTS_MAX * len(regions)
        others = [region for region in regions if region != source]
        pair = regions.index(source) * len(others) + others.index(target)
        return first + pair * len(LINKED_SERVICES) + LINKED_SERVICES.index(service)


def make_plan(
    *,
    regions: tuple[str, ...],
    view_regions: tuple[str, ...],
    rtt_ms: float,
    port_base: int | None,
    deployment: str,
) -> Plan:
    """Check the options of a first start, and choose ports.

    Raises:
        InvalidPlan: A name, a number or a port is invalid.
        PortTaken: A port of the block at `port_base` is used; without `port_base`, no free block was found.
    """
    names = regions + view_regions
    for name in names:
        if not REGION_NAME.fullmatch(name):
            raise InvalidPlan(f"region name {name!r}: use a letter, then letters, digits or '-', 31 at most")
    if len(set(names)) != len(names):
        raise InvalidPlan("a region is named twice; give each region once")
    if len(regions) not in VOTER_COUNTS:
        raise InvalidPlan(
            f"--regions names {len(regions)} region(s); a quorum that spans regions takes 3 or 5 "
            "(regions that only read go to --view-regions)"
        )
    _check_rtt(rtt_ms)
    plan = Plan(deployment=deployment, regions=regions, view_regions=view_regions, rtt_ms=rtt_ms)
    base = _free_block(plan.port_count) if port_base is None else _checked_base(port_base, plan.port_count)
    return Plan(deployment=deployment, regions=regions, view_regions=view_regions, rtt_ms=rtt_ms, port_base=base)


def with_rtt(plan: Plan, rtt_ms: float) -> Plan:
    """Return the plan with another round trip.

    Raises:
        InvalidPlan: The round trip is out of range.
    """
    _check_rtt(rtt_ms)
    return replace(plan, rtt_ms=rtt_ms)


def _check_rtt(rtt_ms: float) -> None:
    if not 0 <= rtt_ms <= RTT_MS_MAX:
        raise InvalidPlan(f"--rtt-ms {rtt_ms:g}: use 0 to {RTT_MS_MAX} milliseconds")


def load_plan(path: Path) -> Plan | None:
    """Return the plan in a file, or None if there is no file.

    Raises:
        DataFolderUnusable: The file cannot be read.
        PlanMismatch: The file has another format version, or is not a plan.
    """
    try:
        document: dict[str, Any] = orjson.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except OSError as error:
        raise DataFolderUnusable(
            f"data folder {path.parent} cannot be used: {error.strerror}; choose another with --data"
        ) from error
    except orjson.JSONDecodeError as error:
        raise PlanMismatch(f"{path} is not readable as a deployment plan: {error}") from error
    found = document.get("format_version")
    if found != FORMAT_VERSION:
        raise PlanMismatch(
            f"{path.parent} holds a deployment of format version {found}, this program writes version "
            f"{FORMAT_VERSION}; use the program that made it, or another folder with --data"
        )
    try:
        lists = {name: tuple[str, ...](document.pop(name)) for name in ("regions", "view_regions")}
        return Plan(**lists, **document)
    except (KeyError, TypeError) as error:
        raise PlanMismatch(f"{path} is not a deployment plan: {error}") from error


def dump_plan(plan: Plan) -> bytes:
    """Return the content of `deployment.json`."""
    return orjson.dumps(asdict(plan), option=orjson.OPT_INDENT_2)


def reserve_block(plan: Plan) -> socket.socket:
    """Reserve the plan's block of ports against other deployments until the socket is closed.

    Raises:
        PortTaken: Another running deployment has reserved the block with the same first port.
    """
    holder = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        holder.bind(f"\0palaver-ports-{plan.port_base}")
    except OSError as error:
        holder.close()
        raise PortTaken(
            f"ports from {plan.port_base} belong to another running deployment; stop that one first"
        ) from error
    return holder


def check_ports(plan: Plan) -> None:
    """Check that every port of the plan can be bound now.

    Raises:
        PortTaken: A port is used; the message names it, and its owner if the system reports one.
    """
    for port in range(plan.port_base, plan.port_base + plan.port_count):
        if not _bindable(port):
            raise PortTaken(
                f"port {port} is taken by {_owner_of(port)}; stop it, or start a new deployment "
                "with another --data and --port-base"
            )


def _checked_base(port_base: int, count: int) -> int:
    if not PORT_MIN <= port_base <= 65_535 - count:
        raise InvalidPlan(f"--port-base {port_base}: use {PORT_MIN} to {65_535 - count} ({count} ports are needed)")
    for port in range(port_base, port_base + count):
        if not _bindable(port):
            raise PortTaken(f"port {port} is taken by {_owner_of(port)}; choose another --port-base")
    return port_base


def _free_block(count: int) -> int:
    chooser = random.SystemRandom()
    for _ in range(BLOCK_TRIES_MAX):
        base = chooser.randrange(BLOCK_RANGE.start, BLOCK_RANGE.stop - count, 10)
        if all(_bindable(port) for port in range(base, base + count)):
            return base
    raise PortTaken(
        f"no {count} free ports in a row between {BLOCK_RANGE.start} and {BLOCK_RANGE.stop}; name some with --port-base"
    )


def _bindable(port: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        # Our servers set it as well, so a port in TIME_WAIT after the last stop counts as free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _owner_of(port: int) -> str:
    try:
        for connection in psutil.net_connections(kind="tcp"):
            listening = connection.status == psutil.CONN_LISTEN and getattr(connection.laddr, "port", 0) == port
            if listening and connection.pid:
                return f"process {connection.pid} ({psutil.Process(connection.pid).name()})"
    except psutil.Error:
        pass  # Without the right to list connections, the message has no owner.
    return "another program"

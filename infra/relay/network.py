"""The running network: its listeners, its connections and the faults in force.

Connects each listener to its route, and applies a change of faults to every connection at once. Does not know the
control API.
"""

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping
from types import TracebackType
from typing import Any, Self

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from infra.relay.connection import Connection, Endpoint
from infra.relay.delay_line import Direction
from infra.relay.faults import Fault, FaultTable, Pair
from infra.relay.links import RelayConfig, Route, SocksListener
from infra.relay.socks import SocksHandshake
from regions.topology import Address

_LOGGER = logging.getLogger(__name__)

# Three regions have about 30 links with connection pools of at most 16; each connection takes two file descriptors.
CONNECTIONS_MAX = 8_192

# At the start of a deployment, all connection pools connect at the same time.
BACKLOG = 512


class ListenFailed(Exception):
    """The relay cannot listen on an address; the message says which and why."""


class Network:
    """All links of a deployment, as an async context; at its end all listeners and connections are closed."""

    def __init__(self, config: RelayConfig) -> None:
        self.config = config
        self._table = FaultTable(config.pairs, config.baseline)
        self._directions = {pair: Direction(pair, fault) for pair, fault in self._table.items()}
        self._connections: set[Connection] = set()
        self._servers: list[asyncio.Server] = []
        self._tasks = asyncio.TaskGroup()

    async def __aenter__(self) -> Self:
        await self._tasks.__aenter__()
        try:
            for link in self.config.links:
                await self._listen(link.listen, self._link_factory(link.route))
            for listener in self.config.socks:
                await self._listen(listener.listen, self._socks_factory(listener))
        except BaseException:
            await self.__aexit__(None, None, None)
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for server in self._servers:
            server.close()
        for connection in tuple(self._connections):
            connection.abort()
        # The group is not given the error of the body, because it would wrap it in an exception group. The tasks that
        # are left in it are attempts to connect, which end by themselves.
        await self._tasks.__aexit__(None, None, None)

    def faults(self) -> list[tuple[Pair, Fault]]:
        """Return every directed pair with its fault."""
        return self._table.items()

    def change(self, changes: Iterable[Mapping[str, object]]) -> list[tuple[Pair, Fault]]:
        """Apply all changes or none, also to existing connections; see `FaultTable.change`.

        Raises:
            FaultInvalid: one of them is invalid.
        """
        return self._put_in_force(self._table.change(changes))

    def heal(self, pairs: Iterable[Pair] | None = None) -> list[tuple[Pair, Fault]]:
        """Restore pairs, or all if None, to their state in the configuration.

        Raises:
            FaultInvalid: a pair is unknown.
        """
        return self._put_in_force(self._table.heal(pairs))

    def directions(self) -> Iterator[Direction]:
        """Yield every directed pair with its counters."""
        yield from self._directions.values()

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Run a task that ends when the network ends."""
        self._tasks.create_task(work)

    def forget(self, connection: Connection) -> None:
        """Drop a connection that has ended."""
        self._connections.discard(connection)

    def connect(self, route: Route, greeting: bytes = b"", refusal: bytes = b"") -> Endpoint | None:
        """Make a connection for an accepted client; None if CONNECTIONS_MAX are open."""
        if len(self._connections) >= CONNECTIONS_MAX:
            _LOGGER.warning("a connection was refused: %d are open", CONNECTIONS_MAX)
            return None
        directions = (self._directions[route.there], self._directions[route.back])
        connection = Connection(self, route, directions, greeting=greeting, refusal=refusal)
        self._connections.add(connection)
        return connection.near

    def _put_in_force(self, changed: list[tuple[Pair, Fault]]) -> list[tuple[Pair, Fault]]:
        for pair, fault in changed:
            self._directions[pair].apply(fault)
            extra = {"source": pair[0], "target": pair[1], "fault": str(fault)}
            _LOGGER.info("the fault of a direction changed", extra=extra)
        return changed

    def _link_factory(self, route: Route) -> Callable[[], asyncio.BaseProtocol]:
        return lambda: self.connect(route) or _Refusal()

    def _socks_factory(self, listener: SocksListener) -> Callable[[], asyncio.BaseProtocol]:
        return lambda: SocksHandshake(listener, self.connect)

    async def _listen(self, address: Address, factory: Callable[[], asyncio.BaseProtocol]) -> None:
        try:
            server = await asyncio.get_running_loop().create_server(
                factory, address.host, address.port, backlog=BACKLOG, reuse_address=True
            )
        except OSError as error:
            reason = error.strerror or str(error)
            raise ListenFailed(f"cannot listen on {address}: {reason}") from error
        self._servers.append(server)


class _Refusal(asyncio.Protocol):
    """Resets the connection of a client above CONNECTIONS_MAX."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        transport.abort()


class NetworkCollector(Collector):
    """Exports the counters of a network as Prometheus metrics; it reads them at each scrape."""

    def __init__(self, network: Network) -> None:
        self._network = network

    def collect(self) -> Iterator[Metric]:
        """Yield one metric family per counter, labelled by the directed pair."""
        labels = ["source", "target"]
        counters = {
            "bytes_total": CounterMetricFamily("palaver_relay_bytes", "Bytes delivered.", labels=labels),
            "connections_total": CounterMetricFamily(
                "palaver_relay_connections", "Connections asked for by the source.", labels=labels
            ),
            "refused_total": CounterMetricFamily(
                "palaver_relay_connections_refused", "Connections nobody took at the target.", labels=labels
            ),
        }
        gauges = {
            "connections_open": GaugeMetricFamily(
                "palaver_relay_connections_open", "Connections of the source at present.", labels=labels
            ),
            "held_bytes": GaugeMetricFamily(
                "palaver_relay_held_bytes", "Bytes delayed or held by a cut at present.", labels=labels
            ),
        }
        families = {**counters, **gauges}
        for direction in self._network.directions():
            for name, family in families.items():
                family.add_metric(list(direction.pair), getattr(direction, name))
        yield from families.values()

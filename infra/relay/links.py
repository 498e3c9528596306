"""Parses the relay's configuration: its listeners, and the route of each connection.

Pure: decides which configurations are valid; knows no sockets. There are two kinds of listeners. A link is one port for
one service of one region, as seen from another region. A SOCKS 5 listener serves one source region, for programs such
as etcd that use the same names for their peers in every region: the requested name selects the target, and the listener
is the source.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain
from typing import cast

from infra.relay.faults import Fault, FaultInvalid, Pair, merge
from regions.topology import Address

PORT_MAX = 65_535


class ConfigInvalid(Exception):
    """The configuration is invalid; the message is one line that says where and why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """The route of a connection: from a region to a service of another region."""

    source: str
    target: str
    upstream: Address

    @property
    def there(self) -> Pair:
        """The direction from the client to the service."""
        return (self.source, self.target)

    @property
    def back(self) -> Pair:
        """The direction from the service to the client."""
        return (self.target, self.source)


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """A listener with one route."""

    listen: Address
    route: Route


@dataclass(frozen=True, slots=True, kw_only=True)
class SocksListener:
    """A SOCKS listener of one source region; `routes` has a route for each "host:port" that clients request."""

    listen: Address
    source: str
    routes: Mapping[str, Route]


@dataclass(frozen=True, slots=True, kw_only=True)
class RelayConfig:
    """The relay's configuration."""

    control: Address
    token: str
    links: tuple[Link, ...]
    socks: tuple[SocksListener, ...]
    baseline: Mapping[Pair, Fault]

    @property
    def pairs(self) -> frozenset[Pair]:
        """Every directed pair that has a route, and its reverse."""
        routes = [link.route for link in self.links]
        routes += chain.from_iterable(listener.routes.values() for listener in self.socks)
        return frozenset(chain.from_iterable((route.there, route.back) for route in routes))


def parse_config(text: str, *, token: str | None = None) -> RelayConfig:
    """Read the JSON of a configuration file.

    Args:
        text: {"control": "host:port", "token": …, "links": [{"listen", "source", "target", "upstream"}],
            "socks": [{"listen", "source", "routes": {"host:port": {"target", "upstream"}}}],
            "faults": [{"source", "target", "delay_ms", "jitter_ms", "loss", "cut"}]}.
            `faults` is the baseline: the state of the pairs at the start and after `heal`.
        token: the bearer token of the control API; replaces the one in the file.

    Raises:
        ConfigInvalid: a field is missing, wrong or duplicate.
    """
    try:
        document = _mapping(json.loads(text), "the configuration")
    except json.JSONDecodeError as error:
        raise ConfigInvalid(f"the configuration is no JSON: {error}") from error
    _only(document, ("control", "token", "links", "socks", "faults"), "the configuration")
    chosen_token = token or document.get("token")
    if not isinstance(chosen_token, str) or not chosen_token:
        raise ConfigInvalid("there is no token for the control API")
    links = tuple(_link(entry, f"links[{i}]") for i, entry in enumerate(_list(document, "links")))
    socks = tuple(_socks(entry, f"socks[{i}]") for i, entry in enumerate(_list(document, "socks")))
    config = RelayConfig(
        control=_address(document, "control", "the configuration"),
        token=chosen_token,
        links=links,
        socks=socks,
        baseline=dict(_fault(entry, f"faults[{i}]") for i, entry in enumerate(_list(document, "faults"))),
    )
    _refuse_doubles([config.control, *(link.listen for link in links), *(entry.listen for entry in socks)])
    for pair in config.baseline:
        if pair not in config.pairs:
            raise ConfigInvalid(f"faults name {pair[0]} to {pair[1]}, which no link connects")
    return config


def _link(entry: object, where: str) -> Link:
    fields = _mapping(entry, where)
    _only(fields, ("listen", "source", "target", "upstream"), where)
    return Link(listen=_address(fields, "listen", where), route=_route(fields, _name(fields, "source", where), where))


def _socks(entry: object, where: str) -> SocksListener:
    fields = _mapping(entry, where)
    _only(fields, ("listen", "source", "routes"), where)
    source = _name(fields, "source", where)
    routes: dict[str, Route] = {}
    for name, target in _mapping(fields.get("routes"), f"{where}.routes").items():
        place = f"{where}.routes[{name!r}]"
        _only(_mapping(target, place), ("target", "upstream"), place)
        routes[name.lower()] = _route(_mapping(target, place), source, place)
    return SocksListener(listen=_address(fields, "listen", where), source=source, routes=routes)


def _route(fields: Mapping[str, object], source: str, where: str) -> Route:
    target = _name(fields, "target", where)
    if source == target:
        raise ConfigInvalid(f"{where} leads from {source} to itself")
    return Route(source=source, target=target, upstream=_address(fields, "upstream", where))


def _fault(entry: object, where: str) -> tuple[Pair, Fault]:
    fields = dict(_mapping(entry, where))
    pair = (_name(fields, "source", where), _name(fields, "target", where))
    settings = {name: value for name, value in fields.items() if name not in ("source", "target")}
    try:
        return pair, merge(Fault(), settings)
    except FaultInvalid as error:
        raise ConfigInvalid(f"{where}: {error}") from error


def _refuse_doubles(addresses: list[Address]) -> None:
    seen: set[Address] = set()
    for address in addresses:
        if address in seen:
            raise ConfigInvalid(f"{address} is listened on twice")
        seen.add(address)


def _mapping(value: object, where: str) -> Mapping[str, object]:
    if not isinstance(value, dict):
        raise ConfigInvalid(f"{where} is no object")
    return cast("Mapping[str, object]", value)


def _list(document: Mapping[str, object], name: str) -> list[object]:
    value = document.get(name, [])
    if not isinstance(value, list):
        raise ConfigInvalid(f"{name} is no list")
    return cast("list[object]", value)


def _only(fields: Mapping[str, object], known: tuple[str, ...], where: str) -> None:
    for name in fields:
        if name not in known:
            raise ConfigInvalid(f"{where} has {name!r}; it may have {', '.join(known)}")


def _name(fields: Mapping[str, object], name: str, where: str) -> str:
    value = fields.get(name)
    if not isinstance(value, str) or not value:
        raise ConfigInvalid(f"{where}.{name} is no name of a region")
    return value


def _address(fields: Mapping[str, object], name: str, where: str) -> Address:
    value = fields.get(name)
    host, _, port = value.rpartition(":") if isinstance(value, str) else ("", "", "")
    if not host or not port.isascii() or not port.isdigit() or not 0 < int(port) <= PORT_MAX:
        raise ConfigInvalid(f'{where}.{name} is {value!r}: use "host:port"')
    return Address(host=host, port=int(port))

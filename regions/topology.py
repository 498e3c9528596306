"""Parses the topology file: the regions of a deployment, and the addresses of their processes.

Decides which regions are voters when a cell begins, and their order of preference for leadership. Does not know the
leader, which is in etcd. The operator writes one file per region, because addresses are as reached from ``region``.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from regions.identity import CellId, InvalidName, RegionName, parse_cell_id, parse_region_name

REGIONS_MAX = 31
"""Bound on the regions: each region needs a logical slot, and a member has 64 slots."""

_PORT_MAX = 65535
_VOTER_FIELDS = ("etcd", "ledger", "write_api")
_REQUIRED_FIELDS = ("read_api", "changes", "agent")


class InvalidTopology(ValueError):
    """A topology file is unreadable or inconsistent; the message is one line."""


@dataclass(frozen=True, slots=True)
class Address:
    """A TCP address.

    Attributes:
        host: Name or IPv4 address.
        port: 1 to 65535.
    """

    host: str
    port: int

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True, kw_only=True)
class RegionAddresses:
    """A region and the addresses of its processes, as reached from the topology's own region.

    Attributes:
        name: Name of the region.
        voter: Whether it has a ledger member and an etcd member.
        etcd: Client address of its etcd member; None in a view-only region.
        ledger: Its ledger member; None in a view-only region.
        write_api: Its write API; None in a view-only region.
        read_api: Its read API.
        changes: Its change stream server.
        agent: Its region agent.
    """

    name: RegionName
    voter: bool
    etcd: Address | None
    ledger: Address | None
    write_api: Address | None
    read_api: Address
    changes: Address
    agent: Address


@dataclass(frozen=True, slots=True, kw_only=True)
class Topology:
    """All regions of a deployment as seen from one of them.

    Attributes:
        cell: The cell of these regions.
        region: The own region, from which the addresses are reached.
        regions: Every region, in order of preference for leadership.
    """

    cell: CellId
    region: RegionName
    regions: tuple[RegionAddresses, ...]

    def __post_init__(self) -> None:
        names = [region.name for region in self.regions]
        if len(set(names)) != len(names):
            raise InvalidTopology("a region is listed twice")
        if self.region not in names:
            raise InvalidTopology(f"region {self.region} is not among the regions")
        if not self.voters:
            raise InvalidTopology("no region is a voter")
        if len(names) > REGIONS_MAX:
            raise InvalidTopology(f"{len(names)} regions, at most {REGIONS_MAX}")

    @property
    def own(self) -> RegionAddresses:
        """The own region."""
        return self.by_name(self.region)

    @property
    def others(self) -> tuple[RegionAddresses, ...]:
        """Every region but the own one, in order of preference."""
        return tuple(region for region in self.regions if region.name != self.region)

    @property
    def voters(self) -> tuple[RegionAddresses, ...]:
        """The regions that have a ledger member, in order of preference for leadership."""
        return tuple(region for region in self.regions if region.voter)

    def by_name(self, name: str) -> RegionAddresses:
        """Return the region called ``name``.

        Raises:
            InvalidTopology: No region has this name.
        """
        for region in self.regions:
            if region.name == name:
                return region
        raise InvalidTopology(f"region {name} is not among the regions")


def load_topology(path: str | Path) -> Topology:
    """Return the topology in the JSON file ``path``.

    Raises:
        InvalidTopology: The file is missing, is not JSON, or is inconsistent.
    """
    try:
        document = json.loads(Path(path).read_bytes())
    except OSError as error:
        raise InvalidTopology(f"topology {path}: {error.strerror}") from error
    except ValueError as error:
        raise InvalidTopology(f"topology {path}: not JSON: {error}") from error
    try:
        return parse_topology(document)
    except (InvalidTopology, InvalidName) as error:
        raise InvalidTopology(f"topology {path}: {error}") from error


def parse_topology(document: object) -> Topology:
    """Return the topology of a decoded JSON document.

    Raises:
        InvalidTopology: A field is missing, has the wrong type, or is inconsistent with another.
        InvalidName: A name does not match the pattern.
    """
    fields = _object(document, "the topology")
    entries = fields.get("regions")
    if not isinstance(entries, list):
        raise InvalidTopology("regions: expected a list")
    return Topology(
        cell=parse_cell_id(_text(fields, "cell")),
        region=parse_region_name(_text(fields, "region")),
        regions=tuple(_parse_region(entry) for entry in cast("list[object]", entries)),
    )


def parse_address(text: str) -> Address:
    """Return the address ``HOST:PORT``.

    Raises:
        InvalidTopology: ``text`` does not have this form.
    """
    host, _, port = text.rpartition(":")
    if not host or not port.isascii() or not port.isdigit() or not 0 < int(port) <= _PORT_MAX:
        raise InvalidTopology(f"{text!r} is no address: expected HOST:PORT")
    return Address(host, int(port))


def _parse_region(entry: object) -> RegionAddresses:
    fields = _object(entry, "a region")
    name = parse_region_name(_text(fields, "name"))
    voter = fields.get("voter")
    if not isinstance(voter, bool):
        raise InvalidTopology(f"{name}: voter: expected true or false")
    addresses = {key: _address(fields, key, name) for key in (*_VOTER_FIELDS, *_REQUIRED_FIELDS)}
    required = (*_VOTER_FIELDS, *_REQUIRED_FIELDS) if voter else _REQUIRED_FIELDS
    for key in required:
        if addresses[key] is None:
            raise InvalidTopology(f"{name}: {key}: missing")
    return RegionAddresses(
        name=name,
        voter=voter,
        etcd=addresses["etcd"] if voter else None,
        ledger=addresses["ledger"] if voter else None,
        write_api=addresses["write_api"] if voter else None,
        read_api=cast("Address", addresses["read_api"]),
        changes=cast("Address", addresses["changes"]),
        agent=cast("Address", addresses["agent"]),
    )


def _address(fields: Mapping[str, object], key: str, name: str) -> Address | None:
    value = fields.get(key)
    if value is None:
        return None
    if not isinstance(value, str):
        raise InvalidTopology(f"{name}: {key}: expected HOST:PORT")
    try:
        return parse_address(value)
    except InvalidTopology as error:
        raise InvalidTopology(f"{name}: {key}: {error}") from error


def _object(value: object, what: str) -> Mapping[str, object]:
    if not isinstance(value, dict):
        raise InvalidTopology(f"{what}: expected an object")
    return cast("dict[str, object]", value)


def _text(fields: Mapping[str, object], key: str) -> str:
    value = fields.get(key)
    if not isinstance(value, str):
        raise InvalidTopology(f"{key}: expected a text")
    return value

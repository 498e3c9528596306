"""Builds the messages of Envoy's v3 API that several resources contain."""

from typing import Any

from regions.edge.settings import EdgeSettings
from regions.topology import Address

EXTENSIONS = "type.googleapis.com/envoy.extensions."
CONFIG = "type.googleapis.com/envoy.config."


def duration(seconds: float) -> str:
    """Return a `google.protobuf.Duration`."""
    return f"{seconds:g}s"


def socket_address(address: Address) -> dict[str, Any]:
    """Return a `core.v3.Address`."""
    return {"socket_address": {"address": address.host, "port_value": address.port}}


def file_source(settings: EdgeSettings, kind: str, name: str) -> dict[str, Any]:
    """Return the `core.v3.ConfigSource` of one xDS file."""
    folder = settings.folder / kind
    source = {"path": str(folder / name), "watched_directory": {"path": str(folder)}}
    return {"path_config_source": source, "resource_api_version": "V3"}

"""Envoy's bootstrap: the admin socket, memory and connection limits, and the folders that the region agent fills.

Everything that can change while Envoy runs comes by file xDS (`regions/edge`).
Source: Envoy's documentation of `path_config_source`, `watched_directory` and the overload manager.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson

from infra.supervisor.secrets import write_private

HEAP_BYTES_MAX = 1 << 30
"""Envoy's heap limit. It has room for 10,000 request bodies of a tenth of their limit, or for 1,000 whole responses
that clients do not read."""

CONNECTIONS_MAX = 12_000
"""Client connections of all listeners together. The region agent sets a lower limit for each listener."""


def bootstrap(*, region: str, xds: Path, admin_socket: Path) -> dict[str, Any]:
    """Return Envoy's bootstrap document.

    Args:
        region: Envoy's node id.
        xds: Folder with `lds/listeners.json` and `cds/clusters.json`.
        admin_socket: Unix socket of the admin interface. Every local account could connect to a loopback port.
    """
    return {
        "node": {"id": region, "cluster": "palaver-edge"},
        "admin": {"address": {"pipe": {"path": str(admin_socket), "mode": 0o600}}},
        "dynamic_resources": {
            "lds_config": _watched(xds / "lds" / "listeners.json"),
            "cds_config": _watched(xds / "cds" / "clusters.json"),
        },
        "overload_manager": _overload_manager(),
        "layered_runtime": {
            "layers": [
                {
                    "name": "static",
                    # Envoy starts one request of a connection per event loop iteration, so that a packet with many
                    # requests does not delay other connections.
                    "static_layer": {"http": {"max_requests_per_io_cycle": 1}},
                }
            ]
        },
    }


def _overload_manager() -> dict[str, Any]:
    """Return what Envoy does before it runs out of memory: actions in the order of their heap thresholds."""
    heap, count = "envoy.resource_monitors.fixed_heap", "envoy.resource_monitors.global_downstream_max_connections"
    package = "type.googleapis.com/envoy.extensions.resource_monitors"

    def action(name: str, share: float) -> dict[str, Any]:
        trigger = {"name": heap, "threshold": {"value": share}}
        return {"name": f"envoy.overload_actions.{name}", "triggers": [trigger]}

    return {
        "refresh_interval": "0.25s",
        "resource_monitors": [
            {
                "name": heap,
                "typed_config": {
                    "@type": f"{package}.fixed_heap.v3.FixedHeapConfig",
                    "max_heap_size_bytes": HEAP_BYTES_MAX,
                },
            },
            {
                "name": count,
                "typed_config": {
                    "@type": f"{package}.downstream_connections.v3.DownstreamConnectionsConfig",
                    "max_active_downstream_connections": CONNECTIONS_MAX,
                },
            },
        ],
        "actions": [
            action("shrink_heap", 0.8),
            action("disable_http_keepalive", 0.85),
            action("close_idle_http_connections", 0.88),
            action("stop_accepting_requests", 0.92),
            action("stop_accepting_connections", 0.95),
        ],
    }


def write_bootstrap(path: Path, document: dict[str, Any]) -> None:
    """Write the bootstrap file."""
    write_private(path, orjson.dumps(document, option=orjson.OPT_INDENT_2))


def _watched(path: Path) -> dict[str, Any]:
    return {
        "resource_api_version": "V3",
        "path_config_source": {"path": str(path), "watched_directory": {"path": str(path.parent)}},
    }

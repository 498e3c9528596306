"""The static part of Envoy's configuration: its admin socket and the folders that the region agent fills.

Everything that can change while a region lives comes by file xDS (see `regions/edge.py`).
Source: Envoy's documentation of `path_config_source` and `watched_directory`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson

from infra.supervisor.secrets import write_private


def bootstrap(*, region: str, xds: Path, admin_socket: Path) -> dict[str, Any]:
    """Envoy's bootstrap document.

    Args:
        region: Goes to the node's identity.
        xds: Folder with `lds/listeners.json` and `cds/clusters.json`.
        admin_socket: Unix socket of the admin interface; loopback would be open to every local account.
    """
    return {
        "node": {"id": region, "cluster": "palaver-edge"},
        "admin": {"address": {"pipe": {"path": str(admin_socket), "mode": 0o600}}},
        "dynamic_resources": {
            "lds_config": _watched(xds / "lds" / "listeners.json"),
            "cds_config": _watched(xds / "cds" / "clusters.json"),
        },
        "layered_runtime": {
            "layers": [
                {
                    "name": "static",
                    "static_layer": {"overload": {"global_downstream_max_connections": 20_000}},
                }
            ]
        },
    }


def write_bootstrap(path: Path, document: dict[str, Any]) -> None:
    """Store the bootstrap where Envoy will read it."""
    write_private(path, orjson.dumps(document, option=orjson.OPT_INDENT_2))


def _watched(path: Path) -> dict[str, Any]:
    return {
        "resource_api_version": "V3",
        "path_config_source": {"path": str(path), "watched_directory": {"path": str(path.parent)}},
    }

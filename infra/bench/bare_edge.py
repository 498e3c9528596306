"""Configures an Envoy that does nothing, in front of the bare callable of `raw_app`: the ceiling of any read.

Its rate shows which part of the distance to the callable is the cost of the proxy on this machine, which no code of
Palaver can reduce.
"""

from __future__ import annotations

from typing import Any

EXTENSIONS = "type.googleapis.com/envoy.extensions.filters"


def bare_edge(*, listen_port: int, upstream_port: int) -> dict[str, Any]:
    """Return a static Envoy configuration: one listener, one route, one cluster, all defaults."""
    manager = {
        "@type": f"{EXTENSIONS}.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "bare",
        "route_config": {
            "virtual_hosts": [
                {"name": "all", "domains": ["*"], "routes": [{"match": {"prefix": "/"}, "route": {"cluster": "raw"}}]}
            ]
        },
        "http_filters": [
            {
                "name": "envoy.filters.http.router",
                "typed_config": {"@type": f"{EXTENSIONS}.http.router.v3.Router"},
            }
        ],
    }
    chain = {"filters": [{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}]}
    endpoint = {"endpoint": {"address": _address(upstream_port)}}
    return {
        "static_resources": {
            "listeners": [{"name": "bare", "address": _address(listen_port), "filter_chains": [chain]}],
            "clusters": [
                {
                    "name": "raw",
                    "type": "STATIC",
                    "load_assignment": {"cluster_name": "raw", "endpoints": [{"lb_endpoints": [endpoint]}]},
                }
            ],
        }
    }


def _address(port: int) -> dict[str, Any]:
    return {"socket_address": {"address": "127.0.0.1", "port_value": port}}

"""The public listener: what is taken from clients, and what of it is believed.

Decides limits of headers and of time, and which headers of a client reach the routes and the APIs. Refuses to know
routes and clusters. Source: Envoy's documentation of header sanitizing; its defaults trust a peer on loopback or in a
private network, which is where a client may be.
"""

from typing import Any

from regions.edge.messages import EXTENSIONS, duration, file_source, socket_address
from regions.edge.replies import local_reply_config
from regions.edge.settings import EdgeSettings

EPOCH_HEADER = "palaver-epoch"

INTERNAL_HEADERS = (EPOCH_HEADER, "palaver-repeat")
"""Headers between the edge and the APIs. A client's are removed before anything looks at a request."""

ENVOY_PREFIX = "x-envoy-"
"""Envoy's own: time-outs, retries and hedging of its router, and what it tells the APIs (the number of the attempt)."""

FORWARDED_PREFIX = "x-forwarded-"
ADDRESS_HEADERS = (
    "forwarded",
    "via",
    "x-real-ip",
    "x-client-ip",
    "x-cluster-client-ip",
    "x-original-forwarded-for",
    "x-originating-ip",
    "x-remote-addr",
    "x-remote-ip",
    "true-client-ip",
    "client-ip",
    "cf-connecting-ip",
    "cf-connecting-ipv6",
    "fastly-client-ip",
)
"""Where proxies and CDNs write a client's address. The APIs get one: the X-Forwarded-For that the edge sets."""

NOBODY = {"address_prefix": "255.255.255.255", "prefix_len": 32}
"""A peer that does not exist. An empty list of internal addresses means Envoy's own: loopback and private networks."""

REQUEST_ARRIVES_S = 30
HEADERS_ARRIVE_S = 10
STREAM_IDLE_S = 300
"""A request that trickles in is dropped; an event stream lives as long as it says something in five minutes."""

HEADERS_KB_MAX = 60


def listener(settings: EdgeSettings) -> dict[str, Any]:
    """Return the public listener."""
    manager = {
        "@type": f"{EXTENSIONS}filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "edge",
        "rds": {"route_config_name": "edge", "config_source": file_source(settings, "rds", "routes.json")},
        "http_filters": [_addresses(), _router()],
        "local_reply_config": local_reply_config(),
        "use_remote_address": True,
        "xff_num_trusted_hops": settings.trusted_hops,
        "internal_address_config": {"cidr_ranges": [NOBODY]},
        "early_header_mutation_extensions": [_sanitizing()],
        "preserve_external_request_id": True,
        "always_set_request_id_in_response": True,
        "request_id_extension": {
            "typed_config": {
                "@type": f"{EXTENSIONS}request_id.uuid.v3.UuidRequestIdConfig",
                "pack_trace_reason": False,
                "use_request_id_for_trace_sampling": False,
            }
        },
        "server_header_transformation": "PASS_THROUGH",
        "max_request_headers_kb": HEADERS_KB_MAX,
        "request_timeout": duration(REQUEST_ARRIVES_S),
        "request_headers_timeout": duration(HEADERS_ARRIVE_S),
        "stream_idle_timeout": duration(STREAM_IDLE_S),
    }
    chain = {"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}
    return {
        "@type": "type.googleapis.com/envoy.config.listener.v3.Listener",
        "name": "edge",
        "address": socket_address(settings.listen),
        "filter_chains": [{"filters": [chain]}],
    }


def _sanitizing() -> dict[str, Any]:
    """Remove what is not a client's to say before the connection manager reads it."""
    mutations = [_remove_prefix(ENVOY_PREFIX), *({"remove": name} for name in INTERNAL_HEADERS)]
    return {
        "name": "envoy.http.early_header_mutation.header_mutation",
        "typed_config": {
            "@type": f"{EXTENSIONS}http.early_header_mutation.header_mutation.v3.HeaderMutation",
            "mutations": mutations,
        },
    }


def _addresses() -> dict[str, Any]:
    """Tell the APIs one address and scheme: those that the connection manager found, with the trusted hops."""
    mutations = [
        _remove_prefix(FORWARDED_PREFIX),
        *({"remove": name} for name in ADDRESS_HEADERS),
        _set("x-forwarded-for", "%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%"),
        _set("x-forwarded-proto", "%REQ(:SCHEME)%"),
    ]
    return {
        "name": "envoy.filters.http.header_mutation",
        "typed_config": {
            "@type": f"{EXTENSIONS}filters.http.header_mutation.v3.HeaderMutation",
            "mutations": {"request_mutations": mutations},
        },
    }


def _router() -> dict[str, Any]:
    return {
        "name": "router",
        "typed_config": {"@type": f"{EXTENSIONS}filters.http.router.v3.Router", "suppress_envoy_headers": True},
    }


def _remove_prefix(prefix: str) -> dict[str, Any]:
    return {"remove_on_match": {"key_matcher": {"prefix": prefix}}}


def _set(name: str, value: str) -> dict[str, Any]:
    return {"append": {"header": {"key": name, "value": value}, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"}}

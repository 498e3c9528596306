"""The public listener: what is taken from clients, and what of it is believed.

Decides limits of headers, bodies, time, connections and rates, and which headers of a client reach the routes and the
APIs. Refuses to know routes and clusters. Source: Envoy's documentation of header sanitizing, whose defaults trust a
peer on loopback or in a private network, which is where a client may be; its guide for edge proxies.
"""

from typing import Any

from regions.edge.messages import EXTENSIONS, duration, file_source, socket_address
from regions.edge.replies import READ_METHODS, SITE_PATH, WRITE_METHODS, local_reply_config
from regions.edge.settings import EdgeSettings

EPOCH_HEADER = "palaver-epoch"

REPEAT_HEADER = "palaver-repeat"

DEGRADED_HEADER = "palaver-degraded"

INTERNAL_HEADERS = (EPOCH_HEADER, REPEAT_HEADER, DEGRADED_HEADER)
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

NO_ADDRESS = {"address_prefix": "255.255.255.255", "prefix_len": 32}
"""A peer that does not exist. An empty list of internal addresses means Envoy's own: loopback and private networks."""

HEADERS_ARRIVE_S = 10
"""Headers arrive in one packet or a few; the whole request has `EdgeSettings.request_s`."""

STREAM_IDLE_S = 300
"""An event stream lives as long as it says something in five minutes."""

CONNECTION_IDLE_S = 120
"""A connection without a request, one that never had any included. Browsers keep theirs for about as long; Envoy's own
default is an hour, in which idle connections would fill the limit."""

CLOSE_S = 3
"""How long a refused client has to read the answer while it still sends its body. Envoy reads no more of it, so a body
of megabytes ends in a reset for a client that reads only after it has sent everything."""

HEADERS_KB_MAX = 60

ANSWER_BUFFER_BYTES = 1_048_576
"""What a client that reads slowly may leave at the edge. An answer up to this size does not hold a connection to an API
while its client reads."""

STREAMS_MAX = 100
STREAM_WINDOW_BYTES = 65_536
CONNECTION_WINDOW_BYTES = 1_048_576
"""HTTP/2, as Envoy's guide for edge proxies has it: a client does not have more at once than with some connections."""

CLIENTS_COUNTED_MAX = 20_000
"""Addresses whose rates are known; beyond it the one that was idle longest is forgotten, and begins anew."""

NETWORK_BITS_IPV6 = 64
"""A client has a whole network of IPv6 addresses: they count as one."""

BURST_S = 2
"""A bucket holds what comes in for so long: a page that opens asks for several things at once."""


def listener(settings: EdgeSettings) -> dict[str, Any]:
    """Return the public listener."""
    manager = {
        "@type": f"{EXTENSIONS}filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "edge",
        "rds": {"route_config_name": "edge", "config_source": file_source(settings, "rds", "routes.json")},
        "http_filters": [_addresses(), *_rates(settings), _whole_bodies(settings), _router()],
        "local_reply_config": local_reply_config(),
        "use_remote_address": True,
        "xff_num_trusted_hops": settings.trusted_hops,
        "internal_address_config": {"cidr_ranges": [NO_ADDRESS]},
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
        "http_protocol_options": {
            # Methods that no address takes reach the routes, which say so.
            "allow_custom_methods": True,
            # nginx speaks it to its upstreams unless told otherwise.
            "accept_http_10": True,
            "default_host_for_http_10": "palaver",
            # An upgrade is an offer, which who does not take it answers as any other request (RFC 9110, section 7.8).
            "ignore_http_11_upgrade": [{"safe_regex": {"regex": ".*"}}],
        },
        "request_timeout": duration(settings.request_s),
        "request_headers_timeout": duration(HEADERS_ARRIVE_S),
        "stream_idle_timeout": duration(STREAM_IDLE_S),
        "delayed_close_timeout": duration(CLOSE_S),
        "common_http_protocol_options": {"idle_timeout": duration(CONNECTION_IDLE_S)},
        "http2_protocol_options": {
            "max_concurrent_streams": STREAMS_MAX,
            "initial_stream_window_size": STREAM_WINDOW_BYTES,
            "initial_connection_window_size": CONNECTION_WINDOW_BYTES,
        },
    }
    chain = {"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}
    return {
        "@type": "type.googleapis.com/envoy.config.listener.v3.Listener",
        "name": "edge",
        "address": socket_address(settings.listen),
        "per_connection_buffer_limit_bytes": ANSWER_BUFFER_BYTES,
        "filter_chains": [{"filters": [_connections(settings), chain]}],
    }


def _sanitizing() -> dict[str, Any]:
    """Remove internal and x-envoy-* headers before Envoy evaluates them."""
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


def _connections(settings: EdgeSettings) -> dict[str, Any]:
    """Close a connection beyond the limit at once: a client sees the end of it, and Envoy counts it."""
    return {
        "name": "envoy.filters.network.connection_limit",
        "typed_config": {
            "@type": f"{EXTENSIONS}filters.network.connection_limit.v3.ConnectionLimit",
            "stat_prefix": "edge",
            "max_connections": settings.connections_max,
        },
    }


def _rates(settings: EdgeSettings) -> list[dict[str, Any]]:
    """Refuse what one address asks beyond its rates with 429."""
    # Reads that the leader answers cost it what a write does; the two kinds of a request are never one.
    is_site = {"name": ":path", "string_match": {"safe_regex": {"regex": rf"{SITE_PATH}(\?.*)?"}}}
    is_read = {"name": ":method", "string_match": {"safe_regex": {"regex": READ_METHODS}}}
    site = {"header_value_match": {"descriptor_value": "write", "headers": [is_read, is_site]}}
    address = {"masked_remote_address": {"v6_prefix_mask_len": NETWORK_BITS_IPV6}}
    is_write = {"name": ":method", "string_match": {"safe_regex": {"regex": WRITE_METHODS}}}
    write = {"header_value_match": {"descriptor_value": "write", "headers": [is_write]}}
    by_address = {"key": "masked_remote_address"}
    of_writes = [{"key": "header_match", "value": "write"}, by_address]
    all_limits: list[tuple[int, list[list[dict[str, Any]]], list[dict[str, Any]]]] = [
        (settings.client_requests_per_s, [[address]], [by_address]),
        (settings.client_writes_per_s, [[write, address], [site, address]], of_writes),
    ]
    limits = [limit for limit in all_limits if limit[0]]
    if not limits:
        return []
    always = {"numerator": 100, "denominator": "HUNDRED"}
    config: dict[str, Any] = {
        "@type": f"{EXTENSIONS}filters.http.local_ratelimit.v3.LocalRateLimit",
        "stat_prefix": "edge",
        # Every request has an address and so a bucket of its own; that of all requests is not asked.
        "token_bucket": _bucket(max(limit[0] for limit in limits)),
        "always_consume_default_token_bucket": False,
        "filter_enabled": {"default_value": always},
        "filter_enforced": {"default_value": always},
        "rate_limits": [{"actions": actions} for _, kinds, _ in limits for actions in kinds],
        "descriptors": [{"entries": entries, "token_bucket": _bucket(rate)} for rate, _, entries in limits],
        "max_dynamic_descriptors": CLIENTS_COUNTED_MAX,
    }
    return [{"name": "envoy.filters.http.local_ratelimit", "typed_config": config}]


def _bucket(per_s: int) -> dict[str, Any]:
    return {"max_tokens": BURST_S * per_s, "tokens_per_fill": per_s, "fill_interval": duration(1)}


def _whole_bodies(settings: EdgeSettings) -> dict[str, Any]:
    """Hold a body until it is whole, so that one that trickles in takes no connection to an API."""
    return {
        "name": "envoy.filters.http.buffer",
        "typed_config": {
            "@type": f"{EXTENSIONS}filters.http.buffer.v3.Buffer",
            "max_request_bytes": settings.request_bytes_max,
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

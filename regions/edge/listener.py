"""Generates Envoy's public listener: limits for clients, and which client headers are trusted.

Decides limits of headers, bodies, time, connections and rates, and which client headers reach the routes and the APIs.
Does not know routes and clusters. It trusts no address as internal, because a client may be on loopback or in a
private network. Source: Envoy's documentation of header sanitizing and its guide for edge proxies; ADR 0033.
"""

from typing import Any

from regions.edge.messages import EXTENSIONS, duration, file_source, socket_address
from regions.edge.replies import READ_METHODS, SITE_PATH, WRITE_METHODS, local_reply_config
from regions.edge.settings import EdgeSettings

EPOCH_HEADER = "palaver-epoch"

REPEAT_HEADER = "palaver-repeat"

DEGRADED_HEADER = "palaver-degraded"

INTERNAL_HEADERS = (EPOCH_HEADER, REPEAT_HEADER, DEGRADED_HEADER)
"""Headers between the edge and the APIs. Envoy removes a client's before any filter or route evaluates the request."""

ENVOY_PREFIX = "x-envoy-"
"""Prefix of Envoy's own headers: timeouts, retries and hedging of its router, and the attempt count for the APIs."""

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
"""Headers in which proxies and CDNs send a client's address. The APIs get only the X-Forwarded-For of the edge."""

NO_ADDRESS = {"address_prefix": "255.255.255.255", "prefix_len": 32}
"""A peer that does not exist, as the only internal address. If ``internal_address_config`` has no ranges, Envoy trusts
loopback and private networks. If the field is absent, Envoy trusts no address since version 1.33, and trusted the same
networks before."""

HEADERS_ARRIVE_S = 10
"""Time limit for receiving the headers, which take a few packets; `EdgeSettings.request_s` limits the whole request."""

STREAM_IDLE_S = 300
"""An event stream ends if it sends nothing for five minutes."""

CONNECTION_IDLE_S = 120
"""Time limit of a client connection without a request, also of one that never had a request. Browsers keep connections
for about as long. With Envoy's default of an hour, idle connections would fill the limit."""

CLOSE_S = 3
"""How long a refused client can read the answer while it still sends its body. Envoy does not read the rest, so a
client that reads only after it has sent a body of megabytes gets a reset."""

HEADERS_KB_MAX = 60

ANSWER_BUFFER_BYTES = 1_048_576
"""Buffer for the answer of a client that reads slowly. An answer up to this size does not occupy a connection to an API
while the client reads it."""

STREAMS_MAX = 100
STREAM_WINDOW_BYTES = 65_536
CONNECTION_WINDOW_BYTES = 1_048_576
"""HTTP/2 limits of Envoy's guide for edge proxies: one connection cannot use more resources than a few HTTP/1 ones."""

CLIENTS_COUNTED_MAX = 20_000
"""Bound on the addresses with a rate bucket; beyond it Envoy drops the least recently used bucket."""

NETWORK_BITS_IPV6 = 64
"""A client usually has a whole IPv6 network, so its addresses share a bucket."""

BURST_S = 2
"""Seconds of the rate that a bucket holds, because a page that loads sends several requests at once."""


def listener(settings: EdgeSettings) -> dict[str, Any]:
    """Return the public listener."""
    manager = {
        "@type": f"{EXTENSIONS}filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "edge",
        "rds": {"route_config_name": "edge", "config_source": file_source(settings, "rds", "routes.json")},
        "http_filters": [_client_address(), *_rate_limits(settings), _buffered_bodies(settings), _router()],
        "local_reply_config": local_reply_config(),
        "use_remote_address": True,
        "xff_num_trusted_hops": settings.trusted_hops,
        "internal_address_config": {"cidr_ranges": [NO_ADDRESS]},
        "early_header_mutation_extensions": [_header_sanitizing()],
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
            # Unknown methods reach the routes, which answer 501.
            "allow_custom_methods": True,
            # nginx uses HTTP/1.0 to its upstreams by default.
            "accept_http_10": True,
            "default_host_for_http_10": "palaver",
            # A server may ignore an upgrade and answer the request (RFC 9110, section 7.8).
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
        "filter_chains": [{"filters": [_connection_limit(settings), chain]}],
    }


def _header_sanitizing() -> dict[str, Any]:
    """Remove internal and x-envoy-* headers before Envoy evaluates them."""
    mutations = [_remove_prefix(ENVOY_PREFIX), *({"remove": name} for name in INTERNAL_HEADERS)]
    return {
        "name": "envoy.http.early_header_mutation.header_mutation",
        "typed_config": {
            "@type": f"{EXTENSIONS}http.early_header_mutation.header_mutation.v3.HeaderMutation",
            "mutations": mutations,
        },
    }


def _client_address() -> dict[str, Any]:
    """Set one client address and scheme for the APIs: those that the connection manager found with the trusted hops."""
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


def _connection_limit(settings: EdgeSettings) -> dict[str, Any]:
    """Close a connection beyond the limit at once; Envoy counts it."""
    return {
        "name": "envoy.filters.network.connection_limit",
        "typed_config": {
            "@type": f"{EXTENSIONS}filters.network.connection_limit.v3.ConnectionLimit",
            "stat_prefix": "edge",
            "max_connections": settings.connections_max,
        },
    }


def _rate_limits(settings: EdgeSettings) -> list[dict[str, Any]]:
    """Answer 429 to requests of one address beyond its rates."""
    # A read that the leader answers costs as much as a write. No request matches both descriptors.
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
        # Every request has an address and so a bucket of its own; the common bucket is not used.
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


def _buffered_bodies(settings: EdgeSettings) -> dict[str, Any]:
    """Buffer a body until it is complete, so that a slow upload occupies no connection to an API."""
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

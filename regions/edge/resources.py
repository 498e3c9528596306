"""Generates Envoy's xDS resources from the topology and the leadership.

Decides routes, retries, timeouts and limits towards the APIs; ``listener`` decides those towards clients. Does not know
files, Envoy's state or time: the same arguments give the same bytes, so the version of a resource is its hash.

Each voter always has a write cluster. One route names the leader's cluster and the epoch together, so a change of
leadership is one atomic replacement of the routes, and Envoy never sends a new epoch to an old leader. A request keeps
its route, and so its cluster, for all attempts. Therefore the clusters of voters that do not lead point at the leader:
a request whose leader died is retried at the next one. Source: ADR 0009 and ADR 0051; Envoy 1.40's v3 API (the router
looks up the cluster again for each attempt).
"""

import hashlib
import ipaddress
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import orjson

from regions.edge.listener import DEGRADED_HEADER, EPOCH_HEADER, REPEAT_HEADER, listener
from regions.edge.messages import CONFIG, EXTENSIONS, duration, file_source, socket_address
from regions.edge.replies import METHODS, PREVIEW_PATH, READ_METHODS, SITE_PATH, WRITE_METHODS
from regions.edge.settings import EdgeSettings
from regions.identity import RegionName
from regions.leadership import Leadership
from regions.topology import Address, Topology

READ_CLUSTER = "read_api"
CLUSTERS_FILE = "cds/clusters.json"

WRITE_S = 5.5
"""Time limit of one attempt of a write without a key: the write API answers within 5 s, at the latest that the outcome
is unknown."""

WRITE_TRY_S = 2.0
"""Time limit of an attempt of a post with a key. Envoy then retries it at the current leader; the key makes all
attempts one comment. A partitioned or hung leader does not answer, and the next leader serves after 1.7 s. A busy
leader answers sooner: it refuses a write that has waited for a second."""

WRITE_LATER_S_MAX = 5.0
"""The longest pause before a retry that the write API may request."""

WRITE_WITH_RETRIES_S = 12.0
WRITE_RETRIES_MAX = 60
WRITE_BACK_OFF_S = (0.025, 0.3)
"""The first pause is 12 ms on average, so that the retry waits at the next leader and not at the edge. From the fourth
on a pause is 0.15 s: sixty retries take about 9 s, longer than a failover may take."""

READ_S = 0.25
SESSION_READ_S = 2.5
READ_WITH_RETRIES_S = 8.0
READ_RETRIES_MAX = 2
"""After a quarter second Envoy also sends a read to another region, which hedges a frozen process (p99 253 to 5 ms). A
read with a position may wait a second for the view, and a strong read waits for the leader's proof before that, so
these get more time first."""

PREVIEW_S = 2.5
"""A preview that waits in the queue takes a fifth of a second."""

CONNECT_S = 1.0
"""Twelve round trips between regions: without a connection by then the host is partitioned or down."""

UPSTREAM_IDLE_S = 60
"""Below the 75 s after which the APIs close an idle connection, so that no request is sent on a closing connection."""

CONNECTIONS_MAX = 1024
REQUESTS_MAX = 4096
"""Envoy's defaults are 1024 of each and 3 retries; in a failover every write in flight is a retry."""

WRITE_CONNECTIONS_MAX = 96
WRITES_WAITING_MAX = 1024
"""Bounds on an edge's concurrent attempts at the leader's write API, and on the writes that wait at the edge for one.

At 80 ms a write, 96 attempts are 1,200 writes/s of each edge. With more, three edges together send the write API more
than it answers within `WRITE_TRY_S`, and the edges retry those writes. With fewer, more writes are sent a second time
to a leader that hangs (ADR 0042). The time limit of an attempt begins when the attempt leaves the edge.
A write behind 1,024 others would reach the leader when its client is about to give up; Envoy refuses it at once."""

HEALTH_INTERVAL_S = 0.5
HEALTH_TIMEOUT_S = 0.5
"""The timeout is longer than the 80 ms to a neighbour and the pauses of a machine that starts three regions."""

_RETRY_PRIORITY = {
    "name": "envoy.retry_priorities.previous_priorities",
    "typed_config": {
        "@type": f"{EXTENSIONS}retry.priority.previous_priorities.v3.PreviousPrioritiesConfig",
        "update_frequency": 1,
    },
}
"""Each attempt goes to another priority than the earlier ones, until all were tried; then they are tried again."""


def render(topology: Topology, leadership: Leadership | None, settings: EdgeSettings) -> dict[str, bytes]:
    """Return the content of each xDS file by its path in the folder, in the order in which to write them.

    The listeners come last: if their file exists, all files exist.
    """
    leader = None if leadership is None else leadership.leader
    successor = None if leadership is None or leadership.succession is None else leadership.succession.region
    return {
        "eds/read_api.json": _discovery([read_endpoints(topology, settings)]),
        "rds/routes.json": _discovery([routes(leadership)]),
        CLUSTERS_FILE: _discovery(clusters(topology, settings, leader=leader, successor=successor)),
        "lds/listeners.json": _discovery([listener(settings)]),
    }


def transition_clusters(
    topology: Topology, settings: EdgeSettings, *, leader: RegionName, before: RegionName | None
) -> bytes:
    """Return the clusters that must be in force before the routes name a new leader.

    They are the clusters of a succession from ``before`` to ``leader``, because the routes still name ``before``.
    """
    return _discovery(clusters(topology, settings, leader=before, successor=leader))


def version_of(content: bytes) -> str:
    """Return the version that Envoy reports after it has applied this content."""
    return str(orjson.loads(content)["version_info"])


def write_cluster(region: RegionName) -> str:
    """Return the name of the cluster of a region's write API."""
    return f"write_api_{region}"


def read_endpoints(topology: Topology, settings: EdgeSettings) -> dict[str, Any]:
    """Return the endpoints of the read APIs: the own region's first, then the others in order of preference."""
    reached: list[Address | Path] = [settings.read_socket or topology.own.read_api]
    reached += [region.read_api for region in topology.others]
    return {
        "@type": f"{CONFIG}endpoint.v3.ClusterLoadAssignment",
        "cluster_name": READ_CLUSTER,
        "endpoints": _in_order(reached),
    }


def clusters(
    topology: Topology, settings: EdgeSettings, *, leader: RegionName | None, successor: RegionName | None
) -> list[dict[str, Any]]:
    """Return the cluster of the read APIs and one write cluster for each voter.

    During a succession, retries in the leader's cluster go to the successor, which holds early writes until it serves.
    A request keeps its cluster for all attempts, so the clusters of voters that do not lead point at the leader.

    Args:
        topology: The deployment.
        settings: Settings of the edge.
        leader: The leader; None: each cluster points at its own region.
        successor: The successor, which may lead at any moment; None if there is none.
    """
    write_apis = {voter.name: voter.write_api for voter in topology.voters if voter.write_api is not None}

    def targets(name: RegionName) -> list[Address | Path]:
        order = [name] if leader is None or leader not in write_apis or name == successor else [leader]
        if name == leader and successor is not None and successor in write_apis:
            order.append(successor)
        addresses = [write_apis[one] for one in order]
        # A cluster that resolves names by DNS cannot contain a Unix socket.
        one_kind = len(order) == 1 or all(_is_ip(one.host) for one in addresses)
        own = settings.write_socket if one_kind else None
        return [own or write_apis[one] if one == topology.region else write_apis[one] for one in order]

    return [_read_cluster(settings), *(_write_cluster(name, targets(name)) for name in write_apis)]


def routes(leadership: Leadership | None) -> dict[str, Any]:
    """Return the routes: writes to the leader with its epoch, reads to the own region."""
    return {
        "@type": f"{CONFIG}route.v3.RouteConfiguration",
        "name": "edge",
        "virtual_hosts": [
            {
                "name": "palaver",
                "domains": ["*"],
                # A retry has the epoch of the first attempt; the attempt count shows the write API that it is a retry.
                "include_request_attempt_count": True,
                "response_headers_to_remove": [REPEAT_HEADER, DEGRADED_HEADER],
                "routes": [
                    _unknown_method_route(),
                    {"match": {"path": "/metrics"}, "direct_response": {"status": 404}},
                    _preview_route(),
                    *_write_routes(leadership),
                    *_read_routes(),
                ],
            }
        ],
    }


def _preview_route() -> dict[str, Any]:
    """Route previews to the own region: a preview is a POST, but it changes nothing.

    Envoy retries a preview only if no read API accepted it, and does not hedge it, because a preview costs CPU time.
    """
    method = {"name": ":method", "string_match": {"exact": "POST"}}
    return {
        "match": {"safe_regex": {"regex": PREVIEW_PATH}, "headers": [method]},
        "route": {
            "cluster": READ_CLUSTER,
            "timeout": duration(PREVIEW_S),
            "retry_policy": {
                "retry_on": "connect-failure,refused-stream",
                "num_retries": READ_RETRIES_MAX,
                "retry_priority": _RETRY_PRIORITY,
            },
        },
    }


def _write_routes(leadership: Leadership | None) -> list[dict[str, Any]]:
    method = {"name": ":method", "string_match": {"safe_regex": {"regex": WRITE_METHODS}}}
    # A read of data that only the ledger has.
    site = {
        "safe_regex": {"regex": SITE_PATH},
        "headers": [{"name": ":method", "string_match": {"safe_regex": {"regex": READ_METHODS}}}],
    }
    if leadership is None:
        return [{"match": match, "direct_response": {"status": 503}} for match in (site, _any_path(method))]
    # The write API accepts keys with posts only: a second attempt of another write may be a second write (ADR 0035).
    keyed = [
        {"name": ":method", "string_match": {"exact": "POST"}},
        {"name": "idempotency-key", "present_match": True},
    ]
    epoch = {
        "header": {"key": EPOCH_HEADER, "value": str(leadership.epoch)},
        "append_action": "OVERWRITE_IF_EXISTS_OR_ADD",
    }
    to_leader: dict[str, Any] = {"cluster": write_cluster(leadership.leader)}
    keyed_post = to_leader | {"timeout": duration(WRITE_WITH_RETRIES_S), "retry_policy": _retries(WRITE_RETRIES_MAX)}
    site_read = to_leader | {"timeout": duration(READ_WITH_RETRIES_S), "retry_policy": _retries(READ_RETRIES_MAX)}
    once = to_leader | {"timeout": duration(WRITE_S)}
    matches = [(site, site_read), (_any_path(*keyed), keyed_post), (_any_path(method), once)]
    return [{"match": match, "route": route, "request_headers_to_add": [epoch]} for match, route in matches]


def _retries(times: int) -> dict[str, Any]:
    """Return the retry policy of requests that the current leader answers."""
    first_s, last_s = WRITE_BACK_OFF_S
    return {
        "retry_on": "connect-failure,refused-stream,reset,retriable-headers",
        # Envoy retries a 503 only if the write API marks it as retriable, and not before the time that it sets.
        "retriable_headers": [{"name": REPEAT_HEADER, "present_match": True}],
        "rate_limited_retry_back_off": {
            "reset_headers": [{"name": REPEAT_HEADER, "format": "SECONDS"}],
            "max_interval": duration(WRITE_LATER_S_MAX),
        },
        "num_retries": times,
        "per_try_timeout": duration(WRITE_TRY_S),
        "retry_priority": _RETRY_PRIORITY,
        "retry_back_off": {"base_interval": duration(first_s), "max_interval": duration(last_s)},
    }


def _any_path(*headers: dict[str, Any]) -> dict[str, Any]:
    return {"prefix": "/", "headers": list(headers)}


def _unknown_method_route() -> dict[str, Any]:
    known = {"name": ":method", "string_match": {"safe_regex": {"regex": METHODS}}, "invert_match": True}
    return {"match": _any_path(known), "direct_response": {"status": 501}}


def _read_routes() -> list[dict[str, Any]]:
    position = {"name": "palaver-position", "present_match": True}
    strong = {"name": "palaver-consistency", "string_match": {"exact": "strong"}}
    return [
        {"match": {"prefix": "/", "headers": [position]}, "route": _read_route(SESSION_READ_S)},
        {"match": {"prefix": "/", "headers": [strong]}, "route": _read_route(SESSION_READ_S)},
        {"match": {"prefix": "/"}, "route": _read_route(READ_S)},
    ]


def _read_route(attempt_s: float) -> dict[str, Any]:
    return {
        "cluster": READ_CLUSTER,
        "timeout": duration(READ_WITH_RETRIES_S),
        "retry_policy": {
            "retry_on": "connect-failure,refused-stream,reset,retriable-status-codes",
            "retriable_status_codes": [503],
            "num_retries": READ_RETRIES_MAX,
            "per_try_timeout": duration(attempt_s),
            "retry_host_predicate": [
                {
                    "name": "envoy.retry_host_predicates.previous_hosts",
                    "typed_config": {"@type": f"{EXTENSIONS}retry.host.previous_hosts.v3.PreviousHostsPredicate"},
                }
            ],
            "host_selection_retry_max_attempts": 3,
            "retry_priority": _RETRY_PRIORITY,
            "retry_back_off": {"base_interval": duration(0.005), "max_interval": duration(0.05)},
        },
        # The first attempt continues while Envoy asks another region; the first answer wins.
        "hedge_policy": {"hedge_on_per_try_timeout": True},
    }


def _read_cluster(settings: EdgeSettings) -> dict[str, Any]:
    """Return the cluster of the read APIs. Only degraded answers eject a host, because a client can provoke a 503."""
    degraded = {"headers": [{"name": DEGRADED_HEADER, "present_match": True}]}
    matcher = {"error_matcher": {"http_response_headers_match": degraded}}
    return _cluster(READ_CLUSTER, {"outlier_detection": matcher}) | {
        "type": "EDS",
        "eds_cluster_config": {"eds_config": file_source(settings, "eds", "read_api.json")},
        "circuit_breakers": _circuit_breakers(
            {"retry_budget": {"budget_percent": {"value": 25}, "min_retry_concurrency": 64}}
        ),
        "health_checks": [
            {
                "interval": duration(HEALTH_INTERVAL_S),
                # Envoy's default is 60 s while a cluster has had no traffic: a read API that started after
                # the first check would be unhealthy that long.
                "no_traffic_interval": duration(HEALTH_INTERVAL_S),
                "no_traffic_healthy_interval": duration(HEALTH_INTERVAL_S),
                "timeout": duration(HEALTH_TIMEOUT_S),
                "unhealthy_threshold": 2,
                "healthy_threshold": 1,
                "http_health_check": {"path": "/readyz", "host": "edge"},
            }
        ],
        "outlier_detection": {
            "consecutive_5xx": 0,
            "enforcing_consecutive_5xx": 0,
            "consecutive_gateway_failure": 3,
            "enforcing_consecutive_gateway_failure": 100,
            "split_external_local_origin_errors": True,
            # A hedged read counts as a local-origin failure, and a client can send slow requests. The health checks
            # detect a frozen host within two intervals and timeouts, and a refused connection is retried elsewhere.
            "enforcing_consecutive_local_origin_failure": 0,
            "enforcing_success_rate": 0,
            "enforcing_local_origin_success_rate": 0,
            "interval": duration(0.5),
            "base_ejection_time": duration(5),
            "max_ejection_percent": 50,
        },
        "common_lb_config": {"healthy_panic_threshold": {"value": 0}},
    }


def _write_cluster(region: RegionName, write_apis: Sequence[Address | Path]) -> dict[str, Any]:
    """Return the write cluster of a region, without outlier detection: Envoy does not retry an ejected leader."""
    name = write_cluster(region)
    static = all(isinstance(write_api, Path) or _is_ip(write_api.host) for write_api in write_apis)
    return _cluster(name) | {
        "type": "STATIC" if static else "STRICT_DNS",
        "load_assignment": {"cluster_name": name, "endpoints": _in_order(write_apis)},
        "circuit_breakers": _circuit_breakers(
            {
                "max_retries": REQUESTS_MAX,
                "max_connections": WRITE_CONNECTIONS_MAX,
                "max_pending_requests": WRITES_WAITING_MAX,
            }
        ),
    }


def _cluster(name: str, more: dict[str, Any] | None = None) -> dict[str, Any]:
    http = f"{EXTENSIONS}upstreams.http.v3.HttpProtocolOptions"
    return {
        "@type": f"{CONFIG}cluster.v3.Cluster",
        "name": name,
        "connect_timeout": duration(CONNECT_S),
        "typed_extension_protocol_options": {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": http,
                "common_http_protocol_options": {"idle_timeout": duration(UPSTREAM_IDLE_S)},
                "explicit_http_config": {"http_protocol_options": {}},
                **(more or {}),
            }
        },
    }


def _circuit_breakers(own: dict[str, Any]) -> dict[str, Any]:
    limits = {
        "max_connections": CONNECTIONS_MAX,
        "max_pending_requests": REQUESTS_MAX,
        "max_requests": REQUESTS_MAX,
    }
    return {"thresholds": [limits | own]}


def _in_order(reached: Iterable[Address | Path]) -> list[dict[str, Any]]:
    return [{"priority": priority, "lb_endpoints": [_endpoint(one)]} for priority, one in enumerate(reached)]


def _endpoint(address: Address | Path) -> dict[str, Any]:
    pipe = {"pipe": {"path": str(address)}}
    return {"endpoint": {"address": pipe if isinstance(address, Path) else socket_address(address)}}


def _is_ip(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _discovery(resources: list[dict[str, Any]]) -> bytes:
    version = hashlib.sha256(orjson.dumps(resources, option=orjson.OPT_SORT_KEYS)).hexdigest()[:12]
    return orjson.dumps({"version_info": version, "resources": resources}, option=orjson.OPT_INDENT_2)

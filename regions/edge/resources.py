"""Everything Envoy is told, as a function of the topology and the leadership.

Decides routes, retries, time-outs and limits towards the APIs; ``listener`` has those towards clients. Refuses to know
files, Envoy's state and time: the same arguments give the same bytes, so the version of a resource is a hash of it.

Each voter has a write cluster that is always there, and one route names the leader's cluster and its epoch
together: a change of leadership is one atomic replacement of the routes, never a new epoch sent to an old
leader. A request keeps its route, and so its cluster, for all its attempts: so the clusters of those that do not lead
point at the leader, and a request that met a leader which died meets the next one. Source: edge.md; Envoy 1.40's v3
API (the router looks its cluster up again for each attempt).
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
"""One attempt of a write: the write API answers within 5 s, if only to say that it does not know."""

WRITE_AGAIN_S = 2.0
"""A keyed write that has no answer by then is given up and sent again, to the leader of the moment; the key makes one
comment of all attempts. A leader that is cut off or hung keeps requests for as long as they wait, and the next one
serves after 1.7 s. A busy leader answers sooner: it lets a write wait for a second before it refuses it."""

WRITE_LATER_S_MAX = 5.0
"""The longest pause before a repetition that the write API may ask for."""

WRITE_WITH_RETRIES_S = 12.0
WRITE_RETRIES_MAX = 60
WRITE_BACK_OFF_S = (0.025, 0.3)
"""The mean first pause is 12 ms: the repetition then waits at the next leader, not at the edge. From the fourth on they
are 0.15 s: sixty are about 9 s, longer than a failover may take."""

READ_S = 0.25
SESSION_READ_S = 2.5
READ_WITH_RETRIES_S = 8.0
READ_RETRIES_MAX = 2
"""A read is asked elsewhere after a quarter second, which hedges a frozen process (p99 253 to 5 ms). A read
that carries a position may wait a second for the view, and a strong one for the leader's proof before that, so these
are given more time first."""

PREVIEW_S = 2.5
"""One that waits for its turn takes a fifth of a second."""

CONNECT_S = 1.0
"""Twelve round trips between regions: what did not connect by then was cut off."""

UPSTREAM_IDLE_S = 60
"""Below the 75 s after which the APIs close an idle connection, so that no request meets the closing."""

CONNECTIONS_MAX = 1024
REQUESTS_MAX = 4096
"""Envoy's own defaults are 1024 of each and 3 retries; in a failover every write in flight is a retry."""

WRITE_CONNECTIONS_MAX = 96
WRITES_WAITING_MAX = 1024
"""Attempts of an edge that the write API of the leader has at a time, and writes that wait at the edge for one of them.

At 80 ms a write, 96 are 1,200 writes/s of each edge. With more, three edges together give the write API more than it
answers within `WRITE_AGAIN_S`, and the edges send those writes again. With fewer, more writes meet a leader that hangs
a second time (ADR 0042). The time of an attempt begins when it leaves the edge.
More writes than 1,024 would wait for so long that they are sent to the leader when their client is about to give up;
they are refused at once."""

HEALTH_INTERVAL_S = 0.5
HEALTH_TIMEOUT_S = 0.5
"""The time-out is wider than a neighbour's 80 ms and the pauses of a machine that starts three regions."""

_RETRY_PRIORITY = {
    "name": "envoy.retry_priorities.previous_priorities",
    "typed_config": {
        "@type": f"{EXTENSIONS}retry.priority.previous_priorities.v3.PreviousPrioritiesConfig",
        "update_frequency": 1,
    },
}
"""Each attempt goes to another than those before, until all have been tried; then they are tried again."""


def render(topology: Topology, leadership: Leadership | None, settings: EdgeSettings) -> dict[str, bytes]:
    """Return the content of each xDS file by its path in the folder, in the order in which to write them.

    The listeners come last: their file is what says that all of them are there.
    """
    leader = None if leadership is None else leadership.leader
    next_one = None if leadership is None or leadership.succession is None else leadership.succession.region
    return {
        "eds/read_api.json": _discovery([read_endpoints(topology, settings)]),
        "rds/routes.json": _discovery([routes(leadership)]),
        CLUSTERS_FILE: _discovery(clusters(topology, settings, leader=leader, next_one=next_one)),
        "lds/listeners.json": _discovery([listener(settings)]),
    }


def transition_clusters(
    topology: Topology, settings: EdgeSettings, *, leader: RegionName, before: RegionName | None
) -> bytes:
    """Return the clusters that must be in force before the routes name a new leader.

    They are those of a succession, foretold or not: the routes still name the leader before.
    """
    return _discovery(clusters(topology, settings, leader=before, next_one=leader))


def version_of(content: bytes) -> str:
    """Return the version that Envoy reports once it has taken this content."""
    return str(orjson.loads(content)["version_info"])


def write_cluster(region: RegionName) -> str:
    """Return the name of the cluster of a region's write API."""
    return f"write_api_{region}"


def read_endpoints(topology: Topology, settings: EdgeSettings) -> dict[str, Any]:
    """Return the read APIs: the own one first, then the neighbours in order of preference."""
    reached: list[Address | Path] = [settings.read_socket or topology.own.read_api]
    reached += [region.read_api for region in topology.others]
    return {
        "@type": f"{CONFIG}endpoint.v3.ClusterLoadAssignment",
        "cluster_name": READ_CLUSTER,
        "endpoints": _in_order(reached),
    }


def clusters(
    topology: Topology, settings: EdgeSettings, *, leader: RegionName | None, next_one: RegionName | None
) -> list[dict[str, Any]]:
    """Return the cluster of the read APIs and one for each voter.

    The leader's cluster leads to the next leader when it is tried again, and that holds what comes early until it
    serves. A request keeps the cluster that was chosen for it first, so those of voters that do not lead lead to the
    leader.

    Args:
        topology: The deployment.
        settings: Where the edge is.
        leader: Who leads; None: each cluster leads to its own region.
        next_one: Who may lead at any moment.
    """
    write_apis = {voter.name: voter.write_api for voter in topology.voters if voter.write_api is not None}

    def leads_to(name: RegionName) -> list[Address | Path]:
        order = [name] if leader is None or leader not in write_apis or name == next_one else [leader]
        if name == leader and next_one is not None and next_one in write_apis:
            order.append(next_one)
        addresses = [write_apis[one] for one in order]
        # A cluster whose addresses are asked of the name service takes no socket.
        one_kind = len(order) == 1 or all(_is_ip(one.host) for one in addresses)
        own = settings.write_socket if one_kind else None
        return [own or write_apis[one] if one == topology.region else write_apis[one] for one in order]

    return [_read_cluster(settings), *(_write_cluster(name, leads_to(name)) for name in write_apis)]


def routes(leadership: Leadership | None) -> dict[str, Any]:
    """Return the routes: writes to the leader with its epoch, reads to the region."""
    return {
        "@type": f"{CONFIG}route.v3.RouteConfiguration",
        "name": "edge",
        "virtual_hosts": [
            {
                "name": "palaver",
                "domains": ["*"],
                # A retry carries the epoch of the first attempt; the count tells the write API that it is one.
                "include_request_attempt_count": True,
                "response_headers_to_remove": [REPEAT_HEADER, DEGRADED_HEADER],
                "routes": [
                    _no_such_method(),
                    {"match": {"path": "/metrics"}, "direct_response": {"status": 404}},
                    _preview_route(),
                    *_write_routes(leadership),
                    *_read_routes(),
                ],
            }
        ],
    }


def _preview_route() -> dict[str, Any]:
    """A preview is sent as a write is, and changes nothing: the region answers it, whoever leads.

    It is asked again only where nobody took it, never beside an attempt that takes long: it costs time to compute.
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
    # A read, but of what the leader alone knows.
    site = {
        "safe_regex": {"regex": SITE_PATH},
        "headers": [{"name": ":method", "string_match": {"safe_regex": {"regex": READ_METHODS}}}],
    }
    if leadership is None:
        return [{"match": match, "direct_response": {"status": 503}} for match in (site, _any_path(method))]
    # The write API takes keys with posts alone: a second attempt of another write may be a second write (ADR 0035).
    keyed = [
        {"name": ":method", "string_match": {"exact": "POST"}},
        {"name": "idempotency-key", "present_match": True},
    ]
    epoch = {
        "header": {"key": EPOCH_HEADER, "value": str(leadership.epoch)},
        "append_action": "OVERWRITE_IF_EXISTS_OR_ADD",
    }
    to_leader: dict[str, Any] = {"cluster": write_cluster(leadership.leader)}
    keyed_post = to_leader | {"timeout": duration(WRITE_WITH_RETRIES_S), "retry_policy": _repeats(WRITE_RETRIES_MAX)}
    site_read = to_leader | {"timeout": duration(READ_WITH_RETRIES_S), "retry_policy": _repeats(READ_RETRIES_MAX)}
    once = to_leader | {"timeout": duration(WRITE_S)}
    matches = [(site, site_read), (_any_path(*keyed), keyed_post), (_any_path(method), once)]
    return [{"match": match, "route": route, "request_headers_to_add": [epoch]} for match, route in matches]


def _repeats(times: int) -> dict[str, Any]:
    """Return how often the leader of the moment is asked again."""
    first_s, last_s = WRITE_BACK_OFF_S
    return {
        "retry_on": "connect-failure,refused-stream,reset,retriable-headers",
        # A 503 is repeated when the write API says that a repetition may mend it, and not before it says.
        "retriable_headers": [{"name": REPEAT_HEADER, "present_match": True}],
        "rate_limited_retry_back_off": {
            "reset_headers": [{"name": REPEAT_HEADER, "format": "SECONDS"}],
            "max_interval": duration(WRITE_LATER_S_MAX),
        },
        "num_retries": times,
        "per_try_timeout": duration(WRITE_AGAIN_S),
        "retry_priority": _RETRY_PRIORITY,
        "retry_back_off": {"base_interval": duration(first_s), "max_interval": duration(last_s)},
    }


def _any_path(*headers: dict[str, Any]) -> dict[str, Any]:
    return {"prefix": "/", "headers": list(headers)}


def _no_such_method() -> dict[str, Any]:
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
        # The first attempt goes on while another region is asked: the first answer wins.
        "hedge_policy": {"hedge_on_per_try_timeout": True},
    }


def _read_cluster(settings: EdgeSettings) -> dict[str, Any]:
    """A read API is ejected for what it says of itself: a client can ask for a 503 as often as it likes."""
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
                # Envoy's default is 60 s while a cluster has had no traffic: a read API that came up after
                # the first check would be held for dead that long.
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
            # A read that is hedged counts as one, and a client can ask for what takes long: the health checks find a
            # host that is frozen, within two intervals and time-outs, and a refused connection is asked elsewhere.
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
    """No ejection: an ejected leader would be an error that Envoy does not retry."""
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

"""Counts rate, errors and duration of HTTP requests per route, with a few list operations per request.

Decides the metric names and buckets of HTTP servers. The counters of the Prometheus client take a lock and look up
labels for each sample. An event loop has one writer, so plain integers are exact; a collector converts them into
metric families at each scrape. The label is the template of the route, never the raw path, so the label set is bounded.

Source: the RED method. The bucket bounds are the client's defaults, extended below one millisecond because a
cached page takes tens of microseconds.
"""

from bisect import bisect_left
from collections.abc import Iterator
from typing import Final

from prometheus_client import REGISTRY
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

BUCKETS_S: Final = (
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
)  # fmt: skip
UNMATCHED: Final = "unmatched"
_METHODS: Final = frozenset({"GET", "HEAD", "OPTIONS", "POST", "PUT", "PATCH", "DELETE"})


class RouteStatistics:
    """Counters of one method and route template."""

    __slots__ = ("buckets", "by_status", "sum_s")

    def __init__(self) -> None:
        self.buckets = [0] * (len(BUCKETS_S) + 1)
        self.by_status: dict[int, int] = {}
        self.sum_s = 0.0

    def observe(self, status: int, seconds: float) -> None:
        """Count one answered request."""
        self.buckets[bisect_left(BUCKETS_S, seconds)] += 1
        self.sum_s += seconds
        self.by_status[status] = self.by_status.get(status, 0) + 1


class RequestStatistics(Collector):
    """Counters of all routes of one process."""

    def __init__(self) -> None:
        self._routes: dict[tuple[str, str], RouteStatistics] = {}
        self.in_flight = 0

    def route(self, method: str, template: str) -> RouteStatistics:
        """Return the counters of a route; all non-standard methods share the label OTHER."""
        key = (method if method in _METHODS else "OTHER", template)
        statistics = self._routes.get(key)
        if statistics is None:
            statistics = self._routes[key] = RouteStatistics()
        return statistics

    def collect(self) -> Iterator[Metric]:
        """Yield the metric families; called by the scrape."""
        requests = CounterMetricFamily(
            "palaver_http_requests", "Requests answered", labels=["method", "route", "status"]
        )
        durations = HistogramMetricFamily(
            "palaver_http_request_duration_seconds", "Time to the last byte", labels=["method", "route"]
        )
        for (method, template), statistics in self._routes.items():
            for status, count in statistics.by_status.items():
                requests.add_metric([method, template, str(status)], count)
            durations.add_metric([method, template], _cumulative(statistics.buckets), statistics.sum_s)
        yield requests
        yield durations
        yield GaugeMetricFamily("palaver_http_requests_in_flight", "Requests being answered", value=self.in_flight)


def _cumulative(counts: list[int]) -> list[tuple[str, float]]:
    total = 0
    buckets: list[tuple[str, float]] = []
    for bound, count in zip((*map(str, BUCKETS_S), "+Inf"), counts, strict=True):
        total += count
        buckets.append((bound, float(total)))
    return buckets


REQUESTS: Final = RequestStatistics()
"""The statistics of this process. The Prometheus client expects one registry per process."""

REGISTRY.register(REQUESTS)

"""The supervisor's metrics: for each process, whether it runs, whether it is ready, and its restarts."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from infra.supervisor.supervisor import Supervisor

LABELS = ("region", "process")


class ProcessCollector(Collector):
    """Reads the state of every supervised process when it is scraped."""

    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor

    def collect(self) -> Iterator[GaugeMetricFamily | CounterMetricFamily]:
        """Yield the metric families."""
        running = GaugeMetricFamily("palaver_process_up", "1 while the process runs.", labels=LABELS)
        ready = GaugeMetricFamily("palaver_process_ready", "1 once the process answered its probe.", labels=LABELS)
        restarts = CounterMetricFamily(
            "palaver_process_restarts", "Starts after a death that nobody asked for.", labels=LABELS
        )
        for process in self._supervisor.processes.values():
            labels = (process.spec.region or "", process.spec.process)
            running.add_metric(labels, float(process.pid is not None))
            ready.add_metric(labels, float(process.is_ready.is_set()))
            restarts.add_metric(labels, float(process.restarts))
        yield from (running, ready, restarts)


def exposition(supervisor: Supervisor) -> bytes:
    """Return the metrics in Prometheus' text format."""
    registry = CollectorRegistry()
    registry.register(ProcessCollector(supervisor))
    return generate_latest(registry)

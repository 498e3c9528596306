"""Exports the metrics of the replicator to Prometheus; reads its parts at each scrape.

Decides names and labels. The parts hold their own counters, as plain integers.
"""

from collections.abc import Iterator, Mapping
from typing import Final

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from services.replicator.parts import Parts

BATCH_BOUNDS: Final = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)
"""Bounds of the histogram, in transactions per batch; the largest is the maximum that the channel returns at once."""


class BatchSizes:
    """A histogram of the transactions in a batch."""

    def __init__(self) -> None:
        self._counts = [0] * (len(BATCH_BOUNDS) + 1)
        self._sum = 0

    def observe(self, transactions: int) -> None:
        """Count one batch."""
        bucket = next((i for i, bound in enumerate(BATCH_BOUNDS) if transactions <= bound), len(BATCH_BOUNDS))
        self._counts[bucket] += 1
        self._sum += transactions

    def family(self) -> HistogramMetricFamily:
        """Return the metric."""
        family = HistogramMetricFamily("palaver_apply_batch_transactions", "Transactions applied in one batch.")
        total, buckets = 0, list[tuple[str, float]]()
        for bound, count in zip((*map(str, BATCH_BOUNDS), "+Inf"), self._counts, strict=True):
            total += count
            buckets.append((bound, total))
        family.add_metric([], buckets, self._sum)
        return family


class ReplicatorMetrics(Collector):
    """All metrics of this process except those of HTTP."""

    def __init__(self, parts: Parts, batches: BatchSizes) -> None:
        self._parts = parts
        self._batches = batches

    def collect(self) -> Iterator[Metric]:
        """Yield the metric families; called by the scrape."""
        parts = self._parts
        apply, channel, cache = parts.applier.counts, parts.channel, parts.invalidator
        leadership = parts.leaders.current
        yield _gauge("palaver_epoch", "Epoch of the latest leadership.", leadership.epoch if leadership else 0)
        yield _gauge("palaver_apply_lag_ms", "Known lag of the view, in milliseconds.", parts.lag_ms())
        yield _gauge("palaver_stream_connected", "Whether a change stream is open.", parts.meter.connected)
        yield _counter("palaver_apply_transactions", "Transactions applied.", apply.transactions)
        yield _counter("palaver_apply_changes", "Row changes applied.", apply.changes)
        yield _counter("palaver_apply_dropped", "Redelivered transactions that apply dropped.", apply.dropped)
        yield _counter("palaver_apply_restarts", "Restarts of apply.", apply.restarts)
        yield _counter("palaver_apply_dead_letters", "Changes that the view rejected.", apply.dead_letters)
        yield _gauge("palaver_dead_letters", "Changes in the dead letter table.", parts.applier.dead_letters)
        yield from self._letter_metrics()
        yield _gauge(
            "palaver_apply_schema_unknown",
            "Whether apply has stopped before a change that this version does not know.",
            parts.applier.schema_unknown is not None,
        )
        yield _gauge("palaver_view_indexed", "Whether the view has this version's indexes.", parts.indexed)
        yield self._batches.family()
        yield _counter("palaver_stream_bytes", "Bytes of change streams received.", channel.bytes_received)
        yield _counter("palaver_stream_reconnects", "Change streams that ended.", channel.reconnects)
        yield _counter(
            "palaver_stream_snapshots", "Snapshots taken because changes were no longer available.", channel.snapshots
        )
        yield _counter("palaver_cache_invalidations", "Threads whose pages were invalidated.", cache.invalidations)
        yield _counter("palaver_cache_flushes", "Cache generations begun.", cache.flushes)
        yield from self._repair_metrics()
        yield from self._leader_metrics()

    def _repair_metrics(self) -> Iterator[Metric]:
        repair = self._parts.repairs.repair
        yield _gauge("palaver_repair_tree_ready", "Whether the view's tree is computed.", self._parts.repairs.ready)
        yield _gauge("palaver_repair_rows", "Rows of the view's tree.", self._parts.repairs.view_tree.rows)
        clean, scrub = repair.last_clean, repair.last_scrub_at
        yield _gauge("palaver_repair_clean_at", "Unix time when view and ledger were equal.", clean.at if clean else 0)
        yield _gauge("palaver_repair_scrubbed_at", "Unix time of the last scrub.", scrub or 0)
        last = repair.last
        yield _gauge("palaver_repair_seconds", "Duration of the last comparison.", last.seconds if last else 0)
        yield _gauge("palaver_repair_bytes", "Bytes of the last comparison.", last.bytes if last else 0)
        comparisons, found, mended = repair.comparisons, repair.found, repair.mended
        yield _labelled_counter("palaver_repair_comparisons", "Comparisons with the ledger.", "verdict", comparisons)
        yield _labelled_counter("palaver_repair_found", "Rows that differed from the ledger.", "kind", found)
        yield _labelled_counter("palaver_repair_mended", "Rows that were mended.", "kind", mended)
        ledger = self._parts.repairs.ledger_tree
        if ledger is not None:
            yield _gauge("palaver_ledger_tree_rows", "Rows of the own ledger in memory.", ledger.rows)
            yield _gauge("palaver_ledger_tree_marks", "Rows to read before the next comparison.", ledger.marks)
            yield _counter("palaver_ledger_tree_wrong", "Rows in memory that were wrong.", ledger.counts.wrong_rows)
            yield _counter("palaver_ledger_tree_read", "Rows read from the ledger.", ledger.counts.rows_read)
        served = self._parts.repairs.comparisons
        if served is not None:
            counts = served.counts
            events = {"opened": counts.opened, "refused": counts.refused, "expired": counts.expired}
            yield _labelled_counter("palaver_comparisons", "Comparisons served.", "event", events)

    def _letter_metrics(self) -> Iterator[Metric]:
        letters = self._parts.applier.letters
        kinds = GaugeMetricFamily(
            "palaver_dead_letters_by_reason", "Changes in the dead letter table, by reason.", labels=["reason"]
        )
        for kind, number in letters.kinds.items():
            kinds.add_metric([kind], number)
        yield kinds
        counts = letters.counts
        yield _counter("palaver_dead_letters_refused", "Changes not stored, because the table is full.", counts.refused)
        yield _counter("palaver_dead_letters_erased", "Dead letters whose content was erased.", counts.erased)
        yield _counter("palaver_dead_letters_retried", "Retries that the view accepted.", counts.retried)
        yield _counter("palaver_dead_letters_failed", "Retries that the view rejected.", counts.failed)
        yield _counter("palaver_dead_letters_discarded", "Dead letters that operators discarded.", counts.discarded)

    def _leader_metrics(self) -> Iterator[Metric]:
        captured = CounterMetricFamily("palaver_capture_transactions", "Transactions captured.", labels=["subscriber"])
        read = CounterMetricFamily("palaver_capture_bytes", "Bytes of WAL decoded.", labels=["subscriber"])
        for region, counts in self._parts.server.source.totals.items():
            captured.add_metric([region], counts.transactions)
            read.add_metric([region], counts.bytes_read)
        retained = GaugeMetricFamily(
            "palaver_slot_retained_bytes", "Bytes of WAL that a slot retains.", labels=["slot"]
        )
        active = GaugeMetricFamily("palaver_slot_active", "Whether a walsender uses a slot.", labels=["slot"])
        watch = self._parts.slot_watch
        for slot, facts in (watch.slots if watch else {}).items():
            retained.add_metric([slot], facts.retained_bytes)
            active.add_metric([slot], facts.active)
        yield from (captured, read, retained, active)


def _gauge(name: str, text: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, text, value=float(value))


def _counter(name: str, text: str, value: int) -> CounterMetricFamily:
    return CounterMetricFamily(name, text, value=value)


def _labelled_counter(name: str, text: str, label: str, counts: Mapping[str, int]) -> CounterMetricFamily:
    family = CounterMetricFamily(name, text, labels=[label])
    for value, count in sorted(counts.items()):
        family.add_metric([value], count)
    return family

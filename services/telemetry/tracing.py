"""Traces requests with the OpenTelemetry SDK: selects the sampled ones, and passes the context between processes.

Decides sampling before it calls the SDK, because even a span that is not recorded costs more than the rest of a cached
read. A request with a `traceparent` follows the flag of its parent, and a root is sampled at random with the configured
ratio. The number of sampled requests per second is bounded for each kind, whatever flags clients send. The SDK's batch
processor writes sampled spans to the log, where a collector can read them.

Source: W3C Trace Context level 1, https://www.w3.org/TR/trace-context/.
"""

import contextlib
import logging
import random
import re
import time
from collections.abc import Generator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import ALWAYS_ON, ParentBased
from opentelemetry.trace import (
    Link,
    NonRecordingSpan,
    Span,
    SpanContext,
    SpanKind,
    TraceFlags,
    set_span_in_context,
)

# A span has a few kB. The OpenTelemetry specification's default for the batch span processor is 2048 queued spans.
SPAN_QUEUE_MAX: Final = 2048
SPAN_EXPORT_INTERVAL_MS: Final = 2000
SHUTDOWN_TIMEOUT_MS: Final = 500
# Sampled traces that begin per second, whatever the ratio: under load a fixed share would flood the log. Jaeger's
# rate-limiting sampler is the precedent.
ROOTS_PER_S_MAX: Final = 10
# Sampled requests per second that have a sampled parent. Any client can send such a parent, so these requests have a
# separate bound and do not use up that of the roots.
FOLLOWED_PER_S_MAX: Final = 10

_TRACEPARENT: Final = re.compile(r"\A([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?\Z")
_log = logging.getLogger("palaver.trace")


class TraceContext(NamedTuple):
    """The identity of the running request or change: lower-case hexadecimal ids, and the sampled flag."""

    trace_id: str
    span_id: str
    sampled: bool

    @property
    def traceparent(self) -> str:
        """Return the value of the `traceparent` header for the next process."""
        return f"00-{self.trace_id}-{self.span_id}-{'01' if self.sampled else '00'}"


_current: ContextVar[TraceContext | None] = ContextVar("palaver_trace", default=None)


def current_trace_id() -> str | None:
    """Return the trace id of the running task; None outside of a trace."""
    trace = _current.get()
    return None if trace is None else trace.trace_id


def sampled_traceparent() -> str | None:
    """Return the traceparent to propagate (for example into the WAL); None if this request is not sampled."""
    trace = _current.get()
    return trace.traceparent if trace is not None and trace.sampled else None


def parse_traceparent(text: str) -> TraceContext | None:
    """Parse a traceparent header; None if it is malformed, because the standard treats it as absent."""
    match = _TRACEPARENT.match(text)
    if match is None:
        return None
    version, trace_id, span_id, flags, rest = match.groups()
    if version == "ff" or (version == "00" and rest) or int(trace_id, 16) == 0 or int(span_id, 16) == 0:
        return None
    return TraceContext(trace_id, span_id, bool(int(flags, 16) & 1))


def enter_trace(trace: TraceContext) -> None:
    """Set the trace of the running task, and of the tasks that it starts."""
    _current.set(trace)


class LogSpanExporter(SpanExporter):
    """Writes ended spans to the log, because every deployment has one."""

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Write each span as a log line of level info."""
        for span in spans:
            context = span.get_span_context()
            assert context is not None
            _log.info(
                "span",
                extra={
                    "trace_id": f"{context.trace_id:032x}",
                    "span_id": f"{context.span_id:016x}",
                    "parent_span_id": f"{span.parent.span_id:016x}" if span.parent else None,
                    "span": span.name,
                    "duration_us": ((span.end_time or 0) - (span.start_time or 0)) // 1000,
                    "attributes": dict(span.attributes or {}),
                    "links": [f"{link.context.trace_id:032x}" for link in span.links],
                },
            )
        return SpanExportResult.SUCCESS


@dataclass(slots=True, kw_only=True)
class _PerSecond:
    """Bounds the number of events in each second."""

    maximum: int
    second: int = 0
    taken: int = 0

    def take(self) -> bool:
        """Count one event; return whether it is within the bound of this second."""
        second = int(time.monotonic())
        if second != self.second:
            self.second, self.taken = second, 0
        self.taken += 1
        return self.taken <= self.maximum


@dataclass(slots=True, kw_only=True)
class Tracing:
    """The tracer of one process. Build it once with `configure_tracing`, and close it when the process ends."""

    provider: TracerProvider
    ratio: float
    _roots: "_PerSecond" = field(default_factory=lambda: _PerSecond(maximum=ROOTS_PER_S_MAX))
    _followed: "_PerSecond" = field(default_factory=lambda: _PerSecond(maximum=FOLLOWED_PER_S_MAX))

    def begin_request(self, parent: TraceContext | None) -> TraceContext:
        """Return the trace identity of an incoming request; does not call the SDK."""
        if parent is not None:
            sampled = parent.sampled and self._followed.take()
            return TraceContext(parent.trace_id, f"{random.getrandbits(64) | 1:016x}", sampled)
        bits = random.getrandbits(192)
        sampled = random.random() < self.ratio and self._roots.take()  # noqa: S311 - sampling, not a secret
        return TraceContext(f"{bits >> 64 | 1:032x}", f"{bits & (2**64 - 1) | 1:016x}", sampled)

    def start_span(
        self,
        name: str,
        parent: TraceContext | None,
        *,
        kind: SpanKind = SpanKind.INTERNAL,
        attributes: Mapping[str, str | int | float | bool] | None = None,
        links: Sequence[TraceContext] = (),
    ) -> Span:
        """Start a recorded span, as a child of `parent` (sampled) or as a root. The caller ends it."""
        tracer = self.provider.get_tracer("palaver")
        context = set_span_in_context(NonRecordingSpan(_span_context(parent))) if parent is not None else None
        return tracer.start_span(
            name,
            context=context,
            kind=kind,
            attributes=attributes,
            links=[Link(_span_context(link)) for link in links],
        )

    @contextlib.contextmanager
    def linked_span(self, name: str, traceparent: str, **attributes: str | float | bool) -> Generator[None]:
        """Record the work that a request in another process caused, as a new root span that links to that request.

        Records nothing if the traceparent is malformed or not sampled.
        """
        cause = parse_traceparent(traceparent)
        if cause is None or not cause.sampled:
            yield
            return
        span = self.start_span(name, None, attributes=attributes, links=[cause])
        token = _current.set(trace_of(span))
        try:
            yield
        finally:
            _current.reset(token)
            span.end()

    def close(self) -> None:
        """Write the queued spans, and stop the thread that exports them."""
        self.provider.shutdown()


def trace_of(span: Span) -> TraceContext:
    """Return the identity of a recorded span."""
    context = span.get_span_context()
    return TraceContext(f"{context.trace_id:032x}", f"{context.span_id:016x}", context.trace_flags.sampled)


def configure_tracing(
    *, process: str, region: str | None, ratio: float, exporter: SpanExporter | None = None
) -> Tracing:
    """Build the tracer of a process.

    Args:
        process: Service name on each span.
        region: Region on each span.
        ratio: Share of root requests that are sampled, 0 to 1. Children follow their parent.
        exporter: Destination of the spans; the log by default.
    """
    assert 0 <= ratio <= 1, ratio
    # `begin_request` has already applied the ratio to roots, so the sampler of the SDK samples every root.
    provider = TracerProvider(
        sampler=ParentBased(root=ALWAYS_ON),
        resource=Resource.create({"service.name": f"palaver-{process}", "palaver.region": region or ""}),
        shutdown_on_exit=False,
    )
    provider.add_span_processor(
        BatchSpanProcessor(
            exporter if exporter is not None else LogSpanExporter(),
            max_queue_size=SPAN_QUEUE_MAX,
            schedule_delay_millis=SPAN_EXPORT_INTERVAL_MS,
            export_timeout_millis=SHUTDOWN_TIMEOUT_MS,
        )
    )
    return Tracing(provider=provider, ratio=ratio)


def _span_context(trace: TraceContext) -> SpanContext:
    return SpanContext(
        trace_id=int(trace.trace_id, 16),
        span_id=int(trace.span_id, 16),
        is_remote=True,
        trace_flags=TraceFlags(TraceFlags.SAMPLED if trace.sampled else TraceFlags.DEFAULT),
    )

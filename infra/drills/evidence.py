"""Evaluates what a drill leaves: the journal, the contents of the databases, and the roles of the regions.

Decides to which phase of the drill a record belongs, when an edge could not answer, when refusals were allowed, and how
long writes were unavailable. Pure functions. What must hold is in `judges.py`.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from http import HTTPStatus
from typing import Any

from infra.drills.drill import PHASES, AllowedRefusals, Drill, Phase, RoleAtStart

Record = Mapping[str, Any]

GAP_S_MIN = 0.25
"""The shortest pause between acknowledgements that is a write outage. Usually 16 writers at 80 ms get one every few
milliseconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Holdings:
    """What the databases contain of the drill's thread, read after all views have caught up.

    Attributes:
        ledger: (id, body, epoch) of every row in the ledger.
        views: Ids in the view of each region.
        pages: Ids on all pages of each region's edge, read without a consistency level.
        fences: (epoch, leader) of every fence row.
    """

    ledger: Sequence[tuple[str, str, int]]
    views: Mapping[str, Sequence[str]]
    pages: Mapping[str, Sequence[str]]
    fences: Sequence[tuple[int, str]]


NOTHING_HELD = Holdings(ledger=(), views={}, pages={}, fences=())


@dataclass(frozen=True, slots=True, kw_only=True)
class Regions:
    """The regions of the deployment.

    Attributes:
        every: All regions, including view-only ones.
        roles: The region of each role when the drill began.
    """

    every: Sequence[str]
    roles: Mapping[RoleAtStart, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """A time in which a region's edge is excused, for every request that was under way in it.

    Attributes:
        region: The region of the edge.
        since: Beginning, in seconds of the journal.
        until: End, in seconds of the journal.
    """

    region: str
    since: float
    until: float

    def covers(self, record: Record) -> bool:
        """Whether a request to this edge was under way in this time."""
        return bool(self.region == record["region"] and self.since <= record["t"] and record["sent"] <= self.until)


@dataclass(frozen=True, slots=True, kw_only=True)
class WriteOutage:
    """A time without an acknowledged keyed write.

    Attributes:
        first: When the first delayed write was sent, in seconds of the journal.
        end: When the next write was acknowledged; the end of the drill if none was.
    """

    first: float
    end: float

    @property
    def seconds(self) -> float:
        """The duration for the client that waited longest."""
        return self.end - self.first


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """Everything that the judges use.

    Attributes:
        drill: The method and the expectations.
        records: The journal.
        holdings: What the databases contain.
        regions: The regions and their roles.
        end: End of the drill, in seconds of the journal.
    """

    drill: Drill
    records: Sequence[Record]
    holdings: Holdings
    regions: Regions
    end: float

    def of_kind(self, *kinds: str) -> list[Record]:
        """Return the records of these kinds."""
        return [record for record in self.records if record["kind"] in kinds]

    def writes(self, *, keyed: bool) -> list[Record]:
        """Return the outcome of each attempt to write."""
        return [record for record in self.of_kind("acknowledged", "refused", "unknown") if record["keyed"] == keyed]

    @cached_property
    def phases(self) -> dict[Phase, tuple[float, float]]:
        """Beginning and end of each phase; without the phases that did not begin."""
        began = {record["phase"]: float(record["t"]) for record in self.of_kind("phase")}
        ends = [*PHASES[1:], "over"]
        return {
            phase: (began[phase], began.get(end, self.end))
            for phase, end in zip(PHASES, ends, strict=True)
            if phase in began
        }

    def during(self, phase: Phase, record: Record) -> bool:
        """Whether a request was sent and answered within a phase."""
        since, until = self.phases.get(phase, (1.0, 0.0))
        return since <= record["sent"] and record["t"] <= until

    @cached_property
    def edge_outages(self) -> list[Span]:
        """The times in which an edge could not be expected to answer."""
        return edge_outages_of(self.records, end=self.end)

    @property
    def refused(self) -> list[Span]:
        """The times in which an edge may refuse keyed writes."""
        return [span for span, _ in self._windows]

    @cached_property
    def _windows(self) -> list[tuple[Span, AllowedRefusals]]:
        spans: list[tuple[Span, AllowedRefusals]] = []
        last = self.phases.get("after", (self.end, self.end))[0]
        for window in self.drill.expect.refused:
            since = next((record["t"] for record in self.of_kind("began") if record["label"] == window.since), None)
            until = next((record["t"] for record in self.of_kind("done") if record["label"] == window.until), self.end)
            if since is None:
                continue
            edges = self.regions.every if window.edges == "all" else [self.regions.roles.get(window.edges, "")]
            for region in edges:
                ends = max(until, min(self._takes_writes_at(region, window.until), last))
                spans.append((Span(region=region, since=since, until=ends), window))
        return spans

    def _takes_writes_at(self, region: str, label: str) -> float:
        """Return when an edge first acknowledged a keyed write that was sent after a step began; else the drill's end.

        Edges learn of a new leader at different times.
        """
        began = next((record["t"] for record in self.of_kind("began") if record["label"] == label), self.end)
        return next(
            (
                float(record["t"])
                for record in self.of_kind("acknowledged")
                if record["keyed"] and record["region"] == region and record["sent"] >= began
            ),
            self.end,
        )

    def acknowledged(self, phase: Phase, region: str) -> int:
        """Return how many keyed writes an edge acknowledged in a phase."""
        return sum(
            record["kind"] == "acknowledged" and record["region"] == region and self.during(phase, record)
            for record in self.writes(keyed=True)
        )

    @cached_property
    def write_outages(self) -> list[WriteOutage]:
        """The write outages; a write that waited at an edge which alone may refuse writes is ignored."""
        apart = [span for span, window in self._windows if window.edges != "all"]
        return write_outages_of(self.records, end=self.end, apart=apart)

    @property
    def writes_least(self) -> int:
        """The sum of the least numbers of acknowledged writes that the drill declares."""
        fewest = self.drill.expect.fewest
        return sum(sum(fewest.of(phase).values()) for phase in PHASES)


def edge_outages_of(records: Sequence[Record], *, end: float) -> list[Span]:
    """Return the times in which an edge could not be expected to answer.

    The edge of a killed region is expected to answer again when the region is healthy, or earlier, when the edge has
    acknowledged a write that was sent after the region's restart.
    """
    down_since: dict[str, float] = {}
    restarted: dict[str, float] = {}
    spans: list[Span] = []

    def over(region: str, until: float) -> None:
        restarted.pop(region, None)
        if region in down_since:
            spans.append(Span(region=region, since=down_since.pop(region), until=until))

    for record in records:
        if record["kind"] == "acknowledged" and restarted.get(record["region"], end) <= record["sent"]:
            over(record["region"], record["sent"])
        if record["kind"] != "step" or record.get("process") not in (None, "envoy"):
            continue
        for region in record.get("regions", ()):
            if record["do"] in ("kill", "pause"):
                restarted.pop(region, None)
                down_since.setdefault(region, float(record["t"]))
            elif record["do"] == "restart":
                restarted[region] = float(record["t"])
            elif record["do"] in ("restarted", "resume"):
                over(region, float(record["t"]))
    return spans + [Span(region=region, since=since, until=end) for region, since in down_since.items()]


def is_excused(spans: Iterable[Span], record: Record, *, unanswered: bool) -> bool:
    """Whether a span excuses an answer of 502 or above or, with ``unanswered``, a missing answer."""
    status = record.get("status")
    excusable = unanswered if status is None else status > HTTPStatus.NOT_IMPLEMENTED
    return excusable and any(span.covers(record) for span in spans)


def write_outages_of(records: Sequence[Record], *, end: float, apart: Sequence[Span] = ()) -> list[WriteOutage]:
    """Return the outages of keyed writes, each from the first delayed write to the next acknowledgement.

    If a keyed write still waits at the end of the drill, the last outage lasts until then. A write is ignored if one of
    its attempts was under way in a span of ``apart`` at the same edge: that edge delayed it, even if its last attempt
    was at another one.
    """
    acknowledged = sorted(
        (float(record["t"]), str(record["key"]))
        for record in records
        if record["kind"] == "acknowledged" and record["keyed"]
    )
    first_sent = _first_sent(record for record in records if record.get("keyed"))
    if not first_sent:
        return []
    done = {key: at for at, key in acknowledged}
    elsewhere = {
        key
        for key, region, sent, ended in _attempts(records, end=end)
        for span in apart
        if region == span.region and sent <= span.until and ended >= span.since
    }
    times = [min(first_sent.values()), *(at for at, _ in acknowledged)]
    if first_sent.keys() - done.keys():
        times.append(end)
    write_outages: list[WriteOutage] = []
    for before, after in itertools.pairwise(times):
        if after - before < GAP_S_MIN:
            continue
        # The writes that were under way at the last acknowledgement, and those that were sent in the gap.
        suffered = [
            sent
            for key, sent in first_sent.items()
            if key not in elsewhere and sent < after and done.get(key, after) >= after
        ]
        write_outages.append(WriteOutage(first=min(suffered, default=before), end=after))
    return write_outages


def slowest_write_s(records: Sequence[Record], *, end: float) -> float | None:
    """Return the longest time from a keyed write's first attempt to its acknowledgement, seconds; None without a write.

    A write that still waits counts until the end of the drill.
    """
    first_sent = _first_sent(record for record in records if record.get("keyed"))
    done = {record["key"]: float(record["t"]) for record in records if record["kind"] == "acknowledged"}
    return max((done.get(key, end) - sent for key, sent in first_sent.items()), default=None)


def _attempts(records: Sequence[Record], *, end: float) -> Iterator[tuple[str, str, float, float]]:
    """Yield key, edge, beginning and end of each attempt; without an outcome it lasts until `end`."""
    under_way: dict[str, tuple[str, float]] = {}
    for record in records:
        if record["kind"] == "sent":
            under_way[record["key"]] = (record["region"], float(record["t"]))
        elif record["kind"] in ("acknowledged", "refused", "unknown") and record["key"] in under_way:
            yield record["key"], *under_way.pop(record["key"]), float(record["t"])
    for key, (region, sent) in under_way.items():
        yield key, region, sent, end


def _first_sent(records: Iterable[Record]) -> dict[str, float]:
    first_sent: dict[str, float] = {}
    for record in records:
        if record["kind"] == "sent":
            first_sent.setdefault(record["key"], float(record["t"]))
    return first_sent

"""Writes the report of a drill: a JSON document, and an HTML page with a timeline.

Decides their form. The page contains everything, its chart included, and opens from a file.
"""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from statistics import median
from typing import Any

import orjson

from infra.drills.charts import Band, Mark, Panel, Series, chart
from infra.drills.drill import PHASES, RoleAtStart
from infra.drills.evidence import slowest_write_s
from infra.drills.judges import PHASE_WORDS, Check
from infra.drills.runner import Outcome
from regions.failover.settings import Settings as FailoverSettings

BUCKET_S = 0.1
FAILED_SHOWN_MAX = 20
PHI_SHOWN_MAX = 20.0  # it grows without a bound while a region is silent
PHASE_COLOURS = {
    "serving": "#d5ead8", "recruiting": "#fbd9c5", "promoting": "#fdeec3", "establishing": "#fdeec3",
    "bootstrapping": "#dde3ee",
}  # fmt: skip

REGION_COLOURS = ("#1f77b4", "#ff7f0e", "#2ca02c", "#d62728", "#9467bd", "#8c564b", "#e377c2")
OUTCOME_COLOURS = {"acknowledged": "#0b5cad", "refused": "#b3261e", "unknown": "#7a4fb5"}

PHASE_MEANINGS = {
    "serving": "the leader accepts writes",
    "recruiting": "another region collects votes and positions",
    "promoting": "the chosen region becomes the leader",
    "bootstrapping": "the first epoch begins",
}

_PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{title}</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; color: #1b1f24 }}
table {{ border-collapse: collapse; width: 100% }}
td, th {{ text-align: left; padding: .3rem .6rem; border-bottom: 1px solid #d9dde3; vertical-align: top }}
.ok {{ color: #1a7f37 }} .failed {{ color: #b3261e }} svg {{ width: 100%; height: auto }}
code {{ font-size: .9em }}
</style>
<h1>{title}: <span class="{mark}">{verdict}</span></h1>
<p>{hypothesis}</p>
{plot}
<h2>How to read the timeline</h2>
<dl>
<dt>Background</dt><dd>{legend}</dd>
<dt>Dashed red lines</dt><dd>The steps of the drill, named at the top.</dd>
<dt>Dots</dt><dd>Each dot is one attempt of a write, at the time it was sent: <b>acknowledged</b> (201), <b>refused</b>
(an answer other than 201, or no connection; the client sends a keyed write again), <b>unknown</b> (the
connection broke before the answer; the client sends a keyed write again). Refused and unknown attempts are
expected while a fault lasts, so a drill with red dots can pass: the checks below require that every keyed write
is acknowledged in the end, once, and that running edges give keyed writers no error, except where the drill
allows it.</dd>
<dt>phi</dt><dd>The suspicion of each region, as computed by the region that suspects it most: &minus;log10 of the
probability that a heartbeat is only late (phi accrual failure detector). Near 0 heartbeats arrive in time; 8
means one false suspicion in 10<sup>8</sup>, and agents suspect a region from {threshold:g} on (the default).
Values above {phi_max:g} are drawn as {phi_max:g}.</dd>
</dl>
<h2>Checks</h2>
<table><tr><th>what must hold</th><th>facts</th><th>at least</th><th>excused</th><th></th></tr>{checks}</table>
<h2>Keyed writes acknowledged</h2>
<table><tr><th>when</th><th>seconds</th><th>edge of</th><th>writes</th><th>at least</th></tr>{writes}</table>
<h2>Events</h2>
<table><tr><th>s</th><th>event</th></tr>{story}</table>
</html>
"""


def facts_of(outcome: Outcome) -> dict[str, Any]:
    """Return the JSON document; times in seconds."""
    latencies = _latencies(outcome.records)
    slowest, stall = slowest_write_s(outcome.records, end=outcome.evidence.end), outcome.longest_stall_s
    return {
        "drill": outcome.drill.name,
        "title": outcome.drill.title,
        "passed": outcome.passed,
        "trouble": outcome.trouble,
        "seed": outcome.seed,
        "seconds": round(outcome.seconds, 3),
        "acknowledged": len(latencies),
        "median_latency_ms": round(median(latencies) * 1000, 1) if latencies else None,
        "slowest_write_s": None if slowest is None else round(slowest, 3),
        "longest_stall_s": None if stall is None else round(stall, 3),
        "stalls": [
            {"first_s": round(stall.first, 3), "seconds": round(stall.seconds, 3)} for stall in outcome.write_outages
        ],
        "checks": [
            {
                "name": check.name,
                "passed": not check.failed,
                "facts": check.counted,
                "facts_least": check.least,
                "excused": check.excused,
                "failed": list(check.failed),
            }
            for check in outcome.checks
        ],
        "writes": _writes(outcome),
        "story": [record for record in outcome.records if record["kind"] in ("step", "status")],
    }


def write_report(outcome: Outcome, folder: Path, name: str) -> tuple[Path, Path]:
    """Write both documents; return the paths of the page and of the JSON document."""
    folder.mkdir(parents=True, exist_ok=True)
    page, facts = folder / f"{name}.html", folder / f"{name}.json"
    page.write_text(page_of(outcome), encoding="utf-8")
    facts.write_bytes(orjson.dumps(facts_of(outcome), option=orjson.OPT_INDENT_2))
    return page, facts


def page_of(outcome: Outcome) -> str:
    """Return the HTML page."""
    return _PAGE.format(
        title=html.escape(outcome.drill.title),
        mark="ok" if outcome.passed else "failed",
        verdict="passed" if outcome.passed else html.escape(outcome.trouble or "failed"),
        hypothesis=html.escape(outcome.drill.hypothesis),
        plot=timeline(outcome),
        legend="; ".join(
            f'<span style="background: {PHASE_COLOURS[phase]}">{phase}</span> {meaning}'
            for phase, meaning in PHASE_MEANINGS.items()
        ),
        threshold=FailoverSettings().phi_threshold,
        phi_max=PHI_SHOWN_MAX,
        checks="".join(_check_row(check) for check in outcome.checks),
        writes="".join(
            f"<tr><td>{PHASE_WORDS[row['phase']]}</td><td>{row['seconds']:.1f}</td>"
            f"<td>{html.escape(row['region'])}{', the ' + row['role'] if row['role'] else ''}</td>"
            f"<td>{row['acknowledged']}</td><td>{row['least']}</td></tr>"
            for row in _writes(outcome)
        ),
        story="".join(
            f"<tr><td>{record['t']:.3f}</td><td>{html.escape(describe(record))}</td></tr>"
            for record in outcome.records
            if record["kind"] in ("step", "status")
        ),
    )


def _check_row(check: Check) -> str:
    shown = [html.escape(line) for line in check.failed[:FAILED_SHOWN_MAX]]
    more = len(check.failed) - len(shown)
    lines = "<br>".join([*shown, *([f"and {more} more"] if more > 0 else [])])
    mark = '<span class="failed">failed</span>' if check.failed else '<span class="ok">holds</span>'
    figures = f"<td>{check.counted}</td><td>{check.least}</td><td>{check.excused or ''}</td>"
    return f"<tr><td>{html.escape(check.name)}<br>{lines}</td>{figures}<td>{mark}</td></tr>"


def _writes(outcome: Outcome) -> list[dict[str, Any]]:
    """Return the acknowledged keyed writes and the least numbers, by phase and edge."""
    evidence, rows = outcome.evidence, list[dict[str, Any]]()
    roles: dict[str, RoleAtStart] = {region: role for role, region in evidence.regions.roles.items()}
    for phase in PHASES:
        since, until = evidence.phases.get(phase, (0.0, 0.0))
        declared = evidence.drill.expect.fewest.of(phase)
        for region in evidence.regions.every:
            role = roles.get(region)
            least = 0 if role is None else declared.get(role, 0)
            row = {"phase": phase, "seconds": round(until - since, 3), "region": region, "role": role}
            rows.append(row | {"acknowledged": evidence.acknowledged(phase, region), "least": least})
    return rows


def describe(record: Mapping[str, Any]) -> str:
    """Return a step or a status as text."""
    if record["kind"] == "status":
        refusal = f"; {record['refusal']}" if record.get("refusal") else ""
        return f"epoch {record['epoch']} {record['phase']}, {record['leader']}: {record['reason']}{refusal}"
    others = f" from {', '.join(record['others'])}" if record.get("others") else ""
    process = f"/{record['process']}" if record.get("process") else ""
    return f"{record['do']} {', '.join(record['regions'])}{process}{others}"


def timeline(outcome: Outcome) -> str:
    """Return an SVG: acknowledgements per second, latencies, suspicion, phases and steps over time."""
    records = outcome.records
    end = max((float(record["t"]) for record in records), default=0.0) or 1.0
    return chart(
        [_rate(records, end), _latency(records), _suspicion(records)],
        end=end,
        bands=_phases(records, end),
        marks=[Mark(at=float(record["t"]), label=describe(record)) for record in records if record["kind"] == "step"],
    )


def _rate(records: Sequence[Mapping[str, Any]], end: float) -> Panel:
    buckets = [0] * (int(end / BUCKET_S) + 1)
    for record in records:
        if record["kind"] == "acknowledged":
            buckets[int(record["t"] / BUCKET_S)] += 1
    points = [(number * BUCKET_S, count / BUCKET_S) for number, count in enumerate(buckets)]
    rate = Series(label=None, colour=OUTCOME_COLOURS["acknowledged"], points=points, drawn_as="steps")
    return Panel(label="acknowledged writes/s", series=[rate])


def _latency(records: Sequence[Mapping[str, Any]]) -> Panel:
    series: list[Series] = []
    for kind, colour in OUTCOME_COLOURS.items():
        points = [
            (float(record["sent"]), float(record["t"] - record["sent"]) * 1000)
            for record in records
            if record["kind"] == kind
        ]
        if points:
            series.append(Series(label=kind, colour=colour, points=points, drawn_as="dots"))
    return Panel(label="latency of writes, ms", series=series, logarithmic=True)


def _suspicion(records: Sequence[Mapping[str, Any]]) -> Panel:
    """For each region, the highest phi that any other region has computed for it."""
    suspicion: dict[str, list[tuple[float, float]]] = {}
    for record in records:
        if record["kind"] != "phi":
            continue
        most: dict[str, float] = {}
        for observed in record["phi"].values():
            for region, value in observed.items():
                most[region] = max(most.get(region, 0.0), min(float(value), PHI_SHOWN_MAX))
        for region, value in most.items():
            suspicion.setdefault(region, []).append((float(record["t"]), value))
    return Panel(
        label="phi",
        series=[
            Series(label=region, colour=colour, points=points, drawn_as="line")
            for (region, points), colour in zip(sorted(suspicion.items()), cycle(REGION_COLOURS), strict=False)
        ],
    )


def _phases(records: Sequence[Mapping[str, Any]], end: float) -> list[Band]:
    statuses = [record for record in records if record["kind"] == "status"]
    ends = [*(float(record["t"]) for record in statuses[1:]), end]
    return [
        Band(since=float(record["t"]), until=until, colour=PHASE_COLOURS.get(record["phase"], "#eeeeee"))
        for record, until in zip(statuses, ends, strict=False)
    ]


def _latencies(records: Sequence[Mapping[str, Any]]) -> list[float]:
    return [float(record["t"] - record["sent"]) for record in records if record["kind"] == "acknowledged"]

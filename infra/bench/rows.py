"""Computes the rows of the benchmarks from samples, and whether they meet their aim. Pure functions.

Each row needs a least number of samples, and raises `MeasuredNothing` if there are fewer. So a deployment without
processes does not report the least memory, and a load without an answer does not report the shortest latency.
"""

from __future__ import annotations

import math
import statistics
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from infra.bench.load import LoadResult, percentile

Row = dict[str, Any]

SAMPLES_MIN = 20
"""With fewer samples a median is random."""

P99_SAMPLES_MIN = 100
"""With fewer samples the 99th percentile is the maximum."""

FRESH_P50_MS_MAX = 8.0
FRESH_P99_MS_MAX = 100.0
AGENT_SHARE_MAX = 0.03
REJOIN_S_MAX = 20.0
P99_RATIO_MAX = 2.0
HOGGED_WRITES_PER_S_MIN = 1.0

TERMINAL_COLUMNS = 80


class MeasuredNothing(Exception):
    """There are too few samples for a figure; the message is one line that names it."""


def enough(samples: Sequence[object], least: int, what: str) -> None:
    """Require a least number of samples.

    Raises:
        MeasuredNothing: There are fewer.
    """
    if len(samples) < least:
        raise MeasuredNothing(f"{what}: {len(samples)} samples, at least {least} are needed")


def compared(work: str, ours: Sequence[LoadResult], limit: Sequence[float], beside: str, aim: float) -> Row:
    """Return a row of the table: medians and their ratio."""
    enough(ours, 1, work)
    enough(limit, 1, beside)
    for run in ours:
        enough(run.latencies_s, P99_SAMPLES_MIN, work)
    if min(limit) <= 0:
        raise MeasuredNothing(f"{beside}: zero per second")
    rate = statistics.median(run.per_second for run in ours)
    best = statistics.median(limit)
    p99_ms = statistics.median(run.percentile_ms(0.99) for run in ours)
    return {
        "work": work,
        "ours": f"{rate:,.0f}/s (p99 {p99_ms:.1f} ms)",
        "beside": f"{beside}: {best:,.0f}/s",
        "ratio": round(rate / best, 3),
        "aim": f"≥ {aim}",
        "met": rate / best >= aim,
        "ours_per_s": [round(run.per_second, 1) for run in ours],
        "limit_per_s": [round(value, 1) for value in limit],
    }


def plain(work: str, value: float, unit: str, aim: float) -> Row:
    """Return a row without a limit."""
    if not 0 < value < math.inf:
        raise MeasuredNothing(f"{work}: {value} {unit}")
    return {
        "work": work, "ours": f"{value:,.1f} {unit}", "beside": "—", "ratio": None,
        "aim": f"< {aim:g} {unit}", "met": value < aim, "value": value,
    }  # fmt: skip


def freshness(samples_ms: Sequence[float]) -> Row:
    """Return the row of the time from a write's acknowledgement to its first read in another region."""
    work = "commit → readable in another region, 200 writes/s"
    enough(samples_ms, P99_SAMPLES_MIN, work)
    if min(samples_ms) <= 0:
        raise MeasuredNothing(f"{work}: a read before the write")
    p50, p99 = statistics.median(samples_ms), percentile(samples_ms, 0.99)
    return {
        "work": work, "ours": f"p50 {p50:.1f} ms, p99 {p99:.1f} ms", "beside": "—", "ratio": None,
        "aim": f"p50 ≤ {FRESH_P50_MS_MAX:g} ms, p99 ≤ {FRESH_P99_MS_MAX:g} ms",
        "met": p50 <= FRESH_P50_MS_MAX and p99 <= FRESH_P99_MS_MAX,
        "p50_ms": p50, "p99_ms": p99, "samples": len(samples_ms),
    }  # fmt: skip


def agent(shares: Mapping[str, float], leader: str | None) -> Row:
    """Return the share of one core that each agent used; an agent that used none did not run."""
    enough([*shares], 1, "agents")
    idle = [region for region, share in shares.items() if share <= 0]
    if idle or leader not in shares:
        raise MeasuredNothing(f"agents: {', '.join(idle) or 'none'} used no time; the leader is {leader}")
    return {"shares": dict(shares), "leader": leader, "met": max(shares.values()) <= AGENT_SHARE_MAX}


def hogs(  # noqa: PLR0913 - the observations, by name
    *, seconds: float, running: int, wanted: int, failovers: int, attempts: int, taken_s: Sequence[float]
) -> Row:
    """Return the result of a steady load while a process occupied each core."""
    if seconds <= 0 or not 0 < wanted == running:
        raise MeasuredNothing(f"hogs: {running} of {wanted} ran for {seconds:g} s")
    enough(taken_s, max(1, math.ceil(seconds * HOGGED_WRITES_PER_S_MIN)), "acknowledged writes beside the hogs")
    return {
        "seconds": seconds,
        "failovers": failovers,
        "acknowledged": len(taken_s),
        "others": attempts - len(taken_s),
        "slowest_s": round(max(taken_s), 3),
        "met": failovers == 0,
    }


def rejoin(
    *, megabytes: int, seconds: float, how: Sequence[str], before_s: Sequence[float], meanwhile_s: Sequence[float]
) -> Row:
    """Return how long a killed member took to follow again, and the latency of writes before and meanwhile."""
    enough(before_s, P99_SAMPLES_MIN, "writes before the member's return")
    enough(meanwhile_s, SAMPLES_MIN, "writes during the member's return")
    p99_s = [percentile(one, 0.99) for one in (before_s, meanwhile_s)]
    ratio = p99_s[1] / p99_s[0]
    return {
        "megabytes": megabytes,
        "rejoin_s": round(seconds, 2),
        "how": list(how),
        "p50_ms": [round(statistics.median(one) * 1000, 1) for one in (before_s, meanwhile_s)],
        "p99_ms": [round(one * 1000, 1) for one in p99_s],
        "p99_ratio": round(ratio, 2),
        "met": 0 < seconds <= REJOIN_S_MAX and ratio <= P99_RATIO_MAX and "rewound" in " ".join(how),
    }


def printed(rows: Sequence[Row]) -> tuple[Sequence[str], Sequence[Sequence[object]]]:
    """Return the columns and the lines of the terminal's table: the rows, numbered and without their limits."""
    lines = [
        (number, row["work"], row["ours"], row["ratio"], row["aim"], "yes" if row["met"] else "NO")
        for number, row in enumerate(rows, 1)
    ]
    return ("", "work", "measured", "ratio", "aim", "met"), lines


def limits_beside(rows: Sequence[Row]) -> list[str]:
    """Return the limit of each row, with the row's number, in lines that fit a terminal."""
    return [
        line
        for number, row in enumerate(rows, 1)
        if row["beside"] != "—"
        for line in textwrap.wrap(
            f"{number:>2}  limit: {row['beside']}", TERMINAL_COLUMNS, subsequent_indent="    ", break_on_hyphens=False
        )
    ]

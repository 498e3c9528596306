"""Tests each row of the benchmarks on sound samples, on too few, and on samples that miss the aim.

The rows are found by their signature, so that a row without all three fails here.
"""

import math
from collections.abc import Callable
from typing import Any

import pytest

from infra.bench import rows, sessions, thread_pages
from infra.bench.load import LoadResult, percentile
from infra.bench.rows import MeasuredNothing, Row
from infra.printing import table
from tests.infra.objections import public_functions

RUN = LoadResult(requests=1000, seconds=1.0, latencies_s=[0.01] * 1000)
FAST = LoadResult(requests=2001, seconds=1.0, latencies_s=[0.01] * 2001)
FEW = LoadResult(requests=9, seconds=1.0, latencies_s=[0.1] * 9)
SESSIONS = {"eventual": [RUN], "last answer": [RUN]}
PAGES = {size: [1.0] * thread_pages.ROUNDS for size in thread_pages.SIZES}


def compared(**changes: Any) -> Row:
    known: dict[str, Any] = {"work": "w", "ours": [RUN], "limit": [100.0], "beside": "b", "aim": 0.5}
    return rows.compared(**known | changes)


def plain(value: float) -> Row:
    return rows.plain("memory", value, "MB", 2500)


def freshness(samples_ms: list[float]) -> Row:
    return rows.freshness(samples_ms)


def hogs(**changes: Any) -> Row:
    known: dict[str, Any] = {"seconds": 10, "running": 2, "wanted": 2, "failovers": 0, "attempts": 11}
    known["taken_s"] = [0.1] * 10
    return rows.hogs(**known | changes)


def in_sessions(**changes: Any) -> Row:
    known: dict[str, Any] = {"runs": SESSIONS, "writes": 360, "seconds": 10.0}
    return sessions.row_of("last answer", **known | changes)


def rejoin(**changes: Any) -> Row:
    known: dict[str, Any] = {"megabytes": 1, "seconds": 3.0, "how": ["rewound"]}
    known |= {"before_s": [0.2] * 100, "meanwhile_s": [0.2] * 20}
    return rows.rejoin(**known | changes)


Made = Callable[[], Row]

ROWS: dict[Callable[..., Row], tuple[Made, list[Made], list[Made]]] = {
    # sound, too few samples, aim missed
    rows.compared: (
        compared,
        [
            lambda: compared(ours=[]),
            lambda: compared(limit=[]),
            lambda: compared(limit=[0.0]),
            lambda: compared(ours=[LoadResult(seconds=1.0)]),
            lambda: compared(ours=[RUN, FEW]),
        ],
        [lambda: compared(limit=[3000.0])],
    ),
    rows.plain: (
        lambda: plain(10.0),
        [lambda: plain(0.0), lambda: plain(-1.0), lambda: plain(math.nan), lambda: plain(math.inf)],
        [lambda: plain(2500.0)],
    ),
    rows.freshness: (
        lambda: freshness([5.0] * 100),
        [lambda: freshness([]), lambda: freshness([5.0] * 99), lambda: freshness([0.0] * 100)],
        [lambda: freshness([8.1] * 100), lambda: freshness([5.0] * 98 + [101.0] * 2)],
    ),
    rows.agent: (
        lambda: rows.agent({"us": 0.01, "eu": 0.02}, "us"),
        [
            lambda: rows.agent({}, "us"),
            lambda: rows.agent({"us": 0.0, "eu": 0.02}, "us"),
            lambda: rows.agent({"us": 0.01}, None),
        ],
        [lambda: rows.agent({"us": 0.01, "eu": 0.04}, "us")],
    ),
    rows.hogs: (
        hogs,
        [
            lambda: hogs(taken_s=[]),
            lambda: hogs(taken_s=[0.1] * 9),
            lambda: hogs(running=1),
            lambda: hogs(running=0, wanted=0),
            lambda: hogs(seconds=0),
        ],
        [lambda: hogs(failovers=1)],
    ),
    rows.rejoin: (
        rejoin,
        [lambda: rejoin(before_s=[]), lambda: rejoin(meanwhile_s=[]), lambda: rejoin(before_s=[0.2] * 99)],
        [
            lambda: rejoin(seconds=21.0),
            lambda: rejoin(seconds=0.0),
            lambda: rejoin(how=["copied"]),
            lambda: rejoin(how=[]),
            lambda: rejoin(meanwhile_s=[0.5] * 20),
        ],
    ),
    sessions.row_of: (
        in_sessions,
        [
            lambda: in_sessions(writes=359),
            lambda: in_sessions(writes=0, seconds=0.0),
            lambda: in_sessions(runs={}),
            lambda: in_sessions(runs=SESSIONS | {"eventual": []}),
            lambda: in_sessions(runs=SESSIONS | {"eventual": [LoadResult(seconds=1.0)]}),
            lambda: in_sessions(runs=SESSIONS | {"last answer": [RUN, FEW]}),
        ],
        [lambda: in_sessions(runs=SESSIONS | {"eventual": [FAST]})],
    ),
    thread_pages.row_of: (
        lambda: thread_pages.row_of("k", PAGES),
        [
            lambda: thread_pages.row_of("k", {}),
            lambda: thread_pages.row_of("k", PAGES | {thread_pages.SIZES[1]: []}),
        ],
        [lambda: thread_pages.row_of("k", PAGES | {thread_pages.SIZES[-1]: [2.0] * thread_pages.ROUNDS})],
    ),
}


def test_every_row_has_sound_and_too_few_and_bad_samples() -> None:
    found = set(public_functions(rows, "Row").values())
    for module in (sessions, thread_pages):
        found |= set(public_functions(module, "dict[str, Any]").values())
    assert found == set(ROWS)
    assert all(empty and broken for _, empty, broken in ROWS.values())


@pytest.mark.parametrize("made", ROWS, ids=lambda one: one.__name__)
def test_a_row_meets_its_aim_or_misses_it_or_needs_more_samples(made: Callable[..., Row]) -> None:
    sound, empty, broken = ROWS[made]
    assert sound()["met"]
    for one in empty:
        with pytest.raises(MeasuredNothing):
            one()
    for one in broken:
        assert not one()["met"]


def test_a_load_without_an_answer_has_no_figures() -> None:
    for figure in (
        lambda: percentile([], 0.5),
        lambda: LoadResult(seconds=1.0).percentile_ms(0.99),
        lambda: LoadResult().per_second,
    ):
        with pytest.raises(AssertionError):
            figure()


def test_the_table_and_the_limits_fit_a_terminal_of_80_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    work = "GET page of a 200-comment thread (identity, 40,166 bytes) through the edge, warm"
    beside = "a raw route that returns the same bytes, no edge; " + "to a callable without any route " * 5
    made = [compared(work=work, beside=beside), freshness([5.0] * 100), plain(10.0)]
    text = table("", *rows.printed(made))
    assert max(map(len, text.splitlines())) <= 80
    assert len(text.splitlines()) <= 12
    limits = rows.limits_beside(made)
    assert max(map(len, limits)) <= 80
    assert " ".join(line.strip() for line in limits).startswith("1  limit: a raw route that returns")
    assert all(line.startswith((" 1  ", "    ")) for line in limits), "only the first row has a limit"

"""Tests each claim of the tour with correct results, with empty results and with broken results."""

import ast
import inspect
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest

from infra.cli.demo import next_steps
from infra.demo import tour
from infra.demo.leader_loss import (
    LeaderLoss,
    acknowledged_after,
    longest_pause_ms,
    lose_the_leader,
    posts_of,
    refusals_of,
)
from infra.demo.tour import (
    COMMENTS,
    VISIBILITY_SAMPLES,
    TourResult,
    check_every_region,
    check_posted,
    check_posts_during_leader_loss,
    facts_of,
    print_figures,
)
from infra.demo.tour import check_status as judge_status
from infra.demo.visitor import Posted, VisitFailed, Visitor
from infra.drills.clients import LoadPlan
from tests.infra.objections import texts_of, unheard

REGIONS = ("us", "eu")


def posted(number: int) -> Posted:
    region = REGIONS[number % 2]
    return Posted(id=f"{number}", thread="t", parent=None, body=f"b{number}", region=region, took_ms=1.0, position="")


ALL = [posted(number) for number in range(COMMENTS)]
TIMES = {(source, target): [1.0] * VISIBILITY_SAMPLES for source in REGIONS for target in REGIONS}
STATUS: dict[str, Any] = {
    "cells": [{"cell": "main", "phase": "serving", "epoch": 1, "leader": "us"}],
    "regions": [
        {"region": "us", "role": "leader", "healthy": True, "missing": []},
        {"region": "eu", "role": "follower", "healthy": True, "missing": []},
    ],
}


class Shelf(Visitor):
    """Shows what it was given."""

    def __init__(self, found: dict[str, dict[str, Any]], count: int) -> None:
        self._found, self._count = found, count

    async def read_thread(self, region: str, thread: str) -> tuple[dict[str, dict[str, Any]], int]:
        del region, thread
        return self._found, self._count


SHOWN: dict[str, dict[str, Any]] = {one.id: {"body": one.body, "parent": one.parent} for one in ALL}


def failures(
    judge: Callable[[TourResult], None],
    comments: list[Posted] = ALL,
    visible_ms: dict[tuple[str, str], list[float]] = TIMES,
) -> list[str]:
    result = TourResult(posted=list(comments), visible_ms=visible_ms)
    judge(result)
    return result.failures


def status(**cell: Any) -> list[str]:
    known: dict[str, Any] = STATUS["cells"][0]
    document = STATUS | {"cells": [known | cell]}
    return failures(lambda result: judge_status(document, result))


def disaster(after: int, *comments: Posted) -> list[str]:
    seen = LeaderLoss(died="ap", leads="us", epoch=2, still_ms=1.0, posted_after=after, back_s=1.0)
    return failures(lambda result: check_posts_during_leader_loss(seen, comments, REGIONS, result))


async def read_back(shown: dict[str, dict[str, Any]], count: int) -> list[str]:
    result = TourResult(posted=list(ALL))
    await check_every_region(Shelf(shown, count), REGIONS, result)
    return result.failures


async def said() -> list[str]:
    """Return the failures of the claims for results that are broken in every way."""
    unhealthy = STATUS | {"regions": [{"region": "us", "role": "leader", "healthy": False, "missing": ["redis"]}]}
    lines = failures(lambda result: check_posted(result, REGIONS), comments=[])
    lines += failures(lambda result: check_posted(result, REGIONS), visible_ms={})
    lines += [*disaster(0), *disaster(1, ALL[0])]
    lines += [*status(phase="recruiting"), *status(leader="eu"), *status(epoch=None)]
    lines += failures(lambda result: judge_status(unhealthy, result))
    lines += failures(lambda result: judge_status(STATUS | {"regions": []}, result))
    lines += [*await read_back({}, 0), *await read_back(SHOWN, 1)]
    lines += await read_back(SHOWN | {"0": {"body": "another", "parent": None}}, COMMENTS)
    return lines


async def test_each_claim_holds_for_a_correct_tour() -> None:
    assert failures(lambda result: check_posted(result, REGIONS)) == []
    assert disaster(1, *ALL[:2]) == []
    assert status() == []
    assert await read_back(SHOWN, COMMENTS) == []


async def test_each_claim_fails_for_an_empty_and_for_a_broken_tour() -> None:
    assert failures(lambda result: check_posted(result, REGIONS), comments=[])
    assert failures(lambda result: check_posted(result, REGIONS), visible_ms={})
    assert len(disaster(0)) == 3
    assert disaster(1, ALL[0]) == ["nobody posted through eu while ap died"]
    assert await read_back({}, 0)
    claims = [one for name, one in inspect.getmembers(tour, inspect.isfunction) if name.startswith("check_")]
    patterns = texts_of(ast.parse(inspect.getsource(one)) for one in claims)
    assert unheard(patterns, await said()) == []


@pytest.mark.parametrize("answered", [0, 1])
def test_a_write_outage_that_lasts_to_the_end_is_measured(answered: int) -> None:
    acknowledged_at = [1.5][:answered]
    assert longest_pause_ms(acknowledged_at, 1.0, 9.0) == (7500.0 if answered else 8000.0)
    assert acknowledged_after(acknowledged_at, 1.0) == answered


def test_each_attempt_that_is_not_acknowledged_is_a_refused_post() -> None:
    records: list[dict[str, Any]] = [
        {"kind": "sent", "t": 1.0, "key": "a", "region": "us"},
        {"kind": "refused", "t": 1.1, "key": "a", "region": "us", "status": 503, "reason": "no leader"},
        {"kind": "unknown", "t": 1.2, "key": "a", "region": "us", "reason": "ReadTimeout"},
        {"kind": "refused", "t": 1.3, "key": "a", "region": "us", "status": None, "reason": "ConnectError"},
        {"kind": "acknowledged", "t": 1.75, "sent": 1.5, "key": "a", "region": "eu", "id": "1", "position": "p"},
    ]
    assert refusals_of(records) == ["us: 503 no leader", "us: no answer, ReadTimeout", "us: no answer, ConnectError"]
    assert posts_of(records) == [
        Posted(id="1", thread="demo-disaster", parent=None, body="a", region="eu", took_ms=250.0, position="p")
    ]


class Unmoved:
    """A deployment without a failover."""

    async def status(self) -> dict[str, Any]:
        return STATUS

    async def kill(self, region: str, process: str | None) -> list[int]:
        del region, process
        return []

    async def restart_region(self, region: str) -> None:
        raise AssertionError(region)


async def test_a_tour_in_which_no_other_region_takes_over_fails_with_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("infra.demo.leader_loss.LoadPlan", partial(LoadPlan, finish_s=0))
    monkeypatch.setattr("infra.demo.leader_loss.MOVED_S_MAX", 0)
    monkeypatch.setattr("infra.demo.leader_loss.BEFORE_S", 0)
    visitor = Visitor(dict.fromkeys(REGIONS, "http://127.0.0.1:1"), "a-site")
    try:
        with pytest.raises(VisitFailed, match="no other region took writes within 0 s"):
            await lose_the_leader(visitor, REGIONS, Unmoved(), STATUS["cells"][0])
    finally:
        await visitor.close()


def test_the_document_and_the_text_have_the_same_slowest_post() -> None:
    result = TourResult(posted=list(ALL), visible_ms=dict(TIMES))
    lines: list[str] = []
    print_figures(result, REGIONS, lines.append)
    # The posts that wait for the failover come after the text.
    result.posted.append(replace(ALL[0], took_ms=2500.0))
    document = facts_of(result, REGIONS)
    assert document["commit_ms"]["us"] == {"median": 1.0, "max": 1.0}
    assert any("slowest 1 ms" in line for line in lines)


def test_a_tour_that_failed_before_its_figures_has_a_document() -> None:
    document = facts_of(TourResult(failures=["nothing was posted"]), REGIONS)
    assert (document["failures"], document["commit_ms"]) == (["nothing was posted"], {})


def test_next_steps_name_running_edges() -> None:
    lines = next_steps({"us": "http://127.0.0.1:1", "eu": "http://127.0.0.1:2"}, "a-site")
    assert any("Ctrl-C" in line for line in lines)
    assert any("http://127.0.0.1:2/v1/sites/a-site/comments" in line for line in lines)

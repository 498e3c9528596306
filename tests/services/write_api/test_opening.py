"""Tests that a region serves writes after its fence row is committed, and that earlier requests wait for it."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable
from dataclasses import replace
from typing import cast
from uuid import UUID

import httpx
import psycopg
import pytest

from regions.coordination import Coordination, LeadershipView
from regions.identity import CellId, RegionName
from regions.leadership import Succession
from services.write_api import leadership as opening
from services.write_api.leadership import LeadershipGuard, watch_fence_row
from tests import servers
from tests.services.write_api.conftest import OURS, Api, leadership, problem
from tests.waiting import until

ANSWER_S_MAX = 30.0


@pytest.fixture
def long_opening(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a request wait for longer than any answer takes, so that no timeout ends its wait."""
    monkeypatch.setattr(opening, "OPENING_S_MAX", 3600.0)


def view_of(leader: str, phase: str) -> LeadershipView:
    view = LeadershipView(cast("Coordination", None), CellId("main"))
    view.current = leadership(epoch=2, leader=leader, phase=phase)
    return view


@contextlib.asynccontextmanager
async def following(api: Api, view: LeadershipView) -> AsyncGenerator[Callable[[], None]]:
    """Run the task of the process; yield a function that gives the task another leadership."""
    api.leadership = view.current
    group = asyncio.create_task(watch_fence_row(view, api.guard, api.pool))
    try:
        yield api.guard.note_change
    finally:
        group.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await group


def fence(server: servers.PostgresServer) -> None:
    server.sql("INSERT INTO palaver.fence (epoch, fence_id, leader) VALUES (2, gen_random_uuid(), 'us-east')")


@pytest.mark.parametrize("phase", ["promoting", "establishing"])
@pytest.mark.usefixtures("long_opening")
async def test_a_request_waits_for_the_fence_row(api: Api, ledger_server: servers.PostgresServer, phase: str) -> None:
    site = (await api.site())["id"]
    try:
        async with following(api, view_of("us-east", phase)):
            waiting = asyncio.create_task(api.post(site))
            await until(lambda: api.guard.waiting == 1)
            assert not waiting.done(), "the write was served before the row was committed"
            fence(ledger_server)
            answer = await waiting
            assert answer.status_code == 201
            assert answer.headers["palaver-position"].startswith("main.2.")
    finally:
        ledger_server.sql("DELETE FROM palaver.fence WHERE epoch = 2")


async def test_the_wait_for_a_fence_row_is_bounded(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    site = (await api.site())["id"]
    monkeypatch.setattr(opening, "OPENING_S_MAX", 0.05)
    async with following(api, view_of("us-east", "promoting")):
        answer = await api.post(site)
    assert (answer.status_code, problem(answer)) == (503, "stale-epoch")


async def test_a_fence_row_admits_no_write_while_another_region_is_chosen(
    api: Api, ledger_server: servers.PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = (await api.site())["id"]
    monkeypatch.setattr(opening, "OPENING_S_MAX", 0.05)
    fence(ledger_server)
    try:
        for view in (view_of("us-east", "recruiting"), view_of("eu-west", "promoting")):
            async with following(api, view):
                assert problem(await api.post(site)) == "stale-epoch"
    finally:
        ledger_server.sql("DELETE FROM palaver.fence WHERE epoch = 2")


@pytest.mark.usefixtures("long_opening")
async def test_a_waiting_request_is_refused_when_another_region_is_chosen(api: Api) -> None:
    site = (await api.site())["id"]
    async with following(api, view_of("us-east", "recruiting")) as tell:
        waiting = asyncio.create_task(api.post(site))
        await until(lambda: api.guard.waiting == 1)
        api.leadership = leadership(epoch=2, leader="eu-west", phase="promoting")
        tell()
        answer = await asyncio.wait_for(waiting, ANSWER_S_MAX)
    assert problem(answer) == "stale-epoch"


def test_admission_by_a_fence_row_ends_with_its_epoch() -> None:
    current = leadership(epoch=2, phase="promoting")
    guard = LeadershipGuard(lambda: current, RegionName("us-east"))
    guard.open(2)
    assert guard.serves
    current = leadership(epoch=3, phase="promoting")
    assert not guard.serves


# A switchover promises the next epoch to a region. That epoch begins before etcd has it (rule 20).


def promised_to(region: str) -> LeadershipView:
    view = view_of("eu-west", "serving")
    assert view.current is not None
    succession = Succession(region=RegionName(region), reason="a switch")
    view.current = replace(view.current, epoch=1, fence_id=UUID(int=1), succession=succession)
    return view


@pytest.mark.usefixtures("long_opening")
async def test_a_promised_epoch_begins_with_its_fence_row(api: Api, ledger_server: servers.PostgresServer) -> None:
    site = (await api.site())["id"]
    try:
        async with following(api, promised_to("us-east")):
            waiting = asyncio.create_task(api.post(site, {"palaver-epoch": "2"}))
            repeated = asyncio.create_task(api.post(site, {"palaver-epoch": "1", "x-envoy-attempt-count": "2"}))
            await until(lambda: api.guard.waiting == 2)
            assert not waiting.done(), "the write was served before the row was committed"
            assert not repeated.done(), "the write was served before the row was committed"
            fence(ledger_server)
            answers = [await waiting, await repeated]
            assert [one.status_code for one in answers] == [201, 201]
            assert answers[0].headers["palaver-position"].startswith("main.2.")
    finally:
        ledger_server.sql("DELETE FROM palaver.fence WHERE epoch = 2")


@pytest.mark.usefixtures("long_opening")
@pytest.mark.parametrize(("region", "epoch"), [("us-east", "1"), ("us-east", "3"), ("ap-south", "2")])
async def test_a_request_for_another_epoch_than_the_promised_one_is_refused_at_once(
    api: Api, region: str, epoch: str
) -> None:
    site = (await api.site())["id"]
    async with following(api, promised_to(region)):
        answer = await asyncio.wait_for(api.post(site, {"palaver-epoch": epoch}), ANSWER_S_MAX)
    assert problem(answer) == "stale-epoch"


@pytest.mark.usefixtures("long_opening")
async def test_a_withdrawn_promise_ends_the_wait(api: Api) -> None:
    site = (await api.site())["id"]
    async with following(api, promised_to("us-east")) as tell:
        waiting = asyncio.create_task(api.post(site, {"palaver-epoch": "2"}))
        await until(lambda: api.guard.waiting == 1)
        api.leadership = view_of("eu-west", "serving").current
        tell()
        answer = await asyncio.wait_for(waiting, ANSWER_S_MAX)
    assert problem(answer) == "stale-epoch"


async def ended(api: Api, site: str, server: servers.PostgresServer) -> httpx.Response:
    """Make the ledger terminate a running write, as a leader does that gives up the leadership while writes wait."""
    with psycopg.connect(server.url()) as blocking:
        blocking.execute("LOCK TABLE palaver.comments IN EXCLUSIVE MODE")
        waiting = asyncio.create_task(api.post(site))
        await until(lambda: bool(server.sql(f"SELECT pg_terminate_backend(pid) {OURS} AND wait_event = 'relation'")))
        return await waiting


async def test_a_leader_whose_ledger_ended_after_a_promise_refuses_at_once_without_a_call(
    api: Api, ledger_server: servers.PostgresServer
) -> None:
    site = (await api.site())["id"]
    succession = Succession(region=RegionName("eu-west"), reason="a test")
    api.leadership = replace(leadership(), succession=succession)
    assert (await api.post(site)).status_code == 201, "a promise alone must not end the admission"
    assert problem(await ended(api, site, ledger_server)) == "outcome-unknown"
    answer = await api.post(site)
    assert (answer.status_code, problem(answer)) == (503, "stale-epoch")
    assert "gives it up" in answer.json()["detail"]
    api.leadership = replace(leadership(), succession=succession)
    assert (await api.post(site)).status_code == 201, "the watch reported the record again, and the ledger serves"


async def test_a_ledger_that_ended_a_write_without_a_promise_is_called_again(
    api: Api, ledger_server: servers.PostgresServer
) -> None:
    site = (await api.site())["id"]
    assert problem(await ended(api, site, ledger_server)) == "outcome-unknown"
    assert (await api.post(site)).status_code == 201

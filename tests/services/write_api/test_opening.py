"""A region that was chosen takes writes when its fence row is committed, and what comes meanwhile waits for it."""

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
from tests.services.write_api.conftest import OURS, Api, leadership, problem, until

ANSWER_S_MAX = 30.0


@pytest.fixture
def long_opening(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a request wait for longer than any answer takes, so that it is not time that ends its wait."""
    monkeypatch.setattr(opening, "OPENING_S_MAX", 3600.0)


def view_of(leader: str, phase: str) -> LeadershipView:
    view = LeadershipView(cast("Coordination", None), CellId("main"))
    view.current = leadership(epoch=2, leader=leader, phase=phase)
    return view


@contextlib.asynccontextmanager
async def following(api: Api, view: LeadershipView) -> AsyncGenerator[Callable[[], None]]:
    """The task of the process; what it gives tells it of another leadership."""
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
            assert not waiting.done(), "nothing is taken before the row is there"
            fence(ledger_server)
            answer = await waiting
            assert answer.status_code == 201
            assert answer.headers["palaver-position"].startswith("main.2.")
    finally:
        ledger_server.sql("DELETE FROM palaver.fence WHERE epoch = 2")


async def test_the_wait_is_bounded(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    site = (await api.site())["id"]
    monkeypatch.setattr(opening, "OPENING_S_MAX", 0.05)
    async with following(api, view_of("us-east", "promoting")):
        answer = await api.post(site)
    assert (answer.status_code, problem(answer)) == (503, "stale-epoch")


async def test_a_fence_row_opens_nothing_while_the_member_is_not_chosen(
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
async def test_who_waits_is_told_when_another_region_is_chosen(api: Api) -> None:
    site = (await api.site())["id"]
    async with following(api, view_of("us-east", "recruiting")) as tell:
        waiting = asyncio.create_task(api.post(site))
        await until(lambda: api.guard.waiting == 1)
        api.leadership = leadership(epoch=2, leader="eu-west", phase="promoting")
        tell()
        answer = await asyncio.wait_for(waiting, ANSWER_S_MAX)
    assert problem(answer) == "stale-epoch"


def test_an_opening_ends_with_its_epoch() -> None:
    current = leadership(epoch=2, phase="promoting")
    guard = LeadershipGuard(lambda: current, RegionName("us-east"))
    guard.open(2)
    assert guard.serves
    current = leadership(epoch=3, phase="promoting")
    assert not guard.serves


# A switch: the next epoch is promised to a region, and begins before etcd knows (rule 20).


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
            assert not waiting.done(), "nothing is taken before the row is there"
            assert not repeated.done(), "nothing is taken before the row is there"
            fence(ledger_server)
            answers = [await waiting, await repeated]
            assert [one.status_code for one in answers] == [201, 201]
            assert answers[0].headers["palaver-position"].startswith("main.2.")
    finally:
        ledger_server.sql("DELETE FROM palaver.fence WHERE epoch = 2")


@pytest.mark.usefixtures("long_opening")
@pytest.mark.parametrize(("region", "epoch"), [("us-east", "1"), ("us-east", "3"), ("ap-south", "2")])
async def test_who_does_not_come_for_the_promised_epoch_is_refused_at_once(api: Api, region: str, epoch: str) -> None:
    site = (await api.site())["id"]
    async with following(api, promised_to(region)):
        answer = await asyncio.wait_for(api.post(site, {"palaver-epoch": epoch}), ANSWER_S_MAX)
    assert problem(answer) == "stale-epoch"


@pytest.mark.usefixtures("long_opening")
async def test_a_promise_that_is_taken_back_ends_the_wait(api: Api) -> None:
    site = (await api.site())["id"]
    async with following(api, promised_to("us-east")) as tell:
        waiting = asyncio.create_task(api.post(site, {"palaver-epoch": "2"}))
        await until(lambda: api.guard.waiting == 1)
        api.leadership = view_of("eu-west", "serving").current
        tell()
        answer = await asyncio.wait_for(waiting, ANSWER_S_MAX)
    assert problem(answer) == "stale-epoch"


async def ended(api: Api, site: str, server: servers.PostgresServer) -> httpx.Response:
    """Have the ledger end a write under way, as a leader does that gives up while writes wait."""
    with psycopg.connect(server.url()) as blocking:
        blocking.execute("LOCK TABLE palaver.comments IN EXCLUSIVE MODE")
        waiting = asyncio.create_task(api.post(site))
        await until(lambda: bool(server.sql(f"SELECT pg_terminate_backend(pid) {OURS} AND wait_event = 'relation'")))
        return await waiting


async def test_a_leader_whose_ledger_ended_after_a_promise_refuses_at_once_and_asks_it_no_more(
    api: Api, ledger_server: servers.PostgresServer
) -> None:
    site = (await api.site())["id"]
    succession = Succession(region=RegionName("eu-west"), reason="a test")
    api.leadership = replace(leadership(), succession=succession)
    assert (await api.post(site)).status_code == 201, "a promise ends nothing"
    assert problem(await ended(api, site, ledger_server)) == "outcome-unknown"
    answer = await api.post(site)
    assert (answer.status_code, problem(answer)) == (503, "stale-epoch")
    assert "gives it up" in answer.json()["detail"]
    api.leadership = replace(leadership(), succession=succession)
    assert (await api.post(site)).status_code == 201, "the record was told anew, and the ledger is there"


async def test_a_ledger_that_ends_a_write_without_a_promise_is_asked_again(
    api: Api, ledger_server: servers.PostgresServer
) -> None:
    site = (await api.site())["id"]
    assert problem(await ended(api, site, ledger_server)) == "outcome-unknown"
    assert (await api.post(site)).status_code == 201

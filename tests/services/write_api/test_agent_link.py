"""Tests the reports and questions that the write API sends to its agent, and how the agent handles them."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator

import httpx
import orjson
import pytest

from regions.switcher import Switcher
from services.api.leader_port import CANCELLED_WAIT_PATH, CURRENT_PATH
from services.region_agent.reports import ReportHandler
from services.telemetry.internal import internal_app
from services.write_api.agent_link import AgentLink
from tests.waiting import until

SECRET = "a secret of the agents"


class Heard(Switcher):
    """Records the reports that a switcher receives, and acts on none."""

    def __init__(self) -> None:
        self.asked = 0
        self.epochs: list[int] = []
        self.runs = True
        self.leads = True

    def report_cancelled_wait(self, epoch: int) -> bool:
        self.asked += 1
        if self.runs:
            self.epochs.append(epoch)
        return self.runs

    async def is_current(self) -> bool:
        return self.leads


@contextlib.asynccontextmanager
async def linked(switcher: Switcher, secret: str = SECRET) -> AsyncGenerator[tuple[AgentLink, httpx.AsyncClient]]:
    """A link to the order handler of an agent, through the agent's internal application."""
    desk = ReportHandler(switcher, SECRET)
    app = internal_app(
        missing=list, status=dict, orders={CANCELLED_WAIT_PATH: desk.quorum_wait_cancelled, CURRENT_PATH: desk.current}
    )
    transport = httpx.ASGITransport(app)  # pyright: ignore[reportArgumentType] - httpx types ASGI with dict, we with MutableMapping
    headers = {"authorization": f"Bearer {secret}"}
    async with httpx.AsyncClient(transport=transport, base_url="http://agent", headers=headers) as client:
        link = AgentLink(client)
        running = asyncio.ensure_future(link.run())
        try:
            yield link, client
        finally:
            running.cancel()
            await asyncio.wait([running])


async def test_the_agent_receives_each_epoch_once() -> None:
    switcher = Heard()
    async with linked(switcher) as (link, _):
        for epoch in (4, 4, 3, 5):
            link.quorum_wait_cancelled(epoch)
            # The link sends one report after the other: it has sent every earlier report before 5.
            await until(lambda: not link._pending.is_set() and link._confirmed_epoch == link._cancelled_epoch)
    assert switcher.epochs == [4, 5]


async def test_a_report_is_repeated_until_the_agent_runs() -> None:
    switcher = Heard()
    switcher.runs = False
    async with linked(switcher) as (link, _):
        link.quorum_wait_cancelled(4)
        await until(lambda: switcher.asked >= 2)
        switcher.runs = True
        await until(lambda: bool(switcher.epochs))
    assert switcher.epochs == [4]


async def test_only_the_agent_can_confirm_that_its_region_leads() -> None:
    switcher = Heard()
    async with linked(switcher) as (link, _):
        assert await link.is_current()
        switcher.leads = False
        assert not await link.is_current()
    switcher.leads = True
    async with linked(switcher, "another secret") as (link, _):
        assert not await link.is_current()


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b'{"epoch":1}', 200),
        (b'{"epoch":0}', 400),
        (b'{"epoch":true}', 400),
        (b'{"epoch":"1"}', 400),
        (b"{}", 400),
        (b"[]", 400),
        (b"nonsense", 400),
        (orjson.dumps({"epoch": 1, "more": "x" * 300}), 400),
    ],
)
async def test_a_report_names_an_epoch(body: bytes, status: int) -> None:
    switcher = Heard()
    async with linked(switcher) as (_, client):
        answer = await client.post(CANCELLED_WAIT_PATH, content=body)
        assert answer.status_code == status, answer.text
        unknown = await client.post(CANCELLED_WAIT_PATH, content=body, headers={"authorization": "Bearer nobody"})
        assert unknown.status_code == 401
    assert switcher.epochs == ([1] if status == 200 else [])

"""Tests the read API while clients send more queries than the view answers in time."""

import asyncio
import uuid
from datetime import UTC, datetime

import psycopg
import pytest

from services.api.problems import DEGRADED_HEADER
from services.read_api.pages import BUILT_AT_A_TIME_MAX
from services.read_api.view_reader import ViewBusy, ViewReader
from tests.services.read_api.conftest import CELL, Api, Writer, problem
from tests.waiting import until

pytestmark = pytest.mark.integration

SIZE = 3
_BLOCKED = (
    "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'palaver-read-api' AND wait_event_type = 'Lock'"
)


async def test_queries_of_clients_leave_a_connection_for_the_checkpoint(writer: Writer) -> None:
    moment = datetime(2026, 1, 1, tzinfo=UTC)
    arguments = (writer.site, "a", "newest", None, moment, uuid.UUID(int=0), 1, 1, 1, 1, 1)
    async with ViewReader(writer.view.url(), size=SIZE) as view:
        with (
            psycopg.connect(writer.view.url()) as blocking,
            psycopg.connect(writer.view.url(), autocommit=True) as watching,
        ):
            blocking.execute("LOCK TABLE comments IN ACCESS EXCLUSIVE MODE")
            asking = [asyncio.create_task(view.page(*arguments)) for _ in range(SIZE * 4)]

            def blocked() -> int:
                (row,) = watching.execute(_BLOCKED).fetchall()
                return row[0]

            await until(lambda: blocked() >= SIZE - 1)
            await view.checkpoint(CELL)
            outcomes = await asyncio.gather(*asking, return_exceptions=True)
            blocking.rollback()
    assert sum(isinstance(outcome, ViewBusy) for outcome in outcomes) >= SIZE


async def test_few_pages_are_built_at_a_time_while_cached_pages_are_served(api: Api, writer: Writer) -> None:
    writer.thread().add()
    await until(lambda: api.memory.enabled)
    kept = await api.page()
    api.reader.hold = asyncio.Event()
    reading = [asyncio.create_task(api.page(limit=limit)) for limit in range(1, 3 * BUILT_AT_A_TIME_MAX)]
    await until(lambda: sum(read.done() for read in reading) == len(reading) - BUILT_AT_A_TIME_MAX)
    assert api.reader.held == BUILT_AT_A_TIME_MAX
    assert (await api.page()).content == kept.content
    api.reader.hold.set()
    answers = await asyncio.gather(*reading)
    refused = [answer for answer in answers if answer.status_code != 200]
    assert len(refused) == len(reading) - BUILT_AT_A_TIME_MAX
    for answer in refused:
        assert (answer.status_code, problem(answer), answer.headers["retry-after"]) == (503, "overloaded", "1")
        assert DEGRADED_HEADER.decode() not in answer.headers  # the view works; the clients send too many queries

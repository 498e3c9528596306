"""Provides a ledger, a view and a Redis that all tests of a session share."""

import asyncio
from collections.abc import AsyncGenerator, Generator

import asyncpg
import pytest

from services import ledger, view
from tests import servers


@pytest.fixture(scope="session")
def ledger_server() -> Generator[servers.PostgresServer]:
    with servers.postgres() as server:
        server.sql("CREATE ROLE palaver_writer LOGIN PASSWORD 'throwaway'")
        ledger.migrate(server.url())
        server.sql("INSERT INTO palaver.fence (epoch, fence_id, leader) VALUES (1, gen_random_uuid(), 'us-east')")
        yield server


@pytest.fixture
async def writer(ledger_server: servers.PostgresServer) -> AsyncGenerator[asyncpg.Connection]:
    connection = await asyncpg.connect(ledger_server.url(user="palaver_writer"))
    yield connection
    await asyncio.shield(connection.close())


@pytest.fixture(scope="session")
def view_server() -> Generator[servers.PostgresServer]:
    with servers.postgres() as server:
        server.sql("CREATE ROLE palaver_reader LOGIN PASSWORD 'throwaway'")
        view.migrate(server.url())
        yield server


@pytest.fixture(scope="session")
def page_cache() -> Generator[servers.RedisServer]:
    with servers.redis_server() as server:
        yield server

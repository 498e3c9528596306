from collections.abc import Generator

import pytest

from tests import servers
from tests.servers import RedisServer
from tests.sync.conftest import database_servers, rig

__all__ = ["database_servers", "redis", "rig"]


@pytest.fixture(scope="package")
def redis() -> Generator[RedisServer]:
    with servers.redis_server() as server:
        yield server

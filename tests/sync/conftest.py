from collections.abc import Generator

import pytest

from tests import servers
from tests.servers import PostgresServer
from tests.sync.rig import Rig, prepare_templates


@pytest.fixture(scope="package")
def database_server() -> Generator[PostgresServer]:
    with servers.postgres({"max_replication_slots": "20", "max_wal_senders": "20"}) as server:
        prepare_templates(server)
        yield server


@pytest.fixture
def rig(database_server: PostgresServer) -> Generator[Rig]:
    rig = Rig(server=database_server)
    yield rig
    rig.discard()

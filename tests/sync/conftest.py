from collections.abc import Generator

import pytest

from tests import servers
from tests.sync.rig import Rig, Servers


@pytest.fixture(scope="package")
def database_servers() -> Generator[Servers]:
    settings = {"max_replication_slots": "20", "max_wal_senders": "20"}
    with servers.postgres(settings) as ledger, servers.postgres() as view:
        both = Servers(ledger=ledger, view=view)
        both.prepare_templates()
        yield both


@pytest.fixture
def rig(database_servers: Servers) -> Generator[Rig]:
    rig = Rig(servers=database_servers)
    yield rig
    rig.discard()

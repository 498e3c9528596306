"""Tests the metrics and the status of agents that do not run. A test sets their state."""

from collections.abc import AsyncGenerator
from dataclasses import dataclass, replace
from typing import Any, cast
from uuid import UUID

import pytest
from prometheus_client import REGISTRY, CollectorRegistry

from regions.agent import Observation, RegionAgent
from regions.coordination import Coordination, etcd_endpoints
from regions.edge import EdgeConfigurator, EdgeSettings
from regions.failover.core import FailoverCore
from regions.failover.events import Promise, Started
from regions.failover.facts import Facts
from regions.failover.heartbeats import CellEvent
from regions.failover.settings import CellRegions
from regions.leadership import Leadership
from regions.member import LedgerState, SettingOverride, Standby
from regions.member.failover_member import FailoverMember
from regions.switcher import LocalSettings
from regions.topology import Address
from services.region_agent.status import AgentCollector, status
from tests.regions.deployment import REGIONS, deployment, prepare_ledger

EAST, WEST, SOUTH = REGIONS

SERVING = Leadership(
    epoch=3, leader=EAST, phase="serving", fence_id=UUID(int=3), reason="a test", since="now", voters=REGIONS
)
PRIMARY = LedgerState(in_recovery=False, lsn=1, receiving=False, synchronous_standby_names="")
FOLLOWS = Standby(
    region=WEST, streaming=True, sync_state="quorum", flush_lag_bytes=0, replay_lag_bytes=0, flush_lag_s=0.0
)


@dataclass
class Scraped:
    """The agent of a region, and the metrics that Prometheus scrapes from it."""

    agent: RegionAgent

    def __post_init__(self) -> None:
        self.registry = CollectorRegistry()
        self.registry.register(AgentCollector(self.agent))

    def value(self, metric: str, **labels: str) -> float | None:
        return self.registry.get_sample_value(metric, labels)

    def voters(self) -> dict[str, float]:
        """Return the value of each voter's series."""
        families = {family.name: family for family in self.registry.collect()}
        return {sample.labels["voter"]: sample.value for sample in families["palaver_voter_missing"].samples}

    def lead(self, leadership: Leadership = SERVING, *standbys: Standby) -> None:
        self.agent.view.current = leadership
        self.agent.observation = Observation(ledger=PRIMARY, standbys=standbys)

    def found(self, *overrides: SettingOverride) -> None:
        assert self.agent._overrides is not None
        self.agent._overrides.found = overrides

    def facts(self) -> Facts:
        topology = self.agent.topology
        cell = CellRegions(voters=REGIONS, regions=tuple(one.name for one in topology.regions))
        core = FailoverCore(region=topology.region, incarnation=1, cells={topology.cell: cell})
        core.handle(CellEvent(cell=topology.cell, event=Started(promise=Promise(), ledger=None)), now=0.0)
        self.agent.switcher._core = core
        assert self.agent.switcher.facts is not None
        return self.agent.switcher.facts


@pytest.fixture
async def scraped() -> AsyncGenerator[dict[str, Scraped]]:
    async with deployment(view_regions=("view-only",)) as made:

        def agent(region: str) -> RegionAgent:
            topology, home = made.topology(region), made.root / region
            return RegionAgent(
                topology,
                Coordination(etcd_endpoints(topology), None, None),
                member=FailoverMember(made.settings(region)) if topology.own.voter else None,
                prepare_ledger=prepare_ledger,
                edge=EdgeConfigurator(
                    topology,
                    EdgeSettings(folder=home / "xds", listen=Address("127.0.0.1", 1), admin=home / "admin.sock"),
                ),
                local=LocalSettings(state=home / "state", listen=Address("127.0.0.1", 1), secret=b"secret"),
            )

        yield {region: Scraped(agent(region)) for region in made.ports}


def part(scraped: Scraped, name: str) -> dict[str, Any]:
    return cast("dict[str, Any]", status(scraped.agent)[name])


async def test_only_the_leader_has_a_series_for_each_other_voter(scraped: dict[str, Scraped]) -> None:
    east = scraped[EAST]
    assert east.voters() == {}
    lagging = replace(FOLLOWS, region=SOUTH, streaming=False)
    for standbys, missing in (
        ((), {WEST, SOUTH}),
        ((FOLLOWS, lagging), {SOUTH}),
        ((FOLLOWS, replace(FOLLOWS, region=SOUTH, sync_state="async")), {SOUTH}),
        # PostgreSQL may still list a dead connection beside the one that replaced it.
        ((lagging, replace(FOLLOWS, region=SOUTH), FOLLOWS), set[str]()),
    ):
        east.lead(SERVING, *standbys)
        assert east.voters() == {voter: float(voter in missing) for voter in (WEST, SOUTH)}
        assert part(east, "member")["voters_missing"] == [voter for voter in (WEST, SOUTH) if voter in missing]
    # The series remain while PostgreSQL does not answer.
    east.agent.observation = Observation()
    assert east.voters() == {WEST: 1.0, SOUTH: 1.0}
    for region in (WEST, "view-only"):
        scraped[region].agent.view.current = SERVING
    assert scraped[WEST].voters() == {}
    with pytest.raises(KeyError):
        scraped["view-only"].voters()


async def test_the_voters_come_from_the_record_or_from_the_topology_if_the_record_has_none(
    scraped: dict[str, Scraped],
) -> None:
    east = scraped[EAST]
    east.lead(replace(SERVING, voters=(EAST, SOUTH), joining=(WEST,)), FOLLOWS)
    assert east.voters() == {SOUTH: 1.0}
    east.lead(replace(SERVING, voters=()), FOLLOWS)
    assert east.voters() == {WEST: 0.0, SOUTH: 1.0}


async def test_overrides_are_counted_by_scope_and_named_on_the_serving_leader(scraped: dict[str, Scraped]) -> None:
    east, name = scraped[EAST], "palaver_ledger_commit_overrides"
    east.lead()
    assert east.value(name, scope="role") is None
    assert status(east.agent)["warnings"] == []
    east.found()
    scopes = ("cluster", "role", "database", "role in database", "function")
    assert {scope: east.value(name, scope=scope) for scope in scopes} == dict.fromkeys(scopes, 0.0)
    assert status(east.agent)["warnings"] == []
    east.found(
        SettingOverride(scope="role", name="a", value="off"),
        SettingOverride(scope="role", name="b", value="local"),
        SettingOverride(scope="function", name="palaver.f()", value="off"),
    )
    assert [east.value(name, scope=scope) for scope in scopes] == [0, 2, 0, 0, 1]
    assert status(east.agent)["warnings"] == [
        "synchronous_commit is overridden: function palaver.f() = off; role a = off; role b = local"
    ]
    assert part(east, "member")["overrides"][0] == {"scope": "role", "name": "a", "value": "off"}
    # Earlier findings do not count if another region leads or the region does not serve yet.
    for other in (
        replace(SERVING, epoch=4, leader=WEST),
        replace(SERVING, epoch=4, phase="recruiting", fence_id=None),
    ):
        east.lead(other)
        assert east.value(name, scope="role") is None
        assert status(east.agent)["warnings"] == []


async def test_a_diverged_member_shows_in_metrics_and_status(scraped: dict[str, Scraped]) -> None:
    west, name = scraped[WEST], "palaver_member_diverged"
    assert west.value(name) == 0
    facts = west.facts()
    assert west.value(name) == 0
    facts.member.diverged = True
    assert west.value(name) == 1
    assert part(west, "failover")["diverged"] is True
    assert scraped["view-only"].value(name) is None


@pytest.mark.parametrize("step", ["RewindLedger", "CopyLedger"])
def test_rewinds_and_copies_are_counted_from_zero(step: str) -> None:
    assert REGISTRY.get_sample_value("palaver_failover_step_seconds_count", {"step": step}) == 0

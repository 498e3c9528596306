"""Tests the simulation's model of etcd against the guarantees of etcd."""

import pytest

from infra.simulation.etcd import ATTEMPT_S, Etcd, EtcdClient, Outcome
from infra.simulation.network import Network
from infra.simulation.scheduler import Scheduler
from regions.identity import RegionName
from regions.leadership import Leadership
from tests.simulation.member_cluster import AP, EU, US

pytestmark = pytest.mark.simulation

REGIONS = (EU, US, AP)


class EtcdCluster:
    def __init__(self, *, seed: int = 1) -> None:
        self.scheduler = Scheduler(seed)
        self.network = Network(self.scheduler, rtt_s=0.08, jitter_s=0.02, loss=0.0)
        self.written: list[int] = []
        self.etcd = Etcd(
            self.scheduler, self.network, regions=REGIONS, voters=REGIONS, leader=US, written=self._note_written
        )
        self.clients = {
            region: EtcdClient(self.scheduler, self.network, self.etcd, region, REGIONS) for region in REGIONS
        }
        self.outcomes: list[tuple[Outcome, int]] = []
        self.reads: list[tuple[int, Leadership | None]] = []
        self.failures = 0

    def _note_written(self, _revision: int, record: Leadership) -> None:
        self.written.append(record.epoch)

    def run(self, seconds: float) -> None:
        self.scheduler.run_until(self.scheduler.now + seconds)

    def swap(self, region: RegionName, expected: int, epoch: int) -> None:
        self.clients[region].swap(expected, record_of(epoch), self._swapped)

    def read(self, region: RegionName, *, linearizable: bool = True) -> None:
        self.clients[region].read(self._read, self._failed, linearizable=linearizable)

    def _swapped(self, outcome: Outcome, revision: int) -> None:
        self.outcomes.append((outcome, revision))

    def _read(self, revision: int, record: Leadership | None) -> None:
        self.reads.append((revision, record))

    def _failed(self) -> None:
        self.failures += 1

    def isolate(self, region: RegionName) -> None:
        for other in REGIONS:
            if other != region:
                self.network.cut(region, other)
                self.network.cut(other, region)


def record_of(epoch: int) -> Leadership:
    return Leadership(epoch=epoch, leader=EU, phase="recruiting", fence_id=None, reason="", since="")


def test_one_of_two_swaps_with_the_same_expected_revision_is_applied() -> None:
    cluster = EtcdCluster()
    cluster.swap(EU, 0, 1)
    cluster.swap(AP, 0, 2)
    cluster.run(1)
    assert sorted(outcome for outcome, _ in cluster.outcomes) == ["applied", "lost"]
    assert len(cluster.written) == 1


def test_a_swap_whose_answer_is_lost_was_applied() -> None:
    cluster = EtcdCluster()
    cluster.scheduler.after(0.05, cluster.network.cut, US, EU)
    cluster.swap(EU, 0, 1)
    cluster.run(2)
    assert cluster.outcomes == [("unknown", 0)]
    assert cluster.written == [1]


def test_a_swap_can_be_applied_after_its_client_gave_up() -> None:
    # Rule 9: after a lost answer the swap may still be applied.
    late = 0
    for seed in range(30):
        cluster = EtcdCluster(seed=seed)
        cluster.swap(EU, 0, 1)
        cluster.etcd.outage += 1
        cluster.run(ATTEMPT_S + 0.01)
        assert cluster.outcomes == [("unknown", 0)]
        assert cluster.written == []
        cluster.etcd.outage -= 1
        cluster.etcd.changed()
        cluster.run(6)
        late += cluster.written == [1]
    assert 0 < late < 30


def test_a_partitioned_etcd_member_answers_only_serializable_reads() -> None:
    cluster = EtcdCluster()
    cluster.swap(US, 0, 1)
    cluster.run(1)
    cluster.isolate(EU)
    cluster.swap(US, cluster.etcd.log[-1][0], 2)
    cluster.run(1)
    cluster.read(EU, linearizable=False)
    cluster.run(1)
    assert [record and record.epoch for _, record in cluster.reads] == [1]
    cluster.read(EU)
    cluster.run(5)
    assert cluster.failures == 1


def test_a_linearizable_read_sees_every_earlier_write() -> None:
    cluster = EtcdCluster()
    cluster.swap(US, 0, 1)
    cluster.run(1)
    for region in REGIONS:
        cluster.read(region)
    cluster.run(1)
    assert [record and record.epoch for _, record in cluster.reads] == [1, 1, 1]


def test_etcd_elects_a_leader_after_the_loss_of_the_leaders_region() -> None:
    cluster = EtcdCluster()
    cluster.isolate(US)
    cluster.swap(EU, 0, 1)
    cluster.run(ATTEMPT_S + 0.2)
    assert cluster.outcomes == [("unknown", 0)]
    cluster.swap(EU, 0, 1)  # the client's next endpoint is in the lost region
    cluster.run(1)
    cluster.swap(EU, 0, 1)
    cluster.run(1)
    assert [outcome for outcome, _ in cluster.outcomes] == ["unknown", "unknown", "applied"]


def test_etcd_answers_no_linearizable_read_when_two_of_three_members_are_down() -> None:
    cluster = EtcdCluster()
    cluster.etcd.set_down(US, down=True)
    cluster.etcd.set_down(AP, down=True)
    cluster.run(5)
    cluster.read(EU)
    cluster.run(5)
    assert cluster.failures == 1


def test_a_watch_delivers_in_order_and_may_skip_to_the_newest_revision() -> None:
    cluster = EtcdCluster()
    seen: list[int] = []
    cluster.etcd.watch(EU, lambda _revision, record: seen.append(record.epoch))
    cluster.isolate(EU)
    for epoch in (1, 2, 3):
        cluster.swap(US, cluster.etcd.log[-1][0] if cluster.etcd.log else 0, epoch)
        cluster.run(1)
    assert seen == []
    for other in (US, AP):
        cluster.network.heal(EU, other)
        cluster.network.heal(other, EU)
    cluster.run(3)
    assert seen in ([1, 2, 3], [3])

"""Tests the simulation's model of etcd against the guarantees of etcd."""

import pytest

from infra.simulation.etcd import ATTEMPT_S, Etcd, EtcdClient, Outcome
from infra.simulation.network import Network
from infra.simulation.world import World
from regions.identity import RegionName
from regions.leadership import Leadership
from tests.simulation.stand import AP, EU, US

pytestmark = pytest.mark.simulation

REGIONS = (EU, US, AP)


class EtcdStand:
    def __init__(self, *, seed: int = 1) -> None:
        self.world = World(seed)
        self.network = Network(self.world, rtt_s=0.08, jitter_s=0.02, loss=0.0)
        self.written: list[int] = []
        self.etcd = Etcd(
            self.world, self.network, regions=REGIONS, voters=REGIONS, leader=US, written=self._note_written
        )
        self.clients = {region: EtcdClient(self.world, self.network, self.etcd, region, REGIONS) for region in REGIONS}
        self.outcomes: list[tuple[Outcome, int]] = []
        self.reads: list[tuple[int, Leadership | None]] = []
        self.failures = 0

    def _note_written(self, _revision: int, record: Leadership) -> None:
        self.written.append(record.epoch)

    def run(self, seconds: float) -> None:
        self.world.run_until(self.world.now + seconds)

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
    stand = EtcdStand()
    stand.swap(EU, 0, 1)
    stand.swap(AP, 0, 2)
    stand.run(1)
    assert sorted(outcome for outcome, _ in stand.outcomes) == ["applied", "lost"]
    assert len(stand.written) == 1


def test_a_swap_whose_answer_is_lost_was_applied() -> None:
    stand = EtcdStand()
    stand.world.after(0.05, stand.network.cut, US, EU)
    stand.swap(EU, 0, 1)
    stand.run(2)
    assert stand.outcomes == [("unknown", 0)]
    assert stand.written == [1]


def test_a_swap_can_be_applied_after_its_client_gave_up() -> None:
    # Rule 9: after a lost answer the swap may still be applied.
    late = 0
    for seed in range(30):
        stand = EtcdStand(seed=seed)
        stand.swap(EU, 0, 1)
        stand.etcd.outage += 1
        stand.run(ATTEMPT_S + 0.01)
        assert stand.outcomes == [("unknown", 0)]
        assert stand.written == []
        stand.etcd.outage -= 1
        stand.etcd.changed()
        stand.run(6)
        late += stand.written == [1]
    assert 0 < late < 30


def test_a_partitioned_etcd_member_answers_only_serializable_reads() -> None:
    stand = EtcdStand()
    stand.swap(US, 0, 1)
    stand.run(1)
    stand.isolate(EU)
    stand.swap(US, stand.etcd.log[-1][0], 2)
    stand.run(1)
    stand.read(EU, linearizable=False)
    stand.run(1)
    assert [record and record.epoch for _, record in stand.reads] == [1]
    stand.read(EU)
    stand.run(5)
    assert stand.failures == 1


def test_a_linearizable_read_sees_every_earlier_write() -> None:
    stand = EtcdStand()
    stand.swap(US, 0, 1)
    stand.run(1)
    for region in REGIONS:
        stand.read(region)
    stand.run(1)
    assert [record and record.epoch for _, record in stand.reads] == [1, 1, 1]


def test_etcd_elects_a_leader_after_the_loss_of_the_leaders_region() -> None:
    stand = EtcdStand()
    stand.isolate(US)
    stand.swap(EU, 0, 1)
    stand.run(ATTEMPT_S + 0.2)
    assert stand.outcomes == [("unknown", 0)]
    stand.swap(EU, 0, 1)  # the client's next endpoint is in the lost region
    stand.run(1)
    stand.swap(EU, 0, 1)
    stand.run(1)
    assert [outcome for outcome, _ in stand.outcomes] == ["unknown", "unknown", "applied"]


def test_etcd_answers_no_linearizable_read_when_two_of_three_members_are_down() -> None:
    stand = EtcdStand()
    stand.etcd.set_down(US, down=True)
    stand.etcd.set_down(AP, down=True)
    stand.run(5)
    stand.read(EU)
    stand.run(5)
    assert stand.failures == 1


def test_a_watch_delivers_in_order_and_may_skip_to_the_newest_revision() -> None:
    stand = EtcdStand()
    seen: list[int] = []
    stand.etcd.watch(EU, lambda _revision, record: seen.append(record.epoch))
    stand.isolate(EU)
    for epoch in (1, 2, 3):
        stand.swap(US, stand.etcd.log[-1][0] if stand.etcd.log else 0, epoch)
        stand.run(1)
    assert seen == []
    for other in (US, AP):
        stand.network.heal(EU, other)
        stand.network.heal(other, EU)
    stand.run(3)
    assert seen in ([1, 2, 3], [3])

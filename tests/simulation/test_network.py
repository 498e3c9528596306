"""Tests the network and the clocks of the simulation."""

import pytest

from infra.simulation.network import Network
from infra.simulation.scheduler import Clock, Scheduler
from tests.simulation.member_cluster import EU, US

pytestmark = pytest.mark.simulation


def arrivals(network: Network, scheduler: Scheduler, count: int) -> list[object]:
    arrived: list[object] = []
    for number in range(count):
        network.send(EU, US, arrived.append, number)
    scheduler.run_until(scheduler.now + 5)
    return arrived


def test_a_cut_of_one_direction_leaves_the_other() -> None:
    scheduler = Scheduler(1)
    network = Network(scheduler, rtt_s=0.08, jitter_s=0.02, loss=0)
    network.cut(EU, US)
    assert not network.is_open(EU, US)
    assert network.is_open(US, EU)
    assert not network.is_connected(EU, US)
    assert arrivals(network, scheduler, 10) == []


def test_a_link_that_was_cut_twice_must_be_healed_twice() -> None:
    network = Network(Scheduler(1), rtt_s=0.08, jitter_s=0.02, loss=0)
    network.cut(EU, US)
    network.cut(EU, US)
    network.heal(EU, US)
    assert not network.is_open(EU, US)
    network.heal(EU, US)
    assert network.is_open(EU, US)


def test_datagrams_are_lost_duplicated_and_reordered() -> None:
    scheduler = Scheduler(1)
    network = Network(scheduler, rtt_s=0.08, jitter_s=0.02, loss=0.1)
    network.doubled = network.late = 0.2
    arrived = arrivals(network, scheduler, 1000)
    assert 850 < len(set(arrived)) < 950
    assert len(arrived) > len(set(arrived))
    assert arrived != sorted(arrived, key=str)


def test_a_clock_drifts_and_never_goes_back() -> None:
    scheduler = Scheduler(1)
    clock = Clock(scheduler, start=100)
    scheduler.run_until(10)
    assert clock.now() == pytest.approx(110)
    clock.set_rate(1.1)
    assert clock.now() == pytest.approx(110)
    scheduler.run_until(20)
    assert clock.now() == pytest.approx(121)
    assert clock.virtual_time(132) == pytest.approx(30)


def test_a_jump_of_the_wall_clock_moves_no_other_clock() -> None:
    # Rule 16.
    scheduler = Scheduler(1)
    clock = Clock(scheduler, start=100)
    before = clock.now()
    clock.wall_offset = -1e6
    assert clock.now() == before

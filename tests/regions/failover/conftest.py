"""Fixtures: the machine of a leader, of a follower, and of the region that a switchover goes to."""

import pytest

from tests.regions.failover.driver import B, C, Driver, following, leading


@pytest.fixture
def leader() -> Driver:
    return leading()


@pytest.fixture
def follower() -> Driver:
    return following(C)


@pytest.fixture
def successor() -> Driver:
    return following(B)

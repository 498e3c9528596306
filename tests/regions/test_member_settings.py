"""The configuration files of a ledger member, and the connection strings in them."""

from dataclasses import replace
from pathlib import Path

import pytest

from regions.identity import RegionName
from regions.member import MemberSettings, quorum_names
from regions.member.settings import configuration, follow_conninfo, passfile, proxy_name
from regions.topology import Address

SETTINGS = MemberSettings(
    region=RegionName("eu-west"),
    data=Path("/data"),
    state=Path("/state"),
    log=Path("/log"),
    programs=Path("/bin"),
    listen=Address("127.0.0.1", 5001),
    account=None,
    superuser_password="s",
    replication_password="r",
    writer_password="w",
    wal_keep_mb=256,
)


def test_the_quorum_is_any_of_the_standbys_in_a_stable_order() -> None:
    east, south = RegionName("us-east"), RegionName("ap-south")
    assert quorum_names((east, south), 1) == 'ANY 1 ("ap-south", "us-east")'
    with pytest.raises(AssertionError):
        quorum_names((), 0)


def test_a_primary_starts_with_its_quorum_and_an_empty_primary_conninfo() -> None:
    written = configuration(SETTINGS, synchronous_standby_names='ANY 1 ("a")', follows=None)
    assert "synchronous_standby_names = 'ANY 1 (\"a\")'" in written
    assert "primary_conninfo = ''" in written
    assert "restart_after_crash = off" in written
    assert "listen_addresses = '127.0.0.1'" in written


def test_the_replication_password_is_in_the_passfile_only() -> None:
    secret = replace(SETTINGS, replication_password="hidden:\\")
    leader = Address("10.0.0.1", 5000)
    assert "hidden" not in configuration(secret, synchronous_standby_names="", follows=leader)
    assert passfile(secret) == "*:*:*:palaver_replication:hidden\\:\\\\\n"
    assert "application_name=eu-west" in follow_conninfo(secret, leader)
    assert "dbname=palaver" in follow_conninfo(secret, leader)


def test_a_follower_connects_to_the_replication_proxy_first_and_to_the_leader_second() -> None:
    leader = Address("10.0.0.1", 5000)
    assert "host=10.0.0.1 port=5000 " in follow_conninfo(SETTINGS, leader)
    proxied = follow_conninfo(SETTINGS, leader, proxied=True)
    assert f"host=@{proxy_name(SETTINGS)},10.0.0.1 port=5000,5000 " in proxied
    assert "requirepeer='" in proxied
    assert proxy_name(replace(SETTINGS, region=RegionName("us-east"))) != proxy_name(SETTINGS)

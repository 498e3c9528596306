import itertools
import socket
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.supervisor.errors import InvalidPlan, PlanMismatch, PortTaken
from infra.supervisor.plan import (
    DEPLOYMENT_PORTS,
    LINKED_SERVICES,
    REGION_PORTS,
    Plan,
    check_ports,
    dump_plan,
    load_plan,
    make_plan,
    reserve_block,
)

THREE = ("us-east", "eu-west", "ap-south")


def plan_of(regions: tuple[str, ...] = THREE, view_regions: tuple[str, ...] = (), port_base: int = 20_000) -> Plan:
    return Plan(deployment="d", regions=regions, view_regions=view_regions, port_base=port_base)


@given(
    voters=st.sampled_from([3, 5]),
    views=st.integers(min_value=0, max_value=4),
)
def test_every_listener_has_a_port_of_its_own_inside_the_block(voters: int, views: int) -> None:
    names = [f"region-{chr(97 + n)}" for n in range(voters + views)]
    plan = plan_of(tuple(names[:voters]), tuple(names[voters:]))
    ports = [plan.deployment_port(name) for name in DEPLOYMENT_PORTS]
    ports += [plan.port(region, listener) for region in names for listener in REGION_PORTS]
    ports += [
        plan.link_port(source, target, service)
        for source, target in itertools.permutations(names, 2)
        for service in LINKED_SERVICES
    ]
    assert len(set(ports)) == len(ports)
    assert min(ports) == plan.port_base
    assert max(ports) < plan.port_base + plan.port_count


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"regions": ("us-east", "eu-west")}, "3 or 5"),
        ({"regions": ("us-east", "eu-west", "us-east")}, "twice"),
        ({"regions": THREE, "view_regions": ("eu-west",)}, "twice"),
        ({"regions": ("us-east", "eu-west", "Ap South")}, "region name"),
        ({"regions": ("us-east", "eu-west", "../etc")}, "region name"),
        ({"regions": THREE, "rtt_ms": -1.0}, "--rtt-ms"),
        ({"regions": THREE, "rtt_ms": float("nan")}, "--rtt-ms"),
        ({"regions": THREE, "port_base": 80}, "--port-base"),
        ({"regions": THREE, "port_base": 65_500}, "--port-base"),
    ],
)
def test_impossible_options_are_refused_with_a_reason(options: dict[str, Any], says: str) -> None:
    asked: dict[str, Any] = {"view_regions": (), "rtt_ms": 0.0, "port_base": None, "deployment": "d"} | options
    with pytest.raises(InvalidPlan, match=says):
        make_plan(**asked)


def test_a_used_port_is_reported_with_its_owner() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(PortTaken, match=f"port {port} is taken by process"):
            # The first port of the block, because another program may use the port before it.
            check_ports(plan_of(port_base=port))


def test_two_deployments_cannot_hold_the_same_block() -> None:
    plan = plan_of(port_base=13_370)
    with reserve_block(plan), pytest.raises(PortTaken, match="13370"):
        reserve_block(plan)
    reserve_block(plan).close()


def test_a_plan_is_read_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "deployment.json"
    plan = plan_of(view_regions=("sa-east",))
    path.write_bytes(dump_plan(plan))
    assert load_plan(path) == plan


def test_a_missing_plan_file_is_none(tmp_path: Path) -> None:
    assert load_plan(tmp_path / "deployment.json") is None


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b'{"format_version": 99}', "format version 99"),
        (b"{", "not readable"),
        (b'{"format_version": 1}', "not a deployment plan"),
        (b'{"format_version": 1, "regions": [], "view_regions": [], "surprise": 1}', "not a deployment plan"),
    ],
)
def test_a_folder_of_another_version_is_refused(tmp_path: Path, content: bytes, says: str) -> None:
    path = tmp_path / "deployment.json"
    path.write_bytes(content)
    with pytest.raises(PlanMismatch, match=says):
        load_plan(path)

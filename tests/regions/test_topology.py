"""A topology file is parsed completely, or refused with an error of one line."""

import json
from pathlib import Path
from typing import Any

import pytest

from regions.failover.rules import required_standbys
from regions.topology import InvalidTopology, load_topology, parse_topology


def region(name: str, port: int, *, voter: bool = True) -> dict[str, Any]:
    keys = (
        ("etcd", "ledger", "write_api", "read_api", "changes", "agent")
        if voter
        else (
            "read_api",
            "changes",
            "agent",
        )
    )
    return {"name": name, "voter": voter} | {key: f"127.0.0.1:{port + offset}" for offset, key in enumerate(keys)}


def document(voters: int = 3, views: int = 0) -> dict[str, Any]:
    regions = [region(f"v{index}", 1000 + 10 * index) for index in range(voters)]
    regions += [region(f"w{index}", 2000 + 10 * index, voter=False) for index in range(views)]
    return {"cell": "main", "region": "v0", "regions": regions}


@pytest.mark.parametrize(("voters", "standbys"), [(1, 0), (3, 1), (5, 2)])
def test_the_quorum_is_a_majority_of_the_voters(voters: int, standbys: int) -> None:
    topology = parse_topology(document(voters, views=2))
    assert required_standbys([one.name for one in topology.voters]) == standbys


def test_regions_keep_their_order_of_preference(tmp_path: Path) -> None:
    path = tmp_path / "topology.json"
    path.write_text(json.dumps(document(3, views=1)))
    topology = load_topology(path)
    assert [one.name for one in topology.regions] == ["v0", "v1", "v2", "w0"]
    assert [one.name for one in topology.voters] == ["v0", "v1", "v2"]
    assert [one.name for one in topology.others] == ["v1", "v2", "w0"]
    assert topology.own.name == "v0"
    assert str(topology.by_name("v1").ledger) == "127.0.0.1:1011"


def test_a_view_only_region_has_no_ledger() -> None:
    view = parse_topology(document(3, views=1)).by_name("w0")
    assert (view.etcd, view.ledger, view.write_api) == (None, None, None)


def _broken() -> list[tuple[str, Any]]:
    cases: list[tuple[str, Any]] = [("an object", []), ("a list", {"cell": "main", "region": "v0"})]
    missing = document()
    del missing["regions"][1]["ledger"]
    twice = document()
    twice["regions"].append(twice["regions"][0])
    stranger = document()
    stranger["region"] = "mars"
    port = document()
    port["regions"][0]["etcd"] = "127.0.0.1:70000"
    voter = document()
    voter["regions"][0]["voter"] = "yes"
    number = document()
    number["regions"][0]["agent"] = 7
    cell = document()
    del cell["cell"]
    none = document(voters=0, views=1) | {"region": "w0"}
    return [
        *cases,
        ("v1: ledger: missing", missing),
        ("listed twice", twice),
        ("mars", stranger),
        ("70000", port),
        ("voter", voter),
        ("agent", number),
        ("cell", cell),
        ("no region is a voter", none),
        ("at most", document(3, views=40)),
    ]


@pytest.mark.parametrize(("message", "content"), _broken())
def test_an_inconsistent_topology_is_refused_with_an_error_of_one_line(
    message: str, content: object, tmp_path: Path
) -> None:
    path = tmp_path / "topology.json"
    path.write_text(json.dumps(content))
    with pytest.raises(InvalidTopology) as refused:
        load_topology(path)
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


def test_an_unreadable_topology_is_refused_with_an_error_of_one_line(tmp_path: Path) -> None:
    with pytest.raises(InvalidTopology, match="No such file"):
        load_topology(tmp_path / "absent.json")
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(InvalidTopology, match="not JSON"):
        load_topology(tmp_path / "bad.json")

"""Tests which configurations of the relay are valid."""

import json
from typing import Any

import pytest

from infra.relay.faults import Fault
from infra.relay.links import ConfigInvalid, parse_config
from regions.topology import Address

LINK = {"listen": "127.0.0.1:1001", "source": "a", "target": "b", "upstream": "127.0.0.1:2001"}
SOCKS = {
    "listen": "127.0.0.1:1002",
    "source": "c",
    "routes": {"A.internal:2380": {"target": "a", "upstream": "127.0.0.1:2002"}},
}


def document(**changes: Any) -> str:
    return json.dumps({"control": "127.0.0.1:1000", "token": "t", "links": [LINK], "socks": [SOCKS], **changes})


def test_a_configuration_has_links_pairs_and_baseline_faults() -> None:
    config = parse_config(document(faults=[{"source": "b", "target": "a", "delay_ms": 40}]))
    assert config.links[0].route.upstream == Address(host="127.0.0.1", port=2001)
    assert config.socks[0].routes["a.internal:2380"].there == ("c", "a")
    assert config.pairs == {("a", "b"), ("b", "a"), ("c", "a"), ("a", "c")}
    assert config.baseline == {("b", "a"): Fault(delay_ms=40)}


def test_the_token_argument_overrides_the_file_and_a_token_is_required() -> None:
    assert parse_config(document(), token="other").token == "other"
    with pytest.raises(ConfigInvalid, match="token"):
        parse_config(document(token=""))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "no JSON"),
        ("[]", "no object"),
        (document(colour="red"), "'colour'"),
        (document(control="127.0.0.1"), "control"),
        (document(control="127.0.0.1:0"), "control"),
        (document(control="127.0.0.1:70000"), "control"),
        (document(links={}), "links is no list"),
        (document(links=[{**LINK, "protocol": "udp"}]), "'protocol'"),
        (document(links=[{**LINK, "source": ""}]), "links[0].source"),
        (document(links=[{**LINK, "target": "a"}]), "to itself"),
        (document(links=[{**LINK, "upstream": None}]), "links[0].upstream"),
        (document(links=[LINK, LINK]), "listened on twice"),
        (document(control=LINK["listen"]), "listened on twice"),
        (document(socks=[{**SOCKS, "routes": {"x:1": {"target": "a"}}}]), "routes['x:1'].upstream"),
        (document(faults=[{"source": "b", "target": "c"}]), "which no link connects"),
        (document(faults=[{"source": "b", "target": "a", "loss": 2}]), "faults[0]: loss"),
    ],
)
def test_a_wrong_configuration_is_refused_in_one_line(text: str, says: str) -> None:
    with pytest.raises(ConfigInvalid) as refusal:
        parse_config(text)
    assert says in str(refusal.value)
    assert "\n" not in str(refusal.value)

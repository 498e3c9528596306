"""Tests requests and output of `palaver region drain | undrain | add | remove`, with a fake control interface."""

import json
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from infra.cli import voters
from tests.infra.cli.control import VOTERS, Control, made


@pytest.mark.parametrize(
    ("command", "cells", "says"),
    [
        ("drain", (made(), made(leader="eu-west", epoch=2, drained=["us-east"])), "us-east is drained"),
        ("undrain", (made(drained=["us-east"]), made()), "us-east is free to lead"),
        ("add", (made(voters=VOTERS[1:], leader="eu-west"), made(leader="eu-west")), "us-east is a voter"),
        (
            "remove",
            (made(leader="eu-west"), made(voters=VOTERS[1:], leader="eu-west")),
            "us-east is removed from the voters",
        ),
    ],
)
def test_an_order_is_sent_with_its_reason_and_printed_in_one_line(
    palaver: Callable[..., tuple[int, str, str]], control: Control, command: str, cells: Any, says: str
) -> None:
    before, after = cells
    control.cells = [before, before, after]
    code, out, err = palaver("region", command, "us-east", "--reason", "a new disk")
    assert (code, err) == (0, "")
    assert out.startswith(says)
    assert len(out.splitlines()) == 1
    (order,) = control.orders
    assert (order["kind"], order["region"]) == (command, "us-east")
    assert order["by"].endswith(": a new disk")
    again = palaver("region", command, "us-east")
    assert again[0] == 0
    assert again[1].startswith(says.replace(" is ", " is already "))


def test_json_has_the_order_whether_it_was_already_so_and_the_cell(
    palaver: Callable[..., tuple[int, str, str]],
) -> None:
    code, out, _ = palaver("region", "add", "eu-west", "--json")
    document = json.loads(out)
    assert code == 0
    assert document == {"order": "add", "region": "eu-west", "already": True, "cell": made()}


@pytest.fixture
def virtual_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that only `sleep` advances, so that the duration of an answer does not matter."""
    now_s = 1000.0

    def sleep(seconds: float) -> None:
        nonlocal now_s
        now_s += seconds

    monkeypatch.setattr(voters, "time", SimpleNamespace(monotonic=lambda: now_s, sleep=sleep))


@pytest.mark.usefixtures("virtual_time")
def test_a_drain_waits_until_the_region_no_longer_leads(
    palaver: Callable[..., tuple[int, str, str]], control: Control
) -> None:
    control.cells = [made(drained=["us-east"])]
    code, _, err = palaver("region", "drain", "us-east")
    assert code == 1
    assert "undone again" in err


@pytest.mark.usefixtures("virtual_time")
def test_an_add_waits_for_the_copy_but_not_for_a_cancelled_one(
    palaver: Callable[..., tuple[int, str, str]], control: Control, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(voters, "SEEN_S_MAX", 3 * voters.POLL_S)
    without, joining = made(voters=VOTERS[:4]), made(voters=VOTERS[:4], joining=["af-south"])
    control.cells = [without, without, *[joining] * 5, made()]
    assert palaver("region", "add", "af-south")[0] == 0
    control.cells = [without, joining, without]
    code, _, err = palaver("region", "add", "af-south")
    assert code == 1
    assert "undone again" in err
    monkeypatch.setattr(voters, "JOINED_S_MAX", 10 * voters.POLL_S)
    control.cells = [joining]
    code, _, err = palaver("region", "add", "af-south")
    assert code == 1
    assert "still copies" in err


@pytest.mark.parametrize("command", ["drain", "undrain", "add", "remove"])
@pytest.mark.parametrize(
    ("refusal", "code"),
    [
        ((404, "unknown region 'mars'; there are us-east"), 2),
        ((404, "cafe only reads; a ledger can be in us-east"), 2),
        ((409, "a cell needs 3 voters: drain mars instead, or add another voter first"), 1),
    ],
)
def test_a_refusal_is_one_line_with_its_reason(
    palaver: Callable[..., tuple[int, str, str]], control: Control, command: str, refusal: tuple[int, str], code: int
) -> None:
    control.refusal = refusal
    assert palaver("region", command, "mars") == (code, "", f"palaver: {refusal[1]}\n")


@pytest.mark.parametrize("command", ["drain", "undrain", "add", "remove"])
def test_a_region_must_be_named(palaver: Callable[..., tuple[int, str, str]], control: Control, command: str) -> None:
    code, _, err = palaver("region", command)
    assert code == 2
    assert len(err.strip().splitlines()) == 1
    assert control.orders == []

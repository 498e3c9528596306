"""Tests five regions beside the shared three: commands change voters and drain the leader, and no write is lost."""

import contextlib
import io
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest

from infra.cli import voters
from tests.child_processes import end_deployment
from tests.integration.load import check_nothing_lost_or_doubled, load
from tests.integration.stack import REGIONS, Stack, start_stack
from tests.waiting import eventually

pytestmark = [pytest.mark.integration, pytest.mark.stack, pytest.mark.timeout(240)]

EAST, WEST, SOUTH = REGIONS
FIVE = (*REGIONS, "sa-east", "af-south")


@pytest.fixture(scope="module")
def five(data_folder: Callable[[], Path]) -> Iterator[Stack]:
    """Five regions: with three, none can be removed."""
    stack = start_stack(data_folder(), "--regions", ",".join(FIVE))
    stack.until_healthy(within_s=60)
    yield stack
    end_deployment(stack.data)


def ordered(stack: Stack, command: Callable[..., None], region: str) -> dict[str, Any]:
    """Run a command in this process, and return what it prints; starting a process takes longer than most orders."""
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        command(region, reason="a test", data=stack.data, as_json=True)
    return orjson.loads(printed.getvalue())


def quorum_of(stack: Stack, region: str) -> str:
    return stack.region(region)["member"]["synchronous_standby_names"] or ""


def slots_of(stack: Stack, region: str) -> set[str]:
    return {slot["name"] for slot in stack.region(region)["member"]["slots"]}


def test_two_deployments_run_beside_each_other(stack: Stack, five: Stack) -> None:
    mine = five.post(EAST, "In the second.", thread="beside")
    assert mine.status_code == 201
    assert set(five.edges.values()).isdisjoint(stack.edges.values())
    assert stack.get(EAST, f"/comments/{mine.json()['id']}").status_code == 404


def test_a_voter_is_removed_and_added_and_the_leader_is_drained_under_load(five: Stack) -> None:
    with load(five, through=(WEST,)) as account:
        removed = ordered(five, voters.remove, SOUTH)
        assert removed["already"] is False
        assert SOUTH not in removed["cell"]["voters"]
        eventually(lambda: five.region(SOUTH), is_out, within_s=20, what=f"{SOUTH} is view-only")
        eventually(lambda: slots_of(five, EAST), lambda names: "member_ap_south" not in names, within_s=20, what="slot")
        written = len(account.acknowledged)

        added = ordered(five, voters.add, SOUTH)
        assert (added["already"], SOUTH in added["cell"]["voters"]) == (False, True)
        eventually(
            lambda: quorum_of(five, EAST),
            lambda names: SOUTH in names,
            within_s=20,
            what="the commit quorum includes it",
        )
        assert ordered(five, voters.add, SOUTH)["already"] is True

        drained = ordered(five, voters.drain, EAST)
        assert drained["cell"]["leader"] != EAST
        assert drained["cell"]["drained"] == [EAST]
        again = len(account.acknowledged)
        assert again > written
        eventually(
            lambda: len(account.acknowledged), lambda count: count >= again + 20, within_s=20, what="writes go on"
        )
    assert account.given_up == []
    assert account.refused == 0
    check_nothing_lost_or_doubled(five, account)
    log = (five.data / "logs" / "supervisor.log").read_text()
    assert re.search(r"order done: remove ap-south: .*: a test", log), "the log has the order and its reason"


def is_out(region: dict[str, Any]) -> bool:
    return region["role"] == "view" and region["healthy"] and region["member"]["state"] == "stopped"


@pytest.mark.parametrize(
    ("order", "who", "code", "says"),
    [
        ("remove", "follower", 1, "a cell needs 3 voters: drain "),
        ("remove", "leader", 1, "leads: switch to another region first"),
        ("remove", "atlantis", 2, "unknown region 'atlantis'"),
    ],
)
def test_an_impossible_change_of_voters_is_refused_with_the_reason(
    stack: Stack, order: str, who: str, code: int, says: str
) -> None:
    status = stack.until_healthy(within_s=120)
    region = next((one["region"] for one in status["regions"] if one["role"] == who), who)
    done = stack.palaver("region", order, region, check=False)
    assert (done.returncode, done.stdout) == (code, "")
    assert says in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1

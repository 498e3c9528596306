"""Tests the operator's commands for the leadership of a running deployment."""

import re

import orjson
import pytest

from tests.integration.load import check_nothing_lost_or_doubled, load
from tests.integration.stack import Stack
from tests.integration.test_faults import REJOINED_WITHIN_S, check_roles, within_s
from tests.waiting import eventually

pytestmark = [pytest.mark.integration, pytest.mark.stack]


def test_a_switchover_fails_no_request_and_is_in_the_history(stack: Stack) -> None:
    before = stack.until_healthy(within_s=within_s(REJOINED_WITHIN_S))
    old, epoch = before["cells"][0]["leader"], before["cells"][0]["epoch"]
    target = next(region["region"] for region in before["regions"] if region["region"] != old)
    eventually(
        lambda: {one["region"] for one in stack.region(old)["member"]["standbys"] if one["streaming"]},
        lambda streaming: target in streaming,
        within_s=20,
        what=f"{target} follows",
    )
    with load(stack) as account:
        done = stack.palaver("switch", "--to", target, "--reason", "a test", "--json")
        cell = orjson.loads(done.stdout)
        assert (cell["leader"], cell["phase"]) == (target, "serving")
        assert cell["epoch"] > epoch
        written = len(account.acknowledged)
        eventually(
            lambda: len(account.acknowledged), lambda count: count >= written + 20, within_s=20, what="writes go on"
        )
        again = orjson.loads(stack.palaver("switch", "--to", target, "--json").stdout)
        assert again["epoch"] == cell["epoch"], "a switch to the leader does nothing"
    assert account.given_up == []
    assert account.refused == 0
    check_nothing_lost_or_doubled(stack, account)
    check_roles(stack.until_healthy(within_s=within_s(REJOINED_WITHIN_S)))

    epochs = orjson.loads(stack.palaver("history", "--json").stdout)["epochs"]
    assert [entry["epoch"] for entry in epochs] == sorted({entry["epoch"] for entry in epochs})
    entry = next(entry for entry in epochs if entry["epoch"] == cell["epoch"])
    assert (entry["leader"], entry["served"]) == (target, True)
    assert "a test" in entry["reason"]
    assert set(entry["phases_ms"]) == {"promoting"}, "a switchover has no vote"
    assert {"PromoteLedger", "WriteFence"} <= set(entry["steps_ms"])
    assert target in stack.palaver("history").stdout


@pytest.mark.parametrize(("to", "code", "says"), [("atlantis", 2, "unknown region"), (None, 1, "does not answer")])
def test_an_impossible_switch_is_refused_with_the_reason(stack: Stack, to: str | None, code: int, says: str) -> None:
    status = stack.until_healthy(within_s=within_s(REJOINED_WITHIN_S))
    leader = status["cells"][0]["leader"]
    victim = next(region["region"] for region in status["regions"] if region["region"] != leader)
    if to is None:
        stack.palaver("fault", "kill", victim)
    try:
        done = stack.palaver("switch", "--to", to or victim, check=False)
        assert done.returncode == code
        assert says in done.stderr
        assert len(done.stderr.strip().splitlines()) == 1
    finally:
        if to is None:
            stack.palaver("region", "restart", victim)
    assert stack.status()["cells"][0]["leader"] == leader


def test_a_lost_leader_is_not_replaced_while_failover_is_paused_and_status_shows_why(stack: Stack) -> None:
    before = stack.until_healthy(within_s=within_s(REJOINED_WITHIN_S))
    leader, epoch = before["cells"][0]["leader"], before["cells"][0]["epoch"]
    paused = orjson.loads(stack.palaver("failover", "pause", "--reason", "a test", "--json").stdout)
    assert paused["automatic"] is False
    assert re.search(r"order: failover pause\n +by .*: a test", stack.palaver("history").stdout)
    stack.palaver("fault", "kill", leader)
    try:
        eventually(
            lambda: [one["failover"] for one in stack.status()["regions"] if one["failover"]],
            lambda known: all(leader in one["suspects"] for one in known),
            within_s=within_s(10),
            what=f"{leader} is suspected",
        )
        cell = stack.status()["cells"][0]
        assert (cell["leader"], cell["epoch"]) == (leader, epoch)
        assert leader in cell["writes_refused"]
        assert "no writes" in stack.palaver("status", check=False).stdout
        stack.palaver("failover", "resume")
        eventually(
            lambda: stack.status()["cells"][0],
            lambda cell: cell["leader"] != leader and cell["writes_refused"] is None,
            within_s=within_s(15),
            what="another region leads",
        )
    finally:
        stack.palaver("failover", "resume", check=False)
        stack.palaver("region", "restart", leader)
    stack.until_healthy(within_s=within_s(REJOINED_WITHIN_S))

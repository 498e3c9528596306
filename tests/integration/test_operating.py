"""Tests the operator's commands for the leadership of a running deployment."""

import re
from typing import Any

import orjson
import psycopg
import pytest

from infra.supervisor.layout import open_layout
from infra.supervisor.plan import load_plan
from infra.supervisor.secrets import load_or_create_secrets
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


def test_a_dead_letter_is_listed_retried_and_discarded(stack: Stack) -> None:
    before = stack.until_healthy(within_s=within_s(REJOINED_WITHIN_S))
    region = next(one["region"] for one in before["regions"] if one["role"] != "leader")
    of_region = ("--region", region)

    def letters() -> list[dict[str, Any]]:
        return orjson.loads(stack.palaver("deadletters", "list", *of_region, "--json").stdout)

    assert letters() == []
    layout = open_layout(stack.data)
    plan = load_plan(layout.plan)
    assert plan is not None
    password = load_or_create_secrets(layout.secrets).view_apply
    url = f"postgresql://palaver_apply:{password}@127.0.0.1:{plan.port(region, 'view')}/palaver"
    with psycopg.connect(url, autocommit=True) as view:
        view.execute("ALTER TABLE comments ADD CONSTRAINT odd CHECK (body NOT LIKE 'odd %')")
        try:
            made = [stack.post(region, f"odd {number}", thread="letters").json()["id"] for number in range(3)]
            found = eventually(letters, lambda some: len(some) == 3, within_s=20, what="three dead letters")
            assert [one["key"] for one in found] == [{"id": comment} for comment in made]
            ids = [str(one["id"]) for one in found]
            warning = f"dead letters: 3 CheckViolationError: `palaver deadletters list --region {region}`"
            assert warning in stack.region(region)["warnings"]
            retried = stack.palaver("deadletters", "retry", ids[0], *of_region, check=False)
            assert (retried.returncode, "1 rejected again" in retried.stdout) == (1, True)
            key = {"authorization": f"Bearer {stack.api_key}"}
            assert stack.ask("DELETE", stack.url(region, f"/comments/{made[1]}"), headers=key).status_code == 204
            eventually(letters, lambda some: some[1]["erased"], within_s=20, what="the content is erased")
            assert "odd 1" not in stack.palaver("deadletters", "show", ids[1], *of_region).stdout
            assert stack.palaver("deadletters", "discard", ids[2], *of_region).stdout == f"{region}: 1 discarded\n"
            assert stack.thread_ids(region, "letters") == [made[1]]  # fills the cache
        finally:
            view.execute("ALTER TABLE comments DROP CONSTRAINT odd")
        retried = stack.palaver("deadletters", "retry", "--all", *of_region)
        assert retried.stdout == f"{region}: 2 applied, 0 rejected again\n"
        eventually(
            lambda: set(stack.thread_ids(region, "letters")),
            lambda shown: made[0] in shown,
            within_s=5,
            what="the page shows the comment",
        )
    assert letters() == []
    unknown = stack.palaver("deadletters", "show", ids[0], *of_region, check=False)
    assert (unknown.returncode, unknown.stderr.count("\n")) == (2, 1)

"""Tests kill -9 of each process of the leader region under load: it restarts, and no write is lost or applied twice."""

import os
import time
from typing import Any

import orjson
import pytest

from tests.integration.load import check_nothing_lost_or_doubled, load
from tests.integration.stack import REGIONS, Stack
from tests.waiting import eventually

pytestmark = [pytest.mark.integration, pytest.mark.stack]

PROCESSES = ("etcd", "ledger", "view", "redis", "envoy", "region_agent", "write_api", "read_api", "replicator")
BACK_WITHIN_S = 10.0  # also on a busy machine
REJOINED_WITHIN_S = 30.0  # a member is stopped, rewound or copied, and follows

# Only the end of PostgreSQL may move the leadership.
MAY_MOVE = ("ledger",)


def within_s(seconds: float) -> float:
    return seconds * max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))


@pytest.mark.parametrize("process", PROCESSES)
def test_a_killed_process_restarts_and_no_write_is_lost(stack: Stack, process: str) -> None:
    before = stack.until_healthy(within_s=within_s(REJOINED_WITHIN_S))
    leader = before["cells"][0]["leader"]
    pid = next(region["pids"][process] for region in before["regions"] if region["region"] == leader)
    with load(stack) as account:
        stack.palaver("fault", "kill", leader, process)
        back = eventually(
            stack.status,
            lambda status: (
                all(region["healthy"] for region in status["regions"])
                and all(
                    region["pids"][process] not in (pid, None)
                    for region in status["regions"]
                    if region["region"] == leader
                )
            ),
            within_s=BACK_WITHIN_S,
            what=f"{leader}/{process} is back",
        )
        written = len(account.acknowledged)
        eventually(
            lambda: len(account.acknowledged), lambda count: count >= written + 10, within_s=20, what="writes go on"
        )
    assert account.given_up == []
    for region, failures in account.read_failures.items():
        # A dead edge answers nothing, so its readers fail meanwhile.
        if (region, process) != (leader, "envoy"):
            assert failures == [], f"reads in {region} failed"
        assert account.reads[region] > 0
    check_nothing_lost_or_doubled(stack, account)
    cells = before["cells"][0], back["cells"][0]
    if process == "ledger":
        assert cells[1]["epoch"] > cells[0]["epoch"], "a crashed primary restarts only in a new epoch"
    elif process not in MAY_MOVE:
        assert [(cell["epoch"], cell["leader"]) for cell in cells] == 2 * [(cells[0]["epoch"], leader)]
    check_roles(back)


def check_roles(status: dict[str, Any]) -> None:
    cell = status["cells"][0]
    assert cell["phase"] == "serving"
    roles = {region["region"]: region["role"] for region in status["regions"]}
    assert roles == {region: "leader" if region == cell["leader"] else "follower" for region in roles}


def test_a_killed_leader_region_is_replaced_and_returns_as_a_follower(stack: Stack) -> None:
    before = stack.until_healthy(within_s=within_s(REJOINED_WITHIN_S))
    old, epoch = before["cells"][0]["leader"], before["cells"][0]["epoch"]
    survivors = [region["region"] for region in before["regions"] if region["region"] != old]
    with load(stack, survivors) as account:
        stack.palaver("fault", "kill", old)
        moved = eventually(
            lambda: stack.status()["cells"][0],
            lambda cell: cell["leader"] != old and cell["phase"] == "serving",
            within_s=within_s(15),
            what="another region leads",
        )
        assert moved["leader"] in survivors
        assert moved["epoch"] > epoch
        written = len(account.acknowledged)
        eventually(
            lambda: len(account.acknowledged), lambda count: count >= written + 20, within_s=20, what="writes go on"
        )
        stack.palaver("region", "restart", old)
        back = stack.until_healthy(within_s=within_s(REJOINED_WITHIN_S))
        check_roles(back)
        assert back["cells"][0] == stack.status()["cells"][0]
        assert back["cells"][0]["leader"] in survivors, "the old leader does not take the leadership back"
    assert account.given_up == []
    # Writers with a key see latency and no error.
    assert account.refused == 0
    assert all(account.read_failures[region] == [] for region in survivors)
    check_nothing_lost_or_doubled(stack, account)
    check_that_the_old_leader_refuses(stack, old, epoch)
    check_that_every_region_can_follow_the_one_before(stack)


def check_that_every_region_can_follow_the_one_before(stack: Stack) -> None:
    """Move the leadership twice more: each new leader, and each view, continues from the data of the one before."""
    with load(stack, ()) as account:
        for number in range(2):
            status = stack.until_healthy(within_s=within_s(REJOINED_WITHIN_S))
            leader = status["cells"][0]["leader"]
            other = next(region for region in REGIONS if region != leader)
            stack.palaver("fault", "kill", leader)
            body = f"Number {number}, while {leader} is gone."
            answer = stack.post(other, body, thread=account.thread)
            assert answer.status_code == 201, answer.text
            account.add_write(other, body, answer.json()["id"])
            stack.palaver("region", "restart", leader)
    stack.until_healthy(within_s=within_s(REJOINED_WITHIN_S))
    check_nothing_lost_or_doubled(stack, account)


def check_that_the_old_leader_refuses(stack: Stack, old: str, epoch: int) -> None:
    """Check that the former leader refuses a request with its old epoch."""
    topology = orjson.loads((stack.data / "regions" / old / "topology.json").read_bytes())
    address = next(region["write_api"] for region in topology["regions"] if region["name"] == old)
    answer = stack.ask("POST",
        f"http://{address}/v1/sites/{stack.site}/comments",
        json={"thread": "late", "body": "To the former leader."}, headers={"palaver-epoch": str(epoch)},
    )  # fmt: skip
    assert answer.status_code == 503
    assert answer.json()["type"].endswith("/stale-epoch")


def test_a_killed_follower_region_stays_dead_until_it_is_restarted(stack: Stack) -> None:
    before = stack.until_healthy(within_s=within_s(REJOINED_WITHIN_S))
    leader = before["cells"][0]["leader"]
    victim = next(region["region"] for region in before["regions"] if region["region"] != leader)
    with load(stack) as account:
        stack.palaver("fault", "kill", victim)
        dead = stack.region(victim)
        assert dead["state"] == "killed"
        assert set(dead["pids"].values()) == {None}
        written = len(account.acknowledged)
        eventually(
            lambda: len(account.acknowledged), lambda count: count >= written + 20, within_s=20, what="writes go on"
        )
        assert set(stack.region(victim)["pids"].values()) == {None}
        stack.palaver("region", "restart", victim)
        stack.until_healthy(within_s=within_s(REJOINED_WITHIN_S))
    check_nothing_lost_or_doubled(stack, account)


def test_a_paused_process_is_not_restarted_and_continues(stack: Stack) -> None:
    before = stack.until_healthy(within_s=within_s(REJOINED_WITHIN_S))
    victim = next(region for region in before["regions"] if region["region"] != before["cells"][0]["leader"])
    name = victim["region"]
    stack.palaver("fault", "pause", name, "replicator")
    written = stack.post(before["cells"][0]["leader"], "While it sleeps.", thread="paused").json()["id"]
    others = [region["region"] for region in before["regions"] if region["region"] != name]
    for other in others:
        stack.until_visible(other, written)
    assert stack.get(name, f"/comments/{written}").status_code == 404
    stack.palaver("fault", "resume", name, "replicator")
    stack.until_visible(name, written)
    after = stack.until_healthy(within_s=20)
    assert next(r for r in after["regions"] if r["region"] == name)["pids"] == victim["pids"]


def test_a_partitioned_follower_catches_up_after_the_heal(stack: Stack) -> None:
    before = stack.until_healthy(within_s=within_s(REJOINED_WITHIN_S))
    leader = before["cells"][0]["leader"]
    cut = next(region["region"] for region in before["regions"] if region["region"] != leader)
    stack.palaver("fault", "partition", leader, cut)
    try:
        assert f"fault: {min(leader, cut)} ↔ {max(leader, cut)}: cut" in stack.palaver("status").stdout
        other = next(r["region"] for r in before["regions"] if r["region"] not in (leader, cut))
        made = stack.post(other, "Behind the cut.", thread="cut")
        assert made.status_code == 201, "the leader and the other standby are a quorum"
        assert stack.get(cut, f"/comments/{made.json()['id']}").status_code == 404
        assert stack.get(cut, "/comments", params={"thread": "cut"}).status_code == 200, "reads stay available"
    finally:
        stack.palaver("fault", "heal")
    assert stack.status()["faults"] == []
    stack.until_visible(cut, made.json()["id"])
    stack.until_healthy(within_s=within_s(REJOINED_WITHIN_S))


def test_a_region_behind_a_delay_still_commits_and_converges(stack: Stack) -> None:
    leader = stack.until_healthy(within_s=within_s(REJOINED_WITHIN_S))["cells"][0]["leader"]
    others = [region for region in stack.edges if region != leader]
    for other in others:
        stack.palaver("fault", "delay", leader, other, "60", "--jitter-ms", "10")
    try:
        started = time.monotonic()
        made = stack.post(others[0], "From far away.", thread="delay")
        took_s = time.monotonic() - started
        assert made.status_code == 201
        assert took_s >= 4 * 0.05, "edge to leader and back, and the leader's quorum, are four ways of 50 to 70 ms"
        stack.until_visible(others[1], made.json()["id"])
    finally:
        stack.palaver("fault", "heal")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("fault", "kill", "atlantis"), "unknown region"),
        (("fault", "kill", "us-east", "nginx"), "unknown process"),
        (("fault", "partition", "us-east", "us-east"), "two different"),
        (("fault", "delay", "us-east", "eu-west", "-5"), "delay -5 ms"),
        (("fault", "delay", "us-east", "eu-west", "99999"), "0 to"),
        (("region", "restart", "atlantis"), "unknown region"),
        (("logs", "atlantis"), "unknown region"),
        (("site", "create", "x", "--origin", "no-origin"), "origin"),
    ],
)
def test_a_wrong_command_is_one_line_with_exit_code_2(stack: Stack, arguments: tuple[str, ...], says: str) -> None:
    done = stack.palaver(*arguments, check=False)
    assert done.returncode == 2, done.stdout + done.stderr
    assert says in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1

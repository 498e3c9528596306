"""Tests cancelled quorum waits and strong reads on a whole deployment."""

import concurrent.futures
import os
import signal
import uuid
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from typing import Any

import httpx
import orjson
import psutil
import psycopg
import pytest

from infra.supervisor.layout import open_layout
from regions.position import decode_token
from tests.integration.stack import REGIONS, Stack
from tests.waiting import eventually

pytestmark = [pytest.mark.integration, pytest.mark.stack]

STRONG = {"palaver-consistency": "strong"}
SERVED_STRONG = "strong; asked=strong; "
SERVED_EVENTUAL = "eventual; asked=strong; "
HEALTHY_WITHIN_S = 60.0


def leader_of(stack: Stack) -> tuple[str, int]:
    cell = stack.status()["cells"][0]
    return cell["leader"], cell["epoch"]


@contextmanager
def frozen_ledgers(stack: Stack, regions: list[str]) -> Generator[Callable[[], None]]:
    """Stop every process of these regions' members; yields a function that continues them, also called at the end."""
    postmasters = [psutil.Process(stack.region(region)["pids"]["ledger"]) for region in regions]
    processes = [one for postmaster in postmasters for one in (postmaster, *postmaster.children(recursive=True))]

    def heal() -> None:
        for process in processes:
            try:
                os.kill(process.pid, signal.SIGCONT)
            except ProcessLookupError:
                continue

    try:
        for process in processes:
            os.kill(process.pid, signal.SIGSTOP)
        yield heal
    finally:
        heal()


def superuser(stack: Stack, region: str) -> "psycopg.Connection[tuple[Any, ...]]":
    """Connect to the ledger member of a region as its superuser."""
    secrets = orjson.loads((stack.data / "secrets.json").read_bytes())
    topology = orjson.loads(open_layout(stack.data).topology(region).read_bytes())
    address = next(one["ledger"] for one in topology["regions"] if one["name"] == region)
    url = f"postgresql://palaver:{secrets['ledger_superuser']}@{address}/palaver"
    return psycopg.connect(url, autocommit=True)


def has_synced_slots(stack: Stack, follower: str) -> bool:
    """Whether a follower has synchronised the slots of all regions' change streams, so that it can continue them."""
    with superuser(stack, follower) as connection:
        synced = connection.execute(
            "SELECT slot_name FROM pg_replication_slots"
            " WHERE slot_name LIKE 'palaver%' AND synced AND NOT temporary AND invalidation_reason IS NULL"
        ).fetchall()
    return len(synced) == len(REGIONS)


def waiting_commits(connection: "psycopg.Connection[tuple[Any, ...]]") -> list[int]:
    """Return the pids of the write API's backends whose commit waits for its quorum."""
    rows = connection.execute(
        "SELECT pid FROM pg_stat_activity WHERE wait_event = 'SyncRep' AND application_name = 'palaver-write-api'"
    ).fetchall()
    return [row[0] for row in rows]


def until_a_commit_waits(connection: "psycopg.Connection[tuple[Any, ...]]") -> list[int]:
    return eventually(lambda: waiting_commits(connection), bool, within_s=30, what="a commit waits for its quorum")


def until_slots_are_copied(stack: Stack, followers: list[str]) -> None:
    """Wait until each follower can continue every change stream; a new deployment needs some seconds."""
    eventually(
        lambda: [has_synced_slots(stack, follower) for follower in followers], all, within_s=60, what="slots are copied"
    )


def test_a_cancelled_quorum_wait_ends_the_epoch_and_the_key_finds_the_outcome(stack: Stack) -> None:
    stack.until_healthy(within_s=HEALTHY_WITHIN_S)
    leader, epoch = leader_of(stack)
    others = [region for region in REGIONS if region != leader]
    eventually(lambda: [has_synced_slots(stack, other) for other in others], all, within_s=60, what="slots are copied")
    key, thread = uuid.uuid4().hex, f"cancelled-wait-{uuid.uuid4().hex}"
    with concurrent.futures.ThreadPoolExecutor() as clients, superuser(stack, leader) as ledger:
        with frozen_ledgers(stack, others) as heal:
            posting = clients.submit(stack.post, leader, "Once.", thread=thread, key=key)
            for pid in until_a_commit_waits(ledger):
                # After the first cancellation the leader may stop PostgreSQL before this statement is answered.
                with suppress(psycopg.OperationalError):
                    ledger.execute("SELECT pg_cancel_backend(%s)", (pid,))
            # The write API notifies its agent before it answers.
            eventually(
                lambda: step_down_lines(stack, leader, epoch),
                bool,
                within_s=30,
                what="the write API notifies the agent",
            )
            assert not acknowledged(posting), "no quorum has the write yet"
            heal()
        stepped = eventually(
            lambda: stack.status()["cells"][0],
            lambda cell: cell["epoch"] > epoch and cell["phase"] == "serving",
            within_s=30,
            what="the next epoch serves",
        )
        first = posting.result(timeout=30)
    assert stepped["epoch"] > epoch
    stack.until_healthy(within_s=HEALTHY_WITHIN_S)
    # The edge repeats a keyed write with an unknown outcome. Whatever it answers, the same key finds the outcome.
    assert first.status_code in (201, 503), first.text
    settled = stack.post(leader, "Once.", thread=thread, key=key)
    assert settled.status_code == 201, settled.text
    if first.status_code == 201:
        assert first.json()["id"] == settled.json()["id"]
    for region in REGIONS:
        stack.until_visible(region, settled.json()["id"])
        assert stack.thread_ids(region, thread) == [settled.json()["id"]]
    assert len(step_down_lines(stack, leader, epoch)) == 1, "the write API notified the agent once"


def acknowledged(posting: "concurrent.futures.Future[httpx.Response]") -> bool:
    return posting.done() and posting.result().status_code == 201


def step_down_lines(stack: Stack, region: str, epoch: int) -> list[str]:
    """Return the messages of a region's agent about quorum waits that were cancelled in an epoch."""
    log = open_layout(stack.data).log(region, "region_agent")
    messages = [orjson.loads(line)["msg"] for line in log.read_bytes().split(b"\n")[:-1] if line.startswith(b"{")]
    return [line for line in messages if f"epoch {epoch}: a commit's quorum wait was cancelled" in line]


@pytest.mark.parametrize("region", REGIONS)
def test_a_strong_read_sees_every_acknowledged_write_in_every_region(stack: Stack, region: str) -> None:
    stack.until_healthy(within_s=HEALTHY_WITHIN_S)
    thread = f"strong-{uuid.uuid4().hex}"
    seen = None
    for number in range(10):
        made = stack.post(REGIONS[number % 3], f"Number {number}.", thread=thread)
        assert made.status_code == 201, made.text
        page = stack.get(region, "/comments", params={"thread": thread}, headers=STRONG)
        assert page.status_code == 200, page.text
        assert page.headers["palaver-consistency"].startswith(SERVED_STRONG), page.headers
        assert page.json()["thread"]["count"] == number + 1
        position = decode_token(page.headers["palaver-position"])[1]
        assert position >= decode_token(made.headers["palaver-position"])[1]
        assert seen is None or position >= seen
        seen = position


def test_a_strong_read_is_served_as_eventual_without_a_quorum(stack: Stack) -> None:
    stack.until_healthy(within_s=HEALTHY_WITHIN_S)
    leader, _ = leader_of(stack)
    others = [region for region in REGIONS if region != leader]
    until_slots_are_copied(stack, others)
    thread = f"no-quorum-{uuid.uuid4().hex}"
    made = stack.post(leader, "Before.", thread=thread)
    assert made.status_code == 201, made.text
    stack.until_visible(leader, made.json()["id"])
    with concurrent.futures.ThreadPoolExecutor() as clients, superuser(stack, leader) as ledger:
        with frozen_ledgers(stack, others):
            posting = clients.submit(stack.post, leader, "Waits.", thread=thread)
            until_a_commit_waits(ledger)
            page = stack.get(leader, "/comments", params={"thread": thread}, headers=STRONG)
            # The answer came while there was no quorum, and before the edge would have answered 504.
            assert not acknowledged(posting)
        assert page.status_code == 200, page.text
        assert page.headers["palaver-consistency"].startswith(SERVED_EVENTUAL)
        assert [one["id"] for one in page.json()["comments"]] == [made.json()["id"]]
        assert posting.result(timeout=30).status_code == 201
    stack.until_healthy(within_s=HEALTHY_WITHIN_S)
    eventually(
        lambda: stack.get(leader, "/comments", params={"thread": thread}, headers=STRONG),
        lambda answer: answer.headers["palaver-consistency"].startswith(SERVED_STRONG),
        within_s=20,
        what="strong reads are strong again",
    )

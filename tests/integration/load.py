"""Runs writers and readers against a deployment, and records exactly what was acknowledged."""

import threading
import time
import uuid
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import httpx

from tests.integration.stack import REGIONS, Stack
from tests.waiting import eventually

RETRY_S = 0.1
GIVE_UP_S = 30.0  # the writer then counts the write as given up


@dataclass(kw_only=True)
class Account:
    """The outcomes of the writes and reads."""

    thread: str
    through: Sequence[str]
    acknowledged: dict[str, str] = field(default_factory=dict[str, str])
    given_up: list[str] = field(default_factory=list[str])
    read_failures: dict[str, list[str]] = field(default_factory=lambda: {region: [] for region in REGIONS})
    reads: dict[str, int] = field(default_factory=lambda: dict.fromkeys(REGIONS, 0))
    refused: int = 0
    slowest_write_s: float = 0.0


def _write(stack: Stack, region: str, account: Account, stop: threading.Event, lock: threading.Lock) -> None:
    number = 0
    with stack.answers.client(timeout=15) as client:
        while not stop.is_set():
            number += 1
            body, key = f"{region} {number}", uuid.uuid4().hex
            started = time.monotonic()
            while True:
                try:
                    answer = client.post(
                        stack.url(region, "/comments"),
                        json={"thread": account.thread, "body": body},
                        headers={"idempotency-key": key},
                    )
                    if answer.status_code == 201:
                        with lock:
                            account.acknowledged[body] = answer.json()["id"]
                            account.slowest_write_s = max(account.slowest_write_s, time.monotonic() - started)
                        break
                    assert answer.status_code == 503, answer.text
                    with lock:
                        account.refused += 1
                except httpx.HTTPError:
                    pass  # The edge may have been killed; the key makes another attempt safe.
                if time.monotonic() - started > GIVE_UP_S:
                    account.given_up.append(body)
                    break
                time.sleep(RETRY_S)
            time.sleep(0.01)


def _read(stack: Stack, region: str, account: Account, stop: threading.Event) -> None:
    with stack.answers.client(timeout=10) as client:
        while not stop.is_set():
            try:
                answer = client.get(stack.url(region, "/comments"), params={"thread": account.thread, "limit": 20})
                if answer.status_code == 200:
                    account.reads[region] += 1
                else:
                    account.read_failures[region].append(f"{answer.status_code} {answer.text[:200]}")
            except httpx.HTTPError as error:
                account.read_failures[region].append(repr(error))
            time.sleep(0.02)


@contextmanager
def load(stack: Stack, through: Sequence[str] = REGIONS) -> Generator[Account]:
    """Write and read through each of these edges while the context lasts."""
    account = Account(thread=f"load-{uuid.uuid4().hex[:8]}", through=through)
    stop, lock = threading.Event(), threading.Lock()
    threads = [threading.Thread(target=_write, args=(stack, region, account, stop, lock)) for region in through]
    threads += [threading.Thread(target=_read, args=(stack, region, account, stop)) for region in through]
    for thread in threads:
        thread.start()
    try:
        eventually(
            lambda: len(account.acknowledged),
            lambda count: count >= 10 or not through,
            within_s=30,
            what="the load is under way",
        )
        yield account
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def check_nothing_lost_or_doubled(stack: Stack, account: Account) -> None:
    """Check that every acknowledged comment is in every region exactly once, under the id of its acknowledgement."""
    expected = set(account.acknowledged.values())
    assert expected, "nothing was acknowledged, so nothing could be lost"
    for region in account.through:
        assert account.reads[region] > 0, f"no read succeeded in {region}"
        assert any(body.startswith(f"{region} ") for body in account.acknowledged), f"no write came through {region}"
    assert len(expected) == len(account.acknowledged), "two writes were answered with one id"
    for region in REGIONS:
        found = eventually(
            lambda region=region: stack.thread_ids(region, account.thread),
            lambda ids: expected <= set(ids),
            within_s=20,
            what=f"every acknowledged comment in {region}",
        )
        assert len(found) == len(set(found)), f"{region} shows a comment twice"
        unexplained = set(found) - expected
        # A write that was given up may be there once; an acknowledged one must not be there twice.
        assert len(unexplained) <= len(account.given_up), f"{region} has {len(unexplained)} comments too many"

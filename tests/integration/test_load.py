"""Tests that wrong answers and lost or doubled comments under load fail a test, with a small server as every edge."""

import re
import threading
import traceback
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest

from services.api.openapi import openapi_document
from tests.answers import Answers
from tests.integration.load import Account, check_nothing_lost_or_doubled, load
from tests.integration.stack import REGIONS, Stack
from tests.waiting import eventually

SITE = "00000000-0000-4000-8000-000000000000"


class FewChecks(Answers):
    """Refuses a marked answer only, because the server of these tests sends few of the documented headers."""

    def check(self, response: httpx.Response) -> None:
        assert "x-undocumented" not in response.headers, "not documented: an answer of the edge"


class Edge:
    """The comments of a thread, and the status of the answer to each write."""

    def __init__(self) -> None:
        self.comments: list[dict[str, Any]] = []
        self.status: Callable[[int], int] = lambda _: 201
        self.page_status = 200
        self.undocumented = False
        self.lock = threading.Lock()
        self.writes = 0

    def post(self, content: bytes) -> tuple[int, object]:
        with self.lock:
            self.writes += 1
            status, comment = self.status(self.writes), orjson.loads(content) | {"id": f"id-{self.writes}"}
            if status == 201:
                self.comments.append(comment)
        return status, comment if status == 201 else {"type": "a-reason"}

    def page(self) -> tuple[int, object]:
        with self.lock:
            comments = [dict[str, Any](one, replies={"items": [], "next": None}) for one in self.comments]
        return self.page_status, {"comments": comments, "next": None}


@pytest.fixture
def edge() -> Edge:
    return Edge()


@pytest.fixture
def stack(edge: Edge, tmp_path: Path) -> Iterator[Stack]:
    """A stack whose edges are one server with the answers of `edge`."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self._answer(*edge.post(self.rfile.read(int(self.headers["content-length"]))))

        def do_GET(self) -> None:
            self._answer(*edge.page())

        def _answer(self, status: int, body: object) -> None:
            content = orjson.dumps(body)
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(content)))
            self.send_header("palaver-position", "main.1.0000000000000001")
            if edge.undocumented:
                self.send_header("x-undocumented", "yes")
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name of the base class
            del format, args

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        serving = threading.Thread(target=server.serve_forever, args=(0.01,))
        serving.start()
        url = f"http://127.0.0.1:{server.server_port}"
        yield Stack(
            data=tmp_path, edges=dict.fromkeys(REGIONS, url), site=SITE, api_key="", admin_key="",
            answers=FewChecks(openapi_document()),
        )  # fmt: skip
        server.shutdown()
        serving.join()


@contextmanager
def failing_load(stack: Stack, message: str) -> Generator[Account]:
    """Run a load that has to fail with an assertion error, while its test uses it and when it ends."""
    with pytest.raises(ExceptionGroup) as ended, load(stack) as account, pytest.raises(ExceptionGroup):
        yield account
    wrong, others = ended.value.split(AssertionError)
    assert others is None
    assert re.search(message, "".join(traceback.format_exception(wrong)))


def more_writes(account: Account, more: int) -> None:
    written = len(account.acknowledged)
    eventually(lambda: len(account.acknowledged), lambda count: count >= written + more, what="writes go on")


@pytest.mark.parametrize("status", [200, 409, 429, 500, 504])
def test_a_load_fails_its_test_when_a_write_is_answered_with_neither_201_nor_503(
    stack: Stack, edge: Edge, status: int
) -> None:
    with failing_load(stack, f"a write was answered {status} .*a-reason") as account:
        edge.status = lambda _: status
        more_writes(account, 1000)


def test_a_load_fails_its_test_when_the_document_does_not_allow_an_answer(stack: Stack, edge: Edge) -> None:
    with failing_load(stack, "not documented: an answer of the edge") as account:
        edge.undocumented = True
        more_writes(account, 1000)


def test_a_load_counts_refused_writes_and_repeats_them_with_their_key(stack: Stack, edge: Edge) -> None:
    edge.status = lambda number: 201 if number % 2 else 503
    with load(stack) as account:
        more_writes(account, 4)
    assert account.refused >= 4
    assert account.given_up == []
    check_nothing_lost_or_doubled(stack, account)


def test_a_load_records_status_and_text_of_a_failed_read(stack: Stack, edge: Edge) -> None:
    with load(stack) as account:
        eventually(lambda: account.reads, lambda reads: min(reads.values()) > 0, what="reads")
        edge.page_status = 503
        eventually(lambda: account.read_failures, lambda failures: all(failures.values()), what="failed reads")
    for region in REGIONS:
        assert account.read_failures[region][0].startswith('503 {"comments"')


def test_a_read_that_takes_too_long_is_a_failed_read(stack: Stack) -> None:
    with load(stack, ()) as account:
        for took_s in (9.9, 10.1):
            account.records.append({"kind": "read", "region": "us-east", "status": 200, "sent": 1.0, "t": 1.0 + took_s})
    assert account.read_failures["us-east"] == ["200  after 10.1 s"]
    assert account.reads["us-east"] == 1


def sent_to(region: str, account: Account) -> dict[str, list[float]]:
    """Return the times at which each write was sent to an edge, by its key."""
    times: dict[str, list[float]] = {}
    for record in account.of_kind("sent"):
        if record["region"] == region:
            times.setdefault(record["key"], []).append(record["t"])
    return times


def test_a_writer_gives_up_and_sends_to_no_other_edge(
    stack: Stack, edge: Edge, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.integration.load.GIVE_UP_S", 0.3)
    dead = replace(stack, edges=stack.edges | {"us-east": "http://127.0.0.1:1"})
    with load(dead) as account:
        more_writes(account, 10)
        eventually(lambda: account.of_kind("read"), what="reads")
        eventually(lambda: sent_to("us-east", account), lambda sent: len(sent) > 2, what="a writer continues")
    # Also the write that was under way at the end was given up after about 0.3 s.
    attempts = sent_to("us-east", account)
    assert set(account.given_up) == attempts.keys()
    assert max(max(times) - min(times) for times in attempts.values()) < 5
    assert account.refused == 0
    assert account.reads["us-east"] == 0
    assert account.read_failures["us-east"][0].startswith("None ConnectError after ")
    assert {record["region"] for record in account.of_kind("acknowledged")} == {"eu-west", "ap-south"}
    with pytest.raises(AssertionError, match="no read succeeded in us-east"):
        check_nothing_lost_or_doubled(stack, account)
    del edge


def test_a_load_through_no_edge_has_the_writes_of_its_test_only(stack: Stack, edge: Edge) -> None:
    with load(stack, ()) as account:
        assert account.acknowledged == {}
        edge.comments.append({"id": "one", "body": "By the test."})
        account.add_write("us-east", "By the test.", "one")
    assert edge.writes == 0
    check_nothing_lost_or_doubled(stack, account)
    with load(stack, ()) as account, pytest.raises(AssertionError, match="nothing was acknowledged"):
        check_nothing_lost_or_doubled(stack, account)


def lose(comments: list[dict[str, Any]]) -> None:
    del comments[3]


def double(comments: list[dict[str, Any]]) -> None:
    comments.append(comments[3] | {"id": "another"})


def show_twice(comments: list[dict[str, Any]]) -> None:
    comments.append(comments[3])


def rename(comments: list[dict[str, Any]]) -> None:
    comments[3]["id"] = "another"


def add(comments: list[dict[str, Any]]) -> None:
    comments.append({"id": "another", "body": "Sent by nobody."})


def change(comments: list[dict[str, Any]]) -> None:
    comments[3]["body"] = "Sent by nobody."


@pytest.mark.parametrize(
    ("break_thread", "message"),
    [
        (lose, "every acknowledged comment in us-east"),
        (rename, "every acknowledged comment in us-east"),
        (change, "every acknowledged comment in us-east"),
        (double, "us-east has a comment twice"),
        (show_twice, "us-east has a comment twice"),
        (add, "us-east has comments that no client sent"),
    ],
)
def test_a_lost_doubled_or_unsent_comment_fails_the_check(
    stack: Stack,
    edge: Edge,
    monkeypatch: pytest.MonkeyPatch,
    break_thread: Callable[[list[dict[str, Any]]], None],
    message: str,
) -> None:
    monkeypatch.setattr("tests.integration.load.VISIBLE_WITHIN_S", 0)
    with load(stack) as account:
        more_writes(account, 5)
    check_nothing_lost_or_doubled(stack, account)
    break_thread(edge.comments)
    with pytest.raises(AssertionError, match=message):
        check_nothing_lost_or_doubled(stack, account)

"""Tests the requests and the output of `palaver deadletters`. A local HTTP server stands in for a replicator."""

import getpass
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from infra.supervisor.layout import open_layout
from infra.supervisor.plan import Plan, dump_plan, make_plan
from infra.supervisor.secrets import load_or_create_secrets
from tests.infra.cli.control import Palaver

LETTER: dict[str, Any] = {
    "id": 7,
    "position": "main.1.0000000000000014",
    "at": "2026-01-01T00:00:00+00:00",
    "reason": "DataError: odd",
    "attempts": 0,
    "bytes": 100,
    "erased": False,
    "table": "comments",
    "op": "insert",
    "key": {"id": "c1"},
}


class Replicator:
    """Answers orders with the given statuses and documents, in turn, and then with an empty list."""

    def __init__(self) -> None:
        self.answers: list[tuple[int, dict[str, Any]]] = []
        self.asked: list[dict[str, Any]] = []
        self.authorizations: set[str | None] = set()


@pytest.fixture
def plan(data: Path) -> Plan:
    made = make_plan(regions=("a", "b", "c"), view_regions=(), rtt_ms=0, port_base=None, deployment="x")
    open_layout(data).plan.write_bytes(dump_plan(made))
    return made


@pytest.fixture
def replicator(plan: Plan) -> Iterator[Replicator]:
    played = Replicator()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            played.asked.append(json.loads(body))
            played.authorizations.add(self.headers.get("authorization"))
            nothing: tuple[int, dict[str, Any]] = (200, {"letters": []})
            status, document = played.answers.pop(0) if played.answers else nothing
            self.send_response(status)
            self.end_headers()
            self.wfile.write(json.dumps(document).encode())

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its name
            """Say nothing."""

    with HTTPServer(("127.0.0.1", plan.port("a", "replicator_internal")), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield played
        server.shutdown()
        thread.join()


def test_letters_are_listed_with_all_pages(palaver: Palaver, replicator: Replicator, data: Path) -> None:
    second = {**LETTER, "id": 9, "attempts": 2, "erased": True}
    pages: list[tuple[int, dict[str, Any]]] = [
        (200, {"letters": [LETTER]}),
        (200, {"letters": [second]}),
        (200, {"letters": []}),
    ]
    replicator.answers = list(pages)
    assert palaver("deadletters", "list", "--region", "a") == (
        0,
        (
            "a  7  insert comments (c1)  attempts 0  DataError: odd\n"
            "a  9  insert comments (c1)  attempts 2  DataError: odd  (content erased)\n"
        ),
        "",
    )
    assert replicator.asked == [{"kind": "list", "after": after} for after in (0, 7, 9)]
    assert replicator.authorizations == {f"Bearer {load_or_create_secrets(open_layout(data).secrets).changes_token}"}
    replicator.answers = list(pages)
    code, out, _ = palaver("deadletters", "list", "--region", "a", "--json")
    assert (code, json.loads(out)) == (0, [{"region": "a", **LETTER}, {"region": "a", **second}])


def test_all_regions_are_listed_and_one_that_does_not_answer_fails_the_command(
    palaver: Palaver, replicator: Replicator
) -> None:
    replicator.answers = [(200, {"letters": [LETTER]}), (200, {"letters": []})]
    code, out, err = palaver("deadletters", "list")
    assert (code, out) == (1, "a  7  insert comments (c1)  attempts 0  DataError: odd\n")
    assert "the replicator of b does not answer" in err


def test_an_empty_list_is_one_line(palaver: Palaver, replicator: Replicator) -> None:
    del replicator
    line = "no dead letters in a\n"
    assert palaver("deadletters", "list", "--region", "a") == (0, line, "")
    assert palaver("deadletters", "retry", "--region", "a", "--all") == (0, line, "")
    assert palaver("deadletters", "discard", "--region", "a", "--all", "--yes") == (0, line, "")


def test_a_letter_is_shown_with_its_row(palaver: Palaver, replicator: Replicator) -> None:
    replicator.answers = [(200, {"letter": {**LETTER, "row": {"id": "c1", "body": None, "title": "a\x1b[2Jb"}}})]
    code, out, err = palaver("deadletters", "show", "7", "--region", "a")
    assert (code, err) == (0, "")
    assert out.splitlines()[-4:] == ["key.id: c1", "row.id: c1", "row.body: NULL", "row.title: 'a\\x1b[2Jb'"]


def test_a_retry_that_is_rejected_again_fails_the_command(palaver: Palaver, replicator: Replicator) -> None:
    replicator.answers = [(200, {"letters": [{"id": 7, "reason": None}, {"id": 8, "reason": "DataError: odd"}]})]
    assert palaver("deadletters", "retry", "8", "7", "--region", "a") == (
        1, "8: rejected again: DataError: odd\na: 1 applied, 1 rejected again\n", ""
    )  # fmt: skip
    assert replicator.asked == [{"kind": "retry", "ids": [7, 8]}]


def test_all_letters_are_ordered_in_parts(palaver: Palaver, replicator: Replicator) -> None:
    letters = [{**LETTER, "id": number} for number in range(1, 151)]
    replicator.answers = [
        (200, {"letters": letters}),
        (200, {"letters": []}),
        (200, {"discarded": 100}),
        (200, {"discarded": 50}),
    ]
    assert palaver("deadletters", "discard", "--all", "--yes", "--region", "a") == (0, "a: 150 discarded\n", "")
    by = getpass.getuser()
    assert replicator.asked[2:] == [
        {"kind": "discard", "ids": list(range(1, 101)), "by": by},
        {"kind": "discard", "ids": list(range(101, 151)), "by": by},
    ]


@pytest.mark.parametrize(
    ("arguments", "answer", "code", "says"),
    [
        (("list", "--region", "nowhere"), None, 2, "there is no region 'nowhere': this deployment has a, b, c"),
        (("list", "--region", "b"), None, 1, "the replicator of b does not answer (ConnectError)"),
        (("show", "5", "--region", "a"), (404, {"detail": "there is no dead letter 5"}), 2, "no dead letter 5: `pal"),
        (("retry", "5", "--region", "a"), (404, {"detail": "there is no dead letter 5"}), 2, "no dead letter 5: `pal"),
        (("retry", "5", "--region", "a"), (503, {"detail": "the view is down"}), 1, "refuses: the view is down"),
        (("retry", "--region", "a"), None, 2, "name the ids of dead letters, or --all"),
        (("discard", "5", "--all", "--yes", "--region", "a"), None, 2, "name the ids of dead letters, or --all"),
        (("discard", "--all", "--region", "a"), None, 2, "confirm it with --yes"),
        (("discard", "x", "--region", "a"), None, 2, "valid integer"),
        (("show", "5"), None, 2, "--region"),
    ],
)
def test_a_wrong_order_is_one_line(  # noqa: PLR0917 - a table
    palaver: Palaver,
    replicator: Replicator,
    arguments: tuple[str, ...],
    answer: tuple[int, dict[str, Any]] | None,
    code: int,
    says: str,
) -> None:
    replicator.answers = [] if answer is None else [answer]
    found, out, err = palaver("deadletters", *arguments)
    assert (found, out, len(err.splitlines())) == (code, "", 1)
    assert says in err

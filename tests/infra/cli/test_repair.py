"""Tests the requests and the output of `palaver repair`. A local HTTP server stands in for a replicator."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from infra.cli.repair import result_line, state_lines
from infra.supervisor.layout import open_layout
from infra.supervisor.plan import Plan, dump_plan, make_plan
from infra.supervisor.secrets import load_or_create_secrets
from tests.infra.cli.control import Palaver

CLEAN: dict[str, Any] = {
    "verdict": "clean",
    "rows": 7,
    "seconds": 0.034,
    "bytes": 117,
    "found": {},
    "mended": {},
    "counters": 0,
    "wrong_leaves": 0,
    "skipped": 0,
    "detail": "",
    "at": 100.0,
    "position": "Position(epoch=1, lsn=9)",
}
MENDED = CLEAN | {
    "verdict": "mended",
    "found": {"missing": 2, "phantom": 0},
    "mended": {"missing": 2},
    "counters": 3,
    "wrong_leaves": 1,
    "skipped": 4,
}
STATE: dict[str, Any] = {
    "ready": True,
    "last": CLEAN,
    "last_clean": CLEAN,
    "last_scrub_at": None,
    "mended": {"stale": 3},
}


class Replicator:
    """Answers requests with one status and document, and records them."""

    def __init__(self) -> None:
        self.answer: tuple[int, dict[str, Any]] = (200, CLEAN)
        self.asked: list[tuple[str, str, dict[str, str], Any]] = []


@pytest.fixture
def plan(data: Path) -> Plan:
    made = make_plan(regions=("a", "b", "c"), view_regions=(), rtt_ms=0, port_base=None, deployment="x")
    open_layout(data).plan.write_bytes(dump_plan(made))
    return made


@pytest.fixture
def replicator(plan: Plan) -> Iterator[Replicator]:
    played = Replicator()

    class Handler(BaseHTTPRequestHandler):
        def _reply(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            headers = {name.lower(): value for name, value in self.headers.items()}
            played.asked.append((self.command, self.path, headers, json.loads(body) if body else None))
            status, document = played.answer
            self.send_response(status)
            self.end_headers()
            self.wfile.write(json.dumps(document).encode())

        do_GET = do_POST = _reply  # noqa: N815 - as the standard library calls them

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its name
            """Say nothing."""

    with HTTPServer(("127.0.0.1", plan.port("a", "replicator_internal")), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield played
        server.shutdown()
        thread.join()


def test_an_order_has_the_token_of_the_regions_and_prints_the_result(
    palaver: Palaver, data: Path, replicator: Replicator
) -> None:
    replicator.answer = 200, MENDED
    exit_code, stdout, _stderr = palaver("repair", "run", "--region", "a", "--dry-run", "--scrub")
    assert exit_code == 0
    assert stdout == (
        "a: mended, 7 rows compared in 0.03 s, 117 bytes; found: 2 missing; mended: 2 missing;"
        " wrong counters: 3; leaves computed again: 1; changed meanwhile, compared next time: 4\n"
    )
    ((method, path, headers, body),) = replicator.asked
    assert (method, path) == ("POST", "/repair")
    token = load_or_create_secrets(open_layout(data).secrets).changes_token
    assert headers["authorization"] == f"Bearer {token}"
    assert (body["scrub"], body["dry_run"]) == (True, True)


def test_all_regions_are_compared_and_one_that_does_not_answer_is_an_error(
    palaver: Palaver, replicator: Replicator
) -> None:
    exit_code, stdout, _stderr = palaver("repair", "run", "--json")
    assert exit_code == 1
    results = json.loads(stdout)
    assert {region: one["verdict"] for region, one in results.items()} == {"a": "clean", "b": "failed", "c": "failed"}
    assert "the replicator of b does not answer" in results["b"]["detail"]
    assert len(replicator.asked) == 1


@pytest.mark.usefixtures("plan")
def test_an_unknown_region_is_refused_with_the_regions_that_exist(palaver: Palaver) -> None:
    for command in ("run", "status"):
        exit_code, _stdout, stderr = palaver("repair", command, "--region", "atlantis")
        assert exit_code == 2
        assert "unknown region 'atlantis': the regions are a, b, c" in stderr


def test_a_refusal_is_printed_with_its_reason(palaver: Palaver, replicator: Replicator) -> None:
    replicator.answer = 409, {"detail": "a comparison of this region runs already"}
    exit_code, stdout, _stderr = palaver("repair", "run", "--region", "a")
    assert exit_code == 1
    assert "failed: a: a comparison of this region runs already" in stdout


def test_the_state_of_each_region_is_printed(palaver: Palaver, replicator: Replicator) -> None:
    replicator.answer = 200, {"repair": STATE}
    exit_code, stdout, _stderr = palaver("repair", "status")
    assert exit_code == 0
    assert "a: equal to the ledger" in stdout
    assert "b: the replicator does not answer" in stdout


def test_the_lines_of_a_state() -> None:
    assert state_lines(STATE | {"last_scrub_at": 40.0}, 700.0) == [
        "10 min ago: clean, 7 rows compared in 0.03 s, 117 bytes",
        "equal to the ledger 10 min ago, at Position(epoch=1, lsn=9)",
        "scrubbed 11 min ago",
        "mended since the start: 3 stale",
    ]
    assert state_lines({"ready": False}, 0.0) == ["the tree of the view is being computed"]
    assert result_line(CLEAN | {"verdict": "too different", "detail": "rebuild the view"}) == (
        "too different: rebuild the view"
    )

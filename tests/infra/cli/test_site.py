"""What `palaver site` sends and prints, against an edge that is played."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from infra.supervisor.layout import open_layout
from infra.supervisor.plan import Plan, dump_plan, make_plan
from tests.infra.cli.control import Palaver

SITE = "01990d5e-3a00-7c62-9d2b-5a2a6f0c1e11"


class Edge:
    """Answers every request with the same status and document."""

    def __init__(self) -> None:
        self.answer: tuple[int, dict[str, Any]] = (200, {})
        self.asked: list[tuple[str, str, dict[str, str], Any]] = []


@pytest.fixture
def plan(data: Path) -> Plan:
    made = make_plan(regions=("a", "b", "c"), view_regions=(), rtt_ms=0, port_base=None, deployment="x")
    open_layout(data).plan.write_bytes(dump_plan(made))
    return made


@pytest.fixture
def edge(plan: Plan) -> Iterator[Edge]:
    played = Edge()

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

    with HTTPServer(("127.0.0.1", plan.port("a", "edge")), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield played
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(
    ("field", "name"),
    [("origins.1", "--origin 'https://B.example'"), ("name", "NAME"), ("origins", "--origin"), ("else", "else")],
)
def test_a_refused_site_names_the_argument_that_is_wrong(palaver: Palaver, edge: Edge, field: str, name: str) -> None:
    edge.answer = (422, {"title": "The request is invalid", "errors": [{"field": field, "message": "must be right"}]})
    code, out, err = palaver("site", "create", "x", "--origin", "https://a.example", "--origin", "https://B.example")
    assert (code, out, err) == (2, "", f"palaver: {name}: must be right\n")


def test_a_site_is_shown_with_its_key(palaver: Palaver, edge: Edge) -> None:
    edge.answer = (200, {"id": SITE, "name": "My blog", "origins": ["https://a.example", "https://b.example"]})
    code, out, err = palaver("site", "show", SITE, "--api-key", "psk_x")
    assert (code, err) == (0, "")
    assert out == f"id: {SITE}\nname: My blog\norigins: https://a.example, https://b.example\n"
    ((method, path, headers, body),) = edge.asked
    assert (method, path, body) == ("GET", f"/v1/sites/{SITE}", None)
    assert headers["authorization"] == "Bearer psk_x"
    edge.answer = (404, {"title": "There is no such site", "detail": "No site has this id."})
    assert palaver("site", "show", SITE, "--api-key", "psk_x") == (2, "", "palaver: No site has this id.\n")
    code, out, err = palaver("site", "show", "no-uuid", "--api-key", "psk_x")
    assert (code, out) == (2, "")
    assert "no-uuid" in err

"""Tests the requests and the output of `palaver site`. A local HTTP server stands in for an edge."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest

from infra.supervisor.layout import open_layout
from infra.supervisor.plan import Plan, dump_plan, make_plan
from tests.infra.cli.control import Palaver

SITE = "01990d5e-3a00-7c62-9d2b-5a2a6f0c1e11"
OTHER_SITE = "01990d5e-3b00-7c62-9d2b-5a2a6f0c1e12"


class Edge:
    """Answers requests with the given statuses and documents, in turn."""

    def __init__(self) -> None:
        self.answers: Iterator[tuple[int, dict[str, Any]]] = cycle([(200, {})])
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
            status, document = next(played.answers)
            self.send_response(status)
            self.end_headers()
            self.wfile.write(json.dumps(document).encode())

        do_GET = do_POST = do_PATCH = _reply  # noqa: N815 - as the standard library calls them

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
    edge.answers = cycle(
        [(422, {"title": "The request is invalid", "errors": [{"field": field, "message": "must be right"}]})]
    )
    code, out, err = palaver("site", "create", "x", "--origin", "https://a.example", "--origin", "https://B.example")
    assert (code, out, err) == (2, "", f"palaver: {name}: must be right\n")


def test_a_site_is_shown_with_its_key(palaver: Palaver, edge: Edge) -> None:
    edge.answers = cycle(
        [(200, {"id": SITE, "name": "My blog", "origins": ["https://a.example", "https://b.example"]})]
    )
    code, out, err = palaver("site", "show", SITE, "--api-key", "psk_x")
    assert (code, err) == (0, "")
    assert out == f"id: {SITE}\nname: My blog\norigins: https://a.example, https://b.example\n"
    ((method, path, headers, body),) = edge.asked
    assert (method, path, body) == ("GET", f"/v1/sites/{SITE}", None)
    assert headers["authorization"] == "Bearer psk_x"
    edge.answers = cycle([(404, {"title": "There is no such site", "detail": "No site has this id."})])
    assert palaver("site", "show", SITE, "--api-key", "psk_x") == (2, "", "palaver: No site has this id.\n")
    code, out, err = palaver("site", "show", "no-uuid", "--api-key", "psk_x")
    assert (code, out) == (2, "")
    assert "no-uuid" in err


def test_sites_are_listed_with_all_pages(palaver: Palaver, edge: Edge) -> None:
    first = {"id": SITE, "name": "My [blog]", "origins": ["https://a.example", "https://b.example"]}
    second: dict[str, Any] = {"id": OTHER_SITE, "name": "Other", "origins": []}
    pages: list[tuple[int, dict[str, Any]]] = [
        (200, {"sites": [first], "next": "the-cursor"}),
        (200, {"sites": [second], "next": None}),
    ]
    edge.answers = cycle(pages)
    code, out, err = palaver("site", "list")
    assert (code, err) == (0, "")
    assert out == f"{SITE}  My [blog]  https://a.example, https://b.example\n{OTHER_SITE}  Other  \n"
    assert [(method, path, body) for method, path, _, body in edge.asked] == [
        ("GET", "/v1/sites?limit=200", None),
        ("GET", "/v1/sites?limit=200&cursor=the-cursor", None),
    ]
    assert all(headers["authorization"].startswith("Bearer ") for _, _, headers, _ in edge.asked)
    code, out, err = palaver("site", "list", "--json")
    assert (code, json.loads(out), err) == (0, [first, second], "")


def test_a_site_is_changed_by_its_id(palaver: Palaver, edge: Edge) -> None:
    edge.answers = cycle([(200, {"id": SITE, "name": "Mine", "origins": ["https://a.example", "https://b.example"]})])
    origins = ("--origin", "https://a.example", "--origin", "https://b.example")
    code, out, err = palaver("site", "set", SITE, *origins, "--name", "Mine")
    assert (code, err) == (0, "")
    assert out == f"id: {SITE}\nname: Mine\norigins: https://a.example, https://b.example\n"
    palaver("site", "set", SITE, "--name", "Mine")
    assert [(method, path, body) for method, path, _, body in edge.asked] == [
        ("PATCH", f"/v1/sites/{SITE}", {"name": "Mine", "origins": ["https://a.example", "https://b.example"]}),
        ("PATCH", f"/v1/sites/{SITE}", {"name": "Mine"}),
    ]


def test_a_site_is_changed_by_its_name_if_no_other_site_has_it(palaver: Palaver, edge: Edge) -> None:
    def site(number: str, name: str) -> dict[str, Any]:
        return {"id": number, "name": name, "origins": []}

    sites = {"sites": [site(SITE, "Mine"), site(OTHER_SITE, "Twice"), site(SITE, "Twice")], "next": None}
    edge.answers = iter([(200, sites), (200, site(SITE, "Mine"))])
    assert palaver("site", "set", "Mine", "--origin", "*")[0] == 0
    assert edge.asked[-1][:2] == ("PATCH", f"/v1/sites/{SITE}")
    edge.answers = cycle([(200, sites)])
    edge.asked.clear()
    assert palaver("site", "set", "Twice", "--origin", "*") == (
        2, "", f"palaver: 2 sites are named 'Twice': use an id, {OTHER_SITE}, {SITE}\n"
    )  # fmt: skip
    assert palaver("site", "set", "None", "--origin", "*") == (
        2, "", "palaver: no site is named 'None': `palaver site list` prints the sites\n"
    )  # fmt: skip
    assert {method for method, *_ in edge.asked} == {"GET"}


def test_a_refused_change_of_a_site_names_the_option_that_is_wrong(palaver: Palaver, edge: Edge) -> None:
    def refused(field: str) -> tuple[int, dict[str, Any]]:
        return 422, {"title": "The request is invalid", "errors": [{"field": field, "message": "must be right"}]}

    edge.answers = iter([refused("origins.0"), refused("name")])
    code, _, err = palaver("site", "set", SITE, "--origin", "https://A.example")
    assert (code, err) == (2, "palaver: --origin 'https://A.example': must be right\n")
    code, _, err = palaver("site", "set", SITE, "--name", " ")
    assert (code, err) == (2, "palaver: --name: must be right\n")
    code, _, err = palaver("site", "set", SITE)
    assert (code, err) == (2, "palaver: nothing to change: give --origin or --name\n")
    assert len(edge.asked) == 2

"""Sends bad input to a real edge: the answer is a problem document with the right status, never a 500."""

import json
import socket
import uuid
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from tests.integration.stack import Stack

pytestmark = [pytest.mark.integration, pytest.mark.stack]


def problem_of(answer: httpx.Response, status: int) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"].startswith("application/problem+json")
    document = answer.json()
    assert document["status"] == status
    assert document["type"].startswith("https://palaver.dev/problems/")
    assert document["title"]
    # The edge refuses these before it assigns a request id.
    assert "request_id" in document or status in {431, 501}
    assert document.get("request_id") == answer.headers.get("x-request-id")
    return document


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"thread": "t", "body": "x" * 10_001}, 422),
        ({"thread": "t", "body": ""}, 422),
        ({"thread": "t", "body": "x", "surprise": 1}, 422),
        ({"thread": "t", "body": 7}, 422),
        ({"thread": "t"}, 422),
        ({"thread": "", "body": "x"}, 422),
        ({"thread": "k" * 2_001, "body": "x"}, 422),
        ({"thread": "t", "body": "nul \u0000 byte"}, 422),
        ({"thread": "t\u0000", "body": "x"}, 422),
        ({"thread": "t", "body": "x", "author": {"name": "n", "email": "no address"}}, 422),
        ({"thread": "t", "body": "x", "parent": "not-an-id"}, 422),
        ({"thread": "t", "body": "x", "parent": str(uuid.uuid4())}, 422),
        ([], 422),
        ("text", 422),
    ],
)
def test_an_invalid_body_is_422(stack: Stack, body: object, status: int) -> None:
    problem_of(stack.ask("POST", stack.url("eu-west", "/comments"), json=body), status)


@pytest.mark.parametrize(
    "content",
    [b'{"thread":"t","body":"\\ud800 lone surrogate"}', b'{"thread":"t","body":"\xff"}', b"{", b"", b'{"thread":NaN}'],
)
def test_text_that_is_not_json_or_not_unicode_is_refused(stack: Stack, content: bytes) -> None:
    answer = stack.ask(
        "POST", stack.url("eu-west", "/comments"), content=content, headers={"content-type": "application/json"}
    )
    assert answer.status_code in {400, 422}
    problem_of(answer, answer.status_code)


def test_another_content_type_is_415(stack: Stack) -> None:
    answer = stack.ask("POST", stack.url("us-east", "/comments"), content=b"<x/>", headers={"content-type": "text/xml"})
    problem_of(answer, 415)


def test_a_body_over_the_limit_is_413(stack: Stack) -> None:
    content = json.dumps({"thread": "t", "body": "x" * 300_000}).encode()
    answer = stack.ask(
        "POST", stack.url("us-east", "/comments"), content=content, headers={"content-type": "application/json"}
    )
    problem_of(answer, 413)


def test_a_header_of_a_megabyte_is_431(stack: Stack) -> None:
    answer = stack.ask("GET", stack.url("us-east", "/comments?thread=t"), headers={"x-large": "y" * 1_000_000})
    problem_of(answer, 431)


def test_a_reply_below_the_greatest_depth_is_422(stack: Stack) -> None:
    parent = stack.post("us-east", "0", thread="deep").json()["id"]
    answer = stack.post("us-east", "deeper", thread="deep", parent=parent)
    for _ in range(100):
        if answer.status_code != 201:
            break
        answer = stack.post("us-east", "deeper", thread="deep", parent=answer.json()["id"])
    assert "too-deep" in problem_of(answer, 422)["type"]


@pytest.mark.parametrize("method", ["POST", "GET"])
def test_an_unknown_site_is_404(stack: Stack, method: str) -> None:
    url = f"{stack.edges['eu-west']}/v1/sites/{uuid.uuid4()}/comments"
    answer = (
        stack.ask("POST", url, json={"thread": "t", "body": "x"})
        if method == "POST"
        else stack.ask("GET", url, params={"thread": "t"})
    )
    problem_of(answer, 404)


@pytest.mark.parametrize("path", ["/nowhere", "/v1/nowhere", "/metrics", "/v1/sites/not-an-id/comments?thread=t"])
def test_an_unknown_route_is_a_problem(stack: Stack, path: str) -> None:
    answer = stack.ask("GET", stack.edges["us-east"] + path)
    assert answer.status_code in {404, 422}
    problem_of(answer, answer.status_code)


def test_a_wrong_method_is_405_with_the_allowed_ones(stack: Stack) -> None:
    answer = stack.ask("PUT", stack.url("us-east", "/comments"), json={})
    problem_of(answer, 405)
    assert "POST" in answer.headers["allow"]


def test_an_unknown_method_is_501_and_options_is_answered(stack: Stack) -> None:
    problem_of(stack.ask("QUERY", stack.url("us-east", "/comments")), 501)
    assert stack.ask("OPTIONS", stack.url("us-east", "/comments")).headers["allow"] == "POST, GET, HEAD, OPTIONS"


@pytest.mark.parametrize("cursor", ["x", "AAAA", "." * 500, "é"])
def test_an_invalid_cursor_is_422(stack: Stack, cursor: str) -> None:
    answer = stack.get("ap-south", "/comments", params={"thread": "t", "cursor": cursor})
    problem_of(answer, 422)


def test_a_cursor_of_another_thread_is_422(stack: Stack) -> None:
    made = [stack.post("us-east", f"{number}", thread="cursor-a").json()["id"] for number in range(3)]
    stack.until_visible("us-east", made[-1])
    cursor = stack.get("us-east", "/comments", params={"thread": "cursor-a", "limit": 1}).json()["next"]
    assert stack.get("us-east", "/comments", params={"thread": "cursor-a", "cursor": cursor}).status_code == 200
    problem_of(stack.get("us-east", "/comments", params={"thread": "cursor-b", "cursor": cursor}), 422)


def test_site_creation_needs_the_admin_key(stack: Stack) -> None:
    for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": f"Basic {stack.admin_key}"}):
        answer = stack.ask(
            "POST", f"{stack.edges['us-east']}/v1/sites", json={"name": "x", "origins": []}, headers=headers
        )
        problem_of(answer, 401)


def test_an_edit_without_a_valid_key_is_401(stack: Stack) -> None:
    made = stack.post("us-east", "Mine.", thread="keys")
    url = stack.url("us-east", f"/comments/{made.json()['id']}")
    for headers in ({}, {"authorization": "Bearer psk_wrong"}):
        answer = stack.ask("PATCH", url, json={"body": "Yours."}, headers=headers | {"if-match": made.headers["etag"]})
        problem_of(answer, 401)


def test_an_edit_needs_the_current_version(stack: Stack) -> None:
    made = stack.post("us-east", "One.", thread="versions")
    url = stack.url("us-east", f"/comments/{made.json()['id']}")
    key = {"authorization": f"Bearer {stack.api_key}"}
    problem_of(stack.ask("PATCH", url, json={"body": "Two."}, headers=key), 428)
    first = stack.ask("PATCH", url, json={"body": "Two."}, headers=key | {"if-match": made.headers["etag"]})
    assert first.status_code == 200
    second = stack.ask("PATCH", url, json={"body": "Three."}, headers=key | {"if-match": made.headers["etag"]})
    problem_of(second, 412)


def test_a_stale_epoch_at_the_write_api_is_503(stack: Stack) -> None:
    leader = stack.status()["cells"][0]["leader"]
    topology = json.loads((stack.data / "regions" / leader / "topology.json").read_bytes())
    address = next(region["write_api"] for region in topology["regions"] if region["name"] == leader)
    answer = stack.ask("POST",
        f"http://{address}/v1/sites/{stack.site}/comments",
        json={"thread": "t", "body": "x"}, headers={"palaver-epoch": "999"},
    )  # fmt: skip
    assert problem_of(answer, 503)["type"].endswith("/stale-epoch")
    assert int(answer.headers["retry-after"]) >= 1


def test_a_client_cannot_choose_the_epoch(stack: Stack) -> None:
    answer = stack.ask(
        "POST",
        stack.url("eu-west", "/comments"),
        json={"thread": "t", "body": "x"},
        headers={"palaver-epoch": "999"},
    )
    assert answer.status_code == 201


def test_an_edge_serves_on_after_bytes_that_are_not_http(stack: Stack) -> None:
    edge = urlsplit(stack.edges["us-east"])
    with socket.create_connection((edge.hostname, edge.port), timeout=10) as connection:
        connection.sendall(b"\x16\x03\x01 not http\r\n\r\n")
        connection.recv(4096)
    assert stack.get("us-east", "/comments", params={"thread": "t"}).status_code == 200

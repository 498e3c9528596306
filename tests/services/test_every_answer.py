"""Provokes every documented pair of route and status, at a real edge in front of both APIs with real databases.

The pairs come from the OpenAPI document. A documented pair without a case here fails, and so does a case whose answer
differs from the document (`tests/answers.py`). A second edge has no backend and a short timeout for requests, and a
third edge accepts one request a second.
"""

import asyncio
import contextlib
import re
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from http import HTTPStatus
from typing import Any, Final

import httpx
import pytest
import pytest_asyncio

from services.api import application
from services.api.openapi import openapi_document
from services.api.requests import RequestLimitMiddleware
from services.telemetry.http_server import bind, serve_http
from services.telemetry.middleware import AsgiApp, Receive, Scope, Send
from tests import servers
from tests.answers import ELSEWHERE, Answers, Pair, read_answer
from tests.regions.edge_harness import EdgeHarness, edge_harness
from tests.services.read_api.conftest import Writer, running_api
from tests.services.write_api.conftest import ADMIN, write_api

pytestmark = [pytest.mark.integration, pytest.mark.asyncio(loop_scope="module")]

DOCUMENT: Final = openapi_document()
PAIRS: Final[list[Pair]] = list(Answers(DOCUMENT).pairs)
NOWHERE: Final = "/v1/nowhere"
FAULT: Final = "x-fault"
LARGE: Final = b"x" * 200_000
KEY: Final = "https://example.com/a"
UNLIMITED: Final[Mapping[str, Any]] = {"client_requests_per_s": 0, "client_writes_per_s": 0}
WRITES: Final = ("POST", "PUT", "PATCH", "DELETE")


class Faulty(RequestLimitMiddleware):
    """Raises an unexpected exception in requests that have the header `FAULT`."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if any(name == FAULT.encode() for name, _ in scope["headers"]):
            raise RuntimeError("a fault that nobody foresaw")
        await super().__call__(scope, receive, send)


@dataclass(frozen=True, kw_only=True)
class Ask:
    """A request that succeeds. A case changes parts of it."""

    method: str
    path: str
    query: Mapping[str, str] = field(default_factory=dict[str, str])
    headers: Mapping[str, str] = field(default_factory=dict[str, str])
    body: object = None

    def but(self, **changes: Any) -> "Ask":
        """Return a copy with other fields. Headers are added; a header whose value is None is removed."""
        headers = {**self.headers, **changes.pop("headers", {})}
        return replace(self, headers={name: value for name, value in headers.items() if value is not None}, **changes)


@dataclass(kw_only=True)
class Stand:
    """Both APIs behind an edge, an edge without backends, an edge with a low rate limit, and the known ids."""

    edge: EdgeHarness
    dead: EdgeHarness
    strict: EdgeHarness
    answers: Answers
    ledger: servers.PostgresServer
    known: dict[str, str]
    late: dict[tuple[str, str], httpx.Response] = field(default_factory=dict[tuple[str, str], httpx.Response])

    def ask_of(self, method: str, template: str) -> Ask:
        """Return a request of an operation that succeeds."""
        if template == ELSEWHERE:
            return Ask(method="GET", path=NOWHERE)
        # Reads use the site in the view, writes the site in the ledger: no replicator copies between the two here.
        of_ledger = method in WRITES or template in {"/v1/sites", "/v1/sites/{site}"}
        site, comment = ("site", "comment") if of_ledger else ("view_site", "view_comment")
        path = template.replace("{site}", self.known[site]).replace("{comment}", self.known[comment])
        ask = Ask(method=method, path=path)
        operation = DOCUMENT["paths"][template][method.lower()]
        headers: dict[str, str] = {}
        if operation["security"]:
            scheme = next(iter(operation["security"][0]))
            headers = dict(ADMIN) if scheme == "admin" else {"authorization": f"Bearer {self.known['api_key']}"}
        if any(one["name"] == "If-Match" for one in operation["parameters"]):
            headers["if-match"] = "*"
        query = {"thread": KEY} if any(one["name"] == "thread" for one in operation["parameters"]) else {}
        body = operation.get("requestBody", {"content": {"application/json": {"example": None}}})
        return replace(ask, headers=headers, query=query, body=body["content"]["application/json"]["example"])

    async def send(self, ask: Ask, *, to: EdgeHarness | None = None, content: bytes | None = None) -> httpx.Response:
        """Send a request to an edge, and check the answer."""
        answer = await (to or self.edge).client.request(
            ask.method, ask.path, params=ask.query or None, headers=dict(ask.headers), content=content,
            json=None if content is not None else ask.body,
        )  # fmt: skip
        self.answers.check(answer)
        return answer

    async def talk(self, ask: Ask, lines: bytes, *, to: EdgeHarness | None = None) -> httpx.Response:
        """Send these header lines unchanged, read one answer, and check it."""
        port = (to or self.edge).settings.listen.port
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        request = f"{ask.method} {ask.path} HTTP/1.1\r\nhost: test\r\n".encode() + lines
        writer.write(request)
        async with asyncio.timeout(20):
            head = await reader.readuntil(b"\r\n\r\n")
            length = re.search(rb"content-length: ([0-9]+)", head.lower())
            assert length is not None
            answer = read_answer(request, head + await reader.readexactly(int(length[1])))
        writer.close()
        self.answers.check(answer)
        return answer

    async def too_late(self, method: str, template: str) -> httpx.Response:
        """Send an incomplete request to each route, so that all time out together; return the answer of one."""
        if not self.late:
            routes = dict.fromkeys((method, template) for method, template, _ in PAIRS)
            stalling = [self.talk(self.ask_of(*route), b"content-length: 2\r\n\r\n{", to=self.dead) for route in routes]
            self.late = dict(zip(routes, await asyncio.gather(*stalling), strict=True))
        return self.late[method, template]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stand(
    ledger_server: servers.PostgresServer, view_server: servers.PostgresServer, page_cache: servers.RedisServer
) -> AsyncGenerator[Stand]:
    async with contextlib.AsyncExitStack() as stack:
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        patch.setattr(application, "RequestLimitMiddleware", Faulty)
        edge = await stack.enter_async_context(edge_harness(**UNLIMITED))
        dead = await stack.enter_async_context(edge_harness(**UNLIMITED, request_s=1))
        strict = await stack.enter_async_context(edge_harness(client_requests_per_s=1))
        for nobody_leads in (dead, strict):
            await nobody_leads.configurator.apply(None, nobody_leads.admin)
        for backend in (*edge.backends.values(), *dead.backends.values(), *strict.backends.values()):
            await backend.stop()
        writer = Writer(view_server, page_cache)
        view_server.sql("INSERT INTO sites (id, name, origins, version) VALUES (%s, 'S', '{}', 1)", writer.site)
        view_comment = writer.thread(KEY).add()
        read = await stack.enter_async_context(running_api(writer))
        write = await stack.enter_async_context(write_api(ledger_server.url(user="palaver_writer")))
        assert write.app is not None
        for kind, app in (("read_api", read.app), ("write_api", write.app)):
            await stack.enter_async_context(_serving(app, edge.deployment.ports["us-east"][kind]))
        site = await write.site()
        comment = await write.post(site["id"])
        known = {"site": site["id"], "api_key": site["api_key"], "comment": comment.json()["id"]}
        known |= {"view_site": str(writer.site), "view_comment": str(view_comment)}
        async with asyncio.timeout(20):
            while not (document := await edge.client.get("/v1/openapi.json")).is_success:  # noqa: ASYNC110 - Envoy polls
                await asyncio.sleep(0.05)
        answers = Answers(document.json())
        yield Stand(edge=edge, dead=dead, strict=strict, answers=answers, ledger=ledger_server, known=known)


@contextlib.asynccontextmanager
async def _serving(app: AsgiApp, port: int) -> AsyncGenerator[None]:
    task = asyncio.ensure_future(serve_http(app, bind(f"127.0.0.1:{port}")))
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


Case = Callable[[Stand, str, str], Awaitable[httpx.Response]]


async def _succeeds(stand: Stand, method: str, template: str) -> httpx.Response:
    return await stand.send(stand.ask_of(method, template))


async def _unchanged(stand: Stand, method: str, template: str) -> httpx.Response:
    ask = stand.ask_of(method, template)
    etag = (await stand.send(ask)).headers["etag"]
    return await stand.send(ask.but(headers={"if-none-match": etag}))


async def _malformed(stand: Stand, method: str, template: str) -> httpx.Response:
    return await stand.talk(stand.ask_of(method, template), b"content-length: x\r\n\r\n")


async def _too_late(stand: Stand, method: str, template: str) -> httpx.Response:
    return await stand.too_late(method, template)


async def _too_large(stand: Stand, method: str, template: str) -> httpx.Response:
    return await stand.send(stand.ask_of(method, template), content=LARGE)


async def _headers_too_large(stand: Stand, method: str, template: str) -> httpx.Response:
    return await stand.send(stand.ask_of(method, template).but(headers={"x-large": "x" * 70_000}))


async def _fault(stand: Stand, method: str, template: str) -> httpx.Response:
    return await stand.send(stand.ask_of(method, template).but(headers={FAULT: "1"}))


async def _no_such_encoding(stand: Stand, method: str, template: str) -> httpx.Response:
    return await stand.talk(stand.ask_of(method, template), b"transfer-encoding: gzip, chunked\r\n\r\n")


async def _nobody_there(stand: Stand, method: str, template: str) -> httpx.Response:
    return await stand.send(stand.ask_of(method, template), to=stand.dead)


async def _too_many(stand: Stand, method: str, template: str) -> httpx.Response:
    ask = stand.ask_of(method, template)
    answer = await stand.send(ask, to=stand.strict)
    for _ in range(50):
        if answer.status_code != HTTPStatus.TOO_MANY_REQUESTS:
            answer = await stand.send(ask, to=stand.strict)
    return answer


async def _without_key(stand: Stand, method: str, template: str) -> httpx.Response:
    return await stand.send(stand.ask_of(method, template).but(headers={"authorization": None}))


async def _unknown(stand: Stand, method: str, template: str) -> httpx.Response:
    ask = stand.ask_of(method, template)
    last = template.count("/") - (0 if template.endswith("}") else 1)
    parts = ask.path.split("/")
    parts[last] = str(uuid.uuid4())
    return await stand.send(ask.but(path="/".join(parts)))


async def _no_site_id(stand: Stand, method: str, template: str) -> httpx.Response:
    return await stand.send(stand.ask_of(method, template).but(path=template.replace("{site}", "x")))


async def _no_json(stand: Stand, method: str, template: str) -> httpx.Response:
    ask = stand.ask_of(method, template).but(headers={"content-type": "text/plain"})
    return await stand.send(ask, content=b"{}")


async def _invalid_body(stand: Stand, method: str, template: str) -> httpx.Response:
    return await stand.send(stand.ask_of(method, template).but(body={}))


async def _invalid_query(stand: Stand, method: str, template: str) -> httpx.Response:
    return await stand.send(stand.ask_of(method, template).but(query={"x": "1"}))


async def _invalid_if_match(stand: Stand, method: str, template: str) -> httpx.Response:
    return await stand.send(stand.ask_of(method, template).but(headers={"if-match": '"1", "2"'}))


async def _other_version(stand: Stand, method: str, template: str) -> httpx.Response:
    return await stand.send(stand.ask_of(method, template).but(headers={"if-match": '"99"'}))


async def _without_if_match(stand: Stand, method: str, template: str) -> httpx.Response:
    return await stand.send(stand.ask_of(method, template).but(headers={"if-match": None}))


async def _deletes(stand: Stand, method: str, template: str) -> httpx.Response:
    posted = await stand.send(stand.ask_of("POST", "/v1/sites/{site}/comments"))
    return await stand.send(stand.ask_of(method, template).but(path=posted.headers["location"]))


async def _closed_thread(stand: Stand, method: str, template: str) -> httpx.Response:
    ask = stand.ask_of(method, template)
    closed = ask.but(body={"thread": "closed", "body": "x"})
    await stand.send(closed)
    stand.ledger.sql("UPDATE palaver.threads SET state = 'closed' WHERE key = 'closed'")
    return await stand.send(closed)


async def _read_only_thread(stand: Stand, method: str, template: str) -> httpx.Response:
    ask = stand.ask_of("POST", "/v1/sites/{site}/comments").but(body={"thread": "read-only", "body": "x"})
    posted = await stand.send(ask)
    stand.ledger.sql("UPDATE palaver.threads SET state = 'read_only' WHERE key = 'read-only'")
    return await stand.send(stand.ask_of(method, template).but(path=posted.headers["location"] + "/vote"))


async def _no_such_method(stand: Stand, method: str, template: str) -> httpx.Response:
    del method, template
    return await stand.send(Ask(method="PUT", path=f"/v1/sites/{stand.known['site']}/comments"))


GENERAL: Final[Mapping[int, Case]] = {
    200: _succeeds,
    201: _succeeds,
    204: _succeeds,
    304: _unchanged,
    400: _malformed,
    401: _without_key,
    404: _unknown,
    408: _too_late,
    412: _other_version,
    413: _too_large,
    415: _no_json,
    422: _invalid_body,
    428: _without_if_match,
    429: _too_many,
    431: _headers_too_large,
    500: _fault,
    501: _no_such_encoding,
    503: _nobody_there,
}
"""The case that provokes a status, for every route."""

OF_ROUTE: Final[Mapping[Pair, Case]] = {
    ("DELETE", "/v1/sites/{site}/comments/{comment}", 204): _deletes,
    ("DELETE", "/v1/sites/{site}/comments/{comment}", 422): _invalid_if_match,
    ("POST", "/v1/sites/{site}/comments", 409): _closed_thread,
    ("POST", "/v1/sites/{site}/preview", 404): _no_site_id,
    ("PUT", "/v1/sites/{site}/comments/{comment}/vote", 409): _read_only_thread,
    (ELSEWHERE, ELSEWHERE, 404): _succeeds,
    (ELSEWHERE, ELSEWHERE, 405): _no_such_method,
}


def case_of(pair: Pair) -> Case | None:
    method, _, status = pair
    if pair in OF_ROUTE:
        return OF_ROUTE[pair]
    return _invalid_query if method == "GET" and status == 422 else GENERAL.get(status)


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: f"{pair[0] or 'other'} {pair[1]} {pair[2]}")
async def test_each_documented_pair_of_route_and_status_occurs_as_documented(stand: Stand, pair: Pair) -> None:
    case = case_of(pair)
    assert case is not None, "documented, and no case here brings it about"
    method, template, status = pair
    answer = await case(stand, method, template)
    assert answer.status_code == status, answer.text
    assert pair in stand.answers.seen


async def test_the_document_that_is_served_is_the_one_that_the_cases_come_from(stand: Stand) -> None:
    served = await stand.edge.client.get("/v1/openapi.json")
    assert served.json() == DOCUMENT

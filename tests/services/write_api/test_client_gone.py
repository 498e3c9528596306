"""Tests that a write does not begin if its client has disconnected before the write gets a ledger connection."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator

import httpx
import orjson
import pytest

from services.telemetry.http_protocol import client_is_gone
from services.telemetry.http_server import bind, serve_http
from services.telemetry.middleware import AsgiApp, Receive, Scope, Send
from services.write_api import pool as pools
from tests import servers
from tests.services.write_api.conftest import ADMIN, write_api
from tests.services.write_api.test_pool import LONG_S, UNTIL_LET_GO, held, held_up
from tests.waiting import until

pytestmark = pytest.mark.integration


@contextlib.asynccontextmanager
async def served(app: AsgiApp) -> AsyncGenerator[int]:
    """Serve an application on a port; yield the port."""
    listener = bind("127.0.0.1:0")
    port: int = listener.getsockname()[1]
    task = asyncio.ensure_future(serve_http(app, listener))
    try:
        yield port
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def send(port: int, request: httpx.Request) -> asyncio.StreamWriter:
    """Send a request on a new connection. Closing the returned writer disconnects the client."""
    _, writer = await asyncio.open_connection("127.0.0.1", port)
    lines = [f"{request.method} {request.url.raw_path.decode()} HTTP/1.1"]
    lines += [f"{name}: {value}" for name, value in request.headers.items()]
    writer.write("\r\n".join([*lines, "", ""]).encode() + request.content)
    await writer.drain()
    return writer


async def test_no_write_begins_for_a_client_that_has_disconnected(
    ledger_server: servers.PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pools, "ACQUIRE_TIMEOUT_S", LONG_S)
    async with write_api(ledger_server.url(user="palaver_writer"), pool_size=1, write_timeout_s=LONG_S) as api:
        site = await api.site()
        edited, deleted = [(await api.post(site["id"])).headers["location"] for _ in range(2)]
        sites, comments = "/v1/sites", f"/v1/sites/{site['id']}/comments"
        own = {"authorization": f"Bearer {site['api_key']}"}
        build, new = api.http.build_request, {"thread": "left", "body": "b"}
        requests = [
            build("POST", comments, json=new),
            build("POST", comments, json=new, headers={"idempotency-key": "key"}),
            build("PATCH", edited, json={"body": "x"}, headers={**own, "if-match": "*"}),
            build("DELETE", deleted, headers=own),
            build("POST", sites, json={"name": "Left", "origins": []}, headers=ADMIN),
        ]
        # A client that stays connected sends the same key. Its write is no replay, because the first did not begin.
        stays = build("POST", comments, json=new, headers={"idempotency-key": "key"})
        scopes: list[Scope] = []
        app = api.app
        assert app is not None

        async def noting(scope: Scope, receive: Receive, send: Send) -> None:
            scopes.append(scope)
            await app(scope, receive, send)

        async with served(noting) as port:
            with held(ledger_server):
                holding = asyncio.create_task(api.pool.fetch(UNTIL_LET_GO))
                await until(lambda: held_up(ledger_server) == 1)
                writers = [await send(port, request) for request in requests]
                await until(lambda: len(scopes) == len(requests))
                staying = asyncio.create_task(api.http.send(stays))
                assert not any(client_is_gone(scope) for scope in scopes)
                for writer in writers:
                    writer.close()
                await until(lambda: all(client_is_gone(scope) for scope in scopes))
            await holding
            assert (await staying).status_code == 201

        comments_of = f"FROM comments c JOIN threads t ON t.id = c.thread_id WHERE t.site_id = '{site['id']}'"
        assert ledger_server.sql(f"SELECT count(*) {comments_of} AND t.key = 'left'") == [(1,)]
        assert ledger_server.sql(f"SELECT DISTINCT c.version, c.state {comments_of}") == [(1, "approved")]
        assert ledger_server.sql("SELECT 1 FROM sites WHERE name = 'Left'") == []
        assert orjson.loads((await staying).content)["body"] == "b"

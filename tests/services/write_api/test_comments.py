"""Tests posts, edits and deletes through the whole application of the write API, on a real ledger."""

import asyncio
import contextlib
import json
import uuid
from collections.abc import Generator
from functools import partial

import pytest

from regions.position import decode_token
from services.api.leader_port import STRONG_POSITION_PATH
from services.write_api import pool as pools
from tests import servers
from tests.services.write_api.conftest import ADMIN, OURS, UNKNOWN, Api, given_up_after, leadership, problem, write_api
from tests.waiting import until

pytestmark = pytest.mark.integration


async def test_a_post_returns_the_whole_comment(api: Api) -> None:
    site = (await api.site())["id"]
    answer = await api.post(
        site,
        thread="HTTP://Example.com:80/a/?utm_source=x#top",
        body="*hi*",
        author={"name": "Ann", "email": "ann@example.com", "url": "https://ann.example"},
    )
    assert answer.status_code == 201
    comment = answer.json()
    identity = uuid.UUID(comment.pop("id"))
    assert identity.version == 7
    assert comment.pop("created_at").endswith("Z")
    assert comment == {
        "thread": "https://example.com/a",
        "parent": None,
        "author": {"id": None, "name": "Ann", "url": "https://ann.example"},
        "body": "*hi*",
        "html": "<p><em>hi</em></p>",
        "edited_at": None,
        "version": 1,
        "state": "approved",
        "score": 0,
        "votes": {"up": 0, "down": 0},
        "replies": {"count": 0, "items": [], "next": None},
    }
    assert answer.headers["location"] == f"/v1/sites/{site}/comments/{identity}"
    assert answer.headers["etag"].startswith('"1-')
    assert answer.headers["palaver-position"].startswith("main.1.")
    assert "ann@example.com" not in answer.text


async def test_a_replay_answers_the_same_bytes_even_after_an_edit(api: Api) -> None:
    site = await api.site()
    first = await api.post(site["id"], {"idempotency-key": "k"}, author={"name": "Ann"})
    edited = await api.http.patch(
        first.headers["location"],
        json={"body": "changed"},
        headers={"authorization": f"Bearer {site['api_key']}", "if-match": first.headers["etag"]},
    )
    assert edited.status_code == 200
    second = await api.post(site["id"], {"idempotency-key": "k"}, author={"name": "Ann"})
    assert (second.status_code, second.content) == (first.status_code, first.content)
    for name in ("etag", "location"):
        assert second.headers[name] == first.headers[name]


async def test_one_key_sent_twenty_times_at_once_makes_one_comment(
    api: Api, ledger_server: servers.PostgresServer
) -> None:
    site = (await api.site())["id"]
    answers = await asyncio.gather(*(api.post(site, {"idempotency-key": "same"}) for _ in range(20)))
    assert {answer.status_code for answer in answers} == {201}
    assert len({answer.content for answer in answers}) == 1
    assert ledger_server.sql("SELECT count(*) FROM palaver.comments WHERE site_id = %s", site) == [(1,)]


async def test_a_key_used_with_another_body_is_refused(api: Api) -> None:
    site = (await api.site())["id"]
    await api.post(site, {"idempotency-key": "k"})
    answer = await api.post(site, {"idempotency-key": "k"}, body="other")
    assert (answer.status_code, problem(answer)) == (422, "idempotency-key-reused")


async def test_a_request_with_another_epoch_than_the_serving_one_is_refused(api: Api) -> None:
    site = (await api.site())["id"]
    assert (await api.post(site, {"palaver-epoch": "1"})).status_code == 201
    refused = [await api.post(site, {"palaver-epoch": epoch}) for epoch in ("2", "0", "x", "")]
    api.leadership = leadership(epoch=2)
    refused.append(await api.post(site, {"palaver-epoch": "2"}))
    api.leadership = leadership(leader="eu-west")
    refused.append(await api.post(site, {"palaver-epoch": "1"}))
    api.leadership = leadership(phase="establishing")
    refused.append(await api.post(site))
    api.leadership = None
    refused.append(await api.post(site))
    assert {problem(answer) for answer in refused} == {"stale-epoch"}
    assert {answer.status_code for answer in refused} == {503}
    assert all(answer.headers["retry-after"] == "1" for answer in refused)
    assert all(answer.headers["palaver-repeat"] == "now" for answer in refused)


@pytest.mark.parametrize("method", ["PATCH", "DELETE"])
@pytest.mark.parametrize("never", ['W/"1-0-0"', '"x"', "", '"9-0-0"'])
async def test_a_false_precondition_is_reported_only_if_the_request_would_otherwise_succeed(
    api: Api, method: str, never: str
) -> None:
    """RFC 9110, section 13.2.1."""
    site = await api.site()
    path = (await api.post(site["id"])).headers["location"]
    key = {"authorization": f"Bearer {site['api_key']}"}

    async def ask(path: str, headers: dict[str, str], content: bytes = b'{"body":"second"}') -> tuple[int, str]:
        headers = {**headers, "if-match": never, "content-type": "application/json"}
        answer = await api.http.request(method, path, content=content, headers=headers)
        return answer.status_code, problem(answer)

    assert await ask(path, {}) == (401, "unauthorized")
    assert await ask(path, {"authorization": "Bearer another"}) == (401, "unauthorized")
    assert await ask(path.replace(site["id"], UNKNOWN), key) == (404, "unknown-site")
    assert await ask(f"/v1/sites/{site['id']}/comments/{UNKNOWN}", key) == (404, "unknown-comment")
    if method == "PATCH":
        assert await ask(path, key, b"[]") == (422, "invalid-request")
    assert await ask(path, key) == (412, "version-mismatch")


async def test_an_edit_needs_the_key_and_the_version(api: Api) -> None:
    site, other = await api.site(), await api.site()
    posted = await api.post(site["id"])
    path, etag = posted.headers["location"], posted.headers["etag"]
    key = {"authorization": f"Bearer {site['api_key']}"}

    async def edit(headers: dict[str, str], body: object = None) -> tuple[int, str]:
        answer = await api.http.patch(path, json=body or {"body": "second"}, headers=headers)
        return answer.status_code, problem(answer)

    assert await edit({"if-match": etag}) == (401, "unauthorized")
    assert await edit({"authorization": f"Bearer {other['api_key']}", "if-match": etag}) == (401, "unauthorized")
    assert await edit(key) == (428, "precondition-required")
    assert await edit({**key, "if-match": '"9-0-0"'}) == (412, "version-mismatch")
    assert await edit({**key, "if-match": 'W/"1-0-0"'}) == (412, "version-mismatch")
    assert await edit({**key, "if-match": '"1-0-0", "2"'}) == (422, "invalid-request")
    assert await edit({**key, "if-match": etag}, {"body": "x", "state": "spam"}) == (422, "invalid-request")
    answer = await api.http.patch(path, json={"body": "second"}, headers={**key, "if-match": etag})
    assert answer.status_code == 200
    assert (answer.json()["body"], answer.json()["version"]) == ("second", 2)
    assert answer.json()["edited_at"].endswith("Z")
    assert answer.json()["created_at"] == posted.json()["created_at"]
    assert await edit({**key, "if-match": etag}, {"body": "third"}) == (412, "version-mismatch")
    # A repetition of an edit that took place gets the same answer with the same entity tag.
    again = await api.http.patch(path, json={"body": "second"}, headers={**key, "if-match": etag})
    assert (again.status_code, again.content) == (200, answer.content)
    assert again.headers["etag"] == answer.headers["etag"]


async def test_an_edit_returns_the_fields_of_the_ledger_and_an_etag_for_the_next_edit(api: Api) -> None:
    site = await api.site()
    key = {"authorization": f"Bearer {site['api_key']}"}
    posted = await api.post(site["id"])
    await api.post(site["id"], parent=posted.json()["id"])
    path, etag = posted.headers["location"], posted.headers["etag"]
    for version in (2, 3):
        edited = await api.http.patch(path, json={"body": f"*{version}*"}, headers={**key, "if-match": etag})
        etag = edited.headers["etag"]
        said = edited.json()
        # Only views have the counts of replies and votes: the answer omits these fields.
        assert {name: said[name] for name in posted.json() if name in said} == said
        assert posted.json().keys() - said.keys() == {"replies", "score", "votes"}
        assert (said["version"], said["html"], etag) == (version, f"<p><em>{version}</em></p>", f'"{version}"')


async def test_a_site_is_read_at_its_location_with_its_key(api: Api) -> None:
    body = {"name": "Mine", "origins": ["https://b.example", "https://a.example"]}
    made = await api.http.post("/v1/sites", json=body, headers=ADMIN)
    other = await api.site()
    location = made.headers["location"]
    read = await api.http.get(location, headers={"authorization": f"Bearer {made.json()['api_key']}"})
    assert (read.status_code, read.json()) == (200, {"id": made.json()["id"], **body})
    assert read.headers["cache-control"] == "no-store"
    for key in ({}, {"authorization": f"Bearer {other['api_key']}"}, ADMIN):
        assert problem(await api.http.get(location, headers=key)) == "unauthorized"
    for nobody in (UNKNOWN, "x"):
        refused = await api.http.get(f"/v1/sites/{nobody}", headers=ADMIN)
        assert (refused.status_code, problem(refused)) == (404, "unknown-site")
    api.leadership = leadership(leader="eu-west")
    away = await api.http.get(location, headers=ADMIN)
    assert (away.status_code, problem(away)) == (503, "stale-epoch")


async def test_a_read_of_a_site_is_unavailable_while_the_ledger_does_not_answer(
    ledger_server: servers.PostgresServer,
) -> None:
    async with write_api(ledger_server.url(user="palaver_writer")) as api:
        site = await api.site()
        key = {"authorization": f"Bearer {site['api_key']}"}
        with servers.psycopg.connect(ledger_server.url()) as blocker:
            blocker.execute("LOCK TABLE palaver.sites IN ACCESS EXCLUSIVE MODE")
            with given_up_after(api.pool, 0.2):
                late = await api.http.get(f"/v1/sites/{site['id']}", headers=key)
            blocker.rollback()
        assert (late.status_code, problem(late)) == (503, "ledger-unavailable")


async def test_a_deleted_comment_refuses_edits_and_replies_and_can_be_deleted_again(api: Api) -> None:
    site = await api.site()
    posted = await api.post(site["id"])
    key = {"authorization": f"Bearer {site['api_key']}"}
    for _ in range(2):
        answer = await api.http.delete(posted.headers["location"], headers=key)
        assert (answer.status_code, answer.content) == (204, b"")
        assert answer.headers["palaver-position"].startswith("main.1.")
    edit = await api.http.patch(posted.headers["location"], json={"body": "x"}, headers={**key, "if-match": "*"})
    assert (edit.status_code, problem(edit)) == (404, "unknown-comment")
    reply = await api.post(site["id"], parent=posted.json()["id"])
    assert (reply.status_code, problem(reply)) == (422, "unknown-parent")


async def test_replies_beyond_the_depth_are_refused_by_name(api: Api) -> None:
    site = (await api.site())["id"]
    parent = None
    for _ in range(3):
        answer = await api.post(site, parent=parent)
        assert answer.status_code == 201
        parent = answer.json()["id"]
    answer = await api.post(site, parent=parent)
    assert (answer.status_code, problem(answer)) == (422, "too-deep")
    assert "2 levels" in answer.json()["detail"]


async def test_sites_need_the_admin_key_and_are_created_once_for_a_key(api: Api) -> None:
    body = {"name": "Mine", "origins": ["https://a.example", "http://localhost:8000"]}
    assert problem(await api.http.post("/v1/sites", json=body)) == "unauthorized"
    wrong = await api.http.post("/v1/sites", json=body, headers={"authorization": "Bearer wrong"})
    assert (problem(wrong), wrong.headers["www-authenticate"]) == ("unauthorized", "Bearer")
    headers = {"authorization": "Bearer admin-key-of-tests", "idempotency-key": str(uuid.uuid4())}
    first, second = [await api.http.post("/v1/sites", json=body, headers=headers) for _ in range(2)]
    assert first.status_code == second.status_code == 201
    assert first.content == second.content
    assert first.json()["api_key"].startswith("psk_")
    assert first.json()["token_secret"] != first.json()["api_key"]


async def test_answers_and_errors_have_cors_headers_for_the_origins_of_the_site(api: Api) -> None:
    site = (await api.site())["id"]
    # The first is answered before the router, the second by a route.
    for method, path in (("POST", f"/v1/sites/{site}/comments"), ("PATCH", f"/v1/sites/{site}/comments/{UNKNOWN}")):
        headers = {"authorization": "Bearer key", "if-match": "*"}
        asked = partial(api.http.request, method, path, json={"x": 1})
        answer = await asked(headers=headers | {"origin": "https://example.com"})
        assert answer.status_code == 422
        assert answer.headers["access-control-allow-origin"] == "https://example.com"
        assert "palaver-position" in answer.headers["access-control-expose-headers"]
        other = await asked(headers=headers | {"origin": "https://evil.example"})
        assert "access-control-allow-origin" not in other.headers
        assert other.headers["vary"] == "origin"


BAD_BODIES = [
    (b"", 400, "malformed-json"),
    (b"{", 400, "malformed-json"),
    (b"[" * 3000, 400, "malformed-json"),
    (b'{"thread":"a","body":"\xff"}', 400, "malformed-json"),
    (b'{"thread":"a","body":"\\ud800"}', 400, "malformed-json"),
    (b'{"thread":"a","body":"\\u0000"}', 422, "invalid-request"),
    (b'{"thread":"a\\u0000","body":"x"}', 422, "invalid-request"),
    (b"null", 422, "invalid-request"),
    (b'"text"', 422, "invalid-request"),
    (b"{}", 422, "invalid-request"),
    (b'{"thread":"a","body":1}', 422, "invalid-request"),
    (b'{"thread":"a","body":""}', 422, "invalid-request"),
    (b'{"thread":"a","body":"  \\n"}', 422, "invalid-request"),
    (b'{"thread":"","body":"x"}', 422, "invalid-request"),
    (b'{"thread":"a","body":"x","state":"approved"}', 422, "invalid-request"),
    (b'{"thread":"a","body":"x","parent":"no"}', 422, "invalid-request"),
    (b'{"thread":"a","body":"x","author":{"name":"a\\nb"}}', 422, "invalid-request"),
    (b'{"thread":"a","body":"x","author":{"name":"a","email":"x"}}', 422, "invalid-request"),
    (b'{"thread":"a","body":"x","author":{"name":"a","url":"javascript:alert(1)"}}', 422, "invalid-request"),
    (json.dumps({"thread": "k" * 2001, "body": "x"}).encode(), 422, "invalid-request"),
    (json.dumps({"thread": "a", "body": "x" * 1001}).encode(), 422, "body-too-long"),
    (json.dumps({"thread": "a", "body": "x" * 9000}).encode(), 413, "request-too-large"),
    (json.dumps({"thread": "a", "body": "x", "parent": UNKNOWN}).encode(), 422, "unknown-parent"),
]


@pytest.mark.parametrize(("body", "status", "slug"), BAD_BODIES)
async def test_a_bad_body_is_refused_by_name(api: Api, body: bytes, status: int, slug: str) -> None:
    site = (await api.site())["id"]
    answer = await api.http.post(
        f"/v1/sites/{site}/comments", content=body, headers={"content-type": "application/json"}
    )
    assert (answer.status_code, problem(answer)) == (status, slug)


@pytest.mark.parametrize(
    ("method", "path", "headers", "status", "slug"),
    [
        ("POST", f"/v1/sites/{UNKNOWN}/comments", {}, 404, "unknown-site"),
        ("POST", "/v1/sites/not-a-site/comments", {}, 404, "unknown-site"),
        ("POST", f"/v1/sites/{'x' * 36}/comments", {}, 404, "unknown-site"),
        ("POST", f"/v1/sites/{UNKNOWN}/comments", {"content-type": "text/plain"}, 415, "unsupported-media-type"),
        ("POST", f"/v1/sites/{UNKNOWN}/comments", {"idempotency-key": "k" * 256}, 422, "invalid-request"),
        ("POST", f"/v1/sites/{UNKNOWN}/comments", {"idempotency-key": "a b"}, 422, "invalid-request"),
        ("POST", f"/v1/sites/{UNKNOWN}/comments", {"x-large": "x" * 1_000_000}, 431, "headers-too-large"),
        ("PUT", f"/v1/sites/{UNKNOWN}/comments", {}, 405, "method-not-allowed"),
        ("BREW", "/v1/sites", {}, 405, "method-not-allowed"),
        ("GET", "/v1/nothing", {}, 404, "not-found"),
        ("POST", "/v1/sites/", {}, 404, "not-found"),
        ("DELETE", f"/v1/sites/{UNKNOWN}/comments/x", {}, 404, "unknown-comment"),
    ],
)
async def test_a_bad_request_is_refused_by_name(  # noqa: PLR0917 - columns of the table above
    api: Api, method: str, path: str, headers: dict[str, str], status: int, slug: str
) -> None:
    sent = {"content-type": "application/json", **headers}
    answer = await api.http.request(method, path, content=b'{"thread":"a","body":"x"}', headers=sent)
    assert (answer.status_code, problem(answer)) == (status, slug)
    if status == 405:
        assert "POST" in answer.headers["allow"]


async def test_the_api_serves_again_after_the_ledger_restarts(ledger_server: servers.PostgresServer) -> None:
    async with write_api(ledger_server.url(user="palaver_writer")) as api:
        site = (await api.site())["id"]
        await asyncio.gather(*(api.post(site) for _ in range(8)))
        await asyncio.to_thread(ledger_server.stop)
        down = await api.post(site)
        assert (down.status_code, down.headers["retry-after"]) == (503, "1")
        assert problem(down) in ("ledger-unavailable", "outcome-unknown")
        again = await api.post(site)
        assert problem(again) == "ledger-unavailable"
        await asyncio.to_thread(ledger_server.start)
        assert (await api.post(site)).status_code == 201


async def test_a_write_that_times_out_has_an_unknown_outcome_and_continues(
    ledger_server: servers.PostgresServer,
) -> None:
    async with write_api(ledger_server.url(user="palaver_writer")) as api:
        site = (await api.site())["id"]
        with servers.psycopg.connect(ledger_server.url()) as blocker:
            blocker.execute("LOCK TABLE palaver.comments IN EXCLUSIVE MODE")
            with given_up_after(api.pool, 0.2):
                answer = await api.post(site, {"idempotency-key": "slow"})
            assert (answer.status_code, problem(answer)) == (503, "outcome-unknown")
            blocker.rollback()
        replay = await api.post(site, {"idempotency-key": "slow"})
        assert replay.status_code == 201
        assert ledger_server.sql("SELECT count(*) FROM palaver.comments WHERE site_id = %s", site) == [(1,)]


async def test_an_unknown_outcome_states_the_effect_of_a_repetition_of_that_request(
    ledger_server: servers.PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Repeat each request as its answer advises, and compare the result with the advice."""
    monkeypatch.setattr(pools, "LOCK_TIMEOUT_MS", 3_600_000)  # so that the waiting writes are executed in the end
    async with write_api(ledger_server.url(user="palaver_writer")) as api:
        site = await api.site()
        own = {"authorization": f"Bearer {site['api_key']}"}
        edited, deleted, other = [await api.post(site["id"]) for _ in range(3)]
        match = {**own, "if-match": edited.headers["etag"]}
        comments, new = f"/v1/sites/{site['id']}/comments", {"thread": "new", "body": "b"}
        build = api.http.build_request
        requests = {
            "keyed": partial(build, "POST", comments, json=new, headers={"idempotency-key": "unknown"}),
            "not keyed": partial(build, "POST", comments, json=new),
            "edit": partial(build, "PATCH", edited.headers["location"], json={"body": "x"}, headers=match),
            "deletion": partial(build, "DELETE", deleted.headers["location"], headers=own),
            "deletion of one version": partial(
                build, "DELETE", other.headers["location"], headers={**own, "if-match": other.headers["etag"]}
            ),
        }
        details: dict[str, str] = {}
        for name, request in requests.items():
            with servers.psycopg.connect(ledger_server.url()) as blocker:
                blocker.execute("LOCK TABLE palaver.comments IN EXCLUSIVE MODE")
                with given_up_after(api.pool, 0.05):
                    answer = await api.http.send(request())
                blocker.rollback()
            assert problem(answer) == "outcome-unknown", name
            details[name] = answer.json()["detail"]
        assert {name for name, detail in details.items() if "Idempotency-Key" in detail} == {"keyed", "not keyed"}
        assert {name for name, detail in details.items() if "If-Match" in detail} == {"edit"}
        again = {name: await api.http.send(request()) for name, request in requests.items()}
        assert {name: answer.status_code for name, answer in again.items()} == {
            "keyed": 201, "not keyed": 201, "edit": 200, "deletion": 204, "deletion of one version": 204,
        }  # fmt: skip
        versions = ledger_server.sql("SELECT version FROM palaver.comments WHERE id = %s", edited.json()["id"])
        assert versions == [(2,)], "the edit took place once"
        late = await api.http.patch(edited.headers["location"], json={"body": "of somebody else"}, headers=match)
        assert late.status_code == 412
        made = ledger_server.sql(
            "SELECT c.id FROM palaver.comments AS c JOIN palaver.threads AS t ON t.id = c.thread_id"
            " WHERE c.site_id = %s AND t.key = 'new'",
            site["id"],
        )
        assert len(made) == 3, "the post without a key was done twice, as its answer warns"


@pytest.mark.parametrize("way", ["pg_cancel_backend", "pg_terminate_backend"])
async def test_a_cancelled_quorum_wait_is_an_unknown_outcome_and_is_reported_with_its_epoch(
    ledger_server: servers.PostgresServer, way: str
) -> None:
    async with write_api(ledger_server.url(user="palaver_writer")) as api:
        site = (await api.site())["id"]
        with waiting_for_nobody(ledger_server):
            posting = asyncio.ensure_future(api.post(site, {"idempotency-key": way}))
            waiting = "SELECT pid FROM pg_stat_activity WHERE wait_event = 'SyncRep'"
            rows: list[tuple[int]] = []
            for _ in range(500):
                rows = rows or await asyncio.to_thread(ledger_server.sql, waiting)
            ledger_server.sql(f"SELECT {way}(%s)", rows[0][0])
            answer = await posting
        assert (answer.status_code, problem(answer)) == (503, "outcome-unknown")
        assert api.quorum_wait_cancelled == [1]
        # A repetition with the key gets the outcome. The write API reports no write that had its quorum.
        settled = [await api.post(site, {"idempotency-key": way}) for _ in range(2)]
        assert [one.status_code for one in settled] == [201, 201]
        assert settled[0].json()["id"] == settled[1].json()["id"]
        assert ledger_server.sql("SELECT count(*) FROM palaver.comments WHERE site_id = %s", site) == [(1,)]
        assert api.quorum_wait_cancelled == [1]


async def test_an_immediate_shutdown_of_the_ledger_is_not_reported_as_a_cancelled_wait(
    ledger_server: servers.PostgresServer,
) -> None:
    # PostgreSQL warns each connection with the same sqlstate, but no other session can see the waiting transactions.
    async with write_api(ledger_server.url(user="palaver_writer")) as api:
        site = (await api.site())["id"]
        with waiting_for_nobody(ledger_server):
            posting = asyncio.ensure_future(api.post(site, {"idempotency-key": "at-once"}))
            waiting = "SELECT pid FROM pg_stat_activity WHERE wait_event = 'SyncRep'"
            async with asyncio.timeout(10):
                while not await asyncio.to_thread(ledger_server.sql, waiting):
                    assert not posting.done(), posting.result().text
            await asyncio.to_thread(ledger_server.stop_at_once)
            answer = await posting
            await asyncio.to_thread(ledger_server.start)
        assert (answer.status_code, problem(answer)) == (503, "outcome-unknown")
        assert api.quorum_wait_cancelled == []


async def test_a_quorum_wait_that_is_cancelled_after_its_timeout_is_reported(
    ledger_server: servers.PostgresServer,
) -> None:
    async with write_api(ledger_server.url(user="palaver_writer")) as api:
        site = (await api.site())["id"]
        with waiting_for_nobody(ledger_server):
            with given_up_after(api.pool, 0.3):
                answer = await api.post(site)
            assert problem(answer) == "outcome-unknown"
            assert api.quorum_wait_cancelled == []
            # On a busy machine the write may not have reached its commit yet.
            cancel = "SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE wait_event = 'SyncRep'"
            await until(lambda: bool(ledger_server.sql(cancel)))
            await until(lambda: bool(api.quorum_wait_cancelled))


async def test_a_strong_position_is_the_flushed_position_after_a_quorum_has_it(
    api: Api, ledger_server: servers.PostgresServer
) -> None:
    site = (await api.site())["id"]
    posted = await api.post(site)
    answer = await api.http.get(STRONG_POSITION_PATH)
    assert answer.status_code == 200
    cell, position = decode_token(answer.json()["position"])
    assert cell == "main"
    assert position >= decode_token(posted.headers["palaver-position"])[1]
    with waiting_for_nobody(ledger_server):
        refused = await api.http.get(STRONG_POSITION_PATH)
    assert (refused.status_code, problem(refused)) == (503, "ledger-unavailable")


async def test_only_a_region_that_proves_its_leadership_returns_a_strong_position(api: Api) -> None:
    api.proves = False
    refused = [await api.http.get(STRONG_POSITION_PATH)]
    api.proves = True
    api.leadership = leadership(leader="eu-west")
    refused.append(await api.http.get(STRONG_POSITION_PATH))
    assert [(answer.status_code, problem(answer)) for answer in refused] == [(503, "stale-epoch")] * 2


@contextlib.contextmanager
def waiting_for_nobody(ledger_server: servers.PostgresServer) -> Generator[None]:
    """Make every commit wait for a standby that does not exist."""
    ledger_server.sql("ALTER SYSTEM SET synchronous_standby_names = 'ANY 1 (nobody)'")
    ledger_server.sql("SELECT pg_reload_conf()")
    for _ in range(2):
        # Commits wait only after the checkpointer has reloaded the configuration files (regions/member/ledger.py).
        ledger_server.sql("CHECKPOINT")
    try:
        yield
    finally:
        ledger_server.sql("ALTER SYSTEM RESET synchronous_standby_names")
        ledger_server.sql("SELECT pg_reload_conf()")


async def test_a_preview_from_an_edge_of_the_previous_release_is_rendered(api: Api) -> None:
    path = f"/v1/sites/{UNKNOWN}/preview"
    api.leadership = None  # a preview needs no leader
    answer = await api.http.post(path, json={"body": "**b**"}, headers={"palaver-epoch": "7"})
    assert (answer.status_code, answer.json()) == (200, {"html": "<p><strong>b</strong></p>"})
    long = await api.http.post(path, json={"body": "x" * 1001})
    assert (long.status_code, problem(long)) == (422, "body-too-long")


async def test_a_full_pool_answers_overloaded(ledger_server: servers.PostgresServer) -> None:
    async with write_api(ledger_server.url(user="palaver_writer"), pool_size=1) as api:
        site = (await api.site())["id"]
        with servers.psycopg.connect(ledger_server.url()) as blocker:
            blocker.execute("LOCK TABLE palaver.comments IN EXCLUSIVE MODE")
            with given_up_after(api.pool, 0.1):
                stuck = asyncio.ensure_future(api.post(site))
                await until(lambda: bool(ledger_server.sql(f"SELECT pid {OURS} AND wait_event = 'relation'")))
            answers = await asyncio.gather(
                *(api.post(site, {"idempotency-key": f"full-{number}"}) for number in range(20))
            )
            blocker.rollback()
        assert problem(await stuck) == "outcome-unknown"
        assert {problem(answer) for answer in answers} == {"overloaded"}
        # No write ended meanwhile. The edge may repeat the request after a second.
        assert {answer.headers["palaver-repeat"] for answer in answers} == {"1"}
        assert (await api.post(site)).status_code == 201


async def test_a_retry_of_the_edge_is_admitted_in_a_later_epoch(api: Api) -> None:
    site = (await api.site())["id"]
    first, repeated = {"x-envoy-attempt-count": "1"}, {"x-envoy-attempt-count": "2"}
    assert (await api.post(site, {"palaver-epoch": "0"} | repeated)).status_code == 201
    refused = [
        await api.post(site, {"palaver-epoch": "0"} | first),
        await api.post(site, {"palaver-epoch": "2"} | repeated),
        await api.post(site, {"palaver-epoch": "x"} | repeated),
    ]
    api.leadership = leadership(leader="eu-west")
    refused.append(await api.post(site, {"palaver-epoch": "0"} | repeated))
    assert [(answer.status_code, problem(answer)) for answer in refused] == [(503, "stale-epoch")] * 4

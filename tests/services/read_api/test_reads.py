"""Tests consistency levels, single comments, counts, documents, preflights and previews on a real view."""

import asyncio
import contextlib
import uuid
from collections.abc import AsyncGenerator

import httpx
import pytest

from regions.identity import CellId
from regions.position import Position, encode_token
from services.api import previews
from services.api.operations import OPERATIONS
from services.read_api.freshness import Freshness
from services.read_api.invalidations import follow_invalidations
from services.read_api.memory import PageMemory
from services.read_api.view_reader import ViewReader
from services.view import cache
from tests.services.read_api.conftest import CELL, Api, Writer, problem
from tests.waiting import until

pytestmark = pytest.mark.integration

LONG_S = 3600.0


async def test_an_eventual_read_reports_its_age(api: Api, writer: Writer) -> None:
    writer.thread().add()
    token = writer.checkpoint(2, 0x500, age_s=3)
    await until(lambda: api.freshness.applied == Position(2, 0x500))
    answer = await api.page()
    assert answer.headers["palaver-position"] == token
    served, asked, staleness = answer.headers["palaver-consistency"].split("; ")
    assert (served, asked) == ("eventual", "asked=eventual")
    assert 3000 <= int(staleness.removeprefix("staleness-ms=")) < 60_000


async def test_a_session_read_waits_for_its_position_and_skips_older_cached_pages(api: Api, writer: Writer) -> None:
    thread = writer.thread()
    thread.add()
    writer.checkpoint(1, 0x100)
    await api.page()
    api.freshness.session_wait_s = LONG_S
    wanted = encode_token(CELL, Position(1, 0x200))
    reading = asyncio.ensure_future(api.page(headers={"palaver-position": wanted}))
    await until(lambda: api.freshness.waiting == 1)
    thread.add(announce=False)
    await asyncio.to_thread(writer.checkpoint, 1, 0x200)
    answer = await reading
    assert len(answer.json()["comments"]) == 2
    assert answer.headers["palaver-position"] == wanted
    assert answer.headers["palaver-consistency"].startswith("session; asked=session; ")


async def test_an_announced_position_releases_a_session_read_at_once(api: Api, writer: Writer) -> None:
    writer.thread().add()
    api.freshness.session_wait_s = LONG_S
    wanted = encode_token(CELL, Position(1, 0x900))
    reading = asyncio.ensure_future(api.page(headers={"palaver-position": wanted}))
    await until(lambda: api.freshness.waiting == 1)
    writer.redis.publish(cache.CHANNEL, cache.encode_applied(wanted, 0))
    answer = await reading
    assert answer.headers["palaver-consistency"].startswith("session; ")


async def test_a_session_read_whose_position_does_not_arrive_is_labelled_eventual(api: Api, writer: Writer) -> None:
    writer.thread().add()
    writer.checkpoint(1, 0x100)
    headers = {"palaver-position": encode_token(CELL, Position(3, 1)), "palaver-consistency": "session"}
    answer = await api.page(headers=headers)
    assert answer.status_code == 200
    assert answer.headers["palaver-consistency"].startswith("eventual; asked=session; ")


async def test_a_bounded_read_of_an_old_view_is_refused(api: Api, writer: Writer) -> None:
    writer.thread().add()
    writer.checkpoint(1, 0x100, age_s=5)
    await until(lambda: api.freshness.staleness_ms is not None)
    refused = await api.page(headers={"palaver-consistency": "bounded=2.5"})
    assert (refused.status_code, problem(refused), refused.headers["retry-after"]) == (503, "too-stale", "1")
    served = await api.page(headers={"palaver-consistency": "bounded=3600"})
    assert served.headers["palaver-consistency"].startswith("bounded; asked=bounded; ")


STRONG = {"palaver-consistency": "strong"}


async def test_a_strong_read_without_a_proof_is_labelled_eventual(api: Api, writer: Writer) -> None:
    writer.thread().add()
    answer = await api.page(headers=STRONG)
    assert answer.status_code == 200
    assert answer.headers["palaver-consistency"].startswith("eventual; asked=strong; ")


async def test_a_strong_read_waits_for_the_proved_position_and_skips_older_cached_pages(
    api: Api, writer: Writer
) -> None:
    thread = writer.thread()
    thread.add()
    writer.checkpoint(1, 0x100)
    await api.page()
    api.prover.proved = Position(1, 0x200)
    api.freshness.session_wait_s = LONG_S
    reading = asyncio.ensure_future(api.page(headers=STRONG))
    await until(lambda: api.freshness.waiting == 1)
    comment = thread.add(announce=False)
    token = await asyncio.to_thread(writer.checkpoint, 1, 0x200)
    answer = await reading
    assert len(answer.json()["comments"]) == 2
    assert answer.headers["palaver-position"] == token
    assert answer.headers["palaver-consistency"].startswith("strong; asked=strong; ")
    site = f"/v1/sites/{writer.site}"
    alone = await api.http.get(f"{site}/comments/{comment}", headers=STRONG)
    assert alone.headers["palaver-consistency"].startswith("strong; asked=strong; ")
    counts = await api.http.get(f"{site}/counts", params={"thread": thread.key}, headers=STRONG)
    assert counts.json()["counts"] == {thread.key: 2}
    assert counts.headers["palaver-consistency"].startswith("strong; asked=strong; ")


async def test_a_strong_read_of_a_view_that_stays_behind_is_labelled_eventual(api: Api, writer: Writer) -> None:
    writer.thread().add()
    writer.checkpoint(1, 0x100)
    api.prover.proved = Position(2, 1)
    answer = await api.page(headers=STRONG)
    assert answer.status_code == 200
    assert answer.headers["palaver-consistency"].startswith("eventual; asked=strong; ")


@pytest.mark.parametrize(
    ("headers", "slug"),
    [
        ({"palaver-consistency": "linearizable"}, "invalid-request"),
        ({"palaver-consistency": "bounded=-1"}, "invalid-request"),
        ({"palaver-consistency": "session"}, "invalid-request"),
        ({"palaver-position": "nonsense"}, "invalid-position"),
        ({"palaver-position": encode_token(CellId("other"), Position(1, 1))}, "invalid-position"),
    ],
)
async def test_a_bad_consistency_header_is_refused(api: Api, headers: dict[str, str], slug: str) -> None:
    answer = await api.page(headers=headers)
    assert (answer.status_code, problem(answer)) == (422, slug)


async def test_a_single_comment_has_a_cursor_to_its_replies(api: Api, writer: Writer) -> None:
    thread = writer.thread()
    root = thread.add(body="*hi*")
    reply = thread.add(root)
    path = f"/v1/sites/{writer.site}/comments/{root}"
    answer = await api.http.get(path)
    comment = answer.json()
    assert (comment["thread"], comment["html"], comment["replies"]["count"]) == (thread.key, "<p><em>hi</em></p>", 1)
    replies = await api.page(cursor=comment["replies"]["next"])
    assert [one["id"] for one in replies.json()["comments"]] == [str(reply)]
    assert (await api.http.get(path, headers={"if-none-match": answer.headers["etag"]})).status_code == 304
    assert (await api.http.head(path)).status_code == 200
    for missing in (uuid.uuid4(), "x"):
        gone = await api.http.get(f"/v1/sites/{writer.site}/comments/{missing}")
        assert (gone.status_code, problem(gone)) == (404, "unknown-comment")
    elsewhere = await api.http.get(f"/v1/sites/{uuid.uuid4()}/comments/{root}")
    assert problem(elsewhere) == "unknown-site"


async def test_votes_are_in_every_answer_and_change_its_etag_even_if_the_score_stays(api: Api, writer: Writer) -> None:
    thread = writer.thread()
    root = thread.add()
    path = f"/v1/sites/{writer.site}/comments/{root}"
    etags: list[set[str]] = [set(), set()]
    for votes, expected in (
        ([], (0, 0)),
        ([("ann", 1)], (1, 0)),
        ([("bob", -1), ("eve", -1)], (1, 2)),
        ([("fay", 1), ("bob", 0)], (2, 1)),
        ([("gus", 1), ("hal", -1)], (3, 2)),
    ):
        for user, value in votes:
            thread.vote(root, user, value)
        up, down = expected

        async def shown(up: int = up, down: int = down) -> bool:
            page = await api.page()
            one = await api.http.get(path)
            for answer, comment, seen in (
                (page, page.json()["comments"][0], etags[0]),
                (one, one.json(), etags[1]),
            ):
                if (comment["votes"], comment["score"]) != ({"up": up, "down": down}, up - down):
                    return False
                seen.add(answer.headers["etag"])
            return True

        await until(shown)
    assert [len(seen) for seen in etags] == [5, 5]


async def test_a_404_reports_the_consistency_level_and_the_age_of_the_view(api: Api, writer: Writer) -> None:
    ahead = {"palaver-position": encode_token(CELL, Position(3, 1)), "palaver-consistency": "session"}
    nowhere = f"/v1/sites/{uuid.uuid4()}"
    asked: tuple[tuple[str, dict[str, str]], ...] = (
        (f"/v1/sites/{writer.site}/comments/{uuid.uuid4()}", {}),
        (f"{nowhere}/comments", {"thread": "a"}),
        (f"{nowhere}/counts", {"thread": "a"}),
    )
    for path, query in asked:
        for headers, said in ((ahead, "eventual; asked=session; "), ({}, "eventual; asked=eventual; ")):
            answer = await api.http.get(path, params=query, headers=headers)
            assert answer.status_code == 404
            assert answer.headers["palaver-consistency"].startswith(said)
            assert "palaver-position" in answer.headers


async def test_counts_use_the_thread_keys_of_the_request(api: Api, writer: Writer) -> None:
    thread = writer.thread("https://example.com/a")
    thread.add()
    thread.add()
    path = f"/v1/sites/{writer.site}/counts"
    asked = ["http://EXAMPLE.com/a/?utm_source=x", "https://example.com/a", "none"]
    answer = await api.http.get(path, params={"thread": asked})
    assert answer.json() == {"counts": {asked[0]: 2, asked[1]: 2, asked[2]: 0}}
    for query in ({}, {"thread": [str(i) for i in range(101)]}):
        refused = await api.http.get(path, params=query)
        assert (refused.status_code, problem(refused)) == (422, "invalid-request")
    unknown = await api.http.get(f"/v1/sites/{uuid.uuid4()}/counts", params={"thread": "a"})
    assert (unknown.status_code, problem(unknown)) == (404, "unknown-site")


async def test_the_etag_of_counts_changes_with_a_count(api: Api, writer: Writer) -> None:
    thread = writer.thread("a")
    thread.add()
    path = f"/v1/sites/{writer.site}/counts"
    first = await api.http.get(path, params={"thread": ["a", "b"]})
    known = {"if-none-match": first.headers["etag"]}
    same = await api.http.get(path, params={"thread": ["a", "b"]}, headers=known)
    assert (same.status_code, same.content, same.headers["etag"]) == (304, b"", first.headers["etag"])
    assert (await api.http.get(path, params={"thread": ["a", "c"]}, headers=known)).status_code == 200
    thread.add()
    moved = await api.http.get(path, params={"thread": ["a", "b"]}, headers=known)
    assert (moved.status_code, moved.json()["counts"]) == (200, {"a": 2, "b": 0})


@pytest.mark.parametrize("template", sorted({operation.template for operation in OPERATIONS}))
async def test_options_lists_the_methods_of_the_address(api: Api, template: str) -> None:
    path = template.replace("{site}", str(api.writer.site)).replace("{comment}", str(uuid.uuid4()))
    answer = await api.http.options(path)
    assert (answer.status_code, answer.content) == (204, b"")
    allowed = answer.headers["allow"].split(", ")
    assert {"OPTIONS", *(one.method for one in OPERATIONS if one.template == template)} <= set(allowed)
    refused = await api.http.request("PUT" if "PUT" not in allowed else "PATCH", path)
    assert (refused.status_code, refused.headers["allow"]) == (405, answer.headers["allow"])


async def test_any_origin_may_read_a_problem_while_the_origins_of_the_site_are_unknown(
    api: Api, writer: Writer
) -> None:
    anybody = {"origin": "https://anybody.example"}
    unknown = await api.http.get(f"/v1/sites/{uuid.uuid4()}/comments", params={"thread": "a"}, headers=anybody)
    nowhere = await api.http.get("/v1/nowhere", headers=anybody)
    await asyncio.to_thread(writer.view.stop)
    try:
        away = await api.http.get(f"/v1/sites/{writer.site}/comments", params={"thread": "a"}, headers=anybody)
    finally:
        await asyncio.to_thread(writer.view.start)
    assert [one.status_code for one in (unknown, nowhere, away)] == [404, 404, 503]
    for problematic in (unknown, nowhere, away):
        assert problematic.headers["access-control-allow-origin"] == "*"
        assert "retry-after" in problematic.headers["access-control-expose-headers"]
        assert "access-control-allow-credentials" not in problematic.headers
    await until(lambda: api.freshness.reachable)
    known = await api.page(limit="none", headers=anybody)
    assert known.status_code == 422
    assert "access-control-allow-origin" not in known.headers, "the origins of a known site decide"


async def test_a_preflight_is_answered_from_the_origins_of_the_site(api: Api, writer: Writer) -> None:
    path = f"/v1/sites/{writer.site}/comments"
    asking = {"origin": "https://example.com", "access-control-request-method": "POST"}
    allowed = await api.http.options(path, headers=asking)
    assert allowed.status_code == 204
    assert allowed.headers["access-control-allow-origin"] == "https://example.com"
    assert "idempotency-key" in allowed.headers["access-control-allow-headers"]
    assert allowed.headers["access-control-allow-methods"] == allowed.headers["allow"] == "POST, GET, HEAD, OPTIONS"
    refused = await api.http.options(path, headers={**asking, "origin": "https://evil.example"})
    assert "access-control-allow-origin" not in refused.headers
    writer.thread().add()
    read = await api.page(headers={"origin": "https://example.com"})
    assert read.headers["access-control-allow-origin"] == "https://example.com"
    error = await api.http.get(path, headers={"origin": "https://example.com"})
    assert (problem(error), error.headers["access-control-allow-origin"]) == ("invalid-request", "https://example.com")


async def test_the_document_and_its_page_load_nothing_from_elsewhere(api: Api) -> None:
    document = await api.http.get("/v1/openapi.json")
    assert document.json()["openapi"] == "3.1.0"
    page = await api.http.get("/docs")
    assert page.headers["content-type"].startswith("text/html")
    assert "//" not in page.text.replace("https://", "//").split("<script>")[0]
    assert "connect-src 'self'" in page.headers["content-security-policy"]


@pytest.mark.parametrize(
    ("method", "path", "status", "slug"),
    [
        ("GET", "/v1/nowhere", 404, "not-found"),
        ("GET", "/metrics", 404, "not-found"),
        ("POST", "/docs", 405, "method-not-allowed"),
        ("GET", "/v1/sites/x/preview", 405, "method-not-allowed"),
        ("OPTIONS", "/v1/nowhere", 404, "not-found"),
        ("BREW", "/v1/sites", 405, "method-not-allowed"),
    ],
)
async def test_a_wrong_address_or_method_is_a_problem(api: Api, method: str, path: str, status: int, slug: str) -> None:
    answer = await api.http.request(method, path)
    assert (answer.status_code, problem(answer)) == (status, slug)


async def test_the_health_probes_answer(api: Api) -> None:
    assert (await api.http.get("/healthz")).json() == {"alive": True}
    assert (await api.http.get("/readyz")).json() == {"ready": True}


class StubbornPool:
    """A pool whose statements never end and whose connections fail when they are released."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()

    async def acquire(self, *, timeout: float) -> "StubbornPool":  # noqa: ASYNC109 - as the pool of asyncpg has it
        del timeout
        return self

    async def fetch(self, *_: object) -> None:
        self.asked.set()
        await asyncio.Event().wait()

    async def release(self, connection: object) -> None:
        del connection
        raise OSError("the connection broke")


async def test_a_broken_connection_does_not_hide_the_cancellation_of_the_poll() -> None:
    reader = ViewReader("postgresql://nobody@127.0.0.1:1/none", size=1)
    pool = StubbornPool()
    reader._pool = pool  # pyright: ignore[reportAttributeAccessIssue] - the one port of the reader
    polling = asyncio.ensure_future(Freshness(CellId("main")).run(reader, lambda: None))
    await pool.asked.wait()
    polling.cancel()
    await asyncio.wait([polling], timeout=20)
    assert polling.cancelled()


class SwallowingCache:
    """A channel whose library treats a cancellation as the end of the stream."""

    def __init__(self) -> None:
        self.heard = asyncio.Event()

    async def messages(self) -> AsyncGenerator[None]:
        yield None
        self.heard.set()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.Event().wait()


async def test_a_swallowed_cancellation_still_ends_the_follower_of_invalidations() -> None:
    shared = SwallowingCache()
    following = asyncio.ensure_future(
        follow_invalidations(shared, PageMemory(bytes_max=1, life_s=1), Freshness(CellId("main")))  # pyright: ignore[reportArgumentType] - the one port it uses
    )
    await shared.heard.wait()
    following.cancel()
    await asyncio.wait([following], timeout=20)
    assert following.cancelled()


async def test_the_read_api_renders_a_preview(api: Api) -> None:
    path = f"/v1/sites/{uuid.uuid4()}/preview"
    answer = await api.http.post(path, json={"body": "<script>alert(1)</script> **b**"})
    assert answer.status_code == 200
    assert answer.json() == {"html": "<p>&lt;script&gt;alert(1)&lt;/script&gt; <strong>b</strong></p>"}
    long = await api.http.post(path, json={"body": "x" * 10_001})
    assert (long.status_code, problem(long)) == (422, "body-too-long")
    blank = await api.http.post(path, json={"body": " \n"})
    assert (blank.status_code, problem(blank)) == (422, "invalid-request")


async def test_a_preview_is_refused_when_too_many_are_waiting(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    path = f"/v1/sites/{uuid.uuid4()}/preview"
    rendering, goes_on = 0, asyncio.Event()

    async def rendered(body: str) -> str:
        nonlocal rendering
        rendering += 1
        await goes_on.wait()
        return body

    monkeypatch.setattr(previews, "render_aside", rendered)

    async def ask() -> httpx.Response:
        return await api.http.post(path, json={"body": "x"})

    waiting = [asyncio.ensure_future(ask()) for _ in range(previews.WAITING_MAX + 1)]
    refused, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    assert [(one.result().status_code, problem(one.result())) for one in refused] == [(503, "overloaded")]
    assert rendering == previews.RENDERED_AT_A_TIME_MAX
    goes_on.set()
    answers = await asyncio.gather(*waiting)
    assert sorted({answer.status_code for answer in answers}) == [200, 503]
    assert (await ask()).status_code == 200

"""Tests thread pages on a real view and Redis: the tree, its cursors, gzip, and the caches."""

import asyncio
import dataclasses
import json
import random
import uuid
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from regions.edge import DEGRADED_HEADER
from regions.position import Position
from services.api.cursor import decode_cursor
from services.api.markdown import HtmlCache
from services.api.openapi import openapi_document
from services.read_api.page import Page, PageQuery, build_page
from services.read_api.shared_cache import SharedCache
from services.read_api.view_reader import ViewReader
from services.view import cache
from tests.services.read_api.conftest import Api, Thread, Writer, problem, running_api
from tests.waiting import until

pytestmark = pytest.mark.integration

Comment = dict[str, Any]


async def walk(api: Api, key: str, sort: str, limit: int, depth: int) -> tuple[list[Comment], int]:
    """Follow every cursor; return the comments in the order of their arrival, and the size of the largest page."""
    met: list[Comment] = []
    largest = 0
    pending: list[str | None] = [None]
    while pending:
        cursor = pending.pop()
        query: dict[str, Any] = {"sort": sort, "limit": limit, "depth": depth}
        if cursor:
            query["cursor"] = cursor
        answer = await api.page(key, **query)
        assert answer.status_code == 200, answer.text
        page = answer.json()
        before = len(met)
        level = list(page["comments"])
        pending += [page["next"]] if page["next"] else []
        while level:
            comment = level.pop()
            met.append(comment)
            level += comment["replies"]["items"]
            pending += [comment["replies"]["next"]] if comment["replies"]["next"] else []
        largest = max(largest, len(met) - before)
    return met, largest


def grow(writer: Writer, parents: list[int | None], bodies: list[str] | None = None) -> Thread:
    """Create a thread whose comment i replies to comment parents[i]. A comment with an empty body is a tombstone."""
    thread = writer.thread(str(uuid.uuid4()))
    ids: list[uuid.UUID] = [uuid.uuid4() for _ in parents]
    bodies = bodies or ["b"] * len(parents)
    rows = [
        (
            *(ids[i], writer.site, thread.id, None if parent is None else ids[parent]),
            *(bodies[i], "approved" if bodies[i] else "deleted", parents.count(i), i // 3),
        )
        for i, parent in enumerate(parents)
    ]
    with psycopg.connect(writer.view.url()) as connection, connection.cursor() as cursor:
        cursor.executemany(
            "INSERT INTO comments (id, site_id, thread_id, parent_id, depth, body, state, version, reply_count,"
            " created_at) VALUES (%s, %s, %s, %s, 0, %s, %s, 1, %s, now() + make_interval(secs => %s))",
            rows,
        )
        cursor.execute("UPDATE threads SET page_version = 1, count = %s WHERE id = %s", (len(rows), thread.id))
    return thread


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(data=st.data())
def test_every_comment_of_any_tree_is_reached_exactly_once(writer: Writer, data: st.DataObject) -> None:
    size = data.draw(st.integers(0, 60))
    parents = [data.draw(st.one_of(st.none(), st.integers(0, i - 1)) if i else st.none()) for i in range(size)]
    sort = data.draw(st.sampled_from(["newest", "oldest"]))
    limit, depth = data.draw(st.integers(1, 10)), data.draw(st.integers(1, 5))
    key = grow(writer, parents).key
    met, _ = asyncio.run(_walk_alone(writer, key, sort, limit, depth))
    assert len(met) == size
    assert len({comment["id"] for comment in met}) == size


async def _walk_alone(writer: Writer, key: str, sort: str, limit: int, depth: int) -> tuple[list[Comment], int]:
    async with running_api(writer) as api:
        return await walk(api, key, sort, limit, depth)


BODIES = st.builds(str.__mul__, st.sampled_from(["x", "[", "&", '"', "\x01", "ä", "> "]), st.integers(0, 1500))
PLANTS = st.lists(st.tuples(st.integers(0, 25), BODIES), max_size=25)


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    plants=PLANTS,
    asked=st.fixed_dictionaries(
        {"sort": st.sampled_from(["newest", "oldest"]), "limit": st.integers(1, 6), "depth": st.integers(1, 4)}
    ),
    bounds=st.fixed_dictionaries(
        {"replies_max": st.integers(1, 4), "comments_max": st.integers(7, 25), "bytes_max": st.integers(1, 6_000)}
    ),
)
def test_every_list_is_read_completely_and_in_order_whatever_bounds_its_pages(
    writer: Writer, plants: list[tuple[int, str]], asked: dict[str, Any], bounds: dict[str, int]
) -> None:
    parents = [draw - 1 if 0 < draw <= number else None for number, (draw, _) in enumerate(plants)]
    key = grow(writer, parents, [body for _, body in plants]).key
    expected: dict[str | None, list[str]] = {}
    for comment, parent in writer.view.sql(
        "SELECT c.id::text, c.parent_id::text FROM comments AS c JOIN threads AS t ON t.id = c.thread_id"
        " WHERE t.key = %s ORDER BY c.created_at, c.id",
        key,
    ):
        expected.setdefault(None if parent is None else str(parent), []).append(str(comment))
    if asked["sort"] == "newest" and None in expected:
        expected[None].reverse()
    query = PageQuery(site=writer.site, thread=key, cursor=None, **asked)
    assert asyncio.run(_read_whole(writer, query, bounds)) == expected


async def _read_whole(writer: Writer, query: PageQuery, bounds: dict[str, int]) -> dict[str | None, list[str]]:
    """Follow every cursor; return the comments of each list by its parent, in the order of their arrival."""
    met: dict[str | None, list[str]] = {}
    pending: list[str | None] = [None]
    async with ViewReader(writer.view.url(user="palaver_reader"), size=1) as view:
        while pending:
            text = pending.pop()
            cursor = None
            if text is not None:
                cursor = decode_cursor(text, site=query.site, thread=query.thread, sort=query.sort)
            asked = dataclasses.replace(query, cursor=cursor)
            rows = await view.page(*asked.arguments(**bounds))
            page = await build_page(asked, rows, HtmlCache(), bytes_max=bounds["bytes_max"])
            document = json.loads(page.body)
            parent = None if cursor is None or cursor.parent is None else str(cursor.parent)
            lists = [(parent, document["comments"], document["next"])]
            shown = 0
            while lists:
                parent, comments, following = lists.pop()
                shown += len(comments)
                if comments:
                    met.setdefault(parent, []).extend(comment["id"] for comment in comments)
                if following is not None:
                    pending.append(following)
                lists += [(c["id"], c["replies"]["items"], c["replies"]["next"]) for c in comments]
            assert len(page.body) <= bounds["bytes_max"] or shown <= 1
            assert text is None or shown >= 1
    return met


async def test_a_thread_of_ten_thousand_comments_opens_in_one_bounded_page_and_is_read_completely(
    api: Api, writer: Writer
) -> None:
    chance = random.Random(7)  # noqa: S311 - a tree, not a secret
    parents: list[int | None] = [None if i < 100 else chance.randrange(max(0, i - 400), i) for i in range(10_000)]
    key = grow(writer, parents).key
    first = await api.page(key, limit=200)
    assert first.json()["thread"]["count"] == 10_000
    met, largest = await walk(api, key, "oldest", 200, 21)
    assert len({comment["id"] for comment in met}) == len(met) == 10_000
    assert largest <= 250


async def test_sorts_order_the_first_level_and_replies_stay_in_order_of_creation(api: Api, writer: Writer) -> None:
    thread = writer.thread()
    roots = [str(thread.add()) for _ in range(3)]
    replies = [str(thread.add(uuid.UUID(roots[0]))) for _ in range(3)]
    oldest = (await api.page(sort="oldest")).json()["comments"]
    newest = (await api.page()).json()["comments"]
    assert [comment["id"] for comment in oldest] == roots
    assert [comment["id"] for comment in newest] == roots[::-1]
    assert [comment["id"] for comment in newest[2]["replies"]["items"]] == replies


async def test_a_page_is_gzipped_if_the_client_accepts_it_and_has_a_separate_tag(api: Api, writer: Writer) -> None:
    thread = writer.thread()
    for _ in range(20):
        thread.add(body="a comment of usual length")
    plain = await api.page(headers={"accept-encoding": "identity"})
    answers = [await api.page(headers={"accept-encoding": value}) for value in ("gzip", "br, GZIP;q=0.5", "*")]
    for gzipped in answers:
        assert gzipped.headers["content-encoding"] == "gzip"
        assert gzipped.json() == plain.json()
        assert int(gzipped.headers["content-length"]) < len(plain.content) / 4
        assert gzipped.headers["etag"] != plain.headers["etag"]
        assert gzipped.headers["vary"] == plain.headers["vary"] == "origin, accept-encoding"
        for tag in (gzipped.headers["etag"], plain.headers["etag"]):
            same = await api.page(headers={"accept-encoding": "gzip", "if-none-match": tag})
            assert (same.status_code, same.content) == (304, b"")
            assert same.headers["etag"] == gzipped.headers["etag"]
    assert api.reader.queries == 1


async def test_a_page_is_not_gzipped_if_the_client_refuses_it_or_the_page_is_small(api: Api, writer: Writer) -> None:
    thread = writer.thread()
    small = await api.page(headers={"accept-encoding": "gzip"})
    assert "content-encoding" not in small.headers
    for _ in range(20):
        thread.add(body="a comment of usual length")
    await until(lambda: api.memory.bytes == 0)
    for value in ("", "br", "gzip;q=0", "gzip; q=0.000, *", "identity"):
        answer = await api.page(headers={"accept-encoding": value})
        assert "content-encoding" not in answer.headers, value
        assert len(answer.json()["comments"]) == 20


async def test_a_new_comment_is_in_the_gzipped_page_as_well(api: Api, writer: Writer) -> None:
    thread = writer.thread()
    for _ in range(20):
        thread.add(body="a comment of usual length")
    before = await api.page(headers={"accept-encoding": "gzip"})
    thread.add(body="the newest")
    await until(lambda: api.memory.bytes == 0)
    after = await api.page(headers={"accept-encoding": "gzip", "if-none-match": before.headers["etag"]})
    assert (after.status_code, after.json()["comments"][0]["body"]) == (200, "the newest")


async def test_the_memory_counts_gzipped_pages(api: Api, writer: Writer) -> None:
    thread = writer.thread()
    for _ in range(20):
        thread.add(body="a comment of usual length")
    await api.page(headers={"accept-encoding": "identity"})
    before = api.memory.bytes
    gzipped = await api.page(headers={"accept-encoding": "gzip"})
    entry = api.memory.get((gzipped.request.url.path, gzipped.request.url.query))
    assert entry is not None
    assert entry.gzipped is not None
    headers = len(entry.gzipped.head) + len(entry.gzipped.not_modified)
    assert api.memory.bytes == before + int(gzipped.headers["content-length"]) + headers
    api.memory.clear()
    assert api.memory.bytes == 0


async def test_a_page_has_the_documented_fields(api: Api, writer: Writer) -> None:
    thread = writer.thread()
    root = thread.add(body="**b**")
    thread.add(root)
    document = openapi_document()
    schema = {"$ref": "#/components/schemas/ThreadPage", "components": document["components"]}
    answer = await api.page()
    validator: Any = Draft202012Validator(schema)
    validator.validate(answer.json())
    assert answer.json()["comments"][0]["html"] == "<p><strong>b</strong></p>"
    assert answer.json()["thread"] == {
        "key": thread.key,
        "id": str(thread.id),
        "title": "T",
        "state": "open",
        "count": 2,
    }


async def test_a_tombstone_shows_nothing_of_its_author(api: Api, writer: Writer) -> None:
    thread = writer.thread()
    root = thread.add(body="secret")
    thread.add(root)
    writer.view.sql("UPDATE comments SET state = 'deleted' WHERE id = %s", root)
    comment = (await api.page()).json()["comments"][0]
    assert (comment["state"], comment["body"], comment["html"]) == ("deleted", None, None)
    assert comment["author"] == {"id": None, "name": None}
    assert len(comment["replies"]["items"]) == 1


async def test_an_unknown_thread_is_an_empty_page_and_an_unknown_site_a_404(api: Api) -> None:
    page = (await api.page("nothing-yet")).json()
    assert page == {
        "thread": {"key": "nothing-yet", "id": None, "title": None, "state": "open", "count": 0},
        "comments": [],
        "next": None,
    }
    for site in (str(uuid.uuid4()), "no-uuid"):
        answer = await api.http.get(f"/v1/sites/{site}/comments", params={"thread": "a"})
        assert (answer.status_code, problem(answer)) == (404, "unknown-site")


async def test_a_cached_page_is_served_without_a_query_until_its_thread_changes(api: Api, writer: Writer) -> None:
    thread = writer.thread()
    thread.add()
    first = await api.page()
    again = await api.page()
    assert (again.content, api.reader.queries) == (first.content, 1)
    not_modified = await api.page(headers={"if-none-match": first.headers["etag"]})
    assert (not_modified.status_code, not_modified.content) == (304, b"")
    assert not_modified.headers["etag"] == first.headers["etag"]
    thread.add()
    await until(lambda: api.memory.bytes == 0)
    changed = await api.page(headers={"if-none-match": first.headers["etag"]})
    assert (changed.status_code, len(changed.json()["comments"])) == (200, 2)


async def test_a_page_that_was_read_before_a_change_is_not_cached_after_it(api: Api, writer: Writer) -> None:
    thread = writer.thread()
    thread.add()
    api.reader.hold = asyncio.Event()
    reading = asyncio.ensure_future(api.page())
    await until(lambda: api.reader.held == 1)
    thread.add()
    # The channel preserves the order: this announcement arrives after the invalidation before it.
    writer.say(writer.checkpoint(1, 0x300))
    await until(lambda: api.freshness.announced is not None and api.freshness.announced.position == Position(1, 0x300))
    api.reader.hold.set()
    assert len((await reading).json()["comments"]) == 1
    assert len((await api.page()).json()["comments"]) == 2


async def test_a_late_store_in_redis_loses_against_a_newer_version(api: Api, writer: Writer) -> None:
    thread = writer.thread()
    thread.add()
    thread.add()
    shared = SharedCache(writer.page_cache.url, page_life_s=60)
    shared.generation = writer.generation
    where = (writer.site, thread.key)
    await shared.put(where, "f", Page(version=1, etag=b'"x"', link=b"", body=b"old"))
    assert await shared.get(where, "f") is None
    new = Page(version=2, etag=b'"y"', link=b"", body=b"new\nline")
    await shared.put(where, "f", new)
    assert await shared.get(where, "f") == new
    await shared.close()
    assert api.memory.enabled


async def test_a_flush_invalidates_every_cached_page(api: Api, writer: Writer) -> None:
    thread = writer.thread()
    thread.add()
    await api.page()
    thread.add(announce=False)
    assert len((await api.page()).json()["comments"]) == 1
    writer.begin_generation()
    await until(lambda: api.memory.bytes == 0)
    assert len((await api.page()).json()["comments"]) == 2


async def test_a_reader_without_the_generation_shares_no_pages(api: Api, writer: Writer) -> None:
    thread = writer.thread()
    thread.add()
    writer.redis.delete(cache.GENERATION_KEY)
    writer.redis.client_kill_filter(_type="pubsub")
    await until(lambda: not api.memory.enabled)
    await until(lambda: api.memory.enabled)
    await api.page()
    thread.add()
    await until(lambda: api.memory.bytes == 0)
    assert len((await api.page()).json()["comments"]) == 2


async def test_many_readers_of_one_cold_page_cause_one_query(api: Api, writer: Writer) -> None:
    writer.thread().add()
    answers = await asyncio.gather(*(api.page() for _ in range(30)))
    assert {answer.status_code for answer in answers} == {200}
    assert api.reader.queries == 1


async def test_pages_are_served_while_redis_is_killed_or_suspended_and_after_it_returns(
    api: Api, writer: Writer
) -> None:
    thread = writer.thread()
    thread.add()
    await api.page()
    await asyncio.to_thread(writer.page_cache.kill)
    await until(lambda: not api.memory.enabled)
    thread.add(announce=False)
    assert len((await api.page()).json()["comments"]) == 2
    await asyncio.to_thread(writer.page_cache.start)
    await until(lambda: api.memory.enabled)
    await api.page()
    writer.page_cache.pause()
    try:
        assert (await api.page(limit=7)).status_code == 200
        await until(lambda: not api.memory.enabled)
    finally:
        writer.page_cache.resume()
    await until(lambda: api.memory.enabled)
    thread.add()
    await until(lambda: api.memory.bytes == 0)
    assert len((await api.page()).json()["comments"]) == 3


async def test_pages_are_served_again_after_the_view_restarts(api: Api, writer: Writer) -> None:
    writer.thread().add()
    kept = await api.page()
    await asyncio.to_thread(writer.view.stop)
    assert (await api.page()).content == kept.content
    answer = await api.page(limit=3)
    assert (answer.status_code, problem(answer), answer.headers["retry-after"]) == (503, "view-unavailable", "1")
    assert answer.headers[DEGRADED_HEADER] == "view"
    stale = await api.page(headers={"palaver-consistency": "bounded=0"})
    assert (stale.status_code, problem(stale)) == (503, "too-stale")
    assert DEGRADED_HEADER not in stale.headers  # the client asked for this 503
    await asyncio.to_thread(writer.view.start)
    assert (await api.page(limit=3)).status_code == 200


@pytest.mark.parametrize(
    ("query", "slug"),
    [
        ("", "invalid-request"),
        ("thread=", "invalid-request"),
        ("thread=a&thread=b", "invalid-request"),
        ("thread=a&sort=best-of", "invalid-request"),
        ("thread=a&limit=0", "invalid-request"),
        ("thread=a&limit=201", "invalid-request"),
        ("thread=a&limit=1e1", "invalid-request"),
        ("thread=a&limit=%D9%A1", "invalid-request"),
        ("thread=a&depth=22", "invalid-request"),
        ("thread=a&offset=3", "invalid-request"),
        ("thread=a%00b", "invalid-request"),
        ("thread=%FF", "invalid-request"),
        ("thread=" + "k" * 2001, "invalid-request"),
        ("thread=a&cursor=", "invalid-cursor"),
        ("thread=a&cursor=zzzz", "invalid-cursor"),
        ("thread=a&cursor=" + "A" * 68, "invalid-cursor"),
        ("&".join("thread=a" for _ in range(200)), "invalid-request"),
    ],
)
async def test_a_bad_query_is_refused_by_name(api: Api, query: str, slug: str) -> None:
    answer = await api.http.get(f"/v1/sites/{api.writer.site}/comments?{query}")
    assert (answer.status_code, problem(answer)) == (422, slug)


async def test_a_cursor_is_valid_only_for_its_own_list(api: Api, writer: Writer) -> None:
    thread, other = writer.thread(), writer.thread("other")
    for one in (thread, other):
        for _ in range(3):
            one.add()
    cursor = (await api.page(limit=1)).json()["next"]
    assert (await api.page(limit=2, cursor=cursor)).status_code == 200
    refused = [
        await api.page("other", cursor=cursor),
        await api.page(sort="oldest", cursor=cursor),
        await api.page(cursor=cursor[:-1]),
        await api.page(cursor=cursor + "A"),
        await api.page(cursor=("A" if cursor[20] != "A" else "B").join((cursor[:20], cursor[21:]))),
    ]
    assert {problem(answer) for answer in refused} == {"invalid-cursor"}


async def test_the_link_header_leads_to_the_next_page(api: Api, writer: Writer) -> None:
    thread = writer.thread("https://example.com/ä b")
    for _ in range(3):
        thread.add()
    first = await api.page(thread.key, limit=2)
    target, _, relation = first.headers["link"].partition(">; ")
    assert relation == 'rel="next"'
    second = await api.http.get(target[1:])
    assert len(second.json()["comments"]) == 1
    assert "link" not in second.headers


@pytest.mark.parametrize("sort", ["newest", "oldest"])
async def test_a_page_is_bounded_in_bytes_and_its_cursors_reach_every_comment(writer: Writer, sort: str) -> None:
    bytes_max = 16_384
    thread = writer.thread(str(uuid.uuid4()))
    draw = random.Random(7)  # noqa: S311 - a reproducible choice
    ids: list[uuid.UUID] = []
    for number in range(40):
        parent = draw.choice([None, None, *ids[-8:]])
        # Some bodies are larger than a page. Quotation marks and controls take more bytes in JSON than in the view.
        body = draw.choice(["x", 'x"\x01' * 400, "[" * 3_000, "x" * 10_000, "&" * 900])
        ids.append(thread.add(parent, f"{number} {body}", announce=False))
    met: list[str] = []
    alone = 0
    async with running_api(writer, page_bytes_max=bytes_max) as api:
        pending: list[str | None] = [None]
        while pending:
            cursor = pending.pop()
            answer = await api.page(thread.key, sort=sort, **({} if cursor is None else {"cursor": cursor}))
            assert answer.status_code == 200, answer.text
            page = answer.json()
            level, before = list(page["comments"]), len(met)
            pending += [page["next"]] if page["next"] else []
            while level:
                comment = level.pop()
                met.append(comment["id"])
                level += comment["replies"]["items"]
                pending += [comment["replies"]["next"]] if comment["replies"]["next"] else []
            assert len(answer.content) <= bytes_max or len(met) == before + 1
            alone += len(answer.content) > bytes_max
    assert sorted(met) == sorted(map(str, ids))
    assert alone

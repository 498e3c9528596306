"""Tests `GET /v1/sites` and `PATCH /v1/sites/{site}` of the write API on a real ledger."""

import asyncio
from typing import Any
from uuid import UUID

import httpx
import pytest

from services.api.cursor import Cursor, encode_cursor
from services.write_api.site_keys import new_site_id
from tests import servers
from tests.services.write_api.conftest import ADMIN, UNKNOWN, Api, given_up_after, leadership, problem, write_api

pytestmark = pytest.mark.integration


def site_key(site: dict[str, str]) -> dict[str, str]:
    return {"authorization": f"Bearer {site['api_key']}"}


async def listed(api: Api, **query: Any) -> httpx.Response:
    answer = await api.http.get("/v1/sites", params=query, headers=ADMIN)
    assert answer.status_code == 200, answer.text
    return answer


def cursor_after(site: str) -> str:
    return encode_cursor(Cursor(parent=None, after=UUID(site)), site=UUID(int=0), thread="/v1/sites", sort="oldest")


async def test_all_sites_are_listed_once_in_the_order_of_their_ids(api: Api) -> None:
    before = [(await api.site())["id"] for _ in range(2)]
    # Ids of one millisecond, which is their first 13 characters, have a random order.
    async with asyncio.timeout(10):
        while str(new_site_id())[:13] <= max(before)[:13]:  # noqa: ASYNC110 - a clock has no event
            await asyncio.sleep(0)
    made = [(await api.site())["id"] for _ in range(5)]
    seen: list[str] = []
    page = await listed(api, limit=2, cursor=cursor_after(max(before)))
    while True:
        document = page.json()
        assert {tuple(site) for site in document["sites"]} == {("id", "name", "origins")}
        seen += [site["id"] for site in document["sites"]]
        if document["next"] is None:
            assert "link" not in page.headers
            break
        assert len(document["sites"]) == 2
        assert page.links["next"]["url"] == f"/v1/sites?limit=2&cursor={document['next']}"
        page = await api.http.get(page.links["next"]["url"], headers=ADMIN)
    assert seen == sorted(set(seen))
    # Other tests add sites with random ids to this ledger.
    assert [site for site in seen if site in made] == sorted(made)
    last = await listed(api, limit=2, cursor=cursor_after(seen[-3]))
    assert last.headers["cache-control"] == "no-store"
    assert [site["id"] for site in last.json()["sites"]] == seen[-2:]
    assert last.json()["next"] is None
    first = await listed(api, limit=1, cursor=cursor_after(max(before)))
    assert first.json()["sites"] == [{"id": seen[0], "name": "Site", "origins": ["https://example.com"]}]


async def test_the_list_of_sites_needs_the_admin_key_and_a_valid_query(api: Api) -> None:
    site = await api.site()
    for key in ({}, site_key(site), {"authorization": "Bearer wrong"}):
        refused = await api.http.get("/v1/sites", headers=key)
        assert (refused.status_code, problem(refused)) == (401, "unauthorized")
    foreign = encode_cursor(
        Cursor(parent=None, after=UUID(site["id"])), site=UUID(site["id"]), thread="a", sort="oldest"
    )
    for query, slug in (
        ({"limit": "0"}, "invalid-request"),
        ({"limit": "201"}, "invalid-request"),
        ({"x": "1"}, "invalid-request"),
        ({"cursor": ""}, "invalid-cursor"),
        ({"cursor": foreign}, "invalid-cursor"),
    ):
        refused = await api.http.get("/v1/sites", params=query, headers=ADMIN)
        assert (refused.status_code, problem(refused)) == (422, slug)


async def test_an_edit_changes_the_given_fields_of_a_site(api: Api) -> None:
    site = await api.site()
    path = f"/v1/sites/{site['id']}"
    origins = ["https://b.example", "https://a.example"]
    moved = await api.http.patch(path, json={"origins": [*origins, origins[0]]}, headers=ADMIN)
    assert (moved.status_code, moved.json()) == (200, {"id": site["id"], "name": "Site", "origins": origins})
    assert moved.headers["palaver-position"].startswith("main.1.")
    assert moved.headers["cache-control"] == "no-store"
    renamed = await api.http.patch(path, json={"name": "New"}, headers=ADMIN)
    assert renamed.json() == {"id": site["id"], "name": "New", "origins": origins}
    assert (await api.http.get(path, headers=site_key(site))).json() == renamed.json()
    closed = await api.http.patch(path, json={"name": "Closed", "origins": []}, headers=ADMIN)
    assert closed.json() == {"id": site["id"], "name": "Closed", "origins": []}


async def test_a_repeated_edit_of_a_site_succeeds_and_adds_no_version(
    api: Api, ledger_server: servers.PostgresServer
) -> None:
    site = await api.site()
    path, body = f"/v1/sites/{site['id']}", {"name": "New", "origins": ["*"]}
    answers = await asyncio.gather(*(api.http.patch(path, json=body, headers=ADMIN) for _ in range(4)))
    assert [(answer.status_code, answer.content) for answer in answers] == [(200, answers[0].content)] * 4
    assert ledger_server.sql("SELECT version, epoch FROM palaver.sites WHERE id = %s", site["id"]) == [(2, 1)]


async def test_an_edit_of_a_site_is_refused_with_the_problem_that_names_the_cause(api: Api) -> None:
    site = await api.site()
    path = f"/v1/sites/{site['id']}"

    async def edit(path: str, headers: dict[str, str], body: object) -> tuple[int, str]:
        answer = await api.http.patch(path, json=body, headers=headers)
        return answer.status_code, problem(answer)

    body = {"name": "New"}
    for key in ({}, site_key(site), {"authorization": "Bearer wrong"}):
        assert await edit(path, key, body) == (401, "unauthorized")
    for unknown in (UNKNOWN, "x"):
        assert await edit(f"/v1/sites/{unknown}", ADMIN, body) == (404, "unknown-site")
    invalid: list[object] = [
        {}, {"name": None}, {"origins": None}, {"name": ""}, {"name": "a\nb"}, {"origins": ["https://a.example/"]},
        {"origins": "*"}, {"origins": ["*"] * 51}, {"name": "New", "id": UNKNOWN}, [],
    ]  # fmt: skip
    for wrong in invalid:
        assert await edit(path, ADMIN, wrong) == (422, "invalid-request")
    text = await api.http.patch(path, content=b"{}", headers={**ADMIN, "content-type": "text/plain"})
    assert (text.status_code, problem(text)) == (415, "unsupported-media-type")
    assert await edit(path, {**ADMIN, "palaver-epoch": "2"}, body) == (503, "stale-epoch")
    api.leadership = leadership(epoch=2)
    assert await edit(path, {**ADMIN, "palaver-epoch": "2"}, body) == (503, "stale-epoch")
    api.leadership = leadership(leader="eu-west")
    assert await edit(path, ADMIN, body) == (503, "stale-epoch")
    away = await api.http.get("/v1/sites", headers=ADMIN)
    assert (away.status_code, problem(away)) == (503, "stale-epoch")
    api.leadership = leadership()
    assert (await api.http.get(path, headers=site_key(site))).json()["name"] == "Site"


async def test_a_list_of_sites_is_unavailable_while_the_ledger_does_not_answer(
    ledger_server: servers.PostgresServer,
) -> None:
    async with write_api(ledger_server.url(user="palaver_writer")) as api:
        await api.site()
        with servers.psycopg.connect(ledger_server.url()) as blocker:
            blocker.execute("LOCK TABLE palaver.sites IN ACCESS EXCLUSIVE MODE")
            with given_up_after(api.pool, 0.2):
                late = await api.http.get("/v1/sites", headers=ADMIN)
            blocker.rollback()
        assert (late.status_code, problem(late)) == (503, "ledger-unavailable")

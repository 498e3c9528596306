"""Tests the path of a comment: posted at any edge, committed on a quorum in an epoch, read in every region."""

import itertools
import re
import uuid

import orjson
import psycopg
import pytest

from infra.supervisor.layout import open_layout
from infra.supervisor.secrets import load_or_create_secrets
from services.api.site_origins import FRESH_S
from tests.integration.stack import REGIONS, Stack
from tests.waiting import eventually

pytestmark = [pytest.mark.integration, pytest.mark.stack]


@pytest.mark.parametrize("source", REGIONS)
def test_a_comment_posted_at_any_edge_is_read_in_every_region(stack: Stack, source: str) -> None:
    answer = stack.post(source, f"Hello from *{source}*.", thread=f"spine-{source}", author={"name": "Ada"})
    assert answer.status_code == 201, answer.text
    comment = answer.json()
    assert answer.headers["location"].endswith(f"/comments/{comment['id']}")
    assert uuid.UUID(comment["id"]).version == 7
    for region in REGIONS:
        read = stack.until_visible(region, comment["id"]).json()
        assert read["body"] == f"Hello from *{source}*."
        assert f"<em>{source}</em>" in read["html"]
        assert read["author"]["name"] == "Ada"
        assert read["created_at"] == comment["created_at"]


def test_a_read_with_the_position_of_a_write_has_the_write_in_every_region(stack: Stack) -> None:
    for number, (source, target) in enumerate(itertools.permutations(REGIONS, 2)):
        answer = stack.post(source, f"Read your writes, {number}.", thread="session")
        read = stack.get(
            target, f"/comments/{answer.json()['id']}", headers={"palaver-position": answer.headers["palaver-position"]}
        )
        assert read.status_code == 200, read.text


def test_status_has_the_documented_shape(stack: Stack) -> None:
    status = orjson.loads(stack.palaver("status", "--json").stdout)
    (cell,) = status["cells"]
    assert cell["cell"] == "main"
    assert cell["phase"] == "serving"
    assert cell["leader"] in REGIONS
    assert cell["epoch"] >= 1
    assert [region["region"] for region in status["regions"]] == list(REGIONS)
    roles = sorted(region["role"] for region in status["regions"])
    assert roles == ["follower", "follower", "leader"]
    for region in status["regions"]:
        assert set(region["pids"]) == {
            "etcd", "ledger", "view", "redis", "envoy", "region_agent", "write_api", "read_api", "replicator",
        }  # fmt: skip
        assert all(isinstance(pid, int) for pid in region["pids"].values())
        assert region["edge"].startswith("http://127.0.0.1:")
        assert re.fullmatch(r"main\.\d+\.[0-9A-F]{16}", region["applied_position"])
        assert region["healthy"], region["missing"]


def test_the_applied_positions_of_all_regions_converge(stack: Stack) -> None:
    position = stack.post("us-east", "Converge.", thread="converge").headers["palaver-position"]
    eventually(
        lambda: [region["applied_position"] for region in stack.status()["regions"]],
        lambda positions: all(applied >= position for applied in positions),
        within_s=10,
        what="every region at the position of the write",
    )


def test_a_nested_thread_is_the_same_tree_in_every_region(stack: Stack) -> None:
    parents: dict[str, str | None] = {}
    last = None
    for depth in range(6):
        fields = {} if last is None else {"parent": last}
        made = stack.post(REGIONS[depth % 3], f"Level {depth}.", thread="tree", **fields)
        assert made.status_code == 201, made.text
        parents[made.json()["id"]] = last
        last = made.json()["id"]
    assert last is not None
    for region in REGIONS:
        stack.until_visible(region, last)
        assert sorted(stack.thread_ids(region, "tree")) == sorted(parents)
        for comment, parent in parents.items():
            assert stack.get(region, f"/comments/{comment}").json()["parent"] == parent


def test_the_same_key_at_three_edges_is_one_comment(stack: Stack) -> None:
    key = uuid.uuid4().hex
    answers = [stack.post(region, "Only once.", thread="once", key=key) for region in REGIONS]
    assert [answer.status_code for answer in answers] == [201, 201, 201]
    assert len({answer.json()["id"] for answer in answers}) == 1
    assert len({answer.content for answer in answers}) == 1
    for region in REGIONS:
        stack.until_visible(region, answers[0].json()["id"])
        assert len(stack.thread_ids(region, "once")) == 1
    other = stack.post("us-east", "Another body.", thread="once", key=key)
    assert other.status_code == 422
    assert other.json()["type"].endswith("/idempotency-key-reused")


def test_an_edit_and_a_delete_reach_every_region(stack: Stack) -> None:
    made = stack.post("eu-west", "First wording.", thread="edited")
    url = stack.url("ap-south", f"/comments/{made.json()['id']}")
    key = {"authorization": f"Bearer {stack.api_key}"}
    voted = stack.ask("PUT", f"{url}/vote", json={"value": 1, "user": "ada"}, headers=key)
    assert (voted.status_code, voted.json()) == (200, {"up": 1, "down": 0, "score": 1, "mine": 1})
    position = {"palaver-position": voted.headers["palaver-position"]}
    for served, headers in (("session;", position), ("strong;", {"palaver-consistency": "strong"})):
        for region in REGIONS:
            read = eventually(
                lambda region=region, headers=headers: stack.get(
                    region, "/comments", params={"thread": "edited"}, headers=headers
                ),
                lambda answer, served=served: answer.headers["palaver-consistency"].startswith(served),
                what=f"a read at the level {served} in {region}",
            )
            assert [comment["votes"] for comment in read.json()["comments"]] == [{"up": 1, "down": 0}]
    changed = stack.ask(
        "PATCH", url, json={"body": "Second wording."}, headers=key | {"if-match": made.headers["etag"]}
    )
    assert changed.status_code == 200, changed.text
    for region in REGIONS:
        eventually(
            lambda region=region: stack.get(region, f"/comments/{made.json()['id']}").json().get("body"),
            lambda body: body == "Second wording.",
            within_s=10,
            what=f"the edit in {region}",
        )
    assert stack.ask("DELETE", url, headers=key).status_code == 204
    for region in REGIONS:
        gone = eventually(
            lambda region=region: stack.get(region, f"/comments/{made.json()['id']}").json(),
            lambda comment: comment["state"] == "deleted",
            within_s=10,
            what=f"the delete in {region}",
        )
        assert (gone["body"], gone["votes"]) == (None, {"up": 0, "down": 0})
        assert "wording" not in str(gone)


def test_a_new_site_is_at_its_location_at_every_edge(stack: Stack) -> None:
    body = {"name": "New", "origins": ["https://new.example"]}
    admin = {"authorization": f"Bearer {stack.admin_key}"}
    for edge in stack.edges.values():
        made = stack.ask("POST", f"{edge}/v1/sites", json=body, headers=admin)
        key = {"authorization": f"Bearer {made.json()['api_key']}"}
        for other in stack.edges.values():
            read = stack.ask("GET", other + made.headers["location"], headers=key)
            assert (read.status_code, read.json()) == (200, {"id": made.json()["id"], **body})


def test_new_origins_of_a_site_are_in_force_in_every_region(stack: Stack) -> None:
    admin = {"authorization": f"Bearer {stack.admin_key}"}
    old, new = "https://old.example", "https://new.example"
    made = stack.ask("POST", f"{stack.edges['us-east']}/v1/sites", json={"name": "S", "origins": [old]}, headers=admin)
    path = made.headers["location"]

    def allowed(region: str, origin: str) -> str | None:
        counts = f"{stack.edges[region]}{path}/counts"
        answer = stack.ask("GET", counts, params={"thread": "a"}, headers={"origin": origin})
        return answer.headers.get("access-control-allow-origin") if answer.is_success else "unknown"

    for region in REGIONS:
        eventually(
            lambda region=region: (allowed(region, old), allowed(region, new)),
            lambda both: both == (old, None),
            within_s=10,
            what=f"the new site in {region}",
        )
    edited = stack.ask("PATCH", f"{stack.edges['ap-south']}{path}", json={"origins": [new]}, headers=admin)
    assert (edited.status_code, edited.json()["origins"]) == (200, [new])
    key = {"authorization": f"Bearer {made.json()['api_key']}"}
    for region, edge in stack.edges.items():
        assert stack.ask("GET", f"{edge}{path}", headers=key).json() == edited.json()
        sites = {
            one["id"]: one for one in stack.ask("GET", f"{edge}/v1/sites?limit=200", headers=admin).json()["sites"]
        }
        assert sites[made.json()["id"]] == edited.json()
        eventually(
            lambda region=region: (allowed(region, old), allowed(region, new)),
            lambda both: both == (None, new),
            within_s=FRESH_S + 10,
            what=f"the new origins in {region}",
        )


def test_a_page_is_served_with_an_etag_until_it_changes(stack: Stack) -> None:
    made = stack.post("us-east", "Cached.", thread="etag")
    stack.until_visible("eu-west", made.json()["id"])
    page = stack.get("eu-west", "/comments", params={"thread": "etag"})
    same = stack.get("eu-west", "/comments", params={"thread": "etag"}, headers={"if-none-match": page.headers["etag"]})
    assert same.status_code == 304
    assert same.content == b""
    second = stack.post("ap-south", "Changed.", thread="etag")
    # A request with the position of the write gets no older page, however soon it follows.
    changed = stack.get(
        "eu-west",
        "/comments",
        params={"thread": "etag"},
        headers={"if-none-match": page.headers["etag"], "palaver-position": second.headers["palaver-position"]},
    )
    assert changed.status_code == 200
    assert changed.json()["thread"]["count"] == 2
    # A request without a position gets the new page once the cached page is invalid.
    eventually(
        lambda: stack.get(
            "eu-west", "/comments", params={"thread": "etag"}, headers={"if-none-match": page.headers["etag"]}
        ),
        lambda answer: answer.status_code == 200 and answer.json()["thread"]["count"] == 2,
        within_s=10,
        what="the changed page",
    )


def test_a_view_that_was_damaged_by_hand_is_mended(stack: Stack) -> None:
    posted = [stack.post(REGIONS[0], f"comment {number}", thread="damaged").json()["id"] for number in range(6)]
    layout = open_layout(stack.data)
    password = load_or_create_secrets(layout.secrets).view_apply
    for region in REGIONS:
        stack.until_visible(region, posted[-1])
        view = stack.region(region)["addresses"]["view"]
        with psycopg.connect(f"postgresql://palaver_apply:{password}@{view}/palaver", autocommit=True) as connection:
            connection.execute("DELETE FROM comments WHERE id = ANY (%s::uuid[])", [posted[:2]])
            connection.execute("UPDATE comments SET body = 'by hand' WHERE id = ANY (%s::uuid[])", [posted[2:4]])
    results = orjson.loads(stack.palaver("repair", "run", "--json").stdout)
    for region in REGIONS:
        # A comparison on schedule may have mended a part.
        assert results[region]["verdict"] in {"mended", "clean"}, results
        state = orjson.loads(stack.palaver("repair", "status", "--region", region, "--json").stdout)[region]
        assert state["mended"]["missing"] >= 2
        assert state["mended"]["stale"] >= 2
        bodies = {comment["id"]: comment["body"] for comment in stack.thread_comments(region, "damaged")}
        assert bodies == {one: f"comment {number}" for number, one in enumerate(posted)}
    again = orjson.loads(stack.palaver("repair", "run", "--json").stdout)
    assert {result["verdict"] for result in again.values()} == {"clean"}

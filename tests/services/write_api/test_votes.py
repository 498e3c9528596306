"""Tests `PUT …/comments/{comment}/vote` through the whole application of the write API, on a real ledger."""

from typing import Any

import httpx
import pytest

from tests import servers
from tests.services.write_api.conftest import UNKNOWN, Api, given_up_after, leadership, problem

pytestmark = pytest.mark.integration


class Votes:
    """Sends votes on one comment with the key of its site."""

    def __init__(self, api: Api, site: dict[str, str], path: str) -> None:
        self.api = api
        self.path = f"{path}/vote"
        self.key = {"authorization": f"Bearer {site['api_key']}"}

    async def put(self, body: object, *, path: str | None = None, headers: dict[str, str] | None = None) -> Any:
        return await self.api.http.put(path or self.path, json=body, headers=self.key if headers is None else headers)


async def votes_of(api: Api) -> Votes:
    site = await api.site()
    return Votes(api, site, (await api.post(site["id"])).headers["location"])


async def test_a_vote_answers_with_the_counts_and_a_repetition_with_the_same(
    api: Api, ledger_server: servers.PostgresServer
) -> None:
    votes = await votes_of(api)
    answers: list[httpx.Response] = []
    for user, value in (("ann", 1), ("ann", 1), ("bob", -1), ("ann", 0)):
        answers.append(await votes.put({"value": value, "user": user}))
    assert {answer.status_code for answer in answers} == {200}
    assert [answer.json() for answer in answers] == [
        {"up": 1, "down": 0, "score": 1, "mine": 1},
        {"up": 1, "down": 0, "score": 1, "mine": 1},
        {"up": 1, "down": 1, "score": 0, "mine": -1},
        {"up": 0, "down": 1, "score": -1, "mine": 0},
    ]
    positions = [answer.headers["palaver-position"] for answer in answers]
    assert positions == sorted(positions)
    assert all(position.startswith("main.1.") for position in positions)
    comment = votes.path.split("/")[-2]
    kept = ledger_server.sql("SELECT user_id, value FROM palaver.votes WHERE comment_id = %s ORDER BY 1", comment)
    assert kept == [("ann", 0), ("bob", -1)]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"user": "ann"}, "value: is required"),
        ({"value": 1}, "user: is required"),
        ({"value": 2, "user": "ann"}, "value: must be -1, 0 or 1"),
        ({"value": -(2**40), "user": "ann"}, "value: must be -1, 0 or 1"),
        ({"value": True, "user": "ann"}, "value: must be a whole number"),
        ({"value": 1.0, "user": "ann"}, "value: must be a whole number"),
        ({"value": 1.5, "user": "ann"}, "value: must be a whole number"),
        ({"value": "1", "user": "ann"}, "value: must be a whole number"),
        ({"value": 10**30, "user": "ann"}, "value: must be -1, 0 or 1"),
        ({"value": 1, "user": ""}, "user: must not be empty"),
        ({"value": 1, "user": "x" * 256}, "user: may have 255 characters"),
        ({"value": 1, "user": "an n"}, "user: must be visible ASCII characters without spaces"),
        ({"value": 1, "user": "ann\n"}, "user: must be visible ASCII characters without spaces"),
        ({"value": 1, "user": "änn"}, "user: must be visible ASCII characters without spaces"),
        ({"value": 1, "user": 7}, "user: must be a string"),
        ({"value": 1, "user": "ann", "mine": 1}, "mine: unknown field"),
    ],
)
async def test_an_invalid_vote_is_refused_with_the_reason(api: Api, body: object, message: str) -> None:
    votes = await votes_of(api)
    answer = await votes.put(body)
    assert (answer.status_code, problem(answer)) == (422, "invalid-request")
    assert answer.json()["detail"] == message


async def test_a_vote_needs_the_sites_key_and_a_comment_that_is_shown(
    api: Api, ledger_server: servers.PostgresServer
) -> None:
    votes, other = await votes_of(api), await votes_of(api)
    comment = votes.path.split("/")[-2]
    vote = {"value": 1, "user": "x" * 255}

    async def refused(**changes: Any) -> tuple[int, str]:
        answer = await votes.put(vote, **changes)
        return answer.status_code, problem(answer)

    assert await refused(headers={}) == (401, "unauthorized")
    assert await refused(headers=other.key) == (401, "unauthorized")
    assert await refused(path=votes.path.replace(comment, UNKNOWN)) == (404, "unknown-comment")
    assert await refused(path=votes.path.replace(comment, "x")) == (404, "unknown-comment")
    assert await refused(path=f"/v1/sites/{UNKNOWN}/comments/{comment}/vote") == (404, "unknown-site")
    thread = "UPDATE palaver.threads SET state = %s WHERE id = (SELECT thread_id FROM palaver.comments WHERE id = %s)"
    ledger_server.sql(thread, "read_only", comment)
    assert await refused() == (409, "thread-closed")
    ledger_server.sql(thread, "closed", comment)
    assert (await votes.put(vote)).status_code == 200
    assert (await api.http.delete(votes.path.removesuffix("/vote"), headers=votes.key)).status_code == 204
    assert await refused() == (404, "unknown-comment")
    assert ledger_server.sql("SELECT 1 FROM palaver.votes WHERE comment_id = %s", comment) == []


async def test_a_vote_with_an_unknown_outcome_can_be_sent_again(
    api: Api, ledger_server: servers.PostgresServer
) -> None:
    votes, vote = await votes_of(api), {"value": 1, "user": "ann"}
    with servers.psycopg.connect(ledger_server.url()) as blocker:
        blocker.execute("LOCK TABLE palaver.votes IN EXCLUSIVE MODE")
        with given_up_after(api.pool, 0.05):
            answer = await votes.put(vote)
        blocker.rollback()
    assert (answer.status_code, problem(answer)) == (503, "outcome-unknown")
    assert "to set a vote to the same value twice is as good as once" in answer.json()["detail"]
    again = await votes.put(vote)
    assert again.json() == {"up": 1, "down": 0, "score": 1, "mine": 1}
    versions = "SELECT version FROM palaver.votes WHERE comment_id = %s"
    assert ledger_server.sql(versions, votes.path.split("/")[-2]) == [(1,)]


async def test_a_region_that_does_not_lead_takes_no_vote(api: Api) -> None:
    votes = await votes_of(api)
    api.leadership = leadership(leader="eu-west")
    answer = await votes.put({"value": 1, "user": "ann"})
    assert (answer.status_code, problem(answer)) == (503, "stale-epoch")

"""Tests which refusals of the write API the edge may retry."""

import asyncio

import httpx
import pytest

from regions.edge import REPEAT_HEADER as EDGE_HEADER
from services.api.problems import REPEAT_HEADER
from services.write_api import outcomes
from services.write_api import pool as pools
from services.write_api.leadership import stale_epoch
from services.write_api.outcomes import REPEATS_MAX, RepeatBudget, ledger_problem, refuse
from services.write_api.pool import (
    LedgerError,
    LedgerOverloaded,
    LedgerStuck,
    LedgerUnavailable,
    OutcomeUnknown,
)
from tests import servers
from tests.services.write_api.conftest import LONG_S, UNKNOWN, Api, write_api
from tests.services.write_api.test_pool import UNTIL_LET_GO, held, held_up
from tests.waiting import until


def test_the_edge_and_the_write_api_use_the_same_repeat_header() -> None:
    assert EDGE_HEADER.encode() == REPEAT_HEADER


@pytest.mark.parametrize(
    ("error", "slug", "repeat"),
    [
        (OutcomeUnknown("the connection broke"), "outcome-unknown", b"now"),
        (LedgerUnavailable("it takes no writes"), "ledger-unavailable", b"now"),
        (LedgerStuck("a lock"), "overloaded", b"1"),
        (LedgerOverloaded("full"), "overloaded", None),
    ],
)
def test_only_refusals_that_a_retry_may_resolve_are_marked_for_retry(
    error: LedgerError, slug: str, repeat: bytes | None
) -> None:
    problem = ledger_problem(error, again="Send it again.")
    headers = dict(problem.headers)
    assert (problem.slug, problem.status, headers.get(REPEAT_HEADER)) == (slug, 503, repeat)
    # The edge waits for as long as Retry-After asks a client to wait.
    assert headers[b"retry-after"] == b"1"


def test_a_read_without_an_answer_is_not_an_unknown_outcome() -> None:
    assert ledger_problem(OutcomeUnknown("the connection broke")).slug == "ledger-unavailable"


def test_a_stale_epoch_is_marked_for_an_immediate_retry_and_other_refusals_are_not() -> None:
    assert dict(stale_epoch("it moved").headers)[REPEAT_HEADER] == b"now"
    assert REPEAT_HEADER not in dict(refuse("thread_closed").headers)


def test_retries_under_overload_are_limited_to_a_tenth_of_the_completed_writes() -> None:
    budget = RepeatBudget()
    assert sum(budget.spend() for _ in range(1_000)) == REPEATS_MAX
    for _ in range(1_001):
        budget.earn()
    assert sum(budget.spend() for _ in range(1_000)) == 100
    assert not budget.spend()


async def refused_for_overload(api: Api, server: servers.PostgresServer, *asked: httpx.Request) -> list[httpx.Response]:
    """Send requests, one after the other, while one write occupies all connections."""
    with held(server):
        write = asyncio.create_task(api.pool.fetch(UNTIL_LET_GO, under=1))
        await until(lambda: held_up(server) == 1)
        answers = [await api.http.send(request) for request in asked]
    await write
    return answers


@pytest.mark.integration
async def test_only_keyed_posts_spend_the_retry_budget_and_only_completed_writes_earn_it(
    ledger_server: servers.PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outcomes, "REPEATS_MAX", 3.0)
    monkeypatch.setattr(pools, "ACQUIRE_TIMEOUT_S", LONG_S)
    monkeypatch.setattr(pools, "WAITERS_PER_CONNECTION", 0)
    async with write_api(ledger_server.url(user="palaver_writer"), pool_size=1, write_timeout_s=LONG_S) as api:
        site = await api.site()
        comments, own = f"/v1/sites/{site['id']}/comments", {"authorization": f"Bearer {site['api_key']}"}
        comment = (await api.post(site["id"])).headers["location"]

        def post(**headers: str) -> httpx.Request:
            return api.http.build_request("POST", comments, json={"thread": "a", "body": "b"}, headers=headers)

        keyed = [post(**{"idempotency-key": f"key-{number}"}) for number in range(4)]
        others = [
            post(),
            post(origin="https://example.com"),
            api.http.build_request("GET", "/strong-position"),
            api.http.build_request("GET", f"/v1/sites/{site['id']}", headers=own),
            api.http.build_request("PATCH", comment, json={"body": "x"}, headers={**own, "if-match": "*"}),
            api.http.build_request("DELETE", comment, headers={**own, "idempotency-key": "ignored"}),
        ]
        answers = await refused_for_overload(api, ledger_server, *others, *keyed)
        assert {answer.status_code for answer in answers} == {503}
        marks = [answer.headers.get("palaver-repeat") for answer in answers]
        assert marks == [None] * len(others) + ["1", "1", "1", None]

        for _ in range(30):
            assert (await api.http.get("/strong-position")).status_code == 200
            assert (await api.http.get(f"/v1/sites/{UNKNOWN}", headers=own)).status_code == 404
            assert (await api.http.patch(comment, json={"body": "x"}, headers={**own, "if-match": '"7"'})).is_error
        (answer,) = await refused_for_overload(api, ledger_server, post(**{"idempotency-key": "k"}))
        assert "palaver-repeat" not in answer.headers

        for _ in range(11):
            assert (await api.post(site["id"])).status_code == 201
        answers = await refused_for_overload(api, ledger_server, *(post(**{"idempotency-key": "k"}) for _ in range(2)))
        assert [answer.headers.get("palaver-repeat") for answer in answers] == ["1", None]

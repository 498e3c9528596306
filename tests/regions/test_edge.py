"""Routing, retries and local replies of the edge: a real Envoy that reads the files of an agent."""

import asyncio
import itertools
import json
from collections.abc import AsyncGenerator
from dataclasses import dataclass, replace

import httpx
import pytest

from regions.edge import render
from regions.identity import RegionName
from regions.leadership import Leadership, Succession
from tests.regions.edge_harness import (
    EdgeHarness,
    Request,
    edge_harness,
    leadership,
    problem_slug,
    read_statistic,
    until_retried,
)

pytestmark = pytest.mark.integration

KEY = {"idempotency-key": "k"}
AGAIN = {"palaver-repeat": "now"}


@pytest.fixture
async def edge() -> AsyncGenerator[EdgeHarness]:
    async with edge_harness() as one:
        yield one


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE"])
async def test_writes_go_to_the_leader_with_its_epoch(edge: EdgeHarness, method: str) -> None:
    await edge.set_leader("eu-west", 7)
    forged = {"palaver-epoch": "99", "x-request-id": "mine", "x-forwarded-for": "10.9.8.7", **KEY}
    answer = await edge.client.request(method, "/v1/x?y=1", headers=forged, content=b"body")
    assert answer.headers["x-backend"] == "write_api eu-west"
    (request,) = edge.backends["write_api eu-west"].requests
    assert request.headers["palaver-epoch"] == "7"
    assert request.headers["x-request-id"] == "mine"
    assert request.headers["x-forwarded-for"] == "127.0.0.1"
    assert (request.path, request.body) == ("/v1/x?y=1", b"body")


@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS"])
async def test_reads_stay_in_the_region_and_carry_no_epoch(edge: EdgeHarness, method: str) -> None:
    await edge.set_leader("eu-west", 7)
    answer = await edge.client.request(method, "/v1/x", headers={"palaver-epoch": "99"})
    assert answer.headers["x-backend"] == "read_api us-east"
    request = edge.backends["read_api us-east"].requests[-1]
    assert "palaver-epoch" not in request.headers


async def test_reads_go_to_the_next_region_while_the_own_read_api_is_down(edge: EdgeHarness) -> None:
    own = edge.backends["read_api us-east"]
    await own.stop()
    for _ in range(20):
        answer = await edge.client.get("/v1/x")
        assert answer.text == "read_api eu-west"
    await own.start()

    async def back() -> bool:
        return (await edge.client.get("/v1/x")).text == "read_api us-east"

    async with asyncio.timeout(20):
        while not await back():  # noqa: ASYNC110 - Envoy sets no event
            await asyncio.sleep(0.1)


async def test_a_read_of_a_hung_read_api_is_answered_by_the_next_region(edge: EdgeHarness) -> None:
    edge.backends["read_api us-east"].hangs_until = asyncio.Event()
    answers = await asyncio.gather(*(edge.client.get("/v1/x") for _ in range(10)))
    assert {answer.text for answer in answers} == {"read_api eu-west"}


async def _ejections(edge: EdgeHarness) -> int:
    """Return how often outlier detection found a read API to eject, whether or not Envoy then ejected it."""
    name = "cluster.read_api.outlier_detection.ejections_detected_consecutive_gateway_failure"
    answer = await edge.admin.get("/stats", params={"filter": name, "format": "json"})
    (stat,) = answer.json()["stats"]
    return stat["value"]


async def _too_stale(_: Request) -> tuple[int, bytes]:
    return 503, b"too stale"


async def test_refusals_that_a_client_asks_for_do_not_eject_a_read_api(edge: EdgeHarness) -> None:
    for backend in edge.backends.values():
        backend.answer = _too_stale
    for _ in range(10):
        answer = await edge.client.get("/v1/x", headers={"palaver-consistency": "bounded=0"})
        assert answer.status_code == 503
    assert await _ejections(edge) == 0


async def test_slow_reads_do_not_eject_a_read_api(edge: EdgeHarness) -> None:
    own, resume = edge.backends["read_api us-east"], asyncio.Event()

    async def slow(request: Request) -> tuple[int, bytes]:
        if request.path == "/v1/slow":
            await resume.wait()
        return 200, b"own"

    own.answer = slow
    answers = await asyncio.gather(*(edge.client.get("/v1/slow") for _ in range(12)))
    assert {answer.text for answer in answers} == {"read_api eu-west"}
    # Envoy hedged the slow reads, which must not count as failures of the host.
    assert await read_statistic(edge, "cluster.read_api.outlier_detection.ejections_enforced_total") == 0
    resume.set()


async def test_a_degraded_read_api_is_ejected(edge: EdgeHarness) -> None:
    own = edge.backends["read_api us-east"]
    own.answer, own.refusal_headers = _too_stale, {"palaver-degraded": "view"}
    async with asyncio.timeout(20):
        while not await _ejections(edge):
            answer = await edge.client.get("/v1/x")
            assert answer.status_code == 200
            assert "palaver-degraded" not in answer.headers


@pytest.mark.parametrize("asked", [{"palaver-position": "main.1.00000000016B3748"}, {"palaver-consistency": "strong"}])
async def test_a_read_that_waits_for_its_position_is_not_hedged(edge: EdgeHarness, asked: dict[str, str]) -> None:
    resume = asyncio.Event()

    async def slow(_: Request) -> tuple[int, bytes]:
        await resume.wait()
        return 200, b"slow"

    own, neighbour = edge.backends["read_api us-east"], edge.backends["read_api eu-west"]
    own.answer = slow
    own.requests.clear()
    waiting = asyncio.create_task(edge.client.get("/v1/x", headers=asked))
    async with asyncio.timeout(20):
        while not own.requests:  # noqa: ASYNC110 - the server sets no event
            await asyncio.sleep(0.01)
    # A later read that does not wait for a position is hedged, so the hedge delay of the first read has passed, too.
    assert (await edge.client.get("/v1/later")).text == "read_api eu-west"
    resume.set()
    assert (await waiting).text == "slow"
    assert [one.path for one in own.requests] == ["/v1/x", "/v1/later"]
    assert [one.path for one in neighbour.requests] == ["/v1/later"]


async def test_a_keyed_write_waits_while_the_leader_restarts(edge: EdgeHarness) -> None:
    leader = edge.backends["write_api us-east"]
    await leader.stop()
    writing = [
        asyncio.create_task(edge.client.post("/v1/x", headers={"idempotency-key": str(number)})) for number in range(50)
    ]
    await until_retried(edge, "us-east", len(writing))
    await leader.start()
    assert {answer.status_code for answer in await asyncio.gather(*writing)} == {200}


async def test_a_keyed_write_that_fails_at_a_dead_leader_is_retried_at_the_next(edge: EdgeHarness) -> None:
    await edge.set_leader("us-east", 1)
    await edge.backends["write_api us-east"].stop()
    writing = [
        asyncio.create_task(edge.client.post("/v1/x", headers={"idempotency-key": str(number)})) for number in range(20)
    ]
    await until_retried(edge, "us-east", 2 * len(writing))
    assert not any(task.done() for task in writing)
    await edge.set_leader("eu-west", 2)
    answers = await asyncio.gather(*writing)
    assert {(answer.status_code, answer.headers["x-backend"]) for answer in answers} == {(200, "write_api eu-west")}
    # The attempt count and the old epoch show the write API that the edge sent the request to another leader first.
    epochs = {request.headers["palaver-epoch"] for request in edge.backends["write_api eu-west"].requests}
    assert epochs == {"1"}
    assert all(int(one.headers["x-envoy-attempt-count"]) > 1 for one in edge.backends["write_api eu-west"].requests)


async def test_a_keyed_write_that_the_leader_refuses_waits_at_the_promised_successor(edge: EdgeHarness) -> None:
    begun = asyncio.Event()
    handed_over = False

    async def leader(_: Request) -> tuple[int, bytes]:
        return (503, b"stale-epoch") if handed_over else (200, b"of the leader")

    async def successor(_: Request) -> tuple[int, bytes]:
        await begun.wait()
        return 200, b"of the successor"

    edge.backends["write_api us-east"].answer = leader
    edge.backends["write_api us-east"].refusal_headers = AGAIN
    edge.backends["write_api eu-west"].answer = successor
    promised = replace(leadership("us-east", 1), succession=Succession(region=RegionName("eu-west"), reason="a test"))
    await edge.configurator.apply(promised, edge.admin)
    assert (await edge.client.post("/v1/x", headers=KEY)).text == "of the leader"
    handed_over = True
    writing = [asyncio.create_task(edge.client.post("/v1/x", headers=KEY)) for _ in range(20)]
    async with asyncio.timeout(20):
        while len(edge.backends["write_api eu-west"].requests) < len(writing):  # noqa: ASYNC110 - no event is set
            await asyncio.sleep(0.01)
    begun.set()
    assert {answer.text for answer in await asyncio.gather(*writing)} == {"of the successor"}
    # The leader refused each write once; then each waited at the successor, and none returned to the leader.
    assert len(edge.backends["write_api us-east"].requests) == 1 + len(writing)
    assert len(edge.backends["write_api eu-west"].requests) == len(writing)


async def test_a_keyed_write_is_retried_after_503_and_broken_connections(edge: EdgeHarness) -> None:
    leader = edge.backends["write_api us-east"]
    left = 4

    async def unwell(_: Request) -> tuple[int, bytes]:
        nonlocal left
        left -= 1
        if left == 2:
            for writer in list(leader._writers):
                writer.transport.abort()
        return (503, b"stale-epoch") if left > 0 else (201, b"made")

    leader.answer, leader.refusal_headers = unwell, AGAIN
    answer = await edge.client.post("/v1/x", headers=KEY, content=b"the same body")
    assert (answer.status_code, answer.text) == (201, "made")
    assert [request.body for request in leader.requests] == [b"the same body"] * 4


async def test_an_unkeyed_write_is_sent_once(edge: EdgeHarness) -> None:
    leader = edge.backends["write_api us-east"]

    async def busy(_: Request) -> tuple[int, bytes]:
        return 503, b"busy"

    leader.answer, leader.refusal_headers = busy, AGAIN
    answer = await edge.client.post("/v1/x")
    assert (answer.status_code, answer.text) == (503, "busy")
    assert "palaver-repeat" not in answer.headers
    assert len(leader.requests) == 1

    async def breaks(_: Request) -> tuple[int, bytes]:
        for writer in list(leader._writers):
            writer.transport.abort()
        return 200, b""

    leader.answer = breaks
    answer = await edge.client.post("/v1/x")
    assert (answer.status_code, problem_slug(answer)) == (503, "outcome-unknown")
    assert answer.headers["retry-after"] == "1"
    assert len(leader.requests) == 2

    await leader.stop()
    answer = await edge.client.post("/v1/x", headers={"x-request-id": "mine"})
    assert (answer.status_code, problem_slug(answer)) == (503, "ledger-unavailable")
    assert answer.headers["retry-after"] == "1"
    assert answer.headers["x-request-id"] == answer.json()["request_id"] == "mine"


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE"])
async def test_the_problem_outcome_unknown_mentions_an_idempotency_key_only_for_posts(
    edge: EdgeHarness, method: str
) -> None:
    leader = edge.backends["write_api us-east"]

    async def breaks(_: Request) -> tuple[int, bytes]:
        for writer in list(leader._writers):
            writer.transport.abort()
        return 200, b""

    leader.answer = breaks
    answer = await edge.client.request(method, "/v1/x", content=b"body")
    assert problem_slug(answer) == "outcome-unknown"
    detail = answer.json()["detail"]
    assert ("Idempotency-Key" in detail) == (method == "POST")
    assert ("If-Match" in detail) == (method == "PATCH")
    assert len(leader.requests) == 1

    await leader.stop()
    answer = await edge.client.request(method, "/v1/x", content=b"body")
    assert problem_slug(answer) == "ledger-unavailable"
    assert ("Idempotency-Key" in answer.json()["detail"]) == (method == "POST")


async def test_changes_of_leader_under_load_cause_no_failed_request(edge: EdgeHarness) -> None:
    regions = ("us-east", "eu-west", "ap-south")
    epochs = {f"write_api {region}": 1 for region in regions}
    stale = 0

    def checks(name: str) -> None:
        async def check(request: Request) -> tuple[int, bytes]:
            nonlocal stale
            # Epoch N belongs to region (N - 1) % 3, so a first attempt must carry an epoch of this region. On a busy
            # machine Envoy may retry a keyed write at a later leader; such a write has a higher attempt count.
            first = request.headers["x-envoy-attempt-count"] == "1"
            if first and regions[(int(request.headers["palaver-epoch"]) - 1) % 3] != name.split(" ")[1]:
                stale += 1
                return 500, b"epoch of another"
            return 200, b"ok"

        edge.backends[name].answer = check

    for name in epochs:
        checks(name)
    bad: list[httpx.Response] = []
    done = asyncio.Event()

    answered = 0

    async def write(number: int) -> int:
        nonlocal answered
        count = 0
        while not done.is_set():
            headers = KEY if number % 2 else {}
            answer = await edge.client.post("/v1/x", headers=headers)
            if answer.status_code != 200:
                bad.append(answer)
            count += 1
            answered += 1
        return count

    async with asyncio.TaskGroup() as tasks:
        writers = [tasks.create_task(write(number)) for number in range(8)]
        for epoch in range(2, 32):
            await edge.set_leader(regions[(epoch - 1) % 3], epoch)
            assert edge.configurator.status.confirmed
            # Each leader gets writes, however slow the machine is.
            enough = answered + 4
            async with asyncio.timeout(20):
                while answered < enough:  # noqa: ASYNC110 - eight writers share the count
                    await asyncio.sleep(0.001)
        done.set()
    assert [answer.text for answer in bad] == []
    assert stale == 0
    assert sum(writer.result() for writer in writers) > 100


@dataclass
class Known:
    """A leadership view whose record the test sets."""

    current: Leadership | None

    async def next_after(self, known: Leadership | None) -> Leadership:
        while self.current is None or self.current == known:  # noqa: ASYNC110 - a fake without events
            await asyncio.sleep(0.01)
        return self.current


async def test_a_leader_chosen_during_an_update_of_the_edge_is_applied_next(
    edge: EdgeHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, _, last = edge.deployment.ports
    view, apply, applied = Known(leadership(RegionName(first), 7)), edge.configurator.apply, list[Leadership | None]()

    async def apply_slowly(record: Leadership | None, admin: httpx.AsyncClient) -> None:
        await apply(record, admin)
        applied.append(record)
        # A candidate may choose another leader within 0.2 s, and Envoy needs as long to load a file.
        view.current = leadership(RegionName(last), 7)

    monkeypatch.setattr(edge.configurator, "apply", apply_slowly)
    running = asyncio.create_task(edge.configurator.run(view))
    try:
        async with asyncio.timeout(10):
            while view.current not in applied:  # noqa: ASYNC110 - no event is set
                await asyncio.sleep(0.05)
    finally:
        running.cancel()
        await asyncio.wait([running])


async def test_a_preview_is_answered_in_its_region_with_and_without_a_leader(edge: EdgeHarness) -> None:
    path = "/v1/sites/01990d5e-3a00-7c62-9d2b-5a2a6f0c1e11/preview"
    for leads in (None, leadership("eu-west", 7)):
        await edge.configurator.apply(leads, edge.admin)
        for headers in ({}, KEY):
            answer = await edge.client.post(path, headers=headers, content=b"body")
            assert answer.headers["x-backend"] == "read_api us-east"
            request = edge.backends["read_api us-east"].requests[-1]
            assert (request.path, request.body) == (path, b"body")


async def test_a_preview_that_no_region_answers_fails_as_a_read(edge: EdgeHarness) -> None:
    path = "/v1/sites/01990d5e-3a00-7c62-9d2b-5a2a6f0c1e11/preview"
    reads = [edge.backends[f"read_api {name}"] for name in ("us-east", "eu-west", "ap-south")]
    hangs_until = asyncio.Event()
    for backend in reads:
        backend.hangs_until = hangs_until
    answers = [await edge.client.post(path, headers=KEY, content=b"body")]
    for backend in reads:
        await backend.stop()
    for leads in (None, leadership("eu-west", 7)):
        await edge.configurator.apply(leads, edge.admin)
        answers += [await edge.client.post(path + query, content=b"body") for query in ("", "?x=1")]
    for answer in answers:
        assert (answer.status_code, problem_slug(answer)) == (503, "view-unavailable")
        assert answer.headers["retry-after"] == "1"
        assert "Idempotency-Key" not in answer.json()["detail"]


async def test_writes_are_refused_and_reads_answered_while_no_region_leads(edge: EdgeHarness) -> None:
    await edge.configurator.apply(None, edge.admin)
    for headers in ({}, KEY):
        answer = await edge.client.post("/v1/x", headers=headers)
        assert (answer.status_code, problem_slug(answer)) == (503, "ledger-unavailable")
        assert answer.headers["retry-after"] == "1"
    assert (await edge.client.get("/v1/x")).status_code == 200


async def test_local_replies_are_problem_documents(edge: EdgeHarness) -> None:
    answer = await edge.client.get("/metrics?x=1")
    assert (answer.status_code, problem_slug(answer)) == (404, "not-found")
    assert answer.json()["instance"] == "/metrics"
    assert "server" not in answer.headers
    answer = await edge.client.get("/v1/x", headers={"big": "x" * 70_000})
    assert (answer.status_code, problem_slug(answer)) == (431, "headers-too-large")
    for name in ("us-east", "eu-west", "ap-south"):
        await edge.backends[f"read_api {name}"].stop()
    answer = await edge.client.get("/v1/x")
    assert (answer.status_code, problem_slug(answer)) == (503, "view-unavailable")
    assert answer.headers["retry-after"] == "1"


async def test_a_web_page_may_read_the_local_replies_of_the_edge(edge: EdgeHarness) -> None:
    await edge.configurator.apply(None, edge.admin)
    for name in ("us-east", "eu-west", "ap-south"):
        await edge.backends[f"read_api {name}"].stop()
    origin = {"origin": "https://anybody.example"}
    answers = [
        await edge.client.get("/metrics", headers=origin),
        await edge.client.get("/v1/x", headers=origin | {"big": "x" * 70_000}),
        await edge.client.get("/v1/x", headers=origin),
        await edge.client.post("/v1/x", headers=origin),
        await edge.client.request("BREW", "/v1/x", headers=origin),
    ]
    assert [answer.status_code for answer in answers] == [404, 431, 503, 503, 501]
    for answer in answers:
        assert answer.headers["access-control-allow-origin"] == "*"
        assert "retry-after" in answer.headers["access-control-expose-headers"]
        assert "access-control-allow-credentials" not in answer.headers


@pytest.mark.parametrize("method", ["BREW", "QUERY", "TRACE", "PROPFIND"])
@pytest.mark.parametrize("headers", [{}, {"content-type": "application/json"}])
async def test_an_unsupported_method_is_answered_with_501(
    edge: EdgeHarness, method: str, headers: dict[str, str]
) -> None:
    asked = [len(backend.requests) for backend in edge.backends.values()]
    answer = await edge.client.request(method, "/v1/x", headers=headers, content=b"x")
    assert (answer.status_code, problem_slug(answer)) == (501, "not-implemented")
    assert [len(backend.requests) for backend in edge.backends.values()] == asked


async def test_sites_are_read_at_the_leader(edge: EdgeHarness) -> None:
    await edge.set_leader("eu-west", 7)
    for method, path in itertools.product(("GET", "HEAD"), ("/v1/sites/x?y=1", "/v1/sites", "/v1/sites?limit=1")):
        answer = await edge.client.request(method, path)
        assert answer.headers["x-backend"] == "write_api eu-west"
        assert edge.backends["write_api eu-west"].requests[-1].headers["palaver-epoch"] == "7"
    for method, path in (
        ("OPTIONS", "/v1/sites/x"),
        ("OPTIONS", "/v1/sites"),
        ("GET", "/v1/sites/x/counts"),
        ("GET", "/v1/sitesx"),
    ):
        answer = await edge.client.request(method, path)
        assert answer.headers["x-backend"] == "read_api us-east"
    await edge.configurator.apply(None, edge.admin)
    for path in ("/v1/sites/x?y=1", "/v1/sites?limit=1"):
        nobody = await edge.client.get(path)
        assert (nobody.status_code, problem_slug(nobody)) == (503, "ledger-unavailable")


@pytest.mark.parametrize(
    "head",
    [
        b"GET /v1/x HTTP/1.0\r\n",
        b"GET /v1/x HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: websocket\r\n",
    ],
)
async def test_http_1_0_and_upgrade_offers_are_ordinary_requests(edge: EdgeHarness, head: bytes) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", edge.settings.listen.port)
    writer.write(head + b"\r\n")
    answer = await reader.readuntil(b"\r\n\r\n")
    assert answer.split(b" ")[1] == b"200"
    assert b"x-backend: read_api us-east" in answer
    writer.close()


async def test_a_megabyte_of_headers_is_refused_with_a_problem(edge: EdgeHarness) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", edge.settings.listen.port)
    writer.write(b"GET / HTTP/1.1\r\nhost: x\r\nbig: " + b"x" * 1_000_000 + b"\r\n\r\n")
    answer = await reader.read(20_000)
    assert answer.startswith(b"HTTP/1.1 431 ")
    assert b"headers-too-large" in answer
    writer.close()


async def test_a_malformed_request_is_refused_with_a_problem(edge: EdgeHarness) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", edge.settings.listen.port)
    writer.write(b"GET nonsense\r\n\r\n")
    answer = await reader.read(20_000)
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b"malformed-request" in answer
    writer.close()


async def test_a_rejected_update_is_reported_and_the_previous_configuration_stays(
    edge: EdgeHarness, caplog: pytest.LogCaptureFixture
) -> None:
    await edge.set_leader("eu-west", 2)
    before = edge.configurator.status
    assert before.confirmed
    assert before.update_rejected == 0
    # Envoy refuses a virtual host without a domain.
    broken = json.loads((edge.settings.folder / "rds" / "routes.json").read_text())
    broken["version_info"] = "broken"
    broken["resources"][0]["virtual_hosts"][0]["domains"] = []
    temporary = edge.settings.folder / "routes.json.new"
    temporary.write_text(json.dumps(broken))
    temporary.rename(edge.settings.folder / "rds" / "routes.json")
    async with asyncio.timeout(20):
        while edge.configurator.status.update_rejected == 0:
            files = render(edge.deployment.topology("us-east"), leadership("eu-west", 2), edge.settings)
            await edge.configurator._confirm(files, edge.admin)
            await asyncio.sleep(0.02)
    assert "refused an update" in caplog.text
    answer = await edge.client.post("/v1/x")
    assert answer.headers["x-backend"] == "write_api eu-west"
    await edge.set_leader("ap-south", 3)
    assert edge.configurator.status.confirmed
    assert (await edge.client.post("/v1/x")).headers["x-backend"] == "write_api ap-south"


async def test_a_restarted_envoy_loads_the_current_files(edge: EdgeHarness) -> None:
    await edge.set_leader("eu-west", 2)
    await asyncio.to_thread(edge.envoy.kill)
    await edge.set_leader("ap-south", 3)
    assert not edge.configurator.status.reachable
    await asyncio.to_thread(edge.envoy.start)
    async with asyncio.timeout(20):
        while True:
            try:
                answer = await edge.client.post("/v1/x")
                break
            except httpx.TransportError:
                await asyncio.sleep(0.05)
    assert answer.headers["x-backend"] == "write_api ap-south"

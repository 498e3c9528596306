"""The leadership record, and the client that reads, swaps and watches it, on a real etcd cluster."""

import asyncio
import base64
import functools
import json
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from uuid import UUID

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from regions import coordination as coordination_module
from regions.coordination import (
    AccessRefused,
    Coordination,
    CorruptRecord,
    EtcdUnavailable,
    Leadership,
    LeadershipView,
    OutcomeUnknown,
)
from regions.etcd import Endpoint, StoredValue
from regions.identity import CellId, RegionName
from regions.leadership import ANCESTRY_MAX, Succession
from regions.plain_http import TRUST_NOBODY
from regions.position import Position
from regions.topology import parse_address
from tests import servers, waiting
from tests.servers import EtcdCluster

USER, PASSWORD = "root", "a password"
EAST, WEST = RegionName("us-east"), RegionName("eu-west")

numbers = st.integers(min_value=0, max_value=2**63 - 1)
regions = st.lists(st.sampled_from([EAST, WEST]), unique=True).map(tuple)
leaderships = st.builds(
    Leadership,
    epoch=st.integers(min_value=1, max_value=2**63 - 1),
    leader=st.sampled_from([EAST, WEST]),
    phase=st.sampled_from(["bootstrapping", "recruiting", "promoting", "establishing", "serving"]),
    fence_id=st.uuids(),
    reason=st.text(),
    since=st.just("2026-01-01T00:00:00+00:00"),
    voters=regions,
    joining=regions,
    drained=regions,
    ancestry=st.lists(st.integers(min_value=1, max_value=2**63 - 1), max_size=ANCESTRY_MAX).map(tuple),
    target=st.none() | st.sampled_from([EAST, WEST]),
    automatic=st.booleans(),
    succession=st.none() | st.builds(Succession, region=st.sampled_from([EAST, WEST]), reason=st.text()),
    handed_over_at=st.none() | st.builds(Position, numbers, numbers),
)


def leadership(epoch: int = 1, *, reason: str = "first start") -> Leadership:
    return Leadership(
        epoch=epoch,
        leader=EAST,
        phase="establishing",
        fence_id=None,
        reason=reason,
        since="2026-01-01T00:00:00+00:00",
    )


@given(leaderships)
def test_a_record_survives_encoding_and_decoding(record: Leadership) -> None:
    assert Leadership.from_json(record.to_json()) == record


@pytest.mark.parametrize(
    "stored",
    [
        b"",
        b"[]",
        b"{}",
        b"7",
        leadership().to_json().replace(b"establishing", b"sleeping"),
        leadership().to_json().replace(b"establishing", b"serving"),
        leadership().to_json().replace(b'"epoch":1', b'"epoch":0'),
        leadership().to_json().replace(b"us-east", b"US"),
    ],
)
def test_bytes_that_are_no_record_raise_corrupt_record(stored: bytes) -> None:
    with pytest.raises(CorruptRecord):
        Leadership.from_json(stored)


def test_a_record_without_the_failover_fields_gets_their_defaults() -> None:
    names = (
        "voters", "joining", "drained", "ancestry", "target", "automatic", "succession", "handed_over_at",
    )  # fmt: skip
    fields = {name: value for name, value in json.loads(leadership().to_json()).items() if name not in names}
    assert Leadership.from_json(json.dumps(fields).encode()) == leadership()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("voters", ["US"]),
        ("joining", 7),
        ("drained", [None]),
        ("ancestry", ["one"]),
        ("ancestry", list(range(1, ANCESTRY_MAX + 2))),
        ("target", "Mars"),
        ("succession", "us-east"),
        ("succession", {"region": "Mars", "reason": ""}),
        ("handed_over_at", [1]),
        ("handed_over_at", [1, -1]),
    ],
)
def test_an_invalid_failover_field_raises_corrupt_record(name: str, value: object) -> None:
    fields = json.loads(leadership().to_json()) | {name: value}
    with pytest.raises(CorruptRecord):
        Leadership.from_json(json.dumps(fields).encode())


def test_unknown_fields_of_a_later_version_are_ignored() -> None:
    grown = leadership().to_json().replace(b"{", b'{"later":[1],', 1)
    assert Leadership.from_json(grown) == leadership()


@pytest.fixture(scope="module")
def cluster() -> Iterator[EtcdCluster]:
    with servers.etcd_cluster(3) as etcd:
        asyncio.run(_enable(etcd))
        yield etcd


async def _enable(etcd: EtcdCluster) -> None:
    async with connect(etcd) as one, connect(etcd, first=1) as other:
        await asyncio.gather(one.enable_authentication(), other.enable_authentication())
        await one.enable_authentication()


@pytest.fixture
def cell(request: pytest.FixtureRequest) -> CellId:
    return CellId(f"cell-{abs(hash(request.node.name))}"[:31])


@asynccontextmanager
async def connect(
    etcd: EtcdCluster, *, first: int = 0, password: str | None = PASSWORD
) -> AsyncGenerator[Coordination]:
    order = etcd.endpoints[first:] + etcd.endpoints[:first]
    user = None if password is None else USER
    async with Coordination([parse_address(one) for one in order], user, password) as coordination:
        yield coordination


@pytest.mark.integration
async def test_exactly_one_of_many_concurrent_swaps_succeeds(cluster: EtcdCluster, cell: CellId) -> None:
    async with connect(cluster) as one, connect(cluster, first=1) as two, connect(cluster, first=2) as three:
        clients = [one, two, three] * 8
        mine = [leadership(1, reason=str(number)) for number in range(len(clients))]
        won = await asyncio.gather(
            *(client.swap_leadership(cell, record, 0) for client, record in zip(clients, mine, strict=True))
        )
        (first,) = [record for record, revision in zip(mine, won, strict=True) if revision is not None]
        found = await one.read_leadership(cell)
        assert found is not None
        assert found[0] == first
        next_ones = [replace(record, epoch=2) for record in mine]
        won = await asyncio.gather(
            *(client.swap_leadership(cell, record, found[1]) for client, record in zip(clients, next_ones, strict=True))
        )
        (second,) = [record for record, revision in zip(next_ones, won, strict=True) if revision is not None]
        assert await three.read_leadership(cell) == (second, found[1] + 1)


@pytest.mark.integration
async def test_a_read_before_the_first_record_returns_none(cluster: EtcdCluster, cell: CellId) -> None:
    async with connect(cluster) as coordination:
        assert await coordination.read_leadership(cell) is None


@pytest.mark.integration
@pytest.mark.parametrize("password", ["wrong", None])
async def test_a_wrong_or_missing_password_is_one_clear_error(
    cluster: EtcdCluster, cell: CellId, password: str | None
) -> None:
    async with connect(cluster, password=password) as coordination:
        for attempt in (
            coordination.read_leadership(cell),
            coordination.swap_leadership(cell, leadership(), 0),
            anext(coordination.watch_leadership(cell)),
        ):
            with pytest.raises(AccessRefused) as refused:
                await attempt
            assert "\n" not in str(refused.value)


@pytest.mark.integration
async def test_a_client_of_a_restarted_etcd_member_gets_a_new_token(cluster: EtcdCluster, cell: CellId) -> None:
    async with connect(cluster) as coordination:
        assert await coordination.swap_leadership(cell, leadership(1), 0)
        cluster.kill(0)
        cluster.start(0)
        found = await coordination.read_leadership(cell)
        assert found is not None
        assert await swap(coordination, cell, leadership(2))


async def swap(coordination: Coordination, cell: CellId, new: Leadership) -> bool:
    """Replace the record; after an unknown outcome read it again, as a correct caller must."""
    while True:
        found = await read(coordination, cell)
        if found is not None and found[0] == new:
            return True
        assert found is None or found[0].epoch < new.epoch
        try:
            if await coordination.swap_leadership(cell, new, 0 if found is None else found[1]):
                return True
        except OutcomeUnknown:
            await asyncio.sleep(0.05)


async def read(coordination: Coordination, cell: CellId) -> tuple[Leadership, int] | None:
    """Read the record, and retry until etcd has elected a leader."""
    while True:
        try:
            return await coordination.read_leadership(cell)
        except EtcdUnavailable:
            await asyncio.sleep(0.05)


@pytest.mark.integration
@pytest.mark.parametrize("fault", ["kill", "pause"])
async def test_a_watch_loses_and_repeats_no_record_while_its_endpoint_fails(
    cluster: EtcdCluster, cell: CellId, fault: str
) -> None:
    seen: list[int] = []

    async def watch(coordination: Coordination, last: int) -> None:
        async for record in coordination.watch_leadership(cell):
            seen.append(record.epoch)
            if record.epoch == last:
                return

    last = 60
    async with connect(cluster) as watcher, connect(cluster, first=1) as writer, asyncio.TaskGroup() as tasks:
        assert await swap(writer, cell, leadership(1))
        tasks.create_task(watch(watcher, last))
        for epoch in range(2, last + 1):
            if epoch in (20, 40):
                cluster.kill(0) if fault == "kill" else cluster.pause(0)
            if epoch in (30, 50):
                await asyncio.to_thread(cluster.start, 0) if fault == "kill" else cluster.resume(0)
            assert await swap(writer, cell, leadership(epoch))
            await asyncio.sleep(0.02)
    assert seen == sorted(set(seen))
    assert seen[-1] == last
    assert set(range(seen[0], last + 1)) == set(seen)


@pytest.mark.integration
async def test_a_watch_returns_to_the_nearest_endpoint_when_it_answers_again(
    cluster: EtcdCluster, cell: CellId, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(coordination_module, "SHUN_S", 0.3)
    watched: list[str] = []
    original = Endpoint.watch

    def watch_noted(endpoint: Endpoint, key: str, start_revision: int) -> AsyncGenerator[StoredValue]:
        watched.append(str(endpoint.address))
        return original(endpoint, key, start_revision)

    monkeypatch.setattr(Endpoint, "watch", watch_noted)
    seen: list[int] = []

    async def watch(coordination: Coordination) -> None:
        async for record in coordination.watch_leadership(cell):
            seen.append(record.epoch)  # noqa: PERF401 - the test reads the list during the watch

    cluster.kill(0)
    async with connect(cluster) as watcher, connect(cluster, first=1) as writer:
        assert await swap(writer, cell, leadership(1))
        watching = asyncio.create_task(watch(watcher))
        try:
            await until(lambda: bool(seen))
            assert cluster.endpoints[0] not in watched
            await asyncio.to_thread(cluster.start, 0)
            epoch = 1
            while cluster.endpoints[0] not in watched:
                epoch += 1
                assert await swap(writer, cell, leadership(epoch))
                await asyncio.sleep(0.02)
            last = epoch + 20
            for later in range(epoch + 1, last + 1):
                assert await swap(writer, cell, leadership(later))
            await until(lambda: seen[-1] == last)
        finally:
            watching.cancel()
            await asyncio.wait([watching])
    assert seen == list(range(1, last + 1)), "the watch lost or repeated a record when it returned"
    assert watched[-1] == cluster.endpoints[0]


until = functools.partial(waiting.until, timeout_s=20)


@pytest.mark.integration
async def test_a_swap_whose_answer_is_lost_has_an_unknown_outcome(cluster: EtcdCluster, cell: CellId) -> None:
    async with connect(cluster) as coordination:
        assert await coordination.swap_leadership(cell, leadership(1), 0)
        found = await coordination.read_leadership(cell)
        assert found is not None
        cluster.pause(0)
        try:
            with pytest.raises(OutcomeUnknown):
                await coordination.swap_leadership(cell, leadership(2), found[1])
            again = await read(coordination, cell)
            assert again is not None
            assert again[0].epoch in (1, 2)
        finally:
            cluster.resume(0)


@pytest.mark.integration
async def test_without_an_etcd_quorum_reads_fail_and_the_watch_resumes_later(
    cluster: EtcdCluster, cell: CellId
) -> None:
    async with connect(cluster) as coordination:
        assert await coordination.swap_leadership(cell, leadership(1), 0)
        view = LeadershipView(coordination, cell)
        async with asyncio.TaskGroup() as tasks:
            running = tasks.create_task(view.run())
            assert (await view.next_after(None)).epoch == 1
            cluster.kill(1)
            cluster.kill(2)
            try:
                with pytest.raises(EtcdUnavailable):
                    await coordination.read_leadership(cell)
            finally:
                await asyncio.to_thread(cluster.start, 1, wait=False)
                await asyncio.to_thread(cluster.start, 2, wait=False)
            assert await swap(coordination, cell, leadership(2))
            assert (await view.next_after(view.current) if view.current == leadership(1) else view.current) == (
                leadership(2)
            )
            running.cancel()


@pytest.mark.integration
async def test_a_watch_resumes_after_a_compaction_of_its_revision(cluster: EtcdCluster, cell: CellId) -> None:
    async with connect(cluster) as watcher, connect(cluster, first=1) as writer:
        assert await swap(writer, cell, leadership(1))
        changes = watcher.watch_leadership(cell)
        assert (await anext(changes)).epoch == 1
        for epoch in range(2, 6):
            assert await swap(writer, cell, leadership(epoch))
        found = await writer.read_leadership(cell)
        assert found is not None
        # The client has only read so far. Its watch starts at the next revision, which is compacted by then.
        await asyncio.to_thread(compact, cluster, found[1])
        assert (await anext(changes)).epoch == 5
        assert await swap(writer, cell, leadership(6))
        assert (await anext(changes)).epoch == 6
        await changes.aclose()


def compact(cluster: EtcdCluster, revision: int) -> None:
    with httpx.Client(
        base_url=f"http://{cluster.endpoints[1]}", trust_env=False, verify=TRUST_NOBODY, timeout=5
    ) as client:
        answer = client.post("/v3/auth/authenticate", json={"name": USER, "password": PASSWORD})
        token = {"Authorization": answer.json()["token"]}
        client.post("/v3/kv/compaction", json={"revision": revision}, headers=token).raise_for_status()
        key = base64.b64encode(b"/").decode()
        client.post("/v3/kv/range", json={"key": key}, headers=token).raise_for_status()


def test_a_record_keeps_its_fence_id() -> None:
    serving = replace(leadership(), phase="serving", fence_id=UUID(int=7))
    assert Leadership.from_json(serving.to_json()).fence_id == UUID(int=7)


async def test_the_etcd_leader_hands_over_to_the_preferred_member_and_other_members_do_not(
    cluster: EtcdCluster,
) -> None:
    async with connect(cluster) as coordination:
        addresses = [parse_address(one) for one in cluster.endpoints]
        for wanted in (2, 0, 1):
            others = [number for number in range(3) if number != wanted]
            order = ["nobody", *(f"member-{number}" for number in (wanted, *others))]
            # Exactly one of the other members is the etcd leader, unless the wanted one is the leader already.
            moved = [await coordination.move_etcd_leader(addresses[number], order) for number in others]
            assert set(moved) <= {None, f"member-{wanted}"}
            assert await coordination.etcd_leader() == f"member-{wanted}"
            assert await coordination.move_etcd_leader(addresses[wanted], [f"member-{others[0]}"])
        assert await coordination.move_etcd_leader(parse_address("127.0.0.1:1"), ["member-0"]) is None


async def test_etcd_leadership_is_not_offered_to_an_unreachable_member(
    cluster: EtcdCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """etcd accepts no writes while it waits for such a member."""
    offered: list[int] = []

    async def noted(endpoint: Endpoint, member: int) -> None:
        offered.append(member)
        await moved(endpoint, member)

    moved = Endpoint.move_leader
    monkeypatch.setattr(Endpoint, "move_leader", noted)
    async with connect(cluster) as coordination, asyncio.timeout(120):
        await hand_over(coordination, cluster, source=1, to=("member-0",))
        await hand_over(coordination, cluster, source=0, to=("member-1",))
        unreachable = offered[-1]
        offered.clear()
        cluster.pause(1)
        try:
            await hand_over(coordination, cluster, source=0, to=("member-1", "member-2"))
        finally:
            cluster.resume(1)
        assert offered
        assert unreachable not in offered


async def hand_over(coordination: Coordination, cluster: EtcdCluster, *, source: int, to: tuple[str, ...]) -> None:
    """Move etcd's leadership away from a member; on a busy machine etcd may elect another leader at any time."""
    while True:
        for number, endpoint in enumerate(cluster.endpoints):
            targets = to if number == source else (f"member-{source}",)
            try:
                taken = await coordination.move_etcd_leader(parse_address(endpoint), targets)
            except EtcdUnavailable:
                continue
            if number == source and taken in to:
                return


async def test_etcd_leadership_stays_if_no_preferred_member_exists(cluster: EtcdCluster) -> None:
    async with connect(cluster) as coordination:
        handed = 0
        for endpoint in cluster.endpoints:
            try:
                assert await coordination.move_etcd_leader(parse_address(endpoint), ["nobody"]) is None
            except EtcdUnavailable:
                handed += 1
        assert handed == 1, "exactly the etcd leader must report that it found no preferred member"


async def test_a_request_to_a_paused_etcd_member_fails_in_bounded_time(cluster: EtcdCluster) -> None:
    async with connect(cluster) as coordination:
        cluster.pause(0)
        try:
            with pytest.raises(EtcdUnavailable):
                await coordination.move_etcd_leader(parse_address(cluster.endpoints[0]), ["member-1", "member-2"])
        finally:
            cluster.resume(0)

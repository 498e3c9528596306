"""ReplicationProxy on real PostgreSQL: prepared connections, advance requests, and direct connections without it."""

import asyncio
import contextlib
import gc
import os
import socket
import struct
from collections.abc import AsyncGenerator, Generator
from pathlib import Path
from typing import Any

import pytest

from regions.identity import RegionName, physical_slot_name
from regions.member import quorum_names
from regions.member.failover_member import Diverged, FailoverMember
from regions.member.replication_connection import ReplicationConnection
from regions.member.replication_proxy import ReplicationProxy
from regions.member.settings import SEGMENT_MB, proxy_name
from tests.regions.deployment import REGIONS, Deployment
from tests.regions.test_failover_member import (
    has_rows,
    insert_rows,
    kill,
    kill_leader,
    promote_manually,
    selected_rows,
    take_over,
    three_members,
)
from tests.waiting import until

pytestmark = pytest.mark.integration

EAST, WEST, SOUTH = REGIONS


async def walsenders(made: Deployment, region: RegionName, of: RegionName, state: str) -> list[int]:
    """Return the process ids of a member's walsenders for another region that are in this state."""
    connection = await made.connect(region)
    rows = await connection.fetch(
        "SELECT pid FROM pg_stat_replication WHERE application_name = $1 AND state = $2", of, state
    )
    await connection.close()
    return [row["pid"] for row in rows]


def path(member: FailoverMember, leader: RegionName, made: Deployment) -> str:
    return f"\0{proxy_name(member.settings)}/.s.PGSQL.{made.ledger(leader).port}"


@contextlib.contextmanager
def as_user(uid: int) -> Generator[None]:
    """Run as another user, whom the kernel then reports as the peer of a new connection (SO_PEERCRED)."""
    own = os.geteuid()
    os.seteuid(uid)
    try:
        yield
    finally:
        os.seteuid(own)


async def keep_all_connections(made: Deployment, member: FailoverMember) -> None:
    await member.keep_connections([made.ledger(region) for region in REGIONS if region != member.settings.region])


async def test_a_receiver_gets_the_prepared_connection() -> None:
    async with three_members() as (made, members):
        west = members[WEST]
        await west.freeze()
        await keep_all_connections(made, west)
        ready = await walsenders(made, EAST, WEST, "startup")
        assert len(ready) == 1
        before = west.proxy.connections[True]
        await west.follow(epoch=1, leader=made.ledger(EAST))
        assert west.proxy.connections[True] == before + 1
        assert await walsenders(made, EAST, WEST, "streaming") == ready
        await insert_rows(made, EAST, range(100))
        await until(lambda: has_rows(made, WEST, 100))


async def test_the_replication_proxy_sets_tcp_nodelay_on_new_and_on_prepared_connections() -> None:
    """Without TCP_NODELAY a follower's reply waits 40 ms for a delayed acknowledgement, and a commit for the reply."""
    async with three_members() as (made, members):
        west = members[WEST]
        passed_through = west.proxy.connections[False]
        assert passed_through, "no connection was prepared when the member followed for the first time"
        assert sockets_with_nagle(made, EAST) == []
        await west.freeze()
        await keep_all_connections(made, west)
        prepared = west.proxy.connections[True]
        await west.follow(epoch=1, leader=made.ledger(EAST))
        assert west.proxy.connections[True] > prepared
        assert sockets_with_nagle(made, EAST) == []


def sockets_with_nagle(made: Deployment, region: RegionName) -> list[socket.socket]:
    """Return this process's connections to a member without TCP_NODELAY; fails if it has no connection to it."""
    ours: list[socket.socket] = []
    for one in gc.get_objects():
        if isinstance(one, socket.socket) and one.fileno() >= 0 and one.family == socket.AF_INET:
            with contextlib.suppress(OSError):
                ours += [one] if one.getpeername()[1] == made.ledger(region).port else []
    assert ours
    return [one for one in ours if not one.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)]


async def test_a_connection_prepared_with_a_standby_is_used_after_its_promotion() -> None:
    async with three_members() as (made, members):
        south = members[SOUTH]
        await insert_rows(made, EAST, range(100))
        await keep_all_connections(made, south)
        ready = await walsenders(made, WEST, SOUTH, "startup")
        await kill_leader(members)
        await take_over(made, members, epoch=2)
        assert await walsenders(made, WEST, SOUTH, "streaming") == ready
        await insert_rows(made, WEST, range(100, 120))
        await until(lambda: has_rows(made, SOUTH, 120))
        # The old leader does not answer, and must not prevent connections to the other member.
        await keep_all_connections(made, south)
        assert await walsenders(made, WEST, SOUTH, "startup") != []


async def waiting_walsenders(made: Deployment, region: RegionName, of: RegionName) -> list[int]:
    """Return the process ids of a standby's walsenders that wait for its promotion, for another region."""
    connection = await made.connect(region)
    rows = await connection.fetch(
        "SELECT pid FROM pg_stat_activity WHERE application_name = $1 AND state = 'active' AND query LIKE '%COMMIT%'",
        of,
    )
    await connection.close()
    return [row["pid"] for row in rows]


@contextlib.asynccontextmanager
async def advance_request_harness() -> AsyncGenerator[
    tuple[Deployment, dict[RegionName, FailoverMember], "asyncio.Task[None]"]
]:
    """EAST is killed, WEST will be promoted, and SOUTH follows it already and has sent START_REPLICATION in advance."""
    async with three_members() as (made, members):
        west, south = members[WEST], members[SOUTH]
        await insert_rows(made, EAST, range(100))
        await keep_all_connections(made, south)
        await kill_leader(members)
        await frozen_with_a_quorum(west, south)
        following = asyncio.create_task(south.follow(epoch=2, leader=made.ledger(WEST)))
        await until(lambda: waiting_walsenders(made, WEST, SOUTH))
        try:
            yield made, members, following
        finally:
            following.cancel()
            await asyncio.wait([following])


async def frozen_with_a_quorum(west: FailoverMember, south: FailoverMember) -> None:
    await asyncio.gather(west.freeze(), south.freeze())
    await west.set_quorum(quorum_names((EAST, SOUTH), 1))


async def is_gone(made: Deployment, region: RegionName, of: RegionName) -> bool:
    """Return whether a member has no walsender for another region any more, and that region's slot is free."""
    connection = await made.connect(region)
    walsenders = await connection.fetchval("SELECT count(*) FROM pg_stat_replication WHERE application_name = $1", of)
    used = await connection.fetchval(
        "SELECT count(*) FROM pg_replication_slots WHERE slot_name = $1 AND active", physical_slot_name(of)
    )
    await connection.close()
    return walsenders == used == 0


async def test_an_advance_request_is_what_the_receiver_asks_for() -> None:
    async with advance_request_harness() as (made, members, following):
        ahead = await waiting_walsenders(made, WEST, SOUTH)
        await members[WEST].promote(epoch=2, followers=[EAST, SOUTH])
        await following
        await insert_rows(made, WEST, range(100, 120))
        assert members[SOUTH].proxy.advance_requests == {True: 1, False: 0}
        assert await walsenders(made, WEST, SOUTH, "streaming") == ahead
        assert (await members[WEST].ledger.read_standbys([SOUTH]))[0].sync_state == "quorum"
        await until(lambda: has_rows(made, SOUTH, 120))


async def test_a_receiver_that_asks_for_an_ended_timeline_is_refused_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    written: dict[Path, str] = {}

    async def later(member: FailoverMember, timeline: int, history: str) -> None:
        if history:
            written[member.settings.data / f"pg_wal/{timeline:08X}.history"] = history

    async def late_route(proxy: ReplicationProxy, near: socket.socket, opened: Any) -> None:
        # PostgreSQL has started a receiver by now, without the history of the new timeline.
        while written:
            path, history = written.popitem()
            path.write_text(history)
        await route(proxy, near, opened)

    route = ReplicationProxy._route  # the only way to act between a receiver's start and its request
    monkeypatch.setattr(FailoverMember, "_install_history", later)
    monkeypatch.setattr(ReplicationProxy, "_route", late_route)
    async with advance_request_harness() as (made, members, following):
        south = members[SOUTH]
        ahead = await waiting_walsenders(made, WEST, SOUTH)
        await members[WEST].promote(epoch=2, followers=[EAST, SOUTH])
        await following
        # The proxy refuses the first receiver, and PostgreSQL starts the next one by itself.
        await insert_rows(made, WEST, range(100, 120))
        await until(lambda: has_rows(made, SOUTH, 120))
        assert south.proxy.timeline_refusals == 1
        assert south.proxy.advance_requests == {True: 1, False: 0}
        assert await walsenders(made, WEST, SOUTH, "streaming") == ahead
        # Without the refusal the leader ends the stream, and PostgreSQL asks again half a second later.
        assert "replication terminated by primary server" not in south.settings.log.read_text()


async def test_a_member_that_lacks_the_end_of_the_old_timeline_receives_it_first() -> None:
    async with three_members() as (made, members):
        west, south = members[WEST], members[SOUTH]
        await south.freeze()
        await insert_rows(made, EAST, range(100))
        await until(lambda: has_rows(made, WEST, 100))
        await keep_all_connections(made, south)
        kill(members[EAST])
        await frozen_with_a_quorum(west, south)
        following = asyncio.create_task(south.follow(epoch=2, leader=made.ledger(WEST)))
        await west.promote(epoch=2, followers=[EAST, SOUTH])
        await following
        await insert_rows(made, WEST, range(100, 120))
        await until(lambda: has_rows(made, SOUTH, 120))
        assert "on timeline 1" in south.settings.log.read_text()
        assert south.proxy.timeline_refusals == 0


async def test_a_receiver_that_asks_for_something_else_gets_it_on_the_same_connection() -> None:
    async with three_members() as (made, members):
        west, south = members[WEST], members[SOUTH]
        await keep_all_connections(made, south)
        ready = await walsenders(made, WEST, SOUTH, "startup")
        await south.freeze()
        # SOUTH lacks these rows, so it requests the old timeline first.
        await insert_rows(made, EAST, range(100))
        kill(members[EAST])
        await frozen_with_a_quorum(west, south)
        await west.promote(epoch=2, followers=[EAST, SOUTH])
        await south.follow(epoch=2, leader=made.ledger(WEST))
        await insert_rows(made, WEST, range(100, 120))
        assert south.proxy.advance_requests == {True: 0, False: 1}
        assert await walsenders(made, WEST, SOUTH, "streaming") == ready
        await until(lambda: has_rows(made, SOUTH, 120))


async def test_a_refused_advance_request_is_repeated() -> None:
    async with advance_request_harness() as (made, members, following):
        await members[WEST].promote(epoch=2, followers=[EAST])  # so that SOUTH has no slot yet
        await until(lambda: members[SOUTH].proxy.advance_requests[True])
        refused = f'replication slot "{physical_slot_name(SOUTH)}" does not exist'
        await until(lambda: refused in members[SOUTH].settings.log.read_text())
        # A refused receiver looks alive for a moment, so only with a slot is the end of `follow` certain.
        await members[WEST].ledger.prepare_follower_slots([SOUTH])
        await following
        await insert_rows(made, WEST, range(100, 120))
        await until(lambda: has_rows(made, SOUTH, 120))


async def test_a_follower_that_stops_following_leaves_no_slot_in_use() -> None:
    async with advance_request_harness() as (made, members, following):
        following.cancel()
        await asyncio.wait([following])
        await until(lambda: is_gone(made, WEST, SOUTH))
        await members[WEST].promote(epoch=2, followers=[EAST, SOUTH])
        assert await is_gone(made, WEST, SOUTH)
        await members[SOUTH].follow(epoch=2, leader=made.ledger(WEST))
        await insert_rows(made, WEST, range(100, 120))


async def test_a_follower_that_has_diverged_leaves_no_slot_in_use() -> None:
    async with three_members() as (made, members):
        west, south = members[WEST], members[SOUTH]
        await keep_all_connections(made, south)
        await west.freeze()
        await insert_rows(made, EAST, range(100))
        kill(members[EAST])
        await frozen_with_a_quorum(west, south)
        await west.promote(epoch=2, followers=[EAST, SOUTH])
        with pytest.raises(Diverged):
            await south.follow(epoch=2, leader=made.ledger(WEST))
        await until(lambda: is_gone(made, WEST, SOUTH))


async def test_a_member_that_waits_for_its_next_leader_receives_nothing_from_the_previous_one() -> None:
    # If primary_conninfo changes while PostgreSQL receives, it may continue in the old timeline's file and start over.
    async with three_members() as (made, members):
        west, south = members[WEST], members[SOUTH]
        await keep_all_connections(made, south)
        await west.freeze()
        following = asyncio.create_task(south.follow(epoch=2, leader=made.ledger(WEST)))
        await until(lambda: waiting_walsenders(made, WEST, SOUTH))
        await until(lambda: receives_nothing(south))
        assert not following.done()
        await west.set_quorum(quorum_names((EAST, SOUTH), 1))
        await west.promote(epoch=2, followers=[EAST, SOUTH])
        await following


async def receives_nothing(member: FailoverMember) -> bool:
    return not (await member.ledger.one("read_frozen"))["receiving"]


async def test_an_advance_request_confirms_no_wal() -> None:
    async with three_members() as (made, members):
        west, south = members[WEST], members[SOUTH]
        await keep_all_connections(made, south)
        await kill_leader(members)
        await frozen_with_a_quorum(west, south)
        end = (await south.ledger.read_state()).lsn
        await south.proxy.request_in_advance(made.ledger(WEST), end - end % (SEGMENT_MB << 20))
        await west.promote(epoch=2, followers=[EAST, SOUTH])
        await until(lambda: walsenders(made, WEST, SOUTH, "streaming"))
        writing = asyncio.create_task(insert_rows(made, WEST, range(100)))
        await until(lambda: made.waiting_commits(WEST))
        assert not writing.done()
        assert await west.ledger.read_standbys([SOUTH]) == ()
        await south.follow(epoch=2, leader=made.ledger(WEST))
        await writing


async def test_a_freeze_cancels_the_advance_request() -> None:
    async with three_members() as (made, members):
        south = members[SOUTH]
        await keep_all_connections(made, south)
        await south.proxy.request_in_advance(made.ledger(WEST), 0)
        await until(lambda: waiting_walsenders(made, WEST, SOUTH))
        await south.freeze()
        await until(lambda: is_gone(made, WEST, SOUTH))


async def test_an_advance_request_does_not_block_a_direct_connection_if_the_socket_name_is_taken() -> None:
    async with advance_request_harness() as (made, members, following):
        with socket.socket(socket.AF_UNIX) as squatter:
            squatter.bind(path(members[SOUTH], WEST, made))
            squatter.listen()
            await members[WEST].promote(epoch=2, followers=[EAST, SOUTH])
            await following
        assert "@palaver" not in (members[SOUTH].settings.data / "palaver.conf").read_text()
        await insert_rows(made, WEST, range(100, 120))
        await until(lambda: has_rows(made, SOUTH, 120))


async def test_a_standby_that_is_not_promoted_refuses_an_advance_request_and_holds_no_slot() -> None:
    async with three_members() as (made, members):
        west, south = members[WEST], members[SOUTH]
        await keep_all_connections(made, south)
        await west.ledger.prepare_follower_slots([SOUTH])
        await south.proxy.request_in_advance(made.ledger(WEST), 0)
        waits = await waiting_walsenders(made, WEST, SOUTH)

        async def refused() -> bool:
            return "requested timeline 2 is not in this server's history" in west.settings.log.read_text()

        await until(refused)
        assert await walsenders(made, WEST, SOUTH, "startup") == waits
        south.proxy.cancel_advance_request()
        await until(lambda: is_gone(made, WEST, SOUTH))


async def test_a_primary_gets_no_advance_request() -> None:
    async with three_members() as (made, members):
        west = members[WEST]
        await west.freeze()
        await keep_all_connections(made, west)
        await west.follow(epoch=1, leader=made.ledger(EAST))
        await insert_rows(made, EAST, range(100))
        assert west.proxy.connections[True] > 0
        assert west.proxy.advance_requests == {True: 0, False: 0}


async def test_a_promoted_standby_is_recognised_as_primary_at_the_next_check() -> None:
    async with three_members() as (made, members):
        west, south = members[WEST], members[SOUTH]
        await keep_all_connections(made, south)
        await asyncio.gather(west.freeze(), south.freeze())
        await promote_manually(west)
        await west.ledger.prepare_follower_slots([SOUTH])
        await keep_all_connections(made, south)
        await south.follow(epoch=2, leader=made.ledger(WEST))
        await insert_rows(made, WEST, range(100))
        await until(lambda: has_rows(made, SOUTH, 100))
        assert south.proxy.connections[True] > 0
        assert south.proxy.advance_requests == {True: 0, False: 0}


async def test_postgresql_connects_directly_without_the_agent() -> None:
    async with three_members() as (made, members):
        west = members[WEST]
        proxied = await walsenders(made, EAST, WEST, "streaming")
        await west.drop_connections()
        await members[SOUTH].stop()
        # A commit needs one of the two standbys, and SOUTH is stopped, so WEST confirms it.
        await insert_rows(made, EAST, range(100))
        assert await selected_rows(made, WEST) == set(range(100))
        direct = await walsenders(made, EAST, WEST, "streaming")
        assert len(direct) == 1
        assert direct != proxied


async def test_postgresql_connects_directly_if_the_socket_name_is_taken() -> None:
    async with three_members() as (made, members):
        west = members[WEST]
        await west.freeze()
        with socket.socket(socket.AF_UNIX) as squatter:
            squatter.bind(path(west, EAST, made))
            squatter.listen()
            await west.follow(epoch=1, leader=made.ledger(EAST))
        assert "@palaver" not in (west.settings.data / "palaver.conf").read_text()
        await insert_rows(made, EAST, range(100))
        await until(lambda: has_rows(made, WEST, 100))


async def test_a_connection_that_completes_after_the_end_of_the_proxy_is_not_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    connected, ended, identify = asyncio.Event(), asyncio.Event(), ReplicationConnection.identify

    async def late(connection: ReplicationConnection) -> None:
        connected.set()
        await ended.wait()
        await identify(connection)

    monkeypatch.setattr(ReplicationConnection, "identify", late)
    async with three_members() as (made, members):
        west = members[WEST]
        keeping = asyncio.create_task(west.proxy.keep_connections([made.ledger(SOUTH)]))
        await connected.wait()
        west.proxy.end()
        ended.set()
        await keeping

        async def none_is_left() -> bool:
            return await walsenders(made, SOUTH, WEST, "startup") == []

        await until(none_is_left)


async def test_a_frozen_member_has_no_open_replication_proxy() -> None:
    async with three_members() as (made, members):
        west = members[WEST]
        connected = socket.socket(socket.AF_UNIX)
        connected.connect(path(west, EAST, made))
        connected.close()
        await west.freeze()
        with socket.socket(socket.AF_UNIX) as refused, pytest.raises(ConnectionRefusedError):
            refused.connect(path(west, EAST, made))


async def test_the_slot_synchronization_worker_connects_through_the_proxy() -> None:
    async with three_members() as (made, members):
        connection = await made.connect(EAST)
        await connection.execute("SELECT pg_create_logical_replication_slot('kept', 'pgoutput', failover => true)")
        await connection.close()

        async def heard_of() -> bool:
            # The worker logs that it cannot copy the slot before a client has read from it.
            return 'replication slot "kept"' in members[WEST].settings.log.read_text()

        await until(heard_of)
        assert members[WEST].proxy.passed == 1


@pytest.mark.skipif(os.geteuid() != 0, reason="needs another account")
async def test_only_the_account_of_postgresql_may_connect() -> None:
    async with three_members() as (made, members):
        west = members[WEST]
        startup = struct.pack("!IHH", 8 + 21, 3, 0) + b"replication\0true\0user\0\0"
        startup = struct.pack("!I", len(startup)) + startup[4:]
        account = west.settings.account
        assert account is not None

        async def answer(uid: int) -> bytes:
            with as_user(uid):
                reader, writer = await asyncio.open_unix_connection(path(west, EAST, made))
            writer.write(startup)
            try:
                return await reader.read(1)
            except ConnectionResetError:
                return b""
            finally:
                writer.close()

        assert await answer(account.uid) in (b"R", b"E"), "the other member answers, also to an unknown user"
        assert await answer(0) == b""
        assert await answer(account.uid + 1) == b""


async def test_a_malformed_startup_message_ends_only_its_own_connection() -> None:
    async with three_members() as (made, members):
        west = members[WEST]
        streaming = await walsenders(made, EAST, WEST, "streaming")
        nonsense = (b"GET / HTTP/1.1\r\n\r\n", struct.pack("!IHH", 8, 1234, 5679), b"\0\0\0\4", b"\xff" * 64)
        account = west.settings.account
        for data in nonsense:
            with as_user(os.geteuid() if account is None else account.uid):
                reader, writer = await asyncio.open_unix_connection(path(west, EAST, made))
            writer.write(data)
            with contextlib.suppress(ConnectionResetError):
                assert await reader.read() == b""
            writer.close()
        assert await walsenders(made, EAST, WEST, "streaming") == streaming

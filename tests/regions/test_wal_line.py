"""The line on which a member's receiver reaches the others, on real PostgreSQL."""

import asyncio
import contextlib
import os
import socket
import struct
from collections.abc import Generator

import pytest

from regions.identity import RegionName
from regions.member.moving import MovingMember
from regions.member.settings import line_name
from tests.regions.deployment import REGIONS, Deployment, until
from tests.regions.test_moving import has, keep, kept, kill, take_over, three

pytestmark = pytest.mark.integration

EAST, WEST, SOUTH = REGIONS


async def senders(made: Deployment, region: RegionName, of: RegionName, state: str) -> list[int]:
    """The walsenders of a member that do this for another region."""
    connection = await made.connect(region)
    rows = await connection.fetch(
        "SELECT pid FROM pg_stat_replication WHERE application_name = $1 AND state = $2", of, state
    )
    await connection.close()
    return [row["pid"] for row in rows]


def path(member: MovingMember, leader: RegionName, made: Deployment) -> str:
    return f"\0{line_name(member.settings)}/.s.PGSQL.{made.ledger(leader).port}"


@contextlib.contextmanager
def as_user(uid: int) -> Generator[None]:
    """Connect as another user: the kernel remembers who it was."""
    own = os.geteuid()
    os.seteuid(uid)
    try:
        yield
    finally:
        os.seteuid(own)


async def everybody_but(made: Deployment, member: MovingMember) -> None:
    await member.stay_in_touch([made.ledger(region) for region in REGIONS if region != member.settings.region])


async def test_a_receiver_is_led_over_the_connection_that_was_kept_ready() -> None:
    async with three() as (made, members):
        west = members[WEST]
        await west.freeze()
        await everybody_but(made, west)
        ready = await senders(made, EAST, WEST, "startup")
        assert len(ready) == 1
        before = west.line.taken[True]
        await west.follow(epoch=1, leader=made.ledger(EAST))
        assert west.line.taken[True] == before + 1
        assert await senders(made, EAST, WEST, "streaming") == ready
        await keep(made, EAST, range(100))
        await until(lambda: has(made, WEST, 100))


async def test_what_was_made_ready_with_a_standby_leads_to_the_leader_that_it_becomes() -> None:
    async with three() as (made, members):
        south = members[SOUTH]
        await keep(made, EAST, range(100))
        await everybody_but(made, south)
        ready = await senders(made, WEST, SOUTH, "startup")
        kill(members[EAST])
        await take_over(made, members, epoch=2)
        assert await senders(made, WEST, SOUTH, "streaming") == ready
        await keep(made, WEST, range(100, 120))
        await until(lambda: has(made, SOUTH, 120))
        # Of the old leader nothing answers any more.
        await everybody_but(made, south)
        assert await senders(made, WEST, SOUTH, "startup") != []


async def test_without_the_agent_postgresql_connects_by_itself() -> None:
    async with three() as (made, members):
        west = members[WEST]
        led = await senders(made, EAST, WEST, "streaming")
        await west.lose_touch()
        await members[SOUTH].stop()
        # One of two is enough for a commit, and this is the one.
        await keep(made, EAST, range(100))
        assert await kept(made, WEST) == set(range(100))
        alone = await senders(made, EAST, WEST, "streaming")
        assert len(alone) == 1
        assert alone != led


async def test_where_the_name_is_taken_postgresql_is_told_to_connect_by_itself() -> None:
    async with three() as (made, members):
        west = members[WEST]
        await west.freeze()
        with socket.socket(socket.AF_UNIX) as squatter:
            squatter.bind(path(west, EAST, made))
            squatter.listen()
            await west.follow(epoch=1, leader=made.ledger(EAST))
        assert "@palaver" not in (west.settings.data / "palaver.conf").read_text()
        await keep(made, EAST, range(100))
        await until(lambda: has(made, WEST, 100))


async def test_a_connection_that_was_made_while_everything_ended_is_not_kept() -> None:
    async with three() as (made, members):
        west = members[WEST]
        keeping = asyncio.create_task(west.line.keep([made.ledger(SOUTH)]))
        for _ in range(3):
            await asyncio.sleep(0)  # it connects by now
        west.line.end()
        await keeping

        async def none_is_left() -> bool:
            return await senders(made, SOUTH, WEST, "startup") == []

        await until(none_is_left)


async def test_a_frozen_member_has_no_line() -> None:
    async with three() as (made, members):
        west = members[WEST]
        connected = socket.socket(socket.AF_UNIX)
        connected.connect(path(west, EAST, made))
        connected.close()
        await west.freeze()
        with socket.socket(socket.AF_UNIX) as refused, pytest.raises(ConnectionRefusedError):
            refused.connect(path(west, EAST, made))


async def test_who_copies_slots_asks_over_the_line_too() -> None:
    async with three() as (made, members):
        connection = await made.connect(EAST)
        await connection.execute("SELECT pg_create_logical_replication_slot('kept', 'pgoutput', failover => true)")
        await connection.close()

        async def heard_of() -> bool:
            # It takes the slot over once somebody has read from it.
            return 'replication slot "kept"' in members[WEST].settings.log.read_text()

        await until(heard_of)
        assert members[WEST].line.passed == 1


@pytest.mark.skipif(os.geteuid() != 0, reason="needs another account")
async def test_only_the_account_of_postgresql_is_let_in() -> None:
    async with three() as (made, members):
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

        assert await answer(account.uid) in (b"R", b"E"), "whatever the other member says to a stranger"
        assert await answer(0) == b""
        assert await answer(account.uid + 1) == b""


async def test_nonsense_ends_its_own_connection_and_nothing_else() -> None:
    async with three() as (made, members):
        west = members[WEST]
        streaming = await senders(made, EAST, WEST, "streaming")
        nonsense = (b"GET / HTTP/1.1\r\n\r\n", struct.pack("!IHH", 8, 1234, 5679), b"\0\0\0\4", b"\xff" * 64)
        account = west.settings.account
        for said in nonsense:
            with as_user(os.geteuid() if account is None else account.uid):
                reader, writer = await asyncio.open_unix_connection(path(west, EAST, made))
            writer.write(said)
            with contextlib.suppress(ConnectionResetError):
                assert await reader.read() == b""
            writer.close()
        assert await senders(made, EAST, WEST, "streaming") == streaming

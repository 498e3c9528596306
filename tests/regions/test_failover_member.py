"""FailoverMember on real PostgreSQL: freeze, promote, follow, rewind, and repetitions of each."""

import asyncio
import contextlib
import os
import re
import signal
import socket
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from uuid import UUID

import asyncpg
import pytest

from regions.identity import RegionName, physical_slot_name, slot_name
from regions.leadership import ANCESTRY_MAX
from regions.member import MemberFailed, failover_member, quorum_names
from regions.member.failover_member import Diverged, FailoverMember, FrozenStandby
from regions.member.settings import proxy_name
from regions.topology import Address
from tests.regions.deployment import REGIONS, Deployment, copy_prepared, deployment
from tests.tcp_proxy import TcpProxy
from tests.waiting import until

pytestmark = pytest.mark.integration

EAST, WEST, SOUTH = REGIONS


@asynccontextmanager
async def three_members() -> AsyncGenerator[tuple[Deployment, dict[RegionName, FailoverMember]]]:
    """Run three members; EAST leads epoch 1 with a quorum of one of the other two."""
    async with deployment() as made:
        members = await copy_prepared(made)
        leader = members[EAST]
        await leader.start_primary(epoch=1, synchronous_standby_names="")
        await asyncio.gather(*(members[region].follow(epoch=1, leader=made.ledger(EAST)) for region in (WEST, SOUTH)))
        await leader.set_quorum(quorum_names((WEST, SOUTH), 1))
        await leader.ledger.write_fence_row(epoch=1, fence_id=UUID(int=1), leader=EAST)
        try:
            # The quorum is one of two, so one standby has the fence row, and the other gets it a moment later.
            await asyncio.gather(*(until(lambda member=members[region]: has_fence(member)) for region in (WEST, SOUTH)))
            yield made, members
        finally:
            for member in members.values():
                await member.stop()


async def has_fence(member: FailoverMember) -> bool:
    return await member.ledger.read_fence_epochs(ANCESTRY_MAX) == (1,)


async def insert_rows(made: Deployment, region: RegionName, numbers: range) -> None:
    connection = await made.connect(region)
    try:
        await connection.executemany("INSERT INTO palaver.kept (n) VALUES ($1)", [(number,) for number in numbers])
    finally:
        await connection.close()


async def selected_rows(made: Deployment, region: RegionName) -> set[int]:
    connection = await made.connect(region)
    try:
        return {row["n"] for row in await connection.fetch("SELECT n FROM palaver.kept")}
    finally:
        await connection.close()


def kill(member: FailoverMember) -> None:
    assert member.process is not None
    os.kill(member.process.pid, signal.SIGKILL)


async def kill_leader(members: dict[RegionName, FailoverMember]) -> None:
    """Kill EAST when both followers have its WAL, so that WEST may be promoted; a member that lacks WAL may not."""
    flushed = (await members[EAST].ledger.read_state()).lsn
    await asyncio.gather(*(until(lambda one=members[region]: caught_up(one, flushed)) for region in (WEST, SOUTH)))
    kill(members[EAST])


async def freeze_both(members: dict[RegionName, FailoverMember]) -> None:
    """Freeze SOUTH, then WEST when it has at least as much WAL; while EAST runs, either may have more."""
    south = await members[SOUTH].freeze()
    end = max(south.received or 0, south.replayed)
    await until(lambda: caught_up(members[WEST], end))
    await members[WEST].freeze()


async def take_over(made: Deployment, members: dict[RegionName, FailoverMember], *, epoch: int) -> None:
    """Execute what the failover core orders if EAST is lost and WEST is the candidate with the best vote."""
    west, south = members[WEST], members[SOUTH]
    frozen = dict(zip((WEST, SOUTH), await asyncio.gather(west.freeze(), south.freeze()), strict=True))
    assert {region: (one.settled, one.fence_epochs) for region, one in frozen.items()} == dict.fromkeys(
        frozen, (True, (1,))
    )
    await west.set_quorum(quorum_names((EAST, SOUTH), 1))
    await west.promote(epoch=epoch, followers=[EAST, SOUTH])
    await south.follow(epoch=epoch, leader=made.ledger(WEST))
    await west.ledger.write_fence_row(epoch=epoch, fence_id=UUID(int=epoch), leader=WEST)


async def test_a_frozen_member_receives_nothing_and_reports_the_end_of_its_wal() -> None:
    async with three_members() as (made, members):
        await insert_rows(made, EAST, range(100))
        flushed = (await members[EAST].ledger.read_state()).lsn
        await until(lambda: caught_up(members[WEST], flushed))
        frozen = await members[WEST].freeze()
        assert frozen.settled
        assert frozen.fence_epochs == (1,)
        assert max(frozen.received or 0, frozen.replayed) >= flushed
        await insert_rows(made, EAST, range(100, 200))
        assert await members[WEST].freeze() == frozen
        assert await selected_rows(made, WEST) == set(range(100))
        await members[WEST].follow(epoch=1, leader=made.ledger(EAST))
        await until(lambda: has_rows(made, WEST, 200))


async def test_a_transaction_on_a_follower_does_not_delay_a_failover() -> None:
    """A standby cancels transactions that conflict with replay, also those of its slot synchronization worker."""
    async with three_members() as (made, members):
        await insert_rows(made, EAST, range(5))
        readers = [await made.connect(region) for region in (WEST, SOUTH)]
        for reader in readers:
            await reader.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
            assert await reader.fetchval("SELECT count(*) FROM palaver.kept") == 5
        leader = await made.connect(EAST)
        await leader.execute("LOCK TABLE palaver.kept; ALTER TABLE palaver.kept ADD COLUMN more int")
        await leader.close()
        await insert_rows(made, EAST, range(5, 10))
        await kill_leader(members)
        await take_over(made, members, epoch=2)
        assert await selected_rows(made, WEST) == set(range(10))
        for reader in readers:
            reader.terminate()


async def caught_up(member: FailoverMember, lsn: int) -> bool:
    return (await member.ledger.read_state()).lsn >= lsn


async def has_rows(made: Deployment, region: RegionName, count: int) -> bool:
    return len(await selected_rows(made, region)) == count


async def test_acknowledged_writes_survive_a_kill_of_the_leader_and_a_promotion() -> None:
    async with three_members() as (made, members):
        await insert_rows(made, EAST, range(100))
        await kill_leader(members)
        await take_over(made, members, epoch=2)
        await insert_rows(made, WEST, range(100, 120))
        assert await selected_rows(made, WEST) == set(range(120))
        await until(lambda: has_rows(made, SOUTH, 120))
        again = await members[WEST].ledger.read_fence_epochs(ANCESTRY_MAX)
        assert again == (1, 2)


async def test_a_follower_sets_its_future_quorum_in_advance_and_leads_with_it() -> None:
    async with three_members() as (made, members):
        west, names = members[WEST], quorum_names((EAST, SOUTH), 1)
        await west.prepare_to_lead(names, (EAST, SOUTH))
        assert (await west.ledger.read_state()).synchronous_standby_names == names
        checkpoints = await restartpoints(west)
        await kill_leader(members)
        await west.freeze()
        await west.set_quorum(names)
        assert await restartpoints(west) == checkpoints, "a prepared quorum must not need a checkpoint"
        await take_over(made, members, epoch=2)
        assert (await west.ledger.read_state()).synchronous_standby_names == names
        await members[SOUTH].stop()
        connection = await made.connect(WEST)
        waiting = asyncio.create_task(connection.execute("INSERT INTO palaver.kept VALUES (7)"))
        await until(lambda: made.waiting_commits(WEST))
        assert not waiting.done()
        connection.terminate()
        await asyncio.wait([waiting])
        assert isinstance(waiting.exception(), Exception)


async def test_prepared_slots_reserve_no_wal_until_their_member_leads() -> None:
    async with three_members() as (made, members):
        west, ledger = members[WEST], members[WEST].ledger
        await west.prepare_to_lead(quorum_names((EAST, SOUTH), 1), (EAST, SOUTH))
        names = {physical_slot_name(EAST), physical_slot_name(SOUTH)}
        assert await reserving(west) == dict.fromkeys(names, False)
        await kill_leader(members)
        await take_over(made, members, epoch=2)
        assert await reserving(west) == {physical_slot_name(EAST): False, physical_slot_name(SOUTH): True}, (
            "only SOUTH streams"
        )
        # The leader repeats this each second, so that it also reserves WAL for members that are down.
        await ledger.prepare_follower_slots([EAST, SOUTH])
        assert await reserving(west) == dict.fromkeys(names, True)


async def reserving(member: FailoverMember) -> dict[str, bool]:
    """Return for each follower slot of a member whether it reserves WAL."""
    connection = await asyncpg.connect(member.ledger.url)
    try:
        text = (
            "SELECT slot_name, restart_lsn IS NOT NULL AS keeps FROM pg_replication_slots WHERE slot_type = 'physical'"
        )
        return {row["slot_name"]: row["keeps"] for row in await connection.fetch(text)}
    finally:
        await connection.close()


async def restartpoints(member: FailoverMember) -> int:
    connection = await asyncpg.connect(member.ledger.url)
    try:
        return int(await connection.fetchval("SELECT restartpoints_req + num_requested FROM pg_stat_checkpointer"))
    finally:
        await connection.close()


async def test_a_quorum_other_than_the_prepared_one_is_put_in_force() -> None:
    async with three_members() as (_, members):
        west, names = members[WEST], quorum_names((EAST, SOUTH), 1)
        await west.prepare_to_lead(quorum_names((SOUTH,), 1), (SOUTH,))
        await west.freeze()
        await west.set_quorum(names)
        assert (await west.ledger.read_state()).synchronous_standby_names == names
        # Only the core sets the quorum of a leader, and of a member that is about to be promoted.
        await west.prepare_to_lead(quorum_names((SOUTH,), 1), (SOUTH,))
        assert (await west.ledger.read_state()).synchronous_standby_names == names


async def test_verification_of_a_quorum_that_is_not_in_force_fails() -> None:
    async with three_members() as (_, members):
        with pytest.raises(MemberFailed, match="synchronous_standby_names is"):
            await members[WEST].ledger.verify_quorum("ANY 1 (nobody)")


async def test_a_follower_has_the_history_of_the_new_timeline_before_it_connects() -> None:
    async with three_members() as (made, members):
        await kill_leader(members)
        await take_over(made, members, epoch=2)
        log = members[SOUTH].settings.log.read_text()
        assert re.search(r"treaming (WAL|at).* on timeline 2", log)
        # PostgreSQL reads the history either before or some milliseconds after it requests its old timeline.
        assert "fetching timeline history" not in log, "the history must be on disk before the receiver connects"


async def test_a_stream_slot_that_no_replicator_reads_does_not_count_as_missing() -> None:
    async with three_members() as (made, members):
        east, south = members[EAST], members[SOUTH]
        await south.stop()
        await east.ledger.prepare_slots(followers=(), streams=[WEST])
        await insert_rows(made, EAST, range(5))
        await south.follow(epoch=1, leader=made.ledger(EAST))
        # The slot needs older catalog rows than the standby still has, so its copy stays temporary.
        await until(lambda: has_a_copy_that_is_not_whole(made, SOUTH))
        assert (await east.ledger.one("read_streams", False))["names"] == [slot_name(WEST)]
        assert (await east.ledger.one("read_streams", True))["names"] == []
        assert (await south.ledger.one("read_streams", False))["names"] == [], "a temporary copy does not count"
        assert await east.missing_stream_slots(made.ledger(SOUTH)) == ()
        await south.stop()
        with pytest.raises(MemberFailed):
            await east.missing_stream_slots(made.ledger(SOUTH))


async def has_a_copy_that_is_not_whole(made: Deployment, region: RegionName) -> bool:
    connection = await made.connect(region)
    try:
        return bool(await connection.fetchval("SELECT count(*) FROM pg_replication_slots WHERE synced AND temporary"))
    finally:
        await connection.close()


async def test_a_member_is_not_promoted_before_its_quorum_is_set() -> None:
    async with three_members() as (_, members):
        await members[WEST].freeze()
        with pytest.raises(MemberFailed, match="quorum"):
            await members[WEST].promote(epoch=2, followers=[EAST, SOUTH])


async def begin_a_promotion(member: FailoverMember, *, epoch: int) -> None:
    """Order a promotion that PostgreSQL cannot begin, as if the agent had died before it wrote the signal file."""
    signal_file = member.settings.data / "promote"
    signal_file.mkdir()
    with pytest.raises(MemberFailed, match="promote"):
        await member.promote(epoch=epoch, followers=[EAST, SOUTH])
    signal_file.rmdir()


def recorded(member: FailoverMember) -> tuple[str, int]:
    """Return the role and the epoch in the member's record on disk."""
    found = member.start_record
    assert found is not None
    return found.role, found.epoch


async def test_a_member_is_recorded_as_primary_before_its_promotion_and_until_it_follows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(failover_member, "FOLLOW_S_MAX", 0.5)
    async with three_members() as (made, members):
        west = members[WEST]
        await west.freeze()
        assert recorded(west) == ("standby", 1)
        await west.set_quorum(quorum_names((EAST, SOUTH), 1))
        await begin_a_promotion(west, epoch=2)
        assert recorded(west) == ("primary", 2)
        # It is still a standby, and may be promoted at any time until it follows another member.
        await members[SOUTH].freeze()
        with pytest.raises(MemberFailed, match="is not primary after"):
            await west.follow(epoch=3, leader=made.ledger(SOUTH))
        assert recorded(west) == ("primary", 2)
        monkeypatch.undo()
        await west.follow(epoch=3, leader=made.ledger(EAST))
        assert recorded(west) == ("standby", 3)


async def test_a_member_is_recorded_as_primary_before_it_is_started_as_one(tmp_path: Path) -> None:
    async with deployment() as made:
        settings = made.settings(EAST)
        await FailoverMember(settings).initialise()
        # Without the program the start fails, as if the agent had died between the record and the start.
        member = FailoverMember(replace(settings, programs=tmp_path))
        with pytest.raises(MemberFailed, match="cannot be started"):
            await member.start_primary(epoch=7, synchronous_standby_names="")
        # It may have been started and have written WAL, so the next start needs another epoch (rule 8).
        assert recorded(member) == ("primary", 7)


async def test_the_replication_proxy_closes_only_after_postgresql_reloads_an_empty_primary_conninfo() -> None:
    async with three_members() as (made, members):
        west = members[WEST]
        async with west.ledger._using_kept:  # the reload waits for this lock
            freezing = asyncio.create_task(west._stop_receiving())
            for _ in range(5):
                await asyncio.sleep(0)
            assert not freezing.done()
            assert "primary_conninfo = ''" in (west.settings.data / "palaver.conf").read_text()
            assert proxy_listens(made, west, EAST), "a receiver that is disconnected before the reload connects again"
        await freezing
        assert not proxy_listens(made, west, EAST)


def proxy_listens(made: Deployment, member: FailoverMember, leader: RegionName) -> bool:
    """Return whether a member's replication proxy accepts connections to a leader."""
    with socket.socket(socket.AF_UNIX) as receiver:
        try:
            receiver.connect(f"\0{proxy_name(member.settings)}/.s.PGSQL.{made.ledger(leader).port}")
        except ConnectionRefusedError:
            return False
    return True


async def test_a_member_with_unreplayed_wal_is_not_frozen(monkeypatch: pytest.MonkeyPatch) -> None:
    async with three_members() as (made, members):
        west = members[WEST]
        await delay_replay(west, "1h")
        await insert_rows(made, EAST, range(10))
        flushed = (await members[EAST].ledger.read_state()).lsn
        await until(lambda: caught_up(west, flushed))
        monkeypatch.setattr(failover_member, "FREEZE_S_MAX", 0.5)
        running = await freeze_until_receiver_ends(west)
        assert (running.receiving, running.received is not None, running.torn) == (False, True, False)
        assert not running.settled
        # After a restart only the progress of replay shows that there is more WAL.
        await west.stop()
        restarted = await freeze_until_receiver_ends(west)
        assert (restarted.receiving, restarted.received) == (False, None)
        assert restarted.replayed < flushed
        assert not restarted.settled
        monkeypatch.undo()
        await delay_replay(west, "0")
        frozen = await west.freeze()
        assert frozen.settled
        assert frozen.replayed >= flushed
        assert await selected_rows(made, WEST) == set(range(10))


async def freeze_until_receiver_ends(member: FailoverMember) -> FrozenStandby:
    """Freeze a member until its receiver has ended; the test shortens the time limit of one freeze."""

    async def frozen() -> FrozenStandby | None:
        try:
            found = await member.freeze()
        except MemberFailed:
            # Its receiver had not ended within the time limit; a permanent failure ends the wait with a timeout.
            return None
        return None if found.receiving else found

    return await until(frozen)


async def delay_replay(member: FailoverMember, delay: str) -> None:
    """Let a standby replay each commit with a delay, also after a restart."""
    (member.settings.data / "postgresql.auto.conf").write_text(f"recovery_min_apply_delay = '{delay}'\n")
    await member.ledger.run("reload")

    async def in_force() -> bool:
        connection = await asyncpg.connect(member.ledger.url)
        try:
            return await connection.fetchval("SHOW recovery_min_apply_delay") == delay
        finally:
            await connection.close()

    await until(in_force)


async def test_a_receiver_that_is_still_connecting_counts_as_receiving() -> None:
    async with three_members() as (made, members):
        west = members[WEST]
        await members[SOUTH].stop()
        await west.stop()
        with socket.create_server(("127.0.0.1", made.ledger(SOUTH).port)):  # accepts connections and answers nothing
            await west.start_standby(epoch=1, leader=made.ledger(SOUTH))
            await until(lambda: is_receiving(west))
        assert (await west.freeze()).settled


async def is_receiving(member: FailoverMember) -> bool:
    return (await member.ledger.one("read_frozen"))["receiving"]


async def test_an_old_primary_with_diverged_wal_is_rewound_and_loses_it() -> None:
    async with three_members() as (made, members):
        await insert_rows(made, EAST, range(10))
        await freeze_both(members)
        # No standby confirms this row, so only the old primary's disk has it.
        connection = await made.connect(EAST)
        waiting = asyncio.create_task(connection.execute("INSERT INTO palaver.kept VALUES (666)"))
        await until(lambda: made.waiting_commits(EAST))
        kill(members[EAST])
        await asyncio.wait([waiting])
        assert isinstance(waiting.exception(), Exception)
        connection.terminate()
        await take_over(made, members, epoch=2)
        await insert_rows(made, WEST, range(10, 20))
        east = members[EAST]
        frozen = await east.freeze()
        assert frozen.settled
        assert 666 in await selected_rows(made, EAST)
        with pytest.raises(Diverged):
            await east.follow(epoch=2, leader=made.ledger(WEST))
        await east.rewind(made.ledger(WEST))
        await east.follow(epoch=2, leader=made.ledger(WEST))
        await until(lambda: has_rows(made, EAST, 20))
        assert 666 not in await selected_rows(made, EAST)


async def test_a_member_is_rewound_from_a_leader_under_load() -> None:
    async with three_members() as (made, members):
        await freeze_both(members)
        await insert_local_row(made, EAST, 666)
        kill(members[EAST])
        await take_over(made, members, epoch=2)
        east = members[EAST]
        await east.freeze()
        async with writing(made, WEST) as written:
            await east.rewind(made.ledger(WEST))
            await until(lambda: len(written) > 50)
            # A restarted agent can continue from here.
            again = FailoverMember(made.settings(EAST))
            members[EAST] = again
            await again.follow(epoch=2, leader=made.ledger(WEST))
        await until(lambda: has_rows(made, EAST, len(written)))
        assert await selected_rows(made, EAST) == set(written)


async def test_a_member_with_half_a_record_is_frozen_and_follows_the_next_leader() -> None:
    """The leader is killed after its followers have received a part of a record that is longer than a segment."""
    async with three_members() as (made, members), contextlib.AsyncExitStack() as proxies:
        await insert_rows(made, EAST, range(5))
        west, south = members[WEST], members[SOUTH]
        for member in (west, south):
            await member.freeze()
            port = await proxies.enter_async_context(LimitedProxy(made.ledger(EAST).port).listening())
            await member.follow(epoch=1, leader=Address("127.0.0.1", port))
        connection = await made.connect(EAST)
        record = f"repeat('x', {RECORD_BYTES})"
        await connection.execute(f"SELECT pg_logical_emit_message(false, 'test', {record}, true)")
        await connection.close()
        await asyncio.gather(*(until(lambda one=member: has_half_a_record(one)) for member in (west, south)))
        kill(members[EAST])
        for frozen in await asyncio.gather(west.freeze(), south.freeze()):
            assert frozen.torn, "only the rest of the record is missing"
            assert frozen.settled
        await west.set_quorum(quorum_names((EAST, SOUTH), 1))
        following = asyncio.create_task(south.follow(epoch=2, leader=made.ledger(WEST)))
        await west.promote(epoch=2, followers=[EAST, SOUTH])
        await following
        await insert_rows(made, WEST, range(5, 10))
        await until(lambda: has_rows(made, SOUTH, 10))


RECORD_BYTES = 64 << 20
SENT_BYTES_MAX = 40 << 20
"""More than two segments, and less than the record."""


async def has_half_a_record(member: FailoverMember) -> bool:
    row = await member.ledger.one("read_frozen")
    return int(row["received"] or 0) - int(row["replayed"] or 0) > SENT_BYTES_MAX // 2


class LimitedProxy(TcpProxy):
    """Forwards SENT_BYTES_MAX bytes of the server's responses, on all connections together, and drops the rest."""

    def __init__(self, port: int) -> None:
        super().__init__(port)
        self._left = SENT_BYTES_MAX

    def pass_response(self, data: bytes) -> bytes:
        passed = data[: self._left]
        self._left -= len(passed)
        return passed


async def test_a_rewound_member_is_copied_if_its_leader_lacks_the_wal_that_it_needs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(failover_member, "MISSING_WAL_S_MAX", 3600.0)
    async with three_members() as (made, members):
        connection = await made.connect(EAST)
        # Its recovery begins in a segment before the one in which the timelines diverge.
        await connection.execute("CHECKPOINT")
        await connection.execute("SELECT pg_switch_wal()")
        await connection.close()
        await insert_rows(made, EAST, range(5))
        await freeze_both(members)
        await insert_local_row(made, EAST, 666)
        kill(members[EAST])
        await take_over(made, members, epoch=2)
        east, west = members[EAST], made.ledger(WEST)
        await east.freeze()
        await east.rewind(west)
        for member in (east, members[WEST]):
            for segment in (member.settings.data / "pg_wal").glob("00000001????????????????"):
                segment.unlink()
        following = asyncio.create_task(east.follow(epoch=2, leader=west))
        await until(lambda: east.running)
        following.cancel()
        await asyncio.wait([following])
        with pytest.raises(MemberFailed):
            await east.follow(epoch=2, leader=west)
        monkeypatch.setattr(failover_member, "MISSING_WAL_S_MAX", 0.0)
        with pytest.raises(Diverged, match="lacks since its rewind"):
            await east.follow(epoch=2, leader=west)
        await east.copy(west)
        await east.follow(epoch=2, leader=west)
        await insert_rows(made, WEST, range(5, 10))
        await until(lambda: has_rows(made, EAST, 10))


async def test_wal_from_before_a_checkpoint_is_kept_for_rewinds() -> None:
    """A rewound member needs WAL from the start of its checkpoint; pg_rewind leaves only WAL that the source has."""
    async with three_members() as (made, members):
        first = next((members[EAST].settings.data / "pg_wal").glob("00000001????????????????"))
        connection = await made.connect(EAST)
        for number in range(3):
            await connection.execute("INSERT INTO palaver.kept VALUES ($1)", number)
            await connection.execute("SELECT pg_switch_wal()")
            await until(lambda seen=number + 1: has_rows(made, SOUTH, seen))
            await connection.execute("CHECKPOINT")
        await connection.close()
        assert first.exists()


async def test_a_member_rewound_from_another_leader_counts_as_diverged_until_it_has_followed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with three_members() as (made, members):
        await freeze_both(members)
        await insert_local_row(made, EAST, 666)
        kill(members[EAST])
        await take_over(made, members, epoch=2)
        await members[EAST].freeze()
        await members[EAST].rewind(made.ledger(WEST))
        monkeypatch.setattr(failover_member, "FOLLOW_S_MAX", -1.0)
        with pytest.raises(MemberFailed, match="no WAL streams"):
            await members[EAST].follow(epoch=2, leader=made.ledger(WEST))
        monkeypatch.undo()
        with pytest.raises(Diverged, match="has not caught up"):
            await members[EAST].follow(epoch=3, leader=made.ledger(SOUTH))
        await members[EAST].copy(made.ledger(WEST))
        await members[EAST].follow(epoch=2, leader=made.ledger(WEST))


@asynccontextmanager
async def writing(made: Deployment, region: RegionName) -> AsyncGenerator[list[int]]:
    """Insert the numbers from 0 on until the context ends; the list has the committed ones."""
    written: list[int] = []
    connection = await made.connect(region)
    done = asyncio.Event()

    async def write() -> None:
        while not done.is_set():
            await connection.execute("INSERT INTO palaver.kept VALUES ($1)", len(written))
            written.append(len(written))

    task = asyncio.create_task(write())
    try:
        yield written
    finally:
        done.set()
        await asyncio.wait([task])
        connection.terminate()


async def insert_local_row(made: Deployment, region: RegionName, number: int) -> None:
    """Insert a row without waiting for a standby."""
    connection = await made.connect(region)
    await connection.execute("SET synchronous_commit = local")
    await connection.execute("INSERT INTO palaver.kept VALUES ($1)", number)
    connection.terminate()


async def test_two_timelines_with_the_same_number_are_distinguished() -> None:
    async with three_members() as (made, members):
        west, south = members[WEST], members[SOUTH]
        await west.freeze()
        await insert_rows(made, EAST, range(10))
        kill(members[EAST])
        await promote_manually(west)
        await west.stop()
        # An operator may do this to undo the promotion.
        (made.settings(WEST).data / "standby.signal").touch()
        await south.freeze()
        await south.set_quorum(quorum_names((EAST, WEST), 1))
        await south.promote(epoch=2, followers=[EAST, WEST])
        with pytest.raises(Diverged, match="timeline 2 began elsewhere"):
            await west.follow(epoch=2, leader=made.ledger(SOUTH))


async def promote_manually(member: FailoverMember) -> None:
    """Promote a member without its agent's methods, like an operator."""
    await member.ledger.run("promote")
    await until(lambda: is_primary(member))


async def is_primary(member: FailoverMember) -> bool:
    return not (await member.ledger.read_state()).in_recovery


async def test_a_primary_that_was_shut_down_cleanly_follows_without_a_rewind() -> None:
    async with three_members() as (made, members):
        await insert_rows(made, EAST, range(10))
        await members[EAST].stop()
        await take_over(made, members, epoch=2)
        await members[EAST].follow(epoch=2, leader=made.ledger(WEST))
        await insert_rows(made, WEST, range(10, 12))
        await until(lambda: has_rows(made, EAST, 12))


async def test_a_primary_that_follows_replaces_its_slots_with_copies_of_its_leaders() -> None:
    async with three_members() as (made, members):
        await members[EAST].ledger.prepare_slots(followers=[], streams=[SOUTH])
        await until(lambda: consumed(made, EAST, WEST))
        await members[EAST].stop()
        await take_over(made, members, epoch=2)
        await members[EAST].follow(epoch=2, leader=made.ledger(WEST))
        # Its own logical slot would block the copy of the leader's, and its physical slots would reserve WAL forever.
        await until(lambda: consumed(made, WEST, EAST))


async def consumed(made: Deployment, leader: RegionName, follower: RegionName) -> bool:
    """Advance the stream slot of a region; return whether the follower's only slot is a copy of it."""
    connection = await made.connect(leader)
    try:
        await connection.execute("SELECT pg_log_standby_snapshot()")
        await connection.execute("SELECT pg_replication_slot_advance('palaver_ap_south', pg_current_wal_lsn())")
    finally:
        await connection.close()
    return await slots(made, follower) == {"palaver_ap_south": True}


async def slots(made: Deployment, region: RegionName) -> dict[str, bool]:
    """Return for each permanent slot of a member whether it is a copy of its leader's."""
    connection = await made.connect(region)
    try:
        rows = await connection.fetch("SELECT slot_name, synced FROM pg_replication_slots WHERE NOT temporary")
    finally:
        await connection.close()
    return {row["slot_name"]: row["synced"] for row in rows}


async def test_a_running_primary_is_frozen_by_stopping_it() -> None:
    async with three_members() as (made, members):
        await insert_rows(made, EAST, range(10))
        connection = await made.connect(EAST)
        frozen = await members[EAST].freeze()
        assert frozen.settled
        assert frozen.fence_epochs == (1,)
        with pytest.raises((asyncpg.PostgresError, asyncpg.InterfaceError, OSError)):
            await connection.execute("INSERT INTO palaver.kept VALUES (11)")
        connection.terminate()
        with pytest.raises(asyncpg.PostgresError, match="read-only"):
            await insert_rows(made, EAST, range(11, 12))


async def test_a_member_whose_wal_the_leader_removed_counts_as_diverged_and_is_copied() -> None:
    async with three_members() as (made, members):
        await members[SOUTH].stop()
        assert await members[EAST].ledger.drop_follower_slots([SOUTH]) == 0
        # The same effect as if 256 MB of WAL had been written.
        configuration = members[EAST].settings.data / "palaver.conf"
        configuration.write_text(configuration.read_text() + "wal_keep_size = 0\n")
        await members[EAST].ledger.run("reload")
        connection = await made.connect(EAST)
        try:
            for number in range(3):
                await connection.execute("INSERT INTO palaver.kept VALUES ($1)", number)
                await connection.execute("SELECT pg_switch_wal()")
            await connection.execute("CHECKPOINT")
        finally:
            await connection.close()
        await members[EAST].ledger.prepare_slots(followers=[SOUTH], streams=())
        leader = made.ledger(EAST)
        with pytest.raises(Diverged, match="has WAL from"):
            await members[SOUTH].follow(epoch=1, leader=leader)
        # The core orders a rewind first, which finds nothing to do, and then a copy.
        await members[SOUTH].rewind(leader)
        with pytest.raises(Diverged, match="has WAL from"):
            await members[SOUTH].follow(epoch=1, leader=leader)
        await members[SOUTH].copy(leader)
        await members[SOUTH].follow(epoch=1, leader=leader)
        await until(lambda: has_rows(made, SOUTH, 3))


async def test_a_rewind_that_cannot_begin_leaves_the_data_unchanged() -> None:
    async with three_members() as (made, members):
        await members[WEST].stop()
        with pytest.raises(MemberFailed):
            await members[SOUTH].rewind(made.ledger(WEST))
        assert members[SOUTH].data_state() == "standby"

"""Member on real PostgreSQL: initialise, start, set a quorum, copy, crash, adopt, stop."""

import asyncio
import os
import signal
import socket
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from uuid import UUID

import asyncpg
import pytest

from regions.identity import RegionName
from regions.member import Member, MemberFailed, MemberUnusable, failover_member, ledger, quorum_names
from regions.member.failover_member import FailoverMember
from regions.member.ledger import Ledger
from regions.member.process import processes_in
from regions.member.record import begin_building
from regions.process_identity import ProcessIdentity
from tests.regions.deployment import (
    REGIONS,
    REPLICATION_PASSWORD,
    WRITER_PASSWORD,
    CopiedMember,
    Deployment,
    deployment,
    prepare_ledger,
)
from tests.waiting import until

pytestmark = pytest.mark.integration

EAST, WEST, SOUTH = REGIONS
QUORUM = quorum_names((WEST, SOUTH), 1)


@pytest.fixture
async def made() -> AsyncGenerator[Deployment]:
    async with deployment() as one:
        yield one


async def lead(made: Deployment, region: RegionName = EAST) -> Member:
    member = CopiedMember(made.settings(region))
    await member.initialise()
    await member.start_primary(epoch=1, synchronous_standby_names="")
    await member.ledger.prepare_roles(replication_password=REPLICATION_PASSWORD, writer_password=WRITER_PASSWORD)
    await prepare_ledger(member.ledger.url)
    await member.ledger.prepare_slots(followers=[WEST, SOUTH], streams=REGIONS)
    return member


async def follow(made: Deployment, region: RegionName) -> Member:
    member = FailoverMember(made.settings(region))
    await member.copy(made.ledger(EAST))
    await member.start_standby(epoch=1, leader=made.ledger(EAST))
    return member


@asynccontextmanager
async def three_members(made: Deployment) -> AsyncGenerator[tuple[Member, Member, Member]]:
    leader = await lead(made)
    west, south = await asyncio.gather(follow(made, WEST), follow(made, SOUTH))
    await until(lambda: streaming(leader, 2))
    await leader.set_quorum(QUORUM)
    try:
        yield leader, west, south
    finally:
        for member in (leader, west, south):
            await member.stop()


async def streaming(leader: Member, count: int) -> bool:
    standbys = await leader.ledger.read_standbys(REGIONS)
    return sum(standby.streaming for standby in standbys) == count


async def test_a_commit_waits_for_its_quorum_and_is_then_on_a_standby(made: Deployment) -> None:
    async with three_members(made) as (leader, west, south):
        fence = UUID(int=1)
        assert await leader.ledger.write_fence_row(epoch=1, fence_id=fence, leader=EAST) == fence
        # A second attempt returns the row of the first one, and also waits for the quorum.
        again = await leader.ledger.write_fence_row(epoch=1, fence_id=UUID(int=2), leader=EAST)
        assert again == fence
        standbys = await leader.ledger.read_standbys(REGIONS)
        assert {standby.sync_state for standby in standbys} == {"quorum"}
        connection = await made.connect(EAST)
        await connection.execute("INSERT INTO palaver.kept VALUES (1)")
        await west.stop()
        await connection.execute("INSERT INTO palaver.kept VALUES (2)")
        await south.stop()
        waiting = asyncio.create_task(connection.execute("INSERT INTO palaver.kept VALUES (3)"))
        await until(lambda: made.waiting_commits(EAST))
        assert not waiting.done()
        await west.start_standby(epoch=1, leader=made.ledger(EAST))
        await waiting
        await connection.close()
        reader = await made.connect(WEST)
        assert await reader.fetchval("SELECT count(*) FROM palaver.kept") == 3
        await reader.close()


async def test_a_fence_row_is_visible_before_its_quorum_has_it_and_answered_after(made: Deployment) -> None:
    async with three_members(made) as (leader, west, south):
        await asyncio.gather(west.stop(), south.stop())
        writing = asyncio.create_task(leader.ledger.write_fence_row(epoch=1, fence_id=UUID(int=1), leader=EAST))
        connection = await made.connect(EAST)
        await until(lambda: has_fence(connection, 1))
        await until(lambda: made.waiting_commits(EAST))
        assert not writing.done()
        await west.start_standby(epoch=1, leader=made.ledger(EAST))
        assert await writing == UUID(int=1)
        await connection.close()


async def has_fence(connection: asyncpg.Connection, epoch: int) -> bool:
    return bool(await connection.fetchval("SELECT count(*) FROM palaver.fence WHERE epoch = $1", epoch))


async def test_a_quorum_is_set_only_when_every_commit_waits_for_it(made: Deployment) -> None:
    leader = await lead(made)
    connection = await made.connect(EAST)
    checkpointer = await connection.fetchval("SELECT pid FROM pg_stat_activity WHERE backend_type = 'checkpointer'")
    # SHOW returns the new value at once, but commits wait only after the checkpointer has reloaded it.
    os.kill(checkpointer, signal.SIGSTOP)
    setting = asyncio.create_task(leader.set_quorum(QUORUM))
    try:
        await until(lambda: shows(connection, QUORUM))
        await until(lambda: waits_for_a_checkpoint(connection))
        assert not setting.done()
    finally:
        os.kill(checkpointer, signal.SIGCONT)
    await setting
    waiting = asyncio.create_task(connection.execute("INSERT INTO palaver.kept VALUES (1)"))
    await until(lambda: made.waiting_commits(EAST))
    assert not waiting.done()
    connection.terminate()
    await asyncio.wait([waiting])
    assert waiting.exception() is not None
    await leader.stop()


async def test_an_overridden_quorum_is_an_error(made: Deployment, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger, "SETTING_POLLS_MAX", 10)
    leader = await lead(made)
    (leader.settings.data / "postgresql.auto.conf").write_text("synchronous_standby_names = ''\n")
    with pytest.raises(MemberFailed, match="synchronous_standby_names stays ''"):
        await leader.set_quorum(QUORUM)
    await leader.stop()


async def test_a_quorum_is_not_set_when_only_one_backend_has_reloaded(
    made: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    leader = await lead(made)
    assert leader.process is not None
    connect, postmaster = Ledger._connect, leader.process

    async def the_last(ledger_: Ledger, database: str) -> asyncpg.Connection:
        """Connect, and send the reload signal to this backend only, before the postmaster signals the others."""
        connection = await connect(ledger_, database)
        monkeypatch.setattr(Ledger, "_connect", connect)
        monkeypatch.setattr(ledger, "CONNECT_S", 0.5)
        postmaster.send(signal.SIGSTOP)
        os.kill(connection.get_server_pid(), signal.SIGHUP)
        return connection

    monkeypatch.setattr(Ledger, "_connect", the_last)
    try:
        # In this backend SHOW returns the new value, but commits do not wait for a standby.
        with pytest.raises(MemberFailed, match="Timeout"):
            await leader.set_quorum(QUORUM)
    finally:
        postmaster.send(signal.SIGCONT)
    await leader.stop()


async def test_two_checkpoints_start_before_a_quorum_is_set(made: Deployment) -> None:
    # The checkpointer may have checked for a reload shortly before the first checkpoint, but checks before the second.
    leader = await lead(made)
    (leader.settings.data / "postgresql.auto.conf").write_text("log_checkpoints = on\n")
    await leader.set_quorum(QUORUM)
    assert leader.settings.log.read_text().count("checkpoint starting") >= 2
    await leader.stop()


async def waits_for_a_checkpoint(connection: asyncpg.Connection) -> bool:
    waiting = "SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND wait_event LIKE 'Checkpoint%'"
    return bool(await connection.fetchval(waiting))


async def shows(connection: asyncpg.Connection, names: str) -> bool:
    return await connection.fetchval("SHOW synchronous_standby_names") == names


async def test_a_repeated_preparation_changes_nothing_and_the_slots_are_failover_slots(made: Deployment) -> None:
    leader = await lead(made)
    try:
        for _ in range(2):
            await leader.ledger.prepare_roles(replication_password="other", writer_password="other")
            await leader.ledger.prepare_slots(followers=[WEST, SOUTH], streams=REGIONS)
        connection = await made.connect(EAST)
        slots = await connection.fetch("SELECT slot_name, slot_type, failover FROM pg_replication_slots ORDER BY 1")
        assert [tuple(slot) for slot in slots] == [
            ("member_ap_south", "physical", False),
            ("member_eu_west", "physical", False),
            ("palaver_ap_south", "logical", True),
            ("palaver_eu_west", "logical", True),
            ("palaver_us_east", "logical", True),
        ]
        assert await connection.fetchval("SHOW data_checksums") == "on"
        assert await connection.fetchval("SHOW listen_addresses") == "127.0.0.1"
        assert await connection.fetchval("SHOW restart_after_crash") == "off"
        with pytest.raises(asyncpg.PostgresError, match="ALTER SYSTEM"):
            await connection.execute("ALTER SYSTEM SET synchronous_commit = off")
        await connection.close()
        writer = await asyncpg.connect(
            host="127.0.0.1",
            port=made.ledger(EAST).port,
            user="palaver_writer",
            password=WRITER_PASSWORD,
            database="palaver",
        )
        await writer.close()
        with pytest.raises(asyncpg.InvalidPasswordError):
            await asyncpg.connect(
                host="127.0.0.1",
                port=made.ledger(EAST).port,
                user="palaver_writer",
                password="wrong",
                database="palaver",
            )
        assert {slot.name for slot in await leader.ledger.read_slots()} == {slot[0] for slot in slots}
    finally:
        await leader.stop()


async def test_a_standby_keeps_copies_of_the_stream_slots(made: Deployment) -> None:
    async with three_members(made):

        async def copied() -> bool:
            connection = await made.connect(WEST, "postgres")
            count = await connection.fetchval(
                "SELECT count(*) FROM pg_replication_slots WHERE synced AND NOT temporary"
            )
            await connection.close()
            return count == len(REGIONS)

        # A copy becomes durable when the slot's consumer has confirmed past the copy's first WAL.
        leader = await made.connect(EAST)

        async def confirmed_and_copied() -> bool:
            await leader.execute("INSERT INTO palaver.kept SELECT count(*) FROM palaver.kept")
            await leader.execute("SELECT pg_log_standby_snapshot()")
            await leader.execute(
                "SELECT pg_replication_slot_advance(slot_name, pg_current_wal_flush_lsn())"
                " FROM pg_replication_slots WHERE slot_type = 'logical'"
            )
            return await copied()

        await until(confirmed_and_copied, 60)
        await leader.close()


async def test_the_position_of_a_restarted_standby_covers_its_wal(made: Deployment) -> None:
    async with three_members(made) as (leader, west, _):
        connection = await made.connect(EAST)
        await connection.execute("INSERT INTO palaver.kept SELECT generate_series(1, 1000)")
        await connection.close()
        flushed = (await leader.ledger.read_state()).lsn

        async def caught_up() -> bool:
            return (await west.ledger.read_state()).lsn >= flushed

        await until(caught_up)
        await leader.stop()
        await west.stop()
        # Its leader is down, so the receive LSN is NULL, and the replay LSN is its position (rule 4).
        await west.start_standby(epoch=1, leader=made.ledger(EAST))
        state = await west.ledger.read_state()
        assert state.in_recovery
        assert not state.receiving
        assert state.lsn >= flushed


async def test_a_killed_postmaster_is_noticed_and_can_be_started_again(made: Deployment) -> None:
    leader = await lead(made)
    connection = await made.connect(EAST)
    await connection.execute("INSERT INTO palaver.kept VALUES (1)")
    assert leader.process is not None
    os.kill(leader.process.pid, signal.SIGKILL)
    async with asyncio.timeout(20):
        await leader.process.wait()
    assert not leader.running
    connection.terminate()
    await leader.start_primary(epoch=2, synchronous_standby_names="")
    record = leader.start_record
    assert record is not None
    assert (record.role, record.epoch) == ("primary", 2)
    connection = await made.connect(EAST)
    assert await connection.fetchval("SELECT count(*) FROM palaver.kept") == 1
    await connection.close()
    await leader.stop()
    assert processes_in(leader.settings.data.resolve()) == []


async def test_a_start_refuses_no_connection_and_passwords_use_one_scram_iteration(made: Deployment) -> None:
    leader = await lead(made)
    for _ in range(3):
        await leader.stop(at_once=True)
        await leader.start_primary(epoch=2, synchronous_standby_names="")
    assert "the database system is" not in leader.settings.log.read_text()
    connection = await made.connect(EAST)
    kept = await connection.fetch("SELECT rolname, rolpassword FROM pg_authid WHERE rolpassword IS NOT NULL")
    await connection.close()
    assert {row["rolname"]: row["rolpassword"].split(":")[0] for row in kept} == dict.fromkeys(
        ("palaver", "palaver_replication", "palaver_writer"), "SCRAM-SHA-256$1"
    )


async def test_a_member_outlives_its_agent_and_is_adopted(made: Deployment) -> None:
    first = await lead(made)
    assert first.process is not None
    pid = first.process.pid
    first.detach()
    second = Member(made.settings(EAST))
    assert await second.adopt()
    assert second.process is not None
    assert second.process.pid == pid
    await second.stop()
    assert not second.running
    third = Member(made.settings(EAST))
    assert not await third.adopt()


async def test_a_postmaster_without_a_member_record_is_stopped(made: Deployment) -> None:
    first = await lead(made)
    assert first.process is not None
    first.detach()
    (made.settings(EAST).state / "member.json").unlink()
    second = Member(made.settings(EAST))
    assert not await second.adopt()
    assert not second.running
    assert processes_in(made.settings(EAST).data.resolve()) == []


async def test_an_unfinished_base_backup_is_removed_and_started_again(made: Deployment) -> None:
    leader = await lead(made)
    data = made.settings(WEST).data
    unfinished = data.with_name(data.name + ".copy")
    cancelled = FailoverMember(made.settings(WEST))
    backup = asyncio.create_task(cancelled.copy(made.ledger(EAST)))
    # A base backup takes a few hundredths of a second, so the test polls without a pause.
    while not (unfinished / "global").exists():
        assert not backup.done()
        await asyncio.sleep(0)
    backup.cancel()
    await asyncio.wait([backup])
    assert not unfinished.exists()
    assert Member(made.settings(WEST)).data_state() == "absent"
    # An agent that is killed during a base backup leaves these files.
    unfinished.mkdir()
    (unfinished / "PG_VERSION").write_text("18\n")
    again = await follow(made, WEST)
    await until(lambda: streaming(leader, 1))
    assert again.data_state() == "standby"
    await again.stop()
    await leader.stop()


async def test_a_cancelled_initialisation_leaves_no_thread_that_removes_files(made: Deployment) -> None:
    settings = made.settings(WEST)
    member = Member(settings)
    settings.data.mkdir(parents=True, exist_ok=True)
    begin_building(settings.state, "initdb")
    for number in range(20_000):
        (settings.data / str(number)).touch()
    copying = asyncio.create_task(member.initialise())
    while (settings.data / "0").exists() and (settings.data / "19999").exists():  # noqa: ASYNC110 - a thread works
        await asyncio.sleep(0)
    copying.cancel()
    await asyncio.wait([copying])
    assert copying.cancelled()
    # No thread changes the folder after the cancellation.
    assert list(settings.data.iterdir()) == []


async def test_a_copy_of_an_unreachable_leader_is_one_clear_error(
    made: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(failover_member, "READY_S_MAX", 0)
    member = FailoverMember(made.settings(WEST))
    with pytest.raises(MemberFailed, match=r"cannot be copied: .*Connect call failed") as failed:
        await member.copy(made.ledger(EAST))
    assert "\n" not in str(failed.value)
    assert member.data_state() == "absent"


@pytest.mark.parametrize(("version", "message"), [("17\n", "PostgreSQL 17"), (None, "holds no PostgreSQL data")])
async def test_data_of_another_version_or_kind_is_one_clear_error(
    made: Deployment, version: str | None, message: str
) -> None:
    settings = made.settings(EAST)
    settings.data.mkdir()
    (settings.data / ("PG_VERSION" if version else "letter.txt")).write_text(version or "dear")
    with pytest.raises(MemberUnusable, match=message) as refused:
        Member(settings).data_state()
    assert "\n" not in str(refused.value)
    assert len(list(settings.data.iterdir())) == 1


async def test_a_port_in_use_is_one_clear_error(made: Deployment) -> None:
    member = Member(made.settings(EAST))
    await member.initialise()
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", made.ledger(EAST).port))
        with pytest.raises(MemberFailed, match="ended at its start") as failed:
            await member.start_primary(epoch=1, synchronous_standby_names="")
    assert "\n" not in str(failed.value)


async def test_a_hung_member_is_stopped_in_bounded_time(made: Deployment) -> None:
    leader = await lead(made)
    assert leader.process is not None
    leader.process.send(signal.SIGSTOP)
    async with asyncio.timeout(20):
        await leader.stop()
    assert not leader.running


async def test_a_process_identity_is_stable_and_differs_between_processes() -> None:
    mine = ProcessIdentity.of(os.getpid())
    assert mine is not None
    assert mine == ProcessIdentity.of(os.getpid())
    parent = ProcessIdentity.of(os.getppid())
    assert parent != mine

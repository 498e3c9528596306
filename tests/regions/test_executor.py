"""MemberExecutor on real PostgreSQL: effects run one after the other; superseded and outdated effects are dropped."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

import asyncpg
import pytest

from regions.failover.effects import (
    CopyLedger,
    DrainLedger,
    FollowLedger,
    FreezeLedger,
    LedgerEffect,
    PromoteLedger,
    SetQuorum,
    StopLedger,
    WriteFence,
)
from regions.failover.events import (
    Event,
    FenceWritten,
    LedgerDone,
    LedgerDrained,
    LedgerEnded,
    LedgerFailed,
    LedgerFrozen,
    MemberState,
    Promise,
    QuorumCommit,
    StandbysStreaming,
)
from regions.identity import RegionName, physical_slot_name
from regions.member import executor, failover_member, ledger, quorum_names, supervision
from regions.member.errors import MemberFailed, MemberRefused
from regions.member.executor import FULL_DISK_CHECKS, ExecutorContext, MemberExecutor
from regions.member.failover_member import FailoverMember
from regions.member.ledger import Ledger
from regions.member.process import WatchedProcess
from regions.position import parse_lsn
from regions.topology import Address
from tests.child_processes import free_port
from tests.regions.deployment import REGIONS, CopiedMember, Deployment, deployment
from tests.regions.live_cell import prepare
from tests.regions.test_failover_member import (
    has_rows,
    insert_local_row,
    insert_rows,
    kill,
    promote_manually,
    selected_rows,
    three_members,
)
from tests.waiting import until

pytestmark = pytest.mark.integration

EAST, WEST, SOUTH = REGIONS
GATE = "SELECT pg_try_advisory_xact_lock_shared(hashtextextended('palaver.write_gate', 0))"


@dataclass
class ExecutorHarness:
    """An executor, the events that it emits, and the promise that it reads as durable.

    Attributes:
        effects_begun: Number of effects that it has begun; it reads the promise once at the begin of each.
        followers_reads: Number of times that it has read the followers.
        events: Emitted events that no call has returned or dropped yet.
        all_events: All events that it has emitted.
    """

    executor: MemberExecutor
    promise: Promise = field(default_factory=Promise)
    effects_begun: int = 0
    followers_reads: int = 0
    events: asyncio.Queue[Event] = field(default_factory=asyncio.Queue[Event])
    all_events: list[Event] = field(default_factory=list[Event])
    followers: tuple[RegionName, ...] = ()

    def take_event(self, event: Event) -> None:
        self.all_events.append(event)
        self.events.put_nowait(event)

    async def answer(self, kind: type[Event] | tuple[type[Event], ...], seconds: float = 20) -> Event:
        """Return the next event of a kind; events of other kinds are dropped."""
        async with asyncio.timeout(seconds):
            while True:
                event = await self.events.get()
                if isinstance(event, kind):
                    return event

    def durable(self) -> Promise:
        self.effects_begun += 1
        return self.promise

    def read_followers(self) -> tuple[RegionName, ...]:
        self.followers_reads += 1
        return self.followers

    async def begin(self, effect: LedgerEffect) -> None:
        """Submit an effect; return when it has begun."""
        before = self.effects_begun
        self.executor.perform(effect)
        await until(lambda: self.effects_begun > before)

    async def read_commit(self) -> None:
        """Let the executor query the newest commit on the quorum; return when it has."""
        self.executor.read_commit()
        assert self.executor._committing is not None
        await self.executor._committing

    def pending_events(self, kind: type[Event]) -> list[Event]:
        """Return the events of a kind that it emitted; events of other kinds are dropped."""
        events: list[Event] = []
        while not self.events.empty():
            events.append(self.events.get_nowait())
        return [event for event in events if isinstance(event, kind)]

    async def perform(self, effect: LedgerEffect) -> Event:
        """Submit an effect; return its answer."""
        self.executor.perform(effect)
        return await self.answer((LedgerDone, LedgerFailed, LedgerFrozen, FenceWritten))


@contextlib.asynccontextmanager
async def executor_harness(
    made: Deployment, region: RegionName, member: FailoverMember
) -> AsyncGenerator[ExecutorHarness]:
    """Run an executor on a running member, like an agent that has adopted it."""
    around = ExecutorContext(
        region=region,
        ledger_of=made.ledger,
        others=tuple(other for other in REGIONS if other != region),
        followers=lambda: driven.read_followers(),  # noqa: PLW0108 - the harness is created below
        prepare=prepare,
        durable=lambda: driven.durable(),  # noqa: PLW0108 - the same
        on_event=lambda event: driven.take_event(event),  # noqa: PLW0108 - the same
    )
    driven = ExecutorHarness(MemberExecutor(member, around), followers=around.others)
    running = asyncio.create_task(driven.executor.run())
    try:
        yield driven
    finally:
        running.cancel()
        await asyncio.wait([running])


async def test_an_effect_below_the_promise_on_disk_is_dropped() -> None:
    async with three_members() as (made, members), executor_harness(made, WEST, members[WEST]) as west:
        west.promise = Promise(epoch=3)
        west.executor.perform(StopLedger(ticket=1, epoch=2))
        assert await west.perform(FreezeLedger(ticket=2, epoch=3)) == frozen_event(await members[WEST].freeze(), 2)
        assert members[WEST].running


def frozen_event(frozen: object, ticket: int) -> LedgerFrozen:
    fences, received, replayed = (getattr(frozen, name) for name in ("fence_epochs", "received", "replayed"))
    return LedgerFrozen(ticket=ticket, receiving=False, received=received, replayed=replayed, ancestry=fences)


async def test_a_primary_without_a_schema_gets_it_before_its_quorum() -> None:
    async with deployment() as made:
        member = CopiedMember(made.settings(EAST))
        await member.initialise()
        await member.start_primary(epoch=1, synchronous_standby_names="")
        try:
            async with executor_harness(made, EAST, member) as east:
                quorum = await east.perform(SetQuorum(ticket=1, epoch=1, standbys=(WEST, SOUTH), required=0))
                assert quorum == LedgerDone(ticket=1)
                fence = await east.perform(WriteFence(ticket=2, epoch=1))
                assert isinstance(fence, FenceWritten)
                assert fence.confirmed
        finally:
            await member.stop()


async def test_repeated_fence_row_effects_use_one_connection_and_are_superseded_by_a_stop(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    written: list[object] = []
    write = Ledger.write_fence_row

    async def counted(ledger: Ledger, **row: Any) -> UUID:
        written.append(row)
        return await write(ledger, **row)

    monkeypatch.setattr(Ledger, "write_fence_row", counted)
    async with three_members() as (made, members), executor_harness(made, EAST, members[EAST]) as east:
        written.clear()
        await asyncio.gather(members[WEST].stop(), members[SOUTH].stop())
        for ticket in range(1, 6):
            await east.begin(WriteFence(ticket=ticket, epoch=2))
        await until(lambda: made.waiting_commits(EAST))
        assert len(written) == 1
        assert await east.perform(StopLedger(ticket=9, epoch=3)) == LedgerDone(ticket=9)
        assert not members[EAST].running


async def slots_of(member: FailoverMember) -> set[str]:
    return {slot.name for slot in await member.ledger.read_slots()}


async def test_a_member_to_be_promoted_keeps_wal_for_its_followers_when_its_quorum_is_set(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Without a pause between two checks of the slots.
    monkeypatch.setattr(executor, "STANDBYS_S", 0.0)
    async with three_members() as (made, members), executor_harness(made, WEST, members[WEST]) as west:
        await west.perform(FreezeLedger(ticket=1, epoch=2))
        assert await slots_of(members[WEST]) == set()
        await west.perform(SetQuorum(ticket=2, epoch=2, standbys=(EAST, SOUTH), required=1))
        assert await slots_of(members[WEST]) == {physical_slot_name(EAST), physical_slot_name(SOUTH)}
        assert west.followers_reads == 0, "a second creation of the same slots would fail the promotion"
        assert await west.perform(PromoteLedger(ticket=3, epoch=2)) == LedgerDone(ticket=3)
        await until(lambda: west.followers_reads)
        assert await slots_of(members[WEST]) == {physical_slot_name(EAST), physical_slot_name(SOUTH)}


async def test_a_member_that_follows_instead_of_being_promoted_keeps_no_wal_for_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(executor, "TOUCH_S", 60.0)
    async with three_members() as (made, members), executor_harness(made, WEST, members[WEST]) as west:
        for ticket in (1, 11):
            await west.perform(FreezeLedger(ticket=ticket, epoch=1))
            await west.perform(SetQuorum(ticket=ticket + 1, epoch=1, standbys=(EAST, SOUTH), required=1))
            # The second round creates the slots again.
            assert await slots_of(members[WEST]) == {physical_slot_name(EAST), physical_slot_name(SOUTH)}
            await west.perform(FollowLedger(ticket=ticket + 2, epoch=1, leader=EAST))
            assert await slots_of(members[WEST]) == set()


async def test_a_repeated_fence_row_effect_is_answered_with_its_own_ticket() -> None:
    async with three_members() as (made, members), executor_harness(made, EAST, members[EAST]) as east:
        first = await east.perform(WriteFence(ticket=1, epoch=2))
        again = await east.perform(WriteFence(ticket=2, epoch=2))
        assert isinstance(first, FenceWritten)
        assert isinstance(again, FenceWritten)
        assert (again.ticket, again.fence_id, again.confirmed) == (2, first.fence_id, True)
        assert again.lsn >= first.lsn > 0


async def test_an_adopted_follower_keeps_following_while_its_future_quorum_is_set(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(executor, "TOUCH_S", 0.05)
    async with three_members() as (made, members):
        members[WEST].detach()
        member = FailoverMember(made.settings(WEST))
        found = MemberExecutor(member, voter_context(made, WEST))
        assert await found.find_member() == MemberState(kind="following", epoch=1)
        running = asyncio.create_task(found.run())
        await until(lambda: has_future_quorum(member))
        running.cancel()
        await asyncio.wait([running])
        await members[SOUTH].stop()
        await insert_rows(made, EAST, range(100))
        assert await selected_rows(made, WEST) == set(range(100))
        await member.stop()


async def has_future_quorum(member: FailoverMember) -> bool:
    return (await member.ledger.read_state()).synchronous_standby_names == quorum_names((EAST, SOUTH), 1)


def voter_context(made: Deployment, region: RegionName) -> ExecutorContext:
    others = tuple(other for other in REGIONS if other != region)
    return ExecutorContext(
        region=region,
        ledger_of=made.ledger,
        others=others,
        followers=lambda: others,
        prepare=prepare,
        durable=Promise,
        on_event=lambda _: None,
        standbys=lambda: others,
    )


async def test_a_drained_leader_admits_no_write_and_its_target_has_all_wal(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(executor, "QUIET_S", 3600.0)
    async with three_members() as (made, members), executor_harness(made, EAST, members[EAST]) as east:
        await east.perform(SetQuorum(ticket=1, epoch=1, standbys=(WEST, SOUTH), required=1))
        connection = await made.connect(EAST)
        async with connection.transaction():
            assert await connection.fetchval(GATE)
            east.executor.perform(DrainLedger(ticket=2, epoch=1, target=SOUTH))
            await until(lambda: waits_for_the_gate(connection))
            assert east.pending_events(LedgerDrained) == []
            await connection.execute("INSERT INTO palaver.kept VALUES (1)")
        answer = await east.answer(LedgerDrained)
        assert not await connection.fetchval(GATE)
        drained = await connection.fetchval("SELECT pg_current_wal_insert_lsn()::text")
        assert answer == LedgerDrained(ticket=2, lsn=parse_lsn(drained))
        assert await selected_rows(made, SOUTH) == {1}
        east.executor.read_commit()
        assert east.executor._committing is None, "a drained leader must not write a proof of life"
        assert await members[SOUTH].commit_of(made.ledger(EAST), (WEST, SOUTH), 1) is not None
        # WAL that the leader wrote now, also for queries of others, could reach another member and not the target.
        assert await connection.fetchval("SELECT pg_current_wal_insert_lsn()::text") == drained
        east.executor.admit_writes()
        await until(lambda: connection.fetchval(GATE))
        east.executor.read_commit()
        await east.answer(QuorumCommit)
        await connection.close()


async def waits_for_the_gate(connection: asyncpg.Connection) -> bool:
    return bool(await connection.fetchval("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"))


async def test_a_leader_reports_quorum_commits_and_standbys_and_no_commit_without_a_standby() -> None:
    async with three_members() as (made, members), executor_harness(made, EAST, members[EAST]) as east:
        await east.perform(SetQuorum(ticket=1, epoch=1, standbys=(WEST, SOUTH), required=1))
        commits: list[int] = []
        while len(commits) < 3 or commits[-1] == commits[0]:
            east.executor.read_commit()
            event = await east.answer(QuorumCommit)
            assert isinstance(event, QuorumCommit)
            commits.append(event.lsn)
            await asyncio.sleep(0.02)
        assert commits == sorted(commits)
        assert await east.answer(StandbysStreaming) == StandbysStreaming(regions=frozenset({WEST, SOUTH}))
        await asyncio.gather(members[WEST].stop(), members[SOUTH].stop())
        await until(lambda: is_alone(members[EAST]))
        await east.read_commit()  # a query may have begun before the last standby ended
        east.pending_events(QuorumCommit)
        for _ in range(5):
            await east.read_commit()
        assert east.pending_events(QuorumCommit) == []


async def is_alone(member: FailoverMember) -> bool:
    return await member.ledger.read_standbys(REGIONS) == ()


async def test_a_leader_with_a_full_disk_is_stopped_and_votes_when_there_is_space_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with three_members() as (made, members), executor_harness(made, EAST, members[EAST]) as east:
        await east.perform(SetQuorum(ticket=1, epoch=1, standbys=(WEST, SOUTH), required=1))
        monkeypatch.setattr(supervision, "DISK_FREE_BYTES_MIN", 1 << 62)
        for _ in range(FULL_DISK_CHECKS - 1):
            east.executor.read_commit()
            assert isinstance(await east.answer((LedgerEnded, QuorumCommit)), QuorumCommit), (
                "a disk may be full for a moment"
            )
        east.executor.read_commit()
        assert await east.answer((LedgerEnded, QuorumCommit)) == LedgerEnded()
        assert not members[EAST].running
        refused = await east.perform(FreezeLedger(ticket=2, epoch=2))
        assert refused == LedgerFailed(ticket=2, reason=supervision.DISK_FULL)
        assert (await members[EAST].ledger.read_state()).in_recovery, "the member must not lead any more"
        monkeypatch.undo()
        assert isinstance(await east.perform(FreezeLedger(ticket=3, epoch=2)), LedgerFrozen)


async def test_a_joining_follower_has_a_slot_before_it_joins_the_quorum_and_a_removed_one_has_none() -> None:
    async with three_members() as (made, members), executor_harness(made, EAST, members[EAST]) as east:
        await members[SOUTH].stop()
        await members[EAST].ledger.drop_follower_slots([SOUTH])
        east.followers = (WEST,)
        await east.perform(SetQuorum(ticket=1, epoch=1, standbys=(WEST,), required=1))
        await until(lambda: reports_standbys(east, {WEST}))
        assert await slots(members[EAST]) == {"member_eu_west"}

        east.followers = (WEST, SOUTH)
        await until(lambda: has_slots(members[EAST], {"member_eu_west", "member_ap_south"}))
        await members[SOUTH].follow(epoch=1, leader=made.ledger(EAST))
        await until(lambda: reports_standbys(east, {WEST, SOUTH}))
        assert east.executor.quorum == ((WEST,), 1), "a joining follower streams, but does not belong to the quorum yet"

        # A removed follower's slot stays while the follower reads from it, and is dropped after the follower stops.
        east.followers = (WEST,)
        await until(lambda: reports_standbys(east, {WEST}))
        assert await slots(members[EAST]) == {"member_eu_west", "member_ap_south"}
        await members[SOUTH].stop()
        await until(lambda: has_slots(members[EAST], {"member_eu_west"}))


async def test_a_lost_follower_slot_is_created_again_by_the_same_leader() -> None:
    async with three_members() as (made, members), executor_harness(made, EAST, members[EAST]) as east:
        await east.perform(SetQuorum(ticket=1, epoch=1, standbys=(WEST, SOUTH), required=1))
        await until(lambda: reports_standbys(east, {WEST, SOUTH}))
        await members[SOUTH].stop()
        await members[EAST].ledger.drop_follower_slots([SOUTH])
        await until(lambda: has_slots(members[EAST], {"member_eu_west", "member_ap_south"}))


async def reports_standbys(driven: ExecutorHarness, regions: set[RegionName]) -> bool:
    return await driven.answer(StandbysStreaming) == StandbysStreaming(regions=frozenset(regions))


async def slots(member: FailoverMember) -> set[str]:
    return {slot.name for slot in await member.ledger.read_slots() if slot.name.startswith("member_")}


async def has_slots(member: FailoverMember, names: set[str]) -> bool:
    return await slots(member) == names


async def test_an_unexpected_end_of_a_postmaster_is_reported_once_and_an_ordered_stop_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    watched: list[tuple[str, int]] = []
    wait = WatchedProcess.wait

    async def noted(process: WatchedProcess) -> None:
        """Wait for a process like the original, and record the begin and the end of the wait."""
        task = asyncio.current_task()
        name = "" if task is None else task.get_name()
        watched.append((f"{name} begins", process.pid))
        await wait(process)
        watched.append((f"{name} seen", process.pid))

    async with three_members() as (made, members), executor_harness(made, WEST, members[WEST]) as west:
        monkeypatch.setattr(WatchedProcess, "wait", noted)
        kill(members[WEST])
        assert await west.answer(LedgerEnded) == LedgerEnded()
        assert await west.executor.find_member() == MemberState(kind="stopped")
        assert isinstance(await west.perform(FollowLedger(ticket=1, epoch=1, leader=EAST)), LedgerDone)
        ordered = members[WEST].process
        assert ordered is not None
        await until(lambda: ("ledger end begins", ordered.pid) in watched)
        assert await west.perform(StopLedger(ticket=2, epoch=1)) == LedgerDone(ticket=2)
        # The executor handles the end of the process without another await.
        await until(lambda: ("ledger end seen", ordered.pid) in watched)
        assert west.all_events.count(LedgerEnded()) == 1


async def test_an_end_of_a_postmaster_before_the_executor_runs_is_reported() -> None:
    async with three_members() as (made, members):
        process = members[WEST].process
        assert process is not None
        kill(members[WEST])
        await process.wait()
        async with executor_harness(made, WEST, members[WEST]) as west:
            assert await west.answer(LedgerEnded) == LedgerEnded()


async def test_a_failed_effect_is_answered_and_leaves_the_data(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(failover_member, "READY_S_MAX", 0.3)
    async with three_members() as (made, members), executor_harness(made, WEST, members[WEST]) as west:
        await members[SOUTH].stop()
        for effect in (
            PromoteLedger(ticket=1, epoch=2),
            CopyLedger(ticket=2, epoch=2, leader=SOUTH),
            FollowLedger(ticket=3, epoch=2, leader=SOUTH),
        ):
            answer = await west.perform(effect)
            assert isinstance(answer, LedgerFailed)
            assert not answer.torn
        assert members[WEST].data_state() == "standby"


async def test_a_copy_replaces_the_data_and_follows() -> None:
    async with three_members() as (made, members), executor_harness(made, WEST, members[WEST]) as west:
        await insert_rows(made, EAST, range(5))
        assert await west.perform(CopyLedger(ticket=1, epoch=1, leader=EAST)) == LedgerDone(ticket=1)
        data = members[WEST].settings.data
        assert [path.name for path in data.parent.iterdir() if path.name.startswith("ledger")] == ["ledger"]
        assert await west.perform(FollowLedger(ticket=2, epoch=1, leader=EAST)) == LedgerDone(ticket=2)
        await until(lambda: has_rows(made, WEST, 5))


@pytest.mark.parametrize("runs", [True, False])
async def test_a_manually_promoted_member_counts_as_absent_and_is_copied(runs: bool) -> None:
    async with three_members() as (made, members), executor_harness(made, WEST, members[WEST]) as west:
        await insert_rows(made, EAST, range(5))
        await until(lambda: has_rows(made, WEST, 5))
        await promote_manually(members[WEST])
        await insert_local_row(made, WEST, 1000)
        if runs:
            members[WEST].detach()
        else:
            await members[WEST].stop()
        # The WAL that it wrote since its promotion would count as newer than acknowledged WAL.
        assert await west.executor.find_member() == MemberState(kind="absent")
        assert not members[WEST].running
        assert await west.perform(CopyLedger(ticket=1, epoch=1, leader=EAST)) == LedgerDone(ticket=1)
        assert await west.executor.find_member() == MemberState(kind="stopped")
        assert await west.perform(FollowLedger(ticket=2, epoch=1, leader=EAST)) == LedgerDone(ticket=2)
        await until(lambda: has_rows(made, WEST, 5))


@pytest.mark.parametrize("runs", [True, False])
async def test_a_member_promoted_manually_while_its_agent_runs_gives_no_vote(runs: bool) -> None:
    async with three_members() as (made, members), executor_harness(made, WEST, members[WEST]) as west:
        await promote_manually(members[WEST])
        await insert_local_row(made, WEST, 1000)
        if not runs:
            kill(members[WEST])
        answer = await west.perform(FreezeLedger(ticket=1, epoch=2))
        assert isinstance(answer, LedgerFailed)
        assert "promoted by somebody else" in answer.reason
        assert not members[WEST].running
        assert await west.executor.find_member() == MemberState(kind="absent")


async def test_a_superseded_copy_leaves_a_running_member(monkeypatch: pytest.MonkeyPatch) -> None:
    run = FailoverMember._run

    async def run_slowly(member: FailoverMember, program: str, *arguments: str, **more: Any) -> None:
        held = ["--max-rate=32"] if program == "pg_basebackup" else []
        await run(member, program, *arguments, *held, **more)

    async with three_members() as (made, members), executor_harness(made, WEST, members[WEST]) as west:
        # At 32 kB/s the copy takes minutes.
        monkeypatch.setattr(FailoverMember, "_run", run_slowly)
        copy = members[WEST].settings.data.with_name("ledger.copy")
        west.executor.perform(CopyLedger(ticket=1, epoch=1, leader=EAST))
        await until((copy / "backup_label").exists)
        answer = await west.perform(FreezeLedger(ticket=2, epoch=2))
        assert isinstance(answer, LedgerFrozen)
        assert answer.ticket == 2
        assert not answer.receiving
        assert answer.ancestry == (1,)
        assert not copy.exists()


async def test_a_member_is_found_in_the_state_in_which_its_agent_left_it() -> None:
    async with three_members() as (made, members):
        found: dict[RegionName, MemberState] = {}
        for region in REGIONS:
            members[region].detach()
            await members[region].ledger.close()
            await members[region].drop_connections()
            again = FailoverMember(made.settings(region))
            async with executor_harness(made, region, again) as driven:
                found[region] = await driven.executor.find_member()
            members[region] = again
        assert found == {
            EAST: MemberState(kind="primary", epoch=1),
            WEST: MemberState(kind="following", epoch=1),
            SOUTH: MemberState(kind="following", epoch=1),
        }
        await members[SOUTH].freeze()
        async with executor_harness(made, SOUTH, members[SOUTH]) as driven:
            assert await driven.executor.find_member() == MemberState(kind="frozen")
        with contextlib.suppress(asyncpg.PostgresError, OSError):
            await insert_rows(made, EAST, range(1))


async def test_a_closed_port_is_a_refusal_and_a_silent_server_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as ending:

        def close_the_first() -> None:
            """Accept a connection and close it, like a relay or a tunnel whose target does not listen."""
            ending.accept()[0].close()

        closing = asyncio.ensure_future(asyncio.to_thread(close_the_first))
        for port in (free_port(), int(ending.getsockname()[1])):
            with pytest.raises(MemberRefused):
                await Ledger(Address("127.0.0.1", port), "secret").one("is_in_recovery")
        await closing
    monkeypatch.setattr(ledger, "CONNECT_S", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as silent, pytest.raises(MemberFailed, match="Timeout") as failed:
        await Ledger(Address("127.0.0.1", int(silent.getsockname()[1])), "secret").one("is_in_recovery")
    assert not isinstance(failed.value, MemberRefused)

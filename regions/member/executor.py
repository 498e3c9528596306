"""Executes the failover core's effects on the region's ledger member, one at a time, and answers each with an event.

Implements the contract of ``regions.failover.effects``: a newer effect replaces an older one that is not answered yet,
an effect below the promise on disk is dropped (rule 2), a COMMIT is never cancelled (rule 7), and a failure is an
answer, not an exception. It also reports what the core did not ask for: the end of PostgreSQL, commits on the quorum,
and the standbys that stream. Decides nothing about leadership.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar, assert_never
from uuid import uuid4

from regions.failover.effects import (
    CopyLedger,
    DrainLedger,
    FollowLedger,
    FreezeLedger,
    InitialiseLedger,
    LedgerEffect,
    PromoteLedger,
    RewindLedger,
    SetQuorum,
    StopLedger,
    WriteFence,
)
from regions.failover.events import (
    Event,
    FenceWritten,
    LedgerAnswer,
    LedgerDone,
    LedgerDrained,
    LedgerEnded,
    LedgerFailed,
    LedgerFrozen,
    MemberState,
    Promise,
    QuorumCommit,
    QuorumWaitCancelled,
    StandbysStreaming,
    Ticket,
)
from regions.failover.rules import required_standbys
from regions.identity import Epoch, RegionName
from regions.member.errors import MemberError, MemberFailed, MemberRefused, QuorumUnknown, SchemaMissing
from regions.member.failover_member import Diverged, FailoverMember, FrozenStandby
from regions.member.settings import quorum_names
from regions.member.supervision import DISK_FULL
from regions.topology import Address

STANDBYS_S = 1.0
"""Interval at which a primary looks which standbys stream."""

PREPARE_AFTER_S = 3.0
PREPARE_RETRY_S = 2.0
"""A new leader has its predecessor's schema and slots, except new ones and slots that were not synchronised yet. Their
creation is not urgent, and would take CPU time from the first writes."""

TOUCH_S = 2.0
"""Interval at which a follower checks its connections to the other members."""

PREPARE_TO_LEAD_S_MAX = 10.0
"""A restartpoint of a standby takes seconds at most. The connections to the other members are checked only after it."""

STREAMING_LAG_BYTES_MAX = 4 << 20
"""A standby that lacks less WAL than this is about a second behind under full load."""

DRAIN_POLL_S = 0.005

DISK_CHECK_HEARTBEATS = 5
"""A leader's free disk space is checked with every fifth heartbeat; after a check that found none, with every one."""

FULL_DISK_CHECKS = 3
"""Number of consecutive checks that find a leader's disk full before its PostgreSQL is terminated."""

QUIET_S = 0.8
"""How long a draining leader writes no WAL itself, not even heartbeats; after a longer silence it is suspected."""

_log = logging.getLogger(__name__)
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True, kw_only=True)
class ExecutorContext:
    """What the executor needs from its region.

    Attributes:
        region: The own region.
        ledger_of: Returns the address of another region's member.
        others: The other regions that may have a member.
        followers: Returns those of ``others`` that follow this member when it leads: voters and joining regions.
        prepare: Creates roles, schema and the slots of change streams on a new primary where missing; can be repeated.
        durable: Returns the promise on disk.
        on_event: Takes an event for the core; must return at once.
        on_effect_done: Takes an effect that succeeded and its duration in milliseconds; must return at once.
        standbys: Returns the voters of ``others``; none if this region is not a voter.
    """

    region: RegionName
    ledger_of: Callable[[RegionName], Address]
    others: tuple[RegionName, ...]
    followers: Callable[[], tuple[RegionName, ...]]
    prepare: Callable[[FailoverMember], Awaitable[None]]
    durable: Callable[[], Promise | None]
    on_event: Callable[[Event], None]
    on_effect_done: Callable[[LedgerEffect, float], None] = lambda _effect, _ms: None
    standbys: Callable[[], tuple[RegionName, ...]] = tuple


@dataclass(slots=True)
class _PendingCommit(Generic[_T]):
    """A commit that waits for its quorum without a time limit, also when the effect that asked for it was replaced.

    If the client disconnects, the wait continues in the server and occupies a connection. Therefore an effect that asks
    for the same commit again joins the pending one.
    """

    key: object
    task: "asyncio.Task[_T]"

    async def result(self) -> _T:
        return await asyncio.shield(self.task)


def _join_or_start(
    commit: _PendingCommit[_T] | None, key: object, work: Callable[[], Coroutine[Any, Any, _T]]
) -> _PendingCommit[_T]:
    """Return the pending commit for ``key``, or start it."""
    if commit is not None and commit.key == key and not commit.task.done():
        return commit
    return _PendingCommit(key, asyncio.create_task(work()))


class MemberExecutor:
    """Executes effects on one member.

    Attributes:
        member: The member.
        quorum: The standbys that commits wait for, or will wait for after the promotion, and how many of them a commit
            needs; None if no quorum is set.
    """

    def __init__(self, member: FailoverMember, context: ExecutorContext) -> None:
        self.member = member
        self.quorum: tuple[tuple[RegionName, ...], int] | None = None
        self._context = context
        self._is_primary = False
        self._current: asyncio.Task[None] | None = None
        self._wanted: LedgerEffect | None = None
        self._effect_arrived = asyncio.Event()
        self._fence: _PendingCommit[FenceWritten] | None = None
        self._quorum_commit: _PendingCommit[None] | None = None
        self._committing: asyncio.Task[None] | None = None
        self._gate: asyncio.Task[None] | None = None
        self._quiet_until = 0.0
        self._full_disk_checks = 0
        self._commit_reads = 0
        self._preparing: asyncio.Task[None] | None = None
        self._followers: tuple[RegionName, ...] = ()
        self._slots_for: tuple[RegionName, ...] | None = None

    async def find_member(self) -> MemberState:
        """Return the state in which an earlier agent left the member, and adopt its PostgreSQL if it answers.

        A running PostgreSQL is stopped if it does not answer, or if its data must not be used.

        Raises:
            MemberUnusable: The data folder cannot be used.
        """
        member = self.member
        if member.data_state() == "absent":
            if member.promoted_externally:
                _log.error("ledger: it was promoted by somebody else: it does not count, and is copied again")
            if await member.adopt():
                await member.stop()
            return MemberState(kind="absent")
        if not await member.adopt():
            return MemberState(kind="stopped")
        remembered = member.start_record
        assert remembered is not None, "a member without a record is not adopted"
        try:
            row = await member.ledger.one("read_frozen")
            names = (await member.ledger.read_state()).synchronous_standby_names
        except MemberFailed as error:
            _log.warning("ledger: the running PostgreSQL does not answer (%s): it is stopped", error)
            await member.stop()
            return MemberState(kind="stopped")
        if not row["in_recovery"]:
            member.adopt_configuration(names=names)
            return MemberState(kind="primary", epoch=remembered.epoch)
        if not row["primary_conninfo"]:
            member.adopt_configuration(names=names)
            return MemberState(kind="frozen")
        others = tuple(map(self._context.ledger_of, self._context.others))
        member.adopt_configuration(names=names, primary_conninfo=row["primary_conninfo"], others=others)
        return MemberState(kind="following", epoch=remembered.epoch)

    async def run(self) -> None:
        """Execute effects, watch PostgreSQL and its standbys, and maintain connections, until cancelled."""
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._work(), name="ledger effects")
                tasks.create_task(self._watch(), name="ledger end")
                tasks.create_task(self._watch_standbys(), name="ledger standbys")
                tasks.create_task(self._keep_connections(), name="other members")
        finally:
            await self._abandon()

    def perform(self, effect: LedgerEffect) -> None:
        """Execute an effect in place of an unfinished earlier one. The answer is passed to ``on_event``."""
        self._wanted = effect
        self._effect_arrived.set()

    def read_commit(self) -> None:
        """Start a query for the newest LSN on a quorum, unless one is running; the answer is passed to ``on_event``."""
        if not self._is_quiet and (self._committing is None or self._committing.done()):
            self._committing = asyncio.create_task(self._read_commit(), name="quorum commit")

    async def commit_of(self, leader: RegionName, voters: tuple[RegionName, ...]) -> int | None:
        """Return the newest LSN that another member, as leader, has on a quorum; None if it gives no answer.

        Raises:
            MemberRefused: No process listens at its address.
        """
        standbys = [voter for voter in voters if voter != leader]
        try:
            # The query writes no WAL if the write gate is closed: that leader is about to hand over.
            return await self.member.commit_of(self._context.ledger_of(leader), standbys, len(voters) // 2)
        except MemberRefused:
            raise
        except MemberError as error:
            _log.debug("ledger of %s: no quorum commit: %s", leader, error)
            return None

    def admit_writes(self) -> None:
        """Open the write gate, if a drain closed it, and create missing roles, schema and slots in the background."""
        self._quiet_until = 0.0
        if self._gate is not None:
            self._gate.cancel()
            self._gate = None
        if self._preparing is None:
            self._preparing = asyncio.create_task(self._prepare(), name="preparation")

    async def _prepare(self) -> None:
        await asyncio.sleep(PREPARE_AFTER_S)
        while True:
            try:
                await self._context.prepare(self.member)
            except MemberError as error:
                _log.warning("ledger: not prepared yet: %s", error)
                await asyncio.sleep(PREPARE_RETRY_S)
            else:
                return

    def _stop_leading(self) -> None:
        self.quorum = self._slots_for = None
        self._is_primary = False
        if self._preparing is not None:
            self._preparing.cancel()
            self._preparing = None

    async def missing_stream_slots(self, region: RegionName) -> tuple[str, ...]:
        """Return the slots of change streams that could not continue if that region led; see `FailoverMember`."""
        return await self.member.missing_stream_slots(self._context.ledger_of(region))

    def report_cancelled_wait(self, epoch: Epoch) -> None:
        """Report to the core that a commit returned before it had its quorum (rule 7)."""
        self._context.on_event(QuorumWaitCancelled(epoch=epoch))

    # Execution of effects.

    async def _work(self) -> None:
        while True:
            await self._effect_arrived.wait()
            self._effect_arrived.clear()
            effect, self._wanted = self._wanted, None
            if effect is None:
                continue
            if self._current is not None:
                # Commands that PostgreSQL has received take effect; the remaining steps are abandoned.
                self._current.cancel()
                await asyncio.wait([self._current])
            self._current = asyncio.create_task(self._perform(effect), name=type(effect).__name__)

    async def _perform(self, effect: LedgerEffect) -> None:
        promise = self._context.durable()
        if promise is not None and promise.epoch > effect.epoch:
            _log.info("ledger: %s for epoch %d is below the promise %d", _name(effect), effect.epoch, promise.epoch)
            return
        began = asyncio.get_running_loop().time()
        try:
            answer = await self._answer(effect)
        except Diverged as error:
            answer = LedgerFailed(ticket=effect.ticket, reason=str(error), diverged=True)
        except (MemberError, OSError) as error:
            torn = not isinstance(effect, InitialiseLedger) and self.member.data_state() == "absent"
            answer = LedgerFailed(ticket=effect.ticket, reason=str(error), torn=torn)
        took_ms = (asyncio.get_running_loop().time() - began) * 1000
        _log.debug("ledger: %s took %.0f ms: %s", _name(effect), took_ms, type(answer).__name__)
        if not isinstance(answer, LedgerFailed):
            self._context.on_effect_done(effect, took_ms)
        self._context.on_event(answer)

    async def _answer(self, effect: LedgerEffect) -> LedgerAnswer:  # noqa: C901 - one line an effect
        member, epoch = self.member, effect.epoch
        match effect:
            case InitialiseLedger():
                await self._initialise(epoch)
            case FreezeLedger(ticket=ticket):
                self._stop_leading()
                frozen = await member.freeze()
                await self._refuse_when_full()
                return _frozen(ticket, frozen)
            case SetQuorum(standbys=standbys, required=required):
                await self._set_quorum(standbys, required)
            case PromoteLedger():
                await self._promote(epoch)
            case WriteFence(ticket=ticket):
                return await self._write_fence(ticket, epoch)
            case FollowLedger(leader=leader):
                self._stop_leading()
                await member.follow(epoch=epoch, leader=self._context.ledger_of(leader))
            case RewindLedger(leader=leader):
                await member.rewind(self._context.ledger_of(leader))
            case CopyLedger(leader=leader):
                await member.copy(self._context.ledger_of(leader))
            case DrainLedger(ticket=ticket, target=target):
                return LedgerDrained(ticket=ticket, lsn=await self._drain(target))
            case StopLedger():
                self._stop_leading()
                await member.stop(at_once=True)
            case _:
                assert_never(effect)
        return LedgerDone(ticket=effect.ticket)

    async def _refuse_when_full(self) -> None:
        """Fail if the disk is full: the member would be counted for an epoch that it cannot lead."""
        if await asyncio.to_thread(self.member.disk_is_full):
            raise MemberFailed(DISK_FULL)

    async def _initialise(self, epoch: Epoch) -> None:
        member = self.member
        if member.data_state() == "absent":
            await member.initialise()
        if not member.running:
            await member.start_primary(epoch=epoch, synchronous_standby_names="")
        await self._context.prepare(member)

    async def _promote(self, epoch: Epoch) -> None:
        if self.quorum is None:
            raise MemberFailed("it is not promoted before its quorum is set")
        await self.member.promote(epoch=epoch, followers=self._followers)
        self._is_primary = True

    async def _set_quorum(self, standbys: tuple[RegionName, ...], required: int) -> None:
        """Put the quorum in force; on a primary also wait for a commit under it (rule 5)."""
        self._followers = standbys
        ledger = self.member.ledger
        is_primary = not (await ledger.one("is_in_recovery"))["pg_is_in_recovery"]
        if is_primary:
            await self._prepared(lambda: ledger.prepare_slots(followers=standbys, streams=()))
        else:
            await self.member.keep_wal_for(standbys)
        if required:
            await self.member.set_quorum(quorum_names(standbys, required))
            if is_primary:
                self._quorum_commit = _join_or_start(
                    self._quorum_commit, (standbys, required), ledger.commit_under_quorum
                )
                await self._quorum_commit.result()
        self.quorum = (standbys, required)
        self._is_primary = is_primary

    async def _write_fence(self, ticket: Ticket, epoch: Epoch) -> FenceWritten:
        self._fence = _join_or_start(self._fence, epoch, lambda: self._commit_fence(epoch))
        return replace(await self._fence.result(), ticket=ticket)

    async def _commit_fence(self, epoch: Epoch) -> FenceWritten:
        ledger, confirmed = self.member.ledger, True
        fence_id = uuid4()
        try:
            wanted = fence_id
            fence_id = await self._prepared(
                lambda: ledger.write_fence_row(epoch=epoch, fence_id=wanted, leader=self._context.region)
            )
        except QuorumUnknown as error:
            _log.warning("ledger: %s", error)
            confirmed = False
        lsn = (await ledger.read_state()).lsn if confirmed else 0
        return FenceWritten(ticket=0, fence_id=fence_id, lsn=lsn, confirmed=confirmed)

    async def _prepared(self, work: Callable[[], Awaitable[_T]]) -> _T:
        """Do work that needs the schema. If the schema is missing because an earlier agent died, create it first."""
        try:
            return await work()
        except SchemaMissing as error:
            _log.info("ledger: %s; roles, schema and slots are created now", error)
            await self._context.prepare(self.member)
            return await work()

    async def _drain(self, target: RegionName) -> int:
        """Close the write gate, wait for running writes to end, and wait until the target has all WAL on disk.

        Returns:
            The LSN at which that WAL ends.
        """
        ledger, loop = self.member.ledger, asyncio.get_running_loop()
        # The target needs the WAL of heartbeats as well, so none is written from now on. While the running writes end,
        # the target receives the WAL of the earlier heartbeats.
        self._quiet_until = loop.time() + QUIET_S
        if self._gate is None or self._gate.done():
            closed = asyncio.Event()
            self._gate = asyncio.create_task(self._hold_write_gate(closed), name="write gate")
            waiting = asyncio.ensure_future(closed.wait())
            try:
                await asyncio.wait((self._gate, waiting), return_when=asyncio.FIRST_COMPLETED)
            finally:
                waiting.cancel()
            if not closed.is_set():
                raise MemberFailed("the write gate could not be closed")
        while True:
            # If the WAL of a heartbeat reached another member and not the target, an election would prefer that member.
            self._quiet_until = loop.time() + QUIET_S
            if self._committing is not None:
                await asyncio.wait((self._committing,))
            end = (await ledger.read_state()).lsn
            while loop.time() < self._quiet_until:
                if int((await ledger.one("read_flushed_by", target))["lsn"] or 0) >= end:
                    return end
                await asyncio.sleep(DRAIN_POLL_S)
            # The target is slow. A heartbeat prevents suspicion, and the target has to receive its WAL as well.
            await self._read_commit()

    @property
    def _is_quiet(self) -> bool:
        return asyncio.get_running_loop().time() < self._quiet_until

    async def _hold_write_gate(self, closed: asyncio.Event) -> None:
        """Hold the write gate until the task is cancelled; if PostgreSQL ends, it accepts no writes anyway."""
        try:
            await self.member.ledger.hold_write_gate(closed)
        except MemberError as error:
            _log.debug("ledger: %s", error)

    # Reports that the core did not ask for.

    async def _watch(self) -> None:
        """Report the end of a postmaster that no effect has stopped."""
        seen = None
        while True:
            process = self.member.process
            if process is None or process is seen:
                await asyncio.sleep(0.02)
                continue
            # Also a process that has ended already: it may have lived for less time than the interval above.
            await process.wait()
            seen = process
            # After `Member.stop` the process is not the member's any more.
            if process is self.member.process and not self._may_stop_postmaster():
                _log.warning("ledger: PostgreSQL (pid %d) ended", process.pid)
                self._stop_leading()
                self._context.on_event(LedgerEnded())

    def _may_stop_postmaster(self) -> bool:
        """Return whether the current effect may stop the postmaster; that effect reports an unexpected end itself."""
        moves = ("FreezeLedger", "FollowLedger", "RewindLedger", "CopyLedger", "StopLedger")
        return self._current is not None and not self._current.done() and self._current.get_name() in moves

    async def _watch_standbys(self) -> None:
        while True:
            await asyncio.sleep(STANDBYS_S)
            # Not between the quorum and the promotion, because the promotion creates the same slots.
            if not self._is_primary or self.quorum is None or not self.member.running or self._is_quiet:
                continue
            followers = self._context.followers()
            try:
                await self._keep_slots(followers)
                standbys = await self.member.ledger.read_standbys(followers)
                await self.member.ledger.run("log_snapshot")
            except MemberError as error:
                _log.debug("ledger: the standbys could not be read: %s", error)
                continue
            close = {one.region for one in standbys if one.streaming and one.flush_lag_bytes < STREAMING_LAG_BYTES_MAX}
            self._context.on_event(StandbysStreaming(regions=frozenset(close)))

    async def _keep_slots(self, followers: tuple[RegionName, ...]) -> None:
        """Create the slots of all followers, also of joining ones, and drop those of removed regions.

        It looks for missing slots at each call: PostgreSQL invalidates the slot of a follower that was away for longer
        than WAL is kept, and the follower cannot be copied without a new slot.
        """
        ledger = self.member.ledger
        await ledger.prepare_follower_slots(followers)
        if followers == self._slots_for:
            return
        left = await ledger.drop_follower_slots(one for one in self._context.others if one not in followers)
        if not left:
            self._slots_for = followers

    async def _keep_connections(self) -> None:
        """Keep spare connections to the own member, and on a follower connections to every possible next leader."""
        others = [self._context.ledger_of(region) for region in self._context.others]
        while True:
            if self.member.running:
                await self._open_spares()
            if self.quorum is None and self.member.running:
                await self.member.keep_connections(others)
                await self._prepare_to_lead()
            await asyncio.sleep(TOUCH_S)

    async def _open_spares(self) -> None:
        try:
            await self.member.ledger.open_spares()
        except MemberError as error:
            _log.debug("ledger: the spare connections could not be opened: %s", error)

    async def _prepare_to_lead(self) -> None:
        """Put the quorum in force with which this member would lead, so that a failover does not wait for it."""
        standbys = self._context.standbys()
        required = required_standbys((self._context.region, *standbys))
        busy = self._current is not None and not self._current.done()
        if not required or busy or self.quorum is not None:
            return
        try:
            async with asyncio.timeout(PREPARE_TO_LEAD_S_MAX):
                await self.member.prepare_to_lead(quorum_names(standbys, required), standbys)
        except (MemberError, TimeoutError) as error:
            _log.debug("ledger: the quorum for its own leadership is not in force: %s", error)

    async def _read_commit(self) -> None:
        quorum = self.quorum
        if quorum is None:
            return
        standbys, required = quorum
        if self._full_disk_checks or self._commit_reads % DISK_CHECK_HEARTBEATS == 0:
            full = await asyncio.to_thread(self.member.disk_is_full)
            self._full_disk_checks = self._full_disk_checks + 1 if full else 0
        self._commit_reads += 1
        if self._full_disk_checks >= FULL_DISK_CHECKS and required and self.quorum == quorum:
            # It would lead forever without accepting writes: heartbeats fit into WAL segments that exist already.
            _log.error("ledger: PostgreSQL is terminated, so that another region takes over: %s", DISK_FULL)
            self._full_disk_checks = 0
            self.member.crash()
            return
        try:
            row = await self.member.ledger.one("read_quorum_commit", list(standbys), required, True)
        except MemberError as error:
            _log.debug("ledger: no quorum commit: %s", error)
            return
        if row["lsn"] is not None and self.quorum == quorum:
            self._context.on_event(QuorumCommit(lsn=int(row["lsn"])))

    async def _abandon(self) -> None:
        """Cancel what is unfinished when the agent ends; PostgreSQL keeps running as it is."""
        commits = [one.task for one in (self._fence, self._quorum_commit) if one is not None]
        tasks = [self._current, self._committing, self._gate, self._preparing, *commits]
        left = [task for task in tasks if task is not None and not task.done()]
        for task in left:
            task.cancel()
        if left:
            await asyncio.wait(left)
        await self.member.drop_connections()


def _frozen(ticket: Ticket, frozen: FrozenStandby) -> LedgerFrozen:
    # Without a receive position nothing else shows that replay lags, so such a member is reported as still receiving.
    # An incomplete record at the end is reported as replayed, because it can never be replayed.

    return LedgerFrozen(
        ticket=ticket,
        receiving=frozen.receiving or not frozen.exhausted,
        received=frozen.received,
        replayed=max(frozen.replayed, frozen.received or 0) if frozen.torn else frozen.replayed,
        ancestry=frozen.fence_epochs,
    )


def _name(effect: LedgerEffect) -> str:
    return type(effect).__name__

"""Models the agent's driver of its member: executes the core's effects on a modelled PostgreSQL, one after the other.

It keeps the contract of ``regions/failover/effects.py``: a newer effect supersedes an older one that is unanswered (a
short step of the older one is still executed, a copy or rewind is left unfinished); an effect is dropped if the promise
on disk is above its epoch; answers may be late, duplicated or missing. The durations are those of failover.md.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, assert_never
from uuid import UUID

from infra.simulation.member import Member
from infra.simulation.network import Network
from infra.simulation.scheduler import Scheduler
from infra.simulation.wal import Entry
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
    FenceWritten,
    LedgerAnswer,
    LedgerDone,
    LedgerDrained,
    LedgerFailed,
    LedgerFrozen,
    MemberState,
    Promise,
)
from regions.identity import RegionName

FREEZE_S = 0.020
READ_S = 0.001
SET_NAMES_S = 0.004
PROMOTE_S = 0.038
FENCE_S = 0.026
STOP_S = 0.10
START_S = 0.20
INITIALISE_S = (0.5, 1.5)
REWIND_S = (0.4, 1.5)
COPY_S = (1.0, 4.0)
POLL_S = 0.02
FOLLOW_S_MAX = 4.5
"""A driver reports a failure if streaming has not begun after this time; the walreceiver continues to connect."""

STILL_RECEIVING = 0.15
"""Share of freezes in which the walreceiver still runs when the driver reads the position (rule 4)."""

REPLAY_LAGS = 0.15
"""Share of freezes in which replay lags behind the received position (rule 4)."""

ANSWERED_TWICE = 0.01
"""Share of answers that are delivered twice."""


class Agent(Protocol):
    """The interface of the agent that the driver uses."""

    @property
    def disk(self) -> Promise | None:
        """The promise on disk."""
        ...

    @property
    def paused(self) -> bool:
        """Whether the agent is paused."""
        ...

    @property
    def writes_under_way(self) -> int:
        """Writes that were admitted and have not reached the member."""
        ...

    def answer(self, answer: LedgerAnswer) -> None:
        """Deliver an answer to the core."""
        ...


class LedgerDriver:
    """Executes effects on one member."""

    def __init__(self, scheduler: Scheduler, network: Network, member: Member, agent: Agent) -> None:
        self.member = member
        self._scheduler = scheduler
        self._network = network
        self._agent = agent
        self._generation = 0
        self._busy_until = 0.0
        self._held: list[tuple[Callable[..., None], tuple[Any, ...]]] = []

    def inspect_member(self) -> MemberState:
        """The state of the member that an agent finds when it starts."""
        member = self.member
        if not member.exists:
            return MemberState(kind="absent")
        if not member.running:
            return MemberState(kind="stopped")
        if member.primary:
            return MemberState(kind="primary", epoch=member.epoch)
        if member.conninfo is None:
            return MemberState(kind="frozen")
        return MemberState(kind="following", epoch=member.epoch)

    def abandon_effects(self) -> None:
        """The agent died: abandon its effects. A step that PostgreSQL already executes may still complete."""
        self._generation += 1
        self._busy_until = 0.0
        self._held.clear()

    def resume(self) -> None:
        """Execute the calls that a pause or a hung disk has held up."""
        held, self._held = self._held, []
        for call, arguments in held:
            self._fire(call, *arguments)

    def perform(self, effect: LedgerEffect) -> None:
        """Execute an effect; it supersedes the previous one."""
        self._generation += 1
        wait = max(0.0, self._busy_until - self._scheduler.now)
        self._after(wait, self._begin, effect, self._generation)

    def _after(self, seconds: float, call: Callable[..., None], *arguments: Any) -> None:  # noqa: ANN401 - passed on
        self._scheduler.after(seconds, self._fire, call, *arguments)

    def _fire(self, call: Callable[..., None], *arguments: Any) -> None:  # noqa: ANN401 - passed on untouched
        if self.member.paused or self.member.hung or self._agent.paused:
            self._held.append((call, arguments))
        else:
            call(*arguments)

    def _step(self, seconds: float, call: Callable[..., None], *arguments: Any) -> None:  # noqa: ANN401 - passed on
        """Execute a short step after ``seconds``; a newer effect waits for it."""
        self._busy_until = self._scheduler.now + seconds
        self._after(seconds, call, *arguments)

    def _is_current(self, effect: LedgerEffect, generation: int) -> bool:
        disk = self._agent.disk
        return generation == self._generation and (disk is None or disk.epoch <= effect.epoch)

    def _answer(self, answer: LedgerAnswer) -> None:
        self._agent.answer(answer)
        if self._scheduler.chance(ANSWERED_TWICE):
            self._scheduler.after(self._scheduler.between(0, 1), self._agent.answer, answer)

    def _fail(self, effect: LedgerEffect, reason: str, *, diverged: bool = False) -> None:
        torn = not self.member.exists
        self._answer(LedgerFailed(ticket=effect.ticket, reason=reason, diverged=diverged, torn=torn))

    def _done(self, effect: LedgerEffect) -> None:
        self._answer(LedgerDone(ticket=effect.ticket))

    def _begin(self, effect: LedgerEffect, generation: int) -> None:  # noqa: C901 - one line an effect
        if not self._is_current(effect, generation):
            return
        between = self._scheduler.between
        match effect:
            case InitialiseLedger():
                self._after(between(*INITIALISE_S), self._initialise, effect, generation)
            case FreezeLedger():
                self._freeze(effect, generation)
            case SetQuorum():
                self._step(SET_NAMES_S, self._set_quorum, effect, generation)
            case PromoteLedger():
                self._step(PROMOTE_S, self._promote, effect, generation)
            case WriteFence():
                self._step(FENCE_S, self._write_fence, effect, generation)
            case FollowLedger():
                self._follow(effect, generation)
            case RewindLedger() | CopyLedger():
                self._step(STOP_S, self._rebuild, effect, generation)
            case DrainLedger():
                self.member.draining = True
                self._drain(effect, generation, None)
            case StopLedger():
                self._step(STOP_S, self._stop, effect)
            case _:
                assert_never(effect)

    def _initialise(self, effect: InitialiseLedger, generation: int) -> None:
        if self._is_current(effect, generation):
            self.member.initialise(effect.epoch)
            self._done(effect)

    def _stop(self, effect: StopLedger) -> None:
        self.member.stop()
        self._done(effect)

    # Freezing.

    def _freeze(self, effect: FreezeLedger, generation: int) -> None:
        member, scheduler = self.member, self._scheduler
        if not member.exists:
            self._after(READ_S, self._fail, effect, "there is no ledger")
        elif member.running and member.primary:
            self._step(STOP_S, self._restart_frozen, effect, generation)
        elif not member.running:
            self._restart_frozen(effect, generation)
        else:
            member.unfollow()
            late = scheduler.chance(STILL_RECEIVING)
            self._end_receiver_after(
                scheduler.between(FREEZE_S, 10 * FREEZE_S) if late else scheduler.between(0, FREEZE_S)
            )
            self._lag_replay()
            self._step(FREEZE_S, self._read_frozen, effect, generation)

    def _end_receiver_after(self, seconds: float) -> None:
        self._scheduler.after(seconds, self._end_receiver)

    def _end_receiver(self) -> None:
        if self.member.conninfo is None and not self.member.paused:
            self.member.disconnect()

    def _lag_replay(self) -> None:
        member, scheduler = self.member, self._scheduler
        # Without a received position the lag could not be detected. Then the driver has to wait until replay is done,
        # by its contract, so the model has no lag.
        if member.received is not None and scheduler.chance(REPLAY_LAGS):
            member.replay_lag = min(scheduler.random.randrange(1, 4), len(member.wal.entries))
            member.replay_at = scheduler.now + scheduler.between(FREEZE_S, 10 * FREEZE_S)

    def _restart_frozen(self, effect: FreezeLedger, generation: int) -> None:
        self.member.stop()
        self.member.unfollow()
        self._step(START_S, self._start_frozen, effect, generation)

    def _start_frozen(self, effect: FreezeLedger, generation: int) -> None:
        if self._is_current(effect, generation) and self.member.exists:
            self.member.start_standby()
            self.member.epoch = 0
            self._read_frozen(effect, generation)

    def _read_frozen(self, effect: FreezeLedger, generation: int) -> None:
        member = self.member
        if not self._is_current(effect, generation):
            return
        if not member.running or member.primary:
            self._fail(effect, "PostgreSQL ended")
            return
        member.epoch = 0
        replayed = member.replayed
        self._answer(
            LedgerFrozen(
                ticket=effect.ticket,
                receiving=member.has_receiver,
                received=member.received,
                replayed=reported_replay_lsn(member, replayed),
                ancestry=member.wal.ancestry(replayed),
            )
        )

    # Leading.

    def _set_quorum(self, effect: SetQuorum, generation: int) -> None:
        member = self.member
        if not member.running:
            self._fail(effect, "PostgreSQL does not run")
            return
        member.set_standby_names(effect.standbys, effect.required)
        if member.primary and effect.required:
            member.wait(lambda passed: self._quorum_set(effect, generation, passed=passed))
        else:
            self._done(effect)

    def _quorum_set(self, effect: SetQuorum, generation: int, *, passed: bool) -> None:
        if passed and generation == self._generation:
            self._done(effect)

    def _promote(self, effect: PromoteLedger, generation: int) -> None:
        member = self.member
        if generation != self._generation and self._scheduler.chance(0.5):
            return  # superseded before pg_promote was sent; else it was sent before the newer promise
        if member.running and member.primary and member.epoch == effect.epoch:
            self._done(effect)
        elif not member.running or member.primary:
            self._fail(effect, "only a running standby can be promoted")
        else:
            member.promote(effect.epoch)
            self._done(effect)

    def _write_fence(self, effect: WriteFence, generation: int) -> None:
        member = self.member
        if not self._is_current(effect, generation):
            return
        if not member.running or not member.primary or member.epoch != effect.epoch:
            self._fail(effect, "PostgreSQL is no primary of this epoch")
            return
        written = [end for end, epoch in member.wal.fences if epoch == effect.epoch]
        if written:
            end = written[-1]
            entry = member.wal.entries[end - 1]
            member.wait(lambda passed: self._fenced(effect, entry, end, passed=passed))
        else:
            entry = Entry("fence", effect.epoch, fence_id=UUID(int=self._scheduler.random.getrandbits(128)))
            end = len(member.wal.entries) + 1
            member.write(entry, lambda passed: self._fenced(effect, entry, end, passed=passed))

    def _fenced(self, effect: WriteFence, entry: Entry, end: int, *, passed: bool) -> None:
        assert entry.fence_id is not None, "a fence row without its identity"
        if self.member.running:
            self._answer(FenceWritten(ticket=effect.ticket, fence_id=entry.fence_id, lsn=end, confirmed=passed))
        else:
            self._fail(effect, "PostgreSQL ended")

    def _drain(self, effect: DrainLedger, generation: int, end: int | None) -> None:
        member = self.member
        if not self._is_current(effect, generation) or not member.draining:
            return  # superseded, or the member admits writes again
        if not member.running or not member.primary:
            self._fail(effect, "PostgreSQL is no primary")
            return
        if end is None and not member.waiting and not self._agent.writes_under_way:
            end = member.wal.flushed
        if end is not None and member.confirmed.get(effect.target, 0) >= end:
            self._answer(LedgerDrained(ticket=effect.ticket, lsn=end))
        else:
            self._after(POLL_S, self._drain, effect, generation, end)

    # Following.

    def _follow(self, effect: FollowLedger, generation: int) -> None:
        member = self.member
        if not member.exists:
            self._after(READ_S, self._fail, effect, "there is no ledger")
        elif member.running and member.primary:
            self._step(STOP_S, self._restart_following, effect, generation)
        elif member.running:
            self._receive_from(effect, generation)
        else:
            self._step(START_S, self._start_following, effect, generation)

    def _restart_following(self, effect: FollowLedger, generation: int) -> None:
        self.member.stop()
        self._step(START_S, self._start_following, effect, generation)

    def _start_following(self, effect: FollowLedger, generation: int) -> None:
        if self._is_current(effect, generation) and self.member.exists:
            self.member.unfollow()
            self.member.start_standby()
            self._receive_from(effect, generation)

    def _receive_from(self, effect: FollowLedger, generation: int) -> None:
        self.member.follow(effect.leader)
        self.member.epoch = effect.epoch
        self._await_streaming(effect, generation, self._scheduler.now + FOLLOW_S_MAX)

    def _await_streaming(self, effect: FollowLedger, generation: int, until: float) -> None:
        member = self.member
        if not self._is_current(effect, generation):
            return
        if not member.running:
            self._fail(effect, "PostgreSQL ended")
        elif member.upstream is not None and member.upstream.source.region == effect.leader:
            self._done(effect)
        elif member.diverged:
            self._fail(effect, "the leader's history does not have this WAL", diverged=True)
        elif self._scheduler.now >= until:
            self._fail(effect, "no connection to the leader")
        else:
            self._after(POLL_S, self._await_streaming, effect, generation, until)

    # Rebuilding.

    def _source(self, leader: RegionName) -> Member | None:
        source = self.member.peers.get(leader)
        if source is None or not source.running or not source.primary or source.paused or source.hung:
            return None
        return source if self._network.is_connected(self.member.region, leader) else None

    def _rebuild(self, effect: RewindLedger | CopyLedger, generation: int) -> None:
        member = self.member
        if not self._is_current(effect, generation):
            return
        if isinstance(effect, RewindLedger) or member.primary:
            member.stop()
        if self._source(effect.leader) is None:
            self._fail(effect, "the leader does not answer")
        elif isinstance(effect, CopyLedger):
            self._after(self._scheduler.between(*COPY_S), self._finish_rebuild, effect, generation)
        elif not member.exists:
            self._fail(effect, "there is no ledger")
        else:
            member.exists = False  # a pg_rewind that is killed leaves a data directory that cannot start
            self._after(self._scheduler.between(*REWIND_S), self._finish_rebuild, effect, generation)

    def _finish_rebuild(self, effect: RewindLedger | CopyLedger, generation: int) -> None:
        if not self._is_current(effect, generation):
            return
        source = self._source(effect.leader)
        if source is None:
            self._fail(effect, "the leader went away")
            return
        if isinstance(effect, CopyLedger):
            self.member.stop()
            self.member.copy(source)
        else:
            self.member.exists = True
            self.member.rewind(source)
        self._done(effect)


def reported_replay_lsn(member: Member, replayed: int) -> int:
    """The replayed position that the executor reports (rule 4): an incomplete record at the end counts as replayed."""
    return max(replayed, member.received or 0) if member.torn else replayed

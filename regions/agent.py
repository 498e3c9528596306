"""The agent of a region: asks what to do next, does it, and feeds back what came of it.

Decides nothing about leadership (``failover.decision`` does); decides when to look again, how long to back
off and what is said. Its log tells the life of a region: about ten lines for a bootstrap.

Two things are left to later parts and named where they go: failover to another region
(``regions.failover``), and keeping etcd's leader out of the ledger leader's region (rule 15).
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, TypeVar, assert_never
from uuid import uuid4

from regions.coordination import Coordination, CoordinationError, LeadershipView
from regions.edge import EdgeFeed
from regions.failover.decision import (
    Claim,
    Copy,
    Establish,
    Initialise,
    Refuse,
    Rest,
    Situation,
    Started,
    StartPrimary,
    StartStandby,
    Step,
    Stop,
    decide,
)
from regions.identity import Epoch, RegionName
from regions.leadership import Leadership
from regions.member import LedgerState, Member, MemberError, Slot, Standby, quorum_names
from regions.topology import Address, Topology

PAUSE_S = 0.1
PAUSE_S_MAX = 2.0
"""After a step that failed; doubles. Two seconds keep the return of a region well below ten."""

LOOK_S = 1.0
"""How often a resting agent looks again for what no event tells, and reads its member's state."""

_log = logging.getLogger(__name__)
_T = TypeVar("_T")


class Deposed(Exception):
    """A later epoch began while something was done for an earlier one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """What the member said when it was last asked.

    Attributes:
        ledger: Its state; None when it does not answer.
        standbys: Its standbys, when it is primary.
        slots: Its slots.
    """

    ledger: LedgerState | None = None
    standbys: tuple[Standby, ...] = ()
    slots: tuple[Slot, ...] = ()


class RegionAgent:
    """Runs one region: its ledger member, when it is a voter, and its edge.

    Attributes:
        view: The latest leadership heard of.
        observation: What the member last said.
        refusal: Why nothing is done although something should be; None when all is well.
    """

    def __init__(
        self,
        topology: Topology,
        coordination: Coordination,
        *,
        member: Member | None,
        prepare_ledger: Callable[[str], Awaitable[None]],
        edge: EdgeFeed,
    ) -> None:
        """Prepare an agent.

        Args:
            topology: The deployment as this region sees it.
            coordination: An entered client of its etcd.
            member: The ledger member; None in a region that only reads.
            prepare_ledger: Brings the schema of the ledger at this URL up to date; may be called again.
            edge: Where the edge is told who leads.
        """
        assert (member is not None) == topology.own.voter, "voters and only voters hold a ledger member"
        self.topology = topology
        self.member = member
        self.edge = edge
        self.view = LeadershipView(coordination, topology.cell)
        self.observation = Observation()
        self.refusal: str | None = None
        self._coordination = coordination
        self._prepare_ledger = prepare_ledger
        self._said: str | None = None
        self._seen_running = False

    async def run(self) -> None:
        """Run until cancelled; the member is left as it is, to be adopted or stopped.

        Raises:
            AccessRefused: etcd asks for another user or password.
            MemberUnusable: The data folder cannot be used.
        """
        if self.member is not None:
            self.member.data_state()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self.view.run(), name="leadership")
            tasks.create_task(self.edge.run(self.view), name="edge")
            if self.member is not None:
                tasks.create_task(self._drive(self.member), name="member")
                tasks.create_task(self._observe(self.member), name="observation")

    async def stop(self) -> None:
        """Stop the member, because the region is being stopped."""
        if self.member is not None:
            await self.member.stop()
            self.member.leave()
            _log.info("ledger: stopped with its region")

    @property
    def role(self) -> str:
        """``leader``, ``follower`` or ``view``."""
        if self.member is None:
            return "view"
        current = self.view.current
        return "leader" if current is not None and current.leader == self.topology.region else "follower"

    async def _drive(self, member: Member) -> None:
        await self._insist(self._coordination.enable_authentication)
        if await self._insist(member.adopt):
            assert member.process is not None
            _log.info("ledger: adopted the running postgres (pid %d)", member.process.pid)
        pause_s = PAUSE_S
        while True:
            try:
                rests = await self._step(member)
            except (CoordinationError, MemberError, Deposed) as error:
                self._say(logging.WARNING, f"{error}; trying again")
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, PAUSE_S_MAX)
                continue
            if rests:
                pause_s = PAUSE_S
                await self._until_something_happens(member)

    async def _insist(self, work: "Callable[[], Coroutine[Any, Any, _T]]") -> _T:
        pause_s = PAUSE_S
        while True:
            try:
                return await work()
            except (CoordinationError, MemberError) as error:
                self._say(logging.WARNING, f"{error}; trying again")
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, PAUSE_S_MAX)

    async def _step(self, member: Member) -> bool:
        """Do the next step; return whether there is nothing more to do for now."""
        if self.view.current is not None and not self._lags(member):
            step = decide(self._situation(member, self.view.current))
            # A demotion needs no newer news: epochs only grow. Nor does resting.
            if isinstance(step, Rest | Refuse | Stop):
                return await self._perform(member, step, None, 0)
        # Rule 2: an agent that was paused reads the epoch again before it acts.
        found = await self._coordination.read_leadership(self.topology.cell)
        leadership, revision = found or (None, 0)
        step = decide(self._situation(member, leadership))
        if isinstance(step, StartPrimary | Establish | Copy):
            assert leadership is not None
            return await self._unless_deposed(leadership, self._perform(member, step, leadership, revision))
        return await self._perform(member, step, leadership, revision)

    def _lags(self, member: Member) -> bool:
        """Whether the watch is behind what was already done for a later epoch."""
        record, current = member.record, self.view.current
        return record is not None and current is not None and record.epoch > current.epoch

    async def _perform(self, member: Member, step: Step, leadership: Leadership | None, revision: int) -> bool:
        self.refusal = step.reason if isinstance(step, Refuse) else None
        match step:
            case Rest():
                return True
            case Refuse(reason=reason):
                self._say(logging.ERROR, f"refused: {reason}")
                return True
            case Claim():
                await self._claim(step, revision)
            case Initialise():
                await self._timed("initialised", member.initialise())
            case StartPrimary(epoch=epoch, quorum=quorum):
                await self._start_primary(member, epoch, self._quorum_names() if quorum else "")
            case Establish():
                assert leadership is not None
                await self._establish(member, leadership, revision)
            case Copy(leader=leader):
                await self._timed(f"copied from {leader}", member.base_backup(self._ledger_of(leader)))
            case StartStandby(leader=leader, epoch=epoch):
                await member.start_standby(epoch=epoch, leader=self._ledger_of(leader))
                self._started(member, f"standby of {leader}")
            case Stop(reason=reason):
                _log.warning("ledger: postgres is stopped: %s", reason)
                await member.stop()
            case _:
                assert_never(step)
        return False

    def _situation(self, member: Member, leadership: Leadership | None) -> Situation:
        record = member.record
        self._seen_running = self._seen_running or member.running
        return Situation(
            region=self.topology.region,
            first_choice=self.topology.voters[0].name == self.topology.region,
            leadership=leadership,
            data=member.data_state(),
            running=member.running,
            started=None if record is None else Started(role=record.role, epoch=record.epoch),
            seen_running=self._seen_running,
        )

    async def _claim(self, claim: Claim, revision: int) -> None:
        new = Leadership(
            epoch=claim.epoch,
            leader=self.topology.region,
            phase="bootstrapping" if claim.epoch == 1 else "establishing",
            fence_id=None,
            reason=claim.reason,
            since=_now(),
        )
        if await self._coordination.replace_leadership(self.topology.cell, new, revision):
            _log.info("epoch %d: claimed for %s: %s", new.epoch, new.leader, new.reason)

    async def _start_primary(self, member: Member, epoch: Epoch, names: str) -> None:
        await member.start_primary(epoch=epoch, synchronous_standby_names=names)
        self._started(member, f"primary of epoch {epoch}")

    async def _establish(self, member: Member, leadership: Leadership, revision: int) -> None:
        began = asyncio.get_running_loop().time()
        if leadership.phase == "bootstrapping":
            await self._prepare(member)
            await self._await_standbys(member)
        else:
            # The quorum is in force since the start: what is prepared needs it.
            await self._await_standbys(member)
            await self._prepare(member)
        if self.topology.quorum_standbys:
            names = self._quorum_names()
            await member.set_quorum(names)
            _log.info("ledger: a commit waits for %s", names)
        fence_id = await member.ledger.write_fence_row(
            epoch=leadership.epoch, fence_id=uuid4(), leader=self.topology.region
        )
        _log.info("epoch %d: fence row %s is on a quorum", leadership.epoch, fence_id)
        serving = replace(leadership, phase="serving", fence_id=fence_id, since=_now())
        if await self._coordination.replace_leadership(self.topology.cell, serving, revision):
            took_s = asyncio.get_running_loop().time() - began
            _log.info("epoch %d: %s serves, %.1f s after its start", serving.epoch, serving.leader, took_s)

    async def _prepare(self, member: Member) -> None:
        settings = member.settings
        await member.ledger.prepare_roles(
            replication_password=settings.replication_password, writer_password=settings.writer_password
        )
        # The followers' slots first, so that they copy while the schema is made; the streams' slots after it,
        # because no stream can be decoded from before its publication.
        await member.ledger.prepare_slots(followers=self._standby_names(), streams=())
        await self._prepare_ledger(member.ledger.url)
        streams = [region.name for region in self.topology.regions]
        await member.ledger.prepare_slots(followers=(), streams=streams)
        _log.info("ledger: roles, schema and slots are there")

    async def _await_standbys(self, member: Member) -> None:
        wanted = self.topology.quorum_standbys
        while True:
            standbys = await member.ledger.read_standbys(self._standby_names())
            streaming = sorted(standby.region for standby in standbys if standby.streaming)
            if len(streaming) >= wanted:
                _log.info("ledger: %s streaming", ", ".join(streaming) or "no standby needs to be")
                return
            self._say(logging.INFO, f"ledger: waiting for standbys, {len(streaming)} of {wanted} stream")
            await asyncio.sleep(PAUSE_S)

    async def _unless_deposed(self, leadership: Leadership, work: Coroutine[Any, Any, _T]) -> _T:
        """Do ``work``, but give it up when a later epoch begins.

        Raises:
            Deposed: It was given up.
        """
        working = asyncio.create_task(work)
        watching = asyncio.create_task(self._later_epoch(leadership.epoch))
        try:
            await asyncio.wait({working, watching}, return_when=asyncio.FIRST_COMPLETED)
            if working.done():
                return working.result()
            raise Deposed(f"epoch {watching.result().epoch} began during epoch {leadership.epoch}")
        finally:
            working.cancel()
            watching.cancel()
            await asyncio.wait({working, watching})

    async def _later_epoch(self, epoch: Epoch) -> Leadership:
        known = self.view.current
        while known is None or known.epoch <= epoch:
            known = await self.view.next_after(known)
        return known

    async def _until_something_happens(self, member: Member) -> None:
        """Wait for another leadership or the end of the member, or a while."""
        events: set[asyncio.Task[Any]] = {asyncio.create_task(self.view.next_after(self.view.current))}
        process = member.process if member.running else None
        if process is not None:
            events.add(asyncio.create_task(process.wait()))
        try:
            await asyncio.wait(events, timeout=LOOK_S, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for event in events:
                event.cancel()
            await asyncio.wait(events)
        if process is not None and not process.alive:
            _log.warning("ledger: postgres (pid %d) ended", process.pid)

    async def _observe(self, member: Member) -> None:
        while True:
            self.observation = await self._ask(member) if member.running else Observation()
            await asyncio.sleep(LOOK_S)

    async def _ask(self, member: Member) -> Observation:
        try:
            state = await member.ledger.read_state()
            standbys = () if state.in_recovery else await member.ledger.read_standbys(self._standby_names())
            return Observation(ledger=state, standbys=standbys, slots=await member.ledger.read_slots())
        except MemberError as error:
            _log.debug("ledger: not observed: %s", error)
            return Observation()

    async def _timed(self, what: str, work: Awaitable[None]) -> None:
        began = asyncio.get_running_loop().time()
        await work
        _log.info("ledger: %s in %.1f s", what, asyncio.get_running_loop().time() - began)

    def _started(self, member: Member, what: str) -> None:
        assert member.process is not None
        self._said = None
        _log.info("ledger: postgres started as %s (pid %d)", what, member.process.pid)

    def _say(self, level: int, text: str) -> None:
        """Log a line of something that repeats, once until something else is said."""
        _log.log(level if text != self._said else logging.DEBUG, "%s", text)
        self._said = text

    def _standby_names(self) -> tuple[RegionName, ...]:
        return tuple(voter.name for voter in self.topology.voters if voter.name != self.topology.region)

    def _quorum_names(self) -> str:
        required = self.topology.quorum_standbys
        return quorum_names(self._standby_names(), required) if required else ""

    def _ledger_of(self, region: RegionName) -> Address:
        address = self.topology.by_name(region).ledger
        assert address is not None, f"{region} leads but holds no ledger"
        return address


def _now() -> str:
    """The wall clock, for people: nothing is ordered by it (rule 16)."""
    return datetime.now(UTC).isoformat(timespec="microseconds")

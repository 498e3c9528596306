"""The agent of a region: its switcher, its edge, and what it shows of itself.

Decides nothing about leadership: that is ``regions.failover``, which ``switcher`` drives. Its log tells the life of a
region: about ten lines for a first start, and as many for a failover.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from regions.coordination import Coordination, CoordinationError, LeadershipView
from regions.edge import EdgeFeed
from regions.identity import RegionName
from regions.leadership import Leadership
from regions.member import LedgerState, MemberError, Override, Slot, Standby
from regions.member.executor import MemberExecutor, Surroundings
from regions.member.moving import MovingMember
from regions.member.overrides import OverrideWatch
from regions.member.supervision import DISK_FULL
from regions.switcher import Place, Switcher
from regions.topology import Address, Topology

PAUSE_S = 0.1
PAUSE_S_MAX = 2.0
"""Until etcd asks for a password; doubles."""

LOOK_S = 1.0
"""How often the member's state is read, for people and metrics."""

ETCD_LEADER_S = 2.0
"""How often the leader's agent looks where etcd's leader is; a move takes milliseconds."""

_log = logging.getLogger(__name__)
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """What the member said when it was last asked.

    Attributes:
        ledger: Its state; None when it does not answer.
        standbys: Its standbys, when it is primary.
        slots: Its slots.
        disk_is_full: Whether it has no room to go on.
    """

    ledger: LedgerState | None = None
    standbys: tuple[Standby, ...] = ()
    slots: tuple[Slot, ...] = ()
    disk_is_full: bool = False


class RegionAgent:
    """Runs one region: its ledger member, when it is a voter, and its edge.

    Attributes:
        view: The latest leadership heard of.
        switcher: What drives the failover core.
        observation: What the member last said.
    """

    def __init__(  # noqa: PLR0913 - what a region consists of
        self,
        topology: Topology,
        coordination: Coordination,
        *,
        member: MovingMember | None,
        prepare_ledger: Callable[[str], Awaitable[None]],
        edge: EdgeFeed,
        place: Place,
    ) -> None:
        """Prepare an agent.

        Args:
            topology: The deployment as this region sees it.
            coordination: An entered client of its etcd.
            member: The ledger member; None in a region that only reads.
            prepare_ledger: Brings the schema of the ledger at this URL up to date; may be called again.
            edge: Where the edge is told who leads.
            place: Where the switcher keeps its promise and listens.
        """
        assert (member is not None) == topology.own.voter, "voters and only voters hold a ledger member"
        self.topology = topology
        self.member = member
        self.edge = edge
        self.view = LeadershipView(coordination, topology.cell)
        self.switcher = Switcher(topology, coordination, place=place)
        # An epoch that its predecessor has handed over begins before etcd knows.
        self.switcher.adopted = self.view.offer
        self.observation = Observation()
        self._coordination = coordination
        self._prepare_ledger = prepare_ledger
        self._overrides = None if member is None else OverrideWatch(member.ledger)
        if member is not None:
            self.switcher.hold(MemberExecutor(member, self._surroundings()))

    async def run(self) -> None:
        """Run until cancelled; the member is left as it is, to be adopted or stopped.

        Raises:
            AccessRefused: etcd asks for another user or password.
            CorruptRecord: The record in etcd is none.
            MemberUnusable: The data folder cannot be used.
            OSError: Heartbeats cannot be listened for, or the agent's folder cannot be written.
        """
        if self.member is not None:
            self.member.data_state()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self.view.run(), name="leadership")
            tasks.create_task(self.edge.run(self.view), name="edge")
            tasks.create_task(self._switch(), name="switcher")
            tasks.create_task(self._keep_etcd_leader_in_place(), name="etcd-leader")
            if self.member is not None:
                tasks.create_task(self._observe(self.member), name="observation")
            if self._overrides is not None:
                tasks.create_task(self._overrides.run(lambda: self._serves), name="overrides")

    async def stop(self) -> None:
        """Stop the member, because the region is being stopped."""
        if self.member is not None:
            await self.member.stop()
            self.member.leave()
            _log.info("ledger: stopped with its region")

    @property
    def role(self) -> str:
        """``leader``, ``follower`` or ``view``; a region that was removed from the voters only reads, too."""
        if self.member is None:
            return "view"
        current, own = self.view.current, self.topology.region
        if current is None or not current.voters or own in (*current.voters, *current.joining):
            return "leader" if current is not None and current.leader == own else "follower"
        return "view"

    @property
    def overrides(self) -> tuple[Override, ...] | None:
        """What overrides ``synchronous_commit`` in the ledger led here; None when that is not known, or none is."""
        return self._overrides.found if self._overrides is not None and self._serves else None

    @property
    def _serves(self) -> bool:
        current = self.view.current
        return self.role == "leader" and current is not None and current.phase == "serving"

    @property
    def refusal(self) -> str | None:
        """Why this region takes no part in what should be done; None when all is well."""
        if self.observation.disk_is_full:
            return DISK_FULL
        facts = self.switcher.facts
        if facts is None:
            return None
        if facts.unable is None and facts.peers.in_minority:
            return "it hears no majority of the voters: nobody takes over until enough of them can agree"
        return facts.unable

    async def _switch(self) -> None:
        if self.member is not None:
            await self._insist(self._coordination.enable_authentication)
        await self.switcher.run()

    async def _insist(self, work: "Callable[[], Coroutine[Any, Any, _T]]") -> _T:
        pause_s, said = PAUSE_S, ""
        while True:
            try:
                return await work()
            except CoordinationError as error:
                _log.log(logging.WARNING if str(error) != said else logging.DEBUG, "%s; trying again", error)
                said = str(error)
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, PAUSE_S_MAX)

    def _surroundings(self) -> Surroundings:
        return Surroundings(
            region=self.topology.region,
            ledger_of=self._ledger_of,
            others=tuple(one.name for one in self.topology.voters if one.name != self.topology.region),
            followers=lambda: self.switcher.followers,
            prepare=self._prepare,
            durable=lambda: self.switcher.durable,
            tell=self.switcher.tell,
            timed=self.switcher.note_step,
            standbys=lambda: self.switcher.standbys,
        )

    async def _prepare(self, member: MovingMember) -> None:
        settings = member.settings
        await member.ledger.prepare_roles(
            replication_password=settings.replication_password, writer_password=settings.writer_password
        )
        # The followers' slots first, so that they copy while the schema is made; the streams' slots after it,
        # because no stream can be decoded from before its publication.
        await member.ledger.prepare_slots(followers=self.switcher.followers, streams=())
        await self._prepare_ledger(member.ledger.url)
        streams = [region.name for region in self.topology.regions]
        await member.ledger.prepare_slots(followers=(), streams=streams)
        _log.info("ledger: roles, schema and slots are there")

    async def _keep_etcd_leader_in_place(self) -> None:
        """Hand etcd's leadership on when it is here and is better elsewhere.

        Rule 15: the loss of one leader shall not be that of both. An election takes as long as a failover, and a
        failover begins with a write to etcd. That is soonest done where the candidate is.
        """
        address = self.topology.own.etcd
        while address is not None:
            await asyncio.sleep(ETCD_LEADER_S)
            current = self.view.current
            if current is None or current.phase != "serving":
                continue
            better = before_in_line(self.topology.region, current)
            if not better:
                continue
            try:
                moved_to = await self._coordination.hand_etcd_leadership(address, better)
            except CoordinationError as error:
                _log.debug("etcd's leader is not moved: %s", error)
                continue
            if moved_to is not None:
                _log.info("etcd: %s leads now; the ledger is led by %s", moved_to, current.leader)

    async def _observe(self, member: MovingMember) -> None:
        while True:
            seen = await self._ask(member) if member.running else Observation()
            full = await asyncio.to_thread(member.disk_is_full)
            if full != self.observation.disk_is_full:
                _log.warning("ledger: %s", DISK_FULL if full else "its disk has room again")
            self.observation = replace(seen, disk_is_full=full)
            await asyncio.sleep(LOOK_S)

    async def _ask(self, member: MovingMember) -> Observation:
        try:
            state = await member.ledger.read_state()
            standbys = () if state.in_recovery else await member.ledger.read_standbys(self.switcher.followers)
            return Observation(ledger=state, standbys=standbys, slots=await member.ledger.read_slots())
        except MemberError as error:
            _log.debug("ledger: not observed: %s", error)
            return Observation()

    def _ledger_of(self, region: RegionName) -> Address:
        address = self.topology.by_name(region).ledger
        assert address is not None, f"{region} leads but holds no ledger"
        return address


def before_in_line(region: RegionName, record: Leadership) -> tuple[RegionName, ...]:
    """Return in whose region etcd is better led than in this one, best first.

    The best is the first to begin the next epoch: what it writes to etcd is then committed a round trip sooner. The
    worst is that which leads the ledger.
    """
    line = sorted((one for one in record.voters if one != record.leader), key=lambda one: one in record.drained)
    return tuple(line[: line.index(region)] if region in line else line)

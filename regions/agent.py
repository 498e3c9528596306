"""Composes the agent of a region: the switcher, the edge and the state of its ledger member for status and metrics.

Decides nothing about leadership: ``regions.failover`` does, and ``switcher`` drives it. Decides where etcd's leader
should be. The log has about ten lines for a first start, and as many for a failover.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from regions.coordination import Coordination, CoordinationError, LeadershipView
from regions.edge import EdgeConfigurator
from regions.identity import RegionName
from regions.leadership import Leadership
from regions.member import LedgerState, MemberError, SettingOverride, Slot, Standby
from regions.member.executor import ExecutorContext, MemberExecutor
from regions.member.failover_member import FailoverMember
from regions.member.overrides import OverrideWatch
from regions.member.supervision import DISK_FULL
from regions.switcher import LocalSettings, Switcher
from regions.topology import Address, Topology

PAUSE_S = 0.1
PAUSE_S_MAX = 2.0
"""Pause between attempts to enable authentication in etcd; it doubles up to the maximum."""

CHECK_INTERVAL_S = 1.0
"""Interval at which the member's state is read for status and metrics."""

ETCD_LEADER_S = 2.0
"""Interval at which the agent checks which member leads etcd; a transfer of that leadership takes milliseconds."""

_log = logging.getLogger(__name__)
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """State of the member when it was last read.

    Attributes:
        ledger: State of PostgreSQL; None if it does not answer.
        standbys: Its standbys if it is primary, else empty.
        slots: Its replication slots.
        disk_is_full: Whether its disk has too little space for PostgreSQL to continue.
    """

    ledger: LedgerState | None = None
    standbys: tuple[Standby, ...] = ()
    slots: tuple[Slot, ...] = ()
    disk_is_full: bool = False


class RegionAgent:
    """Runs one region: its ledger member if the region is a voter, and its edge.

    Attributes:
        view: The latest leadership that this agent knows.
        switcher: The driver of the failover core.
        observation: The last observed state of the member.
    """

    def __init__(  # noqa: PLR0913 - what a region consists of
        self,
        topology: Topology,
        coordination: Coordination,
        *,
        member: FailoverMember | None,
        prepare_ledger: Callable[[str], Awaitable[None]],
        edge: EdgeConfigurator,
        local: LocalSettings,
    ) -> None:
        """Initialise an agent.

        Args:
            topology: The deployment as this region sees it.
            coordination: An entered client of etcd.
            member: The ledger member; None in a view-only region.
            prepare_ledger: Migrates the schema of the ledger at this URL; can be repeated.
            edge: Writes the configuration of the region's Envoy.
            local: State folder, heartbeat address and secret of the switcher.
        """
        assert (member is not None) == topology.own.voter, "voters, and only voters, have a ledger member"
        self.topology = topology
        self.member = member
        self.edge = edge
        self.view = LeadershipView(coordination, topology.cell)
        self.switcher = Switcher(topology, coordination, local=local)
        # An epoch begins before its record is in etcd if the previous leader has released the leadership to its
        # successor.
        self.switcher.on_record = self.view.offer
        self.observation = Observation()
        self._coordination = coordination
        self._prepare_ledger = prepare_ledger
        self._overrides = None if member is None else OverrideWatch(member.ledger)
        if member is not None:
            self.switcher.attach_member(MemberExecutor(member, self._executor_context()))

    async def run(self) -> None:
        """Run until cancelled. PostgreSQL keeps running, so that another agent can adopt it or `stop` can stop it.

        Raises:
            AccessRefused: etcd refuses the user or the password.
            CorruptRecord: The leadership record in etcd cannot be parsed.
            MemberUnusable: The data folder cannot be used.
            OSError: The heartbeat address cannot be bound, or the state folder cannot be written.
        """
        if self.member is not None:
            self.member.data_state()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self.view.run(), name="leadership")
            tasks.create_task(self.edge.run(self.view), name="edge")
            tasks.create_task(self._switch(), name="switcher")
            tasks.create_task(self._place_etcd_leader(), name="etcd-leader")
            if self.member is not None:
                tasks.create_task(self._observe(self.member), name="observation")
            if self._overrides is not None:
                tasks.create_task(self._overrides.run(lambda: self._serves), name="overrides")

    async def stop(self) -> None:
        """Stop the ledger member, when the whole region stops."""
        if self.member is not None:
            await self.member.stop()
            self.member.detach()
            _log.info("ledger: stopped with its region")

    @property
    def role(self) -> str:
        """``leader``, ``follower`` or ``view``; a region that was removed from the voters is ``view``, too."""
        if self.member is None:
            return "view"
        current, own = self.view.current, self.topology.region
        if current is None or not current.voters or own in (*current.voters, *current.joining):
            return "leader" if current is not None and current.leader == own else "follower"
        return "view"

    @property
    def overrides(self) -> tuple[SettingOverride, ...] | None:
        """Overrides of ``synchronous_commit`` in this region's ledger; None if it does not lead or they are unknown."""
        return self._overrides.found if self._overrides is not None and self._serves else None

    @property
    def _serves(self) -> bool:
        current = self.view.current
        return self.role == "leader" and current is not None and current.phase == "serving"

    @property
    def refusal(self) -> str | None:
        """Why this region does not take part in replication or failover; None if it does."""
        if self.observation.disk_is_full:
            return DISK_FULL
        facts = self.switcher.facts
        if facts is None:
            return None
        if facts.unable is None and facts.peers.in_minority:
            return "it hears no majority of the voters: no region can take over until a majority is connected"
        return facts.unable

    async def _switch(self) -> None:
        if self.member is not None:
            await self._retry_until_done(self._coordination.enable_authentication)
        await self.switcher.run()

    async def _retry_until_done(self, work: "Callable[[], Coroutine[Any, Any, _T]]") -> _T:
        pause_s, logged = PAUSE_S, ""
        while True:
            try:
                return await work()
            except CoordinationError as error:
                _log.log(logging.WARNING if str(error) != logged else logging.DEBUG, "%s; trying again", error)
                logged = str(error)
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, PAUSE_S_MAX)

    def _executor_context(self) -> ExecutorContext:
        return ExecutorContext(
            region=self.topology.region,
            ledger_of=self._ledger_of,
            others=tuple(one.name for one in self.topology.voters if one.name != self.topology.region),
            followers=lambda: self.switcher.followers,
            prepare=self._prepare,
            durable=lambda: self.switcher.durable,
            on_event=self.switcher.submit,
            on_effect_done=self.switcher.note_step,
            standbys=lambda: self.switcher.standbys,
        )

    async def _prepare(self, member: FailoverMember) -> None:
        settings = member.settings
        await member.ledger.prepare_roles(
            replication_password=settings.replication_password, writer_password=settings.writer_password
        )
        # The followers' slots come first, so that followers copy the ledger while the schema is migrated. The slots of
        # the change streams come after it, because logical decoding cannot start before the publication exists.
        await member.ledger.prepare_slots(followers=self.switcher.followers, streams=())
        await self._prepare_ledger(member.ledger.url)
        streams = [region.name for region in self.topology.regions]
        await member.ledger.prepare_slots(followers=(), streams=streams)
        _log.info("ledger: roles, schema and slots are ready")

    async def _place_etcd_leader(self) -> None:
        """Transfer etcd's leadership to a preferred region while this region's etcd member has it.

        Rule 15: the loss of one region must not take both leaders. An etcd election takes as long as a failover, and a
        failover begins with a write to etcd, which is fastest if etcd's leader is in the candidate's region.
        """
        address = self.topology.own.etcd
        while address is not None:
            await asyncio.sleep(ETCD_LEADER_S)
            current = self.view.current
            if current is None or current.phase != "serving":
                continue
            better = preferred_etcd_leaders(self.topology.region, current)
            if not better:
                continue
            try:
                moved_to = await self._coordination.move_etcd_leader(address, better)
            except CoordinationError as error:
                _log.debug("etcd: its leadership was not transferred: %s", error)
                continue
            if moved_to is not None:
                _log.info("etcd: transferred its leadership to %s; %s leads the ledger", moved_to, current.leader)

    async def _observe(self, member: FailoverMember) -> None:
        while True:
            seen = await self._read_member(member) if member.running else Observation()
            full = await asyncio.to_thread(member.disk_is_full)
            if full != self.observation.disk_is_full:
                _log.warning("ledger: %s", DISK_FULL if full else "its disk has space again")
            self.observation = replace(seen, disk_is_full=full)
            await asyncio.sleep(CHECK_INTERVAL_S)

    async def _read_member(self, member: FailoverMember) -> Observation:
        try:
            state = await member.ledger.read_state()
            standbys = () if state.in_recovery else await member.ledger.read_standbys(self.switcher.followers)
            return Observation(ledger=state, standbys=standbys, slots=await member.ledger.read_slots())
        except MemberError as error:
            _log.debug("ledger: its state could not be read: %s", error)
            return Observation()

    def _ledger_of(self, region: RegionName) -> Address:
        address = self.topology.by_name(region).ledger
        assert address is not None, f"{region} has no ledger member"
        return address


def preferred_etcd_leaders(region: RegionName, record: Leadership) -> tuple[RegionName, ...]:
    """Return the regions whose etcd members should rather lead etcd than the one of ``region``, best first.

    The best is the first candidate for the next epoch: its writes to etcd commit a round trip sooner. The worst is the
    leader of the ledger.
    """
    preferred = sorted((one for one in record.voters if one != record.leader), key=lambda one: one in record.drained)
    return tuple(preferred[: preferred.index(region)] if region in preferred else preferred)

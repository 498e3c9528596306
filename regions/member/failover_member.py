"""What a ledger member does when the leadership moves: freezes, is promoted, follows another, is rewound.

Each can be repeated after a crash at any point, and each says what it found rather than what it meant to do.
Decides how; ``regions.failover`` decides when. Source: failover.md, rules 3 to 5 and 11 to 13; PostgreSQL 18,
"pg_rewind" and "Timelines".
"""

import asyncio
import shutil
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from regions.identity import Epoch, RegionName, physical_slot_name
from regions.leadership import ANCESTRY_MAX
from regions.member import record
from regions.member.errors import MemberError, MemberFailed
from regions.member.ledger import Ledger
from regions.member.record import write_atomically, write_durably
from regions.member.replication_proxy import ReplicationProxy
from regions.member.settings import DATABASE, SUPERUSER, MemberSettings
from regions.member.supervision import Member
from regions.position import parse_lsn
from regions.process_identity import ProcessIdentity
from regions.topology import Address

POLL_S = 0.005
"""Freezing and promoting take 20 to 40 ms; a failover waits for each."""

PRIMARY_POLLS = 400
"""How often a member that is asked looks whether it is primary by now, every 5 ms, before it answers that it is not. A
promotion between that answer and the next question is heard of a round trip late, and most take less than these 2 s."""

TIMELINE_SCAN_S = 0.01
"""Until a standby that was disturbed has looked for new timelines; before that, to be told whom to follow spoils it."""

FREEZE_S_MAX = 3.0
PROMOTE_S_MAX = 5.0
FOLLOW_S_MAX = 4.0
READY_S_MAX = 10.0
READY_POLL_S = 0.1
"""Beyond these the caller asks again; that of following is below the core's own patience. A receiver tries every 200 ms
(wal_retrieve_retry_interval)."""

WHOLE_S_MAX = 20.0
"""What a member lacks after a rewind is WAL of seconds: a leader that answers and has not sent it by then lacks it."""


class Diverged(MemberError):
    """The member has WAL that the leader's history does not have: it has to be rewound."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FrozenStandby:
    """A standby that was told to receive from nobody.

    Attributes:
        receiving: Whether its receiver is still there.
        received: Where what it received ends; None after a restart, when no receiver has run.
        replayed: Where what it replayed ends.
        exhausted: Whether replay waits for WAL that is not there: after a restart nothing else tells its end.
        torn: Whether what it received ends within a record, of which nobody has the rest: a leader sends each segment
            of WAL as soon as that is full. It was never acknowledged, and never will be replayed.
        fences: The epochs of the fence rows that it has replayed, ascending, the newest 32.
    """

    receiving: bool
    received: int | None
    replayed: int
    exhausted: bool
    torn: bool
    fence_epochs: tuple[Epoch, ...]

    @property
    def settled(self) -> bool:
        """Whether it receives nothing and has replayed all that it has (rule 4)."""
        return not self.receiving and self.exhausted and (self.torn or self.replayed >= (self.received or 0))


class FailoverMember(Member):
    """A member whose leader changes."""

    def __init__(self, settings: MemberSettings) -> None:
        """Prepare a member; see `Member`."""
        super().__init__(settings)
        self.proxy = ReplicationProxy(settings)
        self._others: dict[Address, Ledger] = {}
        self._lacking_since = 0.0
        self._keeps_wal: tuple[ProcessIdentity | None, tuple[RegionName, ...]] = (None, ())

    async def keep_connections(self, others: Collection[Address]) -> None:
        """Keep connections to each other member, so that following one that is promoted waits for none.

        Between regions a connection takes five round trips until it answers. What cannot be reached is left alone. They
        are asked what `follow` will ask: to ask it for the first time on a connection takes a round trip more.
        """
        touches = (self._other(address).one("read_leading", 0) for address in others)
        await asyncio.gather(self.proxy.keep_connections(others), *touches, return_exceptions=True)

    async def commit_of(self, leader: Address, standbys: Collection[RegionName], required: int) -> int | None:
        """Return the newest LSN that another member, as primary, has on a quorum; see ``read_quorum_commit.sql``.

        Raises:
            MemberFailed: It does not answer, or is no primary.
        """
        row = await self._other(leader).one("read_quorum_commit", list(standbys), required, False)
        return None if row["lsn"] is None else int(row["lsn"])

    async def missing_stream_slots(self, other: Address) -> tuple[str, ...]:
        """Return the slots of change streams that are read here and that another member has no whole copy of (rule 19).

        One that nobody reads from is not copied before somebody does; it holds up nobody.

        Raises:
            MemberFailed: One of the two does not answer.
        """
        there = await self._other(other).one("read_streams", False)
        here = await self.ledger.one("read_streams", True)
        return tuple(name for name in here["names"] if name not in there["names"])

    async def drop_connections(self) -> None:
        """Drop the connections that are kept, to itself and to other members; each is made again at need."""
        self.proxy.end()
        await self.ledger.close()
        for other in self._others.values():
            await other.close()

    async def stop(self, *, at_once: bool = False) -> None:
        """End it, and with it what it holds of others; see `Member.stop`."""
        await self.drop_connections()
        await super().stop(at_once=at_once)

    async def prepare_to_lead(self, synchronous_standby_names: str, standbys: Collection[RegionName]) -> None:
        """As a follower have the quorum in force already that it would lead with, and slots for who would follow it.

        They mean nothing to a standby, and it takes a checkpoint and flushes to have them: a failover would wait.
        Where nobody knows whom it follows nothing is written: that would end it.

        Raises:
            MemberFailed: Another value stays in force.
        """
        if self._follows is None or self._synchronous_standby_names:
            return
        await self.ledger.prepare_idle_slots(standbys)
        if self._verified != (self._identity, synchronous_standby_names):
            self._prepared_names = synchronous_standby_names
            await self._put_in_force(synchronous_standby_names)

    async def keep_wal_for(self, followers: Collection[RegionName]) -> None:
        """Have a frozen member keep WAL for who follows it when it is primary; once, for it takes flushes.

        Raises:
            MemberFailed: It does not answer.
        """
        wanted = (self._identity, tuple(followers))
        if self._keeps_wal != wanted:
            await self.ledger.prepare_follower_slots(followers)
            self._keeps_wal = wanted

    async def freeze(self) -> FrozenStandby:
        """Make it a running standby that receives from nobody, whatever it is now, and say where its WAL ends.

        A primary is stopped first (rule 6) and comes back as a standby that replays all of its own WAL.

        Raises:
            MemberFailed: It could not be stopped, started or asked.
        """
        if self.promoted_externally:
            # Before the signal is written, which would hide it: what it has now must not be counted (rule 4).
            await self.stop()
            raise MemberFailed("its ledger was promoted by somebody else: it is copied before it counts again")
        self._synchronous_standby_names, self._follows = "", None
        if self.running and not await self._is_standby():
            await self.stop(at_once=True)
        if not self.running:
            known = self.record
            self._write("standby.signal", "")
            await self._start("standby", 0 if known is None else known.epoch)
            self.proxy.close()
        else:
            await self._stop_receiving()
        return await self._settled()

    async def _stop_receiving(self) -> None:
        """Tell a standby that runs to receive from nobody."""
        self._synchronous_standby_names, self._follows = "", None
        self._write_configuration()
        await self.ledger.run("reload")
        # After it was told: a receiver that is cut off before would connect again.
        self.proxy.close()

    async def promote(self, *, epoch: Epoch, followers: Collection[RegionName]) -> None:
        """Make a frozen member primary of an epoch; the slots of its followers' WAL are made before.

        Raises:
            MemberFailed: It was not promoted in time, or its quorum is not set (rule 5).
        """
        if followers and not self._synchronous_standby_names:
            raise MemberFailed("it is not promoted before its quorum is set")
        if await self._is_standby():
            await self.keep_wal_for(followers)
            known = self.record
            # Durable before it happens: a member that may have been primary is never taken for a standby (rule 8).
            record.MemberRecord(role="primary", epoch=epoch, process=None if known is None else known.process).store(
                self.settings.state
            )
            await self.ledger.run("promote")
        try:
            async with asyncio.timeout(PROMOTE_S_MAX):
                while await self._is_standby():  # noqa: ASYNC110 - PostgreSQL sets no event
                    await asyncio.sleep(POLL_S)
        except TimeoutError:
            raise MemberFailed(f"it is not primary after {PROMOTE_S_MAX:.0f} s") from None
        self.proxy.end()

    async def follow(self, *, epoch: Epoch, leader: Address) -> None:
        """Receive the WAL of ``leader``; return when it streams.

        Raises:
            Diverged: It has WAL that the leader's history does not have, or ends before what the leader has kept.
            MemberFailed: It does not stream in time.
        """
        if record.rewound_from(self.settings.state) is not None:
            await self._catch_up_after_rewind(epoch, leader)
        if self.running and not await self._is_standby():
            await self.stop()
        if not self.running:
            # First alone: only a member that runs can say where it stands.
            await self.freeze()
        await self._stop_receiving_from_others(leader)
        try:
            await self._receive_from(leader)
        except BaseException:
            self.proxy.cancel_advance_request()
            raise
        # Not before it streams: a promotion that was begun under an earlier epoch may end until then, and it must not
        # look as if somebody else had made a primary of a standby.
        assert self.process is not None, "it runs"
        record.MemberRecord(role="standby", epoch=epoch, process=self.process.identity).store(self.settings.state)
        record.forget_rewound(self.settings.state)

    async def _stop_receiving_from_others(self, leader: Address) -> None:
        """Receive from nobody before it is another than before.

        PostgreSQL that changes from one to another while it receives goes on to read the file of the old timeline, in
        which there is nothing more; it takes that for the end, ends its receiver, and begins again half a second later.
        """
        if self._follows is not None and self._follows != leader:
            await self._stop_receiving()

    async def _receive_from(self, leader: Address) -> None:
        timeline, history, caught_up = await self._compare(leader)
        # The first flushes while the second asks.
        await asyncio.gather(self._install_history(timeline, history), self._keep_wal_for_nobody())
        self._synchronous_standby_names, self._follows, self._by_proxy = (
            "",
            leader,
            self.proxy.open(leader, timeline, timeline_ended=caught_up),
        )
        self._write_configuration()
        await self.ledger.run("reload")
        try:
            async with asyncio.timeout(FOLLOW_S_MAX):
                while not (await self.ledger.one("read_receiver"))["streaming"]:  # noqa: ASYNC110 - the same
                    await asyncio.sleep(POLL_S)
        except TimeoutError:
            raise MemberFailed(f"no WAL streams from {leader} after {FOLLOW_S_MAX:.0f} s") from None

    async def _keep_wal_for_nobody(self) -> None:
        self._keeps_wal = (None, ())
        await self.ledger.run("drop_own_slots")

    async def _catch_up_after_rewind(self, epoch: Epoch, leader: Address) -> None:
        """Start a member that was rewound as a follower at once.

        What the leader wrote while it was rewound is in its pages and not in its WAL, and PostgreSQL answers nobody
        before it has that. Alone it would wait for ever.

        Raises:
            Diverged: It was rewound from another leader, or this one's history has left that WAL out, or nobody has it
                any more.
            MemberFailed: It did not start in time.
        """
        source = record.rewound_from(self.settings.state)
        if source != str(leader):
            raise Diverged(f"it was rewound from {source} and has not caught up with it")
        if self.running and self._follows != leader:
            await self.stop()
        if not self.running:
            self._synchronous_standby_names, self._follows, self._by_proxy = "", leader, self.proxy.open(leader, 0)
            self._write("standby.signal", "")
            self._lacking_since = asyncio.get_running_loop().time()
            try:
                await self._start("standby", epoch)
            except MemberFailed as error:
                if self.running:
                    raise
                raise Diverged(f"it does not start after its rewind: {error}") from error
        elif not await self._answers():
            await self._give_up_catching_up(leader)

    async def _answers(self) -> bool:
        try:
            await self._is_standby()
        except MemberFailed:
            return False
        return True

    async def _give_up_catching_up(self, leader: Address) -> None:
        """Stop a member that still lacks something since its rewind, when its leader has answered for long enough."""
        now = asyncio.get_running_loop().time()
        try:
            await self._other(leader).one("is_in_recovery")
        except MemberFailed:
            self._lacking_since = now
            raise
        if now - self._lacking_since > WHOLE_S_MAX:
            await self.stop()
            raise Diverged("its leader does not have what it lacks since its rewind")

    async def copy(self, leader: Address) -> None:
        """Copy the ledger of ``leader`` beside the data and put it in their local once it is whole; stopped then.

        A copy that is given up leaves what was there.

        Raises:
            MemberFailed: The leader cannot be reached, has no slot for this region, or the disk is full.
        """
        data = self.settings.data
        copy, old = data.with_name(data.name + ".copy"), data.with_name(data.name + ".old")
        await _removed(copy)
        await self._until_ready(leader)
        await self._backup(leader, copy)
        write_durably(copy / "standby.signal", "", self.settings.account)
        await self.stop()
        await self.end_leftovers()
        # From here to the end a crash leaves no data that could be started, and the copy is made again.
        record.begin_building(self.settings.state, "copy")
        await _removed(old)
        try:
            if data.exists():
                data.rename(old)
            copy.rename(data)
            record.sync_folder(data.parent)
            record.forget_rewound(self.settings.state)
        except OSError as error:
            raise MemberFailed(f"{data} cannot be replaced: {error.strerror}") from error
        self._synchronous_standby_names, self._follows = "", None
        self._end()
        await _removed(old)

    async def _backup(self, leader: Address, into: Path) -> None:
        """Take a base backup into a folder of its own; it is removed when that fails."""
        try:
            self._make_private(into)
        except OSError as error:
            raise MemberFailed(f"{into} cannot be made: {error.strerror}") from error
        try:
            # Through a slot of its own: the region's may be in use by the member that this copy will replace. The
            # region's slot keeps what is written from the end of the copy on.
            await self._back_up(leader, into)
        except BaseException:
            await _removed(into)
            raise

    async def rewind(self, leader: Address) -> None:
        """Bring the data back to what it shares with ``leader``; it is stopped then, and follows next.

        Raises:
            MemberFailed: pg_rewind failed. When it had begun to write, the data counts as absent.
        """
        await self.stop()
        await self.end_leftovers()
        other = Ledger(leader, self.settings.superuser_password)
        try:
            # Rule 13: pg_rewind compares the leader's checkpoint, which after a promotion may be of the old timeline.
            await other.run("checkpoint")
        finally:
            await other.close()
        record.begin_building(self.settings.state, "rewind")
        source = f"host={leader.host} port={leader.port} user={SUPERUSER} dbname={DATABASE} sslmode=disable"
        await self._run(
            "pg_rewind",
            f"--target-pgdata={self.settings.data}",
            f"--source-server={source} connect_timeout=3",
            password=self.settings.superuser_password,
        )
        record.note_rewound(self.settings.state, str(leader))
        self._synchronous_standby_names, self._follows, self._by_proxy = "", leader, False
        self._write("standby.signal", "")
        self._end()

    async def _is_standby(self) -> bool:
        return bool((await self.ledger.one("is_in_recovery"))["pg_is_in_recovery"])

    async def _settled(self) -> FrozenStandby:
        """Wait for a while until it is settled; return what is the case then."""
        deadline = asyncio.get_running_loop().time() + FREEZE_S_MAX
        while True:
            row = await self.ledger.one("read_frozen")
            if not row["in_recovery"] or row["primary_conninfo"]:
                frozen = None
            else:
                frozen = FrozenStandby(
                    receiving=row["receiving"],
                    received=None if row["received"] is None else int(row["received"]),
                    replayed=int(row["replayed"] or 0),
                    exhausted=row["exhausted"],
                    torn=_is_torn(row),
                    fence_epochs=(),
                )
                if frozen.settled:
                    break
            if asyncio.get_running_loop().time() > deadline:
                break
            await asyncio.sleep(POLL_S)
        if frozen is None:
            raise MemberFailed(f"it is not frozen after {FREEZE_S_MAX:.0f} s")
        return replace(frozen, fence_epochs=await self.ledger.read_fence_epochs(ANCESTRY_MAX))

    def _other(self, address: Address) -> Ledger:
        return self._others.setdefault(address, Ledger(address, self.settings.superuser_password))

    async def _until_primary(self, leader: Address) -> "Mapping[str, Any]":
        """Wait for the promotion: a standby lets others stream too, and nobody knows where its history will part."""
        deadline = asyncio.get_running_loop().time() + FOLLOW_S_MAX
        # It looks there, not here: a look from here is a round trip between regions old when its answer arrives.
        while (found := await self._other(leader).one("read_leading", PRIMARY_POLLS))["in_recovery"]:
            if asyncio.get_running_loop().time() > deadline:
                raise MemberFailed(f"{leader} is not primary after {FOLLOW_S_MAX:.0f} s")
            await asyncio.sleep(POLL_S)
        return found

    async def _until_ready(self, leader: Address) -> None:
        """Wait for a primary that keeps WAL for this region: while a cell begins, it takes seconds to be there."""
        other, problem = Ledger(leader, self.settings.superuser_password), "it has no slot for this region"
        slot = physical_slot_name(self.settings.region)
        deadline = asyncio.get_running_loop().time() + READY_S_MAX
        try:
            while True:
                try:
                    if (await other.one("keeps_wal_for", slot))["ready"]:
                        return
                except MemberFailed as error:
                    problem = str(error)
                if asyncio.get_running_loop().time() > deadline:
                    raise MemberFailed(f"{leader} cannot be copied: {problem}")
                await asyncio.sleep(READY_POLL_S)
        finally:
            await other.close()

    async def _compare(self, leader: Address) -> tuple[int, str, bool]:
        """Compare the own end of WAL with the leader's history, as PostgreSQL does, but with an answer.

        Returns:
            The leader's timeline; its history where this member is still on an earlier one, else ``''``; and whether
            this member then has all of that earlier one.

        Raises:
            Diverged: The leader left the own timeline before that end, or never was on it; or it has dropped what
                comes after that end, because this member was no voter, or away for longer than WAL is kept. It
                would ask for that for ever; a rewind finds nothing to do, so that a copy comes next. Or both have a
                timeline of this number, and each its own.
        """
        mine, here = await self._read_own_wal_end()
        end = _end(here)
        await self.proxy.request_in_advance(leader, end - end % here["segment_bytes"])
        found = await self._until_primary(leader)
        if here["receiving"] or not here["exhausted"]:
            # It has moved meanwhile.
            mine, here = await self._read_own_wal_end()
        own, ours, end = int(mine["timeline"]), mine["history"] or "", _end(here)
        theirs, history, oldest = int(found["timeline"]), found["history"] or "", int(found["oldest"] or 0)
        # One that still replays has more than it says.
        if here["exhausted"] and end < oldest:
            raise Diverged(f"it ends at {end:X}, and the leader has WAL from {oldest:X} on only")
        if own == theirs:
            # Rule 11: two promotions can take the same number. A rewind goes by the number and sees nothing to do, so
            # that a copy comes next.
            if ours and history and _switches(ours) != _switches(history):
                raise Diverged(f"timeline {own} began elsewhere than the leader's")
            return theirs, "", False
        left_at = _switches(history).get(own)
        if left_at is None or end > left_at:
            raise Diverged(f"timeline {own} is here at {end:X}, and the leader left it at {left_at or 0:X}")
        return theirs, history, end == left_at

    async def _read_own_wal_end(self) -> "tuple[Mapping[str, Any], Mapping[str, Any]]":
        """Return what this member says of its own timeline, and of the end of its WAL."""
        return await self.ledger.one("read_leading", 0), await self.ledger.one("read_frozen")

    async def _install_history(self, timeline: int, history: str) -> None:
        """Put a timeline's history where PostgreSQL would, so that it asks for that timeline at once.

        Alone it asks for its old timeline, is told that this one ended, and asks again: four round trips between
        regions, in which nobody can write. It looks for new timelines each time its wait for WAL is disturbed, which
        is what the reload is for; one that has not looked in time is told by the line to look (`ReplicationProxy`).
        """
        if not history:
            return
        name, looked = f"pg_wal/{timeline:08X}.history", 0.0
        if not (self.settings.data / name).exists():
            self._write(name, history, write_atomically)
            await self.ledger.run("reload")
            looked = asyncio.get_running_loop().time() + TIMELINE_SCAN_S
        # While PostgreSQL looks; before the first WAL of that timeline can be confirmed.
        await asyncio.to_thread(record.flush, self.settings.data / name)
        await asyncio.sleep(looked - asyncio.get_running_loop().time())


async def _removed(folder: Path) -> None:
    """Remove a folder; a caller that is cancelled waits for the end of it, for a thread cannot be cancelled."""
    removing = asyncio.ensure_future(asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True))
    try:
        await asyncio.shield(removing)
    except asyncio.CancelledError:
        await asyncio.wait([removing])
        raise


def _is_torn(frozen: "Mapping[str, Any]") -> bool:
    return not frozen["receiving"] and frozen["looked"] and int(frozen["replayed"] or 0) < int(frozen["received"] or 0)


def _end(frozen: "Mapping[str, Any]") -> int:
    """Return where the WAL of a member ends by what it says of itself."""
    if _is_torn(frozen):
        return int(frozen["replayed"])
    return max(int(frozen["received"] or 0), int(frozen["replayed"] or 0))


def _switches(history: str) -> dict[int, int]:
    """Return where a timeline's history leaves each earlier timeline: lines of number, LSN and reason."""
    switches: dict[int, int] = {}
    for line in history.splitlines():
        fields = line.split("\t")
        if len(fields) >= 2 and fields[0].strip().isdigit():  # noqa: PLR2004 - number and LSN
            switches[int(fields[0])] = parse_lsn(fields[1].strip())
    return switches

"""Freezes, promotes, rewinds and copies a ledger member, and makes it follow another member.

Decides how each of these is done, so that it can be repeated after a crash at any point, and reports what it found, not
what it intended. Does not decide when: ``regions.failover`` does. Source: failover.md, rules 3 to 5 and 11 to 13;
PostgreSQL 18, "pg_rewind" and "Timelines".
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
"""Poll interval. Freezing and promoting take 20 to 40 ms each, and a failover waits for both."""

PRIMARY_POLLS = 400
"""How often ``read_leading`` checks on the queried member, every 5 ms, whether it is primary, before it answers that it
is not. A promotion after that answer is noticed a round trip late, and most promotions take less than these 2 s."""

TIMELINE_SCAN_S = 0.01
"""Time for a reloaded standby to look for new timelines. A new connection string before that would prevent the look."""

FREEZE_S_MAX = 3.0
PROMOTE_S_MAX = 5.0
FOLLOW_S_MAX = 4.0
READY_S_MAX = 10.0
READY_POLL_S = 0.1
"""Time limits after which the step fails and the caller repeats it. The limit for following is below the core's own. A
WAL receiver retries every 200 ms (wal_retrieve_retry_interval)."""

MISSING_WAL_S_MAX = 20.0
"""A member lacks WAL of some seconds after a rewind. If its leader answers and has not sent that WAL within this time,
the leader does not have it."""


class Diverged(MemberError):
    """The member's WAL is not in the leader's history, or the leader lacks WAL that it needs: rewind or copy it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FrozenStandby:
    """State of a standby with an empty connection string.

    Attributes:
        receiving: Whether a WAL receiver process still exists.
        received: LSN up to which it has received WAL; None after a restart if no receiver has run.
        replayed: LSN up to which it has replayed WAL.
        exhausted: Whether replay waits for WAL that is not on the disk; after a restart only this shows the end.
        torn: Whether the received WAL ends within a record of which no member has the rest: a leader sends each WAL
            segment as soon as it is full. The record was never acknowledged and will never be replayed.
        fence_epochs: Epochs of the newest `ANCESTRY_MAX` fence rows that it has replayed, ascending.
    """

    receiving: bool
    received: int | None
    replayed: int
    exhausted: bool
    torn: bool
    fence_epochs: tuple[Epoch, ...]

    @property
    def settled(self) -> bool:
        """Whether it receives no WAL and has replayed all WAL that it has (rule 4)."""
        return not self.receiving and self.exhausted and (self.torn or self.replayed >= (self.received or 0))


class FailoverMember(Member):
    """A member that takes part in failovers."""

    def __init__(self, settings: MemberSettings) -> None:
        """Initialise a member; see `Member`."""
        super().__init__(settings)
        self.proxy = ReplicationProxy(settings)
        self._others: dict[Address, Ledger] = {}
        self._incomplete_since = 0.0
        self._keeps_wal: tuple[ProcessIdentity | None, tuple[RegionName, ...]] = (None, ())

    async def keep_connections(self, others: Collection[Address]) -> None:
        """Open missing connections to the other members, so that a failover does not wait for them.

        Between regions a connection needs five round trips before its first answer. Members that cannot be reached are
        skipped. It runs the statement that `follow` will run, because its first use on a connection costs one more
        round trip.
        """
        touches = (self._other(address).one("read_leading", 0) for address in others)
        await asyncio.gather(self.proxy.keep_connections(others), *touches, return_exceptions=True)

    async def commit_of(self, leader: Address, standbys: Collection[RegionName], required: int) -> int | None:
        """Return the newest LSN that another member, as primary, has on a quorum; see ``read_quorum_commit.sql``.

        Raises:
            MemberFailed: It does not answer, or is not a primary.
        """
        row = await self._other(leader).one("read_quorum_commit", list(standbys), required, False)
        return None if row["lsn"] is None else int(row["lsn"])

    async def missing_stream_slots(self, other: Address) -> tuple[str, ...]:
        """Return the active change stream slots of this member that another one has not fully synchronised (rule 19).

        Inactive slots are ignored: PostgreSQL does not synchronise a slot before a connection reads from it.

        Raises:
            MemberFailed: One of the two members does not answer.
        """
        there = await self._other(other).one("read_streams", False)
        here = await self.ledger.one("read_streams", True)
        return tuple(name for name in here["names"] if name not in there["names"])

    async def drop_connections(self) -> None:
        """Close the open connections to this member and to the others; each is opened again on demand."""
        self.proxy.end()
        await self.ledger.close()
        for other in self._others.values():
            await other.close()

    async def stop(self, *, at_once: bool = False) -> None:
        """Close the connections to all members and stop PostgreSQL; see `Member.stop`."""
        await self.drop_connections()
        await super().stop(at_once=at_once)

    async def prepare_to_lead(self, synchronous_standby_names: str, standbys: Collection[RegionName]) -> None:
        """On a follower, put the quorum in force with which it would lead, and create slots for its followers then.

        They have no effect on a standby. They cost a checkpoint and flushes, for which a failover would otherwise wait.
        If the followed member is unknown, nothing is written, because new configuration files would end the following.

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
        """Create the slots in which a frozen member retains WAL for its followers; only once, because it costs flushes.

        Raises:
            MemberFailed: It does not answer.
        """
        wanted = (self._identity, tuple(followers))
        if self._keeps_wal != wanted:
            await self.ledger.prepare_follower_slots(followers)
            self._keeps_wal = wanted

    async def freeze(self) -> FrozenStandby:
        """Make it a running standby that receives no WAL, from any state, and return where its WAL ends.

        A primary is stopped first (rule 6), and starts as a standby that replays all of its own WAL.

        Raises:
            MemberFailed: It could not be stopped or started, does not answer, or was promoted externally.
        """
        if self.promoted_externally:
            # Before standby.signal is written, which would hide the promotion: its WAL must not be counted (rule 4).
            await self.stop()
            raise MemberFailed("its ledger was promoted by somebody else: it is copied before it counts again")
        self._synchronous_standby_names, self._follows = "", None
        if self.running and not await self._is_standby():
            await self.stop(at_once=True)
        if not self.running:
            known = self.start_record
            self._write("standby.signal", "")
            await self._start("standby", 0 if known is None else known.epoch)
            self.proxy.close()
        else:
            await self._stop_receiving()
        return await self._settled()

    async def _stop_receiving(self) -> None:
        """Make a running standby receive no WAL."""
        self._synchronous_standby_names, self._follows = "", None
        self._write_configuration()
        await self.ledger.run("reload")
        # After the reload: a receiver whose connection is cut before that would connect again.
        self.proxy.close()

    async def promote(self, *, epoch: Epoch, followers: Collection[RegionName]) -> None:
        """Promote a frozen member for an epoch, after creating the slots of its followers.

        Raises:
            MemberFailed: It was not promoted in time, or its quorum is not set (rule 5).
        """
        if followers and not self._synchronous_standby_names:
            raise MemberFailed("it is not promoted before its quorum is set")
        if await self._is_standby():
            await self.keep_wal_for(followers)
            known = self.start_record
            # Durable before the promotion, so that a member that may have been primary never counts as a standby
            # (rule 8).
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
            Diverged: It has WAL that is not in the leader's history, or needs WAL that the leader has removed.
            MemberFailed: It does not stream in time.
        """
        if record.rewound_from(self.settings.state) is not None:
            await self._catch_up_after_rewind(epoch, leader)
        if self.running and not await self._is_standby():
            await self.stop()
        if not self.running:
            # It starts frozen first, because only a running member can report its position.
            await self.freeze()
        await self._stop_receiving_from_others(leader)
        try:
            await self._receive_from(leader)
        except BaseException:
            self.proxy.cancel_advance_request()
            raise
        # Not before it streams: a promotion that began under an earlier epoch may complete until then, and must not
        # look like an external promotion.
        assert self.process is not None, "it runs"
        record.MemberRecord(role="standby", epoch=epoch, process=self.process.identity).store(self.settings.state)
        record.forget_rewound(self.settings.state)

    async def _stop_receiving_from_others(self, leader: Address) -> None:
        """Receive no WAL for a moment if the leader changes.

        If the connection string changes while PostgreSQL receives WAL, it continues to read the file of the old
        timeline, which has no more WAL. It takes that for the end, ends its receiver, and starts one half a second
        later.
        """
        if self._follows is not None and self._follows != leader:
            await self._stop_receiving()

    async def _receive_from(self, leader: Address) -> None:
        timeline, history, caught_up = await self._compare(leader)
        # The first one flushes a file while the second one waits for an answer.
        await asyncio.gather(self._install_history(timeline, history), self._drop_own_slots())
        self._synchronous_standby_names, self._follows, self._proxied = (
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

    async def _drop_own_slots(self) -> None:
        self._keeps_wal = (None, ())
        await self.ledger.run("drop_own_slots")

    async def _catch_up_after_rewind(self, epoch: Epoch, leader: Address) -> None:
        """Start a rewound member directly as a follower.

        Its pages contain changes that the leader made during the rewind, whose WAL the member does not have yet.
        PostgreSQL accepts no connection before it has replayed that WAL, so a frozen member would wait forever.

        Raises:
            Diverged: It was rewound from another leader, or this leader does not have that WAL, or PostgreSQL does not
                start.
            MemberFailed: It did not start in time.
        """
        source = record.rewound_from(self.settings.state)
        if source != str(leader):
            raise Diverged(f"it was rewound from {source} and has not caught up with it")
        if self.running and self._follows != leader:
            await self.stop()
        if not self.running:
            self._synchronous_standby_names, self._follows, self._proxied = "", leader, self.proxy.open(leader, 0)
            self._write("standby.signal", "")
            self._incomplete_since = asyncio.get_running_loop().time()
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
        """Stop a rewound member that still lacks WAL, if its leader has answered for `MISSING_WAL_S_MAX`."""
        now = asyncio.get_running_loop().time()
        try:
            await self._other(leader).one("is_in_recovery")
        except MemberFailed:
            self._incomplete_since = now
            raise
        if now - self._incomplete_since > MISSING_WAL_S_MAX:
            await self.stop()
            raise Diverged("its leader does not have the WAL that it lacks since its rewind")

    async def copy(self, leader: Address) -> None:
        """Copy the ledger of ``leader`` to a folder beside the data, and replace the data when the copy is complete.

        PostgreSQL is stopped afterwards. A copy that fails leaves the old data in place.

        Raises:
            MemberFailed: The leader cannot be reached, has no slot for this region, or the disk is full.
        """
        data = self.settings.data
        copy, old = data.with_name(data.name + ".copy"), data.with_name(data.name + ".old")
        await _remove(copy)
        await self._until_ready(leader)
        await self._backup(leader, copy)
        write_durably(copy / "standby.signal", "", self.settings.account)
        await self.stop()
        await self.end_leftovers()
        # A crash between here and the end leaves the data marked as incomplete, and the copy is repeated.
        record.begin_building(self.settings.state, "copy")
        await _remove(old)
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
        await _remove(old)

    async def _backup(self, leader: Address, into: Path) -> None:
        """Take a base backup into a new folder, which is removed if the backup fails."""
        try:
            self._make_private(into)
        except OSError as error:
            raise MemberFailed(f"{into} cannot be created: {error.strerror}") from error
        try:
            # It uses its own temporary slot, because the member that the copy replaces may use the region's slot. The
            # region's slot retains the WAL that is written after the end of the copy.
            await self._back_up(leader, into)
        except BaseException:
            await _remove(into)
            raise

    async def rewind(self, leader: Address) -> None:
        """Rewind the data to what it has in common with ``leader``. It is stopped afterwards; `follow` comes next.

        Raises:
            MemberFailed: pg_rewind failed, after which the data counts as absent, or the leader cannot be reached.
        """
        await self.stop()
        await self.end_leftovers()
        other = Ledger(leader, self.settings.superuser_password)
        try:
            # Rule 13: pg_rewind reads the leader's last checkpoint, which may be on the old timeline after a promotion.
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
        self._synchronous_standby_names, self._follows, self._proxied = "", leader, False
        self._write("standby.signal", "")
        self._end()

    async def _is_standby(self) -> bool:
        return bool((await self.ledger.one("is_in_recovery"))["pg_is_in_recovery"])

    async def _settled(self) -> FrozenStandby:
        """Wait up to `FREEZE_S_MAX` until it is settled; return the last state, settled or not."""
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
        """Wait for the promotion of ``leader``: a standby also serves WAL, but its future timeline is not known yet."""
        deadline = asyncio.get_running_loop().time() + FOLLOW_S_MAX
        # The statement polls on the leader, because a poll from here notices the promotion a round trip late.
        while (found := await self._other(leader).one("read_leading", PRIMARY_POLLS))["in_recovery"]:
            if asyncio.get_running_loop().time() > deadline:
                raise MemberFailed(f"{leader} is not primary after {FOLLOW_S_MAX:.0f} s")
            await asyncio.sleep(POLL_S)
        return found

    async def _until_ready(self, leader: Address) -> None:
        """Wait until ``leader`` is a primary with a slot for this region: in a new cell, this takes seconds."""
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
        """Compare the end of the own WAL with the leader's history, as PostgreSQL does, and report the result.

        Returns:
            The leader's timeline; its history if this member is still on an earlier timeline, otherwise ``''``; and
            whether this member then has all WAL of that earlier timeline.

        Raises:
            Diverged: The leader left this member's timeline before the end of its WAL, or was never on it. Or the
                leader has removed the WAL after that end, because this member was no voter, or was away for longer than
                WAL is kept: PostgreSQL would request it forever, and a rewind finds nothing to do, so a copy comes
                next. Or both have a timeline with the same number that began at different positions.
        """
        mine, here = await self._read_own_wal_end()
        end = _end(here)
        await self.proxy.request_in_advance(leader, end - end % here["segment_bytes"])
        found = await self._until_primary(leader)
        if here["receiving"] or not here["exhausted"]:
            # Its WAL may have grown in the meantime.
            mine, here = await self._read_own_wal_end()
        own, ours, end = int(mine["timeline"]), mine["history"] or "", _end(here)
        theirs, history, oldest = int(found["timeline"]), found["history"] or "", int(found["oldest"] or 0)
        # A member that is still replaying has more WAL than it reports.
        if here["exhausted"] and end < oldest:
            raise Diverged(f"its WAL ends at {end:X}, and the leader only has WAL from {oldest:X} on")
        if own == theirs:
            # Rule 11: two promotions can choose the same number. pg_rewind compares only the numbers and finds nothing
            # to do, so a copy comes next.
            if ours and history and _switches(ours) != _switches(history):
                raise Diverged(f"timeline {own} began elsewhere than the leader's")
            return theirs, "", False
        left_at = _switches(history).get(own)
        if left_at is None or end > left_at:
            raise Diverged(
                f"it has timeline {own} up to {end:X}, and the leader left that timeline at {left_at or 0:X}"
            )
        return theirs, history, end == left_at

    async def _read_own_wal_end(self) -> "tuple[Mapping[str, Any], Mapping[str, Any]]":
        """Return this member's rows of ``read_leading`` (its timeline) and ``read_frozen`` (the end of its WAL)."""
        return await self.ledger.one("read_leading", 0), await self.ledger.one("read_frozen")

    async def _install_history(self, timeline: int, history: str) -> None:
        """Write a timeline's history file where PostgreSQL would, so that it requests that timeline at once.

        Otherwise PostgreSQL requests its old timeline, gets the answer that this timeline has ended, and requests
        again: four round trips between regions, during which writes are unavailable. It looks for new timelines each
        time its wait for WAL is interrupted, which the reload does. If it has not looked in time, the
        `ReplicationProxy` refuses its request, so that it looks (ADR 0047).
        """
        if not history:
            return
        name, looked = f"pg_wal/{timeline:08X}.history", 0.0
        if not (self.settings.data / name).exists():
            self._write(name, history, write_atomically)
            await self.ledger.run("reload")
            looked = asyncio.get_running_loop().time() + TIMELINE_SCAN_S
        # The flush runs while PostgreSQL looks, and ends before PostgreSQL can confirm the first WAL of that timeline.
        await asyncio.to_thread(record.flush, self.settings.data / name)
        await asyncio.sleep(looked - asyncio.get_running_loop().time())


async def _remove(folder: Path) -> None:
    """Remove a folder; a cancelled caller waits until the thread has ended, because a thread cannot be cancelled."""
    removing = asyncio.ensure_future(asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True))
    try:
        await asyncio.shield(removing)
    except asyncio.CancelledError:
        await asyncio.wait([removing])
        raise


def _is_torn(frozen: "Mapping[str, Any]") -> bool:
    return not frozen["receiving"] and frozen["looked"] and int(frozen["replayed"] or 0) < int(frozen["received"] or 0)


def _end(frozen: "Mapping[str, Any]") -> int:
    """Return the LSN at which the WAL of a member ends, from its row of ``read_frozen``."""
    if _is_torn(frozen):
        return int(frozen["replayed"])
    return max(int(frozen["received"] or 0), int(frozen["replayed"] or 0))


def _switches(history: str) -> dict[int, int]:
    """Return the LSN at which a timeline's history leaves each earlier timeline; a line is number, LSN and reason."""
    switches: dict[int, int] = {}
    for line in history.splitlines():
        fields = line.split("\t")
        if len(fields) >= 2 and fields[0].strip().isdigit():  # noqa: PLR2004 - number and LSN
            switches[int(fields[0])] = parse_lsn(fields[1].strip())
    return switches

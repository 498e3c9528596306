"""Models a member of the ledger: the guarantees and the known traps of PostgreSQL, without SQL.

Decides what PostgreSQL does by itself: streaming, synchronous commits, promotion, what survives a crash. Does not know
the agent's steps (``steps.py``). The traps are those of failover.md, and each has a test:

* a standby's ``synchronous_standby_names`` is empty until it is set; if promoted without it, the member acknowledges
  alone (rule 5);
* clearing ``synchronous_standby_names`` releases the waiting commits with success (rule 6);
* a cancelled wait and a crash leave rows visible that no standby has (rules 7 and 8);
* two promotions may take the same timeline; a standby on that timeline is accepted without a comparison of its WAL, and
  ``pg_rewind`` does nothing (rule 11);
* ``pg_rewind`` may go far below WAL that was acknowledged (rule 12);
* a record that does not fit into a segment is sent in parts; a standby that has only the first part never replays it
  (rule 4).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from typing import Protocol

from infra.simulation.network import HEAL_S_MAX, Network
from infra.simulation.scheduler import Scheduler
from infra.simulation.wal import Entry, Wal
from regions.identity import Epoch, RegionName

RECONNECT_S = (0.2, 0.7)
"""Range of the time between two connection attempts: ``wal_retrieve_retry_interval`` is 500 ms."""

REWIND_LOSS_MAX = 40
"""A rewind goes back to the last checkpoint before the fork, less than this number of entries below the fork."""

Release = Callable[[bool], None]
"""Called when the wait of a commit ends: with True if a quorum confirmed it, with False if the wait was cancelled."""


class MemberListener(Protocol):
    """Observes members and changes nothing."""

    def wal_received(self, standby: Member, source: Member) -> None:
        """A standby has received and flushed WAL."""
        ...

    def wal_lost(self, member: Member, before: int) -> None:
        """A member lost WAL that it had on disk; ``before`` is the LSN at which its WAL ended."""
        ...


class Link:
    """A walsender and its walreceiver.

    Attributes:
        source: The member that sends.
        standby: The member that receives.
        sent: The LSN up to which WAL was sent.
    """

    __slots__ = ("sent", "source", "standby")

    def __init__(self, source: Member, standby: Member) -> None:
        self.source = source
        self.standby = standby
        self.sent = 0


class Member:
    """One PostgreSQL.

    Attributes:
        region: Its region.
        wal: Its WAL.
        exists: Whether it has a complete data directory.
        running: Whether the postmaster runs.
        primary: Whether it runs as primary.
        epoch: The epoch in which its agent made it a primary or connected it to one; 0 for a frozen standby.
        conninfo: ``primary_conninfo``: the region from which it is configured to receive WAL, or None.
        standby_names: The standbys in ``synchronous_standby_names``.
        required: How many of ``standby_names`` a commit waits for.
        received: ``pg_last_wal_receive_lsn()``; None if nothing was received since the postmaster started.
        replay_at: Virtual time until which replay lags by ``replay_lag`` entries.
        replay_lag: Number of entries by which replay lags.
        visible: The LSN up to which other sessions see commits.
        hung: Whether its disk hangs.
        paused: Whether the processes of its region are stopped by SIGSTOP.
        draining: Whether its agent admits no more writes.
        diverged: Whether the configured source refused it, because their timelines differ.
        upstream: The connection over which it receives WAL, if any.
        downstream: The connections over which it sends WAL, by standby.
        confirmed: The LSN that each connected standby has confirmed as flushed.
        peers: All members of the cell.
    """

    def __init__(
        self, scheduler: Scheduler, network: Network, region: RegionName, bit: int, listener: MemberListener
    ) -> None:
        self._scheduler = scheduler
        self._network = network
        self._listener = listener
        self.peers: Mapping[RegionName, Member] = {}
        self.region = region
        self.wal = Wal(bit)
        self.exists = False
        self.running = False
        self.primary = False
        self.epoch: Epoch = 0
        self.conninfo: RegionName | None = None
        self.standby_names: tuple[RegionName, ...] = ()
        self.required = 0
        self.received: int | None = None
        self.replay_at = 0.0
        self.replay_lag = 0
        self.visible = 0
        self.hung = False
        self.paused = False
        self.draining = False
        self.diverged = False
        self.upstream: Link | None = None
        self.downstream: dict[RegionName, Link] = {}
        self.confirmed: dict[RegionName, int] = {}
        self._waits: deque[tuple[int, Release]] = deque()
        self._connecting = 0
        self._is_connecting = False

    # Start, promotion and end.

    def initialise(self, epoch: Epoch) -> None:
        """Run ``initdb`` if there is no data, and start as primary without a quorum."""
        if not self.exists:
            self.exists = True
            self.wal.copy(Wal(0))
            self.wal.append(Entry("other", epoch))
            self.wal.flush()
            self.standby_names, self.required = (), 0
        self.running = self.primary = True
        self.epoch = epoch
        self.visible = self.wal.flushed
        self.received = None

    def start_standby(self) -> None:
        """Start as a standby that receives from ``conninfo``."""
        assert self.exists, "a start without data"
        if not self.running:
            self.running, self.primary = True, False
            self.received = None
            self.visible = self.wal.complete_lsn
            self.diverged = False
            if self.conninfo is not None:
                self._connect_later()

    def promote(self, epoch: Epoch) -> None:
        """``pg_promote``: become primary on a new timeline."""
        assert self.running, "only a running standby can be promoted"
        assert not self.primary, "only a standby can be promoted"
        self.disconnect()
        self.conninfo = None
        self.primary = True
        self.epoch = epoch
        self.draining = False
        self.confirmed.clear()
        self.wal.promote(epoch)
        self.visible = self.wal.flushed
        self._send_to_standbys()

    def stop(self) -> None:
        """Fast shutdown: waits are cancelled, and a primary writes one more record, which a standby may receive."""
        if not self.running:
            return
        if self.primary and not self.hung:
            self.wal.append(Entry("other", self.epoch))
            self.wal.flush()
            if self._scheduler.chance(0.5):
                for link in self.downstream.values():
                    self._send_before_end(link, self.wal.flushed)
        self._end()

    def _send_before_end(self, link: Link, upto: int) -> None:
        standby = link.standby
        if self._network.is_open(self.region, standby.region):
            self._scheduler.after(
                self._network.delay(self.region, standby.region), standby.receive_final_wal, self, upto
            )

    def crash(self) -> None:
        """Kill -9 of the postmaster, or loss of its machine: WAL that was not flushed is lost.

        A standby receives any prefix of the WAL that was in flight, which may end in an incomplete record.
        """
        for link in self.downstream.values():
            had = len(link.standby.wal.entries)
            if not self.paused and link.sent > had and self._scheduler.chance(0.5):
                self._send_before_end(link, self._scheduler.random.randrange(had, link.sent) + 1)
        self._end()
        self.wal.truncate(self.wal.flushed)

    def _end(self) -> None:
        self.running = self.primary = self.draining = False
        self.epoch = 0
        self.received = None
        self.disconnect()
        for link in list(self.downstream.values()):
            link.standby.source_ended(link)
        self.downstream.clear()
        self.confirmed.clear()
        self._release_all(success=False)

    def _release_all(self, *, success: bool) -> None:
        waits, self._waits = self._waits, deque()
        for _, release in waits:
            release(success)

    # Streaming.

    def follow(self, source: RegionName) -> None:
        """Set ``primary_conninfo``; the walreceiver retries until the setting changes."""
        if self.conninfo != source:
            self.disconnect()
            self.conninfo = source
        self.diverged = False
        if self.upstream is None:
            self._connect_later(0.0)

    def unfollow(self) -> None:
        """Clear ``primary_conninfo``; the walreceiver runs until `disconnect`."""
        self.conninfo = None

    def disconnect(self) -> None:
        """End the walreceiver."""
        link, self.upstream = self.upstream, None
        self._connecting += 1
        self._is_connecting = False
        if link is not None:
            link.source.drop_standby(link)

    def drop_standby(self, link: Link) -> None:
        """A walsender ends with its connection; the standby's confirmed position no longer counts."""
        if self.downstream.get(link.standby.region) is link:
            del self.downstream[link.standby.region]
            self.confirmed.pop(link.standby.region, None)

    def source_ended(self, link: Link) -> None:
        """The source of a connection ended; the walreceiver connects again."""
        if self.upstream is link:
            self.upstream = None
            self._connect_later()

    @property
    def has_receiver(self) -> bool:
        """Whether a walreceiver runs; one that is still connecting is not in ``pg_stat_wal_receiver``."""
        return self.upstream is not None or self._is_connecting

    def _connect_later(self, seconds: float | None = None) -> None:
        self._connecting += 1
        self._is_connecting = self.conninfo is not None
        wait = self._scheduler.between(*RECONNECT_S) if seconds is None else seconds
        self._scheduler.after(wait, self._connect, self._connecting)

    def _connect(self, attempt: int) -> None:
        if attempt != self._connecting or not self.running or self.primary or self.conninfo is None:
            return
        source = self.peers.get(self.conninfo)
        able = not self.paused and source is not None and source.running and not source.paused
        if source is None or not able or not self._network.is_connected(self.region, source.region):
            self._connect_later()
            return
        back_and_forth = self._network.delay(self.region, source.region) + self._network.delay(
            source.region, self.region
        )
        self._scheduler.after(back_and_forth, self._connected, attempt, source)

    def _connected(self, attempt: int, source: Member) -> None:
        if attempt != self._connecting or not self.running or self.paused or not source.running:
            self._retry(attempt)
            return
        if not source.wal.accepts(self.wal):
            self.diverged = True
            self._retry(attempt)
            return
        if self.wal.complete_lsn < len(self.wal.entries):
            # The source overwrites an incomplete record; the receive position goes back to the start of that record.
            self.wal.truncate(self.wal.complete_lsn)
            self.received = None if self.received is None else self.wal.flushed
        link = Link(source, self)
        link.sent = len(self.wal.entries)
        old = source.downstream.get(self.region)
        if old is not None:
            source.drop_standby(old)
        source.downstream[self.region] = self.upstream = link
        self._is_connecting = False
        self.wal.newest_timeline = max(self.wal.newest_timeline, source.wal.newest_timeline)
        self.diverged = False
        source.send(link)
        self.confirm(link)

    def _retry(self, attempt: int) -> None:
        if attempt == self._connecting and self.running and not self.primary:
            self._connect_later()

    def send(self, link: Link) -> None:
        """Send flushed WAL that was not sent; `resume_io` sends again what a partition held up."""
        if link.sent < self.wal.flushed and not self.paused and self._network.is_open(self.region, link.standby.region):
            link.sent = self.wal.flushed
            self._scheduler.after(
                self._network.delay(self.region, link.standby.region), link.standby.receive_wal, link, link.sent
            )

    def receive_wal(self, link: Link, upto: int) -> None:
        """WAL arrives; a walreceiver that still runs takes it even if ``primary_conninfo`` was cleared."""
        if self.upstream is link and self._append_received(link.source, upto):
            self.confirm(link)

    def receive_final_wal(self, source: Member, upto: int) -> None:
        """WAL arrives that a primary sent before it ended."""
        if self.conninfo == source.region:
            self._append_received(source, upto)

    def _append_received(self, source: Member, upto: int) -> bool:
        if not self.running or self.primary or self.paused or self.hung:
            return False
        if upto > len(self.wal.entries):
            if len(source.wal.entries) < upto or not source.wal.accepts(self.wal):
                return False
            self.wal.receive(source.wal, upto)
            self.received, self.visible = self.wal.flushed, self.wal.complete_lsn
            self._listener.wal_received(self, source)
            self._send_to_standbys()
        return True

    def confirm(self, link: Link) -> None:
        """Report the flushed position to the source."""
        source = link.source
        if source.primary and self._network.is_open(self.region, source.region):
            seconds = self._network.delay(self.region, source.region)
            self._scheduler.after(seconds, source.receive_confirmation, link, self.wal.flushed)

    def receive_confirmation(self, link: Link, end: int) -> None:
        """The flushed position of a standby arrives."""
        region = link.standby.region
        if self.paused or self.downstream.get(region) is not link:
            return
        if end > self.confirmed.get(region, 0):
            self.confirmed[region] = end
            self._release()

    def _send_to_standbys(self) -> None:
        for link in self.downstream.values():
            self.send(link)

    def resume_io(self) -> None:
        """Resume TCP connections and the disk, after a random delay, when a partition, pause or hang has ended."""
        self._scheduler.after(self._scheduler.between(0.0, HEAL_S_MAX), self._resume)

    def _resume(self) -> None:
        if not self.running or self.paused or self.hung:
            return
        if self.wal.flushed < len(self.wal.entries):
            self.wal.flush()
        for link in self.downstream.values():
            link.sent = min(link.sent, len(link.standby.wal.entries))
            self.send(link)
        if self.upstream is not None:
            link = self.upstream
            link.sent = min(link.sent, len(self.wal.entries))
            link.source.send(link)
            self.confirm(link)
        self._release()

    @property
    def replayed(self) -> int:
        """``pg_last_wal_replay_lsn()``."""
        end = self.wal.complete_lsn
        return end - self.replay_lag if self._lags else end

    @property
    def torn(self) -> bool:
        """Whether an incomplete record is all that it has not replayed, and no walreceiver runs to get the rest."""
        return self.wal.complete_lsn < len(self.wal.entries) and not self.has_receiver and not self._lags

    @property
    def _lags(self) -> bool:
        return self._scheduler.now < self.replay_at

    @property
    def waiting(self) -> int:
        """Number of commits that wait for the quorum."""
        return len(self._waits)

    # Writes.

    def write(self, entry: Entry, release: Release | None) -> int:
        """Write an entry, and call ``release`` when its wait for the quorum ends; return the LSN at which it ends.

        Without a quorum the wait ends as soon as the entry is flushed.
        """
        assert self.running, "only a running primary writes"
        assert self.primary, "only a primary writes"
        end = self.wal.append(entry)
        if release is not None:
            self._waits.append((end, release))
        if not self.hung:
            self.wal.flush()
            self._send_to_standbys()
            self._release()
        return end

    def write_partial_record(self) -> None:
        """Write the first part of a record that crosses a segment boundary; it is sent before the rest is written."""
        if not self.hung:
            self.wal.append(Entry("part", self.epoch))
            self.wal.flush()
            self._send_to_standbys()

    def wait(self, release: Release) -> None:
        """Call ``release`` when a quorum has everything that was written so far."""
        self.write(Entry("other", self.epoch), release)

    def set_standby_names(self, names: tuple[RegionName, ...], required: int) -> None:
        """Set ``synchronous_standby_names``; an empty value releases the waiting commits with success."""
        self.standby_names, self.required = names, required
        if self.running and self.primary:
            self._release()

    def cancel_waits(self) -> None:
        """Cancel the backends that wait: their rows become visible, and the warning looks like success (rule 7)."""
        waits = [one for one in self._waits if one[0] <= self.wal.flushed]  # the local flush cannot be cancelled
        self._waits = deque(one for one in self._waits if one[0] > self.wal.flushed)
        self.visible = max([self.visible, *(end for end, _ in waits)])
        for _, release in waits:
            release(False)

    def quorum_lsn(self) -> int:
        """The LSN up to which commits are acknowledged."""
        if not self.standby_names or not self.required:
            return self.wal.flushed
        ends = sorted((self.confirmed.get(name, 0) for name in self.standby_names), reverse=True)
        return min(self.wal.flushed, ends[self.required - 1])

    def _release(self) -> None:
        if not self._waits:
            return
        end = self.quorum_lsn()
        waits = self._waits
        while waits and waits[0][0] <= end:
            upto, release = waits.popleft()
            self.visible = max(self.visible, upto)
            release(True)

    # Rebuilding, while the postmaster is stopped.

    def rewind(self, source: Member) -> None:
        """``pg_rewind``: does nothing on an equal timeline number; else goes back to a checkpoint before the fork."""
        assert not self.running, "a rewind of a running member"
        if self.wal.timeline == source.wal.timeline:
            return
        before = len(self.wal.entries)
        fork = min(self.wal.fork(source.wal), before)
        self.wal.truncate(max(0, fork - self._scheduler.random.randrange(REWIND_LOSS_MAX)))
        self.wal.newest_timeline = source.wal.newest_timeline
        self._listener.wal_lost(self, before)

    def copy(self, source: Member) -> None:
        """Replace the data by a base backup, without the source's settings: no standby names are set (rule 5)."""
        assert not self.running, "a copy over a running member"
        self.wal.copy(source.wal)
        self.exists = True
        self.standby_names, self.required = (), 0
        self.conninfo = None

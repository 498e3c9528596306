"""A ledger member: PostgreSQL modelled by what it promises and by its traps, without SQL.

Decides what a postmaster does by itself: streaming, synchronous commits, promotion, what a crash keeps. Refuses to
know what an agent wants (``steps.py``). Its traps are those of failover.md, and each has a test:

* a standby's ``synchronous_standby_names`` is empty until it is set, and then it acknowledges alone (rule 5);
* emptying the names releases the waiters with success (rule 6);
* a cut-short wait and a crash leave rows visible that no standby has (rules 7 and 8);
* two promotions may take the same timeline; a standby on it is accepted blindly, ``pg_rewind`` does nothing (11);
* ``pg_rewind`` may go far below WAL that was acknowledged (rule 12);
* a record that does not fit into a segment is sent in parts, and who has the first of them only never replays it (4).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from typing import Protocol

from infra.simulation.network import HEAL_S_MAX, Network
from infra.simulation.wal import Entry, Wal
from infra.simulation.world import World
from regions.identity import Epoch, RegionName

RECONNECT_S = (0.2, 0.7)
"""``wal_retrieve_retry_interval`` of 500 ms, more or less."""

REWIND_LOSS_MAX = 40
"""Entries below the fork at which a rewind starts: the last checkpoint before it."""

Release = Callable[[bool], None]
"""Called when the wait of a commit ends: with True by its quorum, with False when the wait was cut short."""


class Witness(Protocol):
    """Who is told what members do; it changes nothing."""

    def streamed(self, standby: Member, source: Member) -> None:
        """Some WAL was received and flushed."""
        ...

    def shrunk(self, member: Member, before: int) -> None:
        """A member lost WAL that it had on disk; ``before``: where it ended."""
        ...


class Link:
    """A walsender and its walreceiver."""

    __slots__ = ("sent", "source", "standby")

    def __init__(self, source: Member, standby: Member) -> None:
        self.source = source
        self.standby = standby
        self.sent = 0


class Member:
    """One PostgreSQL.

    Attributes:
        region: Where it stands.
        wal: Its log.
        exists: Whether there is finished data.
        running: Whether the postmaster runs.
        primary: Whether it runs as primary.
        epoch: Under which its agent started it so; 0 for a standby that receives from nobody.
        conninfo: From whom it is configured to receive; None from nobody.
        names: ``synchronous_standby_names``.
        required: How many of them.
        received: ``pg_last_wal_receive_lsn()``; None since the postmaster started.
        replay_at: Until when replay lags by ``replay_lag`` entries.
        visible: The LSN up to which commits can be seen by others.
        hung: Whether its disk hangs.
        paused: Whether its region is stopped by SIGSTOP.
        draining: Whether its agent lets no more writes in.
        diverged: Whether the member that it wants to receive from refused it.
    """

    def __init__(self, world: World, network: Network, region: RegionName, bit: int, witness: Witness) -> None:
        self._world = world
        self._network = network
        self._witness = witness
        self.peers: Mapping[RegionName, Member] = {}
        self.region = region
        self.wal = Wal(bit)
        self.exists = False
        self.running = False
        self.primary = False
        self.epoch: Epoch = 0
        self.conninfo: RegionName | None = None
        self.names: tuple[RegionName, ...] = ()
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
        self._tries = False

    # Starting and ending.

    def initialise(self, epoch: Epoch) -> None:
        """``initdb`` where nothing is, and start as primary without a quorum."""
        if not self.exists:
            self.exists = True
            self.wal.copy(Wal(0))
            self.wal.append(Entry("other", epoch))
            self.wal.flush()
            self.names, self.required = (), 0
        self.running = self.primary = True
        self.epoch = epoch
        self.visible = self.wal.flushed
        self.received = None

    def start_standby(self) -> None:
        """Start as a standby, of whom the configuration says."""
        assert self.exists, "a start without data"
        if not self.running:
            self.running, self.primary = True, False
            self.received = None
            self.visible = self.wal.whole
            self.diverged = False
            if self.conninfo is not None:
                self._connect_later()

    def promote(self, epoch: Epoch) -> None:
        """``pg_promote``: a new timeline from here on."""
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
        self._grew()

    def stop(self) -> None:
        """Fast shutdown: waits are cut short, a primary writes one more record that a standby may still get."""
        if not self.running:
            return
        if self.primary and not self.hung:
            self.wal.append(Entry("other", self.epoch))
            self.wal.flush()
            if self._world.chance(0.5):
                for link in self.downstream.values():
                    self._last_words(link, self.wal.flushed)
        self._end()

    def _last_words(self, link: Link, upto: int) -> None:
        standby = link.standby
        if self._network.is_open(self.region, standby.region):
            self._world.after(self._network.delay(self.region, standby.region), standby.take_rest, self, upto)

    def crash(self) -> None:
        """Kill -9 of the postmaster, or loss of its machine: what is not on disk is gone.

        Of what is under way a standby gets any beginning, half a record too.
        """
        for link in self.downstream.values():
            had = len(link.standby.wal.entries)
            if not self.paused and link.sent > had and self._world.chance(0.5):
                self._last_words(link, self._world.random.randrange(had, link.sent) + 1)
        self._end()
        self.wal.truncate(self.wal.flushed)

    def _end(self) -> None:
        self.running = self.primary = self.draining = False
        self.epoch = 0
        self.received = None
        self.disconnect()
        for link in list(self.downstream.values()):
            link.standby.lose_source(link)
        self.downstream.clear()
        self.confirmed.clear()
        self._release_all(success=False)

    def _release_all(self, *, success: bool) -> None:
        waits, self._waits = self._waits, deque()
        for _, release in waits:
            release(success)

    # Streaming.

    def follow(self, source: RegionName) -> None:
        """Set ``primary_conninfo``; the walreceiver tries until it is told otherwise."""
        if self.conninfo != source:
            self.disconnect()
            self.conninfo = source
        self.diverged = False
        if self.upstream is None:
            self._connect_later(0.0)

    def unfollow(self) -> None:
        """Clear ``primary_conninfo``; the walreceiver ends when it is disconnected."""
        self.conninfo = None

    def disconnect(self) -> None:
        """End the walreceiver."""
        link, self.upstream = self.upstream, None
        self._connecting += 1
        self._tries = False
        if link is not None:
            link.source.lose_standby(link)

    def lose_standby(self, link: Link) -> None:
        """A walsender ends with its connection; what its standby confirmed counts no more."""
        if self.downstream.get(link.standby.region) is link:
            del self.downstream[link.standby.region]
            self.confirmed.pop(link.standby.region, None)

    def lose_source(self, link: Link) -> None:
        """The other end of a connection ended."""
        if self.upstream is link:
            self.upstream = None
            self._connect_later()

    @property
    def has_receiver(self) -> bool:
        """Whether there is a walreceiver; one that still connects is in no ``pg_stat_wal_receiver``."""
        return self.upstream is not None or self._tries

    def _connect_later(self, seconds: float | None = None) -> None:
        self._connecting += 1
        self._tries = self.conninfo is not None
        wait = self._world.between(*RECONNECT_S) if seconds is None else seconds
        self._world.after(wait, self._connect, self._connecting)

    def _connect(self, attempt: int) -> None:
        if attempt != self._connecting or not self.running or self.primary or self.conninfo is None:
            return
        source = self.peers.get(self.conninfo)
        able = not self.paused and source is not None and source.running and not source.paused
        if source is None or not able or not self._network.talks(self.region, source.region):
            self._connect_later()
            return
        back_and_forth = self._network.delay(self.region, source.region) + self._network.delay(
            source.region, self.region
        )
        self._world.after(back_and_forth, self._connected, attempt, source)

    def _connected(self, attempt: int, source: Member) -> None:
        if attempt != self._connecting or not self.running or self.paused or not source.running:
            self._retry(attempt)
            return
        if not source.wal.accepts(self.wal):
            self.diverged = True
            self._retry(attempt)
            return
        if self.wal.whole < len(self.wal.entries):
            # Half a record is written over, whoever sends now; what was received counts from there again.
            self.wal.truncate(self.wal.whole)
            self.received = None if self.received is None else self.wal.flushed
        link = Link(source, self)
        link.sent = len(self.wal.entries)
        old = source.downstream.get(self.region)
        if old is not None:
            source.lose_standby(old)
        source.downstream[self.region] = self.upstream = link
        self._tries = False
        self.wal.newest_timeline = max(self.wal.newest_timeline, source.wal.newest_timeline)
        self.diverged = False
        source.send(link)
        self.confirm(link)

    def _retry(self, attempt: int) -> None:
        if attempt == self._connecting and self.running and not self.primary:
            self._connect_later()

    def send(self, link: Link) -> None:
        """Send what is on disk and was not sent; what a cut holds up is sent again after it."""
        if link.sent < self.wal.flushed and not self.paused and self._network.is_open(self.region, link.standby.region):
            link.sent = self.wal.flushed
            self._world.after(self._network.delay(self.region, link.standby.region), link.standby.take, link, link.sent)

    def take(self, link: Link, upto: int) -> None:
        """WAL arrives; a walreceiver that was not ended yet takes it even when nothing is configured any more."""
        if self.upstream is link and self._absorb(link.source, upto):
            self.confirm(link)

    def take_rest(self, source: Member, upto: int) -> None:
        """The last WAL of a primary that ended arrives."""
        if self.conninfo == source.region:
            self._absorb(source, upto)

    def _absorb(self, source: Member, upto: int) -> bool:
        if not self.running or self.primary or self.paused or self.hung:
            return False
        if upto > len(self.wal.entries):
            if len(source.wal.entries) < upto or not source.wal.accepts(self.wal):
                return False
            self.wal.receive(source.wal, upto)
            self.received, self.visible = self.wal.flushed, self.wal.whole
            self._witness.streamed(self, source)
            self._grew()
        return True

    def confirm(self, link: Link) -> None:
        """Tell the source how far the disk is."""
        source = link.source
        if source.primary and self._network.is_open(self.region, source.region):
            seconds = self._network.delay(self.region, source.region)
            self._world.after(seconds, source.take_confirmation, link, self.wal.flushed)

    def take_confirmation(self, link: Link, end: int) -> None:
        """A standby's answer arrives."""
        region = link.standby.region
        if self.paused or self.downstream.get(region) is not link:
            return
        if end > self.confirmed.get(region, 0):
            self.confirmed[region] = end
            self._release()

    def _grew(self) -> None:
        for link in self.downstream.values():
            self.send(link)

    def recover(self) -> None:
        """After a cut, a pause or a hang: TCP and the disk go on after a moment."""
        self._world.after(self._world.between(0.0, HEAL_S_MAX), self._resume)

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
        end = self.wal.whole
        return end - self.replay_lag if self._lags else end

    @property
    def torn(self) -> bool:
        """Whether all that it has not replayed is half a record, and nobody sends the rest."""
        return self.wal.whole < len(self.wal.entries) and not self.has_receiver and not self._lags

    @property
    def _lags(self) -> bool:
        return self._world.now < self.replay_at

    @property
    def waiting(self) -> int:
        """How many commits wait for the quorum."""
        return len(self._waits)

    # Writing.

    def write(self, entry: Entry, release: Release | None) -> int:
        """Commit an entry and wait for the quorum; return where it ends.

        A member without a quorum releases at once, when its disk answers.
        """
        assert self.running, "only a running primary writes"
        assert self.primary, "only a primary writes"
        end = self.wal.append(entry)
        if release is not None:
            self._waits.append((end, release))
        if not self.hung:
            self.wal.flush()
            self._grew()
            self._release()
        return end

    def write_part(self) -> None:
        """Write the first part of a record that does not fit into its segment: it is sent before the rest is there."""
        if not self.hung:
            self.wal.append(Entry("part", self.epoch))
            self.wal.flush()
            self._grew()

    def wait(self, release: Release) -> None:
        """Wait until everything that was written so far is on the quorum."""
        self.write(Entry("other", self.epoch), release)

    def set_names(self, names: tuple[RegionName, ...], required: int) -> None:
        """Set ``synchronous_standby_names``; an empty one releases the waiters with success."""
        self.names, self.required = names, required
        if self.running and self.primary:
            self._release()

    def cancel_waits(self) -> None:
        """Somebody cancels the backends that wait: their rows are there, and a warning looks like success."""
        waits = [one for one in self._waits if one[0] <= self.wal.flushed]  # the disk is waited for by all means
        self._waits = deque(one for one in self._waits if one[0] > self.wal.flushed)
        self.visible = max([self.visible, *(end for end, _ in waits)])
        for _, release in waits:
            release(False)

    def quorum_lsn(self) -> int:
        """Up to where commits are acknowledged."""
        if not self.names or not self.required:
            return self.wal.flushed
        ends = sorted((self.confirmed.get(name, 0) for name in self.names), reverse=True)
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

    # Rebuilding; the postmaster is stopped.

    def rewind(self, source: Member) -> None:
        """``pg_rewind``: nothing at all on the same timeline number; else back to a checkpoint before the fork."""
        assert not self.running, "a rewind of a running member"
        if self.wal.timeline == source.wal.timeline:
            return
        before = len(self.wal.entries)
        fork = min(self.wal.fork(source.wal), before)
        self.wal.truncate(max(0, fork - self._world.random.randrange(REWIND_LOSS_MAX)))
        self.wal.newest_timeline = source.wal.newest_timeline
        self._witness.shrunk(self, before)

    def copy(self, source: Member) -> None:
        """Put a base backup in place; the agent's own configuration comes beside it, so no names are set (rule 5)."""
        assert not self.running, "a copy over a running member"
        self.wal.copy(source.wal)
        self.exists = True
        self.names, self.required = (), 0
        self.conninfo = None

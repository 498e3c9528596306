"""Models clients: they send writes with idempotency keys, retry refused and unknown ones, and send strong reads.

An edge sends a request to the leader in the record that its region knows. A write that a region has admitted reaches
the member a moment later, whatever happens there in between. If a client repeats a write, the ledger's unique key
decides.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from infra.simulation.etcd import Etcd
from infra.simulation.member import Member
from infra.simulation.network import Network
from infra.simulation.node import CELL, Node
from infra.simulation.scheduler import Scheduler
from infra.simulation.wal import Entry
from regions.failover import rules
from regions.failover.events import QuorumWaitCancelled, StrongReads
from regions.identity import Epoch, RegionName
from regions.leadership import Leadership

WRITE_EVERY_S = (0.2, 0.8)
READ_EVERY_S = (0.3, 1.2)
RETRY_S = (0.1, 0.4)
TIMEOUT_S = 2.0
HANDLER_S = (0.0005, 0.004)
CANCELLATION_REPORTED = 0.7
"""Share of cancelled waits that the write API reports to its agent; in the others the write API has died as well."""

QUORUM_POLL_S = 0.01
"""Interval at which a strong read checks whether a quorum has what it saw."""

CROSSES_SEGMENT = 0.1
"""Share of rows whose WAL record crosses a segment boundary."""

SLOW_HANDLER = 0.02
"""Share of writes whose handler stalls for up to a second between its check and its INSERT."""

SeenEntry = tuple[Entry, int]
"""An entry, and the LSN at which it ends."""

ReadBaseline = tuple[SeenEntry | None, SeenEntry | None]
"""The newest acknowledged write and the newest entry that a strong read returned, when a strong read began."""


class ClientListener(Protocol):
    """Observes the answers to clients and changes nothing."""

    def write_acknowledged(self, member: Member, epoch: Epoch, entry: Entry, end: int) -> None:
        """A write was acknowledged."""
        ...

    def strong_read_started(self) -> ReadBaseline:
        """A strong read begins; the result is passed to `strong_read_answered` with its answer."""
        ...

    def strong_read_answered(self, member: Member, baseline: ReadBaseline, visible: int) -> None:
        """A strong read was answered as current, with the rows that are visible up to an LSN."""
        ...


class Write:
    """A client's write.

    Attributes:
        key: Its idempotency key.
        edge: The region whose edge the client uses.
        attempt: Number of the current attempt; an answer to an earlier one is ignored.
        done: Whether the client knows that it was committed.
    """

    __slots__ = ("attempt", "done", "edge", "key")

    def __init__(self, key: int, edge: RegionName) -> None:
        self.key = key
        self.edge = edge
        self.attempt = 0
        self.done = False


class Workload:
    """All clients.

    Attributes:
        begun: Writes that clients began.
        committed: Writes whose commit a client was informed of.
        commits_at: Times at which clients were informed of their commits.
        reads: Strong reads that were answered as current.
        active: Whether new writes begin.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        network: Network,
        etcd: Etcd,
        nodes: Mapping[RegionName, Node],
        listener: ClientListener,
    ) -> None:
        self._scheduler = scheduler
        self._network = network
        self._etcd = etcd
        self._nodes = nodes
        self._regions = tuple(nodes)
        self._listener = listener
        self.begun = 0
        self.committed = 0
        self.commits_at: list[float] = []
        self.reads = 0
        self.active = True

    def start(self) -> None:
        """Start the clients of each region."""
        for region in self._regions:
            self._scheduler.after(self._scheduler.between(*WRITE_EVERY_S), self._begin, region)
            self._scheduler.after(self._scheduler.between(*READ_EVERY_S), self._read, region)

    def _serves(self, region: RegionName) -> bool:
        """Whether the edge of a region answers its clients."""
        node = self._nodes[region]
        return not self._etcd.is_down(region) and not (node.member is not None and node.member.paused)

    def _begin(self, region: RegionName) -> None:
        if not self.active:
            return
        self._scheduler.after(self._scheduler.between(*WRITE_EVERY_S), self._begin, region)
        self.begun += 1
        self._attempt(Write(self.begun, region))

    def _attempt(self, write: Write) -> None:
        if not self._serves(write.edge):
            write.edge = self._scheduler.random.choice(self._regions)
            self._scheduler.after(self._scheduler.between(*RETRY_S), self._attempt, write)
            return
        record = self._leadership(write.edge)
        if record is None or record.phase in ("bootstrapping", "recruiting"):
            self._scheduler.after(self._scheduler.between(*RETRY_S), self._attempt, write)
            return
        write.attempt += 1
        if self._network.is_open(write.edge, record.leader):
            seconds = self._network.delay(write.edge, record.leader)
            self._scheduler.after(seconds, self._arrive, write, write.attempt, record.leader, record.epoch)
        self._scheduler.after(TIMEOUT_S, self._time_out, write, write.attempt)

    def _leadership(self, edge: RegionName) -> Leadership | None:
        """The record that an edge uses: its etcd member's, or its agent's if that has a higher epoch."""
        record, core = self._etcd.view(edge), self._nodes[edge].core
        heard = None if core is None else core.machines[CELL].facts.record
        return heard if record is not None and heard is not None and heard.epoch > record.epoch else record

    def _time_out(self, write: Write, attempt: int) -> None:
        if not write.done and write.attempt == attempt:
            self._attempt(write)

    def _arrive(self, write: Write, attempt: int, leader: RegionName, epoch: Epoch) -> None:
        node = self._nodes[leader]
        member = node.member
        if member is None or member.paused or self._etcd.is_down(leader):
            return
        if not self._takes_writes(leader, member, epoch):
            self._answer(write, attempt, leader, committed=False)
            return
        node.writes_under_way += 1
        seconds = self._scheduler.between(*HANDLER_S)
        if self._scheduler.chance(SLOW_HANDLER):
            seconds += self._scheduler.between(0, 1)
        self._scheduler.after(seconds, self._insert, write, attempt, node, member)

    def _takes_writes(self, region: RegionName, member: Member, epoch: Epoch) -> bool:
        """Whether a region's write API admits a write. It uses etcd and the ledger, and does not ask its agent.

        The fence row may not have a quorum yet, and the epoch may only be promised; each commit waits for its own
        quorum.
        """
        record, newest = self._etcd.view(region), max((one for _, one in member.wal.fences), default=0)
        if record is None or record.phase in ("bootstrapping", "recruiting"):
            return False
        promised = record.succession is not None and (record.succession.region, record.epoch + 1) == (region, epoch)
        chosen = (record.leader, record.epoch) == (region, epoch)
        open_to_it = promised or chosen
        return open_to_it and member.running and member.primary and not member.draining and newest == epoch

    def _insert(self, write: Write, attempt: int, node: Node, member: Member) -> None:
        if member.paused:
            self._scheduler.after(0.1, self._insert, write, attempt, node, member)
            return
        node.writes_under_way -= 1
        if not member.running or not member.primary:
            self._answer(write, attempt, node.region, committed=False)
            return
        end = member.wal.keys.get(write.key, 0)
        epoch = member.epoch
        if end:
            entry = member.wal.entries[end - 1]
            written = Entry(
                "other", epoch
            )  # a replay waits for the quorum too, because a later leader may not have the row
        else:
            if self._scheduler.chance(CROSSES_SEGMENT):
                member.write_partial_record()
            entry = written = Entry("row", epoch, key=write.key)
            end = len(member.wal.entries) + 1

        def released(success: bool) -> None:
            if success:
                self._listener.write_acknowledged(member, epoch, entry, end)
            elif self._scheduler.chance(CANCELLATION_REPORTED):
                self._scheduler.after(
                    self._scheduler.between(*HANDLER_S), node.deliver_to_cell, QuorumWaitCancelled(epoch=epoch)
                )
            self._answer(write, attempt, node.region, committed=success)

        member.write(written, released)

    def _answer(self, write: Write, attempt: int, leader: RegionName, *, committed: bool) -> None:
        if self._network.is_open(leader, write.edge):
            seconds = self._network.delay(leader, write.edge)
            self._scheduler.after(seconds, self._answered, write, attempt, committed)

    def _answered(self, write: Write, attempt: int, committed: bool) -> None:
        if write.done or write.attempt != attempt:
            return
        if committed:
            write.done = True
            self.committed += 1
            self.commits_at.append(self._scheduler.now)
        else:
            write.attempt += 1
            self._scheduler.after(self._scheduler.between(*RETRY_S), self._attempt, write)

    # Strong reads.

    def _read(self, region: RegionName) -> None:
        self._scheduler.after(self._scheduler.between(*READ_EVERY_S), self._read, region)
        record = self._etcd.view(region)
        if not self._serves(region) or record is None or not self._network.is_open(region, record.leader):
            return
        node = self._nodes[record.leader]
        baseline = self._listener.strong_read_started()
        self._scheduler.after(self._network.delay(region, record.leader), self._read_arrives, node, baseline)

    def _read_arrives(self, node: Node, baseline: ReadBaseline) -> None:
        member = node.member
        if not node.up or node.paused or member is None or member.paused:
            return
        early = member.visible if self._scheduler.chance(0.5) and member.running and member.primary else 0
        found = member.wal.entries[early - 1] if early else None

        def answered(current: bool) -> None:
            if not current or not member.running or not member.primary or member.paused:
                return
            end = early or member.visible
            if end and (found is None or member.wal.has(found, early)):
                seen = (member.wal.entries[end - 1], end)
                self._await_quorum(member, member.epoch, baseline, seen, self._scheduler.now + TIMEOUT_S)

        number = node.start_strong_read(answered)
        node.deliver_to_cell(StrongReads(requests=(number,)))

    def _await_quorum(
        self, member: Member, epoch: Epoch, baseline: ReadBaseline, seen: SeenEntry, until: float
    ) -> None:
        """Answer a read once a quorum has what it saw; give up if the member no longer is primary of this epoch."""
        if member.epoch != epoch or not member.running or not member.primary or member.paused:
            return
        if rules.is_settled(seen[1], member.quorum_lsn()):
            self._listener.strong_read_answered(member, baseline, seen[1])
            self.reads += 1
        elif self._scheduler.now < until:
            self._scheduler.after(QUORUM_POLL_S, self._await_quorum, member, epoch, baseline, seen, until)
